// Package header knows which header fields a proxy takes away from a message and which it sets: those
// that belong to one connection only (RFC 9110 section 7.6.1), and those by which an application
// learns who called it.
//
// An application believes what it finds under the latter names, so nothing that a caller sent under
// them may pass: not in another case, not with other characters for the hyphens (CGI and its heirs
// make the same variable of "X-Client-Cert", "X_Client_Cert" and "X.Client.Cert"), and not in
// trailers.
package header

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"countersign.dev/id"
)

// The fields by which an application learns who called it.
const (
	// ForwardedFor lists the addresses that a request came through.
	ForwardedFor = "X-Forwarded-For"
	// ClientCert is the subject of the caller's certificate, as NGINX prints it.
	ClientCert = "X-Client-Cert"
	// ForwardedClientCert describes the caller's certificate in Envoy's format.
	ForwardedClientCert = "X-Forwarded-Client-Cert"
)

// hopByHop are the fields that never pass.
var hopByHop = []string{
	"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings",
}

// StripHopByHop removes what belongs to one connection only, and what the Connection field names. In a
// request, "TE: trailers" stays: gRPC wants it.
func StripHopByHop(h http.Header) {
	trailers := slices.ContainsFunc(h["Te"], func(v string) bool { return hasElement(v, "trailers") })
	for _, value := range h["Connection"] {
		for name := range strings.SplitSeq(value, ",") {
			if name = strings.Trim(name, " \t"); name != "" {
				h.Del(name)
			}
		}
	}
	for _, name := range hopByHop {
		delete(h, name)
	}
	if trailers {
		h["Te"] = []string{"trailers"}
	}
}

// UpgradeTo gives the protocol that a request asks to switch to, or that a response has switched to:
// the Upgrade field when Connection names it, else the empty text.
func UpgradeTo(h http.Header) string {
	if slices.ContainsFunc(h["Connection"], func(v string) bool { return hasElement(v, "upgrade") }) {
		return h.Get("Upgrade")
	}
	return ""
}

// hasElement looks for an element of a comma-separated list, without regard to case.
func hasElement(list, want string) bool {
	for element := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.Trim(element, " \t"), want) {
			return true
		}
	}
	return false
}

// looksLike tells whether an application may read name as the other one, which is in lower case with
// hyphens.
func looksLike(name, other string) bool {
	if len(name) != len(other) {
		return false
	}
	for i := range len(name) {
		b := name[i]
		switch {
		case b >= 'A' && b <= 'Z':
			b += 'a' - 'A'
		case b >= 'a' && b <= 'z', b >= '0' && b <= '9':
		default:
			b = '-'
		}
		if b != other[i] {
			return false
		}
	}
	return true
}

// Forget removes what a caller claims about its certificate, however it is spelled. It is for heads
// and for trailers.
func Forget(h http.Header) {
	for name := range h {
		if looksLike(name, "x-client-cert") || looksLike(name, "x-forwarded-client-cert") {
			delete(h, name)
		}
	}
}

// ForgetAddresses removes what a caller claims about the addresses it speaks for, but the one spelling
// that [AppendAddress] understands.
func ForgetAddresses(h http.Header, all bool) {
	for name := range h {
		if looksLike(name, "x-forwarded-for") && (all || name != ForwardedFor) {
			delete(h, name)
		}
	}
}

// Confusing tells whether a field's name is one that some application reads as one that says where the
// body ends. Over HTTP/1.1 the request guard refuses it; HTTP/2 lets it through.
func Confusing(h http.Header) bool {
	for name := range h {
		if name != "Content-Length" && looksLike(name, "content-length") || name != "Transfer-Encoding" && looksLike(name, "transfer-encoding") {
			return true
		}
	}
	return false
}

// SetAddress says that the request came from addr and that nothing is known of before.
func SetAddress(h http.Header, addr netip.Addr) {
	ForgetAddresses(h, true)
	h[ForwardedFor] = []string{addr.Unmap().String()}
}

// AppendAddress adds addr to the addresses that a trusted caller has listed.
func AppendAddress(h http.Header, addr netip.Addr) {
	ForgetAddresses(h, false)
	list := append(slices.Clone(h[ForwardedFor]), addr.Unmap().String())
	h[ForwardedFor] = []string{strings.Join(list, ", ")}
}

// SetPeer tells the application whose certificate the caller has proved to hold, after it has removed
// what the caller itself said. own is the identity that the caller has reached; a nil peer is an
// anonymous caller, of whom nothing is said.
func SetPeer(h http.Header, own id.ID, peer *Peer) {
	Forget(h)
	if peer == nil {
		return
	}
	h[ClientCert] = []string{peer.subject}
	h[ForwardedClientCert] = []string{"By=" + own.String() + peer.details}
}

// Peer is what is told about a certificate. It is immutable, and made once a connection.
type Peer struct {
	subject string
	details string
}

// NewPeer prepares what is told about a certificate that was verified.
func NewPeer(cert *x509.Certificate) *Peer {
	subject := DN(cert.RawSubject)
	hash := sha256.Sum256(cert.Raw)
	var b strings.Builder
	b.WriteString(";Hash=" + hex.EncodeToString(hash[:]))
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
