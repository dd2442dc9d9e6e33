package issue

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"

	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// csrPEM makes a certificate request of a template.
func csrPEM(t testing.TB, template *x509.CertificateRequest, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func TestParseCSR(t *testing.T) {
	for _, kind := range everyKey {
		key := testKey(t, kind, "leaf")
		text, err := mtls.NewCSR(key)
		if err != nil {
			t.Fatal(err)
		}
		csr, err := ParseCSR(text)
		if err != nil || !samePublicKey(csr.PublicKey, key.Public()) {
			t.Errorf("%s: %v", kind, err)
		}
	}
	good := csrPEM(t, &x509.CertificateRequest{}, testKey(t, mesh.ECDSAP256, "leaf"))
	for name, text := range map[string][]byte{
		"text before":   append([]byte("Certificate Request:\n  Data: ...\n"), good...),
		"spaces after":  append(bytes.Clone(good), "\n\n  \n"...),
		"the old label": bytes.ReplaceAll(good, []byte("CERTIFICATE REQUEST"), []byte("NEW CERTIFICATE REQUEST")),
	} {
		if _, err := ParseCSR(text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseCSRRefuses(t *testing.T) {
	good := csrPEM(t, &x509.CertificateRequest{}, testKey(t, mesh.ECDSAP256, "leaf"))
	block, _ := pem.Decode(good)
	broken := func(change func(der []byte) []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: change(bytes.Clone(block.Bytes))})
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsa1024, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		text []byte
		want error
	}{
		"nothing":             {nil, ErrBadCSR},
		"no PEM":              {[]byte("hello"), ErrBadCSR},
		"DER":                 {block.Bytes, ErrBadCSR},
		"another label":       {bytes.ReplaceAll(good, []byte("CERTIFICATE REQUEST"), []byte("CERTIFICATE")), ErrBadCSR},
		"a key":               {bytes.ReplaceAll(good, []byte("CERTIFICATE REQUEST"), []byte("PRIVATE KEY")), ErrBadCSR},
		"two":                 {append(bytes.Clone(good), good...), ErrBadCSR},
		"too long":            {append(bytes.Clone(good), bytes.Repeat([]byte("\n"), MaxCSR)...), ErrBadCSR},
		"truncated PEM":       {good[:len(good)-30], ErrBadCSR},
		"truncated DER":       {broken(func(der []byte) []byte { return der[:len(der)-1] }), ErrBadCSR},
		"bytes after":         {broken(func(der []byte) []byte { return append(der, 0) }), ErrBadCSR},
		"another's signature": {broken(func(der []byte) []byte { der[len(der)-1] ^= 1; return der }), ErrBadCSR},
		"SHA-1":               {csrPEM(t, &x509.CertificateRequest{SignatureAlgorithm: x509.ECDSAWithSHA1}, testKey(t, mesh.ECDSAP256, "leaf")), ErrBadCSR},
		"P-224":               {csrPEM(t, &x509.CertificateRequest{}, p224), ErrWeakKey},
		"P-521":               {csrPEM(t, &x509.CertificateRequest{}, p521), ErrWeakKey},
		"RSA 1024":            {csrPEM(t, &x509.CertificateRequest{}, rsa1024), ErrWeakKey},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if csr, err := ParseCSR(c.text); !errors.Is(err, c.want) || csr != nil {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}

func TestCheckPublicKey(t *testing.T) {
	modulus := func(bits uint) *big.Int {
		n := new(big.Int).Lsh(big.NewInt(1), bits)
		return n.Sub(n, big.NewInt(1))
	}
	cases := map[string]struct {
		key  crypto.PublicKey
		want string // part of the error; empty: it is good
	}{
		"RSA 2048":        {&rsa.PublicKey{N: modulus(2048), E: 65537}, ""},
		"RSA 4096":        {&rsa.PublicKey{N: modulus(4096), E: 65537}, ""},
		"RSA 512":         {&rsa.PublicKey{N: modulus(512), E: 65537}, "RSA of 512 bits"},
		"RSA 2047":        {&rsa.PublicKey{N: modulus(2047), E: 65537}, "RSA of 2047 bits"},
		"RSA 2049":        {&rsa.PublicKey{N: modulus(2049), E: 65537}, "malformed modulus"},
		"RSA 8192":        {&rsa.PublicKey{N: modulus(8192), E: 65537}, "RSA of 8192 bits"},
		"an even modulus": {&rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2047), E: 65537}, "malformed modulus"},
		"exponent 3":      {&rsa.PublicKey{N: modulus(2048), E: 3}, "exponent 3"},
		"exponent 1":      {&rsa.PublicKey{N: modulus(2048), E: 1}, "exponent 1"},
		"even exponent":   {&rsa.PublicKey{N: modulus(2048), E: 65538}, "exponent 65538"},
		"short Ed25519":   {ed25519.PublicKey{1, 2}, "Ed25519 of 2 bytes"},
		"nothing":         {nil, "<nil>"},
	}
	for name, c := range cases {
		err := checkPublicKey(c.key)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != "" && (!errors.Is(err, ErrWeakKey) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want one about %q", name, err, c.want)
		}
	}
}

func TestCheckCSRNames(t *testing.T) {
	who := member(t, id.Service, "colorteller")
	other := member(t, id.Gateway, "colorteller")
	// An otherName, which crypto/x509 does not parse.
	otherName, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: []byte{6, 1, 42}}})
	if err != nil {
		t.Fatal(err)
	}
	san := pkix.Extension{Id: oidSubjectAltName, Value: otherName}
	type csr = x509.CertificateRequest
	cases := map[string]struct {
		csr csr
		ok  bool
	}{
		"no names":             {csr{}, true},
		"its URI":              {csr{URIs: []*url.URL{who.URL()}}, true},
		"its DNS names":        {csr{DNSNames: []string{"colorteller", "colorteller.colorapp.internal", "more.example.com"}}, true},
		"its subject":          {csr{Subject: pkix.Name{CommonName: "colorteller", OrganizationalUnit: []string{"service"}, Organization: []string{trustDomain}}}, true},
		"another URI":          {csr{URIs: []*url.URL{other.URL()}}, false},
		"one of two URIs":      {csr{URIs: []*url.URL{who.URL(), other.URL()}}, false},
		"another DNS name":     {csr{DNSNames: []string{"colorteller", "colorgateway"}}, false},
		"a wildcard":           {csr{DNSNames: []string{"*.colorapp.internal"}}, false},
		"an upper-case name":   {csr{DNSNames: []string{"Colorteller"}}, false},
		"an e-mail address":    {csr{EmailAddresses: []string{"a@example.com"}}, false},
		"an IP address":        {csr{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}, false},
		"an otherName":         {csr{ExtraExtensions: []pkix.Extension{san}}, false},
		"another CN":           {csr{Subject: pkix.Name{CommonName: "colorgateway"}}, false},
		"another OU":           {csr{Subject: pkix.Name{OrganizationalUnit: []string{"gateway"}}}, false},
		"one of two OUs":       {csr{Subject: pkix.Name{OrganizationalUnit: []string{"service", "gateway"}}}, false},
		"another O":            {csr{Subject: pkix.Name{Organization: []string{"Acme"}}}, false},
		"a country":            {csr{Subject: pkix.Name{Country: []string{"DE"}}}, false},
		"a name of no meaning": {csr{DNSNames: []string{"more.example.com"}, Subject: pkix.Name{SerialNumber: "1"}}, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			parsed, err := ParseCSR(csrPEM(t, &c.csr, testKey(t, mesh.ECDSAP256, "leaf")))
			if err != nil {
				t.Fatal(err)
			}
			err = CheckCSRNames(parsed, who, []string{"more.example.com"})
			if c.ok && err != nil || !c.ok && !errors.Is(err, ErrNameMismatch) {
				t.Errorf("%v", err)
			}
		})
	}
}

