package relay

import (
	"encoding/json"
	"time"

	"countersign.dev/proxy/internal/h2"
	"countersign.dev/proxy/internal/loop"
	"countersign.dev/proxy/internal/message"
)

// Limits are the times and windows of connections.
type Limits struct {
	Head         time.Duration // for the head of a request, and for its connection's first byte
	Content      time.Duration // for the next piece of content whose length was announced
	Idle         time.Duration // between requests, where [Peer] says nothing else
	IdleUpstream time.Duration // for which an HTTP/2 connection without a request is kept
	Connect      time.Duration // for TCP and TLS together
	Silence      time.Duration // after which a peer that owes answers is asked whether it is there
	Stalled      time.Duration // for which a caller may take nothing of a response

	front  h2.Config // towards anybody
	member h2.Config // between members of the mesh
}

// DefaultLimits are what a proxy uses.
func DefaultLimits() Limits {
	return Limits{
		Head: 10 * time.Second, Content: time.Minute, Idle: 5 * time.Minute, IdleUpstream: 90 * time.Second, Connect: 5 * time.Second,
		Silence: 20 * time.Second, Stalled: 5 * time.Minute,
		front:  h2.Config{MaxStreams: 100, StreamWindow: 128 << 10, Budget: 2 << 20, ExtendedConnect: true},
		member: h2.Config{MaxStreams: 1000, StreamWindow: 512 << 10, Budget: 16 << 20, MaxFrame: 1 << 20, ExtendedConnect: true},
	}
}

// Worker is what one loop relays: its pools and its strings.
type Worker struct {
	loop   *loop.Loop
	limits Limits
	intern message.Interner
	// scratch is where heads are written before they are handed to a connection.
	scratch []byte

	pools map[*Endpoint]*pool
	// sessions counts the HTTP/2 connections that were made.
	sessions uint64
	later    []sender // HTTP/2 connections with output
	posted   bool
	send     func() // flush, as one closure
	tended   bool   // endOfRound was asked for
	tend     func() // it, as one closure

	spares spares
	rested []*h1Client // connections that have answered in this round
}

// sender is an HTTP/2 connection.
type sender interface{ send() }

// Front is a connection on which requests come in.
type Front interface {
	loop.Handler
	// Exchanges are the requests that are not answered yet; it is an iterator.
	Exchanges(yield func(*Exchange) bool)
	// Busy tells whether there are any, or a part of one.
	Busy() bool
	// Leave ends the connection gracefully: HTTP/1.1 after the next response, HTTP/2 by GOAWAY.
	Leave()
}

// NewWorker makes the worker of a loop. It is called on the loop, or before the loop has work.
func NewWorker(l *loop.Loop, limits Limits) *Worker {
	w := &Worker{loop: l, limits: limits, pools: make(map[*Endpoint]*pool)}
	w.send, w.tend = w.flush, w.endOfRound
	return w
}

// Loop is the worker's.
func (w *Worker) Loop() *loop.Loop { return w.loop }

func (w *Worker) idleOf(p *Peer) time.Duration {
	if p.Idle > 0 {
		return p.Idle
	}
	return w.limits.Idle
}

// tickEvery is how often the limits on what HTTP/2 peers may do without reason are replenished.
const tickEvery = 10 * time.Second

func (w *Worker) tick(c *h2.Conn, last *time.Time) {
	if now := w.loop.Now(); now.Sub(*last) >= tickEvery {
		*last = now
		c.Tick()
	}
}

// flushLater passes on the output of an HTTP/2 connection at the end of the round.
func (w *Worker) flushLater(s sender) {
	w.later = append(w.later, s)
	if !w.posted {
		w.posted = true
		w.loop.Finally(w.send)
	}
}

func (w *Worker) flush() {
	w.posted = false
	for i := 0; i < len(w.later); i++ {
		w.later[i].send()
	}
	clear(w.later)
	w.later = w.later[:0]
}

// rest keeps a connection that has answered for further requests, from the end of this round on.
func (w *Worker) rest(k *h1Client) {
	w.rested = append(w.rested, k)
	w.tendLater()
}

func (w *Worker) tendLater() {
	if !w.tended {
		w.tended = true
		w.loop.Finally(w.tend)
	}
}

// endOfRound puts to further use what exchanges that have ended need no more.
func (w *Worker) endOfRound() {
	w.tended = false
	for i := 0; i < len(w.rested); i++ { // one that is put to use may fail, and add to the list
		if k := w.rested[i]; !k.c.Dead() {
			k.pool.putIdle(k)
		}
	}
	clear(w.rested)
	w.rested = w.rested[:0]
	w.spares.look()
}

// ServeHTTP1 takes over a connection on which HTTP/1.1 requests come in.
func (w *Worker) ServeHTTP1(c *loop.Conn, p *Peer) Front {
	s := w.newH1Server(c, p)
	c.Handle(s)
	return s
}

// ServeHTTP2 takes over a connection on which HTTP/2 requests come in.
func (w *Worker) ServeHTTP2(c *loop.Conn, p *Peer) Front {
	s := w.newH2Server(c, p)
	c.Handle(s)
	return s
}

// Stalled are the requests of a connection whose callers have taken nothing of the response for longer than
// [Limits.Stalled]. Where that is over but for what the caller has to take, it resets the stream.
func (w *Worker) Stalled(f Front) (cut []*Exchange) {
	since := w.loop.Now().Add(-w.limits.Stalled)
	for x := range f.Exchanges {
		if x.stalled(since) {
			cut = append(cut, x)
		}
	}
	if s, ok := f.(*h2Server); ok {
		s.stalled(since)
	}
	return cut
}

// plainReply is what is said to those whose request was not understood.
func (w *Worker) plainReply(status int, reason string) *Reply {
	body, _ := json.Marshal(map[string]string{"error": reason}) // a map of strings always encodes
	body = append(body, '\n')
	return &Reply{
		Head: message.Head{
			Status: status, ContentLength: int64(len(body)), Body: true,
			Fields: []message.Field{{Name: "content-type", Value: "application/json"}},
		},
		Body: body,
	}
}
