package proxy

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// load sends requests all the time and counts those that fail.
type load struct {
	t        testing.TB
	stop     chan struct{}
	group    sync.WaitGroup
	done     atomic.Int64
	failures atomic.Int64
}

// startLoad runs workers that send GET and POST requests to url and want 200 with what they sent.
func startLoad(t testing.TB, url string, workers int, h2 bool) *load {
	t.Helper()
	l := &load{t: t, stop: make(chan struct{})}
	client := clientFor(t, h2)
	for worker := range workers {
		l.group.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-l.stop:
					return
				default:
				}
				l.one(client, url, worker, i)
			}
		})
	}
	return l
}

func (l *load) one(client *http.Client, url string, worker, i int) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	method, body := "GET", ""
	if i%2 == 1 {
		method, body = "POST", strings.Repeat(fmt.Sprint(worker), 1+i*37%5000)
	}
	var reader io.Reader
	if body != "" {
		reader = io.NopCloser(strings.NewReader(body)) // cannot be sent again by the client
	}
	request, err := http.NewRequestWithContext(ctx, method, url, reader)
	if err != nil {
		l.t.Error(err)
		return
	}
	response, err := client.Do(request)
	l.done.Add(1)
	if err != nil {
		l.failed(fmt.Errorf("%s: %w", method, err))
		return
	}
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != 200 || string(got) != body {
		l.failed(fmt.Errorf("%s: status %d, %d bytes of %d, %w: %.200s", method, response.StatusCode, len(got), len(body), err, got))
	}
}

func (l *load) failed(err error) {
	if l.failures.Add(1) < 5 {
		l.t.Error(err)
	}
}

// end stops the load and says how many requests there were.
func (l *load) end() int64 {
	close(l.stop)
	l.group.Wait()
	if n := l.failures.Load(); n > 0 {
		l.t.Errorf("%d of %d requests failed", n, l.done.Load())
	}
	return l.done.Load()
}

// wait lets so many more requests happen.
func (l *load) wait(n int64) {
	target := l.done.Load() + n
	eventually(l.t, "requests", func() bool { return l.done.Load() >= target || l.failures.Load() > 0 })
}

func echoApp(t testing.TB, h2 bool) string {
	return serveApp(t, h2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		w.Write(body)
	}))
}

// hurry lets connections that were proved with an earlier identity retire within a quarter of a second, as they do by
// themselves when they have a second to live. Certificates that end so soon would end before a loaded machine comes to
// replace them.
func (n *node) hurry() {
	serial := mtls.Serial(n.source.identity.Load().Certificate.Leaf)
	n.onLoops(func(w *worker) {
		for c := range w.conns {
			if c.ownSerial != serial {
				c.life.shorten(soon(250*time.Millisecond), time.Time{})
			}
		}
		for u := range w.ups {
			if u.ownSerial != serial {
				u.life.shorten(soon(125*time.Millisecond), time.Time{})
			}
		}
	})
}

// TestRotationUnderLoad replaces both identities again and again, with connections that age at once,
// while a policy changes: no request is lost, and every serial is seen on the wire.
func TestRotationUnderLoad(t *testing.T) {
	modes(t, func(t *testing.T, clientH2 bool, protocol mesh.Protocol) {
		p := newPair(t, protocol, echoApp(t, protocol == mesh.HTTP2))
		l := startLoad(t, p.url, 8, clientH2)
		seen := map[string]bool{}
		for i := range 12 {
			p.caller.source.identity.Store(p.ca.issue(id.Service, "front", time.Minute))
			p.caller.IdentityChanged()
			p.caller.hurry()
			l.wait(30)
			p.callee.source.identity.Store(p.ca.issue(id.Service, "back", time.Minute))
			p.callee.IdentityChanged()
			p.callee.hurry()
			p.callee.apply(p.allow(protocol, uint64(i), p.caller.id.String(), fmt.Sprintf("spiffe://shop.internal/service/s%d", i)))
			l.wait(100)
			for _, caller := range p.callee.Report().Callers {
				seen[caller.Serial] = true
			}
		}
		serial := mtls.Serial(p.caller.source.identity.Load().Certificate.Leaf)
		eventually(t, "the newest serial is on the wire", func() bool {
			return p.callee.Report().Callers[p.caller.id.String()].Serial == serial
		})
		n := l.end()
		t.Logf("%d requests, %d serials of the caller, %d connections", n, len(seen), p.callee.stat("listener.0.0.0.0_9080.downstream_cx_total"))
	})
}

