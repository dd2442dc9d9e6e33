package relay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign.dev/mtls"
	"countersign.dev/proxy/internal/loop"
	"countersign.dev/proxy/internal/message"
)

// TestSoak carries many exchanges of all kinds at once through two proxies, first in peace and then while
// connections are reset, endpoints replaced and exchanges cut. COUNTERSIGN_SOAK=1 makes it long;
// COUNTERSIGN_SEED repeats one run.
func TestSoak(t *testing.T) {
	seeds, each := []uint64{1}, 40
	if os.Getenv("COUNTERSIGN_SOAK") != "" {
		seeds, each = nil, 400
		for i := range uint64(40) {
			seeds = append(seeds, i+uint64(time.Now().UnixNano()))
		}
	}
	if s, err := strconv.ParseUint(os.Getenv("COUNTERSIGN_SEED"), 10, 64); err == nil {
		seeds = []uint64{s}
	}
	for _, seed := range seeds {
		drivers(t, func(t *testing.T, portable bool) {
			for _, proto := range []string{"h2", "http/1.1"} {
				for _, app2 := range []bool{true, false} {
					t.Run(fmt.Sprintf("%s/app2=%t/seed=%d", strings.ReplaceAll(proto, "/", "_"), app2, seed), func(t *testing.T) {
						newSoak(t, seed, portable, proto, app2).run(each)
					})
				}
			}
		})
		if t.Failed() {
			return
		}
	}
}

// soak is two proxies with an application behind them and what is done to them.
type soak struct {
	t       *testing.T
	seed    uint64
	group   *loop.Group
	workers map[*loop.Loop]*Worker
	out, in *book
	app     *soakApp
	addr    netip.AddrPort
	newOut  func() *Endpoint
	newIn   func() *Endpoint
	chaos   atomic.Bool
	links   atomic.Int64
	client  [2]*http.Client // by version

	mu        sync.Mutex
	endpoints []*Endpoint // all that there ever were
	fronts    map[*loop.Conn]Front
	failed    [2]int // exchanges that did not end well, in peace and in chaos
	good      [2]int
}

// book is a Service that knows its exchanges.
type book struct {
	*ledger
	named map[string][]Outcome // guarded by ledger.mu
}

func (b *book) Done(x *Exchange, o *Outcome) {
	b.mu.Lock()
	_, name, _ := strings.Cut(x.Head.Target, "name=")
	b.named[name] = append(b.named[name], *o)
	b.mu.Unlock()
	b.ledger.Done(x, o)
}

// ending is how an exchange of a name ended.
func (b *book) ending(name string) []Outcome {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.named[name]
}

func (b *book) Trailers(fields []message.Field) []message.Field { return fields }

func newSoak(t *testing.T, seed uint64, portable bool, proto string, app2 bool) *soak {
	t.Helper()
	s := &soak{t: t, seed: seed, workers: map[*loop.Loop]*Worker{}, fronts: map[*loop.Conn]Front{}}
	var err error
	if s.group, err = loop.NewGroup(2, loop.Config{Portable: portable}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.group.Stop)
	limits := DefaultLimits()
	limits.Idle, limits.IdleUpstream = 3*time.Second, time.Second // so that ends meet requests, but not those of busy loops
	for _, l := range s.group.Loops() {
		s.workers[l] = NewWorker(l, limits)
	}
	s.app = newSoakApp(t)
	s.newIn = func() *Endpoint {
		return s.endpoint(&Endpoint{Address: s.app.addr, HTTP2: app2, Idle: 500 * time.Millisecond})
	}
	s.in = &book{newLedger(&Target{Endpoints: []*Endpoint{s.newIn()}}), map[string][]Outcome{}}
	ids := identities(t, "a", "b")
	server := mtls.NewServer(mtls.NewStatic(ids[1]), mtls.ServerOptions{NextProtos: []string{proto}}).Config()
	inbound := listen(t, s.group, func(c *loop.Conn) {
		c.Handle(quiet{})
		c.StartTLS(server, false, 10*time.Second, func(err error) {
			if err == nil {
				p := &Peer{Service: s.in}
				p.ID, _ = mtls.PeerID(*c.TLS())
				s.serve(c, p, c.TLS().NegotiatedProtocol == "h2")
			}
		})
	})
	client := mtls.NewClient(mtls.NewStatic(ids[0]), mtls.ClientOptions{Expect: ids[1].ID, NextProtos: []string{"h2", "http/1.1"}})
	s.newOut = func() *Endpoint {
		return s.endpoint(&Endpoint{Address: inbound, Idle: 500 * time.Millisecond, TLS: func(*Link) (*tls.Config, error) { return client.Config() }})
	}
	s.out = &book{newLedger(&Target{Endpoints: []*Endpoint{s.newOut(), s.newOut()}}), map[string][]Outcome{}}
	s.addr = listen(t, s.group, func(c *loop.Conn) {
		f := &sniffer{c: c}
		f.then = func(h2 bool) { s.serve(c, &Peer{Service: s.out}, h2).Data(f.got) }
		c.Handle(f)
	})
	for i := range s.client {
		tr := &http.Transport{Protocols: new(http.Protocols), MaxIdleConnsPerHost: 100}
		tr.Protocols.SetHTTP1(i == 0)
		tr.Protocols.SetUnencryptedHTTP2(i == 1)
		t.Cleanup(tr.CloseIdleConnections)
		s.client[i] = &http.Client{Transport: tr}
	}
	return s
}

