package mtls

import (
	"crypto/tls"
	"errors"
	"strconv"
	"testing"
	"time"

	"countersign.dev/mesh"
)

// forVersions runs a test in both versions: their resumptions have little code in common.
func forVersions(t *testing.T, test func(t *testing.T, version uint16)) {
	for name, version := range bothVersions {
		t.Run(name, func(t *testing.T) { test(t, version) })
	}
}

// TestResumption connects, changes something, and connects again. What changed decides whether the
// session may be resumed; the connection succeeds in any case.
func TestResumption(t *testing.T) {
	more := newAuthority(t, "more")
	cases := map[string]struct {
		change func(t *testing.T, p *pair)
		resume bool
	}{
		"nothing":              {func(*testing.T, *pair) {}, true},
		"an hour less a bit":   {func(_ *testing.T, p *pair) { p.a.clock.set(start.Add(50 * time.Minute)) }, true},
		"the server's leaf":    {func(t *testing.T, p *pair) { p.server.set(p.a.identity(t, p.serverID, bundle(t, p.a))) }, false},
		"the client's leaf":    {func(t *testing.T, p *pair) { p.client.set(p.a.identity(t, p.clientID, bundle(t, p.a))) }, false},
		"the server's bundle":  {func(t *testing.T, p *pair) { p.server.set(withBundle(p.server, bundle(t, p.a, more))) }, false},
		"the client's bundle":  {func(t *testing.T, p *pair) { p.client.set(withBundle(p.client, bundle(t, p.a, more))) }, false},
		"the policy":           {func(_ *testing.T, p *pair) { p.epoch.Add(1) }, false},
		"an equal bundle":      {func(t *testing.T, p *pair) { p.server.set(withBundle(p.server, bundle(t, p.a))) }, true},
		"the policy, and back": {func(_ *testing.T, p *pair) { p.epoch.Add(1); p.epoch.Add(-1) }, true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			forVersions(t, func(t *testing.T, version uint16) {
				p := newPair(t)
				epoch := func() string { return strconv.FormatInt(p.epoch.Load(), 10) }
				server, client := p.newServer(ServerOptions{Epoch: epoch}), p.newClient(ClientOptions{Epoch: epoch})
				again := func() outcome {
					config := clientConfig(t, client)
					config.MaxVersion = version
					o := connect(t, server.Config(), config)
					o.ok(t)
					return o
				}
				if o := again(); o.client.DidResume {
					t.Fatal("the first connection was resumed")
				}
				if o := again(); !o.client.DidResume || !o.server.DidResume {
					t.Fatal("the second connection was not resumed, though nothing had changed")
				}
				c.change(t, p)
				o := again()
				if o.client.DidResume != c.resume || o.server.DidResume != c.resume {
					t.Errorf("resumed: client %t, server %t; want %t", o.client.DidResume, o.server.DidResume, c.resume)
				}
				if who, ok := PeerID(o.server); !ok || who != p.clientID {
					t.Errorf("the server sees %v", who)
				}
				if got, want := Serial(o.server.PeerCertificates[0]), Serial(p.client.identity.Load().Certificate.Leaf); got != want {
					t.Errorf("the server sees the serial %s, and the client has %s", got, want)
				}
			})
		})
	}
}

func withBundle(s *source, b *Bundle) *Identity {
	changed := *s.identity.Load()
	changed.Bundle = b
	return &changed
}

// TestServersAlone changes only the server's side, with a client that keeps its session whatever
// happens, as an attacker's would.
func TestServersAlone(t *testing.T) {
	cases := map[string]struct {
		change func(t *testing.T, p *pair)
		want   error // nil: a full handshake succeeds
	}{
		"the leaf":   {func(t *testing.T, p *pair) { p.server.set(p.a.identity(t, p.serverID, bundle(t, p.a))) }, nil},
		"the policy": {func(_ *testing.T, p *pair) { p.epoch.Add(1) }, nil},
		"another root as well": {
			func(t *testing.T, p *pair) {
				p.server.set(withBundle(p.server, bundle(t, p.a, newAuthority(t, "more"))))
			}, nil,
		},
		"its root is removed": {
			func(t *testing.T, p *pair) { p.server.set(withBundle(p.server, bundle(t, newAuthority(t, "more")))) }, ErrUntrusted,
		},
		"the client's leaf expires": {func(_ *testing.T, p *pair) { p.a.clock.set(start.Add(61 * time.Minute)) }, ErrExpired},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			forVersions(t, func(t *testing.T, version uint16) {
				p := newPair(t)
				server := p.newServer(ServerOptions{Epoch: func() string { return strconv.FormatInt(p.epoch.Load(), 10) }})
				client := p.stranger(version, p.client.identity.Load().Certificate)
				// The client's own clock stands still: it would not offer the session of an expired server.
				client.Time = func() time.Time { return start }
				connect(t, server.Config(), client).ok(t)
				if o := connect(t, server.Config(), client); !o.server.DidResume {
					t.Fatalf("not resumed, though nothing had changed: %v, %v", o.clientErr, o.serverErr)
				}
				c.change(t, p)
				o := connect(t, server.Config(), client)
				if o.server.DidResume || o.client.DidResume && c.want == nil {
					t.Error("the session was resumed")
				}
				if c.want == nil {
					o.ok(t)
				} else if !errors.Is(o.serverErr, c.want) || o.clientErr == nil {
					t.Errorf("server: %v, client: %v; want %v", o.serverErr, o.clientErr, c.want)
				}
			})
		})
	}
}

