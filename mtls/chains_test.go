package mtls

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

// damaged is a chain that is presented with the same bytes and does not verify: only who remembers it
// takes it. It stands in for "was the signature verified?".
func damaged(chain []*x509.Certificate) []*x509.Certificate {
	leaf := *chain[0]
	leaf.Signature = slices.Clone(leaf.Signature)
	leaf.Signature[len(leaf.Signature)-1] ^= 1
	return append([]*x509.Certificate{&leaf}, chain[1:]...)
}

// resign makes a certificate of the CA anew with another life, and with its old key.
func (a *authority) resign(t *testing.T, cert *x509.Certificate, from, to time.Time) *x509.Certificate {
	t.Helper()
	template := *cert
	template.NotBefore, template.NotAfter = from, to
	rootKey := testKey(t, mesh.ECDSAP256, "root a")
	parent := a.root
	if cert == a.root {
		parent = &template
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, parent, cert.PublicKey, rootKey)
	if err != nil {
		t.Fatal(err)
	}
	again, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return again
}

// TestRemembered verifies a chain, changes one thing, and expects the change to count although the
// chain is known.
func TestRemembered(t *testing.T) {
	const client, server = x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth
	type lives struct{ root, issuing, leaf [2]time.Duration } // from and to, relative to start
	long := [2]time.Duration{-100 * time.Hour, 100 * time.Hour}
	cases := map[string]struct {
		lives lives
		again func(b *Bundle, chain []*x509.Certificate) (id.ID, error)
		want  error // nil: it is still good, and was not verified anew
	}{
		"nothing": {lives{long, long, long}, func(b *Bundle, chain []*x509.Certificate) (id.ID, error) {
			return b.verifyAgain("1", damaged(chain), client, start.Add(time.Hour))
		}, nil},
		"the leaf's last moment": {lives{long, long, [2]time.Duration{-time.Hour, time.Hour}}, func(b *Bundle, chain []*x509.Certificate) (id.ID, error) {
			return b.verifyAgain("1", damaged(chain), client, start.Add(time.Hour))
		}, nil},
		"the leaf expired": {lives{long, long, [2]time.Duration{-time.Hour, time.Hour}}, func(b *Bundle, chain []*x509.Certificate) (id.ID, error) {
			return b.verifyAgain("1", chain, client, start.Add(time.Hour+time.Nanosecond))
		}, ErrExpired},
		"the leaf is not valid yet": {lives{long, long, [2]time.Duration{-time.Hour, time.Hour}}, func(b *Bundle, chain []*x509.Certificate) (id.ID, error) {
			return b.verifyAgain("1", chain, client, start.Add(-time.Hour-time.Nanosecond))
		}, ErrUntrusted},
		"the issuer's last moment": {lives{long, [2]time.Duration{-time.Hour, time.Hour}, long}, func(b *Bundle, chain []*x509.Certificate) (id.ID, error) {
			return b.verifyAgain("1", damaged(chain), client, start.Add(time.Hour))
		}, nil},
		"the issuer expired": {lives{long, [2]time.Duration{-time.Hour, time.Hour}, long}, func(b *Bundle, chain []*x509.Certificate) (id.ID, error) {
			return b.verifyAgain("1", chain, client, start.Add(time.Hour+time.Nanosecond))
		}, ErrUntrusted},
		"the issuer is not valid yet": {lives{long, [2]time.Duration{-time.Hour, time.Hour}, long}, func(b *Bundle, chain []*x509.Certificate) (id.ID, error) {
			return b.verifyAgain("1", chain, client, start.Add(-time.Hour-time.Nanosecond))
		}, ErrUntrusted},
		"the root expired": {lives{[2]time.Duration{-time.Hour, time.Hour}, long, long}, func(b *Bundle, chain []*x509.Certificate) (id.ID, error) {
			return b.verifyAgain("1", chain, client, start.Add(time.Hour+time.Nanosecond))
		}, ErrUntrusted},
		"the root is not valid yet": {lives{[2]time.Duration{-time.Hour, time.Hour}, long, long}, func(b *Bundle, chain []*x509.Certificate) (id.ID, error) {
			return b.verifyAgain("1", chain, client, start.Add(-time.Hour-time.Nanosecond))
		}, ErrUntrusted},
		"another usage": {lives{long, long, long}, func(b *Bundle, chain []*x509.Certificate) (id.ID, error) {
			return b.verifyAgain("1", chain, server, start)
		}, ErrUntrusted},
		"another epoch": {lives{long, long, long}, func(b *Bundle, chain []*x509.Certificate) (id.ID, error) {
			return b.verifyAgain("2", damaged(chain), client, start)
		}, ErrUntrusted},
		"another bundle": {lives{long, long, long}, func(_ *Bundle, chain []*x509.Certificate) (id.ID, error) {
			return bundle(t, newAuthority(t, "b")).verifyAgain("1", chain, client, start)
		}, ErrUntrusted},
		"an equal bundle": {lives{long, long, long}, func(b *Bundle, chain []*x509.Certificate) (id.ID, error) {
			equal, err := NewBundle(b.TrustDomain(), b.Roots())
			if err != nil {
				return id.ID{}, err
			}
			return equal.verifyAgain("1", damaged(chain), client, start)
		}, ErrUntrusted},
		"one byte of the leaf": {lives{long, long, long}, func(b *Bundle, chain []*x509.Certificate) (id.ID, error) {
			other := damaged(chain)
			other[0].Raw = slices.Clone(other[0].Raw)
			other[0].Raw[len(other[0].Raw)-1] ^= 1
			return b.verifyAgain("1", other, client, start)
		}, ErrUntrusted},
		"without the issuer": {lives{long, long, long}, func(b *Bundle, chain []*x509.Certificate) (id.ID, error) {
			return b.verifyAgain("1", chain[:1], client, start)
		}, ErrUntrusted},
		"by somebody who remembers nothing": {lives{long, long, long}, func(b *Bundle, chain []*x509.Certificate) (id.ID, error) {
			return b.Verify(damaged(chain), client, start)
		}, ErrUntrusted},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a, who := newAuthority(t, "a"), member(t, id.Service, "x")
			a.root = a.resign(t, a.root, start.Add(c.lives.root[0]), start.Add(c.lives.root[1]))
			a.issuing = a.resign(t, a.issuing, start.Add(c.lives.issuing[0]), start.Add(c.lives.issuing[1]))
			leaf := a.forge(t, who, testKey(t, mesh.ECDSAP256, "leaf"), func(cert *x509.Certificate) {
				cert.NotBefore, cert.NotAfter = start.Add(c.lives.leaf[0]), start.Add(c.lives.leaf[1])
				cert.ExtKeyUsage = []x509.ExtKeyUsage{client}
			})
			b, chain := bundle(t, a), []*x509.Certificate{leaf, a.issuing}
			if peer, err := b.verifyAgain("1", chain, client, start); err != nil || peer != who {
				t.Fatalf("at first: %v, %v", peer, err)
			}
			if peer, err := b.verifyAgain("1", damaged(chain), client, start); err != nil || peer != who {
				t.Fatalf("it was not remembered, so that the test proves nothing: %v, %v", peer, err)
			}
			peer, err := c.again(b, chain)
			if !errors.Is(err, c.want) || (err == nil) != (peer == who) || (err != nil) != peer.IsZero() {
				t.Errorf("%v, %v; want %v", peer, err, c.want)
			}
			if name == "another usage" {
				return
			}
			if peer, err := b.verifyAgain("1", damaged(chain), client, start); err != nil || peer != who {
				t.Errorf("it was forgotten: %v, %v", peer, err)
			}
		})
	}
}

