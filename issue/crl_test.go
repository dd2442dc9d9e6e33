package issue

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"
)

func TestParseReason(t *testing.T) {
	for text, want := range map[string]Reason{"": Unspecified, "keyCompromise": KeyCompromise, "KEYCOMPROMISE": KeyCompromise, "superseded": Superseded} {
		if got, err := ParseReason(text); err != nil || got != want {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"certificateHold", "removeFromCRL", "cACompromise", "because", "key-compromise"} {
		_, err := ParseReason(text)
		if !errors.Is(err, ErrReason) || !strings.Contains(err.Error(), "privilegeWithdrawn") {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, reason := range Reasons() {
		if back, ok := ReasonOf(codes[reason]); !ok || back != reason {
			t.Errorf("%q has the code of %q", reason, back)
		}
	}
	if reason, ok := ReasonOf(6); ok {
		t.Errorf("a hold is %q", reason)
	}
}

func newCRLAuthority(t *testing.T) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root, err := NewRoot(key, AuthorityConfig{TrustDomain: "colorapp.internal", Now: time.Now(), Life: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return root, key
}

func TestNewCRL(t *testing.T) {
	root, key := newCRLAuthority(t)
	now := time.Now()
	list, err := NewCRL(root, key, CRLConfig{Number: 7, Now: now, NextUpdate: now.Add(time.Hour), Revoked: []Revoked{
		{Serial: big.NewInt(300), Time: now.Add(-time.Hour), Reason: KeyCompromise},
		{Serial: big.NewInt(2), Time: now, Reason: Unspecified},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if list.Number.Int64() != 7 || !bytes.Equal(list.AuthorityKeyId, root.SubjectKeyId) || list.Issuer.String() != root.Subject.String() {
		t.Errorf("number %v, authority key identifier %x, issuer %v", list.Number, list.AuthorityKeyId, list.Issuer)
	}
	if since := now.Sub(list.ThisUpdate); since < ClockAllowance || since > ClockAllowance+time.Second {
		t.Errorf("it is valid since %v before now: a verifier whose clock is behind would refuse everybody", since)
	}
	entries := list.RevokedCertificateEntries
	if len(entries) != 2 || entries[0].SerialNumber.Int64() != 2 || entries[1].ReasonCode != 1 || len(entries[0].Extensions) != 0 {
		t.Errorf("entries %+v; RFC 5280 wants no extension for an unspecified reason", entries)
	}
}

func TestNewCRLRefuses(t *testing.T) {
	root, key := newCRLAuthority(t)
	_, other := newCRLAuthority(t)
	now := time.Now()
	good := CRLConfig{Number: 1, Now: now, NextUpdate: now.Add(time.Hour)}
	if _, err := NewCRL(root, other, good); !errors.Is(err, ErrIssuer) {
		t.Errorf("another key: %v", err)
	}
	mute := *root
	mute.KeyUsage = x509.KeyUsageCertSign
	if _, err := NewCRL(&mute, key, good); !errors.Is(err, ErrIssuer) {
		t.Errorf("a CA that may not: %v", err)
	}
	for name, change := range map[string]func(*CRLConfig){
		"number":  func(c *CRLConfig) { c.Number = 0 },
		"end":     func(c *CRLConfig) { c.NextUpdate = now },
		"serial":  func(c *CRLConfig) { c.Revoked = []Revoked{{Serial: big.NewInt(0), Reason: Unspecified}} },
		"reason":  func(c *CRLConfig) { c.Revoked = []Revoked{{Serial: big.NewInt(1), Reason: "certificateHold"}} },
		"nothing": func(c *CRLConfig) { c.Revoked = []Revoked{{}} },
	} {
		bad := good
		change(&bad)
		if _, err := NewCRL(root, key, bad); !errors.Is(err, ErrRequest) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
