package relay

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"countersign.dev/id"
	"countersign.dev/mtls"
	"countersign.dev/proxy/internal/loop"
	"countersign.dev/proxy/internal/message"
)

// hop is one proxy: it sends all that comes in to one target.
type hop struct {
	target *Target
	mu     sync.Mutex
	done   []Outcome
	bad    []string
}

func (s *hop) Request(*Exchange) Decision                      { return Decision{Target: s.target} }
func (s *hop) Trailers(fields []message.Field) []message.Field { return fields }
func (s *hop) Done(_ *Exchange, o *Outcome)                    { s.mu.Lock(); s.done = append(s.done, *o); s.mu.Unlock() }

func (s *hop) Bad(_ *Peer, status int, reason string) {
	s.mu.Lock()
	s.bad = append(s.bad, fmt.Sprint(status, reason))
	s.mu.Unlock()
}

func (s *hop) Failure(_ *Exchange, status int, m string) *Reply {
	return &Reply{Head: message.Head{Status: status, ContentLength: int64(len(m))}, Body: []byte(m)}
}

type quiet struct{}

func (quiet) Data([]byte)  {}
func (quiet) End()         {}
func (quiet) Drained()     {}
func (quiet) Closed(error) {}

// identity makes a member of a trust domain with a CA of its own.
func identities(t *testing.T, names ...string) []*mtls.Identity {
	t.Helper()
	caKey, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(2 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, Subject: pkix.Name{CommonName: "ca"},
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	var out []*mtls.Identity
	for i, name := range names {
		key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		self, _ := id.New("t.internal", id.Service, name)
		leaf := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 2)), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
			KeyUsage: x509.KeyUsageDigitalSignature, URIs: []*url.URL{self.URL()},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
		if err != nil {
			t.Fatal(err)
		}
		pkcs8, _ := x509.MarshalPKCS8PrivateKey(key)
		block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
		identity, err := mtls.LoadIdentity(block("CERTIFICATE", der), block("PRIVATE KEY", pkcs8), block("CERTIFICATE", caDER))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, identity)
	}
	return out
}

// chain is client -> outbound -> inbound -> application.
type chain struct {
	out, in *hop
	addr    netip.AddrPort
}

type chainOptions struct {
	portable bool
	protos   []string // between the two
	appHTTP2 bool
}

func newChain(t *testing.T, app netip.AddrPort, o chainOptions) *chain {
	t.Helper()
	ids := identities(t, "a", "b")
	g, err := loop.NewGroup(2, loop.Config{Portable: o.portable})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Stop)
	workers := map[*loop.Loop]*Worker{}
	for _, l := range g.Loops() {
		workers[l] = NewWorker(l, DefaultLimits())
	}
	c := &chain{in: &hop{target: &Target{Endpoints: []*Endpoint{{Address: app, HTTP2: o.appHTTP2, Idle: 20 * time.Second}}}}}
	server := mtls.NewServer(mtls.NewStatic(ids[1]), mtls.ServerOptions{NextProtos: o.protos}).Config()
	inbound := listen(t, g, func(conn *loop.Conn) {
		conn.Handle(quiet{})
		conn.StartTLS(server, false, 10*time.Second, func(err error) {
			if err != nil {
				t.Error(err)
				return
			}
			p := &Peer{Service: c.in}
			p.ID, _ = mtls.PeerID(*conn.TLS())
			if conn.TLS().NegotiatedProtocol == "h2" {
				workers[conn.Loop()].ServeHTTP2(conn, p)
			} else {
				workers[conn.Loop()].ServeHTTP1(conn, p)
			}
		})
	})
	client := mtls.NewClient(mtls.NewStatic(ids[0]), mtls.ClientOptions{Expect: ids[1].ID, NextProtos: []string{"h2", "http/1.1"}})
	c.out = &hop{target: &Target{Endpoints: []*Endpoint{{
		Address: inbound, Idle: 20 * time.Second,
		TLS: func(*Link) (*tls.Config, error) { return client.Config() },
	}}}}
	c.addr = listen(t, g, func(conn *loop.Conn) {
		var s sniffer
		s = sniffer{conn, func(h2 bool) {
			if h2 {
				workers[conn.Loop()].ServeHTTP2(conn, &Peer{Service: c.out}).Data(s.got)
			} else {
				workers[conn.Loop()].ServeHTTP1(conn, &Peer{Service: c.out}).Data(s.got)
			}
		}, nil}
		conn.Handle(&s)
	})
	return c
}

