package rotate

import (
	"context"
	"errors"
	"fmt"

	"countersign.dev/durable"
	"countersign.dev/secret"
)

// What follows is a rotation in steps that somebody else orders, under a version's id that somebody else has chosen: AWS Secrets
// Manager's own rotation. Each may be ordered again.

// ErrBusy says that another version is being brought in.
var ErrBusy = errors.New("another rotation was begun and has not ended; the next pass of `countersign rotate` ends it, and then this is right")

// ErrTooEarly says that a version is to be made current which was not obtained yet.
var ErrTooEarly = errors.New("the steps are not in their order")

// Obtain brings a version with an id as far as pending: it has a key certified, stores the credential and checks it. A version that
// is there and will do is left. Whatever fails, the version stays pending, so that Obtain may be called again.
func (r *Rotator) Obtain(ctx context.Context, t Target, version string) Result {
	return r.ordered(ctx, t, Options{}, func(n *run) error { return n.obtainAs(version) }) //nolint:contextcheck // the context of the run ends with its lease
}

// Bring makes a version current that [Rotator.Obtain] has brought as far as pending, and goes on as a rotation does: it is deployed
// and observed, and taken back when that fails. One that is not there is [ErrTooEarly], and nothing is changed.
func (r *Rotator) Bring(ctx context.Context, t Target, version string, o Options) Result {
	return r.ordered(ctx, t, o, func(n *run) error { return n.bringAs(version) }) //nolint:contextcheck // the context of the run ends with its lease
}

// Check reads a version and checks it as a rotation does before it makes one current. It takes no lease and writes nothing. A version that
// will not do is [ErrUnfit].
func (r *Rotator) Check(ctx context.Context, t Target, version string) error {
	result := Result{Service: t.Workload.Name, Secret: t.Secret}
	n := &run{r: r, t: t, o: Options{DryRun: true}, outer: ctx, ctx: ctx, result: &result}
	err := r.check(t)
	if err == nil {
		err = secret.CheckVersion(version)
	}
	if err == nil {
		err = n.look() //nolint:contextcheck // the run has its own
	}
	if err == nil {
		_, err = n.leafOf(version)
	}
	if err != nil {
		return fmt.Errorf("checking the version %.80s of %s: %w", version, t.Secret, err)
	}
	return nil
}

// ordered does a work with the lease, after a look at what there is.
func (r *Rotator) ordered(ctx context.Context, t Target, o Options, work func(*run) error) Result {
	result := Result{Service: t.Workload.Name, Secret: t.Secret, Store: t.StoreName, Outcome: Nothing}
	if err := r.check(t); err != nil {
		result.fail(StepLook, err)
		return result
	}
	n := &run{r: r, t: t, o: o, outer: ctx, ctx: ctx, step: StepLease, result: &result}
	r.leased(ctx, n, func(n *run) error { //nolint:contextcheck // the context of the run ends with its lease
		if err := n.look(); err != nil {
			return err
		}
		if n.abandoned != "" {
			if err := n.write(n.ctx, n.t.Store, n.t.Secret); err != nil {
				return err
			}
		}
		n.result.Reason = "it was asked for"
		return work(n)
	})
	return result
}

// isBusy is [ErrBusy] when another version than one is being brought in.
func (n *run) isBusy(version string) error {
	if n.record.Step != "" && n.record.Version != version {
		return fmt.Errorf("%w: the version %s is at the step %s", ErrBusy, n.record.Version, n.record.Step)
	}
	return nil
}

func (n *run) obtainAs(version string) error {
	if err := errors.Join(secret.CheckVersion(version), secret.CheckVersion(version+requestSuffix), n.isBusy(version)); err != nil {
		return err
	}
	if _, ok := n.r.authority(n.t).(Exporter); ok {
		return fmt.Errorf("%w: the authority of %s makes keys and renews by itself; let its own events rotate it, and take the store's rotation away", secret.ErrInvalid, n.t.Workload.Name)
	}
	if n.current.version == version {
		return nil
	}
	n.version = version
	leaf, err := n.leafOf(version)
	if err == nil {
		return n.staged(leaf)
	}
	if !errors.Is(err, secret.ErrNotFound) {
		return err // there is something under this id, and it will never be anything else
	}
	if err := n.reachable(); err != nil {
		return err
	}
	if err := n.begin(StepRequest, "%s", n.result.Reason); err != nil {
		return err
	}
	if err := n.believed(); err != nil {
		return err
	}
	request, err := n.readRequest(version + requestSuffix)
	if err == nil && request == nil {
		if err = n.t.Keeper.Remove(n.ctx, n.t.keySecret(), version+requestSuffix); err == nil {
			request, err = n.newRequest(version)
		}
	}
	if err != nil {
		return err
	}
	due, err := n.complete(request)
	request.clear()
	if errors.Is(err, ErrRequest) {
		// Asked again, the answer would be the same.
		err = errors.Join(err, n.t.Keeper.Remove(n.ctx, n.t.keySecret(), version+requestSuffix))
	}
	if err != nil {
		return err
	}
	if due {
		return fmt.Errorf("%w: it would have to be replaced at once", ErrUnfit)
	}
	if leaf, err = n.leafOf(version); err != nil {
		return err
	}
	return n.staged(leaf)
}

// staged notes in the result what is pending.
func (n *run) staged(leaf brought) error {
	durable.Step("rotate.ordered.staged")
	n.result.Outcome = Staged
	n.result.Version, n.result.Serial, n.result.NotAfter, n.result.Due = n.version, leaf.serial, leaf.notAfter, leaf.due
	return nil
}

func (n *run) bringAs(version string) error {
	if err := errors.Join(secret.CheckVersion(version), n.isBusy(version)); err != nil {
		return err
	}
	if n.record.Step == StepRollback {
		return n.finishBack()
	}
	if n.current.version == version && n.record.Step == "" {
		return nil
	}
	n.version = version
	if n.record.Step == "" {
		// A step that comes too early changes nothing: the one that has to come first can still be done.
		if _, err := n.leafOf(version); errors.Is(err, secret.ErrNotFound) {
			return fmt.Errorf("%w: there is no version %s of %s to make current: it has to be obtained first (the step createSecret): %w", ErrTooEarly, version, n.t.Secret, err)
		}
	}
	if err := n.bring(); err != nil {
		return err
	}
	return n.t.Keeper.Remove(n.ctx, n.t.keySecret(), version+requestSuffix)
}
