package supervise

import (
	"bytes"
	"maps"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"countersign.dev/api"
	"countersign.dev/engine"
	"countersign.dev/mesh"
	"countersign.dev/stat"
)

// mostRemembered bounds every map whose keys come from outside.
const mostRemembered = 1000

// counts is what is known of the traffic, under the names that the built-in proxy gives it. A value that this
// engine does not tell has no name here.
type counts struct {
	set     *stat.Set
	changed func() // a caller was met for the first time, or with another serial

	requests, refused, connections atomic.Int64

	mu        sync.Mutex
	inbound   map[string]*port      // by the listener's name
	outbound  map[string]*call      // by the listener's name
	upstreams map[string]string     // by an instance's address
	domain    string                // the trust domain
	peers     map[string]api.Caller // by SPIFFE ID
	plaintext map[string]int64      // by IP address
	met       map[string]bool       // plaintext connections, by address and port
	ours      map[string]time.Time  // the ends of our own handshakes, and when they were
}

// port is what is counted of an inbound listener; nil is not told.
type port struct {
	mesh.Inbound
	http                                   *stat.HTTP
	denied, noCertificate, untrusted       *atomic.Int64
	connectionError, plaintext, ended      *atomic.Int64
	connections, active, handshakes, again *atomic.Int64
}

// call is what is counted of an outbound listener; nil is not told.
type call struct {
	http                *stat.HTTP
	connections, active *atomic.Int64
	upstream            string
}

func newCounts(changed func()) *counts {
	return &counts{
		set: stat.NewSet(), changed: changed,
		inbound: map[string]*port{}, outbound: map[string]*call{}, upstreams: map[string]string{},
		peers: map[string]api.Caller{}, plaintext: map[string]int64{}, met: map[string]bool{}, ours: map[string]time.Time{},
	}
}

// declare makes the names of a Plan's listeners and upstreams, as far as the engine tells their values. Those of
// earlier Plans stay: their connections may.
func (c *counts) declare(plan *mesh.Plan, e *Engine) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.domain = plan.TrustDomain
	byLog := e.sampler == nil
	for _, in := range plan.Inbound {
		value := func(metric string) *atomic.Int64 {
			return c.set.Value(stat.Key{Scope: "listener", Owner: in.Name, Metric: metric})
		}
		p := &port{Inbound: in, denied: value("rbac.denied")}
		if in.Protocol != mesh.TCP {
			p.http = c.set.HTTP(in.Name)
		}
		if in.TLS != mesh.Strict {
			p.plaintext = value("plaintext_cx_total")
		}
		if in.TLS != mesh.Off && in.ClientAuth != mesh.None {
			p.untrusted = value("ssl.fail_verify_error")
		}
		if in.TLS != mesh.Off && in.ClientAuth == mesh.Require {
			p.noCertificate = value("ssl.fail_verify_no_cert")
		}
		if byLog && in.Protocol == mesh.TCP {
			p.ended = value("downstream_cx_total")
		}
		if !byLog {
			p.connections, p.active = value("downstream_cx_total"), value("downstream_cx_active")
			if in.TLS != mesh.Off {
				p.handshakes, p.again, p.connectionError = value("ssl.handshake"), value("ssl.session_reused"), value("ssl.connection_error")
			}
		}
		c.inbound[in.Name] = p
	}
	for _, out := range plan.Outbound {
		o := &call{upstream: out.Upstream}
		if !byLog {
			o.connections = c.set.Value(stat.Key{Scope: "listener", Owner: out.Name, Metric: "downstream_cx_total"})
			o.active = c.set.Value(stat.Key{Scope: "listener", Owner: out.Name, Metric: "downstream_cx_active"})
		}
		if out.Protocol != mesh.TCP {
			o.http = c.set.HTTP(out.Name)
		}
		c.outbound[out.Name] = o
	}
	for _, u := range plan.Upstreams {
		if u.Protocol != mesh.TCP {
			c.cluster(u.Name, "upstream_rq_total")
			c.cluster(u.Name, "upstream_rq_5xx")
		}
		if !byLog {
			for _, metric := range []string{"upstream_cx_total", "upstream_cx_active", "upstream_cx_connect_fail"} {
				c.cluster(u.Name, metric)
			}
			if u.TLS {
				c.cluster(u.Name, "ssl.handshake")
			}
		}
		for _, e := range u.Endpoints {
			if len(c.upstreams) > 64*mostRemembered {
				clear(c.upstreams)
			}
			c.upstreams[e.Address.String()] = u.Name
		}
	}
}

func (c *counts) cluster(name, metric string) *atomic.Int64 {
	return c.set.Value(stat.Key{Scope: "cluster", Owner: name, Metric: metric})
}

// oursFor is how long a line about a handshake of our own may take to come. After that the port is somebody else's.
const oursFor = 30 * time.Second

// ignore lets a connection of our own be nobody's. local is its end here.
func (c *counts) ignore(local string, now time.Time) {
	if at, err := netip.ParseAddrPort(local); err == nil {
		local = at.Addr().Unmap().String() + ":" + strconv.Itoa(int(at.Port())) // as both logs have it, without brackets
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.ours) >= mostRemembered {
		maps.DeleteFunc(c.ours, func(_ string, at time.Time) bool { return now.Sub(at) > oursFor })
	}
	if len(c.ours) >= mostRemembered {
		clear(c.ours)
	}
	c.ours[local] = now
}

