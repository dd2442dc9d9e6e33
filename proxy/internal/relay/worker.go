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
	Head      time.Duration // for the head of a request, and for its connection's first byte
	Idle      time.Duration // between requests
	Handshake time.Duration // for TLS
	Connect   time.Duration // for TCP and TLS to an upstream
	KeepApp   time.Duration // how long an idle HTTP/1.1 connection to an upstream is kept

	front  h2.Config // towards anybody
	member h2.Config // between members of the mesh
}

// DefaultLimits are what a proxy uses.
func DefaultLimits() Limits {
	return Limits{
		Head: 10 * time.Second, Idle: 5 * time.Minute, Handshake: 10 * time.Second, Connect: 5 * time.Second,
		KeepApp: 20 * time.Second,
		front:   h2.Config{MaxStreams: 100, StreamWindow: 128 << 10, Budget: 2 << 20, ExtendedConnect: true},
		member:  h2.Config{MaxStreams: 1000, StreamWindow: 512 << 10, Budget: 64 << 20, MaxFrame: 1 << 20, ExtendedConnect: true},
	}
}

// Worker is what one loop relays: its connections, its pools, its strings.
type Worker struct {
	loop   *loop.Loop
	limits Limits
	intern message.Interner
	// scratch is where heads are written before they are handed to a connection.
	scratch []byte

	fronts map[frontConn]struct{}
	pools  map[poolKey]*pool
	later  []sender // HTTP/2 connections with output
	posted bool
	age    func(*Peer) bool
}

// sender is an HTTP/2 connection.
type sender interface{ send() }

// frontConn is a connection that came in.
type frontConn interface {
	loop.Handler
}

// NewWorker makes the worker of a loop. leaving tells whether a peer's connection is to end after its
// next response. It is called on the loop.
func NewWorker(l *loop.Loop, limits Limits, leaving func(*Peer) bool) *Worker {
	if leaving == nil {
		leaving = func(*Peer) bool { return false }
	}
	return &Worker{
		loop: l, limits: limits, age: leaving,
		fronts: make(map[frontConn]struct{}), pools: make(map[poolKey]*pool),
	}
}

func (w *Worker) leaving(p *Peer) bool { return w.age(p) }

// flushLater passes on the output of an HTTP/2 connection at the end of the round.
func (w *Worker) flushLater(s sender) {
	w.later = append(w.later, s)
	if !w.posted {
		w.posted = true
		w.loop.Finally(w.flush)
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

// ServeHTTP1 takes over a connection on which HTTP/1.1 requests come in.
func (w *Worker) ServeHTTP1(c *loop.Conn, p *Peer, service Service) loop.Handler {
	p.service = service
	s := w.newH1Server(c, p)
	w.fronts[s] = struct{}{}
	c.Handle(s)
	return s
}

// ServeHTTP2 takes over a connection on which HTTP/2 requests come in.
func (w *Worker) ServeHTTP2(c *loop.Conn, p *Peer, service Service) loop.Handler {
	p.service = service
	s := w.newH2Server(c, p)
	w.fronts[s] = struct{}{}
	c.Handle(s)
	return s
}

func (w *Worker) gone(f frontConn) { delete(w.fronts, f) }

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
