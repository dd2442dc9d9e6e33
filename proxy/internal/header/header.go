// Package header knows which header fields a proxy takes away from a message and which it sets: those
// by which an application learns who called it. (What belongs to one connection only, the codecs take
// away.)
//
// An application believes what it finds under these names, so nothing that a caller sent under them may
// pass: not in another case, not with other characters for the hyphens (CGI and its heirs make the
// same variable of "X-Client-Cert", "X_Client_Cert" and "X.Client.Cert"), and not in trailers.
package header

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"strings"

	"countersign.dev/id"
	"countersign.dev/proxy/internal/message"
)

// The fields by which an application learns who called it.
const (
	// ForwardedFor lists the addresses that a request came through.
	ForwardedFor = "x-forwarded-for"
	// ClientCert is the subject of the caller's certificate, as NGINX prints it.
	ClientCert = "x-client-cert"
	// ForwardedClientCert describes the caller's certificate in Envoy's format.
	ForwardedClientCert = "x-forwarded-client-cert"
)

// claim is what a field's name is read as by some application.
type claim int

const (
	nothing    claim = iota
	aboutCert        // which certificate the caller has
	aboutAddr        // which addresses it speaks for
	aboutFrame       // where the content ends; the true names never come here, the codecs take them
)

// claimOf looks at a name in lower case. Nearly all names are told apart by their length.
func claimOf(name string) claim {
	switch len(name) {
	case len(ClientCert):
		if looksLike(name, ClientCert) {
			return aboutCert
		}
	case len(ForwardedClientCert):
		if looksLike(name, ForwardedClientCert) {
			return aboutCert
		}
	case len(ForwardedFor):
		if looksLike(name, ForwardedFor) {
			return aboutAddr
		}
	case len("content-length"):
		if looksLike(name, "content-length") {
			return aboutFrame
		}
	case len("transfer-encoding"):
		if looksLike(name, "transfer-encoding") {
			return aboutFrame
		}
	}
	return nothing
}

// looksLike tells whether an application may read name as the other one; both are in lower case, and of
// the same length.
func looksLike(name, other string) bool {
	for i := range len(name) {
		b := name[i]
		if (b < 'a' || b > 'z') && (b < '0' || b > '9') {
			b = '-'
		}
		if b != other[i] {
			return false
		}
	}
	return true
}

// TakeClaims removes from a request what its caller claims about its certificate, however it is
// spelled, and with addresses also about the addresses that it speaks for: those in the one spelling
// that is understood are returned. It is false when a field's name is read by some as one that says
// where the content ends: such a request is to be refused.
func TakeClaims(h *message.Head, addresses bool) (forwarded string, ok bool) {
	kept := 0
	for i, f := range h.Fields {
		switch claimOf(f.Name) {
		case nothing:
		case aboutCert:
			continue
		case aboutFrame:
			return "", false
		case aboutAddr:
			if !addresses {
				break
			}
			if f.Name == ForwardedFor && forwarded != "" {
				forwarded += ", " + f.Value
			} else if f.Name == ForwardedFor {
				forwarded = f.Value
			}
			continue
		}
		if kept != i {
			h.Fields[kept] = f
		}
		kept++
	}
	clear(h.Fields[kept:])
	h.Fields = h.Fields[:kept]
	if h.Trailer != "" {
		h.Trailer = announced(h.Trailer)
	}
	return forwarded, true
}

// announced removes the names of claims from a Trailer field's list.
func announced(list string) string {
	var names []string
	for name := range strings.SplitSeq(list, ",") {
		name = strings.Trim(name, " \t")
		if name != "" && claimOf(strings.ToLower(name)) == nothing {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// Trailers removes all claims from trailers; it changes fields.
func Trailers(fields []message.Field) []message.Field {
	return slices.DeleteFunc(fields, func(f message.Field) bool { return claimOf(f.Name) != nothing })
}

// SetPeer tells the application whose certificate the caller has proved to hold. A nil peer is an
// anonymous caller, of whom nothing is said. It follows [TakeClaims].
func SetPeer(h *message.Head, peer *Peer) {
	if peer != nil {
		h.Add(ClientCert, peer.subject)
		h.Add(ForwardedClientCert, peer.details)
	}
}

// Peer is what is told about a certificate. It is immutable, and made once a connection.
type Peer struct {
	subject string
	details string
}

// NewPeer prepares what is told about a certificate that was verified. own is the identity that the
// caller has reached.
func NewPeer(cert *x509.Certificate, own id.ID) *Peer {
	subject := DN(cert.RawSubject)
	hash := sha256.Sum256(cert.Raw)
	var b strings.Builder
	b.WriteString("By=" + own.String() + ";Hash=" + hex.EncodeToString(hash[:]))
	for _, uri := range cert.URIs {
		b.WriteString(";URI=" + quoted(uri.String()))
	}
	for _, name := range cert.DNSNames {
		b.WriteString(";DNS=" + quoted(name))
	}
	b.WriteString(`;Subject="` + subject + `"`) // DN has escaped quotation marks
	return &Peer{subject: subject, details: b.String()}
}

// quoted protects what separates elements of [ForwardedClientCert].
func quoted(s string) string {
	if !strings.ContainsAny(s, `,;="`) {
		return s
	}
	return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"`
}
