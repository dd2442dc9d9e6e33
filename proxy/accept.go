package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/proxy/internal/guard"
	"countersign.dev/proxy/internal/header"
	"countersign.dev/proxy/internal/sniff"
)

// serveInbound brings a connection from a peer or from the outside to where it is served.
func (p *Proxy) serveInbound(c *conn) {
	in := p.state.Load().inbound[c.l.port]
	if in == nil {
		_ = c.Close()
		return
	}
	wire, ok := p.secure(c, in)
	if !ok {
		_ = c.Close()
		return
	}
	kind := carryHTTP
	if in.Protocol == mesh.TCP {
		kind = carryTCP
	}
	if !c.carry(kind) {
		return
	}
	// A state that came meanwhile has left this connection alone; from here on none does.
	if in = p.state.Load().inbound[c.l.port]; in == nil || in.unfit(c, kind) != "" {
		_ = c.Close()
		return
	}
	if kind == carryTCP {
		p.serveTCP(c, wire, in)
		return
	}
	p.serveHTTP(c, wire)
}

// serveOutbound brings a connection of the application to where it is served.
func (p *Proxy) serveOutbound(c *conn) {
	out := p.state.Load().outbound[c.l.port]
	switch {
	case out == nil:
		_ = c.Close()
	case out.Protocol == mesh.TCP:
		if c.carry(carryTCP) {
			p.serveOutboundTCP(c, out)
		}
	case c.carry(carryHTTP):
		p.serveHTTP(c, c)
	}
}

// serveHTTP hands a connection to the listener's http.Server: HTTP/2 over TLS as it is, everything
// else guarded.
func (p *Proxy) serveHTTP(c *conn, wire net.Conn) {
	if t, ok := wire.(*tls.Conn); ok && t.ConnectionState().NegotiatedProtocol == "h2" {
		c.l.feed.push(t)
		return
	}
	c.guard = guard.NewConn(wire, guard.Options{
		HTTP2:       !c.secure, // over TLS it is chosen by ALPN
		HeadTimeout: headTimeout,
		Refused:     func(v *guard.Violation) { p.refusedByGuard(c, v) },
	})
	c.l.feed.push(c.guard)
}

// secure shakes hands, where the listener wants it, and gives what to speak on. It is false when there
// is nothing to speak on; why has been counted and logged.
func (p *Proxy) secure(c *conn, in *inbound) (net.Conn, bool) {
	switch in.TLS {
	case mesh.Strict:
		return p.handshake(c, in)
	case mesh.Permissive:
		verdict, ok := p.sniff(c, in)
		if ok && verdict == sniff.TLS {
			return p.handshake(c, in)
		}
		if ok {
			p.callers.spokePlaintext(c.remote.Addr().String())
			in.stats.PlaintextCxTotal.Add(1)
		}
		return c, ok
	default:
		if in.Protocol == mesh.TCP { // whatever it is, the application understands it
			in.stats.PlaintextCxTotal.Add(1)
			return c, true
		}
		verdict, ok := p.sniff(c, in)
		if ok && verdict == sniff.TLS {
			in.stats.ConnectionError.Add(1)
			p.fault(c, "a client speaks TLS to a port that takes only plaintext", nil)
			return nil, false
		}
		if ok {
			in.stats.PlaintextCxTotal.Add(1)
		}
		return c, ok
	}
}

// sniff looks at the first bytes. On a tcp port a client that says nothing waits for the server to
// speak first, which no TLS client does.
func (p *Proxy) sniff(c *conn, in *inbound) (sniff.Verdict, bool) {
	patience := headTimeout
	if in.Protocol == mesh.TCP {
		patience = silence
	}
	c.SetReadDeadline(time.Now().Add(patience))
	verdict, replayed, err := sniff.Conn(c.Conn)
	c.SetReadDeadline(time.Time{})
	switch {
	case err == nil:
		c.Conn = replayed
		return verdict, true
	case errors.Is(err, os.ErrDeadlineExceeded) && in.Protocol == mesh.TCP:
		return sniff.Plaintext, true
	default:
		return verdict, false
	}
}

