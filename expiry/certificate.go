package expiry

import (
	"fmt"
	"time"
)

// subject is what a certificate is judged as.
type subject struct {
	kind               Kind
	workload, instance string
	place              string
	// is begins the sentences about it: "the certificate that 10.0.0.1:9080 serves".
	is string
	// due is when it is to be replaced; zero where nobody does it on a schedule.
	due time.Time
	// expiring is the code when the end is near; renew says what to do about that.
	expiring Code
	renew    string
	// warn and critical are the limits.
	warn, critical Threshold
}

// issuedAt is when a certificate was made, which is later than NotBefore says. One that lives shorter than that
// was not set back by us.
func (c *comparison) issuedAt(cert Certificate) time.Time {
	if at := cert.NotBefore.Add(c.facts.Backdating); at.Before(cert.NotAfter) {
		return at
	}
	return cert.NotBefore
}

// due is when a leaf is to be replaced. As agents do it: a leaf that does not live to see renewAfter, because the
// ttl was raised since or its issuer ends soon, is replaced at five sevenths of its life. Rotations come earlier by a part of
// it: this is the moment at which they take it up.
func (c *comparison) due(cert Certificate, w *Workload) time.Time {
	issued, renewAfter := c.issuedAt(cert), w.RenewAfter
	if life := cert.NotAfter.Sub(issued); renewAfter <= 0 || renewAfter >= life {
		renewAfter = life / 7 * 5
	}
	return issued.Add(renewAfter - time.Duration(w.Early*float64(renewAfter)))
}

// judge says in which state a certificate is, adds it to the list, and notes what is wrong with its dates.
// A rotation that is late is the caller's to explain; judge gives the state.
func (c *comparison) judge(s subject, cert Certificate) Item {
	item := Item{
		Kind: s.kind, Workload: s.workload, Instance: s.instance, Place: s.place, Serial: cert.Serial,
		NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(), Due: s.due, State: StateOK, Severity: OK,
	}
	if !s.due.IsZero() {
		item.Due = s.due.UTC()
	}
	left := cert.NotAfter.Sub(c.now)
	item.SecondsLeft = int64(left / time.Second)
	note := func(code Code, state State, severity Severity, message, action string) {
		item.State, item.Severity = state, severity
		c.find(Finding{
			Code: code, Severity: severity, Workload: s.workload, Instance: s.instance, Place: s.place, Serial: cert.Serial,
			Message: message, Action: action, Deadline: cert.NotAfter.UTC(),
		})
	}
	short := ""
	if cert.Short != "" {
		short = " (" + cert.Short + " ends before the leaf does)"
	}
	warnAt, criticalAt, overdueAt := c.moments(s, cert)
	switch {
	case c.now.Before(cert.NotBefore):
		note(CodeNotYetValid, StateNotYetValid, Critical,
			fmt.Sprintf("%s is not valid yet: it begins at %s, and here it is %s", s.is, stamp(cert.NotBefore), stamp(c.now)),
			"compare this machine's clock with the others' (NTP); if it is right, see who issued a certificate for later")
	case left <= 0:
		note(CodeExpired, StateExpired, Critical, fmt.Sprintf("%s has expired at %s, %s ago%s", s.is, stamp(cert.NotAfter), Roughly(-left), short), s.renew)
	case !c.now.Before(criticalAt):
		note(s.expiring, StateExpiring, Critical, fmt.Sprintf("%s ends in %s, at %s%s", s.is, Roughly(left), stamp(cert.NotAfter), short), s.renew)
	case !c.now.Before(warnAt):
		note(s.expiring, StateExpiring, Warning, fmt.Sprintf("%s ends in %s, at %s%s", s.is, Roughly(left), stamp(cert.NotAfter), short), s.renew)
	case !overdueAt.IsZero() && !c.now.Before(overdueAt):
		item.State, item.Severity = StateOverdue, Warning
	case !s.due.IsZero() && !c.now.Before(s.due):
		item.State = StateDue
	}
	c.items = append(c.items, item)
	return item
}

