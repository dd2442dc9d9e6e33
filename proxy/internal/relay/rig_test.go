package relay

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"countersign.dev/proxy/internal/loop"
	"countersign.dev/proxy/internal/message"
)

// TestMain sees that the tests leave no goroutine behind.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		http.DefaultClient.CloseIdleConnections()
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// drivers runs a test on each driver that the system has.
func drivers(t *testing.T, test func(t *testing.T, portable bool)) {
	t.Helper()
	t.Run("portable", func(t *testing.T) { test(t, true) })
	if runtime.GOOS == "linux" {
		t.Run("epoll", func(t *testing.T) { test(t, false) })
	}
}

// eventually polls until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// ledger is a Service that sends all to one target and keeps count of exchanges.
type ledger struct {
	target  atomic.Pointer[Target]
	timeout time.Duration
	prepare func(x *Exchange) // nil: the head is left as it came

	mu       sync.Mutex
	open     map[*Exchange]bool // an exchange may be used again, but not before it is done
	wrong    string             // what was asked or done twice
	outcomes []Outcome
}

func newLedger(t *Target) *ledger {
	l := &ledger{open: map[*Exchange]bool{}}
	l.target.Store(t)
	return l
}

func (l *ledger) Request(x *Exchange) Decision {
	l.mu.Lock()
	if l.open[x] {
		l.wrong = "began anew while it was open: " + x.Method + " " + x.Path
	}
	l.open[x] = true
	l.mu.Unlock()
	if l.prepare != nil {
		l.prepare(x)
	}
	return Decision{Target: l.target.Load(), Timeout: l.timeout}
}

func (l *ledger) Trailers(fields []message.Field) []message.Field { return fields }

func (l *ledger) Done(x *Exchange, o *Outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.open[x] {
		l.wrong = "done twice: " + x.Method + " " + x.Path
	}
	delete(l.open, x)
	l.outcomes = append(l.outcomes, *o)
}

func (l *ledger) Bad(*Peer, int, string) {}

func (l *ledger) Failure(_ *Exchange, status int, text string) *Reply {
	return &Reply{Head: message.Head{Status: status, ContentLength: int64(len(text)), Body: true}, Body: []byte(text)}
}

// last is the outcome of the exchange that ended last.
func (l *ledger) last() Outcome {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.outcomes) == 0 {
		return Outcome{}
	}
	return l.outcomes[len(l.outcomes)-1]
}

// running is how many exchanges are not done; one that was done twice fails the test.
func (l *ledger) running(t *testing.T) int {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.wrong != "" {
		t.Fatal(l.wrong)
	}
	return len(l.open)
}

// rig is one proxy on one loop, to which callers of either version come in plaintext.
type rig struct {
	*ledger
	t    *testing.T
	w    *Worker
	addr netip.AddrPort

	mu     sync.Mutex
	fronts []Front
}

func newRig(t *testing.T, portable bool, limits Limits, endpoints ...*Endpoint) *rig {
	t.Helper()
	g, err := loop.NewGroup(1, loop.Config{Portable: portable})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Stop)
	r := &rig{ledger: newLedger(&Target{Endpoints: endpoints}), t: t, w: NewWorker(g.Loops()[0], limits)}
	r.addr = listen(t, g, func(c *loop.Conn) {
		s := &sniffer{c: c}
		s.then = func(h2 bool) {
			serve := r.w.ServeHTTP1
			if h2 {
				serve = r.w.ServeHTTP2
			}
			f := serve(c, &Peer{Service: r.ledger})
			r.mu.Lock()
			r.fronts = append(r.fronts, f)
			r.mu.Unlock()
			f.Data(s.got)
		}
		c.Handle(s)
	})
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		eventually(t, "every exchange is done", func() bool { return r.running(t) == 0 })
		for _, e := range r.target.Load().Endpoints {
			if n := e.active.Load(); n != 0 {
				t.Errorf("%d exchanges are still counted at %s", n, e.Address)
			}
		}
	})
	return r
}

// on runs f on the loop and waits for it.
func (r *rig) on(f func()) {
	r.t.Helper()
	done := make(chan struct{})
	if !r.w.loop.Post(func() { defer close(done); f() }) {
		r.t.Fatal("the loop has ended")
	}
	<-done
}

// pool looks at the connections to an endpoint, on the loop.
func (r *rig) pool(e *Endpoint, f func(p *pool) bool) (ok bool) {
	r.t.Helper()
	r.on(func() {
		if p := r.w.pools[e]; p != nil {
			ok = f(p)
		}
	})
	return ok
}

// client is a caller of either version.
func (r *rig) client(h2 bool) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols), MaxIdleConnsPerHost: 100}
	tr.Protocols.SetHTTP1(!h2)
	tr.Protocols.SetUnencryptedHTTP2(h2)
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

// send makes a request and reads its answer whole.
func (r *rig) send(c *http.Client, method, path string, body io.Reader) (int, string, error) {
	req, err := http.NewRequestWithContext(r.t.Context(), method, "http://"+r.addr.String()+path, body)
	if err != nil {
		return 0, "", err
	}
	res, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	return res.StatusCode, string(got), err
}

// dial opens a connection on which a test speaks as it likes.
func (r *rig) dial() (net.Conn, *bufio.Reader) {
	r.t.Helper()
	c, err := net.Dial("tcp", r.addr.String())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c, bufio.NewReader(c)
}

