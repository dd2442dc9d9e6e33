package loop

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"time"
)

// Handler is what happens to a connection. Its methods are called on the loop's goroutine.
type Handler interface {
	// Data brings bytes; p is valid during the call and all of it is taken.
	Data(p []byte)
	// End says that the peer sends no more. Writing goes on.
	End()
	// Drained says that what was queued has gone out, after [Conn.Queued] was not 0 at the end of a
	// round.
	Drained()
	// Closed is the last call: err is nil after [Conn.Close], and otherwise why the connection broke.
	Closed(err error)
}

// errAgain says that a socket has nothing to read, or takes nothing, for now. It is a temporary
// net.Error, on which crypto/tls keeps a record that is not whole yet.
var errAgain = again{}

type again struct{}

func (again) Error() string   { return "not ready yet" }
func (again) Timeout() bool   { return true }
func (again) Temporary() bool { return true }

// socket is a non-blocking stream socket. read and write return errAgain when they would block; read
// returns io.EOF at the peer's end.
type socket interface {
	read(p []byte) (int, error)
	// write writes p and then, if there is any, more.
	write(p, more []byte) (int, error)
	closeWrite() error
	// close closes; with reset the peer is told that what it got may not be whole.
	close(reset bool) error
}

// Conn is a connection, in plaintext or, after [Conn.StartTLS], encrypted.
type Conn struct {
	l       *Loop
	sock    socket
	handler Handler
	local   netip.AddrPort
	remote  netip.AddrPort

	out []byte // bytes for the socket that it has not taken
	at  int    // where in out the unsent part starts
	tls *tlsState

	since   time.Time // when the socket last took something, while it takes nothing
	read    int64     // bytes that the handler got
	written int64     // bytes that the handler wrote

	err      error
	limit    int    // of one read; 0: none
	after    func() // after Closed
	dirty    bool   // in l.dirty
	queued   bool   // in l.again
	paused   bool   // the handler wants nothing now
	ready    bool   // the socket may have something to read
	hup      bool   // the peer's end was announced: read until it is met, no event comes for it
	blocked  bool   // the socket takes nothing now
	full     bool   // Drained is due
	finish   bool   // CloseWrite was called
	finished bool   // and done
	fin      bool   // the socket's writing side is to be closed when nothing waits any more
	lingers  bool   // CloseAfterFlush was called
	ended    bool   // the peer sends no more
	dead     bool
	reset    bool // close with a reset
}

// newConn takes over a socket.
func (l *Loop) newConn(sock socket, local, remote netip.AddrPort) *Conn {
	l.open.Add(1)
	return &Conn{l: l, sock: sock, local: local, remote: remote}
}

// Loop is the loop that owns the connection.
func (c *Conn) Loop() *Loop { return c.l }

// Handle sets the handler; a connection may change hands.
func (c *Conn) Handle(h Handler) { c.handler = h }

// AfterClosed sets what is called once the connection is closed, after its handler was told.
func (c *Conn) AfterClosed(f func()) { c.after = f }

// LocalAddr and RemoteAddr are the two ends.
func (c *Conn) LocalAddr() netip.AddrPort { return c.local }

// RemoteAddr is the far end.
func (c *Conn) RemoteAddr() netip.AddrPort { return c.remote }

// TLS is the state of an encrypted connection whose handshake is complete, nil otherwise.
func (c *Conn) TLS() *tls.ConnectionState {
	if c.tls == nil || c.tls.shaking != nil {
		return nil
	}
	return &c.tls.state
}

// Queued is the number of bytes that wait to be sent.
func (c *Conn) Queued() int {
	n := len(c.out) - c.at
	if c.tls != nil {
		n += len(c.tls.pending)
	}
	return n
}

// Congested tells whether the peer takes less than it is sent: something waits that the socket did not
// take. Drained will come. What merely waits for the end of the round does not count, but for so much
// that it is better written now.
func (c *Conn) Congested() bool {
	if !c.blocked && !c.dead && c.Queued() > bulkSize*8 {
		if c.tls != nil {
			c.tls.flush()
		}
		c.push()
	}
	return c.blocked
}

