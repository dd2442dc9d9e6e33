package rotate

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"countersign.dev/credential"
	"countersign.dev/mtls"
	"countersign.dev/secret"
)

// Books is an [Authority] that knows what it has issued. After a root was removed against the wish of those who still
// needed it, that is what tells its own certificates from those of another mesh.
type Books interface {
	// Issued tells whether a certificate with a serial was issued by the authority, ever.
	Issued(ctx context.Context, serial string) (bool, error)
}

// notForeign is [ErrForeign] when a current version can be used, leads to one of the roots that lie with it, and the
// authority knows nothing of that: whoever reads it would be cut off from its peers by a version of this authority. Where
// the bundle is a secret of its own, that has a guard of its own.
func (n *run) notForeign(m *secret.Material) error {
	if n.o.Force || n.t.Bundle != "" || errors.Is(n.current.problem, mtls.ErrRevoked) {
		return nil
	}
	ours, err := mtls.ParseCertificates(slices.Concat(n.trust.Bundle, []byte("\n"), n.trust.Known))
	if err != nil {
		return fmt.Errorf("the roots that the authority knows: %w", err)
	}
	parsed, err := credential.Parse(n.t.input(m, m.Bundle))
	if err != nil || leadsTo(parsed.Chain, ours, n.r.now()) != nil {
		return nil //nolint:nilerr // it is of no use to anybody, or ours
	}
	root := leadsTo(parsed.Chain, parsed.Roots, n.r.now())
	if root == nil {
		return nil
	}
	if books, ok := n.r.authority(n.t).(Books); ok {
		ask, cancel := context.WithTimeout(n.ctx, askTimeout)
		defer cancel()
		issued, err := books.Issued(ask, mtls.Serial(parsed.Leaf()))
		if err != nil {
			return fmt.Errorf("asking whether the authority has issued what is current: %w", err)
		}
		if issued {
			return nil
		}
	}
	return fmt.Errorf("%w: the version %s of %s in the store %s is valid to %s and leads to the root %q (sha256:%x); it seems that another mesh uses the store, and nothing was changed: "+
		"give this mesh another store, start it with the --state of that mesh, or replace the version all the same with --force",
		ErrForeign, m.Version, n.t.Secret, n.t.StoreName, parsed.Leaf().NotAfter.UTC().Format(time.RFC3339), root.Subject.CommonName, sha256.Sum256(root.Raw))
}

// leadsTo is the root to which a chain leads at a time; nil when it leads to none of them, or a certificate on the way is
// not valid then.
func leadsTo(chain, roots []*x509.Certificate, now time.Time) *x509.Certificate {
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root)
	}
	for _, certificate := range chain[1:] {
		between.AddCert(certificate)
	}
	paths, err := chain[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return nil
	}
	return paths[0][len(paths[0])-1]
}
