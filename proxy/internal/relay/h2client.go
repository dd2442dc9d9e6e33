package relay

import (
	"net/netip"

	"golang.org/x/net/http2"

	"countersign.dev/proxy/internal/h2"
	"countersign.dev/proxy/internal/loop"
	"countersign.dev/proxy/internal/message"
)

// h2Client is a connection on which HTTP/2 requests go out: one for each loop and instance.
type h2Client struct {
	w      *Worker
	c      *loop.Conn
	h      *h2.Conn
	pool   *pool
	addr   netip.AddrPort
	closed func()
	old    bool // no further request is sent: its certificate was replaced
	served int
}

// h2Back is the end of an exchange that is a stream of an h2Client.
type h2Back struct {
	k   *h2Client
	st  *h2.Stream
	x   *Exchange
	end bool // the response is complete
}

func (w *Worker) newH2Client(c *loop.Conn, p *pool, addr netip.AddrPort) *h2Client {
	k := &h2Client{w: w, c: c, pool: p, addr: addr}
	cfg := w.limits.member
	cfg.Client = true
	cfg.Intern, cfg.Events, cfg.Dirty, cfg.Bulk = &w.intern, k.event, k.dirty, k.bulk
	k.h = h2.New(cfg)
	k.dirty()
	return k
}

// start sends a request's head.
func (k *h2Client) start(x *Exchange) bool {
	h := x.Head
	b := &h2Back{k: k, x: x}
	end := x.reqDone && !x.earlyEnd && len(x.early) == 0
	st, err := k.h.Open(h, end, b)
	if err != nil {
		return false
	}
	k.served++
	b.st = st
	x.attach(b)
	return true
}

// free tells whether a request may be sent now.
func (k *h2Client) free() bool { return !k.old && k.h.CanOpen() && !k.c.Dead() }

func (k *h2Client) dirty() { k.w.flushLater(k) }

func (k *h2Client) send() {
	if out := k.h.Output(); len(out) > 0 {
		k.c.Write(out)
		k.h.Sent()
	}
	k.settle()
}

func (k *h2Client) settle() {
	switch {
	case k.c.Dead():
	case k.h.Err() != nil || k.h.Streams() == 0 && (k.old || k.h.Left()):
		if out := k.h.Output(); len(out) > 0 {
			k.c.Write(out)
			k.h.Sent()
		}
		k.c.CloseAfterFlush()
	default:
		k.h.SetCongested(k.c.Congested())
	}
}

func (k *h2Client) bulk(p []byte) {
	k.c.Write(k.h.Output())
	k.h.Sent()
	k.c.Write(p)
	if k.c.Congested() {
		k.h.SetCongested(true)
	}
}

// Data implements loop.Handler.
func (k *h2Client) Data(p []byte) {
	_ = k.h.Feed(p) // the error is kept, and settle closes
	k.settle()
}

// End implements loop.Handler.
func (k *h2Client) End() { k.c.Close() }

// Drained implements loop.Handler.
func (k *h2Client) Drained() {
	k.h.SetCongested(false)
	k.send()
}

// Closed implements loop.Handler.
func (k *h2Client) Closed(error) {
	k.pool.lostSession(k)
	k.h.Close()
	if k.closed != nil {
		k.closed()
	}
}

func (k *h2Client) event(e *h2.Event) {
	if e.Kind == h2.GoingAway {
		k.pool.lostSession(k)
		return
	}
	b, ok := e.Stream.Owner.(*h2Back)
	if !ok {
		return
	}
	x := b.x
	switch e.Kind {
	case h2.Headers:
		b.end = e.End
		if x.head.Upgrade != "" && e.Head.Status >= 200 && e.Head.Status < 300 {
			e.Head.Status, e.Head.Upgrade = 101, x.head.Upgrade
		}
		x.response(e.Head, e.End)
	case h2.Data:
		b.end = e.End
		x.responseBody(e.Data, e.End)
	case h2.Trailers:
		b.end = true
		x.responseTrailers(x.Peer.service.Trailers(e.Fields))
	case h2.Reset:
		if !b.end || e.Code != http2.ErrCodeNo {
			x.backGone(e.Unprocessed)
		}
	case h2.Writable:
		x.backDrained()
	case h2.GoingAway:
	}
	if !b.k.free() || b.k.h.Streams() == 0 {
		k.pool.next()
	}
}

// write implements half.
func (b *h2Back) write(p []byte, end bool) { b.st.Write(p, end) }

// finish implements half.
func (b *h2Back) finish(trailers []message.Field) { b.st.End(trailers) }

// congested implements half.
func (b *h2Back) congested() bool { return b.st.Queued() > 0 }

// consumed implements half.
func (b *h2Back) consumed(n int) { b.st.Consumed(n) }

// abort implements half.
func (b *h2Back) abort() { b.st.Reset(http2.ErrCodeCancel) }

// reused implements back.
func (b *h2Back) reused() bool { return false }
