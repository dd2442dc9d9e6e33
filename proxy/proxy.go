// Package proxy is the built-in data plane: it carries out a mesh.Plan on the sockets of one task.
//
// Inbound, peers connect to a listener on the task's address; what the policy admits goes on to the
// application on loopback in plaintext. Outbound, the application connects to a listener on loopback,
// and its traffic goes on by mutual TLS to an instance of the service that it calls. A gateway's
// listeners face the outside and choose an upstream by routes.
//
// # Whose is what
//
// A [Proxy] has one state at a time: the Plan in force and what was made of it (state.go). Apply
// replaces it whole, so that every accept, request and review decides by one Plan. Sockets outlive
// states: a listener is bound once for its port and asks the state what to do with a connection.
//
// Connections belong to event loops, as many as there are processors (worker.go, and internal/loop).
// What a loop owns only its own goroutine touches; Apply, IdentityChanged and Shutdown ask every loop
// to look at what it has, and wait for the answers. A connection's life (conn.go, upconn.go) ends early
// for four reasons: a policy that does not admit it any more, a rotation after which it ages out, the
// end of a certificate that it was proved with, and a drain.
//
// How requests and bytes get from one connection to another is internal/relay's; this package decides
// what becomes of them (service.go, route.go, tcp.go). Everything outside sees only the methods of
// Proxy.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/proxy/internal/loop"
	"countersign.dev/proxy/internal/relay"
	"countersign.dev/stat"
)

// Bounds in time. They protect against peers that do not go on; nothing here depends on their exact
// values.
const (
	handshakeTimeout = 10 * time.Second // of a TLS handshake, from accept to the last message
	silence          = 3 * time.Second  // after which a silent client of a permissive tcp port is plaintext
	idlePeer         = 5 * time.Minute  // of connections from peers and the outside
	idleLoopback     = time.Hour        // of connections from the own application

	maxAge = time.Hour // of TCP connections, upgrades and streams after a rotation

	quiet = 3 * time.Second // after which the memory of a burst goes back to the system
)

// Config says what a Proxy needs to know beside its Plan.
type Config struct {
	// Source is the workload's identity.
	Source mtls.Source
	// Address is bound by the inbound listeners; never a wildcard.
	Address netip.Addr
	// AppAddress is where the application is and where the outbound listeners are bound, 127.0.0.1
	// when it is not set.
	AppAddress netip.Addr
	// Instance is this instance's name, for the access log.
	Instance string
	// Binds replaces addresses, for systems without loopback addresses of one's own: "inbound/PORT" and
	// "outbound/PORT" are what is bound, "app/PORT" is where the application is. Values are "ip:port".
	Binds map[string]string
	// AccessLog gets a line of JSON for each request and connection; nil means none. Each Write is of whole
	// lines, and writes do not overlap. When it is slower than the traffic for long, lines are left out and
	// counted (countersign.access_log_dropped_total).
	AccessLog io.Writer
	// Log must be set.
	Log *slog.Logger
	// Gauges gives further values for /stats and /metrics; it may be nil.
	Gauges func() map[string]int64
	// Changed is called when what Report gives has got news that should not wait: a caller that was not
	// met before, or one with another certificate. It may be nil; it must
	// neither block nor call the Proxy.
	Changed func()
	// MaxAge is how long a TCP connection, an upgraded one or a stream lives on after the identity that
	// it was proved with was replaced; one hour when it is 0. The end of a certificate ends it earlier.
	MaxAge time.Duration
	// Now is the clock that certificates are compared with, time.Now when it is nil.
	Now func() time.Time
	// Portable drives connections by goroutines also where there are event loops.
	Portable bool
}

// ErrClosed says that the Proxy was shut down.
var ErrClosed = errors.New("the proxy is shut down")

// Proxy carries out Plans. Its methods may be called concurrently.
type Proxy struct {
	cfg   Config
	log   *slog.Logger
	stats *stat.Set

	state    atomic.Pointer[state] // what is in force; never nil
	draining atomic.Bool           // every answer ends its connection

	mu       sync.Mutex        // serializes Apply, DrainListeners and Shutdown
	inbound  map[int]*listener // guarded by mu: bound sockets by port
	outbound map[int]*listener // guarded by mu
	noBinds  bool              // guarded by mu: inbound sockets stay closed
	closed   bool              // guarded by mu

	ctx    context.Context // ends when everything was cut
	cancel context.CancelFunc
	tasks  sync.WaitGroup // drains in the background

	group   *loop.Group
	workers []*worker
	limits  relay.Limits

	access  *accessLog
	denials *limiter // bounds the log of refusals
	faults  *limiter // bounds the log of what peers do wrong
	callers *callers
	totals  totals

	revocations atomic.Int64 // connections that a revocation has ended

	announced atomic.Pointer[announced] // the leaf and bundle of the last IdentityChanged
	admin     http.Handler

	handshakePatience time.Duration // handshakeTimeout, but in tests
}

