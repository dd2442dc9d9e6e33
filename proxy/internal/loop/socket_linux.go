package loop

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file is the only one that makes raw system calls. They are raw (not announced to Go's
// scheduler) because they never block: every descriptor here is non-blocking.

// epoll waits for the sockets of one loop.
type epoll struct {
	loop   *Loop
	file   *os.File // the epoll descriptor, in Go's own poller
	fd     int
	event  int // an eventfd by which other goroutines wake the loop
	items  []ready
	events [256]unix.EpollEvent
	found  int // how many of events the last poll filled in

	unread  bool      // a connection has more to read than it could in its turn
	yielded time.Time // when the loop last let others run
}

// ready is what an event is told to.
type ready interface {
	event(mask uint32)
}

func newPoller(l *Loop, portable bool) (poller, error) {
	if portable {
		return newPortable(l), nil
	}
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("creating an epoll descriptor: %w", err)
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("creating an eventfd: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // os.NewFile takes it into Go's poller only then
		_ = unix.Close(fd)
		_ = unix.Close(event)
		return nil, fmt.Errorf("preparing an epoll descriptor: %w", err)
	}
	p := &epoll{loop: l, file: os.NewFile(uintptr(fd), "epoll"), fd: fd, event: event, items: make([]ready, 1024)}
	if err := p.add(event, wakeup{p}); err != nil {
		_ = p.close()
		return nil, err
	}
	return p, nil
}

// add watches a descriptor, edge-triggered: whoever is told reads or writes until errAgain.
func (p *epoll) add(fd int, r ready) error {
	for fd >= len(p.items) {
		p.items = append(p.items, make([]ready, len(p.items))...)
	}
	p.items[fd] = r
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(fd)}
	if err := unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		p.items[fd] = nil
		return fmt.Errorf("watching a socket: %w", err)
	}
	return nil
}

// forget is called before a descriptor is closed, which takes it out of the epoll set.
func (p *epoll) forget(fd int) { p.items[fd] = nil }

// wait gives the loop its rounds. The callback of RawConn.Read is called again when Go's poller finds
// the epoll descriptor readable; it never says that it is done before the loop is.
func (p *epoll) wait(round func(ready func()) bool) error {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	dispatch := p.dispatch // one closure for all rounds
	return raw.Read(func(uintptr) bool {
		for {
			if p.found = p.poll(); p.found == 0 && !p.unread {
				return false
			}
			p.unread = false
			if !round(dispatch) {
				return true
			}
			if l := p.loop; l.shared && l.spoken > 1 {
				p.yield()
			}
		}
	})
}

// yieldEvery is the least time from one yield to the next. Linux's scheduler (EEVDF) takes up to a whole
// slice, of milliseconds, from who yields: to yield in every round saved as much CPU, and one answer in a
// hundred took ten times as long.
const yieldEvery = 250 * time.Microsecond

// yield lets other processes run that wait for this CPU, if there are any. Under load they are the
// peers of our connections: what they say meanwhile makes the next round larger, and a write costs
// nearly the same whatever its size.
func (p *epoll) yield() {
	if now := p.loop.now; now.Sub(p.yielded) >= yieldEvery {
		p.yielded = now
		_, _, _ = unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
	}
}

// again asks for another round without waiting.
func (p *epoll) again() { p.unread = true }

func (p *epoll) poll() int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(&p.events[0])), //nolint:gosec // alive during the call
		uintptr(len(p.events)), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

func (p *epoll) dispatch() {
	for i := range p.found {
		ev := p.events[i]
		if r := p.items[ev.Fd]; r != nil {
			r.event(ev.Events)
		}
	}
}

func (p *epoll) wake() {
	one := [8]byte{1}
	_, _ = unix.Write(p.event, one[:]) // fails only when a wake-up is pending already
}

// close closes whatever is still open.
func (p *epoll) close() error {
	for fd, r := range p.items {
		switch r := r.(type) {
		case *Conn:
			r.abandon()
		case *dialing:
			_ = unix.Close(fd)
		case *acceptor:
			r.close()
		}
	}
	_ = unix.Close(p.event)
	return p.file.Close()
}

