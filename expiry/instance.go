package expiry

import (
	"fmt"
	"strings"
)

// instance compares what one instance serves with what it says, with its store and with its files.
func (c *comparison) instance(w *Workload, i *Instance, stored *Version, files map[string]*Certificate, busy bool) {
	if !i.Connected {
		c.find(Finding{
			Code: CodeInstanceLost, Severity: Warning, Workload: w.Name, Instance: i.Name,
			Message: "it is registered, and not connected to the server: it hears of nothing new",
			Action:  "see whether it runs and whether it can reach the server; it lives until its certificate ends",
		})
	}
	explained := false // whether what it says is wrong has been told
	own := c.shown(w, i)
	for _, s := range own {
		if c.leaf(w, i, s, stored, busy) {
			explained = true
		}
	}
	for _, e := range i.Endpoints {
		if e.File != "" && e.Served != nil {
			c.served(w, i, e, files[e.File])
		}
	}
	if w.Tasks != nil && len(own) == 0 && stored != nil {
		c.byStart(w, i, stored, busy)
	}
	if i.Problem != "" && !explained {
		says := "it says: "
		if w.Tasks != nil {
			says = "ECS says: "
		}
		c.find(Finding{
			Code: CodeInstanceProblem, Severity: Warning, Workload: w.Name, Instance: i.Name, Serial: i.Reported,
			Message: says + i.Problem, Action: "mend what it says; its log has more",
		})
	}
}

// shown is a certificate that an instance was seen to serve, or says that it has.
type shown struct {
	Certificate
	kind   Kind
	places []string
}

func (s shown) place() string { return strings.Join(s.places, " ") }

// shown lists the workload's own certificates that an instance uses, each once, and notes the endpoints that
// showed none.
func (c *comparison) shown(w *Workload, i *Instance) []shown {
	var all []shown
	for _, e := range i.Endpoints {
		if e.Served == nil {
			c.items = append(c.items, Item{Kind: KindServed, Workload: w.Name, Instance: i.Name, Place: e.Address, State: StateUnknown, Severity: Critical})
			if w.dark() {
				continue // one finding says it of all tasks
			}
			c.find(Finding{
				Code: CodeEndpoint, Severity: Critical, Workload: w.Name, Instance: i.Name, Place: e.Address,
				Message: fmt.Sprintf("the listener %s shows no certificate: %s", e.Listener, e.Problem),
				Action:  "see whether it runs, and run the check where it can be reached; nothing is known about what it serves",
			})
			continue
		}
		if e.File != "" {
			continue
		}
		known := false
		for k := range all {
			if same(all[k].Certificate, *e.Served) {
				all[k].places = append(all[k].places, e.Address)
				known = true
			}
		}
		if !known {
			all = append(all, shown{Certificate: *e.Served, kind: KindServed, places: []string{e.Address}})
		}
	}
	if len(all) == 0 {
		if s, ok := c.reported(w, i); ok {
			all = append(all, s)
		}
	}
	return all
}

// reported is what an instance says that it has, which counts where no endpoint shows it: at a gateway that the
// outside speaks plaintext to, for one.
func (c *comparison) reported(w *Workload, i *Instance) (shown, bool) {
	serial, ends, by := i.Reported, i.Ends, "as it reports"
	if serial == "" {
		serial, by = i.Seen, "as its peers saw"
	}
	if serial == "" {
		return shown{}, false
	}
	s := shown{kind: KindReported, places: []string{by}, Certificate: Certificate{Serial: serial, Identity: w.Identity, NotAfter: ends}}
	if issued, ok := c.facts.Issued[serial]; ok {
		s.NotBefore, s.NotAfter = issued.NotBefore, issued.NotAfter
	}
	if s.NotAfter.IsZero() {
		return shown{}, false
	}
	if s.NotBefore.IsZero() {
		s.NotBefore = s.NotAfter.Add(-w.TTL - c.facts.Backdating)
	}
	return s, true
}

// leaf judges a certificate of the workload's own. It tells whether the instance's problem was told with it.
func (c *comparison) leaf(w *Workload, i *Instance, s shown, stored *Version, busy bool) (explained bool) {
	place := s.place()
	about := subject{
		kind: s.kind, workload: w.Name, instance: i.Name, place: place, is: "the certificate that it serves at " + place,
		due: c.due(s.Certificate, w), expiring: CodeExpiring, renew: c.renewal(w), warn: c.limits.Warn, critical: c.limits.Critical,
	}
	if s.kind == KindReported {
		about.is = "the certificate that it has (" + place + ")"
	}
	current := stored != nil && same(stored.Certificate, s.Certificate)
	mark := len(c.findings)
	item := c.judge(about, s.Certificate)
	if current && (item.State == StateExpiring || item.State == StateExpired) {
		c.findings = c.findings[:mark] // the store's line says it, once for all who serve it
	}
	genuine := current || c.books(about, w, s.Certificate)
	if s.kind == KindServed && i.Reported != "" && i.Reported != s.Serial && genuine {
		c.find(Finding{
			Code: CodeReportDiffers, Severity: Warning, Workload: w.Name, Instance: i.Name, Place: place, Serial: s.Serial,
			Message: fmt.Sprintf("it says that it serves %s, and a handshake shows %s", i.Reported, s.Serial),
			Action:  "see whether another process answers at that address, or one that was not replaced",
		})
	}
	switch {
	case current:
		return false
	case stored != nil && genuine:
		return !busy && c.behind(w, i, s, stored)
	case stored == nil && c.overdue(item, s.Certificate):
		return c.late(w, i, s, item)
	}
	return false
}

