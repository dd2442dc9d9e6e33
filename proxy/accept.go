package proxy

import (
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/proxy/internal/header"
	"countersign.dev/proxy/internal/loop"
	"countersign.dev/proxy/internal/relay"
	"countersign.dev/proxy/internal/sniff"
)

// opening is the handler of a connection until it is known what it carries.
type opening struct {
	c       *conn
	in      *inbound // nil on the outbound side
	prefix  []byte   // what was looked at
	quiet   *loop.Timer
	decided bool // whether it is TLS
}

// open brings a new connection to where it is served.
func (c *conn) open() {
	o := &opening{c: c}
	c.Handle(o)
	st := c.w.p.state.Load()
	if c.l.side == outboundSide {
		switch out := st.outbound[c.l.port]; {
		case out == nil:
			c.Close()
		case out.Protocol == mesh.TCP:
			c.serveOutboundTCP(out)
		default:
			o.decided = true
			o.expect(idleLoopback)
		}
		return
	}
	o.in = st.inbound[c.l.port]
	switch {
	case o.in == nil:
		c.Close()
	case o.in.TLS == mesh.Strict:
		o.shake()
	case o.in.TLS == mesh.Off && o.in.Protocol == mesh.TCP: // whatever it is, the application understands it
		o.in.stats.PlaintextCxTotal.Add(1)
		o.serve()
	case o.in.Protocol == mesh.TCP:
		o.expect(silence)
	default:
		o.expect(c.w.p.limits.Head)
	}
}

// expect bounds how long the first bytes may take.
func (o *opening) expect(patience time.Duration) {
	o.quiet = o.c.w.loop.After(patience, func() {
		// On a tcp port a client that says nothing waits for the server to speak first, which no TLS client
		// does.
		if !o.decided && o.in.Protocol == mesh.TCP {
			o.plaintext()
			return
		}
		o.c.Close()
	})
}

// Data implements loop.Handler.
func (o *opening) Data(p []byte) {
	o.prefix = append(o.prefix, p...)
	if !o.decided {
		switch sniff.Classify(o.prefix) {
		case sniff.More:
			return
		case sniff.TLS:
			o.encrypted()
			return
		case sniff.Plaintext:
			o.plaintext()
			return
		}
	}
	o.serve()
}

// End implements loop.Handler.
func (o *opening) End() {
	switch {
	case o.decided || len(o.prefix) == 0:
		o.c.Close()
	default: // a byte or two that might have become TLS
		o.plaintext()
		if o.c.bytes != nil {
			o.c.bytes.Ended()
		} else {
			o.c.Close()
		}
	}
}

// Drained implements loop.Handler.
func (o *opening) Drained() {}

// Closed implements loop.Handler.
func (o *opening) Closed(error) { o.stopWaiting() }

func (o *opening) stopWaiting() {
	if o.quiet != nil {
		o.quiet.Stop()
	}
}

// encrypted is called for a client that speaks TLS to a port that takes plaintext too, or only that.
func (o *opening) encrypted() {
	o.stopWaiting()
	if o.in.TLS == mesh.Off {
		o.in.stats.ConnectionError.Add(1)
		o.c.fault("a client speaks TLS to a port that takes only plaintext", nil)
		o.c.Close()
		return
	}
	o.shake()
}

// plaintext is called for a client that speaks no TLS.
func (o *opening) plaintext() {
	o.decided = true
	if o.in.TLS == mesh.Permissive {
		o.c.w.p.callers.spokePlaintext(o.c.address)
	}
	o.in.stats.PlaintextCxTotal.Add(1)
	o.serve()
}

// http2Preface is what a client with prior knowledge begins with (RFC 9113 section 3.4).
const http2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// serve hands a connection to what carries it, with the bytes that were looked at.
func (o *opening) serve() {
	c, http2 := o.c, false
	switch cs := c.TLS(); {
	case o.in != nil && o.in.Protocol == mesh.TCP:
	case cs != nil:
		http2 = cs.NegotiatedProtocol == "h2"
	case len(o.prefix) < len(http2Preface) && strings.HasPrefix(http2Preface, string(o.prefix)):
		return // it has not said yet what it speaks
	default:
		http2 = strings.HasPrefix(string(o.prefix[:min(len(o.prefix), len(http2Preface))]), http2Preface)
	}
	o.stopWaiting()
	if o.in != nil {
		// The Plan may have changed since the handshake began.
		in := c.w.p.state.Load().inbound[c.l.port]
		if in == nil || in.Protocol != o.in.Protocol || in.unfit(c) != "" {
			c.Close()
			return
		}
		if in.Protocol == mesh.TCP {
			c.serveInboundTCP(in, o.prefix)
			return
		}
	}
	c.serveHTTP(http2, o.prefix)
}

