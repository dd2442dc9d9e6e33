package proxy

import (
	"crypto/tls"
	"net/netip"
	"slices"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/proxy/internal/header"
	"countersign.dev/proxy/internal/loop"
	"countersign.dev/proxy/internal/relay"
	"countersign.dev/stat"
)

// conn is a connection from a client, from accept to close. It belongs to its worker's loop.
type conn struct {
	*loop.Conn
	w       *worker
	l       *listener
	remote  netip.AddrPort
	address string // the remote one without its port, as header fields have it
	started time.Time

	// What the handshake has shown, constant once the connection carries something.
	secure     bool
	version    uint16
	group      tls.CurveID // of the key exchange
	peer       id.ID       // zero: anonymous
	peerFields *header.Peer
	peerSerial string
	ownSerial  string
	bundle     string // the digest of what the peer was verified with

	// What it carries: one of the two, or neither while it is being accepted.
	front relay.Front
	bytes *relay.Bytes

	relayed relay.Peer
	life    life
}

// closed is called when the connection has ended.
func (c *conn) closed() {
	c.life.end()
	delete(c.w.conns, c)
	c.l.active.Add(-1)
}

// busy tells whether the connection does something that a drain waits for.
func (c *conn) busy() bool { return c.bytes != nil || c.front != nil && c.front.Busy() }

// tlsVersion is the version's name, empty in plaintext.
func (c *conn) tlsVersion() string {
	if !c.secure {
		return ""
	}
	return stat.TLSVersion(c.version)
}

// review closes what a new state does not admit.
func (c *conn) review(next *state) {
	if c.l.side == outboundSide {
		return // the application may call what it could call: the called side decides
	}
	if c.front == nil && c.bytes == nil {
		return // its policy is looked up when it is open
	}
	in := next.inbound[c.l.port]
	switch {
	case in == nil || in.unfit(c) != "":
		c.cut()
	case c.bytes != nil:
		if !in.policy.Connection(c.peer).Allowed {
			c.cut()
		}
	default:
		for x := range c.front.Exchanges {
			if !in.policy.Request(c.peer, x.Method, x.Path).Allowed {
				x.Cut()
			}
		}
	}
}

// cut closes a connection with all that it carries, so that the far end cannot take it for a regular
// end.
func (c *conn) cut() {
	if c.bytes != nil {
		c.bytes.Cut()
		return
	}
	if c.front != nil {
		for x := range c.front.Exchanges {
			x.Cut()
		}
	}
	c.Reset()
}

// unfit says why a connection, as it was made, does not fit a listener as it is declared now; empty
// when it does.
func (in *inbound) unfit(c *conn) string {
	switch {
	case in.TLS == mesh.Strict && !c.secure:
		return "it is in plaintext, and the port takes only TLS"
	case in.TLS == mesh.Off && c.secure:
		return "it is TLS, and the port takes only plaintext"
	case c.secure && in.ClientAuth == mesh.Require && c.peer.IsZero():
		return "it presented no certificate, and the port requires one"
	case c.secure && in.MinTLS == mesh.TLS13 && c.version < tls.VersionTLS13:
		return "its TLS version is too low"
	case c.secure && c.group != 0 && in.groups != nil && !slices.Contains(in.groups, c.group):
		return "its key exchange is not among those of the port"
	case in.Protocol == mesh.TCP && c.front != nil:
		return "it carries requests, and the port takes bytes"
	case in.Protocol != mesh.TCP && c.bytes != nil:
		return "it carries bytes, and the port takes requests"
	}
	return ""
}

// age lets a connection retire that was proved with another leaf or bundle, and tells whether it was.
// One that was proved with a gateway's files is no concern of a rotation.
func (c *conn) age(now time.Time, serial, bundle string) bool {
	if c.front == nil && c.bytes == nil || !c.secure || c.bundle == "" || c.ownSerial == serial && c.bundle == bundle {
		return false
	}
	maxAge := c.w.p.cfg.MaxAge
	end := soon(maxAge / 10).Add(maxAge * 9 / 10)
	window := min(renewalWindow, c.life.left()/4)
	if c.bytes != nil {
		c.life.shorten(time.Time{}, end)
		return true
	}
	c.life.shorten(soon(window), time.Time{})
	// A connection of requests ends by itself. Streams that run since before the rotation end like a TCP
	// connection.
	c.life.also(end, func() {
		for x := range c.front.Exchanges {
			if x.Began.Before(now) {
				x.Cut()
			}
		}
	})
	return true
}