// sniffer tells HTTP/2 by its first byte, which is enough here.
type sniffer struct {
	c    *loop.Conn
	then func(bool)
	got  []byte
}

func (s *sniffer) Data(p []byte) {
	s.got = p
	s.then(p[0] == 'P' && len(p) > 3 && string(p[:3]) == "PRI")
}
func (s *sniffer) End()         { s.c.Close() }
func (s *sniffer) Drained()     {}
func (s *sniffer) Closed(error) {}

func listen(t *testing.T, g *loop.Group, take func(*loop.Conn)) netip.AddrPort {
	t.Helper()
	ln, err := g.Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"), take, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ln.Close)
	return ln.Addr()
}

// application is a net/http server of either version.
func application(t *testing.T, h http.Handler) netip.AddrPort {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetHTTP1(true)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().(*net.TCPAddr).AddrPort()
}

// chains runs a test over every combination of protocols and drivers.
func chains(t *testing.T, h http.Handler, test func(t *testing.T, c *chain, client *http.Client)) {
	for _, portable := range []bool{false, true} {
		for _, between := range []string{"h2", "http/1.1"} {
			for _, app2 := range []bool{false, true} {
				for _, client2 := range []bool{false, true} {
					t.Run(fmt.Sprintf("portable=%t/between=%s/app2=%t/client2=%t", portable, strings.ReplaceAll(between, "/", "_"), app2, client2), func(t *testing.T) {
						c := newChain(t, application(t, h), chainOptions{portable, []string{between}, app2})
						tr := &http.Transport{Protocols: new(http.Protocols), MaxIdleConnsPerHost: 100}
						tr.Protocols.SetHTTP1(!client2)
						tr.Protocols.SetUnencryptedHTTP2(client2)
						t.Cleanup(tr.CloseIdleConnections)
						test(t, c, &http.Client{Transport: tr, Timeout: 30 * time.Second})
					})
				}
			}
		}
	}
}

func TestEchoBodies(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		w.Header().Set("X-Host", r.Host)
		sum := sha256.New()
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(io.MultiWriter(w, sum), r.Body)
		w.Header().Set("X-Sum", fmt.Sprintf("%x", sum.Sum(nil)))
	})
	chains(t, h, func(t *testing.T, c *chain, client *http.Client) {
		var wg sync.WaitGroup
		for i := range 24 {
			for _, chunked := range []bool{false, true} {
				wg.Go(func() {
					body := make([]byte, i*i*i*60)
					_, _ = rand.Read(body)
					var reader io.Reader = bytes.NewReader(body)
					if chunked {
						reader = struct{ io.Reader }{reader}
					}
					req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+c.addr.String()+"/x", reader)
					req.Host = "app.test"
					resp, err := client.Do(req)
					if err != nil {
						t.Error(err)
						return
					}
					defer resp.Body.Close()
					got, err := io.ReadAll(resp.Body)
					if err != nil || !bytes.Equal(got, body) || resp.Header.Get("X-Host") != "app.test" {
						t.Errorf("%d bytes, chunked %t: got %d, host %q, %v", len(body), chunked, len(got), resp.Header.Get("X-Host"), err)
					}
					if want := fmt.Sprintf("%x", sha256.Sum256(body)); resp.Trailer.Get("X-Sum") != want {
						t.Errorf("trailer %q", resp.Trailer.Get("X-Sum"))
					}
				})
			}
		}
		wg.Wait()
	})
}

