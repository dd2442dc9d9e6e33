package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"

	"countersign.dev/proxy/internal/loop"
	"countersign.dev/stat"
)

// side is where the clients of a listener are.
type side int

const (
	inboundSide  side = iota // peers or the outside
	outboundSide             // the own application
)

// String implements fmt.Stringer.
func (s side) String() string {
	if s == inboundSide {
		return "inbound"
	}
	return "outbound"
}

// listener is a bound socket. It outlives Plans: what is to be done with a connection stands in the
// state of the moment.
type listener struct {
	p       *Proxy
	side    side
	port    int // as in the Plan
	address netip.AddrPort
	socket  *net.TCPListener // until start
	serving *loop.Listener   // from start on
	stopped atomic.Bool      // accepts nothing more

	total, active *atomic.Int64 // downstream_cx_total, downstream_cx_active
}

// bind opens a listener's socket; nothing is accepted before start.
func (p *Proxy) bind(s side, port int) (*listener, error) {
	address := netip.AddrPortFrom(p.cfg.Address, uint16(port)).String()
	name := "0.0.0.0_" + strconv.Itoa(port)
	if s == outboundSide {
		address = netip.AddrPortFrom(p.cfg.AppAddress, uint16(port)).String()
		name = "127.0.0.1_" + strconv.Itoa(port)
	}
	if bind, ok := p.cfg.Binds[s.String()+"/"+strconv.Itoa(port)]; ok {
		address = bind
	}
	socket, err := new(net.ListenConfig).Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("binding the %s listener of port %d: %w; another process may hold the address", s, port, err)
	}
	tcp := socket.(*net.TCPListener)
	l := &listener{p: p, side: s, port: port, socket: tcp, address: tcp.Addr().(*net.TCPAddr).AddrPort()}
	l.total = p.stats.Value(stat.Key{Scope: "listener", Owner: name, Metric: "downstream_cx_total"})
	l.active = p.stats.Value(stat.Key{Scope: "listener", Owner: name, Metric: "downstream_cx_active"})
	return l, nil
}

// start accepts connections until stop.
func (l *listener) start() {
	serving, err := l.p.group.Serve(l.socket, l.take, func(err error) {
		if n, ok := l.p.faults.allow("accept"); ok {
			l.p.log.Error("accepting connections fails; if there are too many, raise the limit of open files", "port", l.port, "error", err, "suppressed", n)
		}
	})
	if err != nil {
		l.p.log.Error("serving a listener failed", "port", l.port, "error", err)
		return
	}
	l.serving = serving
}

// take registers a connection and serves it. It is called on the connection's loop.
func (l *listener) take(socket *loop.Conn) {
	w := l.p.workerOf(socket.Loop())
	remote := socket.RemoteAddr()
	c := &conn{Conn: socket, w: w, l: l, remote: remote, address: remote.Addr().String(), started: w.loop.Now()}
	socket.AfterClosed(c.closed)
	l.total.Add(1)
	l.active.Add(1)
	l.p.totals.connections.Add(1)
	w.conns[c] = struct{}{}
	c.open()
}

// stop ends accepting. What is open is drained in the background: each connection ends with its next
// answer, or when it is not used. The caller holds p.mu.
func (l *listener) stop() {
	if l.stopped.Swap(true) {
		return
	}
	if l.serving != nil {
		l.serving.Close()
	}
	l.p.tasks.Go(func() {
		l.p.drain(l.p.ctx, func(c *conn) bool { return c.l == l })
	})
}
