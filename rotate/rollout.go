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

// minWait is how long a roll-out is given at least by each rotation that waits for it: one that goes on late has seen
// nothing yet.
const minWait = time.Minute

// rolling has the instances of one target replaced.
type rolling struct {
	r      *Rotator
	t      Target
	outer  context.Context
	ctx    context.Context
	lease  *held
	record *Record
	back   bool         // what is replaced does not serve as it should: nothing of it is waited for
	keep   func() error // stores the record
	say    func(step Step, format string, args ...any)
}

// run has all instances replaced by ones that take what is current, and waits until they are. A roll-out that a rotation
// before has begun for the same is waited for, and no second one is begun. Errors are [ErrRolloutFailed], [ErrStopped],
// [ErrNotObserved], [errUnsure] and the end of the lease.
func (o *rolling) run(step Step, of string) error {
	if err := o.lease.sure(o.ctx); err != nil {
		return err
	}
	if o.record.Rollout == "" || o.record.RolloutOf != of {
		if err := o.begin(step, of); err != nil {
			return err
		}
	} else {
		o.say(step, "going on with the roll-out %s, which was begun at %s", o.record.Rollout, o.record.RolloutBegan.Format(time.RFC3339))
	}
	left := max(minWait, o.record.RolloutBegan.Add(o.r.config.RolloutTimeout).Sub(o.r.now()))
	wait, cancel := context.WithTimeout(o.ctx, left)
	defer cancel()
	defer context.AfterFunc(o.outer, cancel)()
	err := o.t.Rollout.Wait(wait, o.t, o.record.Rollout, func(text string) { o.say(step, "waiting: %s", text) })
	if err == nil {
		durable.Step("rotate.rollout.ended")
		return nil
	}
	return o.failed(fmt.Errorf("the roll-out %s: %w", o.record.Rollout, err))
}

// begin begins a roll-out, and keeps its id before anything else: a process that dies in between costs a second one.
func (o *rolling) begin(step Step, of string) error {
	if o.outer.Err() != nil {
		return ErrStopped
	}
	if !o.back {
		settle, cancel := context.WithTimeout(o.ctx, settleTimeout)
		defer cancel()
		defer context.AfterFunc(o.outer, cancel)()
		o.t.Rollout.Settle(settle, o.t, func(text string) { o.say(step, "waiting: %s", text) })
		if o.outer.Err() != nil {
			return ErrStopped
		}
	}
	o.say(step, "having all instances replaced")
	began := o.r.now().UTC()
	ask, cancel := context.WithTimeout(o.ctx, askTimeout)
	defer cancel()
	id, err := o.t.Rollout.Begin(ask, o.t)
	if err != nil {
		return o.failed(fmt.Errorf("asking for a roll-out: %w", err))
	}
	durable.Step("rotate.rollout.begun")
	o.record.Rollout, o.record.RolloutOf, o.record.RolloutBegan = id, of, began
	if err := o.keep(); err != nil {
		if errors.Is(err, secret.ErrReplaced) {
			return err
		}
		return fmt.Errorf("%w: keeping which roll-out was begun: %w", ErrNotObserved, err)
	}
	return nil
}

// failed says what an error of a roll-out means.
func (o *rolling) failed(err error) error {
	switch {
	case errors.Is(err, ErrRolloutFailed):
		return err
	case o.ctx.Err() != nil:
		return context.Cause(o.ctx)
	case o.outer.Err() != nil:
		return ErrStopped
	default:
		return fmt.Errorf("%w: %w", ErrNotObserved, err)
	}
}

// rollOut has the instances replaced by ones that take a version, which is current.
func (n *run) rollOut(version string) error {
	o := &rolling{
		r: n.r, t: n.t, outer: n.outer, ctx: n.ctx, lease: n.lease, record: &n.record, say: n.say, back: n.step == StepRollback,
		keep: func() error { return n.write(n.ctx, n.t.Store, n.t.Secret) },
	}
	return o.run(n.step, version)
}

