package relay

import (
	"time"

	"golang.org/x/net/http2"

	"countersign.dev/proxy/internal/h2"
	"countersign.dev/proxy/internal/loop"
	"countersign.dev/proxy/internal/message"
)

// h2Server is a connection on which HTTP/2 requests come in.
type h2Server struct {
	w      *Worker
	c      *loop.Conn
	h      *h2.Conn
	peer   *Peer
	idle   *loop.Timer
	ticked time.Time
	// partial says that a part of a frame or of a head has come, and head bounds how long the rest may take.
	partial bool
	head    *loop.Timer
}

// h2Front is the end of an exchange that is a stream of an h2Server.
type h2Front struct {
	s     *h2Server
	st    *h2.Stream
	x     Exchange
	left  int       // of an answer that is complete, at the last look
	since time.Time // when that was

	// restores says that the caller can tell an application's own 2xx from a change of protocol.
	restores bool
}

func (w *Worker) newH2Server(c *loop.Conn, p *Peer) *h2Server {
	s := &h2Server{w: w, c: c, peer: p}
	cfg := w.limits.front
	if !p.ID.IsZero() {
		cfg = w.limits.member
	}
	cfg.Intern, cfg.Events, cfg.Dirty, cfg.Bulk = &w.intern, s.event, s.dirty, s.bulk
	s.h = h2.New(cfg)
	s.partial, s.head = true, w.loop.After(w.limits.Head, c.Close) // the preface is due
	s.idle = w.loop.NewTimer(s.tooIdle)
	s.idle.Reset(w.idleOf(p))
	s.dirty()
	return s
}

func (s *h2Server) tooIdle() {
	if s.h.Streams() > 0 { // one that is cut short does not say when it is over
		s.idle.Reset(s.w.idleOf(s.peer))
		return
	}
	if s.h.Leaving() { // and the client has not answered the warning
		s.c.Close()
		return
	}
	s.Leave()
	s.idle.Reset(s.w.limits.Head)
}

// Leave implements Front.
func (s *h2Server) Leave() {
	if !s.h.Leaving() {
		s.h.Leave()
		s.settle()
	}
}

// Exchanges implements Front.
func (s *h2Server) Exchanges(yield func(*Exchange) bool) {
	for st := range s.h.All() {
		if f, ok := st.Owner.(*h2Front); ok && !yield(&f.x) {
			return
		}
	}
}

// stalled resets streams whose caller has taken nothing since a moment of an answer that is complete: their
// exchanges are over.
func (s *h2Server) stalled(since time.Time) {
	for st := range s.h.All() {
		f, ok := st.Owner.(*h2Front)
		switch {
		case !ok || !f.x.over || st.Queued() == 0:
		case f.since.IsZero() || st.Queued() != f.left:
			f.left, f.since = st.Queued(), s.w.loop.Now()
		case f.since.Before(since):
			f.abort()
		}
	}
}

// Busy implements Front.
func (s *h2Server) Busy() bool { return s.h.Streams() > 0 }

// dirty asks for a flush at the end of the round.
func (s *h2Server) dirty() { s.w.flushLater(s) }

// send passes output to the connection.
func (s *h2Server) send() {
	if out := s.h.Output(); len(out) > 0 {
		s.c.Write(out)
		s.h.Sent()
	}
	s.settle()
}

func (s *h2Server) settle() {
	switch {
	case s.c.Dead():
	case s.h.Left() || s.h.Err() != nil:
		if out := s.h.Output(); len(out) > 0 {
			s.c.Write(out)
			s.h.Sent()
		}
		s.c.CloseAfterFlush()
	default:
		s.h.SetCongested(s.c.Congested())
	}
}

// bulk passes output and a large piece of content to the connection now.
func (s *h2Server) bulk(p []byte) {
	s.c.Write(s.h.Output())
	s.h.Sent()
	s.c.Write(p)
	if s.c.Congested() {
		s.h.SetCongested(true)
	}
}

// Data implements loop.Handler.
func (s *h2Server) Data(p []byte) {
	s.w.tick(s.h, &s.ticked)
	_ = s.h.Feed(p) // the error is kept, and settle closes
	s.settle()
	if partial := s.h.Partial(); partial != s.partial {
		s.partial = partial
		if partial { // and not anew with every byte
			s.head.Reset(s.w.limits.Head)
		} else {
			s.head.Stop()
		}
	}
}

