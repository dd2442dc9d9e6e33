package relay

import (
	"time"

	"countersign.dev/proxy/internal/loop"
)

// Bytes is a connection whose bytes are passed on as they are, in both directions, until both have
// ended. An end of one direction is passed on as an end of that direction only (a half-close), a break as
// a break.
type Bytes struct {
	// Link is the connection that the bytes go to; nil before there is one.
	Link *Link
	// Early, when it is not nil, is called when the far end has ended without a byte while the client
	// has not: that is how a peer refuses.
	Early func()

	w      *Worker
	client *loop.Conn
	target *Target
	first  []byte // what the client sent before there was a link
	last   bool   // and it has ended with that
	done   func(b *Bytes, o *Outcome)

	began       time.Time
	outcome     Outcome
	tried       attempts
	endpoint    *Endpoint
	cancel      func() // of the connect; nil when there is none
	clientEnded bool
	serverEnded bool
	over        bool
}

// ServeBytes takes over a connection, of which first was read already, and connects it with an
// endpoint. done is called once.
func (w *Worker) ServeBytes(c *loop.Conn, t *Target, first []byte, done func(b *Bytes, o *Outcome)) *Bytes {
	b := &Bytes{w: w, client: c, target: t, first: first, done: done, began: w.loop.Now()}
	c.Handle((*bytesClient)(b))
	c.Pause()
	b.connect()
	return b
}

// Ended says that the client had ended before its connection was taken over.
func (b *Bytes) Ended() {
	if b.Link == nil {
		b.last = true
		return
	}
	(*bytesClient)(b).End()
}

// Endpoint is where the bytes go, or were to go when no connection came about; it may be nil.
func (b *Bytes) Endpoint() *Endpoint { return b.endpoint }

func (b *Bytes) connect() {
	e := b.target.choose(b.w.loop.Now(), b.tried)
	if e == nil {
		flag := FlagConnect
		if len(b.target.Endpoints) == 0 {
			flag = FlagNoEndpoint
		}
		b.end(flag)
		b.client.Close()
		return
	}
	b.goTo(e)
	b.cancel = b.w.dial(e, e.TLS, func(k *Link, err error) {
		b.cancel = nil
		if err != nil {
			b.tried = append(b.tried, e)
			b.connect()
			return
		}
		b.Link = k
		k.Conn.Handle((*bytesServer)(b))
		if len(b.first) > 0 {
			(*bytesClient)(b).Data(b.first)
			b.first = nil
		}
		if b.last {
			(*bytesClient)(b).End()
		}
		b.client.Resume()
	})
}

func (b *Bytes) goTo(e *Endpoint) {
	if b.endpoint != nil {
		b.endpoint.active.Add(-1)
	}
	b.endpoint = e
	e.active.Add(1)
}

// Cut breaks both connections.
func (b *Bytes) Cut() {
	if b.outcome.Flag == "" {
		b.outcome.Flag = FlagCut
	}
	b.end(b.outcome.Flag)
	b.client.Reset()
	b.reset()
}

func (b *Bytes) reset() {
	if b.cancel != nil {
		b.cancel()
		b.cancel = nil
	}
	if b.Link != nil {
		b.Link.Conn.Reset()
	}
}

// settle closes both connections when both directions have ended.
func (b *Bytes) settle() {
	if b.clientEnded && b.serverEnded && !b.over {
		b.end(b.outcome.Flag)
		b.client.CloseAfterFlush()
		b.Link.Conn.CloseAfterFlush()
	}
}

// broken is called when one of the connections is closed before both directions have ended.
func (b *Bytes) broken() {
	if !b.over {
		b.Cut()
	}
}

func (b *Bytes) end(flag string) {
	if b.over {
		return
	}
	b.over = true
	if b.endpoint != nil {
		b.endpoint.active.Add(-1)
	}
	b.outcome.Flag = flag
	b.outcome.Duration = b.w.loop.Now().Sub(b.began)
	b.done(b, &b.outcome)
}

// bytesClient is the client's connection of Bytes.
type bytesClient Bytes

// Data implements loop.Handler.
func (s *bytesClient) Data(p []byte) {
	s.outcome.BytesIn += int64(len(p))
	to := s.Link.Conn
	to.Write(p)
	if to.Congested() {
		s.client.Pause()
	}
}

// End implements loop.Handler.
func (s *bytesClient) End() {
	s.clientEnded = true
	s.Link.Conn.CloseWrite()
	(*Bytes)(s).settle()
}

// Drained implements loop.Handler. It may come before there is a link, for what was written to the client
// before the connection was taken over: the end of a handshake.
func (s *bytesClient) Drained() {
	if s.Link != nil {
		s.Link.Conn.Resume()
	}
}

// Closed implements loop.Handler.
func (s *bytesClient) Closed(error) { (*Bytes)(s).broken() }

// bytesServer is the other connection of Bytes.
type bytesServer Bytes

// Data implements loop.Handler.
func (s *bytesServer) Data(p []byte) {
	s.outcome.BytesOut += int64(len(p))
	s.client.Write(p)
	if s.client.Congested() {
		s.Link.Conn.Pause()
	}
}

// End implements loop.Handler.
func (s *bytesServer) End() {
	s.serverEnded = true
	s.early()
	s.client.CloseWrite()
	(*Bytes)(s).settle()
}

func (s *bytesServer) early() {
	if s.outcome.BytesOut == 0 && !s.clientEnded && !s.over {
		s.outcome.Flag = FlagPeerClosed
		if s.Early != nil {
			s.Early()
		}
	}
}

// Drained implements loop.Handler.
func (s *bytesServer) Drained() { s.client.Resume() }

// Closed implements loop.Handler.
func (s *bytesServer) Closed(error) {
	s.Link.gone()
	s.early()
	(*Bytes)(s).broken()
}