// TestGoAwayUnderLoad lets every answer of the callee end its connection for a while: the requests that
// cross its GOAWAY are sent again, bodies and all.
func TestGoAwayUnderLoad(t *testing.T) {
	for _, clientH2 := range []bool{false, true} {
		p := newPair(t, mesh.HTTP, echoApp(t, false))
		l := startLoad(t, p.url, 16, clientH2)
		for range 100 {
			p.callee.onLoops(func(w *worker) {
				for c := range w.conns {
					c.leave()
				}
			})
			l.wait(20)
		}
		l.end()
		if n := p.callee.stat("listener.0.0.0.0_9080.downstream_cx_total"); n < 20 {
			t.Errorf("%d connections; each was to end with its next answer", n)
		}
	}
}

// TestEndpointsUnderLoad moves the traffic from one instance to the other and back.
func TestEndpointsUnderLoad(t *testing.T) {
	p := newPair(t, mesh.HTTP, echoApp(t, false))
	second := newNode(t, p.ca, id.Service, "back", map[int]string{9080: echoApp(t, false)})
	second.apply(p.allow(mesh.HTTP, 1, p.caller.id.String()))
	both := upstreamOf([]*node{p.callee, second}, 9080, mesh.HTTP)
	l := startLoad(t, p.url, 8, true)
	for i := range 30 {
		u := both
		u.Endpoints = [][]mesh.Endpoint{both.Endpoints[:1], both.Endpoints[1:], both.Endpoints}[i%3]
		plan := p.caller.plan()
		plan.Revision, plan.Upstreams, plan.Outbound = uint64(i), []mesh.Upstream{u}, []mesh.Outbound{outboundPort(9100, u)}
		p.caller.apply(plan)
		l.wait(30)
	}
	l.end()
	for _, n := range []*node{p.callee, second} {
		if served := n.stat("http.0.0.0.0_9080.downstream_rq_total"); served < 100 {
			t.Errorf("an instance got %d requests", served)
		}
	}
}

// TestDrainUnderLoad shuts one of two instances down: the requests on their way end, and none is lost.
func TestDrainUnderLoad(t *testing.T) {
	for _, clientH2 := range []bool{false, true} {
		p := newPair(t, mesh.HTTP, echoApp(t, false))
		second := newNode(t, p.ca, id.Service, "back", map[int]string{9080: echoApp(t, false)})
		second.apply(p.allow(mesh.HTTP, 1, p.caller.id.String()))
		u := upstreamOf([]*node{p.callee, second}, 9080, mesh.HTTP)
		plan := p.caller.plan()
		plan.Upstreams, plan.Outbound = []mesh.Upstream{u}, []mesh.Outbound{outboundPort(9100, u)}
		p.caller.apply(plan)
		l := startLoad(t, p.url, 8, clientH2)
		l.wait(300)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := p.callee.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		l.wait(300)
		// The caller's own drain: its clients are told with each answer, and their next connect fails.
		l.end()
		if n := second.stat("http.0.0.0.0_9080.downstream_rq_total"); n == 0 {
			t.Error("the second instance got nothing")
		}
		if err := p.callee.Shutdown(ctx); !errors.Is(err, ErrClosed) {
			t.Errorf("a second Shutdown: %v", err)
		}
	}
}

