// Package mtls knows how two members of a mesh prove to each other over TLS who they are: what an
// identity is made of, when a peer's certificate is good, and how long a session may be resumed.
//
// It is public: a program that wants no sidecar makes its own configurations from a [Source].
//
// Every connection is TLS 1.2 with an AEAD and ECDHE, or TLS 1.3. There is no early data (crypto/tls
// has none over TCP) and no renegotiation. A peer is verified by the trust bundle *and* by its SPIFFE
// ID, in VerifyConnection: unlike the rest of what crypto/tls checks, that runs on a resumed
// connection too, with the clock, the bundle and the expectations of that moment.
//
// In TLS 1.3 a client sees its handshake succeed before the server has looked at its certificate; a
// refusal arrives with the first read.
package mtls

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

// Sentinel errors of a handshake. What crypto/tls returns wraps them; on the server's side pass it
// through [HandshakeError] first.
var (
	// ErrNoCertificate says that the client presented none where one is required.
	ErrNoCertificate = errors.New("the peer presented no certificate")
	// ErrUntrusted says that a peer's certificate does not hold: its chain, its validity, its purpose,
	// its trust domain or its form.
	ErrUntrusted = errors.New("the peer's certificate is not trusted")
	// ErrExpired says that a peer's certificate is past its end. Errors that wrap it wrap
	// [ErrUntrusted] as well.
	ErrExpired = errors.New("it has expired")
	// ErrWrongIdentity says that a server's certificate is good, but somebody else's.
	ErrWrongIdentity = errors.New("the peer is not the expected one")
	// ErrNoIdentity says that a [Source] has nothing to present yet.
	ErrNoIdentity = errors.New("no identity is held yet")
)

// Source gives the identity of this process, the newest at every call. Implementations are safe for
// concurrent use and quick: it is asked at every handshake. Without an identity the error is
// [ErrNoIdentity], and the handshake fails.
type Source interface {
	Identity() (*Identity, error)
}

// Identity is what a process proves itself with and whom it trusts. It is not changed after it was
// made: a renewal makes a new one.
type Identity struct {
	ID id.ID
	// Certificate holds the leaf (its Leaf field is set), its issuers without the root, and the key.
	Certificate tls.Certificate
	Bundle      *Bundle
	// Revocation is by what revoked peers are recognized, in full handshakes and in resumed ones; nil means
	// that nobody asks whether a certificate was revoked.
	Revocation *Revocation
}

// Static is a [Source] that always gives the same identity.
type Static struct{ identity *Identity }

// NewStatic makes a [Static] of an identity.
func NewStatic(identity *Identity) Static { return Static{identity} }

// Identity implements [Source].
func (s Static) Identity() (*Identity, error) {
	if s.identity == nil {
		return nil, ErrNoIdentity
	}
	return s.identity, nil
}

// PeerID is the identity that the far end of a connection has proved. It is false for a client that
// presented no certificate. Only configurations of this package make it more than a claim.
func PeerID(cs tls.ConnectionState) (id.ID, bool) {
	if !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 {
		return id.ID{}, false
	}
	peer, err := id.FromCertificate(cs.PeerCertificates[0])
	return peer, err == nil
}

// HandshakeError gives a sentinel of this package to an error that crypto/tls has made by itself.
// crypto/tls sends the right alert for a missing certificate (certificate_required, or
// handshake_failure in TLS 1.2) only when it finds out by itself, and has no type for it. An error
// that wraps a sentinel already, or that is about something else, comes back as it is.
func HandshakeError(err error) error {
	if err == nil || errors.Is(err, ErrNoCertificate) || errors.Is(err, ErrUntrusted) || errors.Is(err, ErrWrongIdentity) {
		return err
	}
	switch text := err.Error(); {
	case strings.Contains(text, "tls: client didn't provide a certificate"):
		return fmt.Errorf("%w: %w", ErrNoCertificate, err)
	case strings.Contains(text, "tls: failed to parse client certificate"),
		strings.Contains(text, "tls: failed to parse certificate from server"),
		strings.Contains(text, "tls: invalid signature by the client certificate"),
		strings.Contains(text, "tls: client certificate contains an unsupported public key"):
		return fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	return err
}

// minVersion maps the lowest version to that of crypto/tls; what is not set is TLS 1.2.
func minVersion(v mesh.TLSVersion) (uint16, error) {
	switch v {
	case mesh.TLS12, "":
		return tls.VersionTLS12, nil
	case mesh.TLS13:
		return tls.VersionTLS13, nil
	default:
		return 0, fmt.Errorf("TLS version %q is none of %q and %q", v, mesh.TLS12, mesh.TLS13)
	}
}

// cipherSuites are the suites of TLS 1.2: forward secret and AEAD. Those of TLS 1.3 all are, and
// cannot be chosen. In both versions AES-128-GCM is taken before AES-256-GCM whatever the client's order
// is, where both ends compute AES in hardware; else ChaCha20 may come first. That is crypto/tls's own
// order; a test holds it to it.
func cipherSuites() []uint16 {
	return []uint16{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
		tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
	}
}

// baseConfig is what server and client have in common.
func baseConfig(version uint16, groups []tls.CurveID, protos []string, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion:       version,
		MaxVersion:       tls.VersionTLS13,
		CipherSuites:     cipherSuites(),
		CurvePreferences: groups,
		NextProtos:       protos,
		Time:             now,
		Renegotiation:    tls.RenegotiateNever,
	}
}

// sessionLife is how long one set of ticket keys, or one client's cache, is used at most. A key that
// stays in memory for the days that a leaf lives would open all TLS 1.2 sessions of those days.
const sessionLife = 24 * time.Hour

// generation is what a session depends on. When any of it changes, sessions of before are not
// resumed: what was checked in their full handshake may not hold any more. The zero value is that of
// no session.
type generation struct {
	identity *Identity // whose leaf and bundle count
	epoch    string    // the caller's word: the revision of the policy
}

// is tells whether a generation is that of an identity and an epoch. Identities do not change, so that
// most of the time their addresses tell.
func (g generation) is(identity *Identity, epoch string) bool {
	if g.identity == nil || g.epoch != epoch {
		return false
	}
	return g.identity == identity || g.identity.Bundle.Digest() == identity.Bundle.Digest() &&
		bytes.Equal(g.identity.Certificate.Certificate[0], identity.Certificate.Certificate[0])
}

// ask gives the caller's word at this moment, the empty one when there is nobody to ask.
func ask(word func() string) string {
	if word == nil {
		return ""
	}
	return word()
}

// identityOf asks a source and refuses what no handshake can be made with.
func identityOf(src Source) (*Identity, error) {
	identity, err := src.Identity()
	if err != nil {
		return nil, fmt.Errorf("asking for this process's identity: %w", err)
	}
	if identity == nil || identity.Bundle == nil || len(identity.Certificate.Certificate) == 0 {
		return nil, fmt.Errorf("asking for this process's identity: %w", ErrNoIdentity)
	}
	return identity, nil
}

// describe names a certificate in an error. Anybody may present one, of a size that would fill a log,
// so that what it says of itself is cut short.
func describe(cert *x509.Certificate) string {
	serial := shortened(Serial(cert))
	if peer, err := id.FromCertificate(cert); err == nil {
		return fmt.Sprintf("serial %s, %s", serial, peer)
	}
	return fmt.Sprintf("serial %s, subject %q", serial, shortened(cert.Subject.String()))
}

func shortened(s string) string {
	const most = 120
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}
