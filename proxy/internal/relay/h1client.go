package relay

import (
	"time"

	"countersign.dev/proxy/internal/h1"
	"countersign.dev/proxy/internal/loop"
	"countersign.dev/proxy/internal/message"
)

// h1Client is a connection on which HTTP/1.1 requests go out, one after the other.
type h1Client struct {
	w    *Worker
	c    *loop.Conn
	link *Link
	pool *pool

	reader  h1.Reader
	part    []byte
	head    message.Head
	body    h1.Body
	x       *Exchange
	method  string
	got     bool // the final head came
	reqDone bool
	chunked bool // the request is framed in chunks
	close   bool // the connection ends after this response
	tunnel  bool
	served  int       // requests that were answered on this connection
	said    bool      // something of this response came
	began   time.Time // of the round in which the request was written
	before  int64     // bytes that were written on the connection before it
	held    int
	idle    bool
	timer   *loop.Timer
}

func (w *Worker) newH1Client(link *Link, p *pool) *h1Client {
	k := &h1Client{w: w, c: link.Conn, link: link, pool: p}
	k.timer = w.loop.NewTimer(k.c.Close)
	k.reader.Intern = &w.intern
	link.retire = k.retire
	k.c.Handle(k)
	return k
}

// retire ends the connection after what it carries.
func (k *h1Client) retire() {
	k.close = true
	if k.idle {
		k.c.Close()
	}
}

// start sends a request's head.
func (k *h1Client) start(x *Exchange) {
	h := x.Head
	k.x, k.method = x, h.Method
	k.got, k.said, k.chunked, k.held = false, false, false, 0
	k.began, k.before = k.w.loop.Now(), k.c.BytesWritten()
	k.reqDone = x.reqDone && len(x.kept) == 0 && x.trailers == nil
	out := *h
	out.Close = false
	out.Chunked = h.Body && (h.ContentLength == message.Unknown || h.Trailer != "")
	if h.Method == "CONNECT" { // what follows over HTTP/2 is a tunnel's
		out.Chunked = false
	}
	if out.Chunked {
		out.ContentLength = message.Unknown
	}
	if h.Method == "CONNECT" && h.Upgrade != "" {
		out.Method, k.method = "GET", "GET" // RFC 8441 section 5: what HTTP/1.1 has for an extended CONNECT
	}
	k.chunked = out.Chunked
	k.w.scratch = h1.AppendRequest(k.w.scratch[:0], &out)
	k.c.Write(k.w.scratch)
	x.attach(k, k.link)
}

// write implements half.
func (k *h1Client) write(p []byte, end bool) {
	if k.chunked && !k.tunnel && len(p) > 0 {
		k.w.scratch = h1.AppendChunkSize(k.w.scratch[:0], len(p))
		k.c.Write(k.w.scratch)
		k.c.Write(p)
		k.c.Write(crlf)
	} else {
		k.c.Write(p)
	}
	if end {
		k.finish(nil)
	}
}

// finish implements half.
func (k *h1Client) finish(trailers []message.Field) {
	switch {
	case k.tunnel:
		k.c.CloseWrite()
		return
	case k.chunked:
		k.w.scratch = h1.AppendLastChunk(k.w.scratch[:0], trailers)
		k.c.Write(k.w.scratch)
	}
	k.reqDone = true
}

// room implements half.
func (k *h1Client) room() int { return roomOf(k.c) }

// consumed implements half.
func (k *h1Client) consumed(n, room int) {
	if k.held -= n; k.held <= 0 {
		k.held = 0
		k.c.Limit(max(room, minRoom))
		k.c.Resume()
	}
}

// abort implements half.
func (k *h1Client) abort() {
	k.x = nil
	k.c.Close()
}

// reused implements back.
func (k *h1Client) reused() bool { return k.served > 0 && !k.said }

// Data implements loop.Handler.
func (k *h1Client) Data(p []byte) {
	if k.x == nil { // nobody asked: a response without a request must not meet the next one
		k.c.Close()
		return
	}
	if k.unsent() {
		x := k.x
		k.x = nil
		k.c.Close()
		x.backGone(true)
		return
	}
	k.said = true
	if len(k.part) > 0 {
		p = append(k.part, p...)
		k.part = nil
	}
	for len(p) > 0 && k.x != nil && !k.c.Dead() {
		n, more := k.step(p)
		p = p[n:]
		if more {
			k.part = append([]byte(nil), p...)
			return
		}
	}
	if len(p) > 0 && !k.c.Dead() {
		k.c.Close() // bytes after the response
	}
}

