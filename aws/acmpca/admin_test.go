package acmpca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"countersign.dev/aws/internal/awstest/pcafake"
	"countersign.dev/mesh"
)

// admin makes an Admin that loses no time.
func (w *world) admin() *Admin {
	w.t.Helper()
	a, err := OpenAdmin(w.t.Context(), AdminConfig{Region: "eu-central-1", Endpoint: w.server.URL, Now: func() time.Time { return w.now }})
	if err != nil {
		w.t.Fatal(err)
	}
	a.client, a.poll = fast(a.client), time.Millisecond
	return a
}

const year = 365 * 24 * time.Hour

// TestCreate makes a root in short-lived mode and a CA below another one, and finds both again.
func TestCreate(t *testing.T) {
	w := newWorld(t, pcafake.Options{PendingPolls: 2}, pcafake.CA{})
	admin := w.admin()
	for name, n := range map[string]NewCA{
		"root":      {Type: TypeRoot, Mode: mesh.ModeShortLived, KeyAlgorithm: "EC_secp384r1", Subject: Subject{CommonName: "root", Organization: "example", Country: "DE"}},
		"below one": {Type: TypeSubordinate, Mode: mesh.ModeGeneralPurpose, KeyAlgorithm: "EC_prime256v1", Subject: Subject{CommonName: "issuing"}, Parent: w.arn},
	} {
		t.Run(name, func(t *testing.T) {
			if found, err := admin.Find(t.Context(), n); found != nil || err != nil {
				t.Fatalf("found %+v, %v", found, err)
			}
			if n.Parent != "" {
				if err := admin.CanSign(t.Context(), n.Parent, 2*year); err != nil {
					t.Fatal(err)
				}
			}
			made, err := admin.Create(t.Context(), n)
			if err != nil {
				t.Fatal(err)
			}
			if !made.Pending() || made.Type != n.Type || made.Mode != n.Mode || made.Key != n.KeyAlgorithm || made.Subject != n.Subject.String() {
				t.Errorf("made %+v", made)
			}
			// Hours later, when AWS does not know the token any more, it is found by its tag.
			w.now = w.now.Add(5 * time.Hour)
			found, err := admin.Find(t.Context(), n)
			if err != nil || found == nil || found.ARN != made.ARN {
				t.Fatalf("found %+v, %v", found, err)
			}
			for range 2 { // cut off after the certificate was issued, it is repeated
				if err := admin.Sign(t.Context(), made.ARN, n.Parent, 2*year); err != nil {
					t.Fatal(err)
				}
			}
			state, err := admin.Describe(t.Context(), made.ARN)
			if err != nil || !state.Active() || !state.NotAfter.Equal(w.now.Add(2*year)) {
				t.Errorf("%+v, %v", state, err)
			}
			w.arn = made.ARN
			if _, err := w.open().Issue(t.Context(), w.request("20261120T120000Z-0123456789abcdef")); err != nil {
				t.Error(err)
			}
			n.Token = "another"
			if found, err := admin.Find(t.Context(), n); found != nil || err != nil {
				t.Errorf("of another token: %+v, %v", found, err)
			}
		})
	}
}

// TestCanSign refuses parents before anything is made.
func TestCanSign(t *testing.T) {
	w := newWorld(t, pcafake.Options{}, pcafake.CA{Life: year})
	admin := w.admin()
	says(t, admin.CanSign(t.Context(), w.arn, 2*year), ErrConfig, "shorter --validity")
	says(t, admin.CanSign(t.Context(), w.add(pcafake.CA{ShortLived: true}), year), ErrConfig, "short-lived mode")
	says(t, admin.CanSign(t.Context(), "arn:aws:acm-pca:x", year), ErrConfig, "not the ARN")
	says(t, admin.CanSign(t.Context(), "arn:aws:acm-pca:eu-west-1:123456789012:certificate-authority/01234567-89ab-cdef-0123-456789abcdef", year), ErrConfig, "AWS RAM")
	if err := w.fake.SetStatus(w.arn, "DISABLED"); err != nil {
		t.Fatal(err)
	}
	says(t, admin.CanSign(t.Context(), w.arn, time.Hour), ErrState, "DISABLED")
	// One of another region is asked there.
	if err := admin.CanSign(t.Context(), w.add(pcafake.CA{Region: "eu-west-1", Account: "999999999999"}), year); err != nil {
		t.Error(err)
	}
}

