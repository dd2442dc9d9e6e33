package server

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/mtls"
)

func TestSocket(t *testing.T) {
	f := newFixture(t, colorapp)
	f.cfg.Socket = filepath.Join(f.dir, "new", "s.sock")
	r := f.start()
	for path, want := range map[string]os.FileMode{f.cfg.Socket: 0o600, filepath.Dir(f.cfg.Socket): 0o700} {
		if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
	other := newFixture(t, colorapp)
	other.cfg.Socket = f.cfg.Socket
	other.refuses(ErrListen)
	if _, err := r.admin.CA(t.Context()); err != nil {
		t.Errorf("the server that had the socket does not answer any more: %v", err)
	}
	r.stop()
	if _, err := os.Lstat(f.cfg.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	if _, err := r.admin.CA(t.Context()); !errors.Is(err, api.ErrNoServer) || !strings.Contains(err.Error(), f.cfg.Socket) {
		t.Errorf("%v, want ErrNoServer that names the socket", err)
	}
	f.cfg.Socket = filepath.Join(f.dir, strings.Repeat("x", maxSocketPath))
	f.refuses(ErrListen)
	f.cfg.Socket = f.cfg.Mesh // a file
	f.refuses(ErrListen)
	if _, err := os.Stat(f.cfg.Mesh); err != nil {
		t.Errorf("the file that was there is gone: %v", err)
	}
}

// TestStaleSocket leaves a socket that nobody listens on, as kill -9 does.
func TestStaleSocket(t *testing.T) {
	f := newFixture(t, colorapp)
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(f.cfg.State, "server.sock")})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	r := f.start()
	if _, err := r.admin.CA(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestSilentConnections opens more connections than strangers may have: the oldest are closed, and
// somebody who speaks is served, over a connection that stays.
func TestSilentConnections(t *testing.T) {
	r := newFixture(t, colorapp).start()
	address := r.address.String()
	w := r.joinAs("colorgateway", "colorgateway-1").watch(0)
	w.plan("at once", anyPlan)
	const extra = 50
	conns := make([]net.Conn, 0, maxStrangers+extra)
	defer func() {
		for _, conn := range conns {
			conn.Close()
		}
	}()
	for range maxStrangers + extra {
		conn, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	p := r.joinAs("colorteller", "colorteller-1")
	if err := p.renew(); err != nil {
		t.Error(err)
	}
	w.next()
	for i, conn := range conns[:extra] {
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("connection %d is open: %v", i, err)
		}
	}
}

func TestConnectionsAreCounted(t *testing.T) {
	c := newConnections()
	open := func() net.Conn {
		client, server := net.Pipe()
		t.Cleanup(func() { client.Close(); server.Close() })
		c.observe(server, http.StateNew)
		return server
	}
	member := open()
	c.known(c.remember(t.Context(), member))
	c.known(t.Context()) // of another listener
	first := open()
	for range maxStrangers {
		open()
	}
	if c.strangers.Len() != maxStrangers || c.places[first] != nil || len(c.places) != maxStrangers {
		t.Errorf("%d strangers, %d places", c.strangers.Len(), len(c.places))
	}
	if _, err := first.Write([]byte("x")); err == nil {
		t.Error("the oldest stranger's connection is open")
	}
	c.observe(first, http.StateClosed)
	c.observe(member, http.StateIdle)
	c.observe(member, http.StateClosed)
	if c.all != maxStrangers {
		t.Errorf("%d are counted, want %d", c.all, maxStrangers)
	}
}

// TestServersOwnCertificate looks at what a client sees, and waits until it is renewed.
func TestServersOwnCertificate(t *testing.T) {
	f := newFixture(t, colorapp)
	f.cfg.Names = []string{"control.example.com"}
	f.cfg.timing.leafTTL = 2 * time.Second
	r := f.start()
	look := func() tls.ConnectionState {
		t.Helper()
		conn, err := tls.Dial("tcp", r.address.String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState()
	}
	state := look()
	chain := state.PeerCertificates
	if len(chain) != 3 || mtls.Pin(chain[2]) != r.Info().CAPin {
		t.Fatalf("%d certificates, want leaf, issuer and root", len(chain))
	}
	leaf := chain[0]
	if got := leaf.URIs[0].String(); got != "spiffe://colorapp.internal/server/countersign" {
		t.Errorf("identity %s", got)
	}
	for _, name := range []string{"127.0.0.1", "control.example.com", "countersign.colorapp.internal"} {
		if err := leaf.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "a renewal", func() bool { return mtls.Serial(look().PeerCertificates[0]) != mtls.Serial(leaf) })
	if conn, err := tls.Dial("tcp", r.address.String(), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}); err == nil {
		conn.Close()
		t.Error("TLS 1.1 is spoken")
	}
}

func TestSubjectAddresses(t *testing.T) {
	for listen, want := range map[string]string{"127.0.0.1": "127.0.0.1", "::ffff:10.0.0.1": "10.0.0.1", "::1": "::1"} {
		if got, err := subjectAddresses(netip.MustParseAddr(listen)); err != nil || len(got) != 1 || got[0].String() != want {
			t.Errorf("%s: %v, %v, want %s", listen, got, err, want)
		}
	}
	got, err := subjectAddresses(netip.MustParseAddr("0.0.0.0"))
	if err != nil || len(got) == 0 {
		t.Errorf("the wildcard: %v, %v", got, err)
	}
	for _, ip := range got {
		if ip.IsUnspecified() {
			t.Error("the certificate would name the wildcard")
		}
	}
}

func TestLimiter(t *testing.T) {
	var l limiter
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	peer := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
	for i := range refusalsPerPeer {
		if _, ok := l.allow(peer(1), now); !ok {
			t.Fatalf("refusal %d is not recorded", i)
		}
	}
	for range 3 {
		if _, ok := l.allow(peer(1), now); ok {
			t.Error("one too many is recorded")
		}
	}
	if suppressed, ok := l.allow(peer(2), now); !ok || suppressed != 3 {
		t.Errorf("another address: %v, %d suppressed, want 3", ok, suppressed)
	}
	if _, ok := l.allow(peer(1), now.Add(refusalsPerPeerIn)); !ok {
		t.Error("after a while it is not recorded again")
	}
	allowed := 0
	for i := range 3 * maxPeers {
		if _, ok := l.allow(peer(100+i), now.Add(refusalsPerPeerIn)); ok {
			allowed++
		}
		if len(l.peers) > maxPeers {
			t.Fatalf("%d addresses are remembered", len(l.peers))
		}
	}
	if allowed > refusals {
		t.Errorf("%d refusals from many addresses are recorded at once", allowed)
	}
}
