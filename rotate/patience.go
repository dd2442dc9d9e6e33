package rotate

import (
	"context"
	"errors"
	"fmt"
	"time"

	"countersign.dev/budget"
)

// Times between tries of what failed, for a schedule that comes about each hour; each is twice the one before.
const (
	firstWait = time.Hour
	lastWait  = 24 * time.Hour
	// lastUnfit is lastWait where what is current will not do, so that nobody may be served.
	lastUnfit = time.Hour
	// waitSlack is how much sooner something is tried than these times say: runs of a schedule last for a quarter of an hour, and do not
	// begin to the minute.
	waitSlack = 20 * time.Minute
	// triesLeft is how often something is tried at least before what is current ends.
	triesLeft = 8
)

// freeError says of another error that nothing was spent.
type freeError struct{ error }

func (f freeError) Unwrap() error { return f.error }

// Free marks an error of an [Authority] of which it is certain that nothing was issued, and that a repetition under the same id counts nothing
// once more. A rotation that failed so is tried again whenever somebody comes by. The text stays what it is.
func Free(err error) error {
	if err == nil {
		return nil
	}
	return freeError{err}
}

// IsFree tells whether an error is marked by [Free].
func IsFree(err error) bool {
	_, free := errors.AsType[freeError](err)
	return free
}

// costly tells whether a rotation that failed at a step, with an error, has asked for a certificate, or had instances replaced, for nothing.
// What failed before costs nothing to try again, nor does what was refused for a spent budget, or for certain.
func costly(step Step, err error) bool {
	if step == StepLease || step == StepLook || step == StepRequest {
		return false
	}
	// A request that can never be answered is replaced by another one, which is counted anew.
	return step != StepIssue || errors.Is(err, ErrRequest) || errors.Is(err, ErrUnfit) || !IsFree(err) && !errors.Is(err, budget.ErrSpent)
}

// nextTry is when a rotation is to be tried again that failed the last time, after it had cost something. Its current certificate ends at a time,
// which is zero when there is none, and is unfit when it will not do. It is zero when it is to be tried at once.
func (r Record) nextTry(end time.Time, unfit bool) time.Time {
	if !r.lastCost() {
		return time.Time{}
	}
	pause := min(lastWait, firstWait<<min(r.Costly-1, 10))
	if unfit {
		pause = min(pause, lastUnfit)
	}
	if !end.IsZero() {
		pause = min(pause, end.Sub(r.LastCostly)/triesLeft)
	}
	if pause <= waitSlack {
		return time.Time{}
	}
	return r.LastCostly.Add(pause - waitSlack)
}

// waits tells whether a patient rotation of a target is to be left for later, and gives its result then. What is in the middle, or on its
// way back, is not left so.
func (r *Rotator) waits(ctx context.Context, t Target, o Options) (Result, bool) {
	record, err := readRecord(ctx, t.Store, t.Secret)
	if err != nil || record.Step != "" || !r.now().Before(record.nextTry(time.Time{}, false)) {
		return Result{}, false // what cannot be read, the rotation itself complains about
	}
	o.DryRun = true
	looked := r.Rotate(ctx, t, o)
	if looked.Outcome != WouldRotate {
		return Result{}, false // it is mended, or its look costs nothing
	}
	return r.left(looked, record, record.nextTry(looked.NotAfter, looked.unfit))
}

// bundleWaits is waits for a trust bundle: it is in nobody's way until instances were replaced for it.
func (r *Rotator) bundleWaits(ctx context.Context, b SharedBundle, o Options) (Result, bool) {
	record, err := readRecord(ctx, b.Store, b.Name)
	if err != nil || record.LastErrorStep != StepDeploy || !r.now().Before(record.nextTry(time.Time{}, false)) {
		return Result{}, false
	}
	o.DryRun = true
	looked := r.RotateBundle(ctx, b, o)
	if looked.Outcome != WouldRotate {
		return Result{}, false
	}
	return r.left(looked, record, record.nextTry(firstEnd(ctx, b), false))
}

// firstEnd is when the first of the certificates ends whose owners share a bundle; zero when they have none.
func firstEnd(ctx context.Context, b SharedBundle) (end time.Time) {
	for _, user := range b.Users {
		if s := ReadStatus(ctx, user); !s.NotAfter.IsZero() && (end.IsZero() || s.NotAfter.Before(end)) {
			end = s.NotAfter
		}
	}
	return end
}

// left makes of a look the result of a rotation that is left until a time.
func (r *Rotator) left(looked Result, record Record, next time.Time) (Result, bool) {
	if !r.now().Before(next) {
		return Result{}, false
	}
	looked.Outcome, looked.Next, looked.LastError = Waiting, next.UTC(), record.LastError
	looked.Notes = append(looked.Notes, fmt.Sprintf("it has failed %d times, the last time at %s, at the step %s: %s; it is tried again after %s",
		record.Failures, record.LastErrorTime.UTC().Format(time.RFC3339), record.LastErrorStep, record.LastError, next.UTC().Format(time.RFC3339)))
	return looked, true
}