// moments are the times from which on a certificate is a warning, critical, and overdue. What is replaced on a
// schedule is no warning before the schedule is late, and not critical before half of the time that is left then
// is over, unless somebody has asked for a limit. That is not for the server's own, which nobody can have live longer.
func (c *comparison) moments(s subject, cert Certificate) (warn, critical, overdue time.Time) {
	life := cert.NotAfter.Sub(c.issuedAt(cert))
	warn = cert.NotAfter.Add(-s.warn.Of(life))
	critical = cert.NotAfter.Add(-s.critical.Of(life))
	if !s.due.IsZero() {
		overdue = s.due.Add(c.limits.Grace.Of(cert.NotAfter.Sub(s.due)))
		if !c.limits.WarnAlways || s.kind == KindServer {
			warn = later(warn, overdue)
		}
		if !c.limits.CriticalAlways || s.kind == KindServer {
			critical = later(critical, overdue.Add(cert.NotAfter.Sub(overdue)/2))
		}
	}
	return later(warn, cert.NotBefore), later(critical, cert.NotBefore), overdue
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// overdue tells whether a certificate's rotation is late, whatever else is said of it.
func (c *comparison) overdue(item Item, cert Certificate) bool {
	return !item.Due.IsZero() && item.State != StateNotYetValid && !c.now.Before(item.Due.Add(c.limits.Grace.Of(cert.NotAfter.Sub(item.Due))))
}

// books compares a certificate that is in use with what the CA has issued. It tells whether all is well.
func (c *comparison) books(s subject, w *Workload, cert Certificate) bool {
	f := Finding{
		Severity: Critical, Workload: s.workload, Instance: s.instance, Place: s.place, Serial: cert.Serial, Deadline: c.now.UTC(),
	}
	record, known := c.facts.Issued[cert.Serial]
	// The CA's books forget what has ended long ago.
	forgotten := cert.NotAfter.Before(c.now.Add(-c.facts.Remembered))
	switch {
	case cert.Identity != w.Identity:
		f.Code = CodeWrongIdentity
		f.Message = fmt.Sprintf("%s is for %s, and %s is declared", s.is, orNobody(cert.Identity), w.Identity)
		f.Action = "see which service's secret or state it was given; nobody who calls " + w.Name + " takes it for that"
	case cert.Untrusted != "":
		f.Code = CodeUntrusted
		f.Message = fmt.Sprintf("%s leads to no root of the mesh: %s", s.is, cert.Untrusted)
		f.Action = "have it issued by the mesh's CA: " + c.renewal(w)
	case !record.Revoked.IsZero() && !record.Revoked.After(c.now):
		f.Code = CodeRevoked
		f.Message = fmt.Sprintf("%s was revoked at %s", s.is, stamp(record.Revoked))
		f.Action = c.renewal(w)
	case c.facts.Issued != nil && !known && !forgotten:
		f.Code = CodeUnknownSerial
		f.Message = fmt.Sprintf("%s has the serial %s, which the CA has never issued", s.is, cert.Serial)
		f.Action = "find out who made it: another CA with the mesh's name, or a key of the CA in other hands; `countersign ca list` shows what was issued, `countersign audit log verify` whether the journal is whole"
	default:
		return true
	}
	c.mark(StateWrong, Critical)
	c.find(f)
	return false
}

// same tells whether two are one certificate: whoever makes another one can give it the same serial.
func same(a, b Certificate) bool {
	return a.Serial == b.Serial && (a.Fingerprint == b.Fingerprint || a.Fingerprint == "" || b.Fingerprint == "")
}

func orNobody(identity string) string {
	if identity == "" {
		return "nobody (it has no SPIFFE ID)"
	}
	return identity
}

// renewal is what makes a workload have a new certificate.
func (c *comparison) renewal(w *Workload) string {
	if w.Stored != nil {
		return "`countersign rotate once --force " + w.Name + "`"
	}
	return "see the log of " + w.Name + "'s sidecar; it renews by itself, or at the latest when it is started again with a new token"
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Roughly is a time in the two units that matter, for people: 3d4h, 5m0s. It is never negative.
func Roughly(d time.Duration) string {
	const day = 24 * time.Hour
	switch d = max(0, d); {
	case d >= day:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	default:
		return fmt.Sprintf("%ds", d/time.Second)
	}
}
