package observe

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net/url"
	"slices"
	"time"

	"countersign.dev/id"
)

// strangerCA imitates the mesh's CA in everything but its key. It lives in memory only.
type strangerCA struct {
	root  *x509.Certificate
	key   *ecdsa.PrivateKey
	probe *x509.Certificate
}

// newStrangerCA makes a root with the names of the real one.
func newStrangerCA(real *x509.Certificate, probe tls.Certificate) (*strangerCA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: real.SerialNumber, RawSubject: real.RawSubject, SubjectKeyId: real.SubjectKeyId, URIs: real.URIs,
		NotBefore: real.NotBefore, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &strangerCA{root: root, key: key, probe: probe.Leaf}, nil
}

// issue makes a certificate for the caller that the target's policy would let in first, so that
// nothing but the chain stands between the stranger and the application.
func (ca *strangerCA) issue(t *Target) (tls.Certificate, error) {
	caller := ca.imitate(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: ca.probe.Subject, URIs: []*url.URL{caller}, DNSNames: []string{t.Workload.Identity.ServerName()},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.root, &key.PublicKey, ca.key)
	if err != nil {
		return tls.Certificate{}, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der, ca.root.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// imitate is the SPIFFE ID of somebody whom the target's policy admits, or the probe's where there is
// none.
func (ca *strangerCA) imitate(t *Target) *url.URL {
	for _, rule := range t.Inbound.Rules {
		i := slices.IndexFunc(rule.From, func(from string) bool {
			_, err := id.Parse(from)
			return err == nil
		})
		if i >= 0 {
			caller, err := id.Parse(rule.From[i])
			if err == nil {
				return caller.URL()
			}
		}
	}
	return ca.probe.URIs[0]
}