// TestIdentityIsNotRemembered reads every time who a leaf belongs to.
func TestIdentityIsNotRemembered(t *testing.T) {
	a := newAuthority(t, "a")
	b, key := bundle(t, a), testKey(t, mesh.ECDSAP256, "leaf")
	foreign, err := id.New("other.internal", id.Service, "x")
	if err != nil {
		t.Fatal(err)
	}
	for name, leaf := range map[string]*x509.Certificate{
		"no identity":           a.forge(t, foreign, key, func(c *x509.Certificate) { c.URIs = nil }),
		"another trust domain":  a.forge(t, foreign, key, func(*x509.Certificate) {}),
		"may sign certificates": a.forge(t, member(t, id.Service, "x"), key, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }),
	} {
		chain := []*x509.Certificate{leaf, a.issuing}
		for range 2 {
			if peer, err := b.verifyAgain("", chain, x509.ExtKeyUsageClientAuth, start); !errors.Is(err, ErrUntrusted) || !peer.IsZero() {
				t.Errorf("%s: %v, %v", name, peer, err)
			}
		}
		if !b.known.holds(keyOf(chain, x509.ExtKeyUsageClientAuth, ""), start) {
			t.Errorf("%s: the chain is not known, so that the test proves nothing", name)
		}
	}
}

