package rotate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"countersign.dev/durable"
	"countersign.dev/mtls"
	"countersign.dev/secret"
)

// bring makes the version current, has it deployed, and looks until it is served everywhere. When that fails, the
// version of before is brought back.
func (n *run) bring() error {
	leaf, err := n.leafOf(n.version)
	unfit := errors.Is(err, ErrUnfit) || errors.Is(err, secret.ErrCorrupt) || errors.Is(err, secret.ErrNotFound) || errors.Is(err, secret.ErrMismatch)
	switch {
	case err != nil && !unfit:
		return err
	case err != nil && n.current.version != n.version:
		// It was fit when it was recorded: it is damaged, or has expired since.
		n.record.ended()
		return errors.Join(err, n.discard(n.version))
	case err != nil:
		return n.back(err)
	}
	if n.record.Step == "" {
		if err := n.show(); err != nil {
			return err
		}
		n.record.Step, n.record.Version, n.record.Previous = StepPromote, n.version, n.current.version
		n.record.NoDeploy, n.record.Began, n.record.Problem = n.o.NoDeploy, n.r.now().UTC(), ""
		n.record.There = n.there()
	}
	if err := n.begin(StepPromote, "making %s current", n.version); err != nil {
		return err
	}
	if err := n.write(n.ctx, n.t.Store, n.t.Secret); err != nil {
		return err
	}
	if err := n.promote(n.version); err != nil {
		return err
	}
	n.result.Version, n.result.Serial, n.result.NotAfter, n.result.Due = n.version, leaf.serial, leaf.notAfter, leaf.due
	n.result.unfit = false
	if n.o.NoDeploy || n.record.NoDeploy {
		return n.done(Promoted)
	}
	err = n.deploy(leaf.serial)
	switch {
	case err == nil:
		return n.done(Rotated)
	case errors.Is(err, ErrStopped), errors.Is(err, ErrNotObserved), n.ctx.Err() != nil:
		return err
	case errors.Is(err, secret.ErrLeaseLost):
		return err // whoever has it now goes on, or takes it back
	case errors.Is(err, errUnsure): // it is the store that did not answer: the certificate is as good as it was
		return fmt.Errorf("%w; the version %s stays current, and the next rotation goes on from here", err, n.version)
	default:
		return n.back(err)
	}
}

// there are the instances that are there before anything is changed. Without them the rotation goes on: a certificate ends
// also while nobody can look.
func (n *run) there() []string {
	if n.o.NoDeploy || n.t.Rollout != nil { // those that are there now are all replaced
		return nil
	}
	sightings, err := n.sight()
	if err != nil {
		n.say(n.step, "who is there now is not known: %v", err)
		return nil
	}
	var there []string
	for _, s := range sightings {
		if !s.Away {
			there = append(there, s.Instance)
		}
	}
	slices.Sort(there)
	return slices.Compact(there)
}

// brought is what is to be known of a leaf.
type brought struct {
	serial        string
	notAfter, due time.Time
}

// leafOf reads a version and checks it.
func (n *run) leafOf(version string) (brought, error) {
	m, err := n.t.Shape.Read(n.ctx, n.t.Store, n.t.Secret, version)
	if err != nil {
		return brought{}, err
	}
	defer m.Clear()
	bundle := m.Bundle
	if n.t.Bundle != "" {
		bundle = n.bundle
	}
	leaf, err := n.fit(m, bundle)
	if err != nil {
		return brought{}, fmt.Errorf("%w: %w", ErrUnfit, err)
	}
	return brought{serial: mtls.Serial(leaf), notAfter: leaf.NotAfter.UTC(), due: n.due(leaf).UTC()}, nil
}

// promote makes a version current in every secret of the credential, the first one last: it is the one that says to
// readers which version they are to have of the others. Each takes the place of what this rotation knows as current.
func (n *run) promote(version string) error {
	for _, name := range slices.Backward(n.t.Shape.Names(n.t.Secret)) {
		if err := n.t.Store.Replace(n.ctx, name, version, n.now[name]); err != nil {
			return err
		}
		n.now[name] = version
		durable.Step("rotate.promoted")
	}
	return nil
}

// done notes that the rotation has come to its end, and removes what it leaves.
func (n *run) done(outcome Outcome) error {
	shown := n.record.Shown
	n.record.succeeded(n.result.Serial, n.r.now())
	if outcome == Promoted {
		n.record.Shown = shown // nobody was looked at
	}
	if err := n.write(n.ctx, n.t.Store, n.t.Secret); err != nil {
		return err
	}
	n.result.Outcome = outcome
	n.tidy()
	return nil
}

// tidy is clean where it comes last: what it leaves, the next rotation removes.
func (n *run) tidy() {
	if err := n.clean(); err != nil {
		n.result.Notes = append(n.result.Notes, "what is not needed any more could not be removed: "+err.Error())
	}
}

