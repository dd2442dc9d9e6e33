package expiry

import (
	"cmp"
	"fmt"
	"time"
)

// workload compares the three for one service or gateway.
func (c *comparison) workload(w *Workload) {
	stored := c.stored(w)
	about := Finding{Workload: w.Name}
	if w.Stored != nil {
		about.Place = "store:" + w.Stored.Store + " " + w.Stored.Secret
	}
	if stored != nil {
		about.Deadline = stored.NotAfter.UTC()
	}
	busy := c.rotation(w.Rotation, about, "`countersign rotate once "+w.Name+"`")
	if stored != nil && !busy {
		c.issuedOnly(w, stored)
	}
	files := c.files(w)
	c.noInstance(w)
	c.unseen(w)
	for i := range w.Instances {
		c.instance(w, &w.Instances[i], stored, files, busy)
	}
}

// stored looks at the workload's secret and returns its current version; nil when there is none to compare with.
func (c *comparison) stored(w *Workload) *Version {
	s := w.Stored
	if s == nil {
		return nil
	}
	c.bundle(s)
	place := "store:" + s.Store + " " + s.Secret
	f := Finding{Code: s.Code, Severity: Critical, Workload: w.Name, Place: place}
	switch {
	case s.Missing:
		f.Code = CodeSecretMissing
		f.Message = "the secret " + s.Secret + " is not in the store " + s.Store + ": the proxy has nothing to start with"
		f.Action = "`countersign rotate once " + w.Name + "` makes the first version"
	case s.Problem != "":
		f.Message = "the secret " + s.Secret + " cannot be used: " + s.Problem
		f.Action = cmp.Or(s.Remedy, "`countersign secret versions "+s.Secret+"` shows what is there; `countersign rotate once --force "+w.Name+"` writes a version anew; when its index.age is damaged, first move the directory of that file out of the store")
	}
	if f.Message != "" {
		c.find(f)
	}
	if s.Current == nil {
		c.items = append(c.items, Item{Kind: KindStored, Workload: w.Name, Place: place, State: StateUnknown, Severity: Critical})
		return nil
	}
	cert := s.Current.Certificate
	about := subject{
		kind: KindStored, workload: w.Name, place: place, is: fmt.Sprintf("the certificate in the secret %s of the store %s", s.Secret, s.Store),
		due: c.due(cert, w), expiring: CodeExpiring, renew: c.renewal(w), warn: c.limits.Warn, critical: c.limits.Critical,
	}
	item := c.judge(about, cert)
	c.books(about, w, cert)
	if c.overdue(item, cert) {
		c.find(Finding{
			Code: CodeRotationOverdue, Severity: worst(Warning, item.Severity), Workload: w.Name, Place: place, Serial: cert.Serial, Deadline: cert.NotAfter.UTC(),
			Message: fmt.Sprintf("its rotation was due at %s, %s ago, and has not been done; %s", stamp(item.Due), Roughly(c.now.Sub(item.Due)), c.tries(w.Rotation, item.Due)),
			Action:  "see whether `countersign rotate daemon`, or what calls `countersign rotate once`, runs and why it does not come to this; then `countersign rotate once " + w.Name + "`",
		})
	}
	return s.Current
}

// tries says in words what is known of the tries to rotate what was due.
func (c *comparison) tries(r *Rotation, due time.Time) string {
	switch {
	case r != nil && r.Problem != "":
		return "whether anybody tried it is not known"
	case r == nil || r.lastTry().IsZero():
		return "nobody is known to have tried it"
	case r.lastTry().Before(due):
		return fmt.Sprintf("nobody has tried it since; the last rotation was tried at %s", stamp(r.lastTry()))
	default:
		return fmt.Sprintf("it was last tried at %s", stamp(r.lastTry()))
	}
}

// rotation looks at what the rotation of a secret says of itself. f has what is known of the secret, command rotates
// it. It tells whether one is at work at this moment, so that what disagrees is only on its way.
func (c *comparison) rotation(r *Rotation, f Finding, command string) (busy bool) {
	if r == nil {
		return false
	}
	if r.Problem != "" {
		f.Code, f.Severity = CodeRotationUnknown, Warning
		f.Message = "what its rotation keeps about itself cannot be read: " + r.Problem
		f.Action = "`countersign rotate status` where the rotation runs; that it fails would not be seen here"
		c.find(f)
		return false
	}
	if r.Failures > 0 {
		f.Code, f.Severity = CodeRotationFailing, Warning
		if r.Failures >= 3 || r.LastSuccess.IsZero() {
			f.Severity = Critical
		}
		at := ""
		if r.FailedStep != "" {
			at = " at the step " + r.FailedStep
		}
		f.Message = fmt.Sprintf("its rotation has failed %s since %s, last at %s%s: %s",
			times(r.Failures), since(r.LastSuccess), stamp(r.LastFailure), at, cmp.Or(r.LastError, "no reason was kept"))
		f.Action = "mend what the message says, then " + command + "; what is served stays as it is until its end"
		c.find(f)
	}
	at := r.Began
	if at.IsZero() && r.Failures == 0 { // what fails and is tried again is told already
		at = r.Requested
	}
	long := !at.IsZero() && c.now.Sub(at) > c.limits.Stuck
	switch {
	case r.Holder == "" && (r.Step == "" || r.Failures > 0):
		return false
	case r.Holder == "":
		f.Code, f.Severity = CodeRotationStuck, Warning
		if long {
			f.Severity = Critical
		}
		f.Message = fmt.Sprintf("a rotation%s stands at the step %s, and nobody works on it: it was killed, or broke off", began(at), r.Step)
		f.Action = command + " takes it up where it stands"
	case long:
		f.Code, f.Severity = CodeRotationStuck, Critical
		f.Message = fmt.Sprintf("a rotation%s is still at the step %s, for %s; %s works on it", began(at), cmp.Or(r.Step, "lease"), Roughly(c.now.Sub(at)), r.Holder)
		f.Action = "see what it waits for; killed, it is taken up where it stands by " + command
	default:
		// What it has not promoted yet explains nothing of what is stored and served.
		return !r.Began.IsZero()
	}
	c.find(f)
	return false
}

