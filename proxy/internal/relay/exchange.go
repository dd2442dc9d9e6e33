// Package relay knows how requests and bytes get from one connection to another: which connection
// carries them, how fast, in which version of HTTP, and what becomes of both ends when one fails.
//
// Nearly everything in it belongs to the loop of the connection that a request came in on: an [Exchange],
// both of its ends and the connections that a [Worker] keeps are touched by that loop's goroutine only. Loops
// share a [Target] and its [Endpoint]s, whose counters are atomic.
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
	// room is how much more may be written at once. When it is 0, drained is called on the exchange later.
	room() int
	// consumed says that n bytes of the content that this end delivered were passed on, and how much is
	// best delivered next.
	consumed(n, room int)
	// abort gives up: the stream is reset, the connection closed.
	abort()
}

// anyRoom is the room of an end that takes what it is given.
const anyRoom = 1 << 20

// minRoom is what is read at once however little room there is: what does not fit is queued.
const minRoom = 16 << 10

// roomOf is the room of a connection whose content has no windows.
func roomOf(c *loop.Conn) int {
	if c.Congested() {
		return 0
	}
	return anyRoom
}

// front is the end that the request came from.
type front interface {
	half
	// respond sends the head of a response: any number of 1xx, then the final one.
	respond(h *message.Head, end bool)
	// takes tells whether the caller would read this final head as what it is.
	takes(h *message.Head) bool
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

// The flags of an [Outcome] say why an exchange did not end as it should; empty when it did.
const (
	FlagNoEndpoint = "no_endpoint"     // of the upstream is known
	FlagConnect    = "connect_failed"  // to every endpoint, or to the application
	FlagReset      = "upstream_reset"  // it broke off
	FlagTimeout    = "timeout"         // of the decision
	FlagGone       = "client_gone"     // it broke off
	FlagPeerClosed = "closed_by_peer"  // before the first byte, which is how a peer refuses bytes
	FlagCut        = "cut"             // by the owner
	FlagNoSwitch   = "upgrade_refused" // by the upstream
	FlagMalformed  = "malformed"       // content that nobody reads in the same way
)

// Bounds of an exchange.
const (
	// maxKept is how much of a request's content is kept until its answer begins, to be sent again when
	// the peer has certainly not begun with it.
	maxKept = 64 << 10
	// maxTries is how often a request is sent that the far end has certainly not begun with. Several
	// connections may be at their end at once; one after the other is not.
	maxTries = 5
)

// Exchange is one request and its response.
type Exchange struct {
	Peer   *Peer         // who asks
	Head   *message.Head // the request; after the decision a copy of it
	Target *Target
	Link   *Link // the connection that it was sent on last
	Method string
	Path   string // without the query
	Proto  string // as access logs have it: HTTP/1.1, HTTP/2.0, or the protocol that was changed to
	Began  time.Time
	Owner  any // the service's own

	w     *Worker
	front front
	back  back

	outcome   Outcome
	responded bool // the final head was sent
	reqDone   bool // the request's content is complete
	over      bool
	tunnel    bool // after 101, or CONNECT: bytes, not content
	waits     bool // for a connection
	waited    bool // was in a list of those who do
	retried   bool // a connection that had served before has failed it
	// after is the last HTTP/2 session that there was then.
	after     uint64
	forgotten bool // more content came than is kept: it cannot be sent again

	owedFront int       // content of the request that waits in back, or for a back
	owedBack  int       // content of the response that waits in front
	stuck     time.Time // since when the caller takes nothing; zero when it does
	kept      []byte    // content of the request from its first byte on
	trailers  []message.Field
	tries     int
	tried     attempts  // endpoints that could not be reached
	endpoint  *Endpoint // that it counts at
	timer     *loop.Timer
	head      message.Head // a copy of the request
}

// begin decides about a request and sends it on its way.
func (w *Worker) begin(x *Exchange, p *Peer, f front, h *message.Head, end bool) {
	fields := x.head.Fields // storage
	*x = Exchange{Peer: p, Head: h, w: w, front: f, Began: w.loop.Now(), Method: h.Method, Proto: x.Proto, reqDone: end}
	x.head.Fields = fields
	x.Path = pathOf(h.Target)
	if h.Upgrade != "" && x.Method == "CONNECT" {
		x.Method = "GET" // RFC 8441 section 5: what an extended CONNECT stands for
	}
	offers := h.Upgrade != "" && h.Method != "CONNECT"
	d := p.Service.Request(x)
	if offers && h.Upgrade == "" && (!h.Body || h.ContentLength == 0) {
		x.reqDone = true // the offer was dropped: nothing follows the head
	}
	if d.Target == nil {
		x.outcome.Flag = d.Flag
		x.answer(d.Reply)
		return
	}
	x.Target = d.Target
	if x.Target.Stats != nil {
		x.Target.Stats.RqTotal.Add(1)
	}
	if d.Timeout > 0 {
		x.timer = w.loop.After(d.Timeout, func() { x.fail(504, FlagTimeout, "the service did not answer in time") })
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

// goTo counts the exchange at an endpoint.
func (x *Exchange) goTo(e *Endpoint) {
	if x.endpoint != nil {
		x.endpoint.active.Add(-1)
	}
	if x.endpoint = e; e != nil {
		e.active.Add(1)
	}
}

// attach gives the exchange its back; the request's head has been sent.
func (x *Exchange) attach(b back, k *Link) {
	x.back, x.Link = b, k
	x.tries++
	if len(x.kept) > 0 {
		b.write(x.kept, x.reqDone && x.trailers == nil)
	}
	if x.reqDone && (x.trailers != nil || len(x.kept) == 0) {
		b.finish(x.trailers)
	}
	x.passOn()
}

// requestBody takes content from the front.
func (x *Exchange) requestBody(p []byte, end bool) {
	x.outcome.BytesIn += int64(len(p))
	x.reqDone = x.reqDone || end
	if x.over {
		x.front.consumed(len(p), anyRoom)
		return
	}
	x.owedFront += len(p)
	x.keep(p)
	if x.back == nil {
		return // so does the front: it is not told that anything was consumed
	}
	if len(p) > 0 || !end {
		x.back.write(p, end)
	} else {
		x.back.finish(nil)
	}
	x.passOn()
}

// keep remembers content while it may have to be sent, or sent again.
func (x *Exchange) keep(p []byte) {
	switch {
	case len(p) == 0 || x.forgotten:
	case x.back != nil && (x.responded || x.tunnel || len(x.kept)+len(p) > maxKept):
		x.kept, x.forgotten = nil, true
	default:
		x.kept = append(x.kept, p...)
	}
}

// passOn tells the front what was passed on, unless it waits in back.
func (x *Exchange) passOn() {
	if x.owedFront == 0 || x.back == nil {
		return
	}
	if room := x.back.room(); room > 0 {
		n := x.owedFront
		x.owedFront = 0
		x.front.consumed(n, room)
	}
}

// requestTrailers takes the fields that end the request.
func (x *Exchange) requestTrailers(fields []message.Field) {
	x.reqDone = true
	if x.over {
		return
	}
	x.trailers = append([]message.Field{}, x.Peer.Service.Trailers(fields)...)
	if x.back != nil {
		x.back.finish(x.trailers)
	}
}

// response takes a head from the back.
func (x *Exchange) response(h *message.Head, end bool) {
	if x.over {
		return
	}
	switched := h.Status == 101
	if !switched && !x.front.takes(h) {
		x.fail(502, FlagNoSwitch, "the service does not take a change of protocol")
		return
	}
	if h.Status >= 200 || switched {
		x.responded = true
		x.kept = nil
		x.outcome.Status = h.Status
		if x.Target.Stats != nil && h.Status >= 500 {
			x.Target.Stats.Rq5xx.Add(1)
		}
	}
	switch {
	case switched:
		x.tunnel = true
		x.Proto = h.Upgrade
		x.stopTimer() // the answer is there; what follows is as long as it is
	case x.responded && x.head.Upgrade != "":
		x.outcome.Flag = FlagNoSwitch
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
			x.back.consumed(len(p), anyRoom)
		}
		return
	}
	x.outcome.BytesOut += int64(len(p))
	if len(p) > 0 || !end {
		x.front.write(p, end)
	} else {
		x.front.finish(nil)
	}
	if end {
		if x.back != nil {
			x.back.consumed(len(p), anyRoom)
		}
		x.responseEnd()
		return
	}
	room := x.front.room()
	if room > 0 {
		x.back.consumed(len(p), room)
		return
	}
	if x.owedBack == 0 {
		x.stuck = x.w.loop.Now()
	}
	x.owedBack += len(p)
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
	if x.owedBack == 0 {
		return
	}
	if room := x.front.room(); room > 0 {
		n := x.owedBack
		x.owedBack, x.stuck = 0, time.Time{}
		if x.back != nil {
			x.back.consumed(n, room)
		}
	}
}

func (x *Exchange) backDrained() { x.passOn() }

// frontGone says that the caller has left: its connection broke or its stream was reset.
func (x *Exchange) frontGone() {
	if x.over {
		return
	}
	x.outcome.Flag = FlagGone
	x.leaveBack()
	x.end()
}

// leaveBack lets go of the other end, which is not finished.
func (x *Exchange) leaveBack() {
	x.waits = false
	if b := x.back; b != nil {
		x.back = nil
		b.abort()
	}
}

// backGone says that the other end has failed. unprocessed: it has surely not acted on the request.
func (x *Exchange) backGone(unprocessed bool) {
	if x.over {
		return
	}
	b := x.back
	x.back = nil
	again := unprocessed
	if !again && b != nil && b.reused() && idempotent(x.Method) && !x.retried {
		// A connection that was used before and is found closed has most likely been closed while
		// the request was on its way (RFC 9112 section 9.3.1): once more, on a new one.
		x.retried, x.after, again = true, x.w.sessions, true
	}
	if again && !x.responded && !x.forgotten && x.tries < maxTries {
		x.w.pool(x.endpoint).serve(x)
		return
	}
	x.fail(502, FlagReset, "the service broke off before it answered")
}

// unreachable says that the endpoint takes no connection: nothing of the request has arrived there.
func (x *Exchange) unreachable() {
	if x.over {
		return
	}
	x.back = nil
	if x.forgotten {
		x.fail(503, FlagConnect, "connecting to the service failed")
		return
	}
	x.tried = append(x.tried, x.endpoint)
	x.w.connect(x)
}

func idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// fail answers with a status if nothing was answered yet, and cuts off otherwise.
func (x *Exchange) fail(status int, flag, message string) {
	if x.over {
		return
	}
	x.outcome.Flag = flag
	x.leaveBack()
	if x.responded {
		x.front.abort()
		x.end()
		return
	}
	if x.Target.Stats != nil && (status == 502 || status == 503) {
		x.Target.Stats.Rq5xx.Add(1)
	}
	x.answer(x.Peer.Service.Failure(x, status, message))
}

// Cut ends an exchange in the middle, so that no end can take what it has for the whole.
func (x *Exchange) Cut() {
	if x.over {
		return
	}
	x.outcome.Flag = FlagCut
	x.leaveBack()
	x.front.abort()
	x.end()
}

// Tunnel tells whether the exchange has become a connection of bytes.
func (x *Exchange) Tunnel() bool { return x.tunnel }

// stalled tells whether the caller has taken nothing since a moment.
func (x *Exchange) stalled(since time.Time) bool { return !x.stuck.IsZero() && x.stuck.Before(since) }

// Reply is a response that the proxy makes itself.
type Reply struct {
	Head message.Head
	Body []byte
	// Logged is the status that statistics and logs are told, when it is not the head's: in gRPC the
	// truth stands in another field.
	Logged int
}

func (x *Exchange) answer(r *Reply) {
	x.responded = true
	x.outcome.Status = r.Head.Status
	if r.Logged != 0 {
		x.outcome.Status = r.Logged
	}
	end := len(r.Body) == 0 || x.Method == "HEAD"
	if !end {
		x.outcome.BytesOut = int64(len(r.Body))
	}
	x.front.respond(&r.Head, end)
	if !end {
		x.front.write(r.Body, true)
	}
	x.end()
}

func (x *Exchange) stopTimer() {
	if x.timer != nil {
		x.timer.Stop()
		x.timer = nil
	}
}

// end is called once, when nothing more will be sent.
func (x *Exchange) end() {
	if x.over {
		return
	}
	x.over = true
	x.stopTimer()
	x.goTo(nil)
	if n := x.owedFront; n > 0 {
		x.owedFront = 0
		x.front.consumed(n, anyRoom)
	}
	x.kept, x.stuck = nil, time.Time{}
	x.outcome.Duration = x.w.loop.Now().Sub(x.Began)
	x.Peer.Service.Done(x, &x.outcome)
	x.w.spend(x)
}