// totals count since the start, over all listeners.
type totals struct {
	requests, refused, connections atomic.Int64
}

// New makes a Proxy that serves nothing yet. Shutdown ends it.
func New(cfg Config) (*Proxy, error) {
	switch {
	case cfg.Source == nil:
		return nil, errors.New("making a proxy: it has no source of an identity")
	case cfg.Log == nil:
		return nil, errors.New("making a proxy: it has no log")
	case !cfg.Address.IsValid() || cfg.Address.Unmap().IsUnspecified():
		return nil, fmt.Errorf("making a proxy: %q is not an address to bind; give the task's own, for it excludes the application's on loopback only then", cfg.Address)
	}
	if !cfg.AppAddress.IsValid() {
		cfg.AppAddress = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	if cfg.MaxAge <= 0 {
		cfg.MaxAge = maxAge
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	p := &Proxy{
		cfg:      cfg,
		log:      cfg.Log,
		stats:    stat.NewSet(),
		inbound:  make(map[int]*listener),
		outbound: make(map[int]*listener),
		limits:   relay.DefaultLimits(),
		denials:  newLimiter(),
		faults:   newLimiter(),
		callers:  newCallers(cfg.Changed),

		handshakePatience: handshakeTimeout,
	}
	var err error
	if p.group, err = loop.NewGroup(runtime.GOMAXPROCS(0), loop.Config{Portable: cfg.Portable, Log: cfg.Log, Quiet: quiet}); err != nil {
		return nil, fmt.Errorf("making a proxy: %w", err)
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.access = newAccessLog(cfg.AccessLog, cfg.Instance)
	p.state.Store(new(state))
	for _, l := range p.group.Loops() {
		p.workers = append(p.workers, p.newWorker(l))
	}
	p.admin = p.newAdmin()
	return p, nil
}

// Admin serves the administrator: /stats, /metrics, /ready, /healthz, /certs, /plan and
// /drain_listeners. It is for a loopback address, for it asks nobody who he is.
func (p *Proxy) Admin() http.Handler { return p.admin }

// Apply puts a Plan in force and returns when it is. New listeners are bound first: when one cannot
// be, nothing has changed. Listeners that the Plan does not have any more stop accepting and are
// drained; the others are not touched. Connections, upgrades and streams that the Plan does not admit
// are closed before Apply returns; all others live on.
func (p *Proxy) Apply(plan *mesh.Plan) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return ErrClosed
	}
	next, err := p.compile(plan, p.state.Load())
	if err != nil {
		return fmt.Errorf("applying revision %d: %w", plan.Revision, err)
	}
	bound, err := p.bindMissing(next)
	if err != nil {
		return fmt.Errorf("applying revision %d: %w", plan.Revision, err)
	}
	next.activate()
	last := p.state.Swap(next)
	for _, l := range bound {
		l.start()
	}
	p.closeRemoved(next)
	p.release(last, next)
	p.onLoops(func(w *worker) {
		for c := range w.conns {
			c.review(next)
		}
	})
	p.log.Info("plan in force", "revision", plan.Revision, "inbound", len(plan.Inbound), "outbound", len(plan.Outbound), "upstreams", len(plan.Upstreams))
	return nil
}

// bindMissing binds the listeners of a state that are not bound yet, all or none.
func (p *Proxy) bindMissing(next *state) ([]*listener, error) {
	var bound []*listener
	undo := func() {
		for _, l := range bound {
			_ = l.socket.Close()
		}
	}
	for port := range next.inbound {
		if p.inbound[port] != nil || p.noBinds {
			continue
		}
		l, err := p.bind(inboundSide, port)
		if err != nil {
			undo()
			return nil, err
		}
		bound = append(bound, l)
	}
	for port := range next.outbound {
		if p.outbound[port] != nil {
			continue
		}
		l, err := p.bind(outboundSide, port)
		if err != nil {
			undo()
			return nil, err
		}
		bound = append(bound, l)
	}
	for _, l := range bound {
		p.listeners(l.side)[l.port] = l
	}
	return bound, nil
}

// listeners are the bound sockets of one side. The caller holds p.mu.
func (p *Proxy) listeners(s side) map[int]*listener {
	if s == inboundSide {
		return p.inbound
	}
	return p.outbound
}

// closeRemoved closes the listeners that a state does not have. The caller holds p.mu.
func (p *Proxy) closeRemoved(next *state) {
	for port, l := range p.inbound {
		if next.inbound[port] == nil {
			delete(p.inbound, port)
			l.stop()
		}
	}
	for port, l := range p.outbound {
		if next.outbound[port] == nil {
			delete(p.outbound, port)
			l.stop()
		}
	}
}

// identity is the workload's, or nil when there is none yet.
func (p *Proxy) identity() *mtls.Identity {
	identity, err := p.cfg.Source.Identity()
	if err != nil || identity == nil || identity.Certificate.Leaf == nil {
		return nil
	}
	return identity
}
