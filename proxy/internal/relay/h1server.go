package relay

import (
	"time"

	"countersign.dev/proxy/internal/h1"
	"countersign.dev/proxy/internal/loop"
	"countersign.dev/proxy/internal/message"
)

// h1Server is a connection on which HTTP/1.1 requests come in, one after the other.
type h1Server struct {
	w    *Worker
	c    *loop.Conn
	peer *Peer

	reader  h1.Reader
	part    []byte // what came and was not read
	head    message.Head
	body    h1.Body
	x       *Exchange
	minor   int
	isHead  bool
	held    int  // content that was delivered and not consumed
	chunked bool // the response is framed in chunks
	counted bool // ... by a Content-Length
	tunnel  bool
	closing bool // no further request is taken
	gone    bool // the caller has ended its side without having said so
	last    bool // the caller has said that it sends no further request
	leaving bool // the connection ends after the next response
	timer   *loop.Timer
	begun   bool // a part of a head has come
	busy    bool // in the reading loop: do not enter it again
	lingers *loop.Timer
}

func (w *Worker) newH1Server(c *loop.Conn, p *Peer) *h1Server {
	s := &h1Server{w: w, c: c, peer: p}
	s.reader.Intern = &w.intern
	s.timer = w.loop.NewTimer(s.timeout)
	s.timer.Reset(w.limits.Head)
	return s
}

// timeout is called when a head took too long, or nothing came for long.
func (s *h1Server) timeout() {
	switch {
	case s.gone:
		s.c.Reset() // and Closed tells the other end
	case s.x != nil:
		s.slowContent()
	case len(s.part) > 0:
		s.refuse(408, "the head of a request took too long")
	default:
		s.c.Close()
	}
}

// endGrace is how long a caller still gets its response that has ended its side of the connection.
// Most that do so have gone, and the application is to be told; a few have half-closed.
const endGrace = time.Second

// slowContent is called when no content came for long that was announced by its length. Where it was
// not, the request may be a stream that has nothing to say.
func (s *h1Server) slowContent() {
	if s.body.Done() || s.tunnel || s.head.ContentLength == message.Unknown {
		return
	}
	if s.held > 0 { // it is not the caller who is slow
		s.timer.Reset(s.w.limits.Content)
		return
	}
	s.closing = true
	s.x.fail(408, FlagGone, "the content of a request took too long")
}

// Leave implements Front.
func (s *h1Server) Leave() { s.leaving = true }

// Exchanges implements Front.
func (s *h1Server) Exchanges(yield func(*Exchange) bool) {
	if s.x != nil {
		yield(s.x)
	}
}

// Busy implements Front.
func (s *h1Server) Busy() bool { return s.x != nil || len(s.part) > 0 }

// Data implements loop.Handler.
func (s *h1Server) Data(p []byte) {
	if s.closing {
		return // what still comes is not wanted
	}
	if s.tunnel && len(s.part) == 0 {
		s.deliver(p, false)
		return
	}
	if s.busy || s.x != nil && s.body.Done() && !s.tunnel { // pipelined: its turn comes
		s.part = append(s.part, p...)
		if len(s.part) > message.MaxHead {
			s.c.Pause()
		}
		return
	}
	if len(s.part) > 0 {
		s.part = append(s.part, p...)
		p = s.part
		s.part = nil
		s.process(p, true)
		return
	}
	s.process(p, false)
}

// process reads requests and their content. own says that p belongs to the connection.
func (s *h1Server) process(p []byte, own bool) {
	s.busy = true
	for len(p) > 0 && !s.c.Dead() && !s.closing {
		n, wait := s.step(p)
		p = p[n:]
		if wait {
			break
		}
	}
	s.busy = false
	if len(p) > 0 && s.x == nil && !s.begun {
		s.begun = true
		s.timer.Reset(s.w.limits.Head) // and not anew with every byte
	}
	switch {
	case s.closing || s.c.Dead() || len(p) == 0:
	case own:
		s.part = append(p, s.part...)
	default:
		s.part = append(append([]byte(nil), p...), s.part...)
	}
}