// unsent tells whether all of the request still waits for the end of the round: what has come cannot be its
// answer. Large content does not wait, and takes the head along.
func (k *h1Client) unsent() bool {
	_, blocked := k.c.Blocked()
	return !blocked && k.began.Equal(k.w.loop.Now()) && k.c.BytesWritten()-int64(k.c.Queued()) <= k.before
}

func (k *h1Client) step(p []byte) (used int, more bool) {
	x := k.x
	if k.tunnel {
		k.deliver(p, false)
		return len(p), false
	}
	if !k.got {
		n, err := k.reader.Response(p, &k.head, k.method)
		if err != nil {
			k.broken()
			return len(p), false
		}
		if n == 0 {
			return 0, true
		}
		k.response(x)
		return n, false
	}
	content, n, err := k.body.Next(p)
	if err != nil {
		k.broken()
		return len(p), false
	}
	done := k.body.Done()
	if trailers := k.body.Trailers(); done && trailers != nil {
		if len(content) > 0 {
			k.deliver(content, false)
		}
		k.release()
		x.responseTrailers(x.Peer.Service.Trailers(trailers))
		return n, false
	}
	if done {
		k.held += len(content)
		k.release()
		x.responseBody(content, true)
	} else if len(content) > 0 {
		k.deliver(content, false)
	}
	return n, false
}

func (k *h1Client) deliver(p []byte, end bool) {
	k.held += len(p)
	k.x.responseBody(p, end)
	if k.held > 0 && k.x != nil && !k.c.Dead() {
		k.c.Pause()
	}
}

// response passes on a head.
func (k *h1Client) response(x *Exchange) {
	h := &k.head
	if h.Status < 200 && h.Status != 101 {
		x.response(h, false)
		return
	}
	if h.Status == 101 && x.head.Upgrade == "" {
		k.broken() // nobody asked for another protocol
		return
	}
	k.got = true
	k.close = k.close || h.Close
	if h.Status == 101 || k.method == "CONNECT" && x.head.Upgrade == "" && h.Status < 300 {
		k.tunnel = true
		x.tunnel = true
		x.response(h, false)
		return
	}
	k.body = h1.NewBody(h, false, &k.w.intern)
	if k.body.Done() {
		k.release()
		x.response(h, true)
		return
	}
	x.response(h, false)
}

// release gives the connection back when its exchange needs it no more; the exchange may still have
// to be told of the last bytes. It is used again after this round at the earliest: what comes in it after the
// answer must not meet another request.
func (k *h1Client) release() {
	x := k.x
	k.x = nil
	x.back = released{k}
	k.served++
	k.held = 0
	k.c.Limit(0)
	k.c.Resume()
	if k.close || !k.reqDone || k.body.UntilClose() {
		k.c.CloseAfterFlush()
		return
	}
	k.w.rest(k)
}

// released stands for a connection that has served its exchange.
type released struct{ k *h1Client }

func (released) write([]byte, bool)     {}
func (released) finish([]message.Field) {}
func (released) room() int              { return anyRoom }
func (released) consumed(int, int)      {}
func (released) abort()                 {}
func (released) reused() bool           { return false }

func (k *h1Client) broken() {
	x := k.x
	k.x = nil
	k.c.Close()
	if x != nil {
		x.backGone(false)
	}
}

// End implements loop.Handler.
func (k *h1Client) End() {
	x := k.x
	switch {
	case x == nil:
		k.c.Close()
	case k.tunnel:
		k.x = nil
		x.back = released{k}
		x.responseBody(nil, true)
		k.c.CloseAfterFlush()
	case k.got && k.body.End():
		k.x = nil
		k.c.Close()
		x.responseBody(nil, true)
	default:
		k.broken()
	}
}

// Drained implements loop.Handler.
func (k *h1Client) Drained() {
	if k.x != nil {
		k.x.backDrained()
	}
}

// Closed implements loop.Handler.
func (k *h1Client) Closed(err error) {
	k.pool.lost(k)
	k.link.gone()
	x := k.x
	if x == nil {
		return
	}
	k.x = nil
	if refused(err) && k.served == 0 && !k.said {
		k.link.Endpoint.failed(k.w.loop.Now(), refusal(err))
		x.unreachable()
		return
	}
	x.backGone(false)
}