func (s *soak) endpoint(e *Endpoint) *Endpoint {
	e.Opened = func(k *Link) error {
		s.links.Add(1)
		k.Closed = func() { s.links.Add(-1) }
		return nil
	}
	s.mu.Lock()
	s.endpoints = append(s.endpoints, e)
	s.mu.Unlock()
	return e
}

func (s *soak) serve(c *loop.Conn, p *Peer, h2 bool) Front {
	w := s.workers[c.Loop()]
	serve := w.ServeHTTP1
	if h2 {
		serve = w.ServeHTTP2
	}
	f := serve(c, p)
	s.mu.Lock()
	s.fronts[c] = f
	s.mu.Unlock()
	c.AfterClosed(func() {
		s.mu.Lock()
		delete(s.fronts, c)
		s.mu.Unlock()
	})
	return f
}

// run has callers of both versions ask, and sees that nothing is left in the end.
func (s *soak) run(each int) {
	s.t.Helper()
	for _, chaos := range []bool{false, true} {
		s.chaos.Store(chaos)
		stop := make(chan struct{})
		var troublemakers, callers sync.WaitGroup
		if chaos {
			for i := range uint64(3) {
				r := rand.New(rand.NewPCG(s.seed, 100+i))
				troublemakers.Go(func() { s.trouble(r, stop) })
			}
		}
		for i := range uint64(8) {
			r := rand.New(rand.NewPCG(s.seed, i))
			callers.Go(func() {
				for n := range each {
					s.ask(r, fmt.Sprintf("%d.%d", i, n))
				}
			})
		}
		s.watch(&callers, stop)
		troublemakers.Wait()
	}
	s.mu.Lock()
	s.t.Logf("in peace %d good and %d failed, in chaos %d and %d", s.good[0], s.failed[0], s.good[1], s.failed[1])
	if s.good[0] == 0 || s.good[1] == 0 {
		s.t.Error("nothing went well")
	}
	s.mu.Unlock()
	s.empty()
}

// watch waits for the callers, but not for ever.
func (s *soak) watch(callers *sync.WaitGroup, stop chan struct{}) {
	s.t.Helper()
	done := make(chan struct{})
	go func() { callers.Wait(); close(done) }()
	select {
	case <-done:
		close(stop)
	case <-time.After(4 * time.Minute):
		close(stop)
		s.dump()
		s.t.Fatal("exchanges hang")
	}
}

// dump says what hangs.
func (s *soak) dump() {
	_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
	for _, b := range []*book{s.out, s.in} {
		b.mu.Lock()
		for x := range b.open {
			done := make(chan string, 1)
			x.w.loop.Post(func() {
				done <- fmt.Sprintf("%v %v %s %s: front %T, back %T, waits %t, request done %t, answered %t, owed %d and %d, tries %d",
					b == s.out, x.Began, x.Method, x.Path, x.front, x.back, x.waits, x.reqDone, x.responded, x.owedFront, x.owedBack, x.tries)
			})
			fmt.Fprintln(os.Stderr, <-done)
		}
		b.mu.Unlock()
	}
}

// empty sees that nothing is left when all callers have gone and all endpoints are retired.
func (s *soak) empty() {
	t := s.t
	for i := range s.client {
		s.client[i].CloseIdleConnections()
	}
	for _, b := range []*book{s.out, s.in} {
		deadline := time.Now().Add(20 * time.Second)
		for b.running(t) > 0 {
			if time.Now().After(deadline) {
				s.dump()
				t.Fatal("exchanges are never done")
			}
			time.Sleep(time.Millisecond)
		}
	}
	s.mu.Lock()
	endpoints := s.endpoints
	s.mu.Unlock()
	for _, e := range endpoints {
		if n := e.active.Load(); n != 0 {
			t.Errorf("%d exchanges are still counted at an endpoint", n)
		}
		s.retire(e)
	}
	eventually(t, "the pools are empty", func() bool {
		n := 0
		s.onLoops(func(w *Worker) { n += len(w.pools) })
		return n == 0
	})
	eventually(t, "no connection is left", func() bool {
		n := s.links.Load()
		for l := range s.workers {
			n += l.Open()
		}
		return n == 0
	})
}

// onLoops runs f on one loop after the other.
func (s *soak) onLoops(f func(w *Worker)) {
	for l, w := range s.workers {
		done := make(chan struct{})
		if l.Post(func() { f(w); close(done) }) {
			<-done
		}
	}
}

func (s *soak) retire(e *Endpoint) { s.onLoops(func(w *Worker) { w.Retire(e) }) }

