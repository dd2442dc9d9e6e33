package proxy

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// portable chooses the driver of the proxies under test.
var portable bool

// TestMain runs every test on each driver that the system has.
func TestMain(m *testing.M) {
	code := m.Run()
	if runtime.GOOS == "linux" && code == 0 {
		portable = true
		fmt.Println("the same on the portable driver:")
		code = m.Run()
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

const trustDomain = "shop.internal"

// authority is a CA in memory.
type authority struct {
	t      testing.TB
	root   *x509.Certificate
	key    *ecdsa.PrivateKey
	serial atomic.Int64
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t}
	a.serial.Store(0x1000)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	a.root, a.key = a.sign(template, template, key, key), key
	return a
}

func (a *authority) sign(template, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) *x509.Certificate {
	a.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert
}

func identityOf(t testing.TB, kind id.Kind, name string) id.ID {
	t.Helper()
	i, err := id.New(trustDomain, kind, name)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// issue makes an identity that is valid for ttl.
func (a *authority) issue(kind id.Kind, name string, ttl time.Duration) *mtls.Identity {
	a.t.Helper()
	own := identityOf(a.t, kind, name)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(a.serial.Add(1)),
		Subject:      pkix.Name{CommonName: name, OrganizationalUnit: []string{string(kind)}, Organization: []string{trustDomain}},
		NotBefore:    time.Now().Add(-time.Minute), NotAfter: time.Now().Add(ttl),
		DNSNames: []string{name, own.ServerName()}, URIs: []*url.URL{own.URL()},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.root, key, a.key)
	bundle, err := mtls.NewBundle(trustDomain, []*x509.Certificate{a.root})
	if err != nil {
		a.t.Fatal(err)
	}
	return &mtls.Identity{ID: own, Bundle: bundle, Certificate: tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}}
}

// testSource is a mtls.Source whose identity can be replaced.
type testSource struct {
	identity atomic.Pointer[mtls.Identity]
}

func (s *testSource) Identity() (*mtls.Identity, error) {
	if identity := s.identity.Load(); identity != nil {
		return identity, nil
	}
	return nil, mtls.ErrNoIdentity
}

// node is a proxy under test with what belongs to it.
type node struct {
	*Proxy
	t      testing.TB
	ca     *authority
	id     id.ID
	source *testSource
	log    *syncBuffer
	access *syncBuffer
	binds  map[string]string
}

// syncBuffer is a bytes.Buffer for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// entries are the lines of an access log.
func (s *syncBuffer) entries(t testing.TB) []accessEntry {
	t.Helper()
	var entries []accessEntry
	for line := range strings.Lines(s.String()) {
		var e accessEntry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Errorf("access log line %q: %v", line, err)
		}
		entries = append(entries, e)
	}
	return entries
}

type option func(*Config)

// newNode makes a proxy of a workload that applies no Plan yet. All its listeners are bound to free
// ports of 127.0.0.1; app maps the application's ports to where it is.
func newNode(t testing.TB, ca *authority, kind id.Kind, name string, app map[int]string, options ...option) *node {
	t.Helper()
	n := &node{t: t, ca: ca, id: identityOf(t, kind, name), source: new(testSource), log: new(syncBuffer), access: new(syncBuffer), binds: map[string]string{}}
	n.source.identity.Store(ca.issue(kind, name, time.Hour))
	for port := range 65536 {
		if port == 8080 || port >= 9000 && port < 9200 {
			n.binds["inbound/"+strconv.Itoa(port)] = "127.0.0.1:0"
			n.binds["outbound/"+strconv.Itoa(port)] = "127.0.0.1:0"
		}
	}
	for port, address := range app {
		n.binds["app/"+strconv.Itoa(port)] = address
	}
	cfg := Config{
		Source: n.source, Address: netip.MustParseAddr("127.0.0.1"), Instance: name + "-1", Binds: n.binds, Portable: portable,
		AccessLog: n.access, Log: slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, o := range options {
		o(&cfg)
	}
	var err error
	if n.Proxy, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		if err := n.Shutdown(ctx); err != nil && !errors.Is(err, ErrClosed) && !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s\naccess log:\n%s", name, tail(n.log.String()), tail(n.access.String()))
		}
	})
	return n
}

// tail is the end of a long text.
func tail(text string) string { return text[max(0, len(text)-3000):] }

// plan begins a Plan of the node.
func (n *node) plan() *mesh.Plan {
	return &mesh.Plan{
		Version: mesh.PlanVersion, Mesh: "shop", TrustDomain: trustDomain, Revision: 1,
		Workload: mesh.Workload{Name: n.id.Name(), Kind: n.id.Kind(), Identity: n.id},
	}
}

// inboundPort is a strict port that admits the callers.
func inboundPort(port int, protocol mesh.Protocol, from ...string) mesh.Inbound {
	return mesh.Inbound{
		Name: "0.0.0.0_" + strconv.Itoa(port), Port: port, App: port, Protocol: protocol, TLS: mesh.Strict, ClientAuth: mesh.Require, MinTLS: mesh.TLS12,
		Rules: []mesh.Rule{{From: from}},
	}
}

