package mtls

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net/url"

	"countersign.dev/id"
)

// NewNamedCSR makes a certificate request for a workload's key, in PEM (RFC 2986), that asks for the names the workload
// has: the subject that leaves of a mesh carry, its SPIFFE ID and its DNS names. It is for authorities that know nothing
// of the workload and take the names from the request, as AWS Private CA does; one that knows better refuses others.
//
// The subject is never empty: AWS Private CA refuses a request without one whose names are not marked as critical, and its
// audit report shows the subject and nothing else.
func NewNamedCSR(key crypto.Signer, identity id.ID, dnsNames []string) ([]byte, error) {
	template := &x509.CertificateRequest{Subject: Subject(identity), URIs: []*url.URL{identity.URL()}, DNSNames: dnsNames}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate request for %s: %w", identity, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// Subject is the subject of a workload's certificate. It is encoded as O, OU, CN, which RFC 2253 prints backwards:
// CN=NAME,OU=KIND,O=DOMAIN. Proxies that see no more of a caller than its subject tell callers apart by that.
func Subject(identity id.ID) pkix.Name {
	return pkix.Name{
		CommonName:         identity.Name(),
		OrganizationalUnit: []string{string(identity.Kind())},
		Organization:       []string{identity.TrustDomain()},
	}
}
