package relay

import (
	"context"
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

	"golang.org/x/net/http2"

	"countersign.dev/proxy/internal/loop"
)

// held is a server that says nothing before it is let go.
func held(t *testing.T, serve func(c net.Conn, n int)) (e *Endpoint, conns *atomic.Int64, release func()) {
	gate := make(chan struct{})
	conns = new(atomic.Int64)
	addr := server(t, func(c net.Conn, n int) {
		conns.Add(1)
		<-gate
		if serve != nil {
			serve(c, n)
		}
	})
	release = sync.OnceFunc(func() { close(gate) })
	t.Cleanup(release)
	return &Endpoint{Address: addr, TLS: insecure("h2", "http/1.1"), Idle: idleHere}, conns, release
}

// TestOneDialForAll has many requests arrive while a connection is being made: they share it and its
// failure. One whose caller leaves does not disturb the others.
func TestOneDialForAll(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		e, conns, release := held(t, nil) // it closes in the middle of the handshake
		r := newRig(t, portable, DefaultLimits(), e)
		c := r.client(true)
		const n = 20
		var failed atomic.Int64
		var callers sync.WaitGroup
		for range n {
			callers.Go(func() {
				if status, _, err := r.send(c, "POST", "/", strings.NewReader("x")); status == 503 && err == nil {
					failed.Add(1)
				}
			})
		}
		ctx, leave := context.WithCancel(t.Context())
		callers.Go(func() {
			req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+r.addr.String(), nil)
			if res, err := c.Do(req); !errors.Is(err, context.Canceled) {
				_ = res.Body.Close()
				t.Errorf("who does not wait: %v", err)
			}
		})
		eventually(t, "all wait", func() bool {
			return r.pool(e, func(p *pool) bool { return len(p.waiting) == n+1 })
		})
		leave()
		eventually(t, "one has left", func() bool { return r.running(t) == n })
		release()
		callers.Wait()
		if failed.Load() != n || conns.Load() != 1 || e.failures.Load() != 1 {
			t.Errorf("%d of %d failed, with %d connections and %d failures", failed.Load(), n, conns.Load(), e.failures.Load())
		}
	})
}

