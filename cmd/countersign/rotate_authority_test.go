package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/mtls"
	"countersign.dev/rotate"
)

// A rotation asks for the books only where there are any.
var _ rotate.Books = serverAuthority{}

// rootOf makes a self-signed CA certificate.
func rootOf(t *testing.T, name string) (text string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// commonNames are the common names of the certificates in a text, in their order.
func commonNames(t *testing.T, text []byte) (names []string) {
	t.Helper()
	certificates, err := mtls.ParseCertificates(text)
	if err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	for _, certificate := range certificates {
		names = append(names, certificate.Subject.CommonName)
	}
	return names
}

// TestTrustOfTheServer: a rotation is told of every root that the CA has, also of those that nobody is to trust yet or any
// more: what leads to one of them is no other mesh's.
func TestTrustOfTheServer(t *testing.T) {
	active, next, retiring, issuer := rootOf(t, "active"), rootOf(t, "next"), rootOf(t, "retiring"), rootOf(t, "issuer")
	ca := api.CAResponse{
		Root: active, Issuer: issuer, Bundle: active + next,
		Roots: []api.Hierarchy{{State: "active", Root: active}, {State: "next", Root: strings.TrimSpace(next)}, {State: "retiring", Root: retiring}},
	}
	ask := func(ca api.CAResponse, more map[string]any) (bundle, known []string, err error) {
		answers := map[string]any{api.PathCA: ca, api.PathCRL: "LISTS"}
		for path, answer := range more {
			answers[path] = answer
		}
		trust, err := serverAuthority{api.NewAdmin(fakeServer(t, answers))}.Trust(t.Context())
		if err != nil {
			return nil, nil, err
		}
		if trust.Issuer.Subject.CommonName != "issuer" || !strings.Contains(string(trust.CRL), "LISTS") {
			t.Errorf("issuer %s, lists %s", trust.Issuer.Subject, trust.CRL)
		}
		return commonNames(t, trust.Bundle), commonNames(t, trust.Known), nil
	}
	bundle, known, err := ask(ca, nil)
	if err != nil || !slices.Equal(bundle, []string{"active", "next"}) || !slices.Equal(slices.Compact(known), []string{"active", "next", "retiring"}) {
		t.Errorf("bundle %q, known %q, %v", bundle, known, err)
	}
	ca.Bundle, ca.Roots = "", nil // a server that has one root
	bundle, known, err = ask(ca, nil)
	if err != nil || !slices.Equal(bundle, []string{"active"}) || !slices.Equal(known, []string{"active"}) {
		t.Errorf("bundle %q, known %q, %v", bundle, known, err)
	}
	refusal := &api.Error{Code: api.CodeInternal, Message: "the disk is away"}
	for path, want := range map[string]string{api.PathCA: "the disk is away", api.PathCRL: "asking for the revocation lists: "} {
		if _, _, err := ask(ca, map[string]any{path: refusal}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	ca.Issuer = "nonsense"
	if _, _, err := ask(ca, nil); err == nil || !strings.Contains(err.Error(), "the issuing CA's certificate") {
		t.Error(err)
	}
}

// TestIssuedByTheServer: the books say what the CA has issued, to whomever and whatever became of it; that they cannot be
// read is not that it has issued nothing.
func TestIssuedByTheServer(t *testing.T) {
	authority := serverAuthority{api.NewAdmin(fakeServer(t, map[string]any{api.PathCertificates: []api.CertificateRecord{
		{Serial: "0a"}, {Serial: "0b", Instance: "one-1", Revoked: time.Now()},
	}}))}
	for serial, want := range map[string]bool{"0a": true, "0b": true, "0c": false, "a": false, "": false} {
		if issued, err := authority.Issued(t.Context(), serial); err != nil || issued != want {
			t.Errorf("%q: %t, %v, want %t", serial, issued, err, want)
		}
	}
	refused := serverAuthority{api.NewAdmin(fakeServer(t, map[string]any{api.PathCertificates: &api.Error{Code: api.CodeInternal, Message: "no"}}))}
	if issued, err := refused.Issued(t.Context(), "0a"); err == nil || issued {
		t.Errorf("%t, %v, want an error", issued, err)
	}
}