// external is a CA outside of AWS.
type external struct {
	key  *ecdsa.PrivateKey
	root *x509.Certificate
}

func newExternal(t *testing.T, now time.Time) *external {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	e := &external{key: key}
	e.root = e.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "external"}, NotAfter: now.Add(5 * year)}, now, key.Public())
	return e
}

func (e *external) sign(t *testing.T, template *x509.Certificate, now time.Time, public any) *x509.Certificate {
	t.Helper()
	template.SerialNumber = big.NewInt(now.UnixNano())
	template.BasicConstraintsValid, template.IsCA = true, true
	if template.KeyUsage == 0 {
		template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	if template.NotBefore.IsZero() {
		template.NotBefore = now.Add(-time.Hour)
	}
	if template.NotAfter.IsZero() {
		template.NotAfter = now.Add(year)
	}
	parent := e.root
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, e.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func toPEM(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

// TestExternalParent has a CA outside of AWS sign the request, and refuses everything else that could be imported.
func TestExternalParent(t *testing.T) {
	w := newWorld(t, pcafake.Options{}, pcafake.CA{})
	admin := w.admin()
	made, err := admin.Create(t.Context(), NewCA{Type: TypeSubordinate, KeyAlgorithm: "EC_prime256v1", Subject: Subject{CommonName: "issuing", Organization: "example"}})
	if err != nil {
		t.Fatal(err)
	}
	text, err := admin.CSR(t.Context(), made.ARN)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	e := newExternal(t, w.now)
	good := e.sign(t, &x509.Certificate{RawSubject: csr.RawSubject}, w.now, csr.PublicKey)
	for name, test := range map[string]struct {
		certificate, chain []byte
		says               string
	}{
		"nothing":         {nil, nil, "the CA's certificate"},
		"no chain":        {toPEM(good), nil, "does not lead to a root"},
		"another chain":   {toPEM(good), toPEM(newExternal(t, w.now).root), "does not lead to a root"},
		"the root's":      {toPEM(e.root), nil, "another key"},
		"two":             {append(toPEM(good), toPEM(good)...), toPEM(e.root), "there are 2"},
		"another subject": {toPEM(e.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: "other"}}, w.now, csr.PublicKey)), toPEM(e.root), "has the subject"},
		"past":            {toPEM(e.sign(t, &x509.Certificate{RawSubject: csr.RawSubject, NotAfter: w.now.Add(-time.Minute)}, w.now, csr.PublicKey)), toPEM(e.root), "which is not now"},
		"signs nothing":   {toPEM(e.sign(t, &x509.Certificate{RawSubject: csr.RawSubject, KeyUsage: x509.KeyUsageCRLSign}, w.now, csr.PublicKey)), toPEM(e.root), "not for signing certificates"},
	} {
		err := admin.Import(t.Context(), made.ARN, test.certificate, test.chain)
		t.Run(name, func(t *testing.T) { says(t, err, ErrConfig, test.says, "nothing was imported") })
	}
	if n := w.fake.Calls("ImportCertificateAuthorityCertificate"); n != 0 {
		t.Errorf("imported %d times", n)
	}
	if err := admin.Import(t.Context(), made.ARN, toPEM(good), toPEM(e.root)); err != nil {
		t.Fatal(err)
	}
	w.arn = made.ARN
	if _, err := w.open().Issue(t.Context(), w.request("20261120T120000Z-0123456789abcdef")); err != nil {
		t.Error(err)
	}
}