// TestNotRemembered presents what must not take room.
func TestNotRemembered(t *testing.T) {
	a, other := newAuthority(t, "a"), newAuthority(t, "b")
	who, key := member(t, id.Service, "x"), testKey(t, mesh.ECDSAP256, "leaf")
	leaf := a.certify(t, who, key, time.Hour)
	b := bundle(t, a)
	cases := map[string]struct {
		chain []*x509.Certificate
		at    time.Time
		ok    bool
	}{
		"refused":              {[]*x509.Certificate{other.certify(t, who, key, time.Hour), other.issuing}, start, false},
		"expired":              {[]*x509.Certificate{leaf, a.issuing}, start.Add(2 * time.Hour), false},
		"another's issuer":     {[]*x509.Certificate{leaf, a.issuing, other.issuing}, start, true},
		"the issuer, repeated": {[]*x509.Certificate{leaf, a.issuing, a.issuing, a.issuing}, start, true},
	}
	for name, c := range cases {
		if _, err := b.verifyAgain("", c.chain, x509.ExtKeyUsageClientAuth, c.at); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		if n := len(b.known.young) + len(b.known.old); n != 0 {
			t.Errorf("%s: %d chains are remembered", name, n)
		}
	}
	for name, chain := range map[string][]*x509.Certificate{
		"with its issuer": {leaf, a.issuing}, "with the root": {leaf, a.issuing, a.root}, "in another order": {leaf, a.root, a.issuing},
	} {
		for range 2 {
			if _, err := b.verifyAgain("", chain, x509.ExtKeyUsageClientAuth, start); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if n := len(b.known.young); n != 3 {
		t.Errorf("%d chains are remembered, want 3", n)
	}
}

// TestLastingChain remembers the longest life where a chain leads to two roots.
func TestLastingChain(t *testing.T) {
	a := newAuthority(t, "a")
	second := a.resign(t, a.root, start.Add(-time.Hour), start.Add(2*time.Hour))
	first := a.resign(t, a.root, start.Add(-time.Hour), start.Add(time.Hour))
	b, err := NewBundle(trustDomain, []*x509.Certificate{first, second})
	if err != nil {
		t.Fatal(err)
	}
	leaf := a.certify(t, member(t, id.Service, "x"), testKey(t, mesh.ECDSAP256, "leaf"), 10*time.Hour)
	chain := []*x509.Certificate{leaf, a.issuing}
	if _, err := b.verifyAgain("", chain, x509.ExtKeyUsageClientAuth, start); err != nil {
		t.Fatal(err)
	}
	key := keyOf(chain, x509.ExtKeyUsageClientAuth, "")
	if !b.known.holds(key, start.Add(2*time.Hour)) || b.known.holds(key, start.Add(2*time.Hour+1)) {
		t.Errorf("it is remembered for %v, want until the second root's end", b.known.young[key])
	}
}

// TestChainsAreBounded meets more chains than are remembered, one of them again and again.
func TestChainsAreBounded(t *testing.T) {
	a := newAuthority(t, "a")
	chain := []*x509.Certificate{a.certify(t, member(t, id.Service, "x"), testKey(t, mesh.ECDSAP256, "leaf"), time.Hour), a.issuing, a.root}
	c := &chains{}
	key := func(n uint64) (k chainKey) {
		binary.BigEndian.PutUint64(k[:], n)
		return k
	}
	for n := range uint64(3 * maxChains) {
		c.remember(key(n), chain, chain)
		if !c.holds(key(0), start) {
			t.Fatalf("a chain that is met all the time was forgotten after %d others", n)
		}
		if have := len(c.young) + len(c.old); have > maxChains {
			t.Fatalf("%d chains are remembered, and at most %d may be", have, maxChains)
		}
	}
	if !c.holds(key(3*maxChains-1), start) || c.holds(key(1), start) {
		t.Error("the newest was forgotten, or the oldest was not")
	}
}

// TestChainsConcurrently verifies by many goroutines at once; the race detector looks on.
func TestChainsConcurrently(t *testing.T) {
	a := newAuthority(t, "a")
	b, who, key := bundle(t, a), member(t, id.Service, "x"), testKey(t, mesh.ECDSAP256, "leaf")
	var leaves []*x509.Certificate
	for range 8 {
		leaves = append(leaves, a.certify(t, who, key, time.Hour))
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for n := range 100 {
				epoch := strconv.Itoa(n % 3)
				if peer, err := b.verifyAgain(epoch, []*x509.Certificate{leaves[(i+n)%8], a.issuing}, x509.ExtKeyUsageClientAuth, start); err != nil || peer != who {
					t.Errorf("%v, %v", peer, err)
				}
			}
		})
	}
	all.Wait()
}

