package agent

import (
	"context"
	"crypto/x509"
	"strconv"
	"strings"
	"time"

	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// checked gives an identity the revocation lists that are held, as the Plan's word about them is. It changes nothing of
// the identity that it is given.
func (a *Agent) checked(identity *mtls.Identity, crls *mtls.CRLs) *mtls.Identity {
	a.mu.Lock()
	word := a.revocation
	a.mu.Unlock()
	fresh := *identity
	fresh.Revocation = nil
	if word.Check {
		fresh.Revocation = &mtls.Revocation{CRLs: crls, Stale: word.Stale}
	}
	return &fresh
}

// takeCRLs puts revocation lists in use that came from the server. They hold at once and are kept on the disk then. A
// list that goes back is not taken, and the others are.
func (a *Agent) takeCRLs(text string) error {
	a.saving.Lock()
	defer a.saving.Unlock()
	old, err := a.current()
	if err != nil {
		return err
	}
	crls, err := a.updatedCRLs(old.crls, text, old.identity)
	if crls == nil || crls.Digest() == old.crls.Digest() {
		return err
	}
	fresh := *old
	fresh.crls = crls
	fresh.identity = a.checked(old.identity, crls)
	a.mu.Lock()
	a.held = &fresh
	a.mu.Unlock()
	a.listsChanged()
	if !fresh.orphan { // else what is on the disk stays a set that fits together
		kept := fresh
		a.save(&kept)
		a.mu.Lock()
		a.held = &kept
		a.mu.Unlock()
	}
	return err
}

// updatedCRLs reads lists and joins them with those that are held. The error says what was not taken; without a set
// nothing was.
func (a *Agent) updatedCRLs(held *mtls.CRLs, text string, identity *mtls.Identity) (*mtls.CRLs, error) {
	come, err := mtls.ParseCRLs([]byte(text))
	if err != nil {
		return nil, err
	}
	if err := come.CheckSignatures(issuersOf(identity)); err != nil {
		return nil, err
	}
	now, _ := a.clock.now()
	return held.Update(come, now)
}

// issuersOf are the CAs that an agent knows: its own certificate's issuers, and the roots.
func issuersOf(identity *mtls.Identity) []*x509.Certificate {
	chain := parsedChain(identity.Certificate)
	return append(chain[min(1, len(chain)):], identity.Bundle.Roots()...)
}

// listsChanged tells the data plane that peers may have been revoked. The connection to the server stays.
func (a *Agent) listsChanged() {
	if a.cfg.OnIdentity != nil {
		a.cfg.OnIdentity()
	}
	wake(a.wakeReport)
}

// loosens tells whether a Plan would let peers in that are refused now. Its word counts when the Plan is in force, and not
// while the one before stays because this one was refused.
func (a *Agent) loosens(word mesh.RevocationPlan) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.revocation
	return now.Check && (!word.Check || now.Stale != mesh.StaleServe && word.Stale == mesh.StaleServe)
}

// takeRevocation obeys what a Plan says about revocation lists. Unless that loosens something, it comes before the Plan
// itself is in force: no listener opens that would look nobody up.
func (a *Agent) takeRevocation(word mesh.RevocationPlan) {
	a.saving.Lock()
	defer a.saving.Unlock()
	a.mu.Lock()
	same := a.revocation == word
	a.revocation = word
	a.mu.Unlock()
	old, err := a.current()
	if same || err != nil {
		return
	}
	fresh := *old
	fresh.identity = a.checked(old.identity, old.crls)
	a.mu.Lock()
	a.held = &fresh
	a.mu.Unlock()
	a.log.Info("the Plan says how revocation lists are used", "check", word.Check, "stale", string(word.Stale))
	a.listsChanged()
}

// listsProblem says why it cannot be known who was revoked, and what is done about that; empty when it can be known.
func (a *Agent) listsProblem() string {
	have, err := a.current()
	if err != nil || have.identity.Revocation == nil {
		return ""
	}
	now, _ := a.clock.now()
	if err := have.identity.Revocation.Problem(issuersOf(have.identity), now); err != nil {
		done := "peers are refused (staleCRL: refuse)"
		if have.identity.Revocation.Stale == mesh.StaleServe {
			done = "peers are served all the same (staleCRL: serve)"
		}
		return strings.TrimPrefix(err.Error(), mtls.ErrNoCRL.Error()+": ") + "; " + done
	}
	return ""
}

// listGauges are the numbers about revocation lists for /stats.
func (a *Agent) listGauges(gauges map[string]int64) {
	gauges["countersign.crl_check"], gauges["countersign.crl_stale"] = 0, 0
	gauges["countersign.crl_number"], gauges["countersign.crl_seconds_left"] = 0, 0
	have, err := a.current()
	if err != nil {
		return
	}
	if have.identity.Revocation != nil {
		gauges["countersign.crl_check"] = 1
		if a.listsProblem() != "" {
			gauges["countersign.crl_stale"] = 1
		}
	}
	now, _ := a.clock.now()
	for i, issuer := range issuersOf(have.identity) {
		number, end, ok := have.crls.Covers(issuer)
		if !ok {
			gauges["countersign.crl_seconds_left"] = 0
			return
		}
		left := max(0, int64(end.Sub(now)/time.Second))
		if i == 0 {
			gauges["countersign.crl_number"], _ = strconv.ParseInt(number, 10, 64) // a greater one is another CA's: 0
			gauges["countersign.crl_seconds_left"] = left
		}
		gauges["countersign.crl_seconds_left"] = min(gauges["countersign.crl_seconds_left"], left)
	}
}

// noteCRLs tells what was not taken of the lists that came.
func (a *Agent) noteCRLs(ctx context.Context, text string) {
	a.refused(ctx, problemCRL, "a revocation list", a.takeCRLs(text))
}

// CRLs are the revocation lists that peers are looked up in, PEM, for a data plane that reads files; empty when the Plan
// wants none looked at, or while there are none. [Config].OnIdentity tells when they have changed.
func (a *Agent) CRLs() []byte {
	have, err := a.current()
	if err != nil || have.identity.Revocation == nil {
		return nil
	}
	return have.crls.PEM()
}
