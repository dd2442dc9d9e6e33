package mtls

import (
	"crypto"
	"crypto/fips140"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

var everyKey = []mesh.KeyType{mesh.ECDSAP256, mesh.ECDSAP384, mesh.RSA2048, mesh.RSA3072, mesh.RSA4096, mesh.Ed25519}

var bothVersions = map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13}

// TestKeyTypes shakes hands over every type of key at either end, in both versions.
func TestKeyTypes(t *testing.T) {
	if testing.Short() {
		t.Skip("RSA keys of every size take some seconds to make")
	}
	p := newPair(t)
	for _, kind := range everyKey {
		for name, version := range bothVersions {
			t.Run(string(kind)+" "+name, func(t *testing.T) {
				key := testKey(t, kind, "leaf")
				p.server.set(assemble(p.serverID, key, bundle(t, p.a), p.a.certify(t, p.serverID, key, time.Hour), p.a.issuing))
				p.client.set(assemble(p.clientID, key, bundle(t, p.a), p.a.certify(t, p.clientID, key, time.Hour), p.a.issuing))
				config := clientConfig(t, p.newClient(ClientOptions{NextProtos: []string{"h2", "http/1.1"}}))
				config.MaxVersion = version
				o := connect(t, p.newServer(ServerOptions{NextProtos: []string{"h2"}}).Config(), config)
				o.ok(t)
				if o.client.Version != version || o.client.NegotiatedProtocol != "h2" || o.server.ServerName != "colorteller.colorapp.internal" {
					t.Errorf("version %x, protocol %q, SNI %q", o.client.Version, o.client.NegotiatedProtocol, o.server.ServerName)
				}
				if suite := tls.CipherSuiteName(o.client.CipherSuite); !strings.Contains(suite, "GCM") && !strings.Contains(suite, "POLY1305") {
					t.Errorf("cipher suite %s", suite)
				}
				if who, ok := PeerID(o.server); !ok || who != p.clientID {
					t.Errorf("the server sees %v, %t", who, ok)
				}
				if who, ok := PeerID(o.client); !ok || who != p.serverID {
					t.Errorf("the client sees %v, %t", who, ok)
				}
			})
		}
	}
}

// TestServerRefuses presents every wrong certificate to a server that requires one and to one that
// does not.
func TestServerRefuses(t *testing.T) {
	p := newPair(t)
	stranger := newAuthority(t, "stranger")
	key := testKey(t, mesh.ECDSAP256, "leaf colorgateway")
	foreign, err := id.New("other.internal", id.Gateway, "colorgateway")
	if err != nil {
		t.Fatal(err)
	}
	forged := func(change func(*x509.Certificate)) *Identity {
		return assemble(p.clientID, key, nil, p.a.forge(t, p.clientID, key, change), p.a.issuing)
	}
	cases := map[string]struct {
		identity *Identity
		want     error
		expired  bool
	}{
		"a stranger's CA":        {stranger.identity(t, p.clientID, nil), ErrUntrusted, false},
		"another trust domain":   {p.a.identity(t, foreign, nil), ErrUntrusted, false},
		"expired":                {forged(func(c *x509.Certificate) { c.NotAfter = start.Add(-time.Second) }), ErrExpired, true},
		"not valid yet":          {forged(func(c *x509.Certificate) { c.NotBefore = start.Add(time.Second) }), ErrUntrusted, false},
		"for servers only":       {forged(func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), ErrUntrusted, false},
		"a CA":                   {forged(func(c *x509.Certificate) { c.IsCA = true }), ErrUntrusted, false},
		"may sign certificates":  {forged(func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }), ErrUntrusted, false},
		"may not sign":           {forged(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }), ErrUntrusted, false},
		"no URI":                 {forged(func(c *x509.Certificate) { c.URIs = nil }), ErrUntrusted, false},
		"two URIs":               {forged(func(c *x509.Certificate) { c.URIs = append(c.URIs, p.serverID.URL()) }), ErrUntrusted, false},
		"not a SPIFFE ID":        {forged(func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "https", Host: trustDomain}} }), ErrUntrusted, false},
		"without its issuer":     {assemble(p.clientID, key, nil, p.a.certify(t, p.clientID, key, time.Hour)), ErrUntrusted, false},
		"too many certificates":  {assemble(p.clientID, key, nil, append([]*x509.Certificate{p.a.certify(t, p.clientID, key, time.Hour)}, slices.Repeat([]*x509.Certificate{p.a.issuing}, 5)...)...), ErrUntrusted, false},
		"the issuing CA's, bare": {assemble(p.clientID, p.a.key, nil, p.a.issuing), ErrUntrusted, false},
	}
	for name, c := range cases {
		for _, mode := range []mesh.ClientAuth{mesh.Require, mesh.Optional} {
			for version, number := range bothVersions {
				t.Run(name+" "+string(mode)+" "+version, func(t *testing.T) {
					o := connect(t, p.newServer(ServerOptions{ClientAuth: mode}).Config(), p.stranger(number, c.identity.Certificate))
					if !errors.Is(o.serverErr, c.want) || !errors.Is(o.serverErr, ErrUntrusted) {
						t.Errorf("server: %v, want %v", o.serverErr, c.want)
					}
					if errors.Is(o.serverErr, ErrExpired) != c.expired {
						t.Errorf("server: %v; expired: %t", o.serverErr, c.expired)
					}
					if o.clientErr == nil || !strings.Contains(o.clientErr.Error(), "bad certificate") {
						t.Errorf("client: %v, want the alert bad_certificate", o.clientErr)
					}
				})
			}
		}
	}
}

