package relay

import (
	"slices"
	"time"

	"golang.org/x/net/http2"

	"countersign.dev/proxy/internal/h2"
	"countersign.dev/proxy/internal/loop"
	"countersign.dev/proxy/internal/message"
)

// h2Client is a connection on which HTTP/2 requests go out.
type h2Client struct {
	w    *Worker
	c    *loop.Conn
	h    *h2.Conn
	link *Link
	pool *pool
	n    uint64 // which session of the worker it is
	open int    // streams at the last look
	old  bool   // no further request is sent
	// served: a response has come on it.
	served bool
	heard  bool // something came since the last look
	asked  bool // and when nothing had come, a PING was sent
	// refused says that the peer did not take our certificate, and so nothing of what was sent.
	refused bool
	watch   *loop.Timer
	idle    *loop.Timer
	ticked  time.Time
}

// h2Back is the end of an exchange that is a stream of an h2Client.
type h2Back struct {
	k   *h2Client
	st  *h2.Stream
	x   *Exchange
	end bool // the response is complete
}

func (w *Worker) newH2Client(link *Link, p *pool) *h2Client {
	w.sessions++
	k := &h2Client{w: w, c: link.Conn, link: link, pool: p, n: w.sessions}
	cfg := w.limits.member
	cfg.Client = true
	cfg.Intern, cfg.Events, cfg.Ready, cfg.Dirty, cfg.Bulk = &w.intern, k.event, k.ready, k.dirty, k.bulk
	k.h = h2.New(cfg)
	k.watch, k.idle = w.loop.NewTimer(k.look), w.loop.NewTimer(k.retire)
	link.retire = k.retire
	k.idle.Reset(w.limits.IdleUpstream)
	k.c.Handle(k)
	k.dirty()
	return k
}

// ready is called when the peer's SETTINGS are there.
func (k *h2Client) ready() {
	k.pool.streams = max(1, k.h.MaxStreams()) // one is how to find out more
	k.pool.next()
}

// start sends a request's head.
func (k *h2Client) start(x *Exchange) error {
	switch {
	case k.old || k.c.Dead():
		return h2.ErrNoStream
	case !k.h.Ready() && k.h.Streams() >= k.pool.streams:
		return h2.ErrNoSettings
	}
	b := k.w.spares.back()
	b.k, b.x = k, x
	head := x.Head
	if head.Upgrade != "" && head.Method != "CONNECT" {
		offer := *head
		offer.Fields = append(slices.Clip(head.Fields), message.Field{Name: upgradeField, Value: upgradeOffered})
		head = &offer
	}
	st, err := k.h.Open(head, x.reqDone && len(x.kept) == 0 && x.trailers == nil, b)
	if err != nil {
		return err
	}
	if k.h.Streams() == 1 {
		k.idle.Stop()
		k.watch.Reset(k.w.limits.Silence)
	}
	b.st = st
	k.w.loop.Shared()
	x.attach(b, k.link)
	return nil
}

// look finds out about a peer that is gone without a word: while requests wait for it, it has to say
// something from time to time, if only in answer to a PING.
func (k *h2Client) look() {
	switch {
	case k.h.Streams() == 0:
		return
	case k.heard:
		k.heard, k.asked = false, false
	case k.asked:
		k.c.Reset()
		return
	default:
		k.asked = true
		k.h.Ping()
	}
	k.watch.Reset(k.w.limits.Silence)
}

// retire ends the connection when what it carries is over.
func (k *h2Client) retire() {
	if !k.old {
		k.old = true
		k.pool.lostSession(k)
		k.dirty()
	}
}

func (k *h2Client) dirty() { k.w.flushLater(k) }

func (k *h2Client) send() {
	if out := k.h.Output(); len(out) > 0 {
		k.c.Write(out)
		k.h.Sent()
	}
	k.settle()
}

func (k *h2Client) settle() {
	k.count()
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

// count looks whether streams have ended, for those that wait for one.
func (k *h2Client) count() {
	open := k.h.Streams()
	ended := open < k.open
	k.open = open
	if !ended {
		return
	}
	if open == 0 {
		k.idle.Reset(k.w.limits.IdleUpstream)
	}
	k.pool.next()
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
	k.heard = true
	k.w.tick(k.h, &k.ticked)
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
func (k *h2Client) Closed(err error) {
	k.watch.Stop()
	k.idle.Stop()
	k.old = true
	k.pool.lostSession(k)
	if refused(err) && !k.h.Ready() {
		k.refused = true
		k.link.Endpoint.failed(k.w.loop.Now(), refusal(err))
	}
	k.h.Close()
	k.link.gone()
}

func (k *h2Client) event(e *h2.Event) {
	if e.Kind == h2.GoingAway {
		k.retire()
		return
	}
	b, ok := e.Stream.Owner.(*h2Back)
	if !ok {
		return
	}
	x := b.x
	switch e.Kind {
	case h2.Headers:
		k.w.loop.Shared()
		b.end, k.served = e.End, true
		if x.head.Upgrade != "" && !takeField(e.Head, upgradeField) && e.Head.Status >= 200 && e.Head.Status < 300 {
			e.Head.Status, e.Head.Upgrade = 101, x.head.Upgrade
		}
		x.response(e.Head, e.End)
	case h2.Data:
		b.end = e.End
		x.responseBody(e.Data, e.End)
	case h2.Trailers:
		b.end = true
		x.responseTrailers(x.Peer.Service.Trailers(e.Fields))
	case h2.Reset:
		switch {
		case b.end && e.Code == http2.ErrCodeNo:
		case k.refused:
			x.unreachable()
		default:
			x.backGone(e.Unprocessed || !k.h.Ready())
		}
	case h2.Writable:
		x.backDrained()
	case h2.GoingAway:
	}
}

// write implements half.
func (b *h2Back) write(p []byte, end bool) { b.st.Write(p, end) }

// finish implements half.
func (b *h2Back) finish(trailers []message.Field) { b.st.End(trailers) }

// room implements half.
func (b *h2Back) room() int { return b.st.Room() }

// consumed implements half.
func (b *h2Back) consumed(n, _ int) { b.st.Consumed(n) }

// abort implements half.
func (b *h2Back) abort() { b.st.Reset(http2.ErrCodeCancel) }

// reused implements back. A stream that the peer has reset by itself is an answer; a session that is gone, without
// GOAWAY too, is none: so NGINX ends those that its workers of before still have when their time is over.
func (b *h2Back) reused() bool { return b.k.served && b.k.c.Dead() }