// upstreamOf describes the port of a callee that listens now.
func upstreamOf(callees []*node, port int, protocol mesh.Protocol) mesh.Upstream {
	first := callees[0]
	u := mesh.Upstream{
		Name: first.id.Name() + "_" + strconv.Itoa(port), Service: first.id.Name(), Port: port, Protocol: protocol, Identity: first.id,
		ServerName: first.id.ServerName(), TLS: true, MinTLS: mesh.TLS12,
	}
	for i, callee := range callees {
		u.Endpoints = append(u.Endpoints, mesh.Endpoint{Instance: callee.id.Name() + "-" + strconv.Itoa(i+1), Address: netip.MustParseAddrPort(callee.inboundAddress(port))})
	}
	return u
}

func outboundPort(listen int, u mesh.Upstream) mesh.Outbound {
	return mesh.Outbound{Name: "127.0.0.1_" + strconv.Itoa(listen), Listen: listen, Protocol: u.Protocol, Upstream: u.Name}
}

func (n *node) apply(plan *mesh.Plan) {
	n.t.Helper()
	if err := n.Apply(plan); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) inboundAddress(port int) string {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.inbound[port] == nil {
		n.t.Fatalf("%s does not listen on %d", n.id, port)
	}
	return n.inbound[port].address.String()
}

func (n *node) outboundAddress(port int) string {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.outbound[port] == nil {
		n.t.Fatalf("%s has no outbound listener %d", n.id, port)
	}
	return n.outbound[port].address.String()
}

// stat asks /stats for one value.
func (n *node) stat(name string) int64 {
	n.t.Helper()
	w := httptest.NewRecorder()
	n.Admin().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/stats", nil))
	for line := range strings.Lines(w.Body.String()) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), name+": "); ok {
			i, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				n.t.Fatal(err)
			}
			return i
		}
	}
	n.t.Fatalf("%s is not in /stats:\n%s", name, w.Body.String())
	return 0
}

// eventually polls until a condition holds.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(15 * time.Second)
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(5 * time.Millisecond) // between two looks, not for something to have happened
	}
}

// serveApp runs an HTTP application that speaks HTTP/1.1, or HTTP/2 with prior knowledge only.
func serveApp(t testing.TB, h2 bool, handler http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var protocols http.Protocols
	protocols.SetHTTP1(!h2)
	protocols.SetUnencryptedHTTP2(h2)
	server := &http.Server{Handler: handler, Protocols: &protocols, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Close()
		<-done
	})
	return l.Addr().String()
}

// clientFor speaks HTTP/1.1, or HTTP/2 with prior knowledge, in plaintext.
func clientFor(t testing.TB, h2 bool) *http.Client {
	t.Helper()
	var protocols http.Protocols
	protocols.SetHTTP1(!h2)
	protocols.SetUnencryptedHTTP2(h2)
	transport := &http.Transport{Protocols: &protocols, DisableCompression: true, ExpectContinueTimeout: 10 * time.Second, MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// mutual is a client of an inbound port with an identity of its own; nil is anonymous.
func mutual(t testing.TB, identity *mtls.Identity, callee *node, protos ...string) *tls.Config {
	t.Helper()
	src := mtls.NewStatic(identity)
	anonymous := identity == nil
	if anonymous {
		src = mtls.NewStatic(callee.source.identity.Load())
	}
	config, err := mtls.NewClient(src, mtls.ClientOptions{Expect: callee.id, NextProtos: protos, Anonymous: anonymous}).Config()
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// tlsClient speaks HTTP by mutual TLS to an inbound port.
func tlsClient(t testing.TB, config *tls.Config, h2 bool) *http.Client {
	t.Helper()
	var protocols http.Protocols
	protocols.SetHTTP1(!h2)
	protocols.SetHTTP2(h2)
	transport := &http.Transport{Protocols: &protocols, DisableCompression: true, DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return (&tls.Dialer{Config: config}).DialContext(ctx, network, address)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// answer is what came back for a request.
type answer struct {
	status  int
	body    string
	header  http.Header
	trailer http.Header
	close   bool
}

func do(t testing.TB, client *http.Client, request *http.Request) answer {
	t.Helper()
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{response.StatusCode, string(body), response.Header, response.Trailer, response.Close}
}

func newRequest(t testing.TB, method, url string, body io.Reader) *http.Request {
	t.Helper()
	request, err := http.NewRequestWithContext(context.Background(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	return request
}

// pair is a caller and a callee that are connected by mutual TLS.
type pair struct {
	ca     *authority
	caller *node
	callee *node
	url    string // of the caller's outbound listener
}

// newPair connects the service "front" with the application at address, by the service "back".
func newPair(t testing.TB, protocol mesh.Protocol, address string, options ...option) *pair {
	t.Helper()
	ca := newAuthority(t)
	p := &pair{ca: ca}
	p.callee = newNode(t, ca, id.Service, "back", map[int]string{9080: address}, options...)
	p.caller = newNode(t, ca, id.Service, "front", nil, options...)
	plan := p.callee.plan()
	plan.Inbound = []mesh.Inbound{inboundPort(9080, protocol, p.caller.id.String())}
	p.callee.apply(plan)
	plan = p.caller.plan()
	u := upstreamOf([]*node{p.callee}, 9080, protocol)
	plan.Upstreams = []mesh.Upstream{u}
	plan.Outbound = []mesh.Outbound{outboundPort(9100, u)}
	p.caller.apply(plan)
	p.url = "http://" + p.caller.outboundAddress(9100)
	return p
}