// trouble does what happens to proxies.
func (s *soak) trouble(r *rand.Rand, stop chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(r.IntN(30)) * time.Millisecond):
		}
		switch r.IntN(8) {
		case 0, 1: // a connection breaks
			s.someFront(r, func(c *loop.Conn, _ Front) { c.Reset() })
		case 2:
			s.someFront(r, func(_ *loop.Conn, f Front) { f.Leave() })
		case 3, 4:
			s.someFront(r, func(_ *loop.Conn, f Front) {
				for x := range f.Exchanges {
					if r.IntN(3) == 0 {
						x.Cut()
					}
				}
			})
		case 5:
			s.replace(s.out, s.newOut(), r)
		case 6:
			s.replace(s.in, s.newIn(), r)
		default:
			s.app.breakOne(r)
		}
	}
}

// someFront does something to a connection that came in, on its loop.
func (s *soak) someFront(r *rand.Rand, f func(c *loop.Conn, front Front)) {
	s.mu.Lock()
	var c *loop.Conn
	var front Front
	skip := r.IntN(len(s.fronts) + 1)
	for c, front = range s.fronts {
		if skip--; skip < 0 {
			break
		}
	}
	s.mu.Unlock()
	if c == nil {
		return
	}
	done := make(chan struct{})
	if c.Loop().Post(func() {
		if !c.Dead() {
			f(c, front)
		}
		close(done)
	}) {
		<-done
	}
}

// replace takes an endpoint out of service and another one in.
func (s *soak) replace(b *book, e *Endpoint, r *rand.Rand) {
	b.mu.Lock()
	before := b.target.Load().Endpoints
	after := append([]*Endpoint(nil), before...)
	i := r.IntN(len(after))
	old := after[i]
	after[i] = e
	b.target.Store(&Target{Endpoints: after})
	b.mu.Unlock()
	s.retire(old)
}

// ask makes one request and judges what comes of it.
func (s *soak) ask(r *rand.Rand, name string) {
	body := make([]byte, size(r))
	for i := range body {
		body[i] = byte(r.Uint32())
	}
	kind := [...]string{"echo", "echo", "whole", "whole", "whole", "early", "abort", "hang"}[r.IntN(8)]
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	left := kind == "hang" || r.IntN(10) == 0 // the caller leaves
	if left {
		after := time.AfterFunc(time.Duration(r.IntN(20))*time.Millisecond, cancel)
		defer after.Stop()
	}
	var reader io.Reader = bytes.NewReader(body)
	if r.IntN(2) == 0 {
		reader = struct{ io.Reader }{reader}
	}
	answer := size(r)
	req, _ := http.NewRequestWithContext(ctx, [...]string{"POST", "PUT"}[r.IntN(2)], fmt.Sprintf("http://%s/%s?size=%d&name=%s", s.addr, kind, answer, name), reader)
	client := r.IntN(2)
	err := s.judge(r, s.client[client], req, kind, body, answer)
	chaos := 0
	if s.chaos.Load() {
		chaos = 1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.good[chaos]++
		return
	}
	s.failed[chaos]++
	switch {
	case ctx.Err() == context.DeadlineExceeded:
		s.t.Errorf("%s %s hangs: %v", kind, name, err)
	case chaos == 0 && !left && kind != "abort" && kind != "early":
		s.t.Errorf("%s %s, version %d, %d bytes and %d back: %v; last %+v and %+v", kind, name, client+1, len(body), answer, err, s.out.ending(name), s.in.ending(name))
	}
}

// size is mostly small.
func size(r *rand.Rand) int { return r.IntN(1 << r.IntN(20)) }

// judge reads an answer; content that seems whole and is not is an error in any case.
func (s *soak) judge(r *rand.Rand, c *http.Client, req *http.Request, kind string, body []byte, answer int) error {
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	from := io.Reader(res.Body)
	if r.IntN(4) == 0 {
		from = &slowly{res.Body, r}
	}
	sum := sha256.New()
	n, err := io.Copy(sum, from)
	if err != nil {
		return err
	}
	if res.StatusCode != 200 && res.StatusCode != 403 {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	got := hex.EncodeToString(sum.Sum(nil))
	switch kind {
	case "echo", "whole":
		own := sha256.Sum256(body)
		if want := hex.EncodeToString(own[:]); res.Trailer.Get("X-Request") != want || kind == "echo" && got != want {
			s.t.Errorf("%s: %d of %d bytes came back whole, as it seems; trailers %v", req.URL, n, len(body), res.Trailer)
		}
	}
	if kind != "echo" && (got != res.Header.Get("X-Sum") || n != int64(answer)) {
		s.t.Errorf("%s: %d of %d bytes seem to be all", req.URL, n, answer)
	}
	return nil
}

// slowly reads a little at a time, and rests now and then.
type slowly struct {
	io.Reader
	r *rand.Rand
}

func (s *slowly) Read(p []byte) (int, error) {
	if s.r.IntN(8) == 0 {
		time.Sleep(time.Millisecond)
	}
	return s.Reader.Read(p[:min(len(p), 1+s.r.IntN(8<<10))])
}
