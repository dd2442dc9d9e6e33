package supervise

import (
	"countersign.dev/mtls"
	"countersign.dev/reload"
)

// revocationLists are those of an identity in PEM, nothing where it has none.
func revocationLists(identity *mtls.Identity) []byte {
	if identity.Revocation == nil {
		return nil
	}
	return identity.Revocation.CRLs.PEM()
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
		ended, err := old.End(s.work, reload.RevokedGrace)
		if err != nil && s.work.Err() == nil {
			s.log.WarnContext(s.work, "cannot end all workers that still serve connections of before a revocation", "error", err)
		}
		if len(ended) > 0 {
			s.log.InfoContext(s.work, "ended older workers, for somebody was revoked", "pids", ended)
		}
	})
}