// wakeup empties the eventfd.
type wakeup struct{ p *epoll }

func (w wakeup) event(uint32) {
	var b [8]byte
	_, _ = unix.Read(w.p.event, b[:])
}

// fdSocket is a socket of an epoll loop.
type fdSocket struct {
	p  *epoll
	fd int
}

func (s *fdSocket) read(b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(s.fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b))) //nolint:gosec // alive during the call
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		return 0, errAgain
	case errno != 0:
		return 0, os.NewSyscallError("read", errno)
	case n == 0:
		return 0, io.EOF
	}
	return int(n), nil
}

func (s *fdSocket) write(b, more []byte) (int, error) {
	var n uintptr
	var errno unix.Errno
	switch {
	case len(more) == 0:
		n, _, errno = unix.RawSyscall(unix.SYS_WRITE, uintptr(s.fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b))) //nolint:gosec // alive during the call
	case len(b) == 0:
		return s.write(more, nil)
	default:
		parts := [2]unix.Iovec{{Base: &b[0]}, {Base: &more[0]}}
		parts[0].SetLen(len(b))
		parts[1].SetLen(len(more))
		n, _, errno = unix.RawSyscall(unix.SYS_WRITEV, uintptr(s.fd), uintptr(unsafe.Pointer(&parts)), uintptr(len(parts))) //nolint:gosec // alive during the call
	}
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		return 0, errAgain
	case errno != 0:
		return 0, os.NewSyscallError("write", errno)
	}
	return int(n), nil
}

func (s *fdSocket) closeWrite() error { return unix.Shutdown(s.fd, unix.SHUT_WR) }

func (s *fdSocket) close(reset bool) error {
	s.p.forget(s.fd)
	if reset {
		_ = unix.SetsockoptLinger(s.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	return unix.Close(s.fd)
}

// event is called for a connection's socket.
func (c *Conn) event(mask uint32) {
	if c.dead {
		return
	}
	if mask&unix.EPOLLOUT != 0 && c.blocked {
		c.writable()
	}
	// What came before a reset is read before the reset is met: an application may answer and close with
	// a part of the request unread. Where nobody reads now and nothing is left, it is told at once.
	if mask&unix.EPOLLERR != 0 && (c.held() || c.ended) {
		fd := c.sock.(*fdSocket).fd
		if left, err := unix.IoctlGetInt(fd, unix.TIOCINQ); err != nil || left == 0 {
			errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
			if err == nil && errno != 0 {
				c.fail(os.NewSyscallError("read", unix.Errno(errno)))
				return
			}
		}
	}
	c.hup = c.hup || mask&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0
	if mask&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.readable()
	}
}

// prepare sets what every connection has: small writes go out at once, and a host that is gone without a
// word is found out about within a minute. On loopback there is none.
func prepare(fd int, remote netip.AddrPort) {
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if remote.Addr().IsLoopback() {
		return
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 30)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 10)
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3)
}

// adopt makes a connection of a connected, non-blocking descriptor.
func (p *epoll) adopt(l *Loop, fd int, local, remote netip.AddrPort) (*Conn, error) {
	prepare(fd, remote)
	c := l.newConn(&fdSocket{p, fd}, local, remote)
	if err := p.add(fd, c); err != nil {
		l.open.Add(-1)
		_ = unix.Close(fd)
		return nil, err
	}
	return c, nil
}

// dial connects without blocking. done is called later, on the loop.
func (p *epoll) dial(l *Loop, to netip.AddrPort, done func(*Conn, error)) (cancel func()) {
	fd, err := startConnect(to)
	d := &dialing{p: p, l: l, fd: fd, to: to, done: done}
	if err == nil {
		if err = p.add(fd, d); err == nil {
			return d.cancel
		}
		_ = unix.Close(fd)
	}
	over := false
	l.Post(func() {
		if !over {
			done(nil, err)
		}
	})
	return func() { over = true }
}

func startConnect(to netip.AddrPort) (int, error) {
	family, address := sockaddr(to)
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, address); err != nil && err != unix.EINPROGRESS {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("connect", err)
	}
	return fd, nil
}