// rollBack is rollOut on the way back. What was refused may not have been needed: perhaps nobody was replaced yet.
func (n *run) rollBack(version, serial string) error {
	err := n.rollOut(version)
	if !errors.Is(err, ErrRolloutFailed) {
		return err
	}
	sightings, unseen := n.sight()
	if unseen != nil || len(sightings) == 0 || len(n.wrong(sightings, serial, "", n.r.config.unseen)) > 0 {
		return err
	}
	n.result.Notes = append(n.result.Notes, "no instance was replaced on the way back, and all of them serve the version of before: "+err.Error())
	return nil
}

// later says how instances get what stays current although its roll-out failed.
func (n *run) later() string {
	if n.t.Rollout == nil {
		return ""
	}
	return ", and instances that start from now on take it: deploy the service when what has failed is mended"
}

// resumable tells whether a way back that was cut short is gone on by the next rotation. It is when the store did not answer for a
// moment: until it does, no rotation gets anywhere. It is when instances are replaced, too, for as long as a roll-out may take; after
// that it would only keep the next rotation from its work.
func (n *run) resumable(err error) bool {
	if errors.Is(err, errUnsure) {
		return true
	}
	if n.t.Rollout == nil {
		return false
	}
	if errors.Is(err, ErrStopped) {
		return true
	}
	began := n.record.RolloutBegan
	if n.record.RolloutOf != n.record.Previous || began.IsZero() {
		began = n.record.Began
	}
	return errors.Is(err, ErrNotObserved) && n.r.now().Before(began.Add(2*n.r.config.RolloutTimeout))
}

// sight looks at the instances, and lets the observer know what is current.
func (n *run) sight() ([]Sighting, error) {
	t := n.t
	t.Now = Now{Serial: n.result.Serial, Roots: joinPEM(n.bundle, n.current.bundle, n.trust.Known)}
	if n.record.RolloutOf != "" && (n.record.RolloutOf == n.result.Version || strings.HasSuffix(n.record.RolloutOf, "/"+t.Workload.Name)) {
		t.Now.Rollout = n.record.Rollout
	}
	return n.r.observer(t).Look(n.ctx, t)
}

// joinPEM puts texts of certificates behind one another, each certificate once. What cannot be read is left out.
func joinPEM(texts ...[]byte) []byte {
	var all []byte
	seen := make(map[string]bool)
	for _, text := range texts {
		certificates, err := mtls.ParseCertificates(text)
		if err != nil {
			continue
		}
		for _, c := range certificates {
			if !seen[string(c.Raw)] {
				seen[string(c.Raw)] = true
				all = append(all, encode(c)...)
			}
		}
	}
	return all
}

// reachable makes sure, before a certificate is asked for and paid for, that instances which would be replaced for it can
// be asked for and looked at from here: else it could never be proved, and would be taken back. Nobody is asked while what is
// current is of no use anyway.
func (n *run) reachable() error {
	leaf := n.current.leaf
	if n.t.Rollout == nil || n.o.NoDeploy || n.o.Force || leaf == nil || n.current.problem != nil || n.r.now().After(leaf.NotAfter) {
		return nil
	}
	for deadline := time.Now().Add(min(n.r.config.unseen, n.r.config.Timeout)); ; {
		sightings, err := n.sight()
		if err != nil {
			return fmt.Errorf("looking at the instances, before anything is asked for: %w", err)
		}
		seen := slices.ContainsFunc(sightings, func(s Sighting) bool { return s.Serial != "" || s.By != ByHandshake })
		if seen || len(sightings) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			s := sightings[0]
			return fmt.Errorf("%w: nothing was asked for, because no new certificate could be seen either; the first of them is %s %s (%s). "+
				"Let the rotation run where it reaches their ports (its subnets and security groups), or, when they serve nobody, use --force", ErrUnreachable, s.Instance, s.Endpoint, s.Problem)
		}
		select {
		case <-n.outer.Done():
			return ErrStopped
		case <-n.ctx.Done():
			return context.Cause(n.ctx)
		case <-time.After(n.r.config.poll):
		}
	}
}