// TestNextEndpoint sends requests and bytes to the next instance when one takes no connection.
func TestNextEndpoint(t *testing.T) {
	good := application(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
	drivers(t, func(t *testing.T, portable bool) {
		endpoints := []*Endpoint{
			{Address: nowhere(t), Idle: idleHere}, {Address: good, Idle: idleHere}, {Address: nowhere(t), Idle: idleHere},
		}
		r := newRig(t, portable, DefaultLimits(), endpoints...)
		c := r.client(false)
		for range 6 {
			for _, e := range endpoints {
				e.until.Store(0)
			}
			if status, got, err := r.send(c, "POST", "/", strings.NewReader("content")); status != 200 || got != "content" || err != nil {
				t.Fatalf("%d %q %v", status, got, err)
			}
		}
		if endpoints[0].failures.Load() == 0 || endpoints[2].failures.Load() == 0 {
			t.Error("the others were not tried")
		}
		r.target.Store(&Target{})
		if status, _, err := r.send(c, "GET", "/", nil); status != 503 || err != nil || r.last().Flag != FlagNoEndpoint {
			t.Errorf("without instances: %d %v %s", status, err, r.last().Flag)
		}
		r.target.Store(&Target{Endpoints: []*Endpoint{endpoints[0], endpoints[2]}})
		if status, _, err := r.send(c, "GET", "/", nil); status != 503 || err != nil || r.last().Flag != FlagConnect {
			t.Errorf("when none takes a connection: %d %v %s", status, err, r.last().Flag)
		}
	})
}

// TestEjection pins for how long an endpoint is left alone that takes no connection.
func TestEjection(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	bad, good := &Endpoint{}, &Endpoint{}
	target := &Target{Endpoints: []*Endpoint{bad, good}}
	good.active.Store(100) // bad is chosen whenever it may be
	for i, want := range []time.Duration{1, 2, 5, 10, 10, 10} {
		want *= time.Second
		bad.failed(now, errors.New("refused"))
		bad.failed(now, errors.New("refused")) // at the same time: a second loop, or a second connection
		for _, after := range []time.Duration{0, want - 1} {
			if e := target.choose(now.Add(after), nil); e != good {
				t.Errorf("failure %d: it is chosen %s later", i+1, after)
			}
		}
		if e := target.choose(now, attempts{good}); e != bad {
			t.Errorf("failure %d: it is not chosen when there is no other", i+1)
		}
		if e := target.choose(now, attempts{good, bad}); e != nil {
			t.Errorf("failure %d: %v is chosen twice", i+1, e)
		}
		now = now.Add(want)
		if e := target.choose(now, nil); e != bad {
			t.Errorf("failure %d: it is not chosen again after %s", i+1, want)
		}
	}
	bad.connected()
	bad.failed(now, errors.New("refused"))
	if e := target.choose(now.Add(time.Second), nil); e != bad {
		t.Error("a connect that succeeded did not end the series")
	}
}

func TestChoose(t *testing.T) {
	now := time.Now()
	target := &Target{}
	for range 5 {
		target.Endpoints = append(target.Endpoints, &Endpoint{})
	}
	taken := map[*Endpoint]int{}
	for range 1000 {
		e := target.choose(now, nil)
		e.active.Add(1)
		taken[e]++
	}
	for _, e := range target.Endpoints {
		if taken[e] != 200 {
			t.Errorf("one of five equal endpoints was chosen %d times of 1000", taken[e])
		}
	}
	idle := target.Endpoints[3]
	idle.active.Store(7)
	for range 193 {
		if e := target.choose(now, nil); e != idle {
			t.Fatal("the endpoint with the least to do is not chosen")
		}
		idle.active.Add(1)
	}
	alone := &Target{Endpoints: target.Endpoints[:1]}
	alone.Endpoints[0].failed(now, errors.New("refused"))
	if alone.choose(now, nil) == nil || alone.choose(now, attempts{alone.Endpoints[0]}) != nil {
		t.Error("an only endpoint is to be tried once, ejected or not")
	}
}

// TestManyStreams has an HTTP/2 server take two streams a connection: further connections are made, up to
// a bound, and who finds no room there waits for it.
func TestManyStreams(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		const perConn = 2
		type call struct {
			p    *framed
			mu   *sync.Mutex
			open *int
			id   uint32
		}
		calls := make(chan call, 100)
		var conns atomic.Int64
		addr := server(t, func(c net.Conn, _ int) {
			p := newFramed(c, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: perConn})
			conns.Add(1)
			var mu sync.Mutex
			open := 0
			for head := p.request(); head != nil; head = p.request() {
				mu.Lock()
				if open++; open > perConn { // it was not known yet
					open--
					_ = p.WriteRSTStream(head.StreamID, http2.ErrCodeRefusedStream)
				} else {
					calls <- call{p, &mu, &open, head.StreamID}
				}
				mu.Unlock()
			}
		})
		e := &Endpoint{Address: addr, HTTP2: true}
		r := newRig(t, portable, DefaultLimits(), e)
		c := r.client(true)
		const n = maxSessions*perConn + 10
		var good atomic.Int64
		var callers sync.WaitGroup
		for range n {
			callers.Go(func() {
				if status, _, err := r.send(c, "POST", "/", strings.NewReader("x")); status == 200 && err == nil {
					good.Add(1)
				}
			})
		}
		eventually(t, "the others wait", func() bool {
			return r.pool(e, func(p *pool) bool { return len(p.waiting) == 10 && len(p.sessions) == maxSessions })
		})
		for range n {
			select {
			case a := <-calls:
				a.mu.Lock()
				*a.open--
				a.p.head(a.id, true, ":status", "200")
				a.mu.Unlock()
			case <-time.After(time.Minute):
				t.Fatalf("%d of %d were answered, the others wait for ever", good.Load(), n)
			}
		}
		callers.Wait()
		if good.Load() != n || conns.Load() != maxSessions {
			t.Errorf("%d of %d were answered, over %d connections, want %d", good.Load(), n, conns.Load(), maxSessions)
		}
	})
}

// TestIdleSessions closes HTTP/2 connections that have nothing to do: those that have served, and those
// for which nobody waited any more when they were ready.
func TestIdleSessions(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		limits := DefaultLimits()
		limits.IdleUpstream = 20 * time.Millisecond
		app := application(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		e := &Endpoint{Address: app, HTTP2: true}
		links := counted(e)
		r := newRig(t, portable, limits, e)
		c := r.client(false)
		for range 3 {
			if status, _, err := r.send(c, "GET", "/", nil); status != 200 || err != nil {
				t.Fatalf("%d %v", status, err)
			}
			eventually(t, "the connection is closed", func() bool {
				return r.pool(e, func(p *pool) bool { return len(p.sessions) == 0 })
			})
		}
		r.on(func() { // as when who waited has left
			p := r.w.pool(e)
			p.dialing++
			r.w.dial(e, nil, p.dialed)
		})
		eventually(t, "the connection that nobody used is closed", func() bool {
			return links.Load() == 0 && r.pool(e, func(p *pool) bool { return p.dialing == 0 && len(p.sessions) == 0 })
		})
	})
}

