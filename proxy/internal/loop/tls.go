package loop

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// maxShaking bounds the handshakes that compute at once in a process: a storm of reconnecting peers waits
// in line, in the order of its arrival, and traffic goes on beside it. Those that wait for a peer's bytes
// do not count: a few that say nothing more would keep all others out.
const maxShaking = 64

// maxHello bounds the bytes that wait for crypto/tls during a handshake: content may follow the client's
// last flight before the server knows that the handshake is complete.
const maxHello = 64 << 10

var shakers = make(chan struct{}, maxShaking)

// tlsState encrypts one connection with crypto/tls.
//
// The handshake runs on a goroutine of its own, which costs its stack only while it lasts, and starts
// when the peer's first bytes are there: a connection that says nothing costs nothing. Afterwards the
// loop calls crypto/tls itself, over a net.Conn that never blocks.
type tlsState struct {
	c       *Conn
	conn    *tls.Conn
	state   tls.ConnectionState
	shaking *handshake // nil once the handshake is complete
	done    func(error)

	in      []byte // ciphertext that crypto/tls has not taken; aliases the loop's buffer during a call
	rest    []byte // ciphertext that came while the handler wanted nothing
	atEOF   bool
	first   bool   // crypto/tls may hold content that nobody has asked for yet
	pending []byte // plaintext for the end of the round
	bulk    bool   // records go to the loop's buffer rather than to the connection's queue
	err     error
}

// handshake is the exchange between the loop and the goroutine.
type handshake struct {
	mu       sync.Mutex
	ready    sync.Cond
	in       []byte // guarded by mu
	eof      error  // guarded by mu: io.EOF, or why the connection broke
	full     bool   // guarded by mu: the loop reads no more
	started  bool   // belongs to the loop
	client   bool
	config   *tls.Config
	deadline *Timer
}

// StartTLS encrypts the connection from here on. done is called on the loop: with nil, when the
// handshake is complete and before any Data, or with why it failed, in which case the connection is
// closed. A handshake that takes longer than timeout fails.
func (c *Conn) StartTLS(config *tls.Config, client bool, timeout time.Duration, done func(error)) {
	h := &handshake{client: client, config: config}
	h.ready.L = &h.mu
	t := &tlsState{c: c, shaking: h, done: done}
	c.tls = t
	if client {
		t.conn = tls.Client((*wire)(t), config)
		t.start()
	} else {
		t.conn = tls.Server((*wire)(t), config)
	}
	h.deadline = c.l.After(timeout, func() {
		if t.shaking != nil {
			c.fail(ErrHandshakeTimeout)
		}
	})
	c.requeue()
}

// FeedTLS gives bytes that were read before StartTLS, by somebody who had to look at them first.
func (c *Conn) FeedTLS(p []byte) { c.tls.feed(p) }

// ErrHandshakeTimeout says that a handshake took longer than it may.
var ErrHandshakeTimeout = errors.New("the TLS handshake took too long")

// start runs the handshake.
func (t *tlsState) start() {
	h := t.shaking
	h.started = true
	go func() {
		shakers <- struct{}{}
		err := t.conn.HandshakeContext(context.Background())
		<-shakers
		t.c.l.Post(func() { t.complete(err) })
	}()
}

// complete takes the connection back to the loop.
func (t *tlsState) complete(err error) {
	h, c := t.shaking, t.c
	t.shaking = nil
	h.deadline.Stop()
	if err == nil && c.dead {
		err = c.err
		if err == nil {
			err = net.ErrClosed
		}
	}
	if err != nil {
		if c.err != nil {
			err = c.err
		}
		if !c.dead {
			t.refusePlaintext(err)
			c.push() // the alert
			c.end(err)
		}
		t.done(err)
		return
	}
	h.mu.Lock()
	t.rest = append([]byte(nil), h.in...) // the storage of the whole handshake is not kept
	t.atEOF = h.eof != nil
	h.in = nil
	h.mu.Unlock()
	t.state = t.conn.ConnectionState()
	if !h.client {
		// The slice is the one that crypto/tls keeps for the connection's life, and at a server nobody
		// else has it: to change pointers in it for pointers to the same is what frees the copies.
		c.l.certificates.share(t.state.PeerCertificates)
	}
	done := t.done
	t.done = nil // and what it holds
	done(nil)
	// Content may have come with the last flight: in our buffer, or in crypto/tls already.
	c.ready = true
	t.first = true
	c.requeue()
	c.mark() // and content may wait for the handshake
}

