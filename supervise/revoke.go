package supervise

import (
	"crypto/x509"
	"encoding/pem"
	"time"

	"countersign.dev/mtls"
)

// revokedGrace is how long workers of earlier generations may serve on when somebody was revoked: what they accepted
// they judge by the lists of before. It leaves room in the five seconds in which a revocation has to be obeyed.
const revokedGrace = 2 * time.Second

// revoked are the serials in the lists of an identity, as the lists have them.
func revoked(identity *mtls.Identity) map[string]bool {
	serials := make(map[string]bool)
	if identity.Revocation == nil {
		return serials
	}
	for rest := identity.Revocation.CRLs.PEM(); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return serials
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			continue // it was parsed before; who cannot be read is refused with everybody
		}
		for _, entry := range list.RevokedCertificateEntries {
			serials[entry.SerialNumber.String()] = true
		}
	}
}

// revokes tells whether somebody is revoked in the second identity's lists who was not in the first's.
func revokes(before, after *mtls.Identity) bool {
	known := revoked(before)
	for serial := range revoked(after) {
		if !known[serial] {
			return true
		}
	}
	return false
}

// endOlder ends the workers of earlier generations of a program, after a grace, where they would go on to serve
// connections that stay open: HAProxy's take one more request on each, so that nobody loses one at a reload, and NGINX's
// go on with whoever had connected before it and made his handshake after it. Which they are is asked before it
// returns: one that grows old during the grace has the new lists. The caller holds change.
func (s *Supervisor) endOlder(p *process) {
	old, err := s.cfg.Binary.Engine.older(s.work, p)
	if err != nil {
		s.log.WarnContext(s.work, "cannot find workers that still serve connections of before a revocation", "error", err)
		return
	}
	s.tasks.Go(func() {
		ended, err := old.End(s.work, revokedGrace)
		if err != nil && s.work.Err() == nil {
			s.log.WarnContext(s.work, "cannot end all workers that still serve connections of before a revocation", "error", err)
		}
		if len(ended) > 0 {
			s.log.InfoContext(s.work, "ended older workers, for somebody was revoked", "pids", ended)
		}
	})
}
