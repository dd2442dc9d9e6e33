package credential

import (
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"
)

// TestDNSIdentity checks leaves of somebody who is known by a DNS name and has no SPIFFE ID.
func TestDNSIdentity(t *testing.T) {
	const name = "orders.payments.internal"
	w := newWorld(t)
	for title, c := range map[string]struct {
		change func(*x509.Certificate)
		says   string
	}{
		"as it should be":     {func(*x509.Certificate) {}, ""},
		"another subject":     {func(c *x509.Certificate) { c.Subject.CommonName = "orders" }, `its subject is "CN=orders", and CN=` + name + " is expected"},
		"a longer subject":    {func(c *x509.Certificate) { c.Subject.OrganizationalUnit = []string{"service"} }, "is expected"},
		"no alternative name": {func(c *x509.Certificate) { c.DNSNames = []string{"pay.example.com"} }, "it is not for the DNS name"},
		"a SPIFFE ID":         {asLeaf, "it has the URI"},
	} {
		t.Run(title, func(t *testing.T) {
			in := w.input(t)
			in.Certificate.Data = pemOf(w.issue(t, func(leaf *x509.Certificate) {
				leaf.URIs, leaf.DNSNames, leaf.Subject.CommonName = nil, []string{name}, name
				c.change(leaf)
			}), w.between)
			parsed, err := Parse(in)
			if err != nil {
				t.Fatal(err)
			}
			err = parsed.Check(Expect{Now: time.Now(), DNSIdentity: name})
			var fault *Fault
			if (err == nil) != (c.says == "") || err != nil && (!errors.As(err, &fault) || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("%v, want %q", err, c.says)
			}
		})
	}
	parsed, err := Parse(w.input(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := parsed.Check(Expect{Now: time.Now(), DNSIdentity: "orders.shop.internal"}); err == nil {
		t.Error("a leaf with a SPIFFE ID is one with a DNS name")
	}
}