// notTLS is the fatal alert unexpected_message in a record of its own (RFC 8446 sections 5.1 and 6.2).
var notTLS = []byte{21, 3, 1, 0, 2, 2, 10}

// refusePlaintext answers a peer whose first bytes were no TLS. crypto/tls sends nothing then, so that
// its caller may talk to it in plaintext; here the peer may be TLS of a kind that Go does not know, and
// a tool that was pointed at the wrong port says more about an alert than about a connection that ends.
func (t *tlsState) refusePlaintext(err error) {
	var first tls.RecordHeaderError
	if errors.As(err, &first) && first.Conn != nil { // with Conn nil an alert was sent
		t.c.out, t.c.at = t.c.l.grow(t.c.out, t.c.at, notTLS)
	}
}

// left tells whether ciphertext waits that the socket has given before.
func (t *tlsState) left() bool { return t.shaking == nil && (len(t.rest) > 0 || t.first || t.atEOF) }

// feed takes ciphertext from the socket.
func (t *tlsState) feed(p []byte) {
	h := t.shaking
	if h == nil {
		t.in = p
		t.decrypt()
		return
	}
	h.mu.Lock()
	h.in = append(h.in, p...)
	h.full = len(h.in) >= maxHello
	h.mu.Unlock()
	if !h.started {
		t.start()
	}
	h.ready.Signal()
}

// pump decrypts what waits.
func (t *tlsState) pump() {
	t.first = false
	if len(t.rest) > 0 {
		t.in, t.rest = t.rest, nil
	} else if t.atEOF {
		t.atEOF = false
		t.eof()
		return
	}
	t.decrypt()
}

// decrypt hands on all that crypto/tls makes of t.in.
func (t *tlsState) decrypt() {
	c := t.c
	for !c.dead {
		if c.paused {
			t.rest = append([]byte(nil), t.in...)
			t.first = true // crypto/tls may hold plaintext too
			t.in = nil
			return
		}
		buf := c.l.plainBuffer()
		n, err := t.fill(buf)
		if n > 0 {
			c.data(buf[:n])
		}
		switch {
		case err == nil:
		case errors.Is(err, errAgain):
			return
		case errors.Is(err, io.EOF) && c.paused: // crypto/tls says so again
		case errors.Is(err, io.EOF): // close_notify
			c.ended = true
			c.handler.End()
			return
		default:
			c.fail(err)
			return
		}
	}
}

// fill reads records until buf is full or there is no whole one.
func (t *tlsState) fill(buf []byte) (int, error) {
	have := 0
	for have < len(buf) {
		n, err := t.conn.Read(buf[have:])
		have += n
		if err != nil {
			return have, err
		}
	}
	return have, nil
}

// eof is the socket's end. Without a close_notify before it the peer may have been cut off (RFC 8446
// section 6.1): that is an error, for what was received may be a part.
func (t *tlsState) eof() {
	c := t.c
	if h := t.shaking; h != nil {
		if !h.started {
			c.fail(io.EOF)
			return
		}
		h.abort(io.EOF)
		c.ready = false
		return
	}
	if !c.ended {
		c.fail(io.ErrUnexpectedEOF)
	}
}

func (h *handshake) abort(err error) {
	h.mu.Lock()
	if h.eof == nil {
		h.eof = err
	}
	h.mu.Unlock()
	h.ready.Signal()
}