// handshake is TLS as the listener declares it.
func (p *Proxy) handshake(c *conn, in *inbound) (net.Conn, bool) {
	// What is presented is what is newest when the client's first message arrives. A renewal between
	// here and there makes the connection's bounds narrower than they had to be.
	own, bundle := p.ownLeaf(in)
	c.SetDeadline(time.Now().Add(p.handshakePatience))
	t := tls.Server(c, in.tls.Config())
	if err := t.HandshakeContext(p.ctx); err != nil {
		answerPlaintext(err)
		p.handshakeFailed(c, in, mtls.HandshakeError(err))
		return nil, false
	}
	c.SetDeadline(time.Time{})
	cs := t.ConnectionState()
	c.secure, c.version = true, cs.Version
	certs := []*x509.Certificate{}
	if own != nil {
		c.ownSerial, c.bundle = mtls.Serial(own), bundle
		certs = append(certs, own)
	}
	if peer, ok := mtls.PeerID(cs); ok {
		leaf := cs.PeerCertificates[0]
		c.peer, c.peerSerial, c.peerFields = peer, mtls.Serial(leaf), header.NewPeer(leaf)
		p.callers.presented(peer.String(), c.peerSerial, p.cfg.Now())
		certs = append(certs, leaf)
	} else if len(cs.PeerCertificates) > 0 {
		return nil, false // verified and without an identity: cannot be, and must not be anonymous
	}
	in.stats.Shook(cs)
	if len(certs) > 0 {
		retireAt, cutAt, ok := bounds(p.cfg.Now(), serverRetires, certs...)
		if !ok {
			return nil, false
		}
		c.life.begin(retireAt, cutAt, func() { c.aged.Store(true) }, c.abort)
	}
	return t, true
}

// unexpectedMessage is the alert of that name, fatal, as a record (RFC 8446 sections 5.1 and 6.2).
var unexpectedMessage = []byte{21, 3, 1, 0, 2, 2, 10}

// answerPlaintext tells a client that speaks no TLS that this port does. crypto/tls says nothing then,
// and a close alone could as well be an application's.
func answerPlaintext(err error) {
	if record, ok := errors.AsType[tls.RecordHeaderError](err); ok && record.Conn != nil {
		_, _ = record.Conn.Write(unexpectedMessage) // the deadline of the handshake holds
	}
}

// ownLeaf is the certificate that a listener presents, and the digest of the bundle that it verifies
// with, which is empty where it verifies nobody.
func (p *Proxy) ownLeaf(in *inbound) (leaf *x509.Certificate, bundle string) {
	if files, ok := in.tls.(*fileServer); ok {
		return files.leaf(), ""
	}
	if identity := p.identity(); identity != nil {
		return identity.Certificate.Leaf, identity.Bundle.Digest()
	}
	return nil, ""
}

// handshakeFailed counts a handshake that failed, as Envoy does: what went wrong with a certificate by
// what it was, everything else that is about TLS together, and a client that only went away not at all.
func (p *Proxy) handshakeFailed(c *conn, in *inbound, err error) {
	switch {
	case errors.Is(err, mtls.ErrNoCertificate):
		in.stats.FailVerifyNoCert.Add(1)
	case errors.Is(err, mtls.ErrWrongIdentity):
		in.stats.FailVerifySAN.Add(1)
	case errors.Is(err, mtls.ErrUntrusted):
		in.stats.FailVerifyError.Add(1)
	case errors.Is(err, io.EOF), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, net.ErrClosed),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		p.log.Debug("a client went away before the TLS handshake was over", "listener", in.Name, "remote", c.remote)
		return
	default:
		in.stats.ConnectionError.Add(1)
	}
	p.fault(c, "TLS handshake failed", err)
}

// fault logs what a client did wrong, not more often than is useful.
func (p *Proxy) fault(c *conn, message string, err error) {
	if suppressed, ok := p.faults.allow(message + c.remote.Addr().String()); ok {
		p.log.Warn(message, "direction", c.l.side.String(), "port", c.l.port, "remote", c.remote, "error", err, "suppressed", suppressed) //nolint:sloglint // one of a few constant texts
	}
}

// refusedByGuard counts and logs a request that never became one.
func (p *Proxy) refusedByGuard(c *conn, v *guard.Violation) {
	p.totals.requests.Add(1)
	if counts := p.countsOf(c.l); counts != nil {
		counts.RqTotal.Add(1)
		counts.Answered(v.Status)
	}
	p.fault(c, "refused a malformed request", v)
	p.access.write(accessEntry{
		Time: p.cfg.Now(), Listener: p.nameOf(c.l), Direction: c.l.side.String(), Protocol: "HTTP/1.1",
		Remote: c.remote.String(), Caller: c.peer.String(), PeerSerial: c.peerSerial, OwnSerial: c.ownSerial, TLS: c.tlsVersion(),
		Status: v.Status, Flag: flagMalformed,
	})
}
