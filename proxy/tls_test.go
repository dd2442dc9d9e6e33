package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// single is one service with an application that counts what reaches it.
type single struct {
	*node
	reached atomic.Int64
	in      mesh.Inbound
}

// newSingle serves one port as change makes it from a strict one that admits "front" and "any".
func newSingle(t *testing.T, protocol mesh.Protocol, change func(*mesh.Inbound)) *single {
	t.Helper()
	s := &single{}
	address := ""
	if protocol == mesh.TCP {
		address = serveTCPApp(t, func(c *net.TCPConn) {
			s.reached.Add(1)
			echo(c, c)
		})
	} else {
		address = serveApp(t, protocol != mesh.HTTP, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.reached.Add(1)
			w.Write([]byte("hello"))
		}))
	}
	s.node = newNode(t, newAuthority(t), id.Service, "back", map[int]string{9080: address})
	s.in = inboundPort(9080, protocol, identityOf(t, id.Service, "front").String())
	change(&s.in)
	plan := s.plan()
	plan.Inbound = []mesh.Inbound{s.in}
	s.apply(plan)
	return s
}

// serveTCPApp runs an application of bytes.
func serveTCPApp(t testing.TB, serve func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c.(*net.TCPConn))
			}()
		}
	}()
	return l.Addr().String()
}

// handshakeAndRead shakes hands and reads a byte, for in TLS 1.3 a refusal comes only then.
func handshakeAndRead(t *testing.T, address string, config *tls.Config, request string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, request); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	return line, err
}

const getRequest = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"

func TestWhoIsRefusedAtTheHandshake(t *testing.T) {
	for _, protocol := range []mesh.Protocol{mesh.HTTP, mesh.TCP} {
		t.Run(string(protocol), func(t *testing.T) {
			s := newSingle(t, protocol, func(*mesh.Inbound) {})
			stranger := newAuthority(t)
			base := func() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }
			with := func(identity *mtls.Identity) *tls.Config {
				config := base()
				config.Certificates = []tls.Certificate{identity.Certificate}
				return config
			}
			old := base()
			old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
			cbc := with(s.ca.issue(id.Service, "front", time.Hour))
			cbc.MaxVersion, cbc.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
			noID := s.ca.issue(id.Service, "front", time.Hour)
			noID.Certificate = withoutURI(t, s.ca)
			tests := []struct {
				name    string
				config  *tls.Config
				counter string
			}{
				{"no certificate", base(), "fail_verify_no_cert"},
				{"another CA", with(stranger.issue(id.Service, "front", time.Hour)), "fail_verify_error"},
				{"expired", with(s.ca.issue(id.Service, "front", -time.Second)), "fail_verify_error"},
				{"no SPIFFE ID", with(noID), "fail_verify_error"},
				{"TLS 1.1", old, "connection_error"},
				{"a cipher without AEAD", cbc, "connection_error"},
			}
			for _, tt := range tests {
				t.Run(tt.name, func(t *testing.T) {
					counter := "listener.0.0.0.0_9080.ssl." + tt.counter
					before := s.stat(counter)
					if line, err := handshakeAndRead(t, s.inboundAddress(9080), tt.config, getRequest); err == nil || line != "" {
						t.Errorf("answered %q, %v", line, err)
					}
					eventually(t, tt.counter, func() bool { return s.stat(counter) == before+1 })
				})
			}
			if n := s.reached.Load(); n != 0 {
				t.Errorf("the application was reached %d times", n)
			}
			if n := s.stat("listener.0.0.0.0_9080.ssl.handshake"); n != 0 {
				t.Errorf("%d handshakes are counted", n)
			}
			// The positive control.
			if line, err := handshakeAndRead(t, s.inboundAddress(9080), mutual(t, s.ca.issue(id.Service, "front", time.Hour), s.node), getRequest); err != nil {
				t.Errorf("the caller that is allowed gets %q, %v", line, err)
			}
		})
	}
}

