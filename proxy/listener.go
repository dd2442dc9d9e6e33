package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"countersign.dev/proxy/internal/guard"
	"countersign.dev/proxy/internal/stat"
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
	socket  net.Listener
	server  *http.Server // takes the connections of feed
	feed    *feed
	stopped atomic.Bool // accepts nothing more

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
	socket, err := new(net.ListenConfig).Listen(p.ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("binding the %s listener of port %d: %w; another process may hold the address", s, port, err)
	}
	l := &listener{p: p, side: s, port: port, socket: socket, feed: newFeed(socket.Addr())}
	l.total = p.stats.Value(stat.Key{Scope: "listener", Owner: name, Metric: "downstream_cx_total"})
	l.active = p.stats.Value(stat.Key{Scope: "listener", Owner: name, Metric: "downstream_cx_active"})
	l.server = p.newServer(l)
	return l, nil
}

// newServer makes the http.Server that speaks HTTP on the connections that were accepted, shaken
// hands with and guarded already.
func (p *Proxy) newServer(l *listener) *http.Server {
	idle := idlePeer
	if l.side == outboundSide {
		idle = idleLoopback
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:                      l,
		Protocols:                    &protocols,
		HTTP2:                        http2Config(),
		ReadHeaderTimeout:            headTimeout,
		IdleTimeout:                  idle,
		MaxHeaderBytes:               guard.MaxHead,
		DisableGeneralOptionsHandler: true, // "OPTIONS *" is for the application
		ErrorLog:                     slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
		BaseContext:                  func(net.Listener) context.Context { return p.ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, connOf(c))
		},
	}
}

// streamWindow is how many bytes of a request's body a sidecar takes before it reads them. A peer that
// refuses a stream has taken no more, so that this much has to be kept to send it again.
const streamWindow = 256 << 10

// http2Config is how HTTP/2 is spoken, at both ends.
func http2Config() *http.HTTP2Config {
	return &http.HTTP2Config{
		MaxConcurrentStreams:          250,
		MaxReceiveBufferPerStream:     streamWindow,
		MaxReceiveBufferPerConnection: 4 * streamWindow,
		MaxReadFrameSize:              64 << 10,
		SendPingTimeout:               30 * time.Second, // finds out about peers that are gone without a word
		PingTimeout:                   15 * time.Second,
		WriteByteTimeout:              time.Minute,
	}
}

// start accepts connections until stop.
func (l *listener) start() {
	l.p.tasks.Go(l.accept)
	l.p.tasks.Go(func() {
		if err := l.server.Serve(l.feed); !errors.Is(err, http.ErrServerClosed) {
			l.p.log.Error("serving HTTP ended", "port", l.port, "error", err)
		}
	})
}

func (l *listener) accept() {
	pause := time.Duration(0)
	for {
		socket, err := l.socket.Accept()
		switch {
		case err == nil:
			pause = 0
			l.take(socket)
		case errors.Is(err, net.ErrClosed):
			return
		default:
			// Out of file descriptors, most of the time: those that are open have to end first.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			if n, ok := l.p.faults.allow("accept"); ok {
				l.p.log.Error("accepting connections fails; if there are too many, raise the limit of open files", "port", l.port, "error", err, "suppressed", n)
			}
			time.Sleep(pause)
		}
	}
}

// take registers a connection and serves it.
func (l *listener) take(socket net.Conn) {
	c := &conn{Conn: socket, socket: socket, l: l, started: time.Now(), streams: make(map[*stream]struct{})}
	if remote, err := netip.ParseAddrPort(socket.RemoteAddr().String()); err == nil {
		c.remote = netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())
	}
	l.total.Add(1)
	l.active.Add(1)
	l.p.totals.connections.Add(1)
	l.p.conns.add(c)
	l.p.tasks.Go(func() {
		if l.side == inboundSide {
			l.p.serveInbound(c)
		} else {
			l.p.serveOutbound(c)
		}
	})
}

// stop ends accepting. What is open is drained in the background: each connection ends with its next
// answer, or when it is not used.
func (l *listener) stop() {
	if l.stopped.Swap(true) {
		return
	}
	l.socket.Close()
	l.p.tasks.Go(func() {
		l.p.drain(l.p.ctx, func(c *conn) bool { return c.l == l })
		l.server.Close()
	})
}

// feed is a net.Listener of connections that are handed over.
type feed struct {
	address net.Addr
	conns   chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

func newFeed(address net.Addr) *feed {
	return &feed{address: address, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// push hands a connection over, or closes it when nobody takes it any more.
func (f *feed) push(c net.Conn) {
	select {
	case f.conns <- c:
	case <-f.closed:
		c.Close()
	}
}

// Accept implements net.Listener.
func (f *feed) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (f *feed) Close() error {
	f.once.Do(func() { close(f.closed) })
	return nil
}

// Addr implements net.Listener.
func (f *feed) Addr() net.Addr { return f.address }
