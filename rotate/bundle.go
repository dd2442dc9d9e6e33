package rotate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"countersign.dev/durable"
	"countersign.dev/mtls"
	"countersign.dev/secret"
)

// SharedBundle is a trust bundle that lies in a store as a secret of its own.
type SharedBundle struct {
	// Name is the secret's, StoreName what the specification calls the store.
	Name, StoreName string
	TrustDomain     string
	Store           Store
	Keeper          Keeper
	// Users are the workloads whose proxies have it; all in the same store.
	Users []Target
}

// SharedBundles are the bundles of some targets, each once, in the order in which they come.
func SharedBundles(targets []Target) []SharedBundle {
	var bundles []SharedBundle
	for _, t := range targets {
		if t.Bundle == "" {
			continue
		}
		i := slices.IndexFunc(bundles, func(b SharedBundle) bool { return b.Name == t.Bundle && b.StoreName == t.StoreName })
		if i < 0 {
			i = len(bundles)
			bundles = append(bundles, SharedBundle{
				Name: t.Bundle, StoreName: t.StoreName, TrustDomain: t.Workload.Identity.TrustDomain(), Store: t.Store, Keeper: t.Keeper,
			})
		}
		bundles[i].Users = append(bundles[i].Users, t)
	}
	return bundles
}

// bundleRun is the rotation of one bundle.
type bundleRun struct {
	r     *Rotator
	b     SharedBundle
	o     Options
	ctx   context.Context
	lease *held
	step  Step
	notes
	now    string // which version is current; empty when none is
	roots  []byte // of the authority, and those that were current
	stored bool   // what is current are the roots that it is to have
	inUse  error  // why the roots of the authority are not to take the place of what is current
	result *Result
}

// RotateBundle brings a shared trust bundle up to what the authority says, before any leaf is rotated. A root to which the current
// certificate of one of its users leads is kept until that one has another: without it he would be cut off from his own peers. When
// the authority has roots that are new here, and not that one, it may as well be the wrong authority: that is [ErrInUse], and nothing
// is stored, unless Options.Force says that it is meant. Users that take a bundle only by being restarted are restarted, one instance
// after the other, each seen to serve again before the next.
func (r *Rotator) RotateBundle(ctx context.Context, b SharedBundle, o Options) Result {
	result := Result{Secret: b.Name, Store: b.StoreName, Outcome: Nothing}
	n := &bundleRun{r: r, b: b, o: o, ctx: ctx, step: StepLook, result: &result}
	if err := r.checkBundle(b); err != nil {
		result.fail(StepLook, err)
		return result
	}
	if o.DryRun {
		bundle, _, err := n.look() //nolint:contextcheck // the context of the run ends with its lease
		if err == nil && result.Reason != "" {
			result.Outcome = WouldRotate
			_, err = n.accepted(bundle)
		}
		if err != nil {
			result.fail(n.step, err)
		}
		return result
	}
	if o.Patient && !o.Force {
		if later, waits := r.bundleWaits(ctx, b, o); waits {
			return later
		}
	}
	within, lease, err := n.take(ctx)
	if err != nil {
		result.fail(StepLease, underWay(ctx, err, b.Store, b.Name))
		return result
	}
	if lease == nil {
		return result
	}
	n.ctx, n.lease = within, lease
	if err := n.rotate(ctx); err != nil {
		n.failed(err) //nolint:contextcheck // the context of the run ends with its lease
	}
	if err := lease.release(within); err != nil {
		result.Notes = append(result.Notes, "the lease was not given back, and runs out by itself: "+err.Error())
	}
	return result
}