// take counts a line of the access log. It tells whether the line is of somebody else's traffic.
func (c *counts) take(e *entry, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at, ok := c.ours[string(e.remote)]; ok {
		delete(c.ours, string(e.remote)) // a connection without a request has one line
		if now.Sub(at) <= oursFor {
			return false
		}
	}
	if out := c.outbound[string(e.listener)]; out != nil && string(e.direction) == "outbound" {
		c.called(out, e)
		return true
	}
	p := c.inbound[string(e.listener)]
	if p == nil {
		return true
	}
	if e.failed {
		p.fail(e)
		return true
	}
	if p.ended != nil {
		p.ended.Add(1)
		c.connections.Add(1)
	}
	if p.stranger(e) {
		return true
	}
	if peer := engine.Caller(c.domain, string(e.caller)); peer != "" && len(e.serial) > 0 {
		c.presented(peer, engine.Serial(string(e.serial)), now)
	}
	if p.plaintext != nil && len(e.tls) == 0 {
		c.spokePlaintext(p, e.remote)
	}
	if p.refused(e) {
		p.denied.Add(1)
		c.refused.Add(1)
	}
	if p.http != nil && p.connections == nil {
		c.requests.Add(1)
		p.http.RqTotal.Add(1)
		p.http.Answered(e.status)
		c.sent(c.upstreams[string(last(e.upstream))], e)
	}
	return true
}

// called counts a request of the application.
func (c *counts) called(out *call, e *entry) {
	if out.http == nil || e.failed || e.upstreamStatus == nil { // HAProxy counts by itself
		return
	}
	c.requests.Add(1)
	out.http.RqTotal.Add(1)
	out.http.Answered(e.status)
	if len(e.upstream) > 0 {
		c.sent(out.upstream, e)
	}
}

// sent counts what an upstream was asked, and what it answered.
func (c *counts) sent(upstream string, e *entry) {
	if upstream == "" || e.upstreamStatus == nil {
		return
	}
	c.cluster(upstream, "upstream_rq_total").Add(1)
	if number(last(e.upstreamStatus)) >= 500 {
		c.cluster(upstream, "upstream_rq_5xx").Add(1)
	}
}

// last is the last of a list, which NGINX writes when it has tried several.
func last(list []byte) []byte {
	if i := bytes.LastIndexAny(list, ", "); i >= 0 {
		return list[i+1:]
	}
	return list
}

// fail counts a handshake that HAProxy says has failed.
func (p *port) fail(e *entry) {
	which := p.connectionError
	switch {
	case number(e.certificateError) != 0:
		which = p.untrusted
	case bytes.Contains(e.tlsError, []byte("did not return a certificate")):
		which = p.noCertificate
	}
	if which != nil {
		which.Add(1)
	}
}

// stranger counts a client of NGINX's that has not proved what the port asks for, and was closed.
func (p *port) stranger(e *entry) bool {
	switch {
	case p.untrusted != nil && bytes.HasPrefix(e.verify, []byte("FAILED")):
		p.untrusted.Add(1)
	case p.noCertificate != nil && len(e.tls) > 0 && string(e.verify) == "NONE":
		p.noCertificate.Add(1)
	case e.status == 444 && len(e.tls) == 0 && p.TLS == mesh.Strict: // no TLS at all
	default:
		return false
	}
	return true
}

// refused tells whether the policy has refused it.
func (p *port) refused(e *entry) bool {
	if p.Protocol == mesh.TCP {
		return len(e.end) == 0 && len(e.upstream) == 0 || string(e.end) == "PR"
	}
	return e.admitted != nil && (len(e.admitted) == 0 || string(e.admitted) == "0")
}

// presented remembers the serial of a caller. The caller holds mu.
func (c *counts) presented(peer, serial string, now time.Time) {
	if serial == "" {
		return
	}
	before, known := c.peers[peer]
	if !known && len(c.peers) >= mostRemembered {
		oldest, seen := "", now
		for id, caller := range c.peers {
			if !caller.Seen.After(seen) {
				oldest, seen = id, caller.Seen
			}
		}
		delete(c.peers, oldest)
	}
	c.peers[peer] = api.Caller{Serial: serial, Seen: now}
	if before.Serial != serial {
		c.changed()
	}
}

// otherCallers stands for the addresses beyond [mostRemembered].
const otherCallers = "others"

// spokePlaintext counts a connection without TLS, once. The caller holds mu.
func (c *counts) spokePlaintext(p *port, remote []byte) {
	if c.met[string(remote)] {
		return
	}
	if len(c.met) >= 4*mostRemembered {
		clear(c.met)
	}
	c.met[string(remote)] = true
	p.plaintext.Add(1)
	if p.TLS != mesh.Permissive {
		return // nothing else is expected of its callers
	}
	address, _, err := net.SplitHostPort(string(remote))
	if err != nil { // NGINX writes an IPv6 address without brackets
		address = string(remote[:max(0, bytes.LastIndexByte(remote, ':'))])
	}
	if _, known := c.plaintext[address]; !known {
		if len(c.plaintext) >= mostRemembered {
			address = otherCallers
		} else {
			c.changed()
		}
	}
	c.plaintext[address]++
}

// report is the counts' part of a report.
func (c *counts) report() api.Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	return api.Report{
		PlaintextCallers: maps.Clone(c.plaintext), Callers: maps.Clone(c.peers),
		Requests: c.requests.Load(), Refused: c.refused.Load(), Connections: c.connections.Load(),
	}
}
