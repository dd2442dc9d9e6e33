package issue

import (
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	zcrypto "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

// TestLintFindsMistakes makes each mistake that lint is there for.
func TestLintFindsMistakes(t *testing.T) {
	a := newAuthority(t, mesh.ECDSAP256)
	cases := map[string]struct {
		change func(*x509.Certificate)
		want   string // part of the error
	}{
		"nothing":            {func(*x509.Certificate) {}, ""},
		"a long serial":      {func(c *x509.Certificate) { c.SerialNumber = new(big.Int).Lsh(big.NewInt(1), 158) }, "20 octets"},
		"an extension":       {func(c *x509.Certificate) { c.OCSPServer = []string{"http://a"} }, "extensions"},
		"another extension":  {func(c *x509.Certificate) { c.ExtKeyUsage = nil; c.OCSPServer = []string{"http://a"} }, "exactly once"},
		"SAN is critical":    {func(c *x509.Certificate) { c.ExtraExtensions = sanExtension(t, c, true) }, "critical=false"},
		"no life":            {func(c *x509.Certificate) { c.NotAfter = c.NotBefore }, "before it begins"},
		"not yet":            {func(c *x509.Certificate) { c.NotBefore = start.Add(time.Minute) }, "not valid yet"},
		"an early beginning": {func(c *x509.Certificate) { c.NotBefore = start.Add(-time.Hour) }, "begins more than"},
		"a long life":        {func(c *x509.Certificate) { c.NotAfter = start.Add(2 * time.Hour) }, "longer than was asked"},
		"an e-mail address":  {func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b.c"} }, "e-mail"},
		"no URI":             {func(c *x509.Certificate) { c.URIs = nil }, "URI names"},
		"two URIs":           {func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }, "URI names"},
		"another URI":        {func(c *x509.Certificate) { c.URIs = []*url.URL{member(t, id.Gateway, "x").URL()} }, "URI names"},
		"another DNS name":   {func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "b") }, "DNS names"},
		"an address":         {func(c *x509.Certificate) { c.IPAddresses = []net.IP{{127, 0, 0, 1}} }, "IP addresses"},
		"another subject":    {func(c *x509.Certificate) { c.Subject.CommonName = "b" }, "subject"},
		"a CA":               {func(c *x509.Certificate) { c.IsCA = true }, "a CA"},
		"another use":        {func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyEncipherment }, "key usage"},
		"one purpose":        {func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, "extended key usage"},
		"another authority":  {func(c *x509.Certificate) { c.AuthorityKeyId = []byte{1, 2, 3, 4} }, "authority key"},
		"the CA's key id":    {func(c *x509.Certificate) { c.SubjectKeyId = c.AuthorityKeyId }, "subject key"},
		"SHA-512":            {func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA512 }, "signature algorithm"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			req := request(t)
			names, err := a.profile.check(req)
			if err != nil {
				t.Fatal(err)
			}
			template, err := a.template(req, names, start)
			if err != nil {
				t.Fatal(err)
			}
			c.change(template)
			parent := *a.rehearsalParent
			parent.SubjectKeyId = template.AuthorityKeyId // CreateCertificate prefers the parent's
			der, err := x509.CreateCertificate(rand.Reader, template, &parent, req.PublicKey, a.rehearsal)
			if err != nil {
				t.Fatal(err)
			}
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			err = a.lint(cert, req, names, start)
			if c.want == "" && err != nil {
				t.Errorf("a good certificate: %v", err)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want one about %q", err, c.want)
			}
		})
	}
}

// TestLintFindsWrongKeys are the mistakes that no template can make.
func TestLintFindsWrongKeys(t *testing.T) {
	a := newAuthority(t, mesh.ECDSAP256)
	req := request(t)
	leaf, _ := a.mustIssue(t, req)
	names := leaf.DNSNames
	other := req
	other.PublicKey = testKey(t, mesh.Ed25519, "leaf").Public()
	if err := a.lint(leaf, other, names, start); err == nil || !strings.Contains(err.Error(), "its key") {
		t.Errorf("another key: %v", err)
	}
	short := *a.Issuer.cert
	short.NotAfter = start.Add(time.Minute)
	outlived := &Issuer{cert: &short, profile: a.profile}
	if err := outlived.lint(leaf, req, names, start); err == nil || !strings.Contains(err.Error(), "outlives") {
		t.Errorf("an issuer that ends earlier: %v", err)
	}
	renamed := *a.Issuer.cert
	renamed.RawSubject = a.root.RawSubject
	if err := (&Issuer{cert: &renamed}).lint(leaf, req, names, start); err == nil || !strings.Contains(err.Error(), "issuer's name") {
		t.Errorf("another issuer's name: %v", err)
	}
}

