package agent

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// Sentinel errors about whom the agent speaks to.
var (
	// ErrPin says that the server's root is not the pinned one: it is another mesh's server, or
	// somebody stands between.
	ErrPin = errors.New("the server has another root than the pinned one")
	// ErrNotServer says that the other end is a member of the mesh, but not its control plane.
	ErrNotServer = errors.New("the control plane does not answer there")
)

// trust is what the agent believes a server by: the roots of the bundle that it holds, and before
// it holds one, the pin. Nothing is learnt from a connection that was not verified by one of them.
type trust struct {
	pin    string       // as mtls.CheckPin accepts it
	bundle *mtls.Bundle // nil before the enrolment
	crls   *mtls.CRLs   // nil: none
}

// verify checks a connection to the server: its chain leads to a trusted root at the time now, and
// its leaf is the control plane's of that trust domain. The address it was reached under says
// nothing and is not looked at: the identity is in the certificate.
func (t trust) verify(cs tls.ConnectionState, now time.Time) error {
	chain := cs.PeerCertificates
	if len(chain) == 0 {
		return fmt.Errorf("%w: it shows no certificate", ErrNotServer)
	}
	// A certificate that the mesh's CA has signed proves that its time has come. When this clock says
	// otherwise, it is this clock that is wrong, which the server can only say after the handshake.
	if now.Before(chain[0].NotBefore) {
		now = chain[0].NotBefore
	}
	bundle := t.bundle
	if bundle == nil {
		if !hasRoot(chain, t.pin) {
			return fmt.Errorf("%w: its chain ends at %s, and --ca-pin is %s. Nothing was sent to it. "+
				"Compare the pin with 'countersign ca show' at the server, and check the address in --server",
				ErrPin, mtls.Pin(chain[len(chain)-1]), t.pin)
		}
		var err error
		if _, bundle, err = mtls.VerifyPinned(t.pin, chain, x509.ExtKeyUsageServerAuth, now); err != nil {
			return explainServer(err, now)
		}
	}
	if _, err := verifyServer(bundle, chain, now); err != nil {
		return err
	}
	// A list that is missing or stale shuts nobody out here: the newer one comes from this server.
	identity := mtls.Identity{Bundle: bundle, Revocation: &mtls.Revocation{CRLs: t.crls, Stale: mesh.StaleServe}}
	if _, err := identity.Verify(chain, x509.ExtKeyUsageServerAuth, now); err != nil {
		return explainServer(err, now)
	}
	return nil
}

// verifyServer checks that chain is the control plane's under bundle.
func verifyServer(bundle *mtls.Bundle, chain []*x509.Certificate, now time.Time) (id.ID, error) {
	peer, err := bundle.Verify(chain, x509.ExtKeyUsageServerAuth, now)
	if err != nil {
		return id.ID{}, explainServer(err, now)
	}
	if peer.Kind() != id.Server {
		return id.ID{}, fmt.Errorf("%w: %s does; check --server", ErrNotServer, peer)
	}
	return peer, nil
}

func explainServer(err error, now time.Time) error {
	if errors.Is(err, mtls.ErrExpired) {
		return fmt.Errorf("the server's certificate (is the clock right? here it is %s): %w", now.UTC().Format(time.RFC3339), err)
	}
	return fmt.Errorf("the server's certificate: %w", err)
}

// hasRoot tells whether the pinned root is among certs.
func hasRoot(certs []*x509.Certificate, pin string) bool {
	return slices.ContainsFunc(certs, func(cert *x509.Certificate) bool { return mtls.Pin(cert) == pin })
}