// dialing is a connection that is being made.
type dialing struct {
	p    *epoll
	l    *Loop
	fd   int
	to   netip.AddrPort
	done func(*Conn, error)
	over bool
}

func (d *dialing) event(mask uint32) {
	if d.over || mask&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) == 0 {
		return
	}
	errno, err := unix.GetsockoptInt(d.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 {
		err = unix.Errno(errno)
	}
	if err != nil {
		d.cancel()
		d.done(nil, os.NewSyscallError("connect", err))
		return
	}
	d.over = true
	prepare(d.fd, d.to)
	c := d.l.newConn(&fdSocket{d.p, d.fd}, localOf(d.fd), d.to)
	c.hup = mask&(unix.EPOLLRDHUP|unix.EPOLLHUP) != 0
	d.p.items[d.fd] = c
	d.done(c, nil)
	c.readable() // this event was the edge of what has come already
}

func (d *dialing) cancel() {
	if !d.over {
		d.over = true
		d.p.forget(d.fd)
		// Not at once: the number must not be used again while events of this round may name it.
		d.l.Finally(func() { _ = unix.Close(d.fd) })
	}
}

// acceptor takes connections from a listening socket.
type acceptor struct {
	p    *epoll
	l    *Loop
	fd   int
	take func(fd int, remote netip.AddrPort)
	fail func(error)
	rest *Timer // set while the system has no room
}

func (a *acceptor) event(uint32) { a.accept() }

func (a *acceptor) accept() {
	for range 64 { // then the others get their turn
		if a.fd < 0 || a.rest.set() {
			return
		}
		fd, address, err := unix.Accept4(a.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch err {
		case nil:
			a.take(fd, addrPort(address))
		case unix.EAGAIN:
			return
		case unix.ECONNABORTED, unix.EINTR, unix.EPROTO:
		default: // EMFILE, ENFILE, ENOBUFS, ENOMEM: there is room again later
			a.fail(os.NewSyscallError("accept", err))
			a.rest.Reset(acceptPause)
			return
		}
	}
	a.l.Post(a.accept)
}

func (a *acceptor) close() {
	if a.fd >= 0 {
		a.p.forget(a.fd)
		_ = unix.Close(a.fd)
		a.fd = -1
	}
}

// duplicate takes the descriptor out of a net.Listener, which is closed.
func duplicate(ln *net.TCPListener) (int, error) {
	raw, err := ln.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var dupErr error
	err = raw.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	_ = ln.Close()
	if err == nil {
		err = dupErr
	}
	return fd, err
}

func sockaddr(a netip.AddrPort) (int, unix.Sockaddr) {
	if ip := a.Addr().Unmap(); ip.Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: ip.As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrPort(a unix.Sockaddr) netip.AddrPort {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}

func localOf(fd int) netip.AddrPort {
	a, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	return addrPort(a)
}

// listen makes the loop accept from a bound socket and spread the connections over the group.
func (p *epoll) listen(g *Group, ln *Listener, tcp *net.TCPListener, take func(*Conn), failed func(error)) (func(), error) {
	fd, err := duplicate(tcp)
	if err != nil {
		return nil, err
	}
	a := &acceptor{p: p, l: ln.home, fd: fd, fail: failed}
	a.rest = ln.home.NewTimer(a.accept)
	a.take = func(fd int, remote netip.AddrPort) {
		l := g.pick()
		adopt := func() {
			// Adopted on its own loop: the table of descriptors has no lock.
			c, err := l.poller.(*epoll).adopt(l, fd, ln.addr, remote)
			if err != nil {
				failed(err)
				return
			}
			take(c)
			c.requeue()
		}
		if l == ln.home {
			adopt()
		} else if !l.Post(adopt) {
			_ = unix.Close(fd)
		}
	}
	added := make(chan error, 1)
	if !ln.home.Post(func() {
		err := p.add(fd, a)
		added <- err
		if err == nil {
			a.accept()
		}
	}) {
		_ = unix.Close(fd)
		return nil, net.ErrClosed
	}
	if err := <-added; err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return a.close, nil
}