// take takes the lease of the bundle. Services share it, and one's rotation does not fail because another's is at it: when there is nothing to be
// done, no lease is needed, and it is nil; else the other one is waited for.
func (n *bundleRun) take(ctx context.Context) (context.Context, *held, error) {
	ttl, patience := n.r.leaseFor(n.b.Users...), max(n.r.config.Wait, n.r.config.bundleWait)
	tell := func(held error, dead bool) {
		if dead {
			n.say(StepLease, "it seems that a dead process has left it: %v; waiting until it ends", held)
		} else {
			n.say(StepLease, "waiting, for %s at most: %v", patience, underWay(ctx, held, n.b.Store, n.b.Name))
		}
	}
	within, lease, err := n.r.take(ctx, n.b.Keeper, n.b.Name, ttl, 0, tell)
	if !errors.Is(err, secret.ErrHeld) || errors.Is(err, ErrStopped) {
		return within, lease, err
	}
	before := *n.result
	_, _, lookErr := n.look()
	if lookErr == nil && n.result.Reason == "" && !n.result.failing {
		return nil, nil, nil
	}
	*n.result = before
	return n.r.take(ctx, n.b.Keeper, n.b.Name, ttl, patience, tell)
}

// checkBundle says what cannot be rotated.
func (r *Rotator) checkBundle(b SharedBundle) error {
	for _, user := range b.Users {
		if err := r.check(user); err != nil {
			return err
		}
	}
	return secret.CheckName(b.Name + stateSuffix)
}

func (n *bundleRun) say(step Step, format string, args ...any) {
	n.r.config.Progress(n.b.Name, step, fmt.Sprintf(format, args...))
}

func (n *bundleRun) failed(err error) {
	if errors.Is(err, secret.ErrReplaced) {
		ctx, cancel := Detached(n.ctx, askTimeout)
		defer cancel()
		n.result.fail(n.step, overtaken(ctx, err, n.b.Keeper, n.b.Name, n.r.config.Holder))
		n.result.Version, _ = currentVersion(ctx, n.b.Store, n.b.Name) // empty when it is not known
		return
	}
	if n.ctx.Err() != nil && !errors.Is(err, secret.ErrLeaseLost) {
		err = context.Cause(n.ctx)
	}
	n.result.fail(n.step, err)
	if errors.Is(err, ErrStopped) || errors.Is(err, secret.ErrLeaseLost) {
		return
	}
	if !n.read || n.repeats(n.b.Store, n.step, err, n.r.now()) {
		return
	}
	n.record.failed(n.step, err, n.r.now())
	if n.step == StepDeploy {
		n.result.Next = n.record.nextTry(firstEnd(n.ctx, n.b), false)
	}
	if err := n.write(n.ctx, n.b.Store, n.b.Name); err != nil {
		n.result.Notes = append(n.result.Notes, "that it failed could not be stored: "+err.Error())
	}
}

// look reads both bundles, and says in the result's Reason why something is to be done. fresh tells that there
// is none yet, which nobody can run with.
func (n *bundleRun) look() (bundle []byte, fresh bool, err error) {
	n.step, n.inUse = StepLook, nil
	if err := n.open(n.ctx, n.b.Store, n.b.Name, n.o, n.result); err != nil {
		return nil, false, err
	}
	if n.now, err = currentVersion(n.ctx, n.b.Store, n.b.Name); err != nil && !errors.Is(err, secret.ErrCorrupt) {
		return nil, false, err
	}
	bundle, err = n.trusted()
	if err != nil {
		return nil, false, fmt.Errorf("asking for the trust bundle: %w", err)
	}
	now, version, err := n.b.Store.Read(n.ctx, n.b.Name, "")
	if err == nil {
		bundle, n.inUse = n.withNeeded(bundle, now)
	}
	n.stored = err == nil && sameCertificates(now, bundle)
	switch {
	case errors.Is(err, secret.ErrNotFound):
		n.result.Reason, fresh = "there is none yet", true
	case errors.Is(err, secret.ErrCorrupt) && n.o.Force:
		if err := moveAway(n.ctx, n.b.Store, n.b.Name); err != nil {
			return nil, false, err
		}
		n.result.Reason = "what is current is damaged"
	case errors.Is(err, secret.ErrCorrupt):
		return nil, false, damaged(n.ctx, err, n.b.Store, n.b.Name)
	case err != nil:
		return nil, false, err
	case !n.stored:
		n.result.Reason = "the roots of the authority are others"
	case n.record.Step != "" && !n.o.NoDeploy:
		n.result.Reason = "its deployment was begun and has not ended"
	}
	n.result.Version, n.roots = version, joinPEM(bundle, now)
	failed := n.record
	n.result.failing = n.result.Reason == "" && n.record.Step == "" && failed.clearFailure()
	return bundle, fresh, nil
}

