package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"

	"countersign.dev/mtls"
	"countersign.dev/proxy/internal/stat"
)

// upconn is a connection to a peer: the net.Conn at the bottom, on which TLS stands.
type upconn struct {
	net.Conn
	e        *endpoint
	once     sync.Once
	life     life
	onRetire func() // tells whoever uses it; nil when it carries only one thing anyway

	proved     atomic.Bool // the handshake is over, and what follows is set
	version    uint16      // 0 in plaintext
	peerSerial string
	ownSerial  string
	bundle     string // the digest of what the peer was verified with
}

// Close implements net.Conn; the connection is not registered any more then.
func (u *upconn) Close() error {
	u.once.Do(func() {
		u.life.end()
		u.e.up.stats.CxActive.Add(-1)
		u.e.up.p.upconns.remove(u)
	})
	return u.Conn.Close()
}

// CloseWrite ends the sending direction.
func (u *upconn) CloseWrite() error { return closeWrite(u.Conn) }

// abort closes the connection so that the far end cannot take it for a regular end.
func (u *upconn) abort() {
	reset(u.Conn)
	_ = u.Close()
}

// tlsVersion is the version's name, empty in plaintext.
func (u *upconn) tlsVersion() string {
	if u.version == 0 {
		return ""
	}
	return stat.TLSVersion(u.version)
}

// dial connects to the endpoint and, with a client, shakes hands. onRetire may be nil. Every error is
// errConnect, but when the context ended.
func (e *endpoint) dial(ctx context.Context, client *mtls.Client, onRetire func()) (net.Conn, *upconn, error) {
	dialer := net.Dialer{Timeout: connectTimeout}
	socket, err := dialer.DialContext(ctx, "tcp", e.address.String())
	if err != nil {
		return nil, nil, e.dialFailed(ctx, err)
	}
	u := &upconn{Conn: socket, e: e, onRetire: onRetire}
	e.up.stats.CxTotal.Add(1)
	e.up.stats.CxActive.Add(1)
	e.up.p.upconns.add(u)
	if client == nil || !e.up.plan.TLS {
		e.connected()
		return u, u, nil
	}
	t, err := u.handshake(ctx, client)
	if err != nil {
		_ = u.Close()
		return nil, nil, e.dialFailed(ctx, err)
	}
	e.connected()
	return t, u, nil
}

// dialFailed counts a failed connect, which is not one when it was given up.
func (e *endpoint) dialFailed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	e.up.stats.CxConnectFail.Add(1)
	e.failed()
	if suppressed, ok := e.up.p.faults.allow("connect " + e.address.String()); ok {
		e.up.p.log.WarnContext(ctx, "connecting to an instance failed", "upstream", e.up.plan.Name, "instance", e.instance, "endpoint", e.address, "error", err, "suppressed", suppressed)
	}
	return fmt.Errorf("%w to %s (%s): %w", errConnect, e.address, e.instance, err)
}

// handshake proves both ends to each other and bounds the connection's life by what was proved with.
func (u *upconn) handshake(ctx context.Context, client *mtls.Client) (*tls.Conn, error) {
	p := u.e.up.p
	identity := p.identity() // what is presented, or what was a moment before: then the bounds are narrower
	config, err := client.Config()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	t := tls.Client(u, config)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	if want := config.NextProtos; len(want) > 0 && t.ConnectionState().NegotiatedProtocol != want[0] {
		return nil, fmt.Errorf("the instance does not speak %s", want[0])
	}
	u.e.up.stats.Handshake.Add(1)
	cs := t.ConnectionState()
	leaf := cs.PeerCertificates[0]
	u.version, u.peerSerial = cs.Version, mtls.Serial(leaf)
	certs := []*x509.Certificate{leaf}
	if identity != nil {
		certs = append(certs, identity.Certificate.Leaf)
		u.ownSerial, u.bundle = mtls.Serial(identity.Certificate.Leaf), identity.Bundle.Digest()
	}
	retireAt, cutAt, ok := bounds(p.cfg.Now(), clientRetires, certs...)
	if !ok {
		return nil, fmt.Errorf("a certificate ended during the handshake")
	}
	u.proved.Store(true)
	u.life.begin(retireAt, cutAt, u.retired, u.abort)
	return t, nil
}

func (u *upconn) retired() {
	if u.onRetire != nil {
		u.onRetire()
	}
}

// dialHTTP2 connects for a pool.
func (e *endpoint) dialHTTP2(ctx context.Context, onRetire func()) (net.Conn, *upconn, error) {
	return e.dial(ctx, e.http2, onRetire)
}

// dialHTTP1 connects for one upgrade.
func (e *endpoint) dialHTTP1(ctx context.Context) (net.Conn, error) {
	c, u, err := e.dial(ctx, e.http1, nil)
	if err != nil {
		return nil, err
	}
	tell(ctx, u)
	return c, nil
}

// dialPlain connects to an instance that takes no TLS.
func (e *endpoint) dialPlain(ctx context.Context) (net.Conn, error) {
	c, u, err := e.dial(ctx, nil, nil)
	if err != nil {
		return nil, err
	}
	tell(ctx, u)
	return c, nil
}

// upconnKey is the context key of a func(*upconn).
type upconnKey struct{}

// tell lets the request that a connection was made for know it, for its log line.
func tell(ctx context.Context, u *upconn) {
	if f, ok := ctx.Value(upconnKey{}).(func(*upconn)); ok {
		f(u)
	}
}

// maxResponseHead bounds the head of a response.
const maxResponseHead = 256 << 10

// http1Transport speaks HTTP/1.1 on connections that dial makes, TLS or not: what is said about TLS is
// said there, so that the URLs are "http" always.
func http1Transport(dial func(context.Context) (net.Conn, error)) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Transport{
		Protocols:              &protocols,
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		DisableCompression:     true,
		MaxIdleConns:           0,
		MaxIdleConnsPerHost:    1024,
		IdleConnTimeout:        idleApp,
		ExpectContinueTimeout:  continueTimeout,
		MaxResponseHeaderBytes: maxResponseHead,
	}
}

// dialApp connects to the own application.
func dialApp(ctx context.Context, address string) (net.Conn, error) {
	dialer := net.Dialer{Timeout: connectTimeout}
	c, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("%w to the application at %s: %w", errConnect, address, err)
	}
	return c, err
}