func TestKinds(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/empty", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/204", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	mux.HandleFunc("/304", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(304) })
	mux.HandleFunc("/length", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })
	mux.HandleFunc("/early", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403); _, _ = io.WriteString(w, "no") })
	mux.HandleFunc("/hints", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</a>")
		w.WriteHeader(103)
		_, _ = io.WriteString(w, "ok")
	})
	mux.HandleFunc("/panic", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "part")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	chains(t, mux, func(t *testing.T, c *chain, client *http.Client) {
		for _, k := range []struct {
			method, path string
			body         int
			status       int
			text         string
			fails        bool
		}{
			{"GET", "/empty", 0, 200, "", false},
			{"HEAD", "/length", 0, 200, "", false},
			{"GET", "/204", 0, 204, "", false},
			{"GET", "/304", 0, 304, "", false},
			{"GET", "/length", 0, 200, "hello", false},
			{"GET", "/hints", 0, 200, "ok", false},
			{"GET", "/absent", 0, 404, "404 page not found\n", false},
			{"GET", "/panic", 0, 200, "", true},
			{"GET", "/length", 0, 200, "hello", false},
			{"POST", "/early", 5, 403, "no", false},
			{"GET", "/length", 0, 200, "hello", false},
		} {
			req, _ := http.NewRequestWithContext(t.Context(), k.method, "http://"+c.addr.String()+k.path, bytes.NewReader(make([]byte, k.body)))
			resp, err := client.Do(req)
			if err != nil {
				if !k.fails {
					t.Errorf("%s %s: %v", k.method, k.path, err)
				}
				continue
			}
			got, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if k.fails != (err != nil) || resp.StatusCode != k.status || !k.fails && string(got) != k.text {
				t.Errorf("%s %s: %d %q, %v", k.method, k.path, resp.StatusCode, got, err)
			}
			if k.method == "HEAD" && resp.ContentLength != 5 {
				t.Errorf("HEAD: length %d", resp.ContentLength)
			}
		}
	})
}

// TestEarlyAnswer has the application answer and not read a large body: the answer arrives.
func TestEarlyAnswer(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		w.WriteHeader(413)
	})
	chains(t, h, func(t *testing.T, c *chain, client *http.Client) {
		for range 5 {
			req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://"+c.addr.String()+"/", bytes.NewReader(make([]byte, 8<<20)))
			resp, err := client.Do(req)
			if err != nil {
				// net/http's client may see the connection break while it still sends.
				t.Logf("%v", err)
				continue
			}
			_ = resp.Body.Close()
			if resp.StatusCode != 413 {
				t.Errorf("status %d", resp.StatusCode)
			}
		}
		// Whatever became of those, the next request is served.
		resp, err := client.Get("http://" + c.addr.String() + "/")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	})
}

// TestClientGone cancels requests: the application is told.
func TestClientGone(t *testing.T) {
	var canceled atomic.Int64
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		for range 4000 { // a client that has closed a connection is known to be gone when it is written to
			_, _ = io.WriteString(w, "tick")
			_ = http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
				canceled.Add(1)
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	chains(t, h, func(t *testing.T, c *chain, client *http.Client) {
		before := canceled.Load()
		for range 5 {
			ctx, cancel := context.WithCancel(t.Context())
			req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+c.addr.String()+"/", nil)
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			cancel()
			_ = resp.Body.Close()
		}
		for deadline := time.Now().Add(10 * time.Second); canceled.Load() < before+5; {
			if time.Now().After(deadline) {
				t.Fatalf("the application saw %d of 5", canceled.Load()-before)
			}
			time.Sleep(time.Millisecond)
		}
	})
}

func TestWebSocket(t *testing.T) {
	h := websocket.Server{Handler: func(ws *websocket.Conn) {
		for text := ""; websocket.Message.Receive(ws, &text) == nil; {
			_ = websocket.Message.Send(ws, text)
		}
	}}
	for _, between := range []string{"h2", "http/1.1"} {
		t.Run(strings.ReplaceAll(between, "/", "_"), func(t *testing.T) {
			c := newChain(t, application(t, h), chainOptions{protos: []string{between}})
			ws, err := websocket.Dial("ws://"+c.addr.String()+"/", "", "http://a.test")
			if err != nil {
				t.Fatal(err)
			}
			for i := range 100 {
				text := strings.Repeat("x", i*i+1)
				_ = ws.SetDeadline(time.Now().Add(20 * time.Second))
				if err := websocket.Message.Send(ws, text); err != nil {
					t.Fatal(err)
				}
				var got string
				if err := websocket.Message.Receive(ws, &got); err != nil || got != text {
					t.Fatalf("%d: %d bytes, %v", i, len(got), err)
				}
			}
			_ = ws.Close()
		})
	}
}

