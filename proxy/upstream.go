package proxy

import (
	"errors"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/proxy/internal/stat"
)

// Errors of finding a way to an upstream.
var (
	errNoEndpoint = errors.New("no instance of the service is known")
	// errConnect wraps everything that went wrong before a connection could be used: nothing of a
	// request has arrived anywhere then.
	errConnect = errors.New("connecting failed")
	// errRefused goes with errConnect when the connection was there and took nothing.
	errRefused = errors.New("the connection took no request")
)

// upstream is a called service's port with its instances. Its parameters are immutable; an upstream
// with other parameters is another one.
type upstream struct {
	p     *Proxy
	plan  mesh.Upstream // without endpoints
	stats *stat.Cluster

	mu        sync.Mutex
	endpoints []*endpoint // guarded by mu; the slice is replaced, never changed
	next      int         // guarded by mu: where choosing begins
}

// endpoint is one instance of an upstream, with what is open to it.
type endpoint struct {
	up       *upstream
	instance string
	address  netip.AddrPort

	active atomic.Int64 // requests and connections that it has now

	h2    *pool           // requests by HTTP/2
	h1    *http.Transport // requests by HTTP/1.1, in plaintext
	alone *http.Transport // upgrades and expectations, by HTTP/1.1 over TLS: a connection each
	http2 *mtls.Client    // the same three, as TLS clients: sessions are kept for each
	http1 *mtls.Client
	tcp   *mtls.Client

	mu       sync.Mutex
	failures int       // guarded by mu: connects that failed since the last that did not
	until    time.Time // guarded by mu: not chosen before, if there is another
}

// keepUpstream gives the last state's upstream when it is the same, or a new one.
func (p *Proxy) keepUpstream(plan mesh.Upstream, last *state) *upstream {
	plan.Endpoints = nil
	if before := last.upstreams[plan.Name]; before != nil && sameUpstream(before.plan, plan) {
		return before
	}
	return &upstream{p: p, plan: plan, stats: p.stats.Cluster(plan.Name)}
}

func sameUpstream(a, b mesh.Upstream) bool {
	return a.Name == b.Name && a.Protocol == b.Protocol && a.Identity == b.Identity && a.ServerName == b.ServerName &&
		a.TLS == b.TLS && a.MinTLS == b.MinTLS
}

// setEndpoints says where instances are. Those that stay keep their connections; those that have gone
// get no new request, and what runs on their connections goes on.
func (u *upstream) setEndpoints(list []mesh.Endpoint) {
	u.mu.Lock()
	before := u.endpoints
	after := make([]*endpoint, 0, len(list))
	for _, e := range list {
		after = append(after, u.keepEndpoint(before, e))
	}
	u.endpoints = after
	u.mu.Unlock()
	kept := make(map[*endpoint]bool, len(after))
	for _, e := range after {
		kept[e] = true
	}
	for _, e := range before {
		if !kept[e] {
			e.retire()
		}
	}
}

func (u *upstream) keepEndpoint(before []*endpoint, e mesh.Endpoint) *endpoint {
	for _, old := range before {
		if old.instance == e.Instance && old.address == e.Address {
			return old
		}
	}
	return u.newEndpoint(e)
}

func (u *upstream) newEndpoint(plan mesh.Endpoint) *endpoint {
	e := &endpoint{up: u, instance: plan.Instance, address: plan.Address}
	client := func(protos ...string) *mtls.Client {
		return mtls.NewClient(u.p.cfg.Source, mtls.ClientOptions{
			Expect:     u.plan.Identity,
			MinVersion: u.plan.MinTLS,
			NextProtos: protos,
			Epoch:      u.p.epoch,
			Now:        u.p.cfg.Now,
		})
	}
	if u.plan.Protocol == mesh.TCP {
		e.tcp = client()
		return e
	}
	e.h2 = newPool(u.p.ctx, e.dialHTTP2)
	if u.plan.TLS {
		e.http2, e.http1 = client("h2"), client("http/1.1")
		e.alone = http1Transport(e.dialHTTP1)
		e.alone.DisableKeepAlives = true
	} else {
		e.h1 = http1Transport(e.dialPlain)
		e.h1.IdleConnTimeout = idleUpstream
	}
	return e
}

// retire lets an endpoint's connections end when they are idle.
func (e *endpoint) retire() {
	if e.h2 != nil {
		e.h2.retire()
	}
	if e.h1 != nil {
		e.h1.CloseIdleConnections()
	}
}

// ejections are how long an endpoint is left alone after so many failures in a row.
var ejections = [...]time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second}

// failed says that a connect failed.
func (e *endpoint) failed() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.until = time.Now().Add(ejections[min(e.failures, len(ejections)-1)])
	e.failures++
}

// connected says that a connect did not fail.
func (e *endpoint) connected() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failures, e.until = 0, time.Time{}
}

func (e *endpoint) ejected(now time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return now.Before(e.until)
}

// pick chooses the endpoint with the least to do, by turns among equals, leaving out those that were
// tried. Those that failed lately are chosen only when no other is left: a wrong guess costs a connect,
// none at all costs the request.
func (u *upstream) pick(tried map[*endpoint]bool) (*endpoint, error) {
	u.mu.Lock()
	endpoints, start := u.endpoints, u.next
	u.next++
	u.mu.Unlock()
	now := time.Now()
	var best, second *endpoint
	for i := range endpoints {
		e := endpoints[(start+i)%len(endpoints)]
		switch {
		case tried[e]:
		case e.ejected(now):
			if second == nil {
				second = e
			}
		case best == nil || e.active.Load() < best.active.Load():
			best = e
		}
	}
	if best == nil {
		best = second
	}
	if best == nil {
		return nil, errNoEndpoint
	}
	best.active.Add(1)
	return best, nil
}

// release says that what pick was asked for is over.
func (e *endpoint) release() { e.active.Add(-1) }
