// Package relay knows how requests and bytes get from one connection to another: which connection
// carries them, how fast, in which version of HTTP, and what becomes of both ends when one fails.
//
// Everything in it belongs to the loop of the connection that a request came in on: an [Exchange], both
// of its ends and the connections that a [Worker] keeps are touched by that loop's goroutine only.
package relay

import (
	"time"

	"countersign.dev/proxy/internal/loop"
	"countersign.dev/proxy/internal/message"
)

// half is one end of an exchange, as the other end sees it: where content is sent, and where content
// came from. HTTP/1.1 connections and HTTP/2 streams implement it.
type half interface {
	// write sends content; with end nothing follows.
	write(p []byte, end bool)
	// finish ends the message, with trailers if there are any.
	finish(trailers []message.Field)
	// congested tells whether what was written waits; drained is called on the exchange later.
	congested() bool
	// consumed says that n bytes of the content that this end delivered were passed on.
	consumed(n int)
	// abort gives up: the stream is reset, the connection closed.
	abort()
}

// front is the end that the request came from.
type front interface {
	half
	// respond sends the head of a response: any number of 1xx, then the final one.
	respond(h *message.Head, end bool)
}

// back is the end that the request was sent to.
type back interface {
	half
	// reused tells whether the connection had served another request before and has said nothing of this
	// one yet.
	reused() bool
}

// Outcome says how an exchange ended, for statistics and logs.
type Outcome struct {
	Status   int // of the response that the caller got, 0 when it got none
	Flag     string
	BytesIn  int64 // content of the request
	BytesOut int64 // content of the response
	Duration time.Duration
}

// The flags of an [Outcome], beside the empty one.
const (
	FlagDenied     = "denied"
	FlagNoRoute    = "no_route"
	FlagNoEndpoint = "no_endpoint"
	FlagConnect    = "connect_failure"
	FlagReset      = "upstream_reset"
	FlagTimeout    = "timeout"
	FlagGone       = "client_gone"
	FlagBad        = "bad_request"
)

// Exchange is one request and its response.
type Exchange struct {
	Peer   *Peer         // who asks
	Head   *message.Head // the request; valid until the exchange has a target
	Target *Target
	Method string
	Path   string // without the query
	Log    any    // the owner's own

	w     *Worker
	front front
	back  back
	start time.Time

	outcome   Outcome
	responded bool // the final head was sent
	reqDone   bool // the request's content is complete
	over      bool
	tunnel    bool // after 101, or CONNECT: bytes, not content

	owedFront int    // content of the request that waits in back
	owedBack  int    // content of the response that waits in front
	early     []byte // content of the request that came before there was a back
	earlyEnd  bool
	trailers  []message.Field
	timer     *loop.Timer
	wait      *waiter
	retried   bool
	head      message.Head // a copy of the request, while it may have to be sent again
}

// begin decides about a request and sends it on its way.
func (w *Worker) begin(x *Exchange, p *Peer, f front, h *message.Head, end bool) {
	*x = Exchange{Peer: p, Head: h, w: w, front: f, start: w.loop.Now(), Method: h.Method, reqDone: end}
	x.Path = pathOf(h.Target)
	d := p.service.Request(x)
	if d.Target == nil {
		x.outcome.Flag = d.Flag
		x.answer(d.Reply)
		return
	}
	x.Target = d.Target
	if d.Timeout > 0 {
		x.timer = w.loop.After(d.Timeout, func() { x.fail(504, FlagTimeout, "the upstream did not answer in time") })
	}
	x.keepHead(h)
	w.connect(x)
}

func pathOf(target string) string {
	for i := range len(target) {
		if target[i] == '?' {
			return target[:i]
		}
	}
	return target
}

// keepHead copies the request's head, whose storage is the codec's.
func (x *Exchange) keepHead(h *message.Head) {
	fields := append(x.head.Fields[:0], h.Fields...)
	x.head = *h
	x.head.Fields = fields
	x.Head = &x.head
}

// attach gives the exchange its back; the request's head has been sent.
func (x *Exchange) attach(b back) {
	x.back = b
	x.wait = nil
	early, end := x.early, x.earlyEnd
	x.early = nil
	if len(early) > 0 {
		x.back.write(early, end)
		x.passedRequest(len(early))
	}
	if end && (x.trailers != nil || len(early) == 0) {
		x.back.finish(x.trailers)
	}
}

// requestBody takes content from the front.
func (x *Exchange) requestBody(p []byte, end bool) {
	x.outcome.BytesIn += int64(len(p))
	x.reqDone = x.reqDone || end
	if x.over {
		x.front.consumed(len(p))
		return
	}
	if x.back == nil { // the head waits for a connection; so does the front, for it is not told "consumed"
		x.early = append(x.early, p...)
		x.earlyEnd = x.earlyEnd || end
		return
	}
	if len(p) > 0 || !end {
		x.back.write(p, end)
	} else {
		x.back.finish(nil)
	}
	x.passedRequest(len(p))
}

func (x *Exchange) passedRequest(n int) {
	if n == 0 {
		return
	}
	if x.back != nil && x.back.congested() {
		x.owedFront += n
		return
	}
	x.front.consumed(n)
}