// TestPipelining sends several requests at once and reads the answers in order.
func TestPipelining(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "%s %s", r.URL.Path, body)
	})
	c := newChain(t, application(t, h), chainOptions{protos: []string{"h2"}})
	conn, err := net.Dial("tcp", c.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	var b bytes.Buffer
	const n = 50
	for i := range n {
		body := strings.Repeat("b", i)
		fmt.Fprintf(&b, "POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", i, len(body), body)
	}
	_, _ = conn.Write(b.Bytes())
	r := bufio.NewReader(conn)
	for i := range n {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if want := fmt.Sprintf("/%d %s", i, strings.Repeat("b", i)); string(got) != want {
			t.Fatalf("%d: %q", i, got)
		}
	}
}

// TestUnreachable answers 503 when nobody listens, and goes on.
func TestUnreachable(t *testing.T) {
	ln, _ := net.Listen("tcp", "127.0.0.1:0")
	app := ln.Addr().(*net.TCPAddr).AddrPort()
	_ = ln.Close()
	c := newChain(t, app, chainOptions{protos: []string{"h2"}})
	for range 3 {
		resp, err := http.Get("http://" + c.addr.String() + "/")
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != 503 {
			t.Errorf("status %d", resp.StatusCode)
		}
	}
}

// TestAppRestarts closes the application's idle connections all the time under load: GETs are not lost.
func TestAppRestarts(t *testing.T) {
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }), IdleTimeout: time.Millisecond}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })
	c := newChain(t, ln.Addr().(*net.TCPAddr).AddrPort(), chainOptions{protos: []string{"h2"}})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 300 {
				resp, err := http.Get("http://" + c.addr.String() + "/")
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != 200 {
					t.Errorf("status %d", resp.StatusCode)
				}
				if i%10 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	wg.Wait()
}

// TestRefusedUpgrade checks that an application's own 2xx is not taken for a change of protocol.
func TestRefusedUpgrade(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(upgradeField) != "" {
			t.Error("the application sees what is between the sidecars")
		}
		_, _ = io.WriteString(w, "no "+r.Header.Get("Upgrade"))
	})
	for _, appHTTP2 := range []bool{false, true} {
		c := newChain(t, application(t, h), chainOptions{protos: []string{"h2"}, appHTTP2: appHTTP2})
		conn, err := net.Dial("tcp", c.addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if appHTTP2 {
			if res.StatusCode != 502 {
				t.Errorf("an application without extended CONNECT: %d %q", res.StatusCode, body)
			}
			continue
		}
		if err != nil || res.StatusCode != 200 || string(body) != "no websocket" || res.Header.Get(upgradeField) != "" || !res.Close {
			t.Errorf("%d %q %v %v", res.StatusCode, body, err, res.Header)
		}
	}
}

// TestSlowReaders checks that callers which take nothing of large responses do not keep others from theirs:
// all share the sessions between two sidecars.
func TestSlowReaders(t *testing.T) {
	large := make([]byte, 32<<20) // more than the kernel takes
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/large" {
			_, _ = w.Write(large)
			return
		}
		_, _ = io.WriteString(w, "small")
	})
	c := newChain(t, application(t, h), chainOptions{protos: []string{"h2"}})
	for range 120 {
		conn, err := net.Dial("tcp", c.addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.(*net.TCPConn).SetReadBuffer(4096)
		_, _ = io.WriteString(conn, "GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for range 50 {
		res, err := client.Get("http://" + c.addr.String() + "/")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || string(body) != "small" {
			t.Fatalf("%q, %v", body, err)
		}
	}
}

// TestConnectWithUpgrade checks that a tunnel with a protocol of HTTP/1.1 is not taken for HTTP/2's.
func TestConnectWithUpgrade(t *testing.T) {
	h := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			t.Errorf("the application got %s %s", r.Method, r.RequestURI)
		}
	})
	c := newChain(t, application(t, h), chainOptions{protos: []string{"h2"}})
	conn, err := net.Dial("tcp", c.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(conn, "CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
	_ = conn.(*net.TCPConn).CloseWrite()
	_, _ = io.ReadAll(conn)
}
