package relay

import (
	"errors"
	"slices"

	"countersign.dev/proxy/internal/h2"
)

// Bounds of a pool.
const (
	maxIdle     = 128 // idle HTTP/1.1 connections
	maxDials    = 64  // HTTP/1.1 connections that are being made at once
	maxSessions = 8   // HTTP/2 connections; the second is made when the first takes no more streams, or is crowded
	maxUnasked  = 100 // streams on an HTTP/2 connection whose SETTINGS have not come, where nothing is known
)

// pool is the connections of one loop to one endpoint.
type pool struct {
	w        *Worker
	e        *Endpoint
	sessions []*h2Client // those that take requests
	idle     []*h1Client
	waiting  []*Exchange // in the order of their arrival; those whose wait is over are skipped
	dialing  int
	http1    bool // ALPN chose HTTP/1.1 the last time: a dial serves one exchange
	retired  bool // nothing is kept any more
	streams  int  // that a new HTTP/2 connection takes, as far as is known
}

// connect finds a connection for an exchange.
func (w *Worker) connect(x *Exchange) {
	e := x.Target.choose(w.loop.Now(), x.tried)
	if e == nil {
		if len(x.Target.Endpoints) == 0 {
			x.fail(503, FlagNoEndpoint, "no instance of the service is known")
		} else {
			x.fail(503, FlagConnect, "connecting to the service failed")
		}
		return
	}
	x.goTo(e)
	w.pool(e).serve(x)
}

func (w *Worker) pool(e *Endpoint) *pool {
	p := w.pools[e]
	if p == nil {
		p = &pool{w: w, e: e, retired: e.retired.Load(), streams: maxUnasked}
		w.pools[e] = p
	}
	return p
}

// Retire lets the connections to an endpoint end with what they have in flight. A request that still
// goes there, because it was decided about before, gets a connection that is not kept. The endpoint is
// not used again: one that comes back is another one.
func (w *Worker) Retire(e *Endpoint) {
	e.retired.Store(true)
	p := w.pools[e]
	if p == nil {
		return
	}
	p.retired = true
	for _, k := range slices.Clone(p.sessions) {
		k.retire()
	}
	for _, k := range p.idle {
		k.idle = false
		k.c.Close()
	}
	p.idle = nil
	p.tidy()
}

// tidy forgets a retired pool that nobody waits for.
func (p *pool) tidy() {
	if p.retired && p.dialing == 0 && p.w.pools[p.e] == p && !slices.ContainsFunc(p.waiting, func(x *Exchange) bool { return x.waits }) {
		delete(p.w.pools, p.e)
	}
}

// serve gives an exchange a connection that is there, or has one made.
func (p *pool) serve(x *Exchange) {
	patient := false
	for _, s := range p.sessions {
		// What slow readers have not taken holds the window that all streams of a session share.
		// And what was there when one has failed the exchange is likely to end with it: the peer restarts.
		if (s.h.Crowded() || x.retried && s.n <= x.after) && len(p.sessions) < maxSessions {
			continue
		}
		err := s.start(x)
		switch {
		case err == nil:
			return
		case errors.Is(err, h2.ErrNoConnectProtocol):
			p.alone(x)
			return
		case errors.Is(err, h2.ErrNoSettings):
			patient = true
		}
	}
	for len(p.idle) > 0 && !x.retried { // what was idle has failed it once
		k := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		k.idle = false
		k.timer.Stop()
		if !k.c.Dead() {
			k.start(x)
			return
		}
	}
	x.waits, x.waited = true, true
	p.waiting = append(p.waiting, x)
	if !patient && len(p.sessions) < maxSessions {
		p.dial()
	}
}

// dial makes connections for those who wait: one each with HTTP/1.1, one for all with HTTP/2.
func (p *pool) dial() {
	want := 1
	if p.http1 || p.e.TLS == nil && !p.e.HTTP2 {
		want = min(len(p.waiting), maxDials)
	}
	for p.dialing < want {
		p.dialing++
		p.w.dial(p.e, p.e.TLS, p.dialed)
	}
}

