package proxy

import (
	"crypto/x509"
	"math"
	"net/http"
	"strconv"
	"time"

	"countersign.dev/mtls"
)

// certsJSON is Envoy's answer to GET /certs (admin/v3/certs.proto, as protobuf's JSON with the names of
// the fields).
type certsJSON struct {
	Certificates []certificateJSON `json:"certificates"`
}

// certificateJSON is one pair of what is trusted and what is presented.
type certificateJSON struct {
	CACert    []certDetails `json:"ca_cert"`
	CertChain []certDetails `json:"cert_chain"`
}

type certDetails struct {
	Path                string       `json:"path"`
	SerialNumber        string       `json:"serial_number"` // hex, lower case
	SubjectAltNames     []subjectAlt `json:"subject_alt_names"`
	DaysUntilExpiration string       `json:"days_until_expiration"` // protobuf writes 64-bit numbers as texts
	ValidFrom           time.Time    `json:"valid_from"`
	ExpirationTime      time.Time    `json:"expiration_time"`
}

type subjectAlt struct {
	URI string `json:"uri,omitempty"`
	DNS string `json:"dns,omitempty"`
}

// inMemory stands where Envoy names a file.
const inMemory = "<inline>"

// serveCerts tells which certificates are presented and trusted: the workload's own, and those in a
// gateway's files.
func (p *Proxy) serveCerts(w http.ResponseWriter, _ *http.Request) {
	answer := certsJSON{Certificates: []certificateJSON{}}
	now := p.cfg.Now()
	if identity := p.identity(); identity != nil {
		pair := certificateJSON{CACert: []certDetails{}, CertChain: []certDetails{}}
		for _, root := range identity.Bundle.Roots() {
			pair.CACert = append(pair.CACert, describe(root, inMemory, now))
		}
		for _, cert := range parse(identity.Certificate.Certificate) {
			pair.CertChain = append(pair.CertChain, describe(cert, inMemory, now))
		}
		answer.Certificates = append(answer.Certificates, pair)
	}
	for _, in := range p.state.Load().inbound {
		if files, ok := in.tls.(*fileServer); ok {
			_, served := files.current()
			pair := certificateJSON{CACert: []certDetails{}, CertChain: []certDetails{}}
			for _, cert := range parse(served.Certificate) {
				pair.CertChain = append(pair.CertChain, describe(cert, files.files.Cert, now))
			}
			answer.Certificates = append(answer.Certificates, pair)
		}
	}
	writeJSON(w, answer)
}

// parse leaves out what is no certificate: there is none, for handshakes are made with them.
func parse(chain [][]byte) []*x509.Certificate {
	var certs []*x509.Certificate
	for _, der := range chain {
		if cert, err := x509.ParseCertificate(der); err == nil {
			certs = append(certs, cert)
		}
	}
	return certs
}

func describe(cert *x509.Certificate, path string, now time.Time) certDetails {
	d := certDetails{
		Path:                path,
		SerialNumber:        mtls.Serial(cert),
		SubjectAltNames:     []subjectAlt{},
		DaysUntilExpiration: strconv.Itoa(max(0, int(math.Floor(cert.NotAfter.Sub(now).Hours()/24)))),
		ValidFrom:           cert.NotBefore.UTC(),
		ExpirationTime:      cert.NotAfter.UTC(),
	}
	for _, uri := range cert.URIs {
		d.SubjectAltNames = append(d.SubjectAltNames, subjectAlt{URI: uri.String()})
	}
	for _, name := range cert.DNSNames {
		d.SubjectAltNames = append(d.SubjectAltNames, subjectAlt{DNS: name})
	}
	return d
}
