package mtls

import (
	"crypto/fips140"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"countersign.dev/mesh"
)

// ServerOptions say how a listener takes connections.
type ServerOptions struct {
	// ClientAuth is [mesh.Require] when it is not set.
	ClientAuth mesh.ClientAuth
	// MinVersion is TLS 1.2 when it is not set.
	MinVersion mesh.TLSVersion
	// Groups are the key exchanges that are spoken, as [Groups] gives them; nil is the default,
	// [mesh.DefaultTLSGroups]. crypto/tls prefers them in the order of [mesh.TLSGroups], whatever the
	// order here. In FIPS 140-3 mode those that are not approved are left out.
	Groups []tls.CurveID
	// NextProtos are the ALPN protocols in the order of preference.
	NextProtos []string
	// Epoch is asked at every handshake; sessions of another epoch are not resumed. It is the revision
	// of the policy; nil means that there is none.
	Epoch func() string
	// Revocations is asked at every handshake: an opaque word for what the caller knows to be revoked. When
	// it changes, chains that were verified before are verified anew. Nil means that there is none. The
	// identity's own lists need no such word: they are looked at in every handshake.
	Revocations func() string
	// Now is the clock, time.Now when it is nil.
	Now func() time.Time
}

// Server makes the configurations of one listener. It is safe for concurrent use.
type Server struct {
	src        Source
	o          ServerOptions
	clientAuth tls.ClientAuthType
	version    uint16
	groups     []tls.CurveID
	err        error // options that make no sense: every handshake fails with it

	mu         sync.Mutex
	generation generation  // guarded by mu: what config was made for
	config     *tls.Config // guarded by mu: nil before the first handshake
	made       time.Time   // guarded by mu: when config was made
}

// NewServer makes a Server. Options that cannot be obeyed make every handshake fail, with an error
// that says so: a listener must not be more open than it was declared.
func NewServer(src Source, o ServerOptions) *Server {
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Server{src: src, o: o}
	s.version, s.err = minVersion(o.MinVersion)
	var err error
	if s.groups, err = effectiveGroups(o.Groups, fips140.Enabled()); err != nil {
		s.err = errors.Join(s.err, err)
	}
	switch o.ClientAuth {
	case mesh.Require, "":
		// Only this kind lets crypto/tls refuse by itself, with the alert that RFC 8446 section
		// 4.4.2.4 asks for. It verifies nothing about a certificate that is there: verify does.
		s.clientAuth = tls.RequireAnyClientCert
	case mesh.Optional:
		s.clientAuth = tls.RequestClientCert
	case mesh.None:
		s.clientAuth = tls.NoClientCert
	default:
		s.err = errors.Join(s.err, fmt.Errorf("client authentication %q is none of require, optional, none", o.ClientAuth))
	}
	return s
}

// Config is what tls.Server and net/http are given. Everything about it is decided anew at every
// handshake; what a caller changes on it has no effect on connections.
func (s *Server) Config() *tls.Config {
	c := baseConfig(max(s.version, tls.VersionTLS12), s.groups, s.o.NextProtos, s.o.Now)
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return s.current() }
	return c
}

// current is the configuration for the newest leaf, bundle and epoch.
//
// Each has ticket keys of its own, set by SetSessionTicketKeys: when GetConfigForClient returns a
// configuration without explicit keys, crypto/tls uses those of the outer one, and every ticket would
// outlive what it was issued under.
func (s *Server) current() (*tls.Config, error) {
	if s.err != nil {
		return nil, s.err
	}
	identity, err := identityOf(s.src)
	if err != nil {
		return nil, err
	}
	now := s.o.Now()
	epoch := ask(s.o.Epoch)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.generation.is(identity, epoch) && now.Sub(s.made) < sessionLife {
		return s.config, nil
	}
	c := baseConfig(s.version, s.groups, s.o.NextProtos, s.o.Now)
	c.Certificates = []tls.Certificate{identity.Certificate}
	c.ClientAuth = s.clientAuth
	c.VerifyConnection = s.verify
	var key [32]byte
	_, _ = rand.Read(key[:]) // crypto/rand ends the process rather than fail
	c.SetSessionTicketKeys([][32]byte{key})
	s.config, s.generation, s.made = c, generation{identity, epoch}, now
	return c, nil
}

// verify decides about the client. It asks for the bundle again: a handshake may be slow, and a root
// may have been removed since it began.
func (s *Server) verify(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		if s.clientAuth == tls.RequireAnyClientCert {
			return ErrNoCertificate
		}
		return nil
	}
	identity, err := identityOf(s.src)
	if err != nil {
		return err
	}
	_, err = identity.verifyAgain(ask(s.o.Revocations), cs.PeerCertificates, x509.ExtKeyUsageClientAuth, s.o.Now())
	return err
}