// dialed puts a new connection to use, or lets those who wait try another endpoint.
func (p *pool) dialed(k *Link, err error) {
	p.dialing--
	defer p.tidy()
	if err != nil {
		if p.dialing == 0 { // else another attempt is on its way
			p.giveUp()
		}
		return
	}
	http2 := p.e.HTTP2
	if p.e.TLS != nil {
		http2 = k.Conn.TLS().NegotiatedProtocol == "h2"
	}
	p.http1 = !http2
	if http2 {
		p.sessions = append(p.sessions, p.w.newH2Client(k, p))
		p.next()
		if p.retired {
			k.Retire()
		}
		return
	}
	c := p.w.newH1Client(k, p)
	if x := p.first(false); x != nil {
		c.start(x)
		p.dial()
		return
	}
	p.putIdle(c)
}

// alone makes a connection of HTTP/1.1 for one exchange, which asks for a change of protocol that the
// peer's HTTP/2 does not know.
func (p *pool) alone(x *Exchange) {
	if p.e.OnlyHTTP1 == nil {
		x.fail(502, FlagReset, "the service does not take a change of protocol")
		return
	}
	x.waits, x.waited = true, true
	p.w.dial(p.e, p.e.OnlyHTTP1, func(k *Link, err error) {
		switch {
		case err != nil && x.waits:
			x.waits = false
			x.unreachable()
		case err != nil:
		case !x.waits:
			k.Conn.Handle(unborn{k})
			k.Conn.Close()
		default:
			x.waits = false
			c := p.w.newH1Client(k, p)
			c.close = true
			c.start(x)
		}
	})
}

// first takes out the first exchange that waits; with used, one that may use a connection which served
// before: an exchange that was failed by such a connection gets a new one.
func (p *pool) first(used bool) *Exchange {
	for i := 0; i < len(p.waiting); i++ {
		x := p.waiting[i]
		if x.waits && used && x.retried {
			continue
		}
		p.waiting = slices.Delete(p.waiting, i, i+1)
		if x.waits {
			x.waits = false
			return x
		}
		i--
	}
	return nil
}

// next lets those who wait use the sessions that are there.
func (p *pool) next() {
	if len(p.waiting) == 0 {
		return
	}
	waiting := p.waiting
	p.waiting = nil
	for _, x := range waiting {
		if x.waits {
			x.waits = false
			p.serve(x)
		}
	}
}

// putIdle keeps a connection for the next request, which may be waiting.
func (p *pool) putIdle(k *h1Client) {
	if x := p.first(true); x != nil {
		k.start(x)
		return
	}
	if p.retired || len(p.idle) >= maxIdle {
		k.c.CloseAfterFlush()
		return
	}
	k.idle = true
	p.idle = append(p.idle, k)
	k.timer.Reset(p.e.Idle)
}

// lost forgets a connection.
func (p *pool) lost(k *h1Client) {
	k.timer.Stop()
	if !k.idle {
		return
	}
	k.idle = false
	if i := slices.Index(p.idle, k); i >= 0 {
		p.idle = slices.Delete(p.idle, i, i+1)
	}
}

// lostSession forgets an HTTP/2 connection, which takes no more requests.
func (p *pool) lostSession(k *h2Client) {
	i := slices.Index(p.sessions, k)
	if i < 0 {
		return
	}
	p.sessions = slices.Delete(p.sessions, i, i+1)
	p.next()
}

// giveUp sends those who wait to crowded sessions, or to other endpoints.
func (p *pool) giveUp() {
	waiting := p.waiting
	p.waiting = nil
	for _, x := range waiting {
		if x.waits {
			x.waits = false
			if !slices.ContainsFunc(p.sessions, func(s *h2Client) bool { return s.start(x) == nil }) {
				x.unreachable()
			}
		}
	}
}
