package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"sync/atomic"

	"countersign.dev/mtls"
)

// cutRevoked ends the connections whose peer was revoked since they were made, with all that they carry. Which peers
// new connections and resumed sessions may have, package mtls decides in each handshake; this is for those that are open.
//
// A list that is past its end ends no connection that is open: it says nothing about the peer, and the connection ends
// with its certificates anyway.
func (p *Proxy) cutRevoked(identity *mtls.Identity) {
	if identity.Revocation == nil {
		return
	}
	var cut atomic.Int64
	p.onLoops(func(w *worker) {
		for c := range w.conns {
			if (c.front != nil || c.bytes != nil) && c.bundle != "" && p.revoked(identity, c.TLS(), x509.ExtKeyUsageClientAuth) {
				p.log.Warn("a caller's certificate was revoked; its connection is closed", "caller", c.peer.String(), "serial", c.peerSerial, "remote", c.remote)
				c.cut()
				cut.Add(1)
			}
		}
		for u, k := range w.ups {
			if p.revoked(identity, k.Conn.TLS(), x509.ExtKeyUsageServerAuth) {
				p.log.Warn("an instance's certificate was revoked; the connection to it is closed", "serial", u.peerSerial, "endpoint", k.Conn.RemoteAddr())
				k.Conn.Reset()
				cut.Add(1)
			}
		}
	})
	if n := cut.Load(); n > 0 {
		p.revocations.Add(n)
	}
}

// revoked tells whether the far end of a connection was revoked. Chains are remembered, so that it costs little.
func (p *Proxy) revoked(identity *mtls.Identity, cs *tls.ConnectionState, usage x509.ExtKeyUsage) bool {
	if identity == nil || identity.Revocation == nil || cs == nil || len(cs.PeerCertificates) == 0 {
		return false
	}
	_, err := identity.Verify(cs.PeerCertificates, usage, p.cfg.Now())
	return errors.Is(err, mtls.ErrRevoked)
}

// announced is what connections are proved with since the last rotation.
type announced struct{ serial, bundle string }
