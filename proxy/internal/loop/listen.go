package loop

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// acceptPause is how long nothing is accepted after the system had no descriptor or memory left:
// connections wait in the kernel's queue meanwhile.
const acceptPause = 100 * time.Millisecond

// Group is the loops of a process. Connections are spread over them.
type Group struct {
	loops   []*Loop
	next    atomic.Uint32
	trimmer *trimmer
}

// NewGroup starts n loops.
func NewGroup(n int, cfg Config) (*Group, error) {
	g := &Group{trimmer: newTrimmer(cfg.Quiet)}
	for range n {
		l, err := newLoop(cfg, g.trimmer)
		if err != nil {
			g.Stop()
			return nil, fmt.Errorf("starting an event loop: %w", err)
		}
		g.loops = append(g.loops, l)
	}
	return g, nil
}

// Loops are the group's.
func (g *Group) Loops() []*Loop { return g.loops }

// Stop ends all loops.
func (g *Group) Stop() {
	g.trimmer.stop()
	for _, l := range g.loops {
		l.Stop()
	}
}

// pick chooses the loop of the next connection.
func (g *Group) pick() *Loop { return g.loops[int(g.next.Add(1)-1)%len(g.loops)] }

// Listener accepts connections for a group.
type Listener struct {
	addr   netip.AddrPort
	home   *Loop
	shut   func() // on home
	closed atomic.Bool
}

// Listen binds an address and hands each connection to take, on the loop that owns it from then on.
// take sets the handler, at once or after StartTLS. failed is told when the system could not accept
// (no descriptors are left, for one); it may be nil.
func (g *Group) Listen(ctx context.Context, addr netip.AddrPort, take func(*Conn), failed func(error)) (*Listener, error) {
	var config net.ListenConfig
	ln, err := config.Listen(ctx, "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	return g.Serve(ln.(*net.TCPListener), take, failed)
}

// Serve is Listen for a socket that is bound already; it takes it over.
func (g *Group) Serve(tcp *net.TCPListener, take func(*Conn), failed func(error)) (*Listener, error) {
	if failed == nil {
		failed = func(error) {}
	}
	bound := tcp.Addr().(*net.TCPAddr).AddrPort()
	lis := &Listener{addr: netip.AddrPortFrom(bound.Addr().Unmap(), bound.Port()), home: g.pick()}
	var err error
	lis.shut, err = lis.home.poller.listen(g, lis, tcp, take, failed)
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", bound, err)
	}
	return lis, nil
}

// Addr is the bound address.
func (ln *Listener) Addr() netip.AddrPort { return ln.addr }

// Close stops accepting and returns when the address is free. It may be called from any goroutine but
// the loop's own.
func (ln *Listener) Close() {
	if ln.closed.Swap(true) {
		return
	}
	done := make(chan struct{})
	if ln.home.Post(func() { ln.shut(); close(done) }) {
		<-done
		return
	}
	<-ln.home.done
	ln.shut()
}

// Dial connects to an address; done is called on the loop, later. cancel, which is called on the loop
// too, gives up: done is not called then. Set a timeout with [Loop.After].
func (l *Loop) Dial(to netip.AddrPort, done func(*Conn, error)) (cancel func()) {
	return l.poller.dial(l, to, done)
}