// withoutURI is a certificate of the CA that names nobody.
func withoutURI(t *testing.T, ca *authority) tls.Certificate {
	t.Helper()
	identity := ca.issue(id.Service, "x", time.Hour)
	template := *identity.Certificate.Leaf
	template.URIs, template.Extensions, template.ExtraExtensions = nil, nil, nil
	der, err := x509.CreateCertificate(nil, &template, ca.root, template.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	identity.Certificate.Certificate = [][]byte{der}
	return identity.Certificate
}

func TestPlaintextOnStrict(t *testing.T) {
	for _, protocol := range []mesh.Protocol{mesh.HTTP, mesh.TCP} {
		s := newSingle(t, protocol, func(*mesh.Inbound) {})
		c, err := net.Dial("tcp", s.inboundAddress(9080))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		send(t, c, getRequest)
		if got, err := io.ReadAll(c); len(got) > 0 && got[0] != 0x15 { // an alert is no byte of the application
			t.Errorf("%s: answered %q, %v", protocol, got, err)
		}
		if n := s.reached.Load(); n != 0 {
			t.Errorf("%s: the application was reached", protocol)
		}
		eventually(t, "connection_error", func() bool { return s.stat("listener.0.0.0.0_9080.ssl.connection_error") == 1 })
	}
}

func TestTLSOnOff(t *testing.T) {
	s := newSingle(t, mesh.HTTP, func(in *mesh.Inbound) {
		in.TLS, in.Rules = mesh.Off, []mesh.Rule{{From: []string{mesh.FromAnonymous}}}
	})
	if line, err := handshakeAndRead(t, s.inboundAddress(9080), mutual(t, nil, s.node), getRequest); err == nil {
		t.Errorf("answered %q", line)
	}
	eventually(t, "connection_error", func() bool { return s.stat("listener.0.0.0.0_9080.ssl.connection_error") == 1 })
	got := do(t, clientFor(t, false), newRequest(t, "GET", "http://"+s.inboundAddress(9080), nil))
	if got.body != "hello" {
		t.Errorf("plaintext: %+v", got)
	}
	if n := s.stat("listener.0.0.0.0_9080.plaintext_cx_total"); n != 1 {
		t.Errorf("%d plaintext connections", n)
	}
}

// TestOneWay is the one-way example: after one request one handshake, and no certificate.
func TestOneWay(t *testing.T) {
	for _, auth := range []mesh.ClientAuth{mesh.None, mesh.Optional} {
		s := newSingle(t, mesh.HTTP, func(in *mesh.Inbound) {
			in.ClientAuth, in.Rules = auth, []mesh.Rule{{From: []string{mesh.FromAnonymous}}}
		})
		if got := do(t, tlsClient(t, mutual(t, nil, s.node, "h2"), true), newRequest(t, "GET", "https://"+s.inboundAddress(9080), nil)); got.body != "hello" {
			t.Errorf("%s: %+v", auth, got)
		}
		for name, want := range map[string]int64{
			"ssl.handshake": 1, "ssl.no_certificate": 1, "ssl.versions.TLSv1.3": 1, "downstream_cx_total": 1, "downstream_cx_active": 1,
			"ssl.session_reused": 0, "ssl.fail_verify_no_cert": 0,
		} {
			if got := s.stat("listener.0.0.0.0_9080." + name); got != want {
				t.Errorf("%s: %s: %d, want %d", auth, name, got, want)
			}
		}
	}
}

func TestOptionalTakesOnlyGoodCertificates(t *testing.T) {
	s := newSingle(t, mesh.HTTP, func(in *mesh.Inbound) { in.ClientAuth = mesh.Optional })
	bad := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{newAuthority(t).issue(id.Service, "front", time.Hour).Certificate}}
	if line, err := handshakeAndRead(t, s.inboundAddress(9080), bad, getRequest); err == nil {
		t.Errorf("answered %q", line)
	}
	// Without a certificate the caller is anonymous, whom no rule admits here.
	line, err := handshakeAndRead(t, s.inboundAddress(9080), &tls.Config{InsecureSkipVerify: true}, getRequest)
	if err != nil || line != "HTTP/1.1 403 Forbidden\r\n" {
		t.Errorf("anonymous: %q, %v", line, err)
	}
	if n := s.reached.Load(); n != 0 {
		t.Errorf("the application was reached %d times", n)
	}
}

func TestMinTLS(t *testing.T) {
	s := newSingle(t, mesh.HTTP, func(in *mesh.Inbound) { in.MinTLS = mesh.TLS13 })
	config := mutual(t, s.ca.issue(id.Service, "front", time.Hour), s.node, "http/1.1")
	config.MaxVersion = tls.VersionTLS12
	if line, err := handshakeAndRead(t, s.inboundAddress(9080), config, getRequest); err == nil {
		t.Errorf("TLS 1.2: answered %q", line)
	}
	lower := s.plan()
	s.in.MinTLS = mesh.TLS12
	lower.Inbound = []mesh.Inbound{s.in}
	s.apply(lower)
	if line, err := handshakeAndRead(t, s.inboundAddress(9080), config, getRequest); err != nil || line != "HTTP/1.1 200 OK\r\n" {
		t.Errorf("TLS 1.2 where it may be: %q, %v", line, err)
	}
	if n := s.stat("listener.0.0.0.0_9080.ssl.ciphers.ECDHE-ECDSA-AES128-GCM-SHA256"); n != 1 {
		t.Errorf("cipher counted %d times", n)
	}
}

func TestPermissiveHTTP(t *testing.T) {
	s := newSingle(t, mesh.HTTP, func(in *mesh.Inbound) {
		in.TLS = mesh.Permissive
		in.Rules[0].From = append(in.Rules[0].From, mesh.FromAnonymous)
	})
	for _, h2 := range []bool{false, true} {
		if got := do(t, clientFor(t, h2), newRequest(t, "GET", "http://"+s.inboundAddress(9080), nil)); got.body != "hello" {
			t.Errorf("plaintext: %+v", got)
		}
	}
	config := mutual(t, s.ca.issue(id.Service, "front", time.Hour), s.node, "http/1.1")
	if line, err := handshakeAndRead(t, s.inboundAddress(9080), config, getRequest); err != nil || line != "HTTP/1.1 200 OK\r\n" {
		t.Errorf("TLS: %q, %v", line, err)
	}
	if n := s.stat("listener.0.0.0.0_9080.plaintext_cx_total"); n != 2 {
		t.Errorf("%d plaintext connections, want 2", n)
	}
	if n := s.Report().PlaintextCallers["127.0.0.1"]; n != 2 {
		t.Errorf("%d plaintext connections are reported, want 2", n)
	}
	if serial := s.Report().Callers["spiffe://shop.internal/service/front"].Serial; serial == "" {
		t.Error("the caller's serial is not reported")
	}
}