// serveHTTP takes requests.
func (c *conn) serveHTTP(http2 bool, prefix []byte) {
	p := c.w.p
	c.relayed = relay.Peer{ID: c.peer, Remote: c.remote, Service: c.l, Owner: c, Idle: idlePeer}
	if c.l.side == outboundSide {
		c.relayed.Idle = idleLoopback
	}
	if http2 {
		c.front = c.w.relay.ServeHTTP2(c.Conn, &c.relayed)
	} else {
		c.front = c.w.relay.ServeHTTP1(c.Conn, &c.relayed)
	}
	if p.draining.Load() || c.l.stopped.Load() {
		c.front.Leave()
	}
	if len(prefix) > 0 {
		c.front.Data(prefix)
	}
}

// shake is TLS as the listener declares it.
func (o *opening) shake() {
	c, in := o.c, o.in
	// What is presented is what is newest when the client's first message arrives. A renewal between
	// here and there makes the connection's bounds narrower than they had to be.
	own, bundle := c.w.p.ownLeaf(in)
	prefix := o.prefix
	o.prefix, o.decided = nil, true
	c.StartTLS(in.tls.Config(), false, c.w.p.handshakePatience, func(err error) {
		switch {
		case err != nil:
			c.handshakeFailed(in, mtls.HandshakeError(err))
		case !c.shook(in, own, bundle):
			c.Close()
		default:
			o.serve()
		}
	})
	if len(prefix) > 0 {
		c.FeedTLS(prefix)
	}
}

// shook notes what a handshake has shown and bounds the connection's life by it. It is false when the
// connection must not be used.
func (c *conn) shook(in *inbound, own *x509.Certificate, bundle string) bool {
	p, cs := c.w.p, *c.TLS()
	c.secure, c.version, c.group = true, cs.Version, cs.CurveID
	certs := []*x509.Certificate{}
	if own != nil {
		c.ownSerial, c.bundle = mtls.Serial(own), bundle
		certs = append(certs, own)
	}
	if peer, ok := mtls.PeerID(cs); ok {
		leaf := cs.PeerCertificates[0]
		c.peer, c.peerSerial = peer, mtls.Serial(leaf)
		c.peerFields = header.NewPeer(leaf, p.state.Load().plan.Workload.Identity)
		p.callers.presented(peer.String(), c.peerSerial, p.cfg.Now())
		certs = append(certs, leaf)
	} else if len(cs.PeerCertificates) > 0 {
		return false // verified and without an identity: cannot be, and must not be anonymous
	}
	if bundle != "" && p.revoked(p.identity(), &cs, x509.ExtKeyUsageClientAuth) { // since the handshake
		return false
	}
	in.stats.Shook(cs)
	if len(certs) == 0 {
		return true
	}
	retireAt, cutAt, ok := bounds(p.cfg.Now(), serverRetires, certs...)
	if !ok {
		return false
	}
	c.life.begin(c.w.loop, retireAt, cutAt, c.leave, c.cut)
	if identity := p.identity(); identity != nil && c.bundle != "" && c.ownSerial != mtls.Serial(identity.Certificate.Leaf) { // a rotation during the handshake
		c.life.shorten(soon(min(renewalWindow, c.life.left()/4)), time.Time{})
	}
	return true
}

// leave lets the connection end with what it carries. One of bytes has nothing to end with.
func (c *conn) leave() {
	if c.front != nil {
		c.front.Leave()
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
func (c *conn) handshakeFailed(in *inbound, err error) {
	switch {
	case errors.Is(err, mtls.ErrNoCertificate):
		in.stats.FailVerifyNoCert.Add(1)
	case errors.Is(err, mtls.ErrWrongIdentity):
		in.stats.FailVerifySAN.Add(1)
	case errors.Is(err, mtls.ErrUntrusted):
		in.stats.FailVerifyError.Add(1)
	case errors.Is(err, io.EOF), errors.Is(err, loop.ErrHandshakeTimeout), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, net.ErrClosed),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		c.w.p.log.Debug("a client went away before the TLS handshake was over", "listener", in.Name, "remote", c.remote)
		return
	default:
		in.stats.ConnectionError.Add(1)
	}
	c.fault("TLS handshake failed", err)
}

// fault logs what a client did wrong, not more often than is useful.
func (c *conn) fault(message string, err error) {
	p := c.w.p
	if suppressed, ok := p.faults.allow(message + c.address); ok {
		p.log.Warn(message, "direction", c.l.side.String(), "port", c.l.port, "remote", c.remote, "error", err, "suppressed", suppressed) //nolint:sloglint // one of a few constant texts
	}
}
