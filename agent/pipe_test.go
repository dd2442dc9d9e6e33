package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// pipeNet is a network in memory that works in a synctest bubble: its connections block on
// condition variables. Unlike net.Pipe they have buffers, which TLS over HTTP/2 needs.
type pipeNet struct {
	mu       sync.Mutex
	down     bool
	dials    int
	accepts  chan net.Conn
	conns    []net.Conn
	closed   chan struct{}
	closeOne sync.Once
}

func newPipeNet() *pipeNet {
	return &pipeNet{accepts: make(chan net.Conn, 16), closed: make(chan struct{})}
}

var errDown = errors.New("connection refused")

func (n *pipeNet) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dials++
	if n.down {
		return nil, errDown
	}
	near, far := newPipe()
	n.conns = append(n.conns, near, far)
	select {
	case n.accepts <- far:
		return near, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// setDown refuses dials from now on, and cuts what is open, as a host that lost its network does.
func (n *pipeNet) setDown(down bool) {
	n.mu.Lock()
	n.down = down
	conns := n.conns
	n.conns = nil
	n.mu.Unlock()
	if down {
		for _, conn := range conns {
			conn.Close()
		}
	}
}

// dialed is the number of dials until now.
func (n *pipeNet) dialed() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials
}

func (n *pipeNet) Accept() (net.Conn, error) {
	select {
	case conn := <-n.accepts:
		return conn, nil
	case <-n.closed:
		return nil, net.ErrClosed
	}
}

func (n *pipeNet) Close() error {
	n.closeOne.Do(func() { close(n.closed) })
	return nil
}

func (n *pipeNet) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

// half is one direction of a connection.
type half struct {
	mu       sync.Mutex
	cond     *sync.Cond
	data     []byte
	closed   bool
	deadline time.Time
	timer    *time.Timer
}

func newHalf() *half {
	h := &half{}
	h.cond = sync.NewCond(&h.mu)
	return h
}

func (h *half) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case len(h.data) > 0:
			n := copy(p, h.data)
			h.data = h.data[n:]
			return n, nil
		case h.closed:
			return 0, io.EOF
		case !h.deadline.IsZero() && !time.Now().Before(h.deadline):
			return 0, os.ErrDeadlineExceeded
		}
		h.cond.Wait()
	}
}

func (h *half) write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return 0, io.ErrClosedPipe
	}
	h.data = append(h.data, p...)
	h.cond.Broadcast()
	return len(p), nil
}

func (h *half) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	if h.timer != nil {
		h.timer.Stop()
	}
	h.cond.Broadcast()
}

func (h *half) setDeadline(t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.timer != nil {
		h.timer.Stop()
		h.timer = nil
	}
	h.deadline = t
	if !t.IsZero() && !h.closed {
		h.timer = time.AfterFunc(time.Until(t), h.cond.Broadcast)
	}
	h.cond.Broadcast()
}

type pipeConn struct{ in, out *half }

func newPipe() (a, b *pipeConn) {
	x, y := newHalf(), newHalf()
	return &pipeConn{x, y}, &pipeConn{y, x}
}

func (c *pipeConn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *pipeConn) Write(p []byte) (int, error) { return c.out.write(p) }
func (c *pipeConn) Close() error {
	c.in.close()
	c.out.close()
	return nil
}
func (c *pipeConn) LocalAddr() net.Addr               { return pipeAddr{} }
func (c *pipeConn) RemoteAddr() net.Addr              { return pipeAddr{} }
func (c *pipeConn) SetReadDeadline(t time.Time) error { c.in.setDeadline(t); return nil }
func (c *pipeConn) SetWriteDeadline(time.Time) error  { return nil }
func (c *pipeConn) SetDeadline(t time.Time) error     { return c.SetReadDeadline(t) }
