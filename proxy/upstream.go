package proxy

import (
	"crypto/tls"
	"net/netip"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/proxy/internal/relay"
	"countersign.dev/stat"
)

// upstream is a called service's port with its instances. Its parameters are immutable; an upstream
// with other parameters is another one.
type upstream struct {
	p      *Proxy
	plan   mesh.Upstream // without endpoints
	groups []tls.CurveID
	stats  *stat.Cluster
	target atomic.Pointer[relay.Target] // replaced, never changed
}

// keepUpstream gives the last state's upstream when it is the same, or a new one.
func (p *Proxy) keepUpstream(plan mesh.Upstream, last *state) (*upstream, error) {
	plan.Endpoints = nil
	if before := last.upstreams[plan.Name]; before != nil && sameUpstream(before.plan, plan) {
		return before, nil
	}
	groups, err := mtls.Groups(plan.TLSGroups)
	if err != nil {
		return nil, err
	}
	u := &upstream{p: p, plan: plan, groups: groups, stats: p.stats.Cluster(plan.Name)}
	u.target.Store(&relay.Target{Stats: u.stats})
	return u, nil
}

func sameUpstream(a, b mesh.Upstream) bool {
	return a.Name == b.Name && a.Protocol == b.Protocol && a.Identity == b.Identity && a.ServerName == b.ServerName &&
		a.TLS == b.TLS && a.MinTLS == b.MinTLS && slices.Equal(a.TLSGroups, b.TLSGroups)
}

// setEndpoints says where instances are. Those that stay keep their connections; those that have gone
// get no new request, and what runs on their connections goes on. The caller holds p.mu.
func (u *upstream) setEndpoints(list []mesh.Endpoint) {
	before := u.target.Load().Endpoints
	after := make([]*relay.Endpoint, 0, len(list))
	kept := make(map[*relay.Endpoint]bool, len(list))
	for _, e := range list {
		endpoint := u.keepEndpoint(before, e)
		after = append(after, endpoint)
		kept[endpoint] = true
	}
	u.target.Store(&relay.Target{Endpoints: after, Stats: u.stats})
	for _, e := range before {
		if !kept[e] {
			u.p.retire(e)
		}
	}
}

// retire lets an endpoint's connections end when they are idle.
func (p *Proxy) retire(e *relay.Endpoint) { p.onLoops(func(w *worker) { w.relay.Retire(e) }) }

func (u *upstream) keepEndpoint(before []*relay.Endpoint, e mesh.Endpoint) *relay.Endpoint {
	for _, old := range before {
		if old.Name == e.Instance && old.Address == e.Address {
			return old
		}
	}
	return u.newEndpoint(e)
}

func (u *upstream) newEndpoint(plan mesh.Endpoint) *relay.Endpoint {
	e := &relay.Endpoint{
		Name: plan.Instance, Address: plan.Address, Stats: u.stats, Idle: idleUpstream, Opened: u.p.opened,
		Failed: func(err error) {
			if suppressed, ok := u.p.faults.allow("connect " + plan.Address.String()); ok {
				u.p.log.Warn("connecting to an instance failed", "upstream", u.plan.Name, "instance", plan.Instance, "endpoint", plan.Address, "error", err, "suppressed", suppressed)
			}
		},
	}
	if !u.plan.TLS {
		e.Idle = idleApp
		e.HTTP2 = u.plan.Protocol == mesh.HTTP2 || u.plan.Protocol == mesh.GRPC
		return e
	}
	client := func(protos ...string) *mtls.Client {
		return mtls.NewClient(u.p.cfg.Source, mtls.ClientOptions{
			Expect:     u.plan.Identity,
			MinVersion: u.plan.MinTLS,
			Groups:     u.groups,
			NextProtos: protos,
			Epoch:      u.p.epoch,
			Now:        u.p.cfg.Now,
		})
	}
	if u.plan.Protocol == mesh.TCP {
		e.TLS = u.p.proving(client())
		return e
	}
	e.TLS = u.p.proving(client("h2", "http/1.1"))
	if u.plan.Protocol == mesh.HTTP {
		e.OnlyHTTP1 = u.p.proving(client("http/1.1"))
	}
	return e
}

// switches tells whether requests to the upstream may ask for a change of protocol.
func (u *upstream) switches() bool { return u.plan.Protocol == mesh.HTTP }

// app is the own application's port: plaintext on loopback.
type app struct {
	address  string
	endpoint *relay.Endpoint
	target   *relay.Target
	http1    bool
}

func (p *Proxy) newApp(port int, protocol mesh.Protocol) (*app, error) {
	address := p.appAddress(port)
	resolved, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	a := &app{address: address, http1: protocol == mesh.HTTP}
	a.endpoint = &relay.Endpoint{
		Name: address, Address: resolved, HTTP2: protocol == mesh.HTTP2 || protocol == mesh.GRPC, Idle: idleApp,
		Failed: func(err error) {
			if suppressed, ok := p.faults.allow("app " + address); ok {
				p.log.Warn("the application does not accept", "address", address, "error", err, "suppressed", suppressed)
			}
		},
	}
	a.target = &relay.Target{Endpoints: []*relay.Endpoint{a.endpoint}}
	return a, nil
}

// appAddress is where the application listens for the traffic of one of its ports.
func (p *Proxy) appAddress(port int) string {
	if bind, ok := p.cfg.Binds["app/"+strconv.Itoa(port)]; ok {
		return bind
	}
	return netip.AddrPortFrom(p.cfg.AppAddress, uint16(port)).String()
}

// How long HTTP/1.1 connections are kept without a request: a client closes an idle connection before
// the server does, so that no request meets a connection that is being closed.
const (
	idleUpstream = 20 * time.Second // to peers
	idleApp      = time.Second      // to applications: below what servers use
)
