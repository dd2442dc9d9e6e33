package agent

import (
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

func TestVerifiesTheServer(t *testing.T) {
	ca, other := newAuthority(t, "first"), newAuthority(t, "second")
	now := time.Now()
	key, err := mtls.GenerateKey(mesh.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	self := ca.sign(t, mustID(t, id.Server, "countersign"), nil, key.Public(), now, time.Hour)
	member := ca.sign(t, mustID(t, id.Service, "a"), nil, key.Public(), now, time.Hour)
	bundle, err := mtls.NewBundle(testDomain, []*x509.Certificate{ca.root})
	if err != nil {
		t.Fatal(err)
	}
	pinned, held := trust{pin: ca.pin()}, trust{pin: other.pin(), bundle: bundle}
	cases := []struct {
		name  string
		trust trust
		chain []*x509.Certificate
		now   time.Time
		want  error
	}{
		{"by the pin", pinned, []*x509.Certificate{self, ca.issuer, ca.root}, now, nil},
		{"by the bundle, without the root", held, []*x509.Certificate{self, ca.issuer}, now, nil},
		{"the root is missing", pinned, []*x509.Certificate{self, ca.issuer}, now, ErrPin},
		{"another root", trust{pin: other.pin()}, []*x509.Certificate{self, ca.issuer, ca.root}, now, ErrPin},
		{"the pinned root beside a chain that does not lead to it", trust{pin: other.pin()}, []*x509.Certificate{self, ca.issuer, other.root}, now, mtls.ErrUntrusted},
		{"a member, by the pin", pinned, []*x509.Certificate{member, ca.issuer, ca.root}, now, ErrNotServer},
		{"a member, by the bundle", held, []*x509.Certificate{member, ca.issuer}, now, ErrNotServer},
		{"the bundle counts, not the pin", trust{pin: ca.pin(), bundle: mustBundle(t, other.root)}, []*x509.Certificate{self, ca.issuer, ca.root}, now, mtls.ErrUntrusted},
		{"expired", pinned, []*x509.Certificate{self, ca.issuer, ca.root}, now.Add(2 * time.Hour), mtls.ErrExpired},
		{"by a clock that is behind", held, []*x509.Certificate{self, ca.issuer}, now.Add(-time.Hour), nil},
		{"another root, by a clock that is behind", pinned, []*x509.Certificate{self, other.issuer, ca.root}, now.Add(-time.Hour), mtls.ErrUntrusted},
		{"nothing", pinned, nil, now, ErrNotServer},
		{"the root itself", pinned, []*x509.Certificate{ca.root}, now, mtls.ErrUntrusted},
	}
	for _, c := range cases {
		err := c.trust.verify(stateOf(c.chain), c.now)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func mustBundle(t testing.TB, roots ...*x509.Certificate) *mtls.Bundle {
	t.Helper()
	bundle, err := mtls.NewBundle(testDomain, roots)
	if err != nil {
		t.Fatal(err)
	}
	return bundle
}