// deploy has a serial put to work, and observes it.
func (n *run) deploy(serial string) error {
	how := "the instances read the store themselves"
	switch {
	case n.t.Rollout != nil:
		how = "replacing the instances by new ones"
	case n.t.Restart:
		how = "restarting the instances, one after the other"
	}
	if err := n.begin(StepDeploy, "%s", how); err != nil {
		return err
	}
	if n.t.Restart {
		if err := n.restart(serial); err != nil {
			return err
		}
	}
	if n.t.Rollout != nil {
		if err := n.rollOut(n.version); err != nil {
			return err
		}
	}
	if err := n.begin(StepObserve, "looking for the serial %s at every endpoint", serial); err != nil {
		return err
	}
	return n.observe(serial, "")
}

// restart restarts the instances that do not serve a serial yet, and goes on to the next one when it was seen.
func (n *run) restart(serial string) error {
	sightings, err := n.sight()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotObserved, err)
	}
	var instances []string
	for _, sighting := range sightings {
		if sighting.Serial != serial && !sighting.Away && !slices.Contains(instances, sighting.Instance) {
			instances = append(instances, sighting.Instance)
		}
	}
	for _, instance := range n.touched { // it may not have come back, and is seen nowhere then
		if n.step == StepRollback && !slices.Contains(instances, instance) &&
			!slices.ContainsFunc(sightings, func(s Sighting) bool { return s.Instance == instance && !s.Away }) {
			instances = append(instances, instance)
		}
	}
	slices.Sort(instances)
	for _, instance := range instances {
		if err := n.lease.sure(n.ctx); err != nil {
			return err
		}
		n.say(StepDeploy, "restarting %s", instance)
		n.touched = append(n.touched, instance)
		if err := n.r.config.Deployer.Restart(n.ctx, n.t.Workload.Name, instance); err != nil {
			return fmt.Errorf("restarting %s: %w", instance, err)
		}
		durable.Step("rotate.restarted")
		if err := n.observe(serial, instance); err != nil {
			return err
		}
	}
	return nil
}

// observe looks until an instance serves a serial, or all do when none is named. An empty serial is any.
func (n *run) observe(serial, instance string) error {
	deadline := time.Now().Add(n.r.config.Timeout)
	told := ""
	var first time.Time // the first look: a slow one is no reason to believe somebody sooner
	for {
		sightings, err := n.sight()
		var passed time.Duration
		switch {
		case !first.IsZero():
			passed = time.Since(first)
		case err == nil:
			first = time.Now()
		}
		wrong := n.wrong(sightings, serial, instance, passed)
		if err == nil && instance == "" {
			n.result.Seen = sightings
		}
		if err == nil && len(wrong) == 0 {
			if instance == "" {
				n.noteUnseen(sightings)
			}
			durable.Step("rotate.observed")
			return nil
		}
		if text := strings.Join(wrong, "; "); text != told && err == nil {
			n.say(n.step, "waiting: %s", text)
			told = text
		}
		switch {
		case n.ctx.Err() != nil:
			return context.Cause(n.ctx)
		case time.Now().After(deadline) && err != nil:
			return fmt.Errorf("%w: %w", ErrNotObserved, err)
		case time.Now().After(deadline):
			return fmt.Errorf("%w (%s) after %s: %s", ErrNotServed, serial, n.r.config.Timeout, strings.Join(wrong, "; "))
		}
		select {
		case <-n.wait():
			return ErrStopped
		case <-n.ctx.Done():
		case <-time.After(n.r.config.poll):
		}
	}
}

// noteUnseen says who was not seen.
func (n *run) noteUnseen(sightings []Sighting) {
	if len(sightings) == 0 {
		n.result.Notes = append(n.result.Notes, "no instance is known, so that nobody was seen with the new certificate")
	}
	for _, s := range sightings {
		if s.Away {
			n.result.Notes = append(n.result.Notes, fmt.Sprintf("%s was not seen, and takes what is current when it comes back (%s)", s.Instance, s.Problem))
		}
	}
}

// wait ends when the process is to end, but on the way back where that is short.
func (n *run) wait() <-chan struct{} {
	if n.step == StepRollback && n.t.Rollout == nil {
		return nil
	}
	return n.outer.Done()
}

