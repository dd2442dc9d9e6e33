package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"
)

// pool holds the HTTP/2 connections to one place. net/http's own pool would dial once for each request
// that finds none, and gives no way to retire a connection before it is closed.
type pool struct {
	ctx       context.Context // of dials, for several requests wait for one
	dial      func(ctx context.Context, onRetire func()) (net.Conn, *upconn, error)
	transport *http.Transport // makes connections speak HTTP/2

	mu      sync.Mutex
	conns   []*pooled // guarded by mu: those that take requests
	dialing *dialing  // guarded by mu: at most one at a time
	retired bool      // guarded by mu: no connection is kept any more
}

// pooled is a connection of a pool.
type pooled struct {
	pool *pool
	cc   *http.ClientConn
	up   *upconn // nil to the own application

	mu       sync.Mutex
	inFlight int  // guarded by mu
	retired  bool // guarded by mu: it takes nothing more, and is closed when it has nothing in flight
}

// dialing is a dial that requests wait for.
type dialing struct {
	done chan struct{}
	err  error // set before done is closed
}

// dialedKey is the context key of the net.Conn that a transport is to speak on.
type dialedKey struct{}

func newPool(ctx context.Context, dial func(ctx context.Context, onRetire func()) (net.Conn, *upconn, error)) *pool {
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	dialed := func(ctx context.Context, _, _ string) (net.Conn, error) {
		c, ok := ctx.Value(dialedKey{}).(net.Conn)
		if !ok {
			return nil, errors.New("a pool's transport makes no connections by itself")
		}
		return c, nil
	}
	return &pool{ctx: ctx, dial: dial, transport: &http.Transport{
		Protocols:              &protocols,
		HTTP2:                  http2Config(),
		DialContext:            dialed,
		DialTLSContext:         dialed,
		DisableCompression:     true,
		IdleConnTimeout:        idleUpstream,
		ExpectContinueTimeout:  continueTimeout,
		MaxResponseHeaderBytes: maxResponseHead,
	}}
}

// get gives a connection on which one request may be sent; it has to be given back with release. One
// dial serves all that wait: no handshake is made that no request needs.
func (p *pool) get(ctx context.Context) (*pooled, error) {
	for {
		p.mu.Lock()
		if c := p.reserve(); c != nil {
			p.mu.Unlock()
			return c, nil
		}
		d := p.dialing
		if d == nil {
			d = &dialing{done: make(chan struct{})}
			p.dialing = d
			go p.connect(d) //nolint:contextcheck // several requests wait for one dial; none of them may end it
		}
		p.mu.Unlock()
		select {
		case <-d.done:
			if d.err != nil {
				return nil, d.err
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// reserve finds a connection that takes a request, and forgets those that are closed. The caller holds
// p.mu.
func (p *pool) reserve() *pooled {
	open := p.conns[:0]
	var found *pooled
	for _, c := range p.conns {
		if c.cc.Err() != nil {
			continue
		}
		open = append(open, c)
		if found == nil && c.take() {
			found = c
		}
	}
	clear(p.conns[len(open):])
	p.conns = open
	return found
}

// take reserves a place for one request.
func (c *pooled) take() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.retired || c.cc.Reserve() != nil {
		return false
	}
	c.inFlight++
	return true
}

// release says that a request is over.
func (c *pooled) release() {
	c.mu.Lock()
	c.inFlight--
	idle := c.retired && c.inFlight == 0
	c.mu.Unlock()
	if idle {
		_ = c.cc.Close()
	}
}

// retire lets a connection end with what it has in flight.
func (c *pooled) retire() {
	c.mu.Lock()
	first := !c.retired
	c.retired = true
	idle := c.inFlight == 0
	c.mu.Unlock()
	if !first {
		return
	}
	c.pool.forget(c)
	if idle {
		_ = c.cc.Close()
	}
}

func (p *pool) forget(gone *pooled) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, c := range p.conns {
		if c == gone {
			p.conns = append(p.conns[:i:i], p.conns[i+1:]...)
			return
		}
	}
}

// connect makes a connection for those that wait.
func (p *pool) connect(d *dialing) {
	c, err := p.open()
	p.mu.Lock()
	p.dialing = nil
	if err == nil {
		p.conns = append(p.conns, c)
	}
	retired := p.retired
	p.mu.Unlock()
	d.err = err
	close(d.done)
	if err == nil && retired {
		// The place was given up meanwhile. Those who wait have asked before, and may still use it.
		time.AfterFunc(time.Second, c.retire)
	}
}

func (p *pool) open() (*pooled, error) {
	ctx, cancel := context.WithTimeout(p.ctx, 2*connectTimeout+time.Second)
	defer cancel()
	c := &pooled{pool: p}
	ready := make(chan struct{}) // the bounds of a life may be reached before cc is set
	wire, up, err := p.dial(ctx, func() {
		<-ready
		if c.cc != nil {
			c.retire()
		}
	})
	defer close(ready)
	if err != nil {
		return nil, err
	}
	scheme := "http"
	if _, ok := wire.(*tls.Conn); ok {
		scheme = "https"
	}
	cc, err := p.transport.NewClientConn(context.WithValue(ctx, dialedKey{}, wire), scheme, "peer:1")
	if err != nil {
		wire.Close()
		return nil, errors.Join(errConnect, err)
	}
	c.cc, c.up = cc, up
	return c, nil
}

// retire lets all connections end when they are idle.
func (p *pool) retire() {
	p.mu.Lock()
	p.retired = true
	conns := p.conns
	p.conns = nil
	p.mu.Unlock()
	for _, c := range conns {
		c.retire()
	}
}

// unprocessed tells whether the far end has certainly not begun with a request that failed with err
// (RFC 9113 section 8.7): then it may be sent again, whatever it is. net/http has no errors for it that
// could be compared, but for the refused stream; their texts are pinned by a test.
func unprocessed(err error) bool {
	if err == nil {
		return false
	}
	// net/http converts its own type to any of this form.
	var reset streamError
	if errors.As(err, &reset) {
		return reset.Code == codeRefusedStream
	}
	switch err.Error() {
	case "http2: client conn not usable", "http2: client conn could not be established",
		"http2: Transport received Server's graceful shutdown GOAWAY":
		return true
	}
	return false
}

// codeRefusedStream is REFUSED_STREAM of RFC 9113 section 7.
const codeRefusedStream = 7

// streamError has the fields of net/http's error of the same name.
type streamError struct {
	StreamID uint32
	Code     uint32
	Cause    error
}

// Error implements the error interface.
func (e streamError) Error() string { return "the stream was reset" }