// TestDrainFinishesWhatRuns checks that a slow request ends regularly and a new one is not accepted.
func TestDrainFinishesWhatRuns(t *testing.T) {
	arrived, answer := make(chan struct{}), make(chan struct{})
	p := newPair(t, mesh.HTTP, serveApp(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-answer
		w.Write([]byte("done"))
	})))
	got := make(chan answerOrError, 1)
	client := clientFor(t, false)
	go func() {
		response, err := client.Get(p.url)
		if err != nil {
			got <- answerOrError{err: err}
			return
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		got <- answerOrError{string(body), err}
	}()
	<-arrived
	shut := make(chan error, 2)
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	for _, n := range []*node{p.callee, p.caller} {
		go func() { shut <- n.Shutdown(ctx) }()
	}
	eventually(t, "the listener is closed", func() bool {
		p.callee.mu.Lock()
		defer p.callee.mu.Unlock()
		return p.callee.closed
	})
	close(answer)
	if g := <-got; g.body != "done" || g.err != nil {
		t.Errorf("%+v", g)
	}
	for range 2 {
		if err := <-shut; err != nil {
			t.Error(err)
		}
	}
}

type answerOrError struct {
	body string
	err  error
}

func TestDrainCutsAtTheEnd(t *testing.T) {
	p := newPair(t, mesh.TCP, serveTCPApp(t, func(c *net.TCPConn) { echo(c, c) }))
	c := dialOutbound(t, p)
	send(t, c, "x\n")
	reader := bufio.NewReader(c)
	if _, err := reader.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if err := p.callee.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if _, err := reader.ReadByte(); err == nil {
		t.Error("the connection lives on")
	}
}

// cut is when the only connection that was proved with certificates is to be cut; zero while there is none.
func (n *node) cut() time.Time {
	var mu sync.Mutex
	var at time.Time
	n.onLoops(func(w *worker) {
		mu.Lock()
		defer mu.Unlock()
		for c := range w.conns {
			if c.life.timer != nil {
				at = c.life.cut.at
			}
		}
		for u := range w.ups {
			if u.life.timer != nil {
				at = u.life.cut.at
			}
		}
	})
	return at
}

// TestNoConnectionOutlivesACertificate opens connections of every kind with certificates that end soon: each is to be cut
// before the first of them ends, and ends. How late a loaded machine comes to it is not the proxy's.
func TestNoConnectionOutlivesACertificate(t *testing.T) {
	end := func(t *testing.T, n *node, c net.Conn, notAfter time.Time) {
		t.Helper()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		ended := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, c)
			ended <- err
		}()
		eventually(t, "it is known when the connection is to be cut", func() bool { return !n.cut().IsZero() || len(ended) > 0 })
		if at := n.cut(); !at.Before(notAfter) {
			t.Errorf("the connection is to be cut at %s, after the certificate's end at %s", at, notAfter)
		}
		var timeout net.Error
		if err := <-ended; errors.As(err, &timeout) && timeout.Timeout() {
			t.Errorf("the connection outlives the certificate, which ended at %s", notAfter)
		}
	}
	const ttl = 3 * time.Second
	t.Run("the client's", func(t *testing.T) {
		t.Parallel()
		s := newSingle(t, mesh.TCP, func(*mesh.Inbound) {})
		identity := s.ca.issue(id.Service, "front", ttl)
		end(t, s.node, tlsDial(t, s.inboundAddress(9080), mutual(t, identity, s.node)), identity.Certificate.Leaf.NotAfter)
	})
	t.Run("the server's, idle HTTP/2", func(t *testing.T) {
		t.Parallel()
		s := newSingle(t, mesh.HTTP, func(*mesh.Inbound) {})
		own := s.ca.issue(id.Service, "back", ttl)
		s.source.identity.Store(own)
		end(t, s.node, tlsDial(t, s.inboundAddress(9080), mutual(t, s.ca.issue(id.Service, "front", time.Hour), s.node, "h2")), own.Certificate.Leaf.NotAfter)
	})
	t.Run("at the calling side", func(t *testing.T) {
		t.Parallel()
		p := newPair(t, mesh.TCP, serveTCPApp(t, func(c *net.TCPConn) { echo(c, c) }))
		own := p.ca.issue(id.Service, "front", ttl)
		p.caller.source.identity.Store(own)
		end(t, p.caller, dialOutbound(t, p), own.Certificate.Leaf.NotAfter)
	})
}