// abort ends a handshake that is running, when the connection is closed.
func (t *tlsState) abort(err error) {
	if h := t.shaking; h != nil {
		if err == nil {
			err = net.ErrClosed
		}
		h.deadline.Stop()
		h.abort(err)
		if !h.started {
			t.shaking = nil
			t.done(err)
		}
		t.pending = nil
		return // what crypto/tls reads is the goroutine's until complete
	}
	t.in, t.rest, t.pending = nil, nil, nil
}

// write takes plaintext: small pieces are collected, so that a round makes one record of them.
func (t *tlsState) write(p []byte) {
	if t.shaking != nil || len(p) < bulkSize {
		t.pending, _ = t.c.l.grow(t.pending, 0, p)
		t.c.mark()
		return
	}
	t.encrypt(t.pending, p)
	t.pending = t.c.l.release(t.pending)
}

// flush encrypts what was collected.
func (t *tlsState) flush() {
	if t.shaking != nil || len(t.pending) == 0 {
		return
	}
	t.encrypt(t.pending)
	t.pending = t.c.l.release(t.pending)
}

// encrypt makes records in the loop's buffer and hands them to the socket at once.
func (t *tlsState) encrypt(parts ...[]byte) {
	if t.err != nil {
		return
	}
	l := t.c.l
	l.cipher, t.bulk = l.cipher[:0], true
	for _, p := range parts {
		if len(p) == 0 {
			continue
		}
		if _, t.err = t.conn.Write(p); t.err != nil {
			break
		}
	}
	t.bulk = false
	if t.err != nil {
		t.c.fail(t.err)
		return
	}
	t.c.writeRaw(l.cipher)
}

// closeNotify sends the alert that ends our side.
func (t *tlsState) closeNotify() {
	if t.shaking != nil || t.err != nil {
		return
	}
	_ = t.conn.CloseWrite() // it only writes, which cannot fail here
}

// wire is the net.Conn under crypto/tls. During the handshake its methods are called on the
// handshake's goroutine and may block; afterwards on the loop, and never do.
type wire tlsState

func (w *wire) Read(p []byte) (int, error) {
	if h := w.shaking; h != nil && len(w.in) == 0 {
		return h.read(p, w.c)
	}
	if len(w.in) == 0 {
		return 0, errAgain
	}
	n := copy(p, w.in)
	w.in = w.in[n:]
	return n, nil
}

func (h *handshake) read(p []byte, c *Conn) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.in) == 0 && h.eof == nil {
		<-shakers // who waits for its peer does no work: it must not keep those out who could
		for len(h.in) == 0 && h.eof == nil {
			h.ready.Wait()
		}
		h.mu.Unlock()
		shakers <- struct{}{}
		h.mu.Lock()
	}
	if len(h.in) == 0 {
		return 0, h.eof
	}
	n := copy(p, h.in)
	h.in = h.in[n:]
	if h.full && len(h.in) < maxHello {
		h.full = false
		c.l.Post(c.requeue)
	}
	return n, nil
}

// holds tells whether the loop is to read no more for now.
func (h *handshake) holds() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.full
}

func (w *wire) Write(p []byte) (int, error) {
	t, c := (*tlsState)(w), w.c
	switch {
	case t.shaking != nil:
		flight := append([]byte(nil), p...)
		c.l.Post(func() {
			if !c.dead {
				c.writeRaw(flight)
			}
		})
	case t.bulk:
		c.l.cipher = append(c.l.cipher, p...)
	default: // an alert, or the answer to a KeyUpdate
		c.out, c.at = c.l.grow(c.out, c.at, p)
		c.mark()
	}
	return len(p), nil
}

func (w *wire) Close() error                     { return nil }
func (w *wire) LocalAddr() net.Addr              { return tcpAddr(w.c.local) }
func (w *wire) RemoteAddr() net.Addr             { return tcpAddr(w.c.remote) }
func (w *wire) SetDeadline(time.Time) error      { return nil }
func (w *wire) SetReadDeadline(time.Time) error  { return nil }
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

func tcpAddr(a netip.AddrPort) net.Addr { return net.TCPAddrFromAddrPort(a) }