// TestRetire lets an endpoint go while requests are in flight to it and wait for it.
func TestRetire(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		for _, h2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("h2=%t", h2), func(t *testing.T) {
				gate, arrived := make(chan struct{}), make(chan struct{}, 100)
				app := application(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path == "/slow" {
						arrived <- struct{}{}
						<-gate
					}
					_, _ = io.Copy(w, r.Body)
				}))
				e := &Endpoint{Address: app, HTTP2: h2, Idle: idleHere}
				links := counted(e)
				r := newRig(t, portable, DefaultLimits(), e)
				c := r.client(false)
				var callers sync.WaitGroup
				for range 4 {
					callers.Go(func() {
						if status, _, err := r.send(c, "GET", "/", nil); status != 200 || err != nil {
							t.Errorf("%d %v", status, err)
						}
						if status, got, err := r.send(c, "POST", "/slow", strings.NewReader("content")); status != 200 || got != "content" || err != nil {
							t.Errorf("%d %q %v", status, got, err)
						}
					})
				}
				for range 4 {
					<-arrived
				}
				r.on(func() { r.w.Retire(e); r.w.Retire(e) })
				close(gate)
				callers.Wait()
				eventually(t, "its connections have ended", func() bool { return links.Load() == 0 })
				// A request that was under way to it before, and still comes: nothing is kept.
				if status, _, err := r.send(c, "GET", "/", nil); status != 200 || err != nil {
					t.Errorf("%d %v", status, err)
				}
				eventually(t, "its connections have ended again", func() bool {
					pools := 0
					r.on(func() { pools = len(r.w.pools) })
					return links.Load() == 0 && pools == 0
				})
			})
		}
	})
}

// TestRetireWaiting lets an endpoint go while requests wait for its first connection.
func TestRetireWaiting(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		for _, proto := range []string{"h2", "http/1.1"} {
			t.Run(strings.ReplaceAll(proto, "/", "_"), func(t *testing.T) {
				app, release := slowHandshake(t, proto)
				links := counted(app)
				r := newRig(t, portable, DefaultLimits(), app)
				c := r.client(true)
				var callers sync.WaitGroup
				for range 5 {
					callers.Go(func() {
						if status, got, err := r.send(c, "POST", "/", strings.NewReader("content")); status != 200 || got != "content" || err != nil {
							t.Errorf("%d %q %v", status, got, err)
						}
					})
				}
				eventually(t, "all wait", func() bool {
					return r.pool(app, func(p *pool) bool { return len(p.waiting) == 5 })
				})
				r.on(func() { r.w.Retire(app) })
				release()
				callers.Wait()
				eventually(t, "its connections have ended", func() bool {
					pools := 0
					r.on(func() { pools = len(r.w.pools) })
					return links.Load() == 0 && pools == 0
				})
			})
		}
	})
}

// slowHandshake is an application behind TLS that echoes, and waits before its handshakes.
func slowHandshake(t *testing.T, proto string) (*Endpoint, func()) {
	t.Helper()
	config := serverTLS(t, proto)
	app := tlsApplication(t, config, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
	e, _, release := held(t, func(c net.Conn, _ int) {
		to, err := net.Dial("tcp", app.String())
		if err != nil {
			t.Error(err)
			return
		}
		defer to.Close()
		go func() { _, _ = io.Copy(to, c); _ = to.Close() }()
		_, _ = io.Copy(c, to)
	})
	return e, release
}

// TestFirstTakesTheFirst checks the order in which waiting exchanges get connections, and who is left out.
func TestFirstTakesTheFirst(t *testing.T) {
	a, gone, again, b := &Exchange{waits: true}, &Exchange{}, &Exchange{waits: true, retried: true}, &Exchange{waits: true}
	p := &pool{waiting: []*Exchange{again, gone, a, b}}
	for i, want := range []*Exchange{a, b, nil} {
		if got := p.first(true); got != want {
			t.Errorf("%d for a used connection: %p, want %p", i, got, want)
		}
	}
	if p.first(false) != again || p.first(false) != nil || len(p.waiting) != 0 {
		t.Error("the one that was failed does not get the new connection")
	}
}

// TestConnectTimeout gives up on an endpoint whose handshake never ends.
func TestConnectTimeout(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		limits := DefaultLimits()
		limits.Connect = 50 * time.Millisecond
		e, conns, _ := held(t, nil)
		var why atomic.Value
		e.Failed = func(err error) { why.Store(err) }
		r := newRig(t, portable, limits, e)
		if status, _, err := r.send(r.client(false), "GET", "/", nil); status != 503 || err != nil {
			t.Errorf("%d %v", status, err)
		}
		if err, _ := why.Load().(error); !errors.Is(err, errConnectTimeout) && !errors.Is(err, loop.ErrHandshakeTimeout) {
			t.Errorf("it failed because of %v", err)
		}
		if conns.Load() != 1 {
			t.Errorf("%d connections", conns.Load())
		}
		eventually(t, "nothing is left", func() bool {
			open := int64(0)
			r.on(func() { open = r.w.loop.Open() })
			return open <= 1
		})
	})
}