// TestPermissiveTCP checks a protocol in which the server speaks first, of which nothing can be sniffed.
func TestPermissiveTCP(t *testing.T) {
	greet := serveTCPApp(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "220 hello\n")
		echo(c, c)
	})
	n := newNode(t, newAuthority(t), id.Service, "back", map[int]string{9080: greet})
	in := inboundPort(9080, mesh.TCP, identityOf(t, id.Service, "front").String(), mesh.FromAnonymous)
	in.TLS = mesh.Permissive
	plan := n.plan()
	plan.Inbound = []mesh.Inbound{in}
	n.apply(plan)
	for name, first := range map[string]string{"the server first": "", "the client first": "hi\n"} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", n.inboundAddress(9080))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(20 * time.Second))
			send(t, c, first)
			reader := bufio.NewReader(c)
			if line, err := reader.ReadString('\n'); err != nil || line != "220 hello\n" {
				t.Fatalf("%q, %v", line, err)
			}
			send(t, c, "more\n")
			for _, want := range strings.SplitAfter(first+"more\n", "\n") {
				if want == "" {
					continue
				}
				if line, err := reader.ReadString('\n'); err != nil || line != want {
					t.Errorf("%q, %v; want %q", line, err, want)
				}
			}
		})
	}
	config := mutual(t, n.ca.issue(id.Service, "front", time.Hour), n)
	if line, err := handshakeAndRead(t, n.inboundAddress(9080), config, ""); err != nil || line != "220 hello\n" {
		t.Errorf("TLS: %q, %v", line, err)
	}
}

// TestSilentConnections opens many that never speak: they cost little, and others are served.
func TestSilentConnections(t *testing.T) {
	s := &single{node: newNode(t, newAuthority(t), id.Service, "back", map[int]string{9080: echoApp(t, false)})}
	s.handshakePatience = 5 * time.Second
	plan := s.plan()
	plan.Inbound = []mesh.Inbound{inboundPort(9080, mesh.HTTP, mesh.FromAny)}
	s.apply(plan)
	var silent []net.Conn
	defer func() {
		for _, c := range silent {
			c.Close()
		}
	}()
	for range 500 {
		c, err := net.Dial("tcp", s.inboundAddress(9080))
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, c)
	}
	config := mutual(t, s.ca.issue(id.Service, "front", time.Hour), s.node, "http/1.1")
	if line, err := handshakeAndRead(t, s.inboundAddress(9080), config, getRequest); err != nil || line != "HTTP/1.1 200 OK\r\n" {
		t.Errorf("%q, %v", line, err)
	}
	// Each is closed when the time for a handshake is over.
	silent[0].SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := silent[0].Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error %v, want the end", err)
	}
	eventually(t, "all are closed", func() bool { return s.stat("listener.0.0.0.0_9080.downstream_cx_active") == 0 })
}

func TestNoIdentity(t *testing.T) {
	s := newSingle(t, mesh.HTTP, func(*mesh.Inbound) {})
	identity := s.source.identity.Swap(nil)
	config := mutual(t, identity, s.node2(identity), "http/1.1")
	if line, err := handshakeAndRead(t, s.inboundAddress(9080), config, getRequest); err == nil {
		t.Errorf("without an identity: answered %q", line)
	}
}

// node2 is the node as a callee whose identity is known though it does not hold it.
func (s *single) node2(identity *mtls.Identity) *node {
	n := &node{id: s.id, source: new(testSource)}
	n.source.identity.Store(identity)
	return n
}

func tlsDial(t testing.TB, address string, config *tls.Config) *tls.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*tls.Conn)
}

// TestPlaintextToStrict checks that a client which speaks no TLS is told so, by an alert and nothing of
// the application.
func TestPlaintextToStrict(t *testing.T) {
	for _, protocol := range []mesh.Protocol{mesh.HTTP, mesh.TCP} {
		n := newNode(t, newAuthority(t), id.Service, "back", map[int]string{9080: "127.0.0.1:1"})
		plan := n.plan()
		plan.Inbound = []mesh.Inbound{inboundPort(9080, protocol, mesh.FromAny)}
		n.apply(plan)
		c, err := net.Dial("tcp", n.inboundAddress(9080))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		send(t, c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		got, err := io.ReadAll(c)
		if want := "\x15\x03\x01\x00\x02\x02\x0a"; string(got) != want || err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %q, %v; want the alert %q", protocol, got, err, want)
		}
	}
}
