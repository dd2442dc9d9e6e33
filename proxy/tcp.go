package proxy

import (
	"countersign.dev/mesh"
	"countersign.dev/proxy/internal/relay"
)

// serveInboundTCP decides about a connection of bytes before the first of them is passed on. first is
// what was read already.
func (c *conn) serveInboundTCP(in *inbound, first []byte) {
	p := c.w.p
	entry := accessEntry{
		Time: p.cfg.Now(), Listener: in.Name, Direction: inboundSide.String(), Protocol: string(mesh.TCP), Remote: c.remote.String(),
		Caller: c.peer.String(), PeerSerial: c.peerSerial, OwnSerial: c.ownSerial, TLS: c.tlsVersion(),
	}
	if decision := in.policy.Connection(c.peer); !decision.Allowed {
		in.stats.Denied.Add(1)
		c.logDenied(in, decision.Reason, "")
		entry.Flag = flagDenied
		p.access.write(&entry)
		c.Close()
		return
	}
	if in.app == nil {
		c.serveBytes(in.routes[0].choose().target.Load(), first, entry)
		return
	}
	c.serveBytes(in.app.target, first, entry)
}

// serveOutboundTCP connects the application to an instance of what it calls.
func (c *conn) serveOutboundTCP(out *outbound) {
	p := c.w.p
	c.serveBytes(out.upstream.target.Load(), nil, accessEntry{
		Time: p.cfg.Now(), Listener: out.Name, Direction: outboundSide.String(), Protocol: string(mesh.TCP), Remote: c.remote.String(),
		Caller: p.state.Load().plan.Workload.Identity.String(),
	})
	name := out.upstream.plan.Name
	c.bytes.Early = func() {
		// How a peer refuses a connection of bytes; crypto/tls saw its handshake succeed.
		e := c.bytes.Endpoint()
		if suppressed, ok := p.faults.allow("early " + e.Address.String()); ok {
			p.log.Warn("closed by the peer before the first byte; does its policy admit this workload?",
				"upstream", name, "endpoint", e.Address, "instance", e.Name, "suppressed", suppressed)
		}
	}
}

// serveBytes passes bytes on until both sides have ended, and logs the connection.
func (c *conn) serveBytes(t *relay.Target, first []byte, entry accessEntry) {
	p := c.w.p
	c.bytes = c.w.relay.ServeBytes(c.Conn, t, first, func(b *relay.Bytes, o *relay.Outcome) {
		entry.BytesIn, entry.BytesOut, entry.Seconds, entry.Flag = o.BytesIn, o.BytesOut, o.Duration.Seconds(), o.Flag
		if e := b.Endpoint(); e != nil {
			entry.Upstream = e.Address.String()
		}
		if b.Link != nil && !c.secure {
			if up, ok := b.Link.Owner.(*upconn); ok {
				entry.TLS, entry.PeerSerial, entry.OwnSerial = up.tlsVersion(), up.peerSerial, up.ownSerial
			}
		}
		if entry.Flag == relay.FlagPeerClosed && c.l.side == inboundSide { // an application may well say nothing
			entry.Flag = ""
		}
		p.access.write(&entry)
	})
}
