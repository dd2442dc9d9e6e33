package mtls

import (
	"bytes"
	"crypto/fips140"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign.dev/mesh"
)

func TestGroups(t *testing.T) {
	if fips140.Enabled() {
		t.Skip("SKIPPED: TestEffectiveGroups is about FIPS 140-3 mode")
	}
	all, err := Groups(mesh.TLSGroups())
	if err != nil || len(all) != len(groupIDs) {
		t.Errorf("%v, %v", all, err)
	}
	for i, group := range all {
		name := mesh.TLSGroups()[i]
		if got, ok := groupName(group); !ok || got != name {
			t.Errorf("%s is %v, which is %s", name, group, got)
		}
	}
	byDefault, err := Groups(mesh.DefaultTLSGroups())
	if groups, failed := Groups(nil); !slices.Equal(groups, byDefault) || failed != nil || err != nil {
		t.Errorf("nil is %v, %v; want %v, %v", groups, failed, byDefault, err)
	}
	for name, list := range map[string][]mesh.TLSGroup{"empty": {}, "unknown": {mesh.X25519, "x448"}, "another spelling": {"X25519"}} {
		if groups, err := Groups(list); groups != nil || err == nil {
			t.Errorf("%s: %v, %v", name, groups, err)
		}
	}
}

// TestEffectiveGroups leaves out what FIPS 140-3 mode does not approve, and nothing else.
func TestEffectiveGroups(t *testing.T) {
	cases := map[string]struct {
		given []tls.CurveID
		fips  bool
		want  []tls.CurveID // nil: an error
	}{
		"the default":         {nil, false, []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384}},
		"the default in FIPS": {nil, true, []tls.CurveID{tls.X25519MLKEM768, tls.CurveP256, tls.CurveP384}},
		"some":                {[]tls.CurveID{tls.X25519, tls.CurveP521}, false, []tls.CurveID{tls.X25519, tls.CurveP521}},
		"some in FIPS":        {[]tls.CurveID{tls.X25519, tls.CurveP521}, true, []tls.CurveID{tls.CurveP521}},
		"none left":           {[]tls.CurveID{tls.X25519}, true, nil},
		"none":                {[]tls.CurveID{}, false, nil},
		"unknown":             {[]tls.CurveID{tls.X25519, 30}, false, nil},
	}
	for name, c := range cases {
		given := slices.Clone(c.given)
		if got, err := effectiveGroups(c.given, c.fips); !slices.Equal(got, c.want) || (err == nil) != (c.want != nil) || !slices.Equal(given, c.given) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, c.want)
		}
	}
}