// TestClientAuth connects without a certificate and with one, in every mode.
func TestClientAuth(t *testing.T) {
	alerts := map[uint16]string{tls.VersionTLS12: "handshake failure", tls.VersionTLS13: "certificate required"}
	for name, version := range bothVersions {
		for _, mode := range []mesh.ClientAuth{mesh.Require, mesh.Optional, mesh.None, ""} {
			t.Run(name+" "+string(mode), func(t *testing.T) {
				p := newPair(t)
				server := p.newServer(ServerOptions{ClientAuth: mode})
				anonymous := clientConfig(t, p.newClient(ClientOptions{Anonymous: true}))
				anonymous.MaxVersion = version
				o := connect(t, server.Config(), anonymous)
				if mode == mesh.Require || mode == "" {
					if !errors.Is(o.serverErr, ErrNoCertificate) || errors.Is(o.serverErr, ErrUntrusted) {
						t.Errorf("server: %v, want ErrNoCertificate", o.serverErr)
					}
					if o.clientErr == nil || !strings.Contains(o.clientErr.Error(), alerts[version]) {
						t.Errorf("client: %v, want the alert %q", o.clientErr, alerts[version])
					}
				} else {
					o.ok(t)
					if who, ok := PeerID(o.server); ok {
						t.Errorf("an anonymous client is %s", who)
					}
				}
				known := clientConfig(t, p.newClient(ClientOptions{}))
				known.MaxVersion = version
				o = connect(t, server.Config(), known)
				o.ok(t)
				who, ok := PeerID(o.server)
				if want := mode != mesh.None; ok != want || (ok && who != p.clientID) {
					t.Errorf("the client is %v, %t", who, ok)
				}
			})
		}
	}
}

// TestClientRefuses lets every wrong server answer.
func TestClientRefuses(t *testing.T) {
	p := newPair(t)
	stranger := newAuthority(t, "stranger")
	key := testKey(t, mesh.ECDSAP256, "leaf colorteller")
	forged := func(change func(*x509.Certificate)) *Identity {
		return assemble(p.serverID, key, bundle(t, p.a), p.a.forge(t, p.serverID, key, change), p.a.issuing)
	}
	foreign, err := id.New("other.internal", id.Service, "colorteller")
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		identity *Identity
		want     error
	}{
		"another member":        {p.a.identity(t, member(t, id.Service, "other"), bundle(t, p.a)), ErrWrongIdentity},
		"a gateway of its name": {p.a.identity(t, member(t, id.Gateway, "colorteller"), bundle(t, p.a)), ErrWrongIdentity},
		"the server's DNS name": {forged(func(c *x509.Certificate) { c.URIs[0] = member(t, id.Service, "other").URL() }), ErrWrongIdentity},
		"a stranger's CA":       {stranger.identity(t, p.serverID, bundle(t, p.a)), ErrUntrusted},
		"another trust domain":  {p.a.identity(t, foreign, bundle(t, p.a)), ErrUntrusted},
		"expired":               {forged(func(c *x509.Certificate) { c.NotAfter = start.Add(-time.Second) }), ErrExpired},
		"for clients only":      {forged(func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }), ErrUntrusted},
	}
	for name, c := range cases {
		for version, number := range bothVersions {
			t.Run(name+" "+version, func(t *testing.T) {
				p.server.set(c.identity)
				config := clientConfig(t, p.newClient(ClientOptions{}))
				config.MaxVersion = number
				o := connect(t, p.newServer(ServerOptions{ClientAuth: mesh.None}).Config(), config)
				if !errors.Is(o.clientErr, c.want) {
					t.Errorf("client: %v, want %v", o.clientErr, c.want)
				}
				if errors.Is(o.clientErr, ErrWrongIdentity) && errors.Is(o.clientErr, ErrUntrusted) {
					t.Errorf("client: %v is two things", o.clientErr)
				}
			})
		}
	}
	// The DNS names are not what counts: this one has none of the names that SNI asks for.
	p.server.set(forged(func(c *x509.Certificate) { c.DNSNames = []string{"elsewhere.example.com"} }))
	connect(t, p.newServer(ServerOptions{}).Config(), clientConfig(t, p.newClient(ClientOptions{}))).ok(t)
}