func began(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return " of " + stamp(t)
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func since(t time.Time) string {
	if t.IsZero() {
		return "the beginning, without one success"
	}
	return "the last success at " + stamp(t)
}

// issuedOnly looks for a certificate that the CA has issued and that never came into the store.
func (c *comparison) issuedOnly(w *Workload, current *Version) {
	if w.Rotation != nil && (w.Rotation.Failures > 0 || w.Rotation.Step != "" || w.Rotation.Holder != "") {
		return // said already, with the reason, or on its way
	}
	var newest Issued
	for _, issued := range c.facts.Issued {
		if issued.Identity == w.Identity && issued.Instance == "" && issued.Revoked.IsZero() &&
			(issued.NotBefore.After(newest.NotBefore) || issued.NotBefore.Equal(newest.NotBefore) && issued.Serial > newest.Serial) {
			newest = issued
		}
	}
	if !newest.NotBefore.After(current.NotBefore) || !c.now.Before(newest.NotAfter) {
		return
	}
	for _, version := range []*Version{w.Stored.Pending, w.Stored.Previous} {
		if version != nil && version.Serial == newest.Serial {
			return
		}
	}
	c.find(Finding{
		Code: CodeIssuedNotStored, Severity: Warning, Workload: w.Name, Place: "store:" + w.Stored.Store + " " + w.Stored.Secret, Serial: newest.Serial,
		Message: fmt.Sprintf("the CA has issued %s, valid to %s, and the store has never got it: current is the older %s", newest.Serial, stamp(newest.NotAfter), current.Serial),
		Action:  "`countersign rotate once " + w.Name + "` ends a rotation that was broken off; if somebody issued it by hand, see who (`countersign audit log show`)",
	})
}

// bundle compares a stored trust bundle with the CA's roots, once for all that share it.
func (c *comparison) bundle(s *Stored) {
	b := s.Bundle
	if b == nil {
		return
	}
	place := "store:" + s.Store + " " + b.Secret
	for _, item := range c.items {
		if item.Kind == KindBundle && item.Place == place {
			return
		}
	}
	item := Item{Kind: KindBundle, Place: place, State: StateUnknown, Severity: OK}
	busy := c.rotation(b.Rotation, Finding{Place: place}, "`countersign rotate once`")
	note := func(code Code, severity Severity, message, action string) {
		item.Severity = worst(item.Severity, severity)
		c.find(Finding{Code: code, Severity: severity, Place: place, Message: message, Action: action})
	}
	if b.Problem != "" {
		note(CodeSecretUnreadable, Critical, "the trust bundle cannot be used: "+b.Problem, cmp.Or(b.Remedy, "`countersign secret versions "+b.Secret+"` shows what is there; `countersign rotate once` writes it anew"))
		c.items = append(c.items, item)
		return
	}
	item.State = StateOK
	has := make(map[string]bool)
	for _, root := range b.Roots {
		has[root.Fingerprint] = true
		if item.NotAfter.IsZero() || root.NotAfter.Before(item.NotAfter) {
			item.NotAfter, item.NotBefore = root.NotAfter.UTC(), root.NotBefore.UTC()
			item.SecondsLeft = int64(root.NotAfter.Sub(c.now) / time.Second)
		}
	}
	if c.facts.Authority != nil && !busy {
		known := make(map[string]bool)
		for _, root := range c.facts.Authority.Roots {
			known[root.Fingerprint] = true
			if has[root.Fingerprint] {
				continue
			}
			if root.State == Next && c.now.Sub(root.Since) < c.limits.Stuck {
				continue // it is new, and a rotation brings it
			}
			severity := Warning
			if root.State == Active {
				severity = Critical
			}
			note(CodeBundleStale, severity, fmt.Sprintf("the trust bundle lacks the CA's root %s%s", root.Subject, retired(root)),
				"`countersign rotate once` brings it to the store; until then whoever has this bundle refuses leaves of that root")
		}
		for _, root := range b.Roots {
			if !known[root.Fingerprint] {
				note(CodeBundleStale, Warning, fmt.Sprintf("the trust bundle holds a root that the CA does not have: %s", root.Subject),
					"find out who put it there: whoever has its key can speak as any member; `countersign rotate once` writes the CA's bundle")
			}
		}
	}
	c.items = append(c.items, item)
}

// files looks at the certificates that a gateway is given as files, and returns those that could be read, by path.
func (c *comparison) files(w *Workload) map[string]*Certificate {
	read := make(map[string]*Certificate)
	for _, file := range w.Files {
		if file.Certificate == nil {
			c.items = append(c.items, Item{Kind: KindFile, Workload: w.Name, Place: file.Path, State: StateUnknown, Severity: Warning})
			c.find(Finding{
				Code: CodeFileUnreadable, Severity: Warning, Workload: w.Name, Place: file.Path,
				Message: "the certificate file cannot be read: " + file.Problem, Action: "run the check where the gateway runs, as a user who may read the file",
			})
			continue
		}
		read[file.Path] = file.Certificate
		c.judge(subject{
			kind: KindFile, workload: w.Name, place: file.Path, is: "the certificate in " + file.Path, expiring: CodeExpiring,
			renew: "get a new one from whoever issued it, and replace the files; the mesh does not rotate it", warn: c.limits.Warn, critical: c.limits.Critical,
		}, *file.Certificate)
	}
	return read
}