// Blocked tells since when the socket has taken nothing of what waits for it; ok is false while it
// takes what it is given. Without epoll one write goes on unseen, on its goroutine: only what comes
// after it counts.
func (c *Conn) Blocked() (since time.Time, ok bool) { return c.since, c.blocked && !c.dead }

// BytesRead is how many bytes the handler was given, decrypted where there is TLS.
func (c *Conn) BytesRead() int64 { return c.read }

// BytesWritten is how many bytes were given to [Conn.Write], whether they are sent already or not.
func (c *Conn) BytesWritten() int64 { return c.written }

// Dead tells whether the connection was closed or broke; Closed comes at the end of the round.
func (c *Conn) Dead() bool { return c.dead }

// Limit bounds what is read at once, and with that what Data brings, to about n bytes: who can pass on
// only so much leaves the rest to the kernel instead of keeping it. 0 is no limit.
func (c *Conn) Limit(n int) { c.limit = n }

// Pause stops reading: no Data and no End until [Conn.Resume].
func (c *Conn) Pause() { c.paused = true }

// Resume reads again, later in this round or in the next.
func (c *Conn) Resume() {
	if c.paused {
		c.paused = false
		c.requeue()
	}
}

func (c *Conn) requeue() {
	if !c.queued && !c.dead {
		c.queued = true
		c.l.again = append(c.l.again, c)
	}
}

// Write sends p at the end of the round, or queues it. p is not kept. Errors come as Closed.
func (c *Conn) Write(p []byte) {
	if c.dead || c.finish || len(p) == 0 {
		return
	}
	c.written += int64(len(p))
	switch {
	case c.tls != nil:
		c.tls.write(p)
	case len(p) >= bulkSize:
		c.writeRaw(p)
	default:
		c.out, c.at = c.l.grow(c.out, c.at, p)
		c.mark()
	}
}

func (c *Conn) mark() {
	if !c.dirty && !c.dead {
		c.dirty = true
		c.l.dirty = append(c.l.dirty, c)
	}
}

// writeRaw hands p to the socket now, after what waits, and queues what it does not take.
func (c *Conn) writeRaw(p []byte) {
	if !c.blocked && !c.dead {
		waited := len(c.out) - c.at
		n, err := c.sock.write(c.out[c.at:], p)
		if err != nil && !errors.Is(err, errAgain) {
			c.fail(err)
			return
		}
		if n < waited+len(p) {
			c.block(n)
		}
		c.took(min(n, waited))
		p = p[max(0, n-waited):]
	}
	if !c.dead && len(p) > 0 {
		c.out, c.at = c.l.grow(c.out, c.at, p)
		c.full = true
	}
}

// push hands what waits to the socket.
func (c *Conn) push() {
	for !c.blocked && !c.dead && c.at < len(c.out) {
		n, err := c.sock.write(c.out[c.at:], nil)
		c.at += n
		switch {
		case errors.Is(err, errAgain) || err == nil && c.at < len(c.out):
			c.block(n)
		case err != nil:
			c.fail(err)
			return
		}
	}
	c.took(0)
}

// took is called when the socket took n bytes of what waited.
func (c *Conn) took(n int) {
	if c.at += n; c.at == len(c.out) {
		c.out, c.at = c.l.release(c.out), 0
		if !c.blocked {
			c.since = time.Time{}
		}
	}
}

// block is called when the socket took only n bytes of what it was given.
func (c *Conn) block(n int) {
	c.blocked, c.full = true, true
	if n > 0 || c.since.IsZero() {
		c.since = c.l.now
	}
}

// flush is the end of the round.
func (c *Conn) flush() {
	if c.dead {
		return
	}
	if c.tls != nil {
		c.tls.flush()
	}
	c.push()
	c.afterPush()
}

