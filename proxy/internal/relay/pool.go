package relay

import (
	"crypto/tls"
	"net/netip"
	"slices"

	"countersign.dev/proxy/internal/loop"
)

// poolKey names the connections that may serve a target: see [Target.Key].
type poolKey struct {
	target string
	addr   netip.AddrPort
}

// maxIdle bounds the idle HTTP/1.1 connections to one address.
const maxIdle = 128

// maxDials bounds the connections to one address that are being made at once.
const maxDials = 64

// pool is the connections of one loop to one address.
type pool struct {
	w       *Worker
	key     poolKey
	target  *Target // the newest that uses the pool
	session *h2Client
	idle    []*h1Client
	waiting []*waiter
	dialing int
	http1   bool // ALPN chose HTTP/1.1 the last time: a dial serves one waiter
}

// waiter is an exchange that waits for a connection.
type waiter struct {
	x     *Exchange
	p     *pool
	tried int // endpoints that could not be reached
	gone  bool
}

func (wt *waiter) cancel() { wt.gone = true }

// connect finds a connection for an exchange.
func (w *Worker) connect(x *Exchange) {
	t := x.Target
	if t.Counters != nil {
		t.Counters.Requested()
	}
	wt := &waiter{x: x}
	x.wait = wt
	w.attempt(wt)
}

// attempt tries the next endpoint of the waiter's target.
func (w *Worker) attempt(wt *waiter) {
	t := wt.x.Target
	if wt.tried >= len(t.Endpoints) {
		flag := FlagConnect
		if len(t.Endpoints) == 0 {
			flag = FlagNoEndpoint
		}
		wt.x.connectFailed(flag)
		return
	}
	addr := t.choose(w, wt.tried)
	key := poolKey{t.Key, addr}
	p := w.pools[key]
	if p == nil {
		p = &pool{w: w, key: key}
		w.pools[key] = p
	}
	p.target = t
	wt.p = p
	p.serve(wt)
}

// choose takes the endpoints in turn.
func (t *Target) choose(w *Worker, tried int) netip.AddrPort {
	if len(t.Endpoints) == 1 {
		return t.Endpoints[0]
	}
	if tried == 0 {
		t.next.Add(1)
	}
	return t.Endpoints[(int(t.next.Load())+tried)%len(t.Endpoints)]
}

// serve gives a waiter a connection that is there, or has one made.
func (p *pool) serve(wt *waiter) {
	x := wt.x
	if s := p.session; s != nil && s.free() && s.start(x) {
		return
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
	p.waiting = append(p.waiting, wt)
	p.dial()
}

// dial makes connections for those who wait: one each with HTTP/1.1, one for all with HTTP/2.
func (p *pool) dial() {
	want := 1
	if p.http1 || p.target.TLS == nil && !p.target.HTTP2 {
		want = min(len(p.waiting), maxDials)
	}
	for p.dialing < want {
		p.dialing++
		p.dialOne()
	}
}

func (p *pool) dialOne() {
	l, t := p.w.loop, p.target
	over := false
	var conn *loop.Conn
	var cancel func()
	deadline := l.After(p.w.limits.Connect, func() {
		if over {
			return
		}
		over = true
		if conn != nil {
			conn.Close()
		} else {
			cancel()
		}
		p.failed()
	})
	finish := func() bool {
		deadline.Stop()
		was := over
		over = true
		return !was
	}
	cancel = l.Dial(p.key.addr, func(c *loop.Conn, err error) {
		if err != nil {
			if finish() {
				p.failed()
			}
			return
		}
		conn = c
		c.Handle(unborn{})
		if t.TLS == nil {
			if finish() {
				p.connected(c, t.HTTP2, tls.ConnectionState{})
			}
			return
		}
		config, err := t.TLS.Config()
		if err != nil {
			if finish() {
				c.Close()
				p.failed()
			}
			return
		}
		c.StartTLS(config, true, p.w.limits.Handshake, func(err error) {
			if !finish() {
				return
			}
			if err != nil {
				p.failed()
				return
			}
			if t.Counters != nil {
				t.Counters.Handshake()
			}
			state := c.TLS()
			p.connected(c, state.NegotiatedProtocol == "h2", *state)
		})
	})
}

// unborn handles a connection that is not ready yet.
type unborn struct{}

func (unborn) Data([]byte)  {}
func (unborn) End()         {}
func (unborn) Drained()     {}
func (unborn) Closed(error) {}

// connected puts a new connection to use.
func (p *pool) connected(c *loop.Conn, http2 bool, state tls.ConnectionState) {
	p.dialing--
	p.http1 = !http2
	var closed func()
	if p.target.Opened != nil {
		closed = p.target.Opened(state, p.key.addr)
	}
	if counters := p.target.Counters; counters != nil {
		counters.Connected()
		inner := closed
		closed = func() {
			counters.Closed()
			if inner != nil {
				inner()
			}
		}
	}
	if http2 {
		k := p.w.newH2Client(c, p, p.key.addr)
		k.closed = closed
		c.Handle(k)
		p.session = k
		p.next()
		return
	}
	k := &h1Client{w: p.w, c: c, pool: p, addr: p.key.addr, closed: closed}
	k.timer = p.w.loop.NewTimer(c.Close)
	c.Handle(k)
	for len(p.waiting) > 0 {
		wt := p.waiting[0]
		p.waiting = p.waiting[1:]
		if !wt.gone {
			k.start(wt.x)
			p.dial()
			return
		}
	}
	p.putIdle(k)
}

// next lets those who wait use what is there now.
func (p *pool) next() {
	for len(p.waiting) > 0 {
		wt := p.waiting[0]
		if wt.gone {
			p.waiting = p.waiting[1:]
			continue
		}
		s := p.session
		if s == nil || !s.free() {
			if s == nil {
				p.dial()
			}
			return
		}
		p.waiting = p.waiting[1:]
		if !s.start(wt.x) {
			p.waiting = append([]*waiter{wt}, p.waiting...)
			return
		}
	}
}

// putIdle keeps a connection for the next request, which may be waiting.
func (p *pool) putIdle(k *h1Client) {
	if wt := p.patient(); wt != nil {
		// Not at once: the exchange that has just ended is still being told so.
		p.w.loop.Finally(func() {
			if wt.gone {
				p.putIdle(k)
			} else if k.c.Dead() {
				p.serve(wt)
			} else {
				k.start(wt.x)
			}
		})
		return
	}
	if len(p.idle) >= maxIdle {
		k.c.CloseAfterFlush()
		return
	}
	k.idle = true
	p.idle = append(p.idle, k)
	k.timer.Reset(p.w.limits.KeepApp)
}

// patient takes out the first of those who wait that may use a connection which served before: one that
// was failed by such a connection gets a new one.
func (p *pool) patient() *waiter {
	for i, wt := range p.waiting {
		if !wt.gone && !wt.x.retried {
			p.waiting = slices.Delete(p.waiting, i, i+1)
			return wt
		}
	}
	return nil
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

// lostSession makes room for the next session.
func (p *pool) lostSession(k *h2Client) {
	k.old = true
	if p.session == k {
		p.session = nil
		if len(p.waiting) > 0 {
			p.dial()
		}
	}
}

// failed is called when a connection could not be made: those who wait try another endpoint.
func (p *pool) failed() {
	p.dialing--
	if p.target.Counters != nil {
		p.target.Counters.ConnectFailed()
	}
	if p.dialing > 0 {
		return // another attempt is on its way
	}
	waiting := p.waiting
	p.waiting = nil
	for _, wt := range waiting {
		if !wt.gone {
			wt.tried++
			p.w.attempt(wt)
		}
	}
}
