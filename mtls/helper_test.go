package mtls

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/mesh"
)

const trustDomain = "colorapp.internal"

// start is the moment at which the tests' CAs are made.
var start = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// clock is a time that a test moves.
type clock struct{ at atomic.Pointer[time.Time] }

func newClock() *clock {
	c := &clock{}
	c.set(start)
	return c
}

func (c *clock) set(at time.Time) { c.at.Store(&at) }
func (c *clock) now() time.Time   { return *c.at.Load() }

var keys = struct {
	sync.Mutex
	made map[string]crypto.Signer
}{made: make(map[string]crypto.Signer)}

// testKey gives the key of a type and a role; the same for the same arguments, because RSA takes time.
func testKey(t testing.TB, kind mesh.KeyType, role string) crypto.Signer {
	t.Helper()
	keys.Lock()
	defer keys.Unlock()
	name := string(kind) + " " + role
	if key, ok := keys.made[name]; ok {
		return key
	}
	key, err := GenerateKey(kind)
	if err != nil {
		t.Fatal(err)
	}
	keys.made[name] = key
	return key
}

// authority is a CA in memory.
type authority struct {
	name          string
	root, issuing *x509.Certificate
	key           crypto.Signer
	clock         *clock
}

// newAuthority makes a CA; two of different names have different keys.
func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	rootKey, key := testKey(t, mesh.ECDSAP256, "root "+name), testKey(t, mesh.ECDSAP256, "issuer "+name)
	cfg := issue.AuthorityConfig{Now: start, Life: 10 * 365 * 24 * time.Hour}
	root, err := issue.NewRoot(rootKey, cfg)
	if err != nil {
		t.Fatal(err)
	}
	issuing, err := issue.NewIssuing(key.Public(), root, rootKey, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{name: name, root: root, issuing: issuing, key: key, clock: newClock()}
}