// TestNegotiatedGroup connects ends that speak different key exchanges.
func TestNegotiatedGroup(t *testing.T) {
	p := newPair(t)
	const none = tls.CurveID(0) // no connection
	plain := tls.X25519
	if fips140.Enabled() {
		plain = tls.CurveP256
	}
	cases := map[string]struct {
		server, client []tls.CurveID
		want           map[uint16]tls.CurveID // by version
	}{
		"both by default":      {nil, nil, map[uint16]tls.CurveID{tls.VersionTLS12: plain, tls.VersionTLS13: tls.X25519MLKEM768}},
		"the server has none":  {[]tls.CurveID{tls.CurveP384}, nil, map[uint16]tls.CurveID{tls.VersionTLS12: tls.CurveP384, tls.VersionTLS13: tls.CurveP384}},
		"the client has none":  {nil, []tls.CurveID{tls.CurveP256}, map[uint16]tls.CurveID{tls.VersionTLS12: tls.CurveP256, tls.VersionTLS13: tls.CurveP256}},
		"hybrids alone":        {[]tls.CurveID{tls.X25519MLKEM768}, nil, map[uint16]tls.CurveID{tls.VersionTLS12: none, tls.VersionTLS13: tls.X25519MLKEM768}},
		"in a curious order":   {[]tls.CurveID{tls.CurveP256, tls.X25519MLKEM768}, nil, map[uint16]tls.CurveID{tls.VersionTLS12: tls.CurveP256, tls.VersionTLS13: tls.X25519MLKEM768}},
		"nothing in common":    {[]tls.CurveID{tls.CurveP256}, []tls.CurveID{tls.CurveP384}, map[uint16]tls.CurveID{tls.VersionTLS12: none, tls.VersionTLS13: none}},
		"not asked for, dear":  {nil, []tls.CurveID{tls.SecP384r1MLKEM1024, tls.CurveP521}, map[uint16]tls.CurveID{tls.VersionTLS12: none, tls.VersionTLS13: none}},
		"the dear ones wanted": {[]tls.CurveID{tls.SecP384r1MLKEM1024}, []tls.CurveID{tls.SecP384r1MLKEM1024, tls.CurveP521}, map[uint16]tls.CurveID{tls.VersionTLS12: none, tls.VersionTLS13: tls.SecP384r1MLKEM1024}},
	}
	for name, c := range cases {
		for version, want := range c.want {
			t.Run(name+" "+tls.VersionName(version), func(t *testing.T) {
				config := clientConfig(t, p.newClient(ClientOptions{Groups: c.client}))
				config.MaxVersion = version
				o := connect(t, p.newServer(ServerOptions{Groups: c.server}).Config(), config)
				if want == none {
					if o.serverErr == nil || o.clientErr == nil {
						t.Errorf("they agreed on %v", o.client.CurveID)
					}
					return
				}
				o.ok(t)
				if o.client.CurveID != want || o.server.CurveID != want {
					t.Errorf("client: %v, server: %v; want %v", o.client.CurveID, o.server.CurveID, want)
				}
			})
		}
	}
}

// TestGroupsEndSessions changes a listener's key exchanges, which makes another Server of it: a client
// that keeps its session has to exchange keys anew.
func TestGroupsEndSessions(t *testing.T) {
	forVersions(t, func(t *testing.T, version uint16) {
		p := newPair(t)
		before, after := p.newServer(ServerOptions{}), p.newServer(ServerOptions{Groups: []tls.CurveID{tls.CurveP384}})
		client := p.stranger(version, p.client.identity.Load().Certificate)
		connect(t, before.Config(), client).ok(t)
		if o := connect(t, before.Config(), client); !o.server.DidResume {
			t.Fatalf("not resumed, though nothing had changed: %v, %v", o.clientErr, o.serverErr)
		}
		o := connect(t, after.Config(), client)
		o.ok(t)
		if o.server.DidResume || o.server.CurveID != tls.CurveP384 {
			t.Errorf("resumed: %t; by %v, want %v", o.server.DidResume, o.server.CurveID, tls.CurveP384)
		}
	})
}

// TestNoGroupsToObey makes configurations that must not connect anybody.
func TestNoGroupsToObey(t *testing.T) {
	p := newPair(t)
	for name, groups := range map[string][]tls.CurveID{"none": {}, "unknown": {30}} {
		if o := connect(t, p.newServer(ServerOptions{Groups: groups}).Config(), clientConfig(t, p.newClient(ClientOptions{}))); o.serverErr == nil || o.clientErr == nil {
			t.Errorf("%s: a server with it took a connection", name)
		} else if !strings.Contains(o.serverErr.Error(), "key exchange") {
			t.Errorf("%s: %v", name, o.serverErr)
		}
		if config, err := p.newClient(ClientOptions{Groups: groups}).Config(); err == nil || config != nil {
			t.Errorf("%s: a client with it has a configuration", name)
		}
	}
}

