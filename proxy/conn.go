package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/proxy/internal/guard"
	"countersign.dev/proxy/internal/header"
	"countersign.dev/proxy/internal/stat"
)

// connKind is what a connection carries.
type connKind int

const (
	opening   connKind = iota // it is being accepted
	carryHTTP                 // requests
	carryTCP                  // bytes of tcp or of an upgraded protocol
)

// conn is a connection from a client, from accept to close. It is the net.Conn at the bottom: TLS and
// the request guard stand on it.
type conn struct {
	net.Conn // the socket, or the socket with its first bytes put back
	socket   net.Conn
	l        *listener
	remote   netip.AddrPort
	started  time.Time
	read     atomic.Int64
	written  atomic.Int64

	// What the handshake has shown, constant once the connection carries something.
	secure     bool
	version    uint16
	peer       id.ID // zero: anonymous
	peerFields *header.Peer
	peerSerial string
	ownSerial  string
	bundle     string      // the digest of what the peer was verified with
	guard      *guard.Conn // of HTTP/1.1

	requests atomic.Int64 // of HTTP/1.1, which come one after the other
	aged     atomic.Bool  // it ends with its next answer
	life     life

	mu      sync.Mutex
	kind    connKind             // guarded by mu
	streams map[*stream]struct{} // guarded by mu: requests that run
	closed  bool                 // guarded by mu
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.read.Add(int64(n))
	return n, err
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	return n, err
}

// CloseWrite ends the sending direction.
func (c *conn) CloseWrite() error { return closeWrite(c.Conn) }

// Close implements net.Conn; the connection is not registered any more then.
func (c *conn) Close() error {
	c.mu.Lock()
	first := !c.closed
	c.closed = true
	c.mu.Unlock()
	if first {
		c.life.end()
		c.l.active.Add(-1)
		c.l.p.conns.remove(c)
	}
	return c.socket.Close()
}

// abort closes the connection so that the far end cannot take it for a regular end.
func (c *conn) abort() {
	reset(c.socket)
	_ = c.Close()
}

// connKey is the context key of a request's *conn.
type connKey struct{}

// connOf finds the *conn at the bottom of what net/http was given.
func connOf(c net.Conn) *conn {
	for {
		switch v := c.(type) {
		case *conn:
			return v
		case *guard.Conn:
			c = v.Conn
		case *tls.Conn:
			c = v.NetConn()
		default:
			return nil // cannot be: take makes all of them
		}
	}
}

// carry says what the connection carries from now on. It is false when the connection was closed
// meanwhile.
func (c *conn) carry(kind connKind) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kind = kind
	return !c.closed
}

// busy tells whether the connection does something that a drain waits for.
func (c *conn) busy() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kind == carryTCP || len(c.streams) > 0
}

// tlsVersion is the version's name, empty in plaintext.
func (c *conn) tlsVersion() string {
	if !c.secure {
		return ""
	}
	return stat.TLSVersion(c.version)
}

// stream is a request that runs.
type stream struct {
	method string
	path   string
	began  time.Time
	cancel context.CancelCauseFunc

	mu      sync.Mutex
	control *http.ResponseController // guarded by mu: nil when the answer is over
}

// errForbidden ends a stream or a connection that the policy does not admit any more.
var errForbidden = errors.New("the policy does not admit it any more")

// open registers a request, before its policy is looked up: so a review either finds it or was over
// before, and then the lookup finds what the review was about.
func (c *conn) open(s *stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.streams[s] = struct{}{}
}

// done says that a request's handler returns.
func (c *conn) done(s *stream) {
	s.mu.Lock()
	s.control = nil
	s.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.streams, s)
}

// cut ends a request in the middle: whoever reads or writes for it fails.
func (s *stream) cut(cause error) {
	s.cancel(cause)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.control != nil {
		past := time.Now().Add(-time.Second)
		// Errors say that the stream or its connection is gone already.
		_ = s.control.SetReadDeadline(past)
		_ = s.control.SetWriteDeadline(past)
	}
}

// streamsNow are the requests that run.
func (c *conn) streamsNow() []*stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	streams := make([]*stream, 0, len(c.streams))
	for s := range c.streams {
		streams = append(streams, s)
	}
	return streams
}

// review closes what a new state does not admit.
func (c *conn) review(next *state) {
	if c.l.side == outboundSide {
		return // the application may call what it could call: the called side decides
	}
	c.mu.Lock()
	kind := c.kind
	c.mu.Unlock()
	if kind == opening {
		return // its policy is looked up when it is open
	}
	in := next.inbound[c.l.port]
	if in == nil || in.unfit(c, kind) != "" {
		c.forbid()
		return
	}
	if kind == carryTCP && in.Protocol == mesh.TCP {
		if !in.policy.Connection(c.peer).Allowed {
			c.forbid()
		}
		return
	}
	for _, s := range c.streamsNow() {
		if in.policy.Request(c.peer, s.method, s.path).Allowed {
			continue
		}
		if kind == carryTCP { // an upgraded connection is its one request
			c.forbid()
			return
		}
		s.cut(errForbidden)
	}
}

// forbid closes a connection with all that it carries.
func (c *conn) forbid() { c.forbidFor(errForbidden) }

func (c *conn) forbidFor(cause error) {
	for _, s := range c.streamsNow() {
		s.cancel(cause)
	}
	c.abort()
}

// unfit says why a connection, as it was made, does not fit a listener as it is declared now; empty
// when it does.
func (in *inbound) unfit(c *conn, kind connKind) string {
	switch {
	case in.TLS == mesh.Strict && !c.secure:
		return "it is in plaintext, and the port takes only TLS"
	case in.TLS == mesh.Off && c.secure:
		return "it is TLS, and the port takes only plaintext"
	case c.secure && in.ClientAuth == mesh.Require && c.peer.IsZero():
		return "it presented no certificate, and the port requires one"
	case c.secure && in.MinTLS == mesh.TLS13 && c.version < tls.VersionTLS13:
		return "its TLS version is too low"
	case in.Protocol == mesh.TCP && kind == carryHTTP:
		return "it carries requests, and the port takes bytes"
	case in.Protocol != mesh.TCP && kind == carryTCP && len(c.streamsNow()) == 0:
		return "it carries bytes, and the port takes requests"
	}
	return ""
}

// closeWrite ends the sending direction of a connection that can end it alone.
func closeWrite(c net.Conn) error {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// reset makes the next Close send a reset, where the connection at the bottom is TCP.
func reset(c net.Conn) {
	if tcp, ok := c.(interface{ SetLinger(sec int) error }); ok {
		_ = tcp.SetLinger(0) // it fails only when the connection is closed
	}
}
