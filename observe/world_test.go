package observe

import (
	"bufio"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// testCA issues whatever a test needs, bad certificates among it.
type testCA struct {
	t    testing.TB
	cert *x509.Certificate
	key  crypto.Signer
}

func newTestCA(t testing.TB) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root", Organization: []string{"test.internal"}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		SubjectKeyId: []byte{1, 2, 3},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testCA{t, cert, key}
}

// leaf issues a certificate of the declared form for who; change may spoil it.
func (ca *testCA) leaf(who id.ID, change func(*x509.Certificate)) tls.Certificate {
	ca.t.Helper()
	return ca.leafWithKey(who, change, ecdsaKey(ca.t, elliptic.P256()))
}

func (ca *testCA) leafWithKey(who id.ID, change func(*x509.Certificate), key crypto.Signer) tls.Certificate {
	ca.t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		ca.t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: who.Name()}, URIs: []*url.URL{who.URL()}, DNSNames: []string{who.Name(), who.ServerName()},
		NotBefore: now.Add(-clockAllowance), NotAfter: now.Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: cert}
}

func ecdsaKey(t testing.TB, curve elliptic.Curve) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (ca *testCA) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}

func mustID(t testing.TB, kind id.Kind, name string) id.ID {
	t.Helper()
	made, err := id.New("test.internal", kind, name)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// sidecar is an endpoint as it should be; tests spoil one field each.
type sidecar struct {
	config   *tls.Config // nil: no TLS
	plain    bool        // serves plaintext as well as TLS
	protocol mesh.Protocol
	allowed  func(peer *x509.Certificate) bool
}

// good is a sidecar of service "callee" that keeps all its promises.
func (ca *testCA) good(protocol mesh.Protocol) *sidecar {
	leaf := ca.leaf(mustID(ca.t, id.Service, "callee"), nil)
	return &sidecar{
		protocol: protocol,
		config: &tls.Config{
			Certificates: []tls.Certificate{leaf}, MinVersion: tls.VersionTLS12, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: ca.pool(), NextProtos: protocols(protocol),
			CipherSuites:     []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384},
			CurvePreferences: []tls.CurveID{tls.X25519MLKEM768, tls.X25519, tls.CurveP256, tls.CurveP384},
		},
		allowed: func(peer *x509.Certificate) bool {
			return peer != nil && peer.URIs[0].Path == "/service/caller"
		},
	}
}

// start serves until the test ends and returns the address.
func (s *sidecar) start(t testing.TB) string {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[conn] = true
			mu.Unlock()
			running.Go(func() {
				s.serve(conn)
				conn.Close()
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		mu.Lock()
		for conn := range open {
			conn.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return listener.Addr().String()
}

func (s *sidecar) serve(raw net.Conn) {
	in := bufio.NewReader(raw)
	first, err := in.Peek(1)
	if err != nil {
		return
	}
	conn := net.Conn(&peeked{raw, in})
	if s.config == nil || s.plain && first[0] != 22 {
		s.application(conn, nil, "")
		return
	}
	secured := tls.Server(conn, s.config)
	if err := secured.HandshakeContext(context.Background()); err != nil {
		return
	}
	defer secured.Close()
	var peer *x509.Certificate
	if certs := secured.ConnectionState().PeerCertificates; len(certs) > 0 {
		peer = certs[0]
	}
	s.application(secured, peer, secured.ConnectionState().NegotiatedProtocol)
}

// application answers 200 to those that are allowed.
func (s *sidecar) application(conn net.Conn, peer *x509.Certificate, alpn string) {
	ok := s.allowed(peer)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case ok:
			w.WriteHeader(http.StatusOK)
		case s.protocol == mesh.GRPC:
			w.Header().Set("Content-Type", "application/grpc")
			w.Header().Set("Grpc-Status", "7")
			w.WriteHeader(http.StatusOK)
		default:
			w.WriteHeader(http.StatusForbidden)
		}
		_ = r
	})
	switch {
	case s.protocol == mesh.TCP && ok:
		_, _ = io.Copy(conn, conn)
	case s.protocol == mesh.TCP:
	case alpn == "h2" || s.protocol != mesh.HTTP:
		serveHTTP2(conn, handler)
	default:
		if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
			return
		}
		status := http.StatusForbidden
		if ok {
			status = http.StatusOK
		}
		fmt.Fprintf(conn, "HTTP/1.1 %d x\r\nContent-Length: 0\r\n\r\n", status)
	}
}

// serveHTTP2 serves one connection, on which TLS has been taken off already.
func serveHTTP2(conn net.Conn, handler http.Handler) {
	one := &oneConn{Conn: conn, done: make(chan struct{})}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Handler: handler, Protocols: &protocols, ReadHeaderTimeout: time.Minute,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo),
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateClosed || state == http.StateHijacked {
				one.once.Do(func() { close(one.done) })
			}
		},
	}
	_ = server.Serve(one) // ends with the connection
}

// oneConn is a listener that accepts the one connection that it is.
type oneConn struct {
	net.Conn
	given bool
	once  sync.Once
	done  chan struct{}
}

func (o *oneConn) Accept() (net.Conn, error) {
	if !o.given {
		o.given = true
		return struct{ net.Conn }{o.Conn}, nil
	}
	<-o.done
	return nil, net.ErrClosed
}

func (o *oneConn) Close() error   { return nil }
func (o *oneConn) Addr() net.Addr { return o.LocalAddr() }

type peeked struct {
	net.Conn
	in *bufio.Reader
}

func (p *peeked) Read(b []byte) (int, error) { return p.in.Read(b) }

// target declares a strict listener of "callee" at an address.
func target(t testing.TB, protocol mesh.Protocol, address string, serving *sidecar) Target {
	t.Helper()
	callee := mustID(t, id.Service, "callee")
	made := Target{
		Workload: mesh.Workload{Name: "callee", Kind: id.Service, Identity: callee}, Instance: "callee-1", Address: address,
		Inbound: mesh.Inbound{
			Name: "0.0.0.0_9080", Port: 9080, Protocol: protocol, App: 9080, TLS: mesh.Strict, ClientAuth: mesh.Require, MinTLS: mesh.TLS12,
			Rules: []mesh.Rule{{From: []string{mustID(t, id.Service, "caller").String()}}},
		},
		Certificate: mesh.CertificatePlan{Identity: callee, DNSNames: []string{"callee", "callee.test.internal"}, TTL: mesh.Duration(time.Hour), Key: mesh.ECDSAP256},
	}
	if serving != nil && serving.config != nil {
		made.Serial = mtls.Serial(serving.config.Certificates[0].Leaf)
	}
	return made
}

// observer goes out with certificates of ca.
func (ca *testCA) observer(change func(*Config)) *Observer {
	ca.t.Helper()
	who := mustID(ca.t, id.Probe, "verify")
	expired := ca.leaf(who, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-2 * time.Second) })
	config := Config{Roots: []*x509.Certificate{ca.cert}, Probe: ca.leaf(who, nil), Expired: &expired, Timeout: 2 * time.Second}
	if change != nil {
		change(&config)
	}
	o, err := New(config)
	if err != nil {
		ca.t.Fatal(err)
	}
	return o
}
