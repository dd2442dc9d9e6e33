// Package issuetest makes what tests need of an authority: a root and an issuing CA in memory, the leaves of members,
// and revocation lists.
package issuetest

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// Authority is a CA in memory. It may be used from several goroutines at once.
type Authority struct {
	Root, Issuing *x509.Certificate
	// Key is the issuing CA's.
	Key, RootKey crypto.Signer
}

// New makes a CA that is valid for ten years.
func New(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{Key: Key(t), RootKey: Key(t)}
	cfg := issue.AuthorityConfig{Now: time.Now(), Life: 24 * time.Hour * 3650}
	var err error
	if a.Root, err = issue.NewRoot(a.RootKey, cfg); err != nil {
		t.Fatal(err)
	}
	if a.Issuing, err = issue.NewIssuing(a.Key.Public(), a.Root, a.RootKey, cfg); err != nil {
		t.Fatal(err)
	}
	return a
}

// Key makes a key of the type that members have by default.
func Key(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := mtls.GenerateKey(mesh.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Leaf issues a certificate for a member's key, valid for an hour.
func (a *Authority) Leaf(t testing.TB, who id.ID, key crypto.Signer) *x509.Certificate {
	t.Helper()
	profile, err := issue.NewProfile(issue.ProfileConfig{TrustDomain: who.TrustDomain(), MaxTTL: 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := issue.NewIssuer(a.Issuing, a.Key, profile, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	prepared, err := issuer.Prepare(issue.Request{ID: who, PublicKey: key.Public(), TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := issuer.Issue(prepared)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// Pair issues a certificate for a new key of the default type, and gives both in PEM, the chain without the root.
func (a *Authority) Pair(t testing.TB, who id.ID) (chain, key []byte) {
	t.Helper()
	own := Key(t)
	leaf := a.Leaf(t, who, own)
	key, err := mtls.MarshalKey(own)
	if err != nil {
		t.Fatal(err)
	}
	return PEM(leaf, a.Issuing), key
}

// CRLs are the lists of both CAs in PEM, made an hour ago and valid for a while from now: the issuing CA's, with the
// leaves that are revoked, and the root's.
func (a *Authority) CRLs(t testing.TB, number int64, valid time.Duration, revoked ...*x509.Certificate) []byte {
	t.Helper()
	var entries []x509.RevocationListEntry
	for _, leaf := range revoked {
		entries = append(entries, x509.RevocationListEntry{SerialNumber: leaf.SerialNumber, RevocationTime: time.Now()})
	}
	var text []byte
	for _, list := range []struct {
		issuer  *x509.Certificate
		key     crypto.Signer
		entries []x509.RevocationListEntry
	}{{a.Issuing, a.Key, entries}, {a.Root, a.RootKey, nil}} {
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
			Number: big.NewInt(number), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(valid), RevokedCertificateEntries: list.entries,
		}, list.issuer, list.key)
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
	}
	return text
}

// PEM writes certificates one after the other.
func PEM(certificates ...*x509.Certificate) []byte {
	var text []byte
	for _, c := range certificates {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return text
}
