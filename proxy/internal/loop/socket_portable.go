package loop

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// portable is the poller of systems without epoll: goroutines block on net.Conn, and the loop sees
// the same sockets that never block.
type portable struct {
	l     *Loop
	waked chan struct{}
	open  map[*Conn]struct{} // belongs to the loop
}

func newPortable(l *Loop) *portable {
	return &portable{l: l, waked: make(chan struct{}, 1), open: make(map[*Conn]struct{})}
}

func (p *portable) wait(round func(ready func()) bool) error {
	for range p.waked {
		if !round(func() {}) {
			return nil
		}
	}
	return nil
}

func (p *portable) wake() {
	select {
	case p.waked <- struct{}{}:
	default: // a wake-up is pending
	}
}

func (p *portable) again() { p.wake() }

func (p *portable) close() error {
	for c := range p.open {
		c.abandon()
	}
	return nil
}

// netSocket makes a net.Conn look like a socket that never blocks. One goroutine reads ahead by one
// buffer, another writes one buffer behind.
type netSocket struct {
	conn net.Conn
	p    *portable
	l    *Loop
	c    *Conn

	mu      sync.Mutex
	wake    sync.Cond
	in      []byte // guarded by mu: what was read and not taken
	inErr   error  // guarded by mu
	out     []byte // guarded by mu: what is to be written
	after   []byte // guarded by mu: what is to be written after that, before the close
	outErr  error  // guarded by mu
	shut    bool   // guarded by mu: close the writing side after out
	stopped bool   // guarded by mu
}

func (p *portable) adopt(l *Loop, conn net.Conn, local, remote netip.AddrPort) *Conn {
	s := &netSocket{conn: conn, p: p, l: l}
	s.wake.L = &s.mu
	s.c = l.newConn(s, local, remote)
	p.open[s.c] = struct{}{}
	go s.reader()
	go s.writer()
	return s.c
}

func (s *netSocket) reader() {
	buf := make([]byte, 64<<10)
	for {
		n, err := s.conn.Read(buf)
		if n > 0 && !s.offer(buf[:n], nil) {
			return
		}
		if err != nil {
			s.offer(nil, err)
			return
		}
	}
}

// offer gives the loop something to read and waits until it is taken.
func (s *netSocket) offer(p []byte, err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.in, s.inErr = p, err
	s.l.Post(func() {
		if !s.c.dead {
			s.c.readable()
		}
	})
	for len(s.in) > 0 && !s.stopped {
		s.wake.Wait()
	}
	return !s.stopped
}

func (s *netSocket) read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.in) == 0 {
		switch {
		case s.inErr == nil:
			return 0, errAgain
		case errors.Is(s.inErr, io.EOF):
			return 0, io.EOF
		}
		return 0, s.inErr
	}
	n := copy(p, s.in)
	s.in = s.in[n:]
	s.wake.Broadcast()
	return n, nil
}

func (s *netSocket) writer() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		for len(s.out) == 0 && !s.shut && !s.stopped {
			s.wake.Wait()
		}
		if len(s.out) == 0 {
			if s.shut && !s.stopped {
				if tcp, ok := s.conn.(*net.TCPConn); ok {
					_ = tcp.CloseWrite()
				}
			}
			if s.stopped {
				_ = s.conn.Close()
			}
			if s.stopped || s.shut {
				return
			}
			continue
		}
		out := s.out
		s.mu.Unlock()
		_, err := s.conn.Write(out)
		s.mu.Lock()
		s.out, s.after, s.outErr = s.after, nil, err
		s.l.Post(func() {
			if !s.c.dead && s.c.blocked {
				s.c.writable()
			}
		})
		if err != nil {
			if s.stopped {
				_ = s.conn.Close()
			}
			return
		}
	}
}

// write takes all, or nothing while the last write has not ended.
func (s *netSocket) write(p, more []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.outErr != nil:
		return 0, s.outErr
	case len(s.out) > 0:
		return 0, errAgain
	}
	s.out = append(append(make([]byte, 0, len(p)+len(more)), p...), more...)
	s.wake.Broadcast()
	return len(s.out), nil
}

// last queues what is written after all else, before the connection is closed.
func (s *netSocket) last(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.outErr != nil || s.shut {
		return
	}
	if len(s.out) > 0 {
		s.after = append(s.after, p...)
		return
	}
	s.out = append([]byte(nil), p...)
	s.wake.Broadcast()
}

func (s *netSocket) closeWrite() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shut = true
	s.wake.Broadcast()
	return nil
}

// close lets the writer finish what the loop believes to be written, for a second at most.
func (s *netSocket) close(reset bool) error {
	delete(s.p.open, s.c)
	s.mu.Lock()
	defer s.mu.Unlock()
	if tcp, ok := s.conn.(*net.TCPConn); ok && reset {
		_ = tcp.SetLinger(0)
	}
	over := s.shut && len(s.out) == 0 || s.outErr != nil // the writer has ended or will not write
	s.stopped = true
	s.wake.Broadcast()
	_ = s.conn.SetReadDeadline(time.Now())
	if over {
		return s.conn.Close()
	}
	return s.conn.SetWriteDeadline(time.Now().Add(time.Second))
}

func (p *portable) dial(l *Loop, to netip.AddrPort, done func(*Conn, error)) func() {
	ctx, cancel := context.WithCancel(context.Background())
	over := false // belongs to the loop
	go func() {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", to.String())
		finish := func() { //nolint:contextcheck // the context ends the dial, not what comes of it
			cancel()
			if over {
				if conn != nil {
					_ = conn.Close()
				}
				return
			}
			over = true
			if err != nil {
				done(nil, err)
				return
			}
			local := conn.LocalAddr().(*net.TCPAddr).AddrPort()
			done(p.adopt(l, conn, local, to), nil)
		}
		if !l.Post(finish) && conn != nil {
			_ = conn.Close()
		}
	}()
	return func() {
		over = true
		cancel()
	}
}

func (p *portable) listen(g *Group, ln *Listener, tcp *net.TCPListener, take func(*Conn), failed func(error)) (func(), error) {
	go func() {
		for {
			conn, err := tcp.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				failed(err)
				time.Sleep(acceptPause)
				continue
			}
			l := g.pick()
			remote := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
			remote = netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
			if !l.Post(func() { take(l.poller.(*portable).adopt(l, conn, ln.addr, remote)) }) {
				_ = conn.Close()
			}
		}
	}()
	return func() { _ = tcp.Close() }, nil
}
