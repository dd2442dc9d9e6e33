package expiry

import (
	"fmt"
	"time"
)

// authority looks at roots, issuing CAs and revocation lists.
func (c *comparison) authority() {
	a := c.facts.Authority
	if a == nil {
		return
	}
	if a.Problem != "" {
		c.find(Finding{Code: CodeCAProblem, Severity: Critical, Place: "ca", Message: "the server says of the CA: " + a.Problem, Action: "do what it says; `countersign ca show` and the server's log have more"})
	}
	for _, root := range a.Roots {
		if c.retiring(KindRoot, root) {
			continue
		}
		c.judge(subject{
			kind: KindRoot, place: "ca", is: "the root " + root.Subject + retired(root), expiring: CodeRootExpiring, warn: c.limits.CAWarn, critical: c.limits.CACritical,
			renew: "`countersign ca rotate run` replaces it while this one lives; after its end nobody trusts anybody",
		}, root.Certificate)
	}
	longest := time.Duration(0)
	for _, w := range c.facts.Workloads {
		longest = max(longest, w.TTL)
	}
	for _, issuer := range a.Issuers {
		if c.retiring(KindIssuer, issuer) {
			continue
		}
		item := c.judge(subject{
			kind: KindIssuer, place: "ca", is: "the issuing CA " + issuer.Subject + retired(issuer), expiring: CodeIssuerExpiring, warn: c.limits.CAWarn, critical: c.limits.CACritical,
			renew: "`countersign ca rotate issuer` makes the next one below the same root, `countersign ca rotate run` another root; no leaf outlives its issuer",
		}, issuer.Certificate)
		left := issuer.NotAfter.Sub(c.now)
		if issuer.State == Active && item.Severity == OK && left < longest {
			c.mark(StateExpiring, Warning)
			c.find(Finding{
				Code: CodeIssuerExpiring, Severity: Warning, Place: "ca", Serial: issuer.Serial, Deadline: issuer.NotAfter.UTC(),
				Message: fmt.Sprintf("the issuing CA %s ends in %s, which is less than a leaf's life (%s): new leaves are cut short", issuer.Subject, Roughly(left), Roughly(longest)),
				Action:  "`countersign ca rotate issuer` makes the next one below the same root, `countersign ca rotate run` another root",
			})
		}
	}
	c.lists(a)
}

// retiring notes a certificate that may end: nobody gets a leaf of it any more, and the leaves that are left end with it.
func (c *comparison) retiring(kind Kind, cert CACertificate) bool {
	if cert.State != Retiring {
		return false
	}
	c.items = append(c.items, Item{
		Kind: kind, Place: "ca", Serial: cert.Serial, NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(),
		SecondsLeft: int64(cert.NotAfter.Sub(c.now) / time.Second), State: StateRetiring, Severity: OK,
	})
	return true
}

func retired(cert CACertificate) string {
	switch cert.State {
	case Next:
		return " (which does not sign yet)"
	case Retiring:
		return " (which signs no more)"
	default:
		return ""
	}
}

// lists looks at the revocation lists: proxies refuse everybody when one of the chain is missing or has ended.
func (c *comparison) lists(a *Authority) {
	const action = "see in the server's log why it does not make a new one; where `staleCRL` is refuse, everybody is refused from that moment on"
	if a.CRLProblem != "" {
		c.find(Finding{Code: CodeCRLStale, Severity: Critical, Place: "ca", Message: "the revocation lists cannot be had: " + a.CRLProblem, Action: action})
	}
	// A root's list speaks of issuing CAs, and need not outlive the last of them: that one's end is told already.
	var last time.Time
	for _, issuer := range a.Issuers {
		last = later(last, issuer.NotAfter)
	}
	for _, list := range a.CRLs {
		item := Item{Kind: KindCRL, Place: list.Issuer, NotBefore: list.ThisUpdate.UTC(), NotAfter: list.NextUpdate.UTC(), State: StateOK, Severity: OK}
		left, life := list.NextUpdate.Sub(c.now), list.NextUpdate.Sub(list.ThisUpdate)
		item.SecondsLeft = int64(left / time.Second)
		f := Finding{Code: CodeCRLStale, Place: list.Issuer, Action: action, Deadline: list.NextUpdate.UTC()}
		switch {
		case c.now.Before(list.ThisUpdate.Add(-c.facts.Backdating)):
			item.State, f.Severity = StateNotYetValid, Critical
			f.Message = fmt.Sprintf("the revocation list of %s begins at %s, and here it is %s", list.Issuer, stamp(list.ThisUpdate), stamp(c.now))
			f.Action = "compare this machine's clock with the server's (NTP)"
		case left <= 0:
			item.State, f.Severity = StateExpired, Critical
			f.Message = fmt.Sprintf("the revocation list of %s has ended at %s, %s ago", list.Issuer, stamp(list.NextUpdate), Roughly(-left))
		case left < min(life/10, 30*24*time.Hour) && list.NextUpdate.Before(last.Add(-time.Minute)):
			item.State, f.Severity = StateExpiring, Warning
			f.Message = fmt.Sprintf("the revocation list of %s ends in %s and was not made anew", list.Issuer, Roughly(left))
		}
		if f.Severity != "" {
			item.Severity = f.Severity
			c.find(f)
		}
		c.items = append(c.items, item)
	}
}