// TestKnownPeerChanges is TestRemembered over whole handshakes without resumption: both ends know each
// other's chain, then something changes.
func TestKnownPeerChanges(t *testing.T) {
	cases := map[string]struct {
		change         func(t *testing.T, p *pair)
		server, client error
	}{
		"nothing":                   {func(*testing.T, *pair) {}, nil, nil},
		"the client's leaf expires": {func(_ *testing.T, p *pair) { p.a.clock.set(start.Add(time.Hour + time.Second)) }, nil, ErrExpired},
		"the clock goes back":       {func(_ *testing.T, p *pair) { p.a.clock.set(start.Add(-time.Hour)) }, nil, ErrUntrusted},
		"the server's root is removed": {func(t *testing.T, p *pair) {
			p.server.set(withBundle(p.server, bundle(t, newAuthority(t, "more"))))
		}, ErrUntrusted, nil},
		"the client's root is removed": {func(t *testing.T, p *pair) {
			p.client.set(withBundle(p.client, bundle(t, newAuthority(t, "more"))))
		}, nil, ErrUntrusted},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			forVersions(t, func(t *testing.T, version uint16) {
				p := newPair(t)
				server, client := p.newServer(ServerOptions{}).Config(), p.newClient(ClientOptions{})
				full := func() outcome {
					config := clientConfig(t, client)
					config.MaxVersion, config.ClientSessionCache = version, nil
					return connect(t, server, config)
				}
				full().ok(t)
				full().ok(t)
				c.change(t, p)
				o := full()
				if c.server == nil && c.client == nil {
					o.ok(t)
				}
				if c.server != nil && !errors.Is(o.serverErr, c.server) {
					t.Errorf("server: %v, want %v", o.serverErr, c.server)
				}
				if c.client != nil && !errors.Is(o.clientErr, c.client) {
					t.Errorf("client: %v, want %v", o.clientErr, c.client)
				}
			})
		})
	}
}

// TestKnownChainAlone presents a chain that is known in ways in which it must not be enough.
func TestKnownChainAlone(t *testing.T) {
	forVersions(t, func(t *testing.T, version uint16) {
		p := newPair(t)
		server := p.newServer(ServerOptions{}).Config()
		connect(t, server, clientConfig(t, p.newClient(ClientOptions{}))).ok(t)

		stolen := p.client.identity.Load().Certificate
		stolen.PrivateKey = testKey(t, mesh.ECDSAP256, "leaf colorteller")
		if o := connect(t, server, p.stranger(version, stolen)); !errors.Is(o.serverErr, ErrUntrusted) {
			t.Errorf("without its key: %v", o.serverErr)
		}
		other := clientConfig(t, p.newClient(ClientOptions{Expect: member(t, id.Service, "other")}))
		other.MaxVersion = version
		if o := connect(t, server, other); !errors.Is(o.clientErr, ErrWrongIdentity) {
			t.Errorf("of another server than expected: %v", o.clientErr)
		}
	})
}

// TestRevocations asks for a chain's verification anew when the word for what is revoked changes, on
// full handshakes and on resumed ones.
func TestRevocations(t *testing.T) {
	p := newPair(t)
	var asked []string
	word := "1"
	revocations := func() string { asked = append(asked, word); return word }
	server, client := p.newServer(ServerOptions{Revocations: revocations}).Config(), p.newClient(ClientOptions{})
	known := func() int {
		b := p.server.identity.Load().Bundle
		b.known.mu.Lock()
		defer b.known.mu.Unlock()
		return len(b.known.young)
	}
	resumed := false
	for i, next := range []string{"1", "1", "2", "2"} {
		word = next
		o := connect(t, server, clientConfig(t, client))
		o.ok(t)
		resumed = o.server.DidResume
		if want := []int{1, 1, 2, 2}[i]; known() != want {
			t.Errorf("connection %d: %d chains are known, want %d", i, known(), want)
		}
	}
	if !resumed || !slices.Equal(asked, []string{"1", "1", "2", "2"}) {
		t.Errorf("asked %q; the last connection was resumed: %t", asked, resumed)
	}
}
