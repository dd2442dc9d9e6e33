package mtls

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

// TestVerifyNamed verifies certificates without SPIFFE ID: what counts is one DNS name, everywhere.
func TestVerifyNamed(t *testing.T) {
	const name = "checkout.payments.internal"
	a, stranger := newAuthority(t, "a"), newAuthority(t, "b")
	who := member(t, id.Service, "checkout")
	key := testKey(t, mesh.ECDSAP256, "leaf")
	named := func(change func(*x509.Certificate)) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.URIs, c.Subject, c.DNSNames = nil, pkix.Name{CommonName: name}, []string{name}
			c.RawSubject = nil
			if change != nil {
				change(c)
			}
		}
	}
	for title, c := range map[string]struct {
		change func(*x509.Certificate)
		by     *authority
		says   string
	}{
		"as it should be": {by: a},
		"with more names": {by: a, change: func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "pay.example.com") }},
		"another's":       {by: stranger, says: "unknown authority"},
		"another subject": {by: a, change: func(c *x509.Certificate) { c.Subject.CommonName = "ledger.payments.internal" }, says: "CN=" + name + " is expected"},
		"a longer subject": {by: a, change: func(c *x509.Certificate) {
			c.Subject = pkix.Name{CommonName: name, Organization: []string{trustDomain}}
		}, says: "CN=" + name + " is expected"},
		"no alternative name": {by: a, change: func(c *x509.Certificate) { c.DNSNames = nil }, says: "it is not for the DNS name"},
		"a SPIFFE ID":         {by: a, change: func(c *x509.Certificate) { c.URIs = []*url.URL{who.URL()} }, says: "it has the URI"},
		"a CA":                {by: a, change: func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }, says: "a CA"},
		"no signatures":       {by: a, change: func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, says: "digitalSignature"},
	} {
		t.Run(title, func(t *testing.T) {
			leaf := c.by.forge(t, who, key, named(c.change))
			chain := []*x509.Certificate{leaf, c.by.issuing}
			err := bundle(t, a).VerifyNamed(name, chain, x509.ExtKeyUsageServerAuth, start)
			again := (&Identity{Bundle: bundle(t, a)}).VerifyNamed(name, chain, x509.ExtKeyUsageServerAuth, start)
			if (err == nil) != (c.says == "") || (again == nil) != (err == nil) {
				t.Fatalf("%v, %v, want %q", err, again, c.says)
			}
			if err != nil && (!errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("%v, want ErrUntrusted with %q", err, c.says)
			}
		})
	}
	if err := bundle(t, a).VerifyNamed(name, nil, x509.ExtKeyUsageServerAuth, start); !errors.Is(err, ErrNoCertificate) {
		t.Errorf("no chain: %v", err)
	}
	plain := a.certify(t, who, key, time.Hour)
	if err := Named(plain, ""); err == nil {
		t.Error("an empty name is a name")
	}
}

// TestNamedIsNoMember presents a certificate without SPIFFE ID where one is needed.
func TestNamedIsNoMember(t *testing.T) {
	a := newAuthority(t, "a")
	leaf := a.forge(t, member(t, id.Service, "checkout"), testKey(t, mesh.ECDSAP256, "leaf"), func(c *x509.Certificate) { c.URIs = nil })
	_, err := bundle(t, a).Verify([]*x509.Certificate{leaf, a.issuing}, x509.ExtKeyUsageServerAuth, start)
	if !errors.Is(err, ErrUntrusted) || !strings.Contains(err.Error(), "AWS Certificate Manager, which has DNS names only, can call ports of NGINX and HAProxy") {
		t.Errorf("%v, want ErrUntrusted and what to do", err)
	}
}