// TestBundleChange checks that connections age out, too, when only what peers are verified with changes.
func TestBundleChange(t *testing.T) {
	p := newPair(t, mesh.HTTP, echoApp(t, false))
	client := clientFor(t, false)
	do(t, client, newRequest(t, "GET", p.url, nil))
	first := p.callee.stat("listener.0.0.0.0_9080.downstream_cx_total")
	for _, n := range []*node{p.caller, p.callee} {
		identity := *n.source.identity.Load()
		bundle, err := mtls.NewBundle(trustDomain, []*x509.Certificate{p.ca.root, newAuthority(t).root})
		if err != nil {
			t.Fatal(err)
		}
		identity.Bundle = bundle
		n.source.identity.Store(&identity)
		n.IdentityChanged()
		n.onLoops(func(w *worker) {
			for c := range w.conns {
				c.life.shorten(time.Now(), time.Time{}) // not to wait for the jitter
			}
			for u := range w.ups {
				if time.Until(u.life.retire.at) > renewalWindow {
					t.Error("a connection to a peer does not retire")
				}
			}
		})
	}
	eventually(t, "a new connection", func() bool {
		do(t, client, newRequest(t, "GET", p.url, nil))
		return p.callee.stat("listener.0.0.0.0_9080.downstream_cx_total") > first
	})
}

// TestMaxAge checks that what runs for long ends some time after a rotation.
func TestMaxAge(t *testing.T) {
	t.Run("tcp", func(t *testing.T) {
		p := newPair(t, mesh.TCP, serveTCPApp(t, func(c *net.TCPConn) { echo(c, c) }), func(c *Config) { c.MaxAge = 500 * time.Millisecond })
		c := dialOutbound(t, p)
		send(t, c, "x\n")
		reader := bufio.NewReader(c)
		if _, err := reader.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		p.callee.source.identity.Store(p.ca.issue(id.Service, "back", time.Hour))
		p.callee.IdentityChanged()
		if _, err := reader.ReadByte(); err == nil {
			t.Error("the connection lives on")
		}
	})
	t.Run("streams", func(t *testing.T) {
		p := newPair(t, mesh.HTTP, serveApp(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).Flush() // the cut may overtake it
			<-r.Context().Done()
		})), func(c *Config) { c.MaxAge = 500 * time.Millisecond })
		response, err := clientFor(t, false).Do(newRequest(t, "GET", p.url, nil))
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		p.callee.source.identity.Store(p.ca.issue(id.Service, "back", time.Hour))
		p.callee.IdentityChanged()
		if _, err := io.ReadAll(response.Body); err == nil {
			t.Error("the stream ended regularly")
		}
	})
}

// TestIdleAppConnections checks that an application that closes idle connections early costs nothing.
func TestIdleAppConnections(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	app := &http.Server{IdleTimeout: 5 * time.Millisecond, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Write(body)
	})}
	go func() { _ = app.Serve(l) }()
	defer app.Close()
	p := newPair(t, mesh.HTTP, l.Addr().String())
	client := clientFor(t, true)
	for i := range 60 {
		time.Sleep(time.Duration(i%3) * 5 * time.Millisecond) // about as long as the application keeps a connection
		if got := do(t, client, newRequest(t, "GET", p.url, nil)); got.status != 200 {
			t.Errorf("%+v", got)
		}
	}
}
