package deliver

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// settle sees to it that what is in force and wanted is also served.
func (w *Watcher) settle(ctx context.Context, v *delivery) error {
	v.n, v.want = v.before, v.have
	var unfit error
	if w.cred == nil || !w.credOf.same(v.want.credential()) {
		w.cred, unfit = v.offer.Check(w.expect(v))
		w.credOf = v.want.credential()
	}
	w.inForce(v.d, v.n, v.want)
	seen := w.look(ctx, v.plan, v.want)
	if unfit != nil {
		return unfit
	}
	proved, err := v.d.Proved()
	if err != nil {
		return err
	}
	provable, shown := w.provable(v.plan), seen.all(v.want, w.roots())
	switch {
	case provable && shown, !provable && proved == v.n:
		w.forget(v.want)
		w.alone = time.Time{}
		if proved == v.n {
			return nil
		}
		return w.locked(v, func() error { return w.noteProof(ctx, v) })
	case provable && seen.silent():
		return w.silence(ctx, v, fmt.Errorf("%w: %s", errUnserved, seen.why(v.want, w.roots())), proved)
	}
	w.alone = time.Time{}
	if err := w.remembered(v.want); err != nil {
		return err
	}
	return w.locked(v, func() error { return w.again(ctx, v, proved) })
}

// silence goes back when nobody serves what is in force for too long: the proxy may be unable to start with it.
func (w *Watcher) silence(ctx context.Context, v *delivery, cause error, proved uint64) error {
	if w.alone.IsZero() {
		w.alone = time.Now()
	}
	if proved == 0 || proved == v.n || time.Since(w.alone) < w.cfg.Patience {
		return cause
	}
	w.alone = time.Time{}
	return w.locked(v, func() error { return w.giveUp(ctx, v, cause, false) })
}

// again tells the proxy to take what is in force and wanted: it was never told, or shows something else.
func (w *Watcher) again(ctx context.Context, v *delivery, proved uint64) error {
	err := w.told(ctx, v.plan, v.want, w.cred)
	switch {
	case err == nil:
		return w.noteProof(ctx, v)
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, errUnserved):
		return err
	case proved != 0 && proved != v.n:
		return w.giveUp(ctx, v, err, true)
	}
	err = versioned(v.want, err)
	w.remember(v, err)
	return err
}

// giveUp goes back from what is in force and was never proved.
func (w *Watcher) giveUp(ctx context.Context, v *delivery, cause error, told bool) error {
	w.cred = nil // it belongs to what is gone back from
	v.have = Made{}
	err := versioned(v.want, w.back(ctx, v, cause, told))
	w.remember(v, err)
	return err
}

// noteProof notes that the generation in force is served.
func (w *Watcher) noteProof(ctx context.Context, v *delivery) error {
	w.endOlder(ctx, v.d, v.n)
	if err := v.d.Prove(v.n); err != nil {
		return err
	}
	w.forget(v.want)
	w.cfg.Log.InfoContext(ctx, "the proxy serves what is in force", "version", v.want.Version, "serial", v.want.Serial, "generation", v.n, "seen", w.proof(v.plan))
	return nil
}