// trusted is what all authorities of the users say that is to be trusted.
func (n *bundleRun) trusted() ([]byte, error) {
	ask, cancel := context.WithTimeout(n.ctx, askTimeout)
	defer cancel()
	var bundles [][]byte
	asked := make(map[string]bool)
	for _, user := range n.b.Users {
		if asked[user.Certificate.Authority] {
			continue
		}
		asked[user.Certificate.Authority] = true
		trust, err := n.r.authority(user).Trust(ask)
		if err != nil {
			return nil, err
		}
		bundles = append(bundles, trust.Bundle)
	}
	if len(bundles) == 1 {
		return bundles[0], nil
	}
	return joinPEM(bundles...), nil
}

func (n *bundleRun) rotate(outer context.Context) error {
	bundle, fresh, err := n.look() //nolint:contextcheck // the context of the run ends with its lease
	switch {
	case err != nil:
		return err
	case n.result.failing:
		n.record.clearFailure()
		return n.write(n.ctx, n.b.Store, n.b.Name) //nolint:contextcheck // the context of the run ends with its lease
	case n.result.Reason == "":
		return nil
	}
	if outer.Err() != nil {
		return ErrStopped
	}
	roots, err := n.accepted(bundle)
	if err != nil {
		return err
	}
	if !n.stored {
		if err := n.store(roots.PEM()); err != nil {
			return err
		}
	}
	if !n.o.NoDeploy {
		if err := n.deploy(outer); err != nil {
			return err
		}
	}
	n.step = StepDeploy
	if !n.o.NoDeploy || fresh || !slices.ContainsFunc(n.b.Users, Target.deployed) {
		n.record.succeeded("", n.r.now())
	} // else somebody still runs with the bundle of before
	if err := n.write(n.ctx, n.b.Store, n.b.Name); err != nil { //nolint:contextcheck // the context of the run ends with its lease
		return err
	}
	n.result.Outcome = map[bool]Outcome{true: Promoted, false: Rotated}[n.o.NoDeploy]
	return nil
}

// accepted is a bundle that may take the place of what is current.
func (n *bundleRun) accepted(bundle []byte) (*mtls.Bundle, error) {
	n.step = StepVerify
	roots, err := mtls.ParseBundle(n.b.TrustDomain, bundle)
	if err != nil {
		return nil, fmt.Errorf("%w: the trust bundle of the authority: %w", ErrUnfit, err)
	}
	return roots, n.inUse
}

// store writes the bundle, reads it back, and makes it current.
func (n *bundleRun) store(bundle []byte) error {
	if err := n.enter(StepStage, "storing it: %s", n.result.Reason); err != nil {
		return err
	}
	id, err := n.b.Store.Stage(n.ctx, n.b.Name, "", bundle)
	if err != nil {
		return err
	}
	durable.Step("rotate.bundle.staged")
	back, _, err := n.b.Store.Read(n.ctx, n.b.Name, id)
	if err != nil {
		return err
	}
	if !sameCertificates(back, bundle) {
		return fmt.Errorf("%w: the version %s of the trust bundle %s holds other roots than were written", ErrUnfit, id, n.b.Name)
	}
	if err := n.enter(StepPromote, "making %s current", id); err != nil {
		return err
	}
	n.record.Step, n.record.Version, n.record.Began, n.record.Restarted = StepDeploy, id, n.r.now().UTC(), nil
	if err := n.write(n.ctx, n.b.Store, n.b.Name); err != nil {
		return err
	}
	if err := n.b.Store.Replace(n.ctx, n.b.Name, id, n.now); err != nil {
		return err
	}
	n.now, n.result.Version = id, id
	durable.Step("rotate.bundle.promoted")
	return nil
}