// sanExtension is the template's subject alternative name, spelled out.
func sanExtension(t *testing.T, c *x509.Certificate, critical bool) []pkix.Extension {
	t.Helper()
	der, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(c.URIs[0].String())}})
	if err != nil {
		t.Fatal(err)
	}
	return []pkix.Extension{{Id: oidSubjectAltName, Critical: critical, Value: der}}
}

// everyKey are the key types of leaves and CAs.
var everyKey = []mesh.KeyType{mesh.ECDSAP256, mesh.ECDSAP384, mesh.RSA2048, mesh.RSA3072, mesh.RSA4096, mesh.Ed25519}

// TestZlint gives every kind of certificate, over every key type, to zlint's lints of the RFCs. Not
// one finding is accepted, not even a notice.
func TestZlint(t *testing.T) {
	if testing.Short() {
		t.Skip("RSA keys of every size take some seconds to make")
	}
	registry := rfcLints(t)
	for _, authorityKey := range everyKey {
		a := newAuthority(t, authorityKey)
		t.Run("CA "+string(authorityKey), func(t *testing.T) {
			expectClean(t, registry, a.root)
			expectClean(t, registry, a.Issuer.cert)
		})
		for _, leafKey := range everyKey {
			t.Run(string(authorityKey)+" signs "+string(leafKey), func(t *testing.T) {
				for _, req := range []Request{
					{ID: member(t, id.Service, "colorteller"), DNSNames: []string{"colors.example.com"}},
					{ID: member(t, id.Gateway, "colorgateway")},
					{ID: member(t, id.Server, "countersign"), IPAddresses: []net.IP{net.ParseIP("127.0.0.1"), net.ParseIP("2001:db8::1")}},
					{ID: member(t, id.Probe, "verify")},
					{ID: member(t, id.Service, strings.Repeat("n", 63))},
				} {
					req.PublicKey = testKey(t, leafKey, "leaf").Public()
					req.TTL = 5 * time.Minute
					leaf, _ := a.mustIssue(t, req)
					expectClean(t, registry, leaf)
				}
			})
		}
	}
}

func TestZlintWithoutTrustDomain(t *testing.T) {
	key := testKey(t, mesh.ECDSAP256, "root")
	cfg := AuthorityConfig{Now: start, Life: time.Hour}
	root, err := NewRoot(key, cfg)
	if err != nil {
		t.Fatal(err)
	}
	issuing, err := NewIssuing(testKey(t, mesh.ECDSAP256, "issuer").Public(), root, key, cfg)
	if err != nil {
		t.Fatal(err)
	}
	registry := rfcLints(t)
	expectClean(t, registry, root)
	expectClean(t, registry, issuing)
}

// TestZlintFinds shows that the lints above look at all.
func TestZlintFinds(t *testing.T) {
	key := testKey(t, mesh.ECDSAP256, "root")
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		NotBefore:             start,
		NotAfter:              start.Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true, // without key usage and subject
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if len(findings(t, rfcLints(t), der)) == 0 {
		t.Error("zlint finds nothing about a CA without subject and key usage")
	}
}

func rfcLints(t *testing.T) lint.Registry {
	t.Helper()
	registry, err := lint.GlobalRegistry().Filter(lint.FilterOptions{
		IncludeSources: lint.SourceList{lint.RFC3279, lint.RFC5280, lint.RFC5480, lint.RFC5891, lint.RFC8813},
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(registry.Names()); n < 100 {
		t.Fatalf("only %d lints", n)
	}
	return registry
}

func expectClean(t *testing.T, registry lint.Registry, cert *x509.Certificate) {
	t.Helper()
	for _, finding := range findings(t, registry, cert.Raw) {
		t.Errorf("%s: %s", cert.Subject, finding)
	}
}

func findings(t *testing.T, registry lint.Registry, der []byte) []string {
	t.Helper()
	cert, err := zcrypto.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for name, result := range zlint.LintCertificateEx(cert, registry).Results {
		if result.Status != lint.NA && result.Status != lint.NE && result.Status != lint.Pass {
			found = append(found, name+": "+result.Status.String()+" "+result.Details)
		}
	}
	return found
}