// step uses up some of p; wait says that the rest has to wait.
func (s *h1Server) step(p []byte) (used int, wait bool) {
	switch {
	case s.tunnel:
		s.deliver(p, false)
		return len(p), false
	case s.x == nil:
		n, err := s.reader.Request(p, &s.head)
		if err != nil {
			s.refuse(h1.StatusOf(err), err.Error())
			return len(p), true
		}
		if n == 0 {
			return 0, true
		}
		s.request()
		return n, false
	case !s.body.Done():
		content, n, err := s.body.Next(p)
		if err != nil {
			s.broken(err.Error())
			return len(p), true
		}
		s.content(content)
		return n, false
	default:
		return 0, true
	}
}

// request starts an exchange for the head that was read.
func (s *h1Server) request() {
	h := &s.head
	s.begun = false
	s.timer.Stop()
	s.minor, s.isHead = h.Minor, h.Method == "HEAD"
	s.closing = false
	s.c.Limit(0)
	s.last = h.Close
	// What follows a request for another protocol, or for a tunnel, may be in that one: it is not read as a
	// request. (An offer of HTTP/2 was dropped by the codec.)
	s.leaving = s.leaving || h.Close || h.Upgrade != "" || h.Method == "CONNECT"
	s.body = h1.NewBody(h, true, &s.w.intern)
	x := s.w.spares.exchange()
	x.Proto = "HTTP/1.1"
	if h.Minor == 0 {
		x.Proto = "HTTP/1.0"
	}
	s.x = x
	if !s.body.Done() {
		s.timer.Reset(s.w.limits.Content)
	}
	end := s.body.Done() && h.Upgrade == "" && h.Method != "CONNECT"
	s.w.begin(x, s.peer, s, h, end)
}

func (s *h1Server) content(p []byte) {
	done := s.body.Done()
	if done { // there is nothing more to hold back, but the caller may leave
		defer s.c.Resume()
	}
	if done && s.body.Trailers() != nil {
		if len(p) > 0 {
			s.deliver(p, false)
		}
		if s.x != nil {
			s.x.requestTrailers(s.body.Trailers())
		}
		return
	}
	if len(p) > 0 || done {
		s.deliver(p, done)
	}
	if !done {
		s.timer.Reset(s.w.limits.Content)
	}
}

func (s *h1Server) deliver(p []byte, end bool) {
	x := s.x
	if x == nil {
		return
	}
	s.held += len(p)
	x.requestBody(p, end)
	if s.held > 0 && !s.c.Dead() {
		s.c.Pause()
	}
}

// consumed implements half.
func (s *h1Server) consumed(n, room int) {
	if s.held -= n; s.held <= 0 {
		s.held = 0
		s.c.Limit(max(room, minRoom))
		s.c.Resume()
	}
}

// takes implements front.
func (s *h1Server) takes(*message.Head) bool { return true }

// respond implements front.
func (s *h1Server) respond(h *message.Head, end bool) {
	if h.Status < 200 && h.Status != 101 {
		if s.minor == 1 {
			s.c.Write(h1.AppendResponse(s.w.scratch[:0], h))
		}
		return
	}
	out := *h
	noBody := s.isHead || h.Status == 204 || h.Status == 304
	out.Chunked = false
	switch {
	case h.Status == 101:
		s.tunnel = true
		out.ContentLength = message.Unknown
	case s.x.Method == "CONNECT" && h.Status < 300:
		s.tunnel = true
		out.ContentLength = message.Unknown
	case out.Trailer != "" && s.minor == 1 && !end && !noBody: // only chunks can be followed by trailers
		out.Chunked, out.ContentLength = true, message.Unknown
	case end && !noBody && out.ContentLength == message.Unknown:
		out.ContentLength = 0
	case !end && !noBody && out.ContentLength == message.Unknown && s.minor == 1:
		out.Chunked = true
	case !end && !noBody && out.ContentLength == message.Unknown:
		s.leaving = true // HTTP/1.0 knows the end of the content by the end of the connection
	}
	s.chunked, s.counted = out.Chunked, out.ContentLength != message.Unknown
	if !s.tunnel {
		s.leaving = s.leaving || !s.body.Done()
		out.Close = s.leaving
	}
	s.w.scratch = h1.AppendResponse(s.w.scratch[:0], &out)
	s.c.Write(s.w.scratch)
	switch {
	case end:
		s.done()
	case s.tunnel && (len(s.part) > 0 || s.gone):
		s.w.loop.Finally(s.tunnelEarly)
	}
}