// wrong says who does not serve a serial, and why. After a while the word of an instance counts that cannot be looked
// at and that nobody else has seen. One that was away before is not waited for; one that went away since counts.
func (n *run) wrong(sightings []Sighting, serial, instance string, passed time.Duration) []string {
	var all []string
	found, present := false, false
	for _, s := range sightings {
		present = present || !s.Away
		if instance != "" && s.Instance != instance {
			continue
		}
		found = true
		was := slices.Contains(n.record.There, s.Instance)
		if s.Away && instance == "" && !was && passed >= n.r.config.away {
			continue
		}
		denied := n.isDenied(s)
		if (s.Serial == serial || (serial == "" && s.Serial != "")) && (s.By != ByReport || s.Alone || (passed >= n.r.config.unseen && !denied)) {
			continue
		}
		where := s.Instance
		if s.Endpoint != "" {
			where += " " + s.Endpoint
		}
		text := where + " serves " + s.Serial
		switch s.Serial {
		case "":
			text = where + " serves nothing"
		case serial:
			text = where + " says that it serves it, and no peer has seen it yet"
		}
		if denied {
			text = fmt.Sprintf("%s says that it serves %s, and a peer saw it present %s at %s", where, s.Serial, s.Peers, s.PeersAt.Format(time.RFC3339))
		}
		if s.Away && was {
			text = where + " was there before, and has been lost since"
		}
		if s.Problem != "" {
			text += " (" + s.Problem + ")"
		}
		all = append(all, text)
	}
	if instance != "" && !found {
		all = append(all, instance+" is not registered at the server")
	}
	if instance == "" && !present && len(all) == 0 && len(n.record.There) > 0 {
		all = append(all, "nobody is there any more; before there were "+strings.Join(n.record.There, ", "))
	}
	return all
}

// isDenied tells whether peers have just seen an instance present something else than it says. What they saw before it said
// so is no news, and connections that were made before speak on for a while.
func (n *run) isDenied(s Sighting) bool {
	if s.By != ByReport || s.Peers == "" {
		return false
	}
	last, known := n.denied[s.Instance]
	switch {
	case !known:
		last.at = s.PeersAt
	case s.PeersAt.After(last.at):
		last = denial{at: s.PeersAt, news: time.Now()}
	}
	if n.denied == nil {
		n.denied = make(map[string]denial)
	}
	n.denied[s.Instance] = last
	return time.Since(last.news) < n.r.config.unseen
}

// back brings the version of before back, and gives the error why.
func (n *run) back(why error) error {
	at := n.step
	if n.record.Step == StepRollback && n.record.FailedStep != "" {
		at = n.record.FailedStep
	}
	if err := n.enter(StepRollback, "%v", why); err != nil {
		return errors.Join(why, err)
	}
	failed := func(err error) error {
		return fmt.Errorf("%w; and going back failed: %w", why, err)
	}
	if n.record.Previous == "" {
		n.step = at
		version := n.record.Version
		n.end()
		return fmt.Errorf("%w; there is no version of before to go back to, so that %s stays current%s", why, version, n.later())
	}
	n.record.Step, n.record.Problem, n.record.FailedStep = StepRollback, why.Error(), at
	version, previous := n.record.Version, n.record.Previous
	if err := n.write(n.ctx, n.t.Store, n.t.Secret); err != nil {
		return failed(err)
	}
	if id, err := n.currentID(); err != nil {
		return failed(err)
	} else if id != version && id != previous {
		// Somebody has mended it by hand: it is not for us to undo.
		n.step = at
		n.end()
		return fmt.Errorf("%w; somebody has made the version %s current meanwhile, and it was left so", why, id)
	}
	before, err := n.leafOf(previous)
	if err != nil {
		// What cannot be used either is not brought back.
		n.step = at
		n.end()
		return fmt.Errorf("%w; the version %s of before cannot be used any more, so that %s stays current%s: %w", why, previous, version, n.later(), err)
	}
	if err := n.promote(previous); err != nil {
		return failed(err)
	}
	n.result.Version, n.result.Serial, n.result.NotAfter, n.result.Due = previous, before.serial, before.notAfter, before.due
	n.result.unfit = false
	seen := "was seen everywhere"
	if n.o.NoDeploy || n.record.NoDeploy {
		seen = "nobody was looked at"
	} else if err := n.redeploy(previous, before.serial); err != nil {
		if errors.Is(err, secret.ErrLeaseLost) || n.ctx.Err() != nil || n.resumable(err) {
			return failed(err)
		}
		// It is current all the same; to look for it for ever would only keep the next rotation from its work.
		seen = "was not seen everywhere: " + err.Error()
	} else {
		n.record.Shown = nil
	}
	n.result.Outcome = RolledBack
	if err := n.discard(version); err != nil {
		n.result.Notes = append(n.result.Notes, err.Error())
	}
	n.step = at
	n.end()
	return fmt.Errorf("%w; the version %s of before is current again and %s", why, previous, seen)
}

// end forgets, on the way back, the version that was being brought in; the caller's error is recorded with it.
func (n *run) end() {
	n.record.ended()
	n.tidy()
}

// redeploy is deploy on the way back.
func (n *run) redeploy(version, serial string) error {
	if n.t.Restart {
		if err := n.restart(serial); err != nil {
			return err
		}
	}
	if n.t.Rollout != nil {
		if err := n.rollBack(version, serial); err != nil {
			return err
		}
	}
	return n.observe(serial, "")
}