func (n *bundleRun) enter(step Step, format string, args ...any) error {
	n.step = step
	if err := n.lease.sure(n.ctx); err != nil {
		return err
	}
	durable.Step("rotate.bundle." + string(step))
	n.say(step, format, args...)
	return nil
}

// deploy restarts the users that are restarted at all, and has the instances of those replaced that are rolled out.
func (n *bundleRun) deploy(outer context.Context) error {
	for _, user := range n.b.Users {
		if user.Rollout != nil {
			if err := n.rollOut(outer, user); err != nil {
				return fmt.Errorf("%s: %w", user.Workload.Name, err)
			}
		}
		if !user.Restart {
			continue
		}
		if err := n.enter(StepDeploy, "restarting the instances of %s, one after the other", user.Workload.Name); err != nil {
			return err
		}
		sightings, err := n.r.observer(user).Look(n.ctx, user) //nolint:contextcheck // the context of the run ends with its lease
		if err != nil {
			return fmt.Errorf("%w: %w", ErrNotObserved, err)
		}
		instances := make(map[string]bool)
		for _, sighting := range sightings {
			if !sighting.Away && !slices.Contains(n.record.Restarted, user.Workload.Name+"/"+sighting.Instance) {
				instances[sighting.Instance] = true
			}
		}
		for _, instance := range slices.Sorted(maps.Keys(instances)) {
			if outer.Err() != nil {
				return ErrStopped
			}
			if err := n.restart(outer, user, instance); err != nil {
				return err
			}
		}
	}
	return nil
}

// rollOut has the instances of a user replaced, and writes down that it was: one after the other, so that a root that they
// do not start with costs one of them at most.
func (n *bundleRun) rollOut(outer context.Context, user Target) error {
	name := user.Workload.Name
	serial := ReadStatus(n.ctx, user).Serial                       //nolint:contextcheck // the context of the run ends with its lease
	if slices.Contains(n.record.Restarted, name) || serial == "" { // without a certificate none of them runs
		return nil
	}
	if outer.Err() != nil {
		return ErrStopped
	}
	if err := n.enter(StepDeploy, "replacing the instances of %s by new ones", name); err != nil {
		return err
	}
	write := func() error { return n.write(n.ctx, n.b.Store, n.b.Name) }
	o := &rolling{r: n.r, t: user, outer: outer, ctx: n.ctx, lease: n.lease, record: &n.record, keep: write, say: n.say}
	if err := o.run(StepDeploy, n.result.Version+"/"+name); err != nil { //nolint:contextcheck // the context of the run ends with its lease
		if errors.Is(err, ErrRolloutFailed) {
			n.record.Rollout, n.record.RolloutOf = "", "" // the next try is another one
		}
		return err
	}
	one := &run{r: n.r, t: user, outer: outer, ctx: n.ctx, lease: n.lease, step: StepDeploy, result: &Result{Serial: serial}}
	one.record, one.bundle = n.record, n.roots
	if err := one.observe("", ""); err != nil {
		return err
	}
	n.record.Restarted = append(n.record.Restarted, name)
	n.record.Rollout, n.record.RolloutOf = "", ""
	return write()
}

// restart restarts an instance, and writes down that it was seen to serve again: when another one fails, this one is not
// restarted at every further try.
func (n *bundleRun) restart(outer context.Context, user Target, instance string) error {
	if err := n.lease.sure(n.ctx); err != nil { //nolint:contextcheck // the context of the run ends with its lease
		return err
	}
	n.say(StepDeploy, "restarting %s", instance)
	if err := n.r.config.Deployer.Restart(n.ctx, user.Workload.Name, instance); err != nil { //nolint:contextcheck // as above
		return fmt.Errorf("restarting %s: %w", instance, err)
	}
	durable.Step("rotate.restarted")
	one := &run{r: n.r, t: user, outer: outer, ctx: n.ctx, lease: n.lease, step: StepDeploy, result: &Result{}}
	if err := one.observe("", instance); err != nil {
		return err
	}
	n.record.Restarted = append(n.record.Restarted, user.Workload.Name+"/"+instance)
	return n.write(n.ctx, n.b.Store, n.b.Name) //nolint:contextcheck // as above
}