// tunnelEarly passes on what came before the answer that has opened a tunnel.
func (s *h1Server) tunnelEarly() {
	if p := s.part; len(p) > 0 && !s.closing {
		s.part = nil
		s.c.Resume()
		s.process(p, true)
	}
	if s.gone && s.x != nil {
		s.gone = false // it has half-closed
		s.timer.Stop()
		s.x.requestBody(nil, true)
	}
}

// write implements half.
func (s *h1Server) write(p []byte, end bool) {
	if s.chunked && len(p) > 0 {
		s.w.scratch = h1.AppendChunkSize(s.w.scratch[:0], len(p))
		s.c.Write(s.w.scratch)
		s.c.Write(p)
		s.c.Write(crlf)
	} else {
		s.c.Write(p)
	}
	if end {
		s.finish(nil)
	}
}

var crlf = []byte("\r\n")

// finish implements half.
func (s *h1Server) finish(trailers []message.Field) {
	if s.chunked {
		s.w.scratch = h1.AppendLastChunk(s.w.scratch[:0], trailers)
		s.c.Write(s.w.scratch)
	}
	s.done()
}

// done is the end of a response.
func (s *h1Server) done() {
	whole := s.body.Done()
	if s.tunnel {
		whole = s.x.reqDone
	}
	s.x = nil
	s.chunked = false
	if s.leaving || !whole {
		s.lingerAndClose(whole)
		return
	}
	s.timer.Reset(s.w.idleOf(s.peer))
	if len(s.part) > 0 && !s.busy {
		p := s.part
		s.part = nil
		s.c.Resume()
		s.process(p, true)
	}
}

// lingerAndClose ends the connection after what was written. While the caller still sends, a close
// would make the kernel reset the connection and the response could be lost (RFC 9112 section 9.6):
// so only our side is closed first.
func (s *h1Server) lingerAndClose(whole bool) {
	s.closing = true
	if whole {
		s.c.CloseAfterFlush()
		return
	}
	s.c.CloseWrite()
	s.c.Resume()
	s.lingers = s.w.loop.After(2*time.Second, s.c.Close)
}

// room implements half.
func (s *h1Server) room() int { return roomOf(s.c) }

// abort implements half. What was sent arrives; that the end is missing shows by the framing, or by a
// reset where the end of the connection would have been the end of the content.
func (s *h1Server) abort() {
	s.x = nil
	s.closing = true
	if s.chunked || s.counted {
		s.c.CloseAfterFlush()
		return
	}
	s.c.Reset()
}

// refuse answers what could not be read.
func (s *h1Server) refuse(status int, reason string) {
	s.peer.Service.Bad(s.peer, status, reason)
	r := s.w.plainReply(status, reason)
	r.Head.Close = true
	s.leaving, s.closing = true, true
	out := h1.AppendResponse(nil, &r.Head)
	s.c.Write(append(out, r.Body...))
	s.c.CloseWrite()
	s.lingers = s.w.loop.After(time.Second, s.c.Close)
}

// broken is called for content that cannot be read any further.
func (s *h1Server) broken(reason string) {
	x := s.x
	s.closing = true
	if x == nil {
		s.c.Close()
		return
	}
	if x.responded {
		x.frontGone()
		s.c.Close()
		return
	}
	x.fail(400, FlagMalformed, "the request's content is malformed: "+reason)
}

// End implements loop.Handler.
func (s *h1Server) End() {
	switch {
	case s.tunnel && s.x != nil:
		s.x.requestBody(nil, true)
	case s.x == nil: // what was answered may still be on its way
		s.closing = true
		s.c.CloseAfterFlush()
	case s.x != nil && s.body.Done():
		// It may have half-closed and wait for the response, or have gone: that looks the same.
		s.leaving = true
		if !s.last {
			s.timer.Reset(endGrace)
			s.gone = true
		}
	default:
		s.c.Close()
	}
}

// Drained implements loop.Handler.
func (s *h1Server) Drained() {
	if s.x != nil {
		s.x.frontDrained()
	}
}

// Closed implements loop.Handler.
func (s *h1Server) Closed(error) {
	s.timer.Stop()
	if s.lingers != nil {
		s.lingers.Stop()
	}
	if x := s.x; x != nil {
		s.x = nil
		x.frontGone()
	}
}
