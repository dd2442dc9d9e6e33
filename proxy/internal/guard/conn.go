package guard

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Sizes of reads: what is asked for by less than minRead is read by readSize.
const (
	minRead  = 512
	readSize = 4 << 10
)

// buffers are lent to small reads.
var buffers = sync.Pool{New: func() any { return new([readSize]byte) }}

// Options say how a [Conn] guards.
type Options struct {
	// HTTP2 admits HTTP/2 with prior knowledge.
	HTTP2 bool
	// HeadTimeout bounds the time from a head's first byte to its last, where the reader has set a
	// deadline at all (net/http sets none while it answers). 0 means no bound.
	HeadTimeout time.Duration
	// Refused is called once when the stream is refused; it may be nil.
	Refused func(*Violation)
}

// Conn is a connection whose reader sees only what [Machine] passes on. The head of a request is held
// back until it is complete and accepted. When the stream is refused, the reader gets something
// instead that net/http answers in the same way, after it has answered what came before, and then the
// end of the stream: so the answer comes in its place, and the connection is closed.
//
// As with any net.Conn, methods may be called concurrently, but only one Read at a time.
type Conn struct {
	net.Conn
	options Options
	machine Machine   // owned by the reader
	rest    []byte    // was read and not consumed; owned by the reader
	out     []byte    // to be passed on; owned by the reader
	poison  io.Reader // instead of a refused stream; owned by the reader

	partial atomic.Bool  // a head has begun
	upgrade atomic.Int64 // Machine.Upgrade

	mu       sync.Mutex
	deadline time.Time // guarded by mu: what the reader asked for
}

// NewConn guards a connection of which nothing has been read.
func NewConn(c net.Conn, o Options) *Conn {
	return &Conn{Conn: c, options: o, machine: Machine{HTTP2: o.HTTP2}}
}

// Upgrade is [Machine.Upgrade], for other goroutines than the reader's.
func (c *Conn) Upgrade() int { return int(c.upgrade.Load()) }

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		switch {
		case len(c.out) > 0:
			n := copy(p, c.out)
			c.out = c.out[n:]
			return n, nil
		case c.poison != nil:
			return c.poison.Read(p)
		case len(c.rest) > 0:
			in := c.rest
			if c.rest = in[c.advance(in):]; len(c.rest) == 0 {
				c.rest = nil // the memory, too
			}
		case c.machine.Opaque():
			return c.Conn.Read(p)
		default:
			if n, err := c.fill(p); n > 0 || err != nil {
				return n, err
			}
		}
	}
}

// fill reads from the connection. What may be passed on and stands in p already is returned.
func (c *Conn) fill(p []byte) (int, error) {
	buf := p
	if len(p) < minRead { // net/http asks for one byte while it answers
		lent := buffers.Get().(*[readSize]byte)
		defer buffers.Put(lent)
		buf = lent[:]
	}
	n, err := c.Conn.Read(buf)
	if n == 0 {
		return 0, err
	}
	in := buf[:n] // an error comes again with the next call
	used := c.advance(in)
	c.rest = append(c.rest[:0], in[used:]...)
	if len(c.out) > 0 && &c.out[0] == &buf[0] { // a body's bytes stand where they were read
		n = copy(p, c.out)
		c.out = bytes.Clone(c.out[n:])
		return n, nil
	}
	return 0, nil
}

// advance lets the machine read; it sets what is to be passed on, and gives how much was consumed.
func (c *Conn) advance(in []byte) int {
	n, out, err := c.machine.Next(in)
	c.out = out
	c.upgrade.Store(int64(c.machine.Upgrade()))
	if partial := c.machine.Partial(); c.partial.Swap(partial) != partial {
		c.mu.Lock()
		_ = c.arm(c.deadline) // a connection that is closed tells so with the next read
		c.mu.Unlock()
	}
	var v *Violation
	if errors.As(err, &v) {
		n = len(in)
		c.poison = poisonFor(v)
		if c.options.Refused != nil {
			c.options.Refused(v)
		}
	}
	return n
}

// poisonFor is what net/http answers with the violation's status.
func poisonFor(v *Violation) io.Reader {
	if v.Status == 400 {
		return strings.NewReader("\x00\r\n\r\n")
	}
	return io.MultiReader(strings.NewReader("GET / HTTP/1.1\r\nX: "), io.LimitReader(endless{}, 2*MaxHead))
}

// endless gives the same letter for ever.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	return c.arm(t)
}

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetWriteDeadline(t); err != nil {
		return err
	}
	return c.SetReadDeadline(t)
}

// arm sets the deadline, or an earlier one while a head is incomplete.
func (c *Conn) arm(t time.Time) error {
	if c.options.HeadTimeout > 0 && !t.IsZero() && c.partial.Load() {
		if head := time.Now().Add(c.options.HeadTimeout); head.Before(t) {
			t = head
		}
	}
	return c.Conn.SetReadDeadline(t)
}

// CloseWrite ends the sending direction, where the connection below can.
func (c *Conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