// End implements loop.Handler.
func (s *h2Server) End() { s.c.Close() }

// Drained implements loop.Handler.
func (s *h2Server) Drained() {
	s.h.SetCongested(false)
	s.send()
}

// Closed implements loop.Handler.
func (s *h2Server) Closed(error) {
	s.h.Close()
	s.idle.Stop()
	s.head.Stop()
}

func (s *h2Server) event(e *h2.Event) {
	if e.Kind == h2.Headers {
		s.w.loop.Shared()
		f := s.w.spares.front()
		f.s, f.st = s, e.Stream
		e.Stream.Owner = f
		if e.Head.Upgrade != "" {
			f.restores = takeField(e.Head, upgradeField)
		}
		f.x.Proto = "HTTP/2.0"
		s.w.begin(&f.x, s.peer, f, e.Head, e.End)
		return
	}
	f, ok := ownerOf(e)
	if !ok {
		return
	}
	switch e.Kind {
	case h2.Data:
		f.x.requestBody(e.Data, e.End)
	case h2.Trailers:
		f.x.requestTrailers(e.Fields)
	case h2.Reset:
		f.x.frontGone()
	case h2.Writable:
		f.x.frontDrained()
		if f.x.over {
			f.restNotWanted()
		}
	case h2.Headers, h2.GoingAway:
	}
}

func ownerOf(e *h2.Event) (*h2Front, bool) {
	if e.Stream == nil {
		return nil, false
	}
	f, ok := e.Stream.Owner.(*h2Front)
	return f, ok
}

// upgradeField goes with an extended CONNECT that stands for an HTTP/1.1 request with an Upgrade field,
// and with the response when the application has not changed the protocol. In HTTP/2 alone its 2xx
// could not be told from a change (RFC 8441 section 4). It never leaves the sidecars.
const (
	upgradeField   = "x-countersign-upgrade"
	upgradeOffered = "offered"
	upgradeRefused = "refused"
)

// takeField removes a field and tells whether it was there.
func takeField(h *message.Head, name string) bool {
	_, ok := h.Get(name)
	if ok {
		h.Remove(func(n string) bool { return n == name })
	}
	return ok
}

// takes implements front.
func (f *h2Front) takes(h *message.Head) bool {
	return f.restores || f.x.Head.Upgrade == "" || h.Status < 200 || h.Status >= 300
}

// respond implements front.
func (f *h2Front) respond(h *message.Head, end bool) {
	if f.x.Head.Upgrade != "" {
		takeField(h, upgradeField) // an application's own
	}
	if h.Status == 101 { // RFC 8441 section 4: a tunnel is opened by any 2xx
		f.st.Respond(&message.Head{Status: 200, ContentLength: message.Unknown, Fields: h.Fields}, false)
		return
	}
	if f.x.Head.Upgrade != "" && h.Status >= 200 && h.Status < 300 {
		h.Add(upgradeField, upgradeRefused)
	}
	f.s.w.loop.Shared()
	f.st.Respond(h, end)
	if end {
		f.done()
	}
}

// write implements half.
func (f *h2Front) write(p []byte, end bool) {
	f.st.Write(p, end)
	if end {
		f.done()
	}
}

// finish implements half.
func (f *h2Front) finish(trailers []message.Field) {
	f.st.End(trailers)
	f.done()
}

// done is the end of a response.
func (f *h2Front) done() {
	f.restNotWanted()
	f.s.idle.Reset(f.s.w.idleOf(f.s.peer))
}

// restNotWanted tells the caller so when the response is out and the request is not whole (RFC 9113
// section 8.1).
func (f *h2Front) restNotWanted() {
	if !f.x.reqDone && !f.st.Gone() && f.st.Queued() == 0 {
		f.st.Reset(http2.ErrCodeNo)
	}
}

// room implements half.
func (f *h2Front) room() int { return f.st.Room() }

// consumed implements half.
func (f *h2Front) consumed(n, _ int) { f.st.Consumed(n) }

// abort implements half.
func (f *h2Front) abort() { f.st.Reset(http2.ErrCodeInternal) }