func (c *Conn) afterPush() {
	if c.dead || c.Queued() > 0 {
		return
	}
	if c.finish && !c.finished && (c.tls == nil || c.tls.shaking == nil) {
		c.finished = true
		if c.tls != nil {
			c.tls.closeNotify()
			c.push()
		}
		c.fin = c.tls == nil || c.ended
	}
	if c.dead || c.Queued() > 0 {
		return // the alert waits
	}
	if c.fin {
		c.fin = false
		_ = c.sock.closeWrite()
	}
	if c.lingers {
		c.Close()
		return
	}
	if c.full && !c.blocked {
		c.full = false
		c.handler.Drained()
	}
}

// writable is called when the socket takes bytes again.
func (c *Conn) writable() {
	c.blocked = false
	c.push()
	c.afterPush()
}

// readable is called when the socket has bytes, and again after a pause.
func (c *Conn) readable() {
	c.ready = true
	for range maxReads {
		if c.dead || c.ended || !c.ready || c.held() {
			return
		}
		if c.tls != nil && c.tls.left() {
			c.tls.pump()
			continue
		}
		buf := c.l.readBuffer()
		if c.limit > 0 && c.limit < len(buf) {
			buf = buf[:c.limit]
		}
		n, err := c.sock.read(buf)
		if n > 0 {
			c.deliver(buf[:n])
		}
		switch {
		case errors.Is(err, errAgain):
			c.ready = false
		case errors.Is(err, io.EOF):
			c.eof()
		case err != nil:
			c.fail(err)
		case n < len(buf) && !c.hup:
			c.ready = false // edge-triggered: more bytes, or the end, will raise another event
		}
	}
	c.requeue() // the others get their turn
}

// held tells whether nothing is to be read for now.
func (c *Conn) held() bool {
	if c.tls != nil && c.tls.shaking != nil {
		return c.tls.shaking.holds()
	}
	return c.paused
}

func (c *Conn) deliver(p []byte) {
	if c.tls != nil {
		c.tls.feed(p)
		return
	}
	c.data(p)
}

// data hands bytes to the handler.
func (c *Conn) data(p []byte) {
	c.read += int64(len(p))
	c.handler.Data(p)
}

func (c *Conn) eof() {
	if c.tls != nil {
		c.tls.eof()
		return
	}
	c.ended = true
	c.handler.End()
}

// CloseWrite ends our side after what is queued; reading goes on.
func (c *Conn) CloseWrite() {
	if !c.finish {
		c.finish = true
		c.mark()
	}
}

// CloseAfterFlush closes the connection when what is queued has gone out.
func (c *Conn) CloseAfterFlush() {
	c.lingers = true
	c.mark()
}

// Close closes the connection now; what is queued is lost. Closed comes at the end of the round.
func (c *Conn) Close() { c.end(nil) }

// Reset closes the connection so that the peer sees it broken.
func (c *Conn) Reset() {
	c.reset = true
	c.end(nil)
}

func (c *Conn) fail(err error) { c.end(err) }

func (c *Conn) end(err error) {
	if c.dead {
		return
	}
	c.dead, c.err = true, err
	if c.tls != nil {
		if err == nil && !c.finished && !c.reset {
			c.tls.closeNotify()
			c.lastWrite()
		}
		c.tls.abort(err)
	}
	c.out, c.at = c.l.release(c.out), 0
	c.l.closed = append(c.l.closed, c)
}

// abandon closes what is still open when the loop has ended.
func (c *Conn) abandon() {
	if c.dead {
		return
	}
	c.dead = true
	if c.tls != nil && c.tls.shaking != nil {
		c.tls.shaking.abort(net.ErrClosed)
	}
	_ = c.sock.close(false)
	c.l.open.Add(-1)
}

// lastWrite makes one attempt to send an alert on a connection that is being closed.
func (c *Conn) lastWrite() {
	if c.at == len(c.out) || c.blocked {
		return
	}
	if s, ok := c.sock.(interface{ last(p []byte) }); ok { // what was written before may not be on its way yet
		s.last(c.out[c.at:])
		return
	}
	_, _ = c.sock.write(c.out[c.at:], nil)
}
