package answer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/mtls"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// hierarchy is a root, two CAs below it, and a leaf for checkout.
type hierarchy struct {
	certs []*x509.Certificate // from the root down
	keys  []*ecdsa.PrivateKey
	want  Wanted
}

func newHierarchy(t testing.TB) *hierarchy {
	t.Helper()
	identity, err := id.Parse("spiffe://payments.internal/service/checkout")
	if err != nil {
		t.Fatal(err)
	}
	h := &hierarchy{want: Wanted{Identity: identity, DNSNames: []string{"checkout"}, NotAfter: now.Add(24 * time.Hour), Now: now}}
	for i, name := range []string{"root", "between", "issuing"} {
		h.add(t, &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0),
			BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
		})
	}
	h.add(t, &x509.Certificate{
		SerialNumber: big.NewInt(9), Subject: mtls.Subject(identity), NotBefore: now.Add(-time.Hour), NotAfter: h.want.NotAfter, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs: []*url.URL{identity.URL()}, DNSNames: h.want.DNSNames,
	})
	h.want.Key = h.keys[3].Public()
	return h
}

// add signs with the key of the last one.
func (h *hierarchy) add(t testing.TB, template *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parent, signer := template, key
	if n := len(h.certs); n > 0 {
		parent, signer = h.certs[n-1], h.keys[n-1]
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	h.certs, h.keys = append(h.certs, cert), append(h.keys, key)
}

// TestChain puts together what a proxy needs, without the root.
func TestChain(t *testing.T) {
	h := newHierarchy(t)
	a, err := ParseAuthority(encode(h.certs[2]), encode(h.certs[1], h.certs[0]))
	if err != nil {
		t.Fatal(err)
	}
	if string(a.Bundle()) != string(encode(h.certs[0])) {
		t.Error("the bundle is not the root")
	}
	chain, err := a.Chain(encode(h.certs[3]), h.want)
	if err != nil || string(chain) != string(encode(h.certs[3], h.certs[2], h.certs[1])) {
		t.Errorf("%s, %v", chain, err)
	}
	root, err := ParseAuthority(encode(h.certs[0]), []byte(" \n"))
	if err != nil || root.Issuer != root.Root || len(root.Between) != 0 {
		t.Errorf("a root: %+v, %v", root, err)
	}
}

// TestRefused gives chains that lead nowhere, and answers that are not one certificate of this CA.
func TestRefused(t *testing.T) {
	h, other := newHierarchy(t), newHierarchy(t)
	for name, test := range map[string]struct {
		certificate, chain []byte
		says               string
	}{
		"nothing":        {nil, nil, "the CA's certificate"},
		"two":            {encode(h.certs[2], h.certs[1]), nil, "there are 2"},
		"no chain":       {encode(h.certs[2]), nil, "does not lead to a root"},
		"half a chain":   {encode(h.certs[2]), encode(h.certs[1]), "does not lead to a root"},
		"other chain":    {encode(h.certs[2]), encode(other.certs[1], other.certs[0]), "does not lead to a root"},
		"damaged chain":  {encode(h.certs[2]), []byte("hello"), "the chain of the CA's certificate"},
		"a leaf":         {encode(h.certs[3]), encode(h.certs[2], h.certs[1], h.certs[0]), "is not a CA"},
		"in other order": {encode(h.certs[2]), encode(h.certs[0], h.certs[1]), "does not lead to a root"},
	} {
		if a, err := ParseAuthority(test.certificate, test.chain); err == nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
	a, err := ParseAuthority(encode(h.certs[2]), encode(h.certs[1], h.certs[0]))
	if err != nil {
		t.Fatal(err)
	}
	other.want.Key = other.keys[3].Public()
	for name, test := range map[string]struct {
		text []byte
		want Wanted
		says string
	}{
		"nothing":      {nil, h.want, ""},
		"two":          {encode(h.certs[3], h.certs[2]), h.want, "there are 2"},
		"of another":   {encode(other.certs[3]), other.want, "not signed by the CA"},
		"another key":  {encode(h.certs[3]), other.want, "another key"},
		"its time out": {encode(h.certs[3]), func() Wanted { w := h.want; w.Now = w.NotAfter; return w }(), "it was valid to"},
	} {
		if chain, err := a.Chain(test.text, test.want); err == nil || chain != nil || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzAnswer reads any bytes as a CA and as its answer: what is accepted is the leaf that was asked for, alone with CAs.
func FuzzAnswer(f *testing.F) {
	h := newHierarchy(f)
	f.Add(encode(h.certs[2]), encode(h.certs[1], h.certs[0]), encode(h.certs[3]))
	f.Add(encode(h.certs[0]), []byte(nil), encode(h.certs[3]))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), []byte("x"), []byte(nil))
	f.Fuzz(func(t *testing.T, certificate, chain, leaf []byte) {
		a, err := ParseAuthority(certificate, chain)
		if err != nil {
			return
		}
		if a.Root.CheckSignatureFrom(a.Root) != nil || !a.Issuer.IsCA {
			t.Error("it does not end in a root")
		}
		text, err := a.Chain(leaf, h.want)
		if err != nil {
			return
		}
		certs, err := mtls.ParseCertificates(text)
		if err != nil || !certs[0].Equal(h.certs[3]) || certs[0].CheckSignatureFrom(a.Issuer) != nil {
			t.Errorf("%s was believed, %v", text, err)
		}
	})
}
