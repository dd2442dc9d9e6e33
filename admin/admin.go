// Package admin knows how a sidecar answers its administrator: the forms of /certs, /ready, /healthz and /plan,
// which are Envoy's where Envoy has one. Every data plane answers through it, so that tools need not ask which one
// it is.
package admin

import (
	"crypto/x509"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"countersign.dev/mtls"
)

// Certs is Envoy's answer to GET /certs (admin/v3/certs.proto, as protobuf's JSON with the names of
// the fields).
type Certs struct {
	Certificates []Certificate `json:"certificates"`
}

// Certificate is one pair of what is trusted and what is presented.
type Certificate struct {
	CACert    []CertDetails `json:"ca_cert"`
	CertChain []CertDetails `json:"cert_chain"`
}

// CertDetails describe one certificate.
type CertDetails struct {
	Path                string       `json:"path"`
	SerialNumber        string       `json:"serial_number"` // hex, lower case
	SubjectAltNames     []SubjectAlt `json:"subject_alt_names"`
	DaysUntilExpiration string       `json:"days_until_expiration"` // protobuf writes 64-bit numbers as texts
	ValidFrom           time.Time    `json:"valid_from"`
	ExpirationTime      time.Time    `json:"expiration_time"`
}

// SubjectAlt is one of a certificate's names.
type SubjectAlt struct {
	URI string `json:"uri,omitempty"`
	DNS string `json:"dns,omitempty"`
}

// InMemory stands where Envoy names a file.
const InMemory = "<inline>"

// Pair describes a chain that is presented and the roots that are trusted, at the time now. path is where they are:
// a file, or [InMemory].
func Pair(chain, roots []*x509.Certificate, path string, now time.Time) Certificate {
	pair := Certificate{CACert: []CertDetails{}, CertChain: []CertDetails{}}
	for _, root := range roots {
		pair.CACert = append(pair.CACert, describe(root, path, now))
	}
	for _, cert := range chain {
		pair.CertChain = append(pair.CertChain, describe(cert, path, now))
	}
	return pair
}

// Parse reads a chain as TLS carries it. It leaves out what is no certificate: there is none, for handshakes are
// made with them.
func Parse(chain [][]byte) []*x509.Certificate {
	var certs []*x509.Certificate
	for _, der := range chain {
		if cert, err := x509.ParseCertificate(der); err == nil {
			certs = append(certs, cert)
		}
	}
	return certs
}

func describe(cert *x509.Certificate, path string, now time.Time) CertDetails {
	d := CertDetails{
		Path:                path,
		SerialNumber:        mtls.Serial(cert),
		SubjectAltNames:     []SubjectAlt{},
		DaysUntilExpiration: strconv.Itoa(max(0, int(math.Floor(cert.NotAfter.Sub(now).Hours()/24)))),
		ValidFrom:           cert.NotBefore.UTC(),
		ExpirationTime:      cert.NotAfter.UTC(),
	}
	for _, uri := range cert.URIs {
		d.SubjectAltNames = append(d.SubjectAltNames, SubjectAlt{URI: uri.String()})
	}
	for _, name := range cert.DNSNames {
		d.SubjectAltNames = append(d.SubjectAltNames, SubjectAlt{DNS: name})
	}
	return d
}

// WriteState answers as Envoy does: LIVE, or 503 and why not. Remarks, a line each, do not change which it is.
func WriteState(w http.ResponseWriter, problem string, remarks ...string) {
	w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
	if problem != "" {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, problem)
	} else {
		fmt.Fprintln(w, "LIVE")
	}
	for _, remark := range remarks {
		fmt.Fprintln(w, remark)
	}
}

// WriteJSON answers with a value for people and programs.
func WriteJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false) // it is no page: "<inline>" is to be read as such
	encoder.SetIndent("", "  ")
	_ = encoder.Encode(v) // an error means that the reader has gone
}
