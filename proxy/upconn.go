package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"time"

	"countersign.dev/mtls"
	"countersign.dev/proxy/internal/relay"
	"countersign.dev/stat"
)

// upconn is a connection to a peer. It belongs to its worker's loop.
type upconn struct {
	life life

	own        *x509.Certificate // presented, or what was a moment before: then the bounds are narrower
	ownSerial  string
	bundle     string // the digest of what the peer was verified with
	version    uint16 // 0 in plaintext
	peerSerial string
}

// tlsVersion is the version's name, empty in plaintext.
func (u *upconn) tlsVersion() string {
	if u.version == 0 {
		return ""
	}
	return stat.TLSVersion(u.version)
}

// proving makes the configuration of a handshake, and notes with what it is made.
func (p *Proxy) proving(client *mtls.Client) func(*relay.Link) (*tls.Config, error) {
	return func(k *relay.Link) (*tls.Config, error) {
		u := new(upconn)
		if identity := p.identity(); identity != nil {
			u.own, u.ownSerial, u.bundle = identity.Certificate.Leaf, mtls.Serial(identity.Certificate.Leaf), identity.Bundle.Digest()
		}
		k.Owner = u
		return client.Config()
	}
}

// errEnded says that a certificate ended while it was being proved.
var errEnded = errors.New("a certificate ended during the handshake")

// opened registers a connection to a peer and bounds its life by what was proved with.
func (p *Proxy) opened(k *relay.Link) error {
	w := p.workerOf(k.Conn.Loop())
	u, ok := k.Owner.(*upconn)
	if !ok {
		u = new(upconn)
		k.Owner = u
	}
	if cs := k.Conn.TLS(); cs != nil {
		leaf := cs.PeerCertificates[0]
		u.version, u.peerSerial = cs.Version, mtls.Serial(leaf)
		certs := []*x509.Certificate{leaf}
		if u.own != nil {
			certs = append(certs, u.own)
		}
		retireAt, cutAt, ok := bounds(p.cfg.Now(), clientRetires, certs...)
		if !ok {
			return errEnded
		}
		if p.revoked(p.identity(), cs, x509.ExtKeyUsageServerAuth) { // since the handshake
			return mtls.ErrRevoked
		}
		u.life.begin(w.loop, retireAt, cutAt, k.Retire, k.Conn.Reset)
		if identity := p.identity(); identity != nil { // a rotation during the handshake
			u.age(p.cfg.MaxAge, mtls.Serial(identity.Certificate.Leaf), identity.Bundle.Digest())
		}
	}
	w.ups[u] = k
	k.Closed = func() {
		u.life.end()
		delete(w.ups, u)
	}
	return nil
}

// age lets a connection retire that was proved with another leaf or bundle, and tells whether it was. It
// is the client's side, which goes first.
func (u *upconn) age(maxAge time.Duration, serial, bundle string) bool {
	if u.version == 0 || u.ownSerial == serial && u.bundle == bundle {
		return false
	}
	window := min(renewalWindow, u.life.left()/4)
	u.life.shorten(soon(window/2), soon(maxAge/10).Add(maxAge*9/10))
	return true
}