// TestAES128First offers AES-256 before AES-128, as OpenSSL does, and expects AES-128 in both versions;
// and ChaCha20 first, as a client without AES in hardware does, which is respected.
func TestAES128First(t *testing.T) {
	p := newPair(t)
	server := p.newServer(ServerOptions{}).Config()
	cases := map[string]struct {
		version     uint16
		first, want uint16
	}{
		"TLS 1.3, AES-256 first":  {tls.VersionTLS13, tls.TLS_AES_256_GCM_SHA384, tls.TLS_AES_128_GCM_SHA256},
		"TLS 1.2, AES-256 first":  {tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256},
		"TLS 1.3, ChaCha20 first": {tls.VersionTLS13, tls.TLS_CHACHA20_POLY1305_SHA256, tls.TLS_CHACHA20_POLY1305_SHA256},
		"TLS 1.2, ChaCha20 first": {tls.VersionTLS12, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if fips140.Enabled() && strings.Contains(name, "ChaCha20") {
				t.Skip("SKIPPED: in FIPS 140-3 mode nobody speaks it")
			}
			config := clientConfig(t, p.newClient(ClientOptions{}))
			config.MaxVersion = c.version
			hello := clientHello(t, config)
			suites := suitesOf(t, hello)
			if preferred := binary.BigEndian.Uint16(suites); preferred == tls.TLS_CHACHA20_POLY1305_SHA256 || preferred == tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 {
				t.Skip("SKIPPED: this processor has no AES, and crypto/tls prefers ChaCha20")
			}
			moveFirst(t, suites, c.first)
			if got := chosenSuite(t, server, hello); got != c.want {
				t.Errorf("%s was chosen, want %s", tls.CipherSuiteName(got), tls.CipherSuiteName(c.want))
			}
		})
	}
}

// clientHello is the record in which a client sends its ClientHello.
func clientHello(t *testing.T, config *tls.Config) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer far.Close()
	go func() { _ = tls.Client(near, config).HandshakeContext(t.Context()) }()
	return readRecord(t, far)
}

func readRecord(t *testing.T, conn net.Conn) []byte {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	record := make([]byte, 5)
	if _, err := io.ReadFull(conn, record); err != nil {
		t.Fatal(err)
	}
	record = append(record, make([]byte, binary.BigEndian.Uint16(record[3:]))...)
	if _, err := io.ReadFull(conn, record[5:]); err != nil {
		t.Fatal(err)
	}
	return record
}

// afterSession is what follows the session ID in the record of a ClientHello or ServerHello.
func afterSession(t *testing.T, record []byte) []byte {
	t.Helper()
	const session = 5 + 4 + 2 + 32 // record, message, version, random
	if record[0] != 22 || len(record) < session+1+int(record[session])+2 {
		t.Fatalf("not a hello: %x", record)
	}
	return record[session+1+int(record[session]):]
}

// suitesOf is the list of cipher suites within the record of a ClientHello.
func suitesOf(t *testing.T, hello []byte) []byte {
	t.Helper()
	list := afterSession(t, hello)
	return list[2 : 2+binary.BigEndian.Uint16(list)]
}

// moveFirst changes a list of cipher suites in place.
func moveFirst(t *testing.T, suites []byte, suite uint16) {
	t.Helper()
	wanted := binary.BigEndian.AppendUint16(nil, suite)
	for i := 0; i < len(suites); i += 2 {
		if bytes.Equal(suites[i:i+2], wanted) {
			copy(suites[2:i+2], suites[:i])
			copy(suites, wanted)
			return
		}
	}
	t.Fatalf("%s is not offered", tls.CipherSuiteName(suite))
}

// chosenSuite is what a server's ServerHello answers.
func chosenSuite(t *testing.T, server *tls.Config, hello []byte) uint16 {
	t.Helper()
	near, far := net.Pipe()
	var end sync.WaitGroup
	defer end.Wait()
	defer far.Close()
	end.Go(func() {
		defer near.Close()
		if err := tls.Server(near, server).HandshakeContext(t.Context()); err == nil || errors.Is(err, ErrUntrusted) {
			t.Errorf("the handshake went on to its end: %v", err)
		}
	})
	if _, err := far.Write(hello); err != nil {
		t.Fatal(err)
	}
	return binary.BigEndian.Uint16(afterSession(t, readRecord(t, far)))
}