// server looks at the control plane's own certificate, which it replaces at half of its life.
func (c *comparison) server() {
	s := c.facts.Server
	if s == nil {
		return
	}
	if s.Problem != "" {
		c.items = append(c.items, Item{Kind: KindServer, Place: s.Address, State: StateUnknown, Severity: Critical})
		c.find(Finding{
			Code: CodeEndpoint, Severity: Critical, Place: s.Address,
			Message: "the server's listener for agents shows no certificate: " + s.Problem,
			Action:  "see whether `countersign server` runs and whether its address can be reached from here; nobody renews meanwhile",
		})
	}
	if s.Served == nil {
		return
	}
	cert := *s.Served
	issued := c.issuedAt(cert)
	item := c.judge(subject{
		kind: KindServer, place: s.Address, is: "the server's own certificate", due: issued.Add(cert.NotAfter.Sub(issued) / 2), expiring: CodeExpiring,
		renew: "see in the server's log why it does not renew it", warn: c.limits.Warn, critical: c.limits.Critical,
	}, cert)
	if cert.Untrusted != "" {
		c.mark(StateWrong, Critical)
		c.find(Finding{
			Code: CodeUntrusted, Severity: Critical, Place: s.Address, Serial: cert.Serial, Message: "the server's own certificate leads to no root of the mesh: " + cert.Untrusted,
			Action: "see who answers at that address, and whether it is this mesh's server",
		})
	}
	if c.overdue(item, cert) && item.State != StateExpired {
		c.find(Finding{
			Code: CodeRotationOverdue, Severity: worst(Warning, item.Severity), Place: s.Address, Serial: cert.Serial, Deadline: cert.NotAfter.UTC(),
			Message: fmt.Sprintf("the server has not renewed its own certificate, which was due at %s", stamp(item.Due)),
			Action:  "see in the server's log why",
		})
	}
}

func worst(a, b Severity) Severity {
	if a.Worse(b) {
		return a
	}
	return b
}

// clock compares clocks as far as the facts show them.
func (c *comparison) clock() {
	ahead := time.Duration(0)
	for _, issued := range c.facts.Issued {
		ahead = max(ahead, issued.NotBefore.Sub(c.now))
	}
	if ahead > 0 {
		c.find(Finding{
			Code: CodeClockSkew, Severity: Critical, Message: fmt.Sprintf("this machine's clock is at least %s behind the server's: the CA has issued certificates that begin later than now", Roughly(ahead+c.facts.Backdating)),
			Action: "set this machine's clock right (NTP), and check again: everything that was said here about times is wrong by that much",
		})
	}
	for _, w := range c.facts.Workloads {
		for _, i := range w.Instances {
			if offset := i.ClockOffset; offset.Abs() > c.facts.Backdating && c.facts.Backdating > 0 {
				direction := "ahead of"
				if offset < 0 {
					direction = "behind"
				}
				c.find(Finding{
					Code: CodeClockSkew, Severity: Warning, Workload: w.Name, Instance: i.Name,
					Message: fmt.Sprintf("its clock is %s %s the server's, and certificates allow for %s", Roughly(offset.Abs()), direction, Roughly(c.facts.Backdating)),
					Action:  "set that machine's clock right (NTP)",
				})
			}
		}
	}
}