func member(t testing.TB, kind id.Kind, name string) id.ID {
	t.Helper()
	i, err := id.New(trustDomain, kind, name)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// certify issues a real leaf.
func (a *authority) certify(t testing.TB, who id.ID, key crypto.Signer, ttl time.Duration) *x509.Certificate {
	t.Helper()
	profile, err := issue.NewProfile(issue.ProfileConfig{TrustDomain: who.TrustDomain(), MaxTTL: 365 * 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := issue.NewIssuer(a.issuing, a.key, profile, a.clock.now)
	if err != nil {
		t.Fatal(err)
	}
	prepared, err := issuer.Prepare(issue.Request{ID: who, PublicKey: key.Public(), TTL: ttl})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := issuer.Issue(prepared)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// forge issues what the CA's rules forbid.
func (a *authority) forge(t testing.TB, who id.ID, key crypto.Signer, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(4711),
		Subject:               pkix.Name{CommonName: who.Name()},
		NotBefore:             start.Add(-time.Hour),
		NotAfter:              start.Add(time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{who.URL()},
		DNSNames:              []string{who.ServerName()},
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, a.issuing, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// bundle trusts some authorities.
func bundle(t testing.TB, of ...*authority) *Bundle {
	t.Helper()
	var roots []*x509.Certificate
	for _, a := range of {
		roots = append(roots, a.root)
	}
	b, err := NewBundle(trustDomain, roots)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// source is a Source that a test changes.
type source struct{ identity atomic.Pointer[Identity] }

func (s *source) Identity() (*Identity, error) {
	if identity := s.identity.Load(); identity != nil {
		return identity, nil
	}
	return nil, ErrNoIdentity
}

func (s *source) set(identity *Identity) { s.identity.Store(identity) }

// assemble puts an identity together without a check.
func assemble(who id.ID, key crypto.Signer, b *Bundle, chain ...*x509.Certificate) *Identity {
	identity := &Identity{ID: who, Bundle: b, Certificate: tls.Certificate{PrivateKey: key, Leaf: chain[0]}}
	for _, cert := range chain {
		identity.Certificate.Certificate = append(identity.Certificate.Certificate, cert.Raw)
	}
	return identity
}

// identity makes a member with an hour to live.
func (a *authority) identity(t testing.TB, who id.ID, b *Bundle) *Identity {
	t.Helper()
	key := testKey(t, mesh.ECDSAP256, "leaf "+who.Name())
	return assemble(who, key, b, a.certify(t, who, key, time.Hour), a.issuing)
}

func newSource(identity *Identity) *source {
	s := &source{}
	s.set(identity)
	return s
}

// outcome is what both ends of a connection saw.
type outcome struct {
	client, server       tls.ConnectionState
	clientErr, serverErr error
}

func (o outcome) ok(t *testing.T) {
	t.Helper()
	if o.clientErr != nil || o.serverErr != nil {
		t.Fatalf("client: %v; server: %v", o.clientErr, o.serverErr)
	}
}

// connect makes one connection over loopback: the client dials, both shake hands, the server sends a
// byte, with which session tickets arrive and, in TLS 1.3, refusals.
func connect(t *testing.T, server, client *tls.Config) outcome {
	t.Helper()
	var o outcome
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var both sync.WaitGroup
	both.Go(func() {
		raw, err := listener.Accept()
		if err != nil {
			o.serverErr = err
			return
		}
		conn := tls.Server(raw, server)
		defer conn.Close()
		if o.serverErr = conn.HandshakeContext(ctx); o.serverErr != nil {
			return
		}
		o.server = conn.ConnectionState()
		if _, o.serverErr = conn.Write([]byte("x")); o.serverErr != nil {
			return
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			o.serverErr = err
		}
	})
	both.Go(func() {
		raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", listener.Addr().String())
		if err != nil {
			o.clientErr = err
			return
		}
		conn := tls.Client(raw, client)
		defer conn.Close()
		if o.clientErr = conn.HandshakeContext(ctx); o.clientErr != nil {
			return
		}
		o.client = conn.ConnectionState()
		_, o.clientErr = io.ReadFull(conn, make([]byte, 1))
	})
	both.Wait()
	o.serverErr = HandshakeError(o.serverErr)
	return o
}

// pair is a client and a server that trust one authority.
type pair struct {
	a              *authority
	server, client *source
	serverID       id.ID
	clientID       id.ID
	epoch          atomic.Int64
}

func newPair(t testing.TB) *pair {
	t.Helper()
	a := newAuthority(t, "a")
	p := &pair{a: a, serverID: member(t, id.Service, "colorteller"), clientID: member(t, id.Gateway, "colorgateway")}
	p.server = newSource(a.identity(t, p.serverID, bundle(t, a)))
	p.client = newSource(a.identity(t, p.clientID, bundle(t, a)))
	return p
}

func (p *pair) newServer(o ServerOptions) *Server {
	o.Now = p.a.clock.now
	return NewServer(p.server, o)
}

func (p *pair) newClient(o ClientOptions) *Client {
	o.Now = p.a.clock.now
	if o.Expect.IsZero() {
		o.Expect = p.serverID
	}
	return NewClient(p.client, o)
}

// clientConfig asks for a configuration that has to be there.
func clientConfig(t testing.TB, c *Client) *tls.Config {
	t.Helper()
	config, err := c.Config()
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// stranger is a client that does not check anything, as an attacker's would not.
func (p *pair) stranger(version uint16, certs ...tls.Certificate) *tls.Config {
	return &tls.Config{
		ServerName:         p.serverID.ServerName(),
		InsecureSkipVerify: true,
		Time:               p.a.clock.now,
		MaxVersion:         version,
		ClientSessionCache: tls.NewLRUClientSessionCache(1),
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if len(certs) == 0 {
				return &tls.Certificate{}, nil
			}
			return &certs[0], nil
		},
	}
}