// heard is the head and the trailers of an answer.
type heard struct {
	StatusCode      int
	Close           bool
	ContentLength   int64
	Header, Trailer http.Header
}

// answer reads one answer.
func answer(t *testing.T, r *bufio.Reader, method string) (heard, string) {
	t.Helper()
	res, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return heard{res.StatusCode, res.Close, res.ContentLength, res.Header, res.Trailer}, string(body)
}

// server accepts connections and hands each, with its number from 1 on, to serve.
func server(t *testing.T, serve func(c net.Conn, n int)) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	running.Go(func() {
		for n := 1; ; n++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			running.Go(func() {
				serve(c, n)
				_ = c.Close()
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// nowhere is an address at which nobody listens.
func nowhere(t *testing.T) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// eachRequest answers every HTTP/1.1 request on a connection by f, until that is false.
func eachRequest(c net.Conn, f func(req *http.Request, body string) bool) {
	r := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil || !f(req, string(body)) {
			return
		}
	}
}

// framed is the server's side of an HTTP/2 connection that a test speaks frame by frame.
type framed struct {
	*http2.Framer
	c     net.Conn
	block bytes.Buffer
	enc   *hpack.Encoder
	last  uint32 // the last stream that came
	mute  bool   // PING is not answered
}

// newFramed reads a client's preface; without settings it says nothing.
func newFramed(c net.Conn, settings ...http2.Setting) *framed {
	if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
		return nil
	}
	p := &framed{Framer: http2.NewFramer(c, bufio.NewReader(c)), c: c}
	p.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.enc = hpack.NewEncoder(&p.block)
	_ = p.WriteSettings(settings...)
	return p
}

// frame is the next frame that is not of the connection's own business; nil at its end.
func (p *framed) frame() http2.Frame {
	for {
		f, err := p.ReadFrame()
		if err != nil {
			return nil
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = p.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() && !p.mute {
				_ = p.WritePing(true, f.Data)
			}
		case *http2.WindowUpdateFrame:
		default:
			return f
		}
	}
}

// request is the next stream's head; nil at the connection's end.
func (p *framed) request() *http2.MetaHeadersFrame {
	for {
		switch f := p.frame().(type) {
		case nil:
			return nil
		case *http2.MetaHeadersFrame:
			if f.StreamID > p.last { // not the trailers of one before
				p.last = f.StreamID
				return f
			}
		}
	}
}

// content reads a stream to its end, or until there is at least so much of it.
func (p *framed) content(head *http2.MetaHeadersFrame, most int) (body string, trailers []hpack.HeaderField) {
	var b strings.Builder
	for end := head.StreamEnded(); !end && b.Len() < most; {
		switch f := p.frame().(type) {
		case nil:
			return b.String(), nil
		case *http2.DataFrame:
			b.Write(f.Data())
			if n := uint32(len(f.Data())); n > 0 {
				_ = p.WriteWindowUpdate(0, n)
				_ = p.WriteWindowUpdate(f.StreamID, n)
			}
			end = f.StreamEnded()
		case *http2.MetaHeadersFrame:
			trailers, end = f.Fields, true
		}
	}
	return b.String(), trailers
}

// head sends fields on a stream: name, value, name, value.
func (p *framed) head(stream uint32, end bool, fields ...string) {
	p.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = p.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	_ = p.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: p.block.Bytes(), EndHeaders: true, EndStream: end})
}

// insecure offers protocols and believes every server; it is about what comes after the handshake.
func insecure(protos ...string) func(*Link) (*tls.Config, error) {
	return func(*Link) (*tls.Config, error) {
		return &tls.Config{InsecureSkipVerify: true, NextProtos: protos}, nil
	}
}

// idleHere is how long tests keep HTTP/1.1 connections.
const idleHere = 20 * time.Second

// tlsApplication is a net/http server behind TLS.
func tlsApplication(t *testing.T, config *tls.Config, h http.Handler) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, TLSConfig: config, ReadHeaderTimeout: 20 * time.Second}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.ServeTLS(ln, "", "") }()
	t.Cleanup(func() { _ = srv.Close(); <-served })
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// serverTLS is a server's configuration with a certificate of its own.
func serverTLS(t *testing.T, protos ...string) *tls.Config {
	t.Helper()
	return &tls.Config{Certificates: []tls.Certificate{identities(t, "server")[0].Certificate}, NextProtos: protos}
}

// counted counts the connections to an endpoint that are open.
func counted(e *Endpoint) *atomic.Int64 {
	n := new(atomic.Int64)
	e.Opened = func(k *Link) error {
		n.Add(1)
		k.Closed = func() { n.Add(-1) }
		return nil
	}
	return n
}

// framedCaller is a caller that a test speaks for, frame by frame.
func framedCaller(c net.Conn, settings ...http2.Setting) *framed {
	_, _ = io.WriteString(c, http2.ClientPreface)
	p := &framed{Framer: http2.NewFramer(c, bufio.NewReader(c)), c: c}
	p.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.enc = hpack.NewEncoder(&p.block)
	_ = p.WriteSettings(settings...)
	return p
}

// ask sends a request's head.
func (p *framed) ask(stream uint32, method, path string, end bool, fields ...string) {
	p.head(stream, end, append([]string{":method", method, ":scheme", "http", ":authority", "a.test", ":path", path}, fields...)...)
}

// front is the connection that came in last.
func (r *rig) front() Front {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fronts[len(r.fronts)-1]
}