// TestVerifiedOnResumption keeps even the ticket keys: it shows that verification itself, not only the
// change of the keys, refuses what has become wrong. crypto/tls alone would resume: see the control.
func TestVerifiedOnResumption(t *testing.T) {
	forVersions(t, func(t *testing.T, version uint16) {
		p := newPair(t)
		server := p.newServer(ServerOptions{})
		fixed, err := server.current() // the inner configuration, with keys that nobody changes
		if err != nil {
			t.Fatal(err)
		}
		client := p.stranger(version, p.client.identity.Load().Certificate)
		connect(t, fixed, client).ok(t)
		p.server.set(withBundle(p.server, bundle(t, newAuthority(t, "more"))))
		resumed := false
		control := fixed.Clone()
		control.VerifyConnection = func(cs tls.ConnectionState) error {
			resumed = cs.DidResume
			return nil
		}
		connect(t, control, client).ok(t)
		if !resumed {
			t.Error("the control was not resumed: the test proves nothing")
		}
		if o := connect(t, fixed, client); !errors.Is(o.serverErr, ErrUntrusted) || o.clientErr == nil {
			t.Errorf("server: %v, client: %v; want ErrUntrusted", o.serverErr, o.clientErr)
		}
	})
}

// TestClientVerifiesOnResumption is the same at the other end.
func TestClientVerifiesOnResumption(t *testing.T) {
	forVersions(t, func(t *testing.T, version uint16) {
		p := newPair(t)
		server := p.newServer(ServerOptions{})
		client := p.newClient(ClientOptions{})
		config := clientConfig(t, client) // kept, where a new one should be asked for
		config.MaxVersion = version
		connect(t, server.Config(), config).ok(t)
		p.client.set(withBundle(p.client, bundle(t, newAuthority(t, "more"))))
		o := connect(t, server.Config(), config)
		if !errors.Is(o.clientErr, ErrUntrusted) {
			t.Errorf("client: %v, want ErrUntrusted", o.clientErr)
		}
	})
}

// TestSessionsAge expects ticket keys and caches not to live as long as a leaf may.
func TestSessionsAge(t *testing.T) {
	p := newPair(t)
	key := testKey(t, mesh.ECDSAP256, "leaf")
	p.server.set(assemble(p.serverID, key, bundle(t, p.a), p.a.certify(t, p.serverID, key, 300*time.Hour), p.a.issuing))
	p.client.set(assemble(p.clientID, key, bundle(t, p.a), p.a.certify(t, p.clientID, key, 300*time.Hour), p.a.issuing))
	server, client := p.newServer(ServerOptions{}), p.stranger(tls.VersionTLS13, p.client.identity.Load().Certificate)
	own := p.newClient(ClientOptions{})
	cache := clientConfig(t, own).ClientSessionCache
	connect(t, server.Config(), client).ok(t)
	p.a.clock.set(start.Add(23 * time.Hour))
	if o := connect(t, server.Config(), client); !o.server.DidResume {
		t.Errorf("not resumed within a day: %v, %v", o.clientErr, o.serverErr)
	}
	if clientConfig(t, own).ClientSessionCache != cache {
		t.Error("the client forgot its sessions within a day")
	}
	p.a.clock.set(start.Add(24 * time.Hour))
	if o := connect(t, server.Config(), client); o.server.DidResume {
		t.Error("resumed after a day")
	}
	if clientConfig(t, own).ClientSessionCache == cache {
		t.Error("the client remembers its sessions for more than a day")
	}
}

// TestListenersDoNotShareSessions keeps what one port has admitted away from another.
func TestListenersDoNotShareSessions(t *testing.T) {
	p := newPair(t)
	one, other := p.newServer(ServerOptions{ClientAuth: mesh.Optional}), p.newServer(ServerOptions{})
	client := p.stranger(tls.VersionTLS13)
	connect(t, one.Config(), client).ok(t)
	if o := connect(t, other.Config(), client); !errors.Is(o.serverErr, ErrNoCertificate) {
		t.Errorf("a session without a certificate got in: %v", o.serverErr)
	}
}