// FuzzParseCSR gives bytes from outside to everything that looks at a certificate request.
func FuzzParseCSR(f *testing.F) {
	who, err := id.New(trustDomain, id.Service, "colorteller")
	if err != nil {
		f.Fatal(err)
	}
	for _, kind := range []mesh.KeyType{mesh.ECDSAP256, mesh.Ed25519, mesh.RSA2048} {
		f.Add(csrPEM(f, &x509.CertificateRequest{
			DNSNames: []string{"colorteller"}, URIs: []*url.URL{who.URL()}, Subject: pkix.Name{CommonName: "colorteller"},
		}, testKey(f, kind, "leaf")))
	}
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n"))
	f.Add([]byte(""))
	a := newAuthority(f, mesh.ECDSAP256)
	f.Fuzz(func(t *testing.T, text []byte) {
		csr, err := ParseCSR(text)
		if err != nil {
			if !errors.Is(err, ErrBadCSR) && !errors.Is(err, ErrWeakKey) {
				t.Errorf("an error without a sentinel: %v", err)
			}
			return
		}
		if err := CheckCSRNames(csr, who, nil); err != nil && !errors.Is(err, ErrNameMismatch) {
			t.Errorf("an error without a sentinel: %v", err)
		}
		req := request(t)
		req.PublicKey = csr.PublicKey
		if _, err := a.Prepare(req); err != nil {
			t.Errorf("a key that was accepted cannot be certified: %v", err)
		}
	})
}