// requestTrailers takes the fields that end the request.
func (x *Exchange) requestTrailers(fields []message.Field) {
	x.reqDone = true
	fields = x.Peer.service.Trailers(fields)
	switch {
	case x.over:
	case x.back == nil:
		x.earlyEnd, x.trailers = true, append([]message.Field{}, fields...)
	default:
		x.back.finish(fields)
	}
}

// response takes a head from the back.
func (x *Exchange) response(h *message.Head, end bool) {
	if x.over {
		return
	}
	if h.Status == 101 {
		x.tunnel = true
	}
	if h.Status >= 200 || h.Status == 101 {
		x.responded = true
		x.outcome.Status = h.Status
		x.Target.answered(h.Status)
		x.Peer.service.Response(x, h)
	}
	x.front.respond(h, end)
	if end {
		x.responseEnd()
	}
}

// responseBody takes content from the back.
func (x *Exchange) responseBody(p []byte, end bool) {
	if x.over {
		if x.back != nil {
			x.back.consumed(len(p))
		}
		return
	}
	x.outcome.BytesOut += int64(len(p))
	if len(p) > 0 || !end {
		x.front.write(p, end)
	} else {
		x.front.finish(nil)
	}
	switch {
	case len(p) == 0:
	case x.front.congested():
		x.owedBack += len(p)
	default:
		x.back.consumed(len(p))
	}
	if end {
		x.responseEnd()
	}
}

// responseTrailers takes the fields that end the response.
func (x *Exchange) responseTrailers(fields []message.Field) {
	if !x.over {
		x.front.finish(fields)
		x.responseEnd()
	}
}

// responseEnd is the end of the exchange: what the caller still sends is not wanted.
func (x *Exchange) responseEnd() {
	if b := x.back; b != nil && !x.reqDone {
		x.back = nil
		b.abort()
	}
	x.end()
}

// frontDrained and backDrained say that an end has sent what waited.
func (x *Exchange) frontDrained() {
	if n := x.owedBack; n > 0 && !x.front.congested() {
		x.owedBack = 0
		if x.back != nil {
			x.back.consumed(n)
		}
	}
}

func (x *Exchange) backDrained() {
	if n := x.owedFront; n > 0 && x.back != nil && !x.back.congested() {
		x.owedFront = 0
		x.front.consumed(n)
	}
}

// frontGone says that the caller has left: its connection broke or its stream was reset.
func (x *Exchange) frontGone() {
	if x.over {
		return
	}
	x.outcome.Flag = FlagGone
	if x.wait != nil {
		x.wait.cancel()
	}
	if x.back != nil {
		x.back.abort()
	}
	x.end()
}

// backGone says that the other end has failed. unprocessed: it has surely not acted on the request.
func (x *Exchange) backGone(unprocessed bool) {
	if x.over {
		return
	}
	b := x.back
	x.back = nil
	if !x.responded && !x.retried && x.outcome.BytesIn == 0 && x.reqDone &&
		(unprocessed || b != nil && b.reused() && idempotent(x.Method)) {
		// A connection that was used before and is found closed has most likely been closed while
		// the request was on its way (RFC 9112 section 9.3.1): once more, on a new one.
		x.retried = true
		x.Head = &x.head
		x.w.connect(x)
		return
	}
	x.fail(502, FlagReset, "the upstream closed the connection")
}

func idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// connectFailed says that no connection could be made.
func (x *Exchange) connectFailed(flag string) {
	x.wait = nil
	x.fail(503, flag, "no instance of the service can be reached")
}

// fail answers with a status if nothing was answered yet, and cuts off otherwise.
func (x *Exchange) fail(status int, flag, message string) {
	if x.over {
		return
	}
	x.outcome.Flag = flag
	if x.wait != nil {
		x.wait.cancel()
		x.wait = nil
	}
	if b := x.back; b != nil {
		x.back = nil
		b.abort()
	}
	if x.responded {
		x.front.abort()
		x.end()
		return
	}
	x.answer(x.Peer.service.Failure(x, status, message))
}

// Reply is a response that the proxy makes itself.
type Reply struct {
	Head message.Head
	Body []byte
}

func (x *Exchange) answer(r *Reply) {
	x.responded = true
	x.outcome.Status = r.Head.Status
	x.Peer.service.Response(x, &r.Head)
	end := len(r.Body) == 0 || x.Method == "HEAD"
	x.front.respond(&r.Head, end)
	if !end {
		x.front.write(r.Body, true)
	}
	x.outcome.BytesOut = int64(len(r.Body))
	x.end()
}

// end is called once, when nothing more will be sent.
func (x *Exchange) end() {
	if x.over {
		return
	}
	x.over = true
	if x.timer != nil {
		x.timer.Stop()
	}
	if n := x.owedFront; n > 0 {
		x.owedFront = 0
		x.front.consumed(n)
	}
	if len(x.early) > 0 {
		x.early = nil
	}
	x.outcome.Duration = x.w.loop.Now().Sub(x.start)
	x.Peer.service.Done(x, &x.outcome)
}