// behind says that an instance does not serve what its store holds, and why if that is known.
func (c *comparison) behind(w *Workload, i *Instance, s shown, stored *Version) (explained bool) {
	f := Finding{Severity: Critical, Workload: w.Name, Instance: i.Name, Place: s.place(), Serial: s.Serial, Deadline: s.NotAfter.UTC()}
	what := fmt.Sprintf("it serves %s, to %s, and the store has %s since %s", s.Serial, stamp(s.NotAfter), stored.Serial, stamp(stored.Written))
	switch {
	case i.Problem != "" && w.Tasks == nil:
		f.Code = CodeReloadRefused
		f.Message = fmt.Sprintf("the new certificate is not in use: %s; %s", i.Problem, what)
		f.Action = "mend what it says; `countersign init --watch` tries again by itself, and the old certificate serves until its end"
	case s.NotBefore.After(stored.NotBefore):
		f.Code, f.Severity = CodeEndpointAhead, Warning
		f.Message = what + ", which is older: the store went back to it"
		f.Action = "see that `countersign init --watch` runs beside the proxy; `countersign rotate once --force " + w.Name + "` brings both to a new one"
	default:
		f.Code = CodeStoreAhead
		f.Message = what + ": the new one was never taken"
		f.Action = "see whether `countersign init --watch` runs beside the proxy and can read the store; start the instance again if it is not to watch"
	}
	if w.Tasks != nil {
		f.Action = replaced(w)
	}
	c.mark(StateBehind, f.Severity)
	c.find(f)
	return i.Problem != "" && w.Tasks == nil
}

// late says that what is served was not renewed in time: by its agent, or by a rotation whose store cannot be read.
func (c *comparison) late(w *Workload, i *Instance, s shown, item Item) (explained bool) {
	f := Finding{
		Severity: worst(Warning, item.Severity), Workload: w.Name, Instance: i.Name, Place: s.place(), Serial: s.Serial, Deadline: s.NotAfter.UTC(),
		Code:    CodeRotationOverdue,
		Message: fmt.Sprintf("its certificate was to be renewed by %s, %s ago, and has not been", stamp(item.Due), Roughly(c.now.Sub(item.Due))),
		Action:  "see whether its sidecar runs and reaches the server: `countersign status`, and the sidecar's log",
	}
	if w.Stored != nil {
		f.Action = c.renewal(w) + ", when its store can be read again"
	}
	c.find(f)
	if i.Problem == "" {
		return false
	}
	f.Code = CodeRotationFailing
	f.Message = "its renewals fail: " + i.Problem
	f.Action = "mend what it says; it tries again by itself"
	c.find(f)
	return true
}

// served compares an endpoint that presents a file's certificate with the file.
func (c *comparison) served(w *Workload, i *Instance, e Endpoint, file *Certificate) {
	about := subject{
		kind: KindServed, workload: w.Name, instance: i.Name, place: e.Address, is: "the certificate that it serves at " + e.Address, expiring: CodeExpiring,
		renew: "replace the files " + e.File + " is of; the mesh does not rotate them", warn: c.limits.Warn, critical: c.limits.Critical,
	}
	mark := len(c.findings)
	item := c.judge(about, *e.Served)
	if file == nil {
		return
	}
	if same(*file, *e.Served) {
		if item.State == StateExpiring || item.State == StateExpired {
			c.findings = c.findings[:mark] // the file's line says it
		}
		return
	}
	c.mark(StateBehind, Critical)
	c.find(Finding{
		Code: CodeFileAhead, Severity: Critical, Workload: w.Name, Instance: i.Name, Place: e.Address, Serial: e.Served.Serial, Deadline: e.Served.NotAfter.UTC(),
		Message: fmt.Sprintf("it serves %s, to %s, and the file %s holds %s, to %s", e.Served.Serial, stamp(e.Served.NotAfter), e.File, file.Serial, stamp(file.NotAfter)),
		Action:  "see in its log why it does not take the new file: a key that does not belong to it, a mode that does not let it read",
	})
}