// TestVersionsAndSuites offers what is too old, with a control that shows that the client can.
func TestVersionsAndSuites(t *testing.T) {
	p := newPair(t)
	cases := map[string]struct {
		o        ServerOptions
		min, max uint16
		suites   []uint16
		ok       bool
	}{
		"TLS 1.0":            {ServerOptions{}, tls.VersionTLS10, tls.VersionTLS10, nil, false},
		"TLS 1.1":            {ServerOptions{}, tls.VersionTLS11, tls.VersionTLS11, nil, false},
		"TLS 1.2":            {ServerOptions{}, tls.VersionTLS12, tls.VersionTLS12, nil, true},
		"TLS 1.2 where 1.3":  {ServerOptions{MinVersion: mesh.TLS13}, tls.VersionTLS12, tls.VersionTLS12, nil, false},
		"TLS 1.3 where 1.3":  {ServerOptions{MinVersion: mesh.TLS13}, tls.VersionTLS12, tls.VersionTLS13, nil, true},
		"CBC":                {ServerOptions{}, tls.VersionTLS12, tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256}, false},
		"no forward secrecy": {ServerOptions{}, tls.VersionTLS12, tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}, false},
		"ChaCha20":           {ServerOptions{}, tls.VersionTLS12, tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256}, true},
	}
	permissive := &tls.Config{
		Certificates: []tls.Certificate{p.server.identity.Load().Certificate},
		MinVersion:   tls.VersionTLS10, Time: p.a.clock.now, ClientAuth: tls.RequestClientCert,
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if fips140.Enabled() && (c.max < tls.VersionTLS12 || name == "ChaCha20") {
				t.Skip("SKIPPED: in FIPS 140-3 mode no client can offer this")
			}
			config := p.stranger(c.max, p.client.identity.Load().Certificate)
			config.MinVersion, config.CipherSuites = c.min, c.suites
			o := connect(t, p.newServer(c.o).Config(), config)
			if c.ok {
				o.ok(t)
			} else if o.serverErr == nil || o.clientErr == nil {
				t.Errorf("client: %v, server: %v; want a refusal", o.clientErr, o.serverErr)
			}
			if c.max < tls.VersionTLS12 {
				connect(t, permissive, config).ok(t) // the control
			}
		})
	}
	old := clientConfig(t, p.newClient(ClientOptions{MinVersion: mesh.TLS13}))
	if o := connect(t, &tls.Config{Certificates: permissive.Certificates, MaxVersion: tls.VersionTLS12, Time: p.a.clock.now}, old); o.clientErr == nil {
		t.Error("a client that wants TLS 1.3 took 1.2")
	}
}

// TestNothingToObey makes configurations that must not connect anybody.
func TestNothingToObey(t *testing.T) {
	p := newPair(t)
	good := clientConfig(t, p.newClient(ClientOptions{}))
	for name, o := range map[string]ServerOptions{
		"an unknown mode":    {ClientAuth: "sometimes"},
		"an unknown version": {MinVersion: "1.1"},
	} {
		if o := connect(t, p.newServer(o).Config(), good); o.serverErr == nil || o.clientErr == nil {
			t.Errorf("%s: a server with it took a connection", name)
		}
	}
	for name, o := range map[string]ClientOptions{
		"nobody expected":    {},
		"an unknown version": {Expect: p.serverID, MinVersion: "1.4"},
	} {
		if config, err := NewClient(p.client, o).Config(); err == nil || config != nil {
			t.Errorf("%s: a client with it has a configuration", name)
		}
	}
	empty := &source{}
	if _, err := NewClient(empty, ClientOptions{Expect: p.serverID}).Config(); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("a client without an identity: %v", err)
	}
	if o := connect(t, NewServer(empty, ServerOptions{}).Config(), good); !errors.Is(o.serverErr, ErrNoIdentity) || o.clientErr == nil {
		t.Errorf("a server without an identity: %v", o.serverErr)
	}
	if _, err := NewStatic(nil).Identity(); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("a static source of nothing: %v", err)
	}
}

func TestHandshakeError(t *testing.T) {
	if HandshakeError(nil) != nil {
		t.Error("nil became an error")
	}
	other := errors.New("connection reset by peer")
	if err := HandshakeError(other); !errors.Is(err, other) || errors.Is(err, ErrUntrusted) || errors.Is(err, ErrNoCertificate) {
		t.Errorf("an error about something else became %v", err)
	}
	p := newPair(t)
	garbage := tls.Certificate{Certificate: [][]byte{{0x30, 0}}, PrivateKey: testKey(t, mesh.ECDSAP256, "leaf colorgateway"), Leaf: p.client.identity.Load().Certificate.Leaf}
	if o := connect(t, p.newServer(ServerOptions{}).Config(), p.stranger(tls.VersionTLS13, garbage)); !errors.Is(o.serverErr, ErrUntrusted) {
		t.Errorf("a certificate that does not parse: %v", o.serverErr)
	}
	mismatch := p.client.identity.Load().Certificate
	mismatch.PrivateKey = crypto.Signer(testKey(t, mesh.ECDSAP256, "leaf colorteller"))
	if o := connect(t, p.newServer(ServerOptions{}).Config(), p.stranger(tls.VersionTLS13, mismatch)); !errors.Is(o.serverErr, ErrUntrusted) {
		t.Errorf("a stolen certificate without its key: %v", o.serverErr)
	}
}
