package proxy

import (
	"context"
	"errors"
	"net"
	"time"

	"countersign.dev/mesh"
)

// serveTCP decides about a connection of bytes before the first of them is passed on.
func (p *Proxy) serveTCP(c *conn, wire net.Conn, in *inbound) {
	entry := accessEntry{
		Time: p.cfg.Now(), Listener: in.Name, Direction: inboundSide.String(), Protocol: string(mesh.TCP), Remote: c.remote.String(),
		Caller: c.peer.String(), PeerSerial: c.peerSerial, OwnSerial: c.ownSerial, TLS: c.tlsVersion(),
	}
	defer wire.Close()
	if decision := in.policy.Connection(c.peer); !decision.Allowed {
		in.stats.Denied.Add(1)
		p.logDenied(c, in, decision.Reason, "")
		entry.Flag = flagDenied
		p.access.write(entry)
		return
	}
	if in.app == nil {
		p.connectTCP(c, wire, in.routes[0].choose(), &entry)
		return
	}
	entry.Upstream = in.app.address
	server, err := dialApp(p.ctx, in.app.address)
	if err != nil {
		p.fault(c, "the application does not accept", err)
		entry.Flag = flagConnectFailed
		p.access.write(entry)
		return
	}
	p.passTCP(c, wire, server, func() { reset(server); server.Close() }, nil, &entry)
}

// serveOutboundTCP connects the application to an instance of what it calls.
func (p *Proxy) serveOutboundTCP(c *conn, out *outbound) {
	defer func() { _ = c.Close() }()
	p.connectTCP(c, c, out.upstream, &accessEntry{
		Time: p.cfg.Now(), Listener: out.Name, Direction: outboundSide.String(), Protocol: string(mesh.TCP), Remote: c.remote.String(),
		Caller: p.state.Load().plan.Workload.Identity.String(),
	})
}

// connectTCP connects a client to one of an upstream's instances.
func (p *Proxy) connectTCP(c *conn, wire net.Conn, u *upstream, entry *accessEntry) {
	server, up, err := u.connect(p.ctx, entry)
	if err != nil {
		entry.Flag = flagConnectFailed
		if errors.Is(err, errNoEndpoint) {
			entry.Flag = flagNoEndpoint
		}
		p.access.write(*entry)
		return
	}
	defer up.e.release()
	if !c.secure {
		entry.TLS, entry.PeerSerial, entry.OwnSerial = up.tlsVersion(), up.peerSerial, up.ownSerial
	}
	early := func() {
		// How a peer refuses a connection of bytes; crypto/tls saw its handshake succeed.
		if suppressed, ok := p.faults.allow("early " + entry.Upstream); ok {
			p.log.Warn("closed by the peer before the first byte; does its policy admit this workload?",
				"upstream", u.plan.Name, "endpoint", entry.Upstream, "instance", up.e.instance, "suppressed", suppressed)
		}
	}
	p.passTCP(c, wire, server, up.abort, early, entry)
}

// connect makes a connection to an instance, trying one after the other.
func (u *upstream) connect(ctx context.Context, entry *accessEntry) (net.Conn, *upconn, error) {
	tried := make(map[*endpoint]bool)
	last := errNoEndpoint
	for {
		e, err := u.pick(tried)
		if err != nil {
			return nil, nil, last
		}
		tried[e] = true
		entry.Upstream = e.address.String()
		server, up, err := e.dial(ctx, e.tcp, nil)
		if err == nil {
			return server, up, nil
		}
		e.release()
		if !errors.Is(err, errConnect) {
			return nil, nil, err
		}
		last = err
	}
}

// passTCP copies until both sides have ended, and logs the connection.
func (p *Proxy) passTCP(c *conn, wire, server net.Conn, abortServer, early func(), entry *accessEntry) {
	// Whoever cuts the client's side ends the copying, and that the server's.
	result := spliceConns(wire, server, func() {
		c.abort()
		abortServer()
	}, early)
	entry.BytesIn, entry.BytesOut = result.in, result.out
	entry.Seconds = time.Since(c.started).Seconds()
	switch {
	case result.early && entry.Direction == outboundSide.String():
		entry.Flag = flagPeerClosed
	case result.broken:
		entry.Flag = flagCut
	}
	p.access.write(*entry)
}
