package agent

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/url"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/mtls"
)

const testDomain = "test.internal"

func mustID(t testing.TB, kind id.Kind, name string) id.ID {
	t.Helper()
	i, err := id.New(testDomain, kind, name)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// authority is a root with an issuer below it.
type authority struct {
	root, issuer *x509.Certificate
	key          *ecdsa.PrivateKey // the issuer's
	rootKey      *ecdsa.PrivateKey
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	make := func(name string, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: randomSerial(), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		}
		if parent == nil {
			parent, parentKey = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert, key
	}
	root, rootKey := make(name+" root", nil, nil)
	issuer, key := make(name+" issuer", root, rootKey)
	return &authority{root, issuer, key, rootKey}
}

func randomSerial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		panic(err)
	}
	return n.Add(n, big.NewInt(1))
}

func (a *authority) pin() string { return mtls.Pin(a.root) }

// sign issues a leaf at the time now.
func (a *authority) sign(t testing.TB, who id.ID, names []string, public crypto.PublicKey, now time.Time, ttl time.Duration) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: randomSerial(), Subject: pkix.Name{CommonName: who.Name()},
		NotBefore: now.Add(-issue.ClockAllowance), NotAfter: now.Add(ttl),
		URIs: []*url.URL{who.URL()}, DNSNames: names,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.issuer, public, a.key)
	if err != nil {
		t.Error(err)
		return nil
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Error(err)
	}
	return leaf
}

func pemOf(certs ...*x509.Certificate) string {
	var out bytes.Buffer
	for _, cert := range certs {
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	}
	return out.String()
}
