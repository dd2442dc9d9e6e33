package rotate

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"countersign.dev/budget"
	"countersign.dev/mesh"
	"countersign.dev/secret"
)

// TestNextTry says when what failed is tried again.
func TestNextTry(t *testing.T) {
	plain := errors.New("no")
	at := time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	far := at.Add(365 * 24 * time.Hour)
	for _, test := range []struct {
		costly int64
		step   Step
		err    error
		end    time.Time
		unfit  bool
		want   time.Duration // less than nothing: at once
	}{
		{0, StepLook, plain, far, false, -1},
		{0, StepRequest, plain, far, false, -1},
		{0, StepIssue, fmt.Errorf("asking: %w", budget.ErrSpent), far, false, -1},
		{0, StepIssue, fmt.Errorf("asking: %w", Free(plain)), far, false, -1},
		{7, StepIssue, budget.ErrSpent, far, false, -1}, // what failed before has had its pause
		{0, StepIssue, plain, far, false, time.Hour},
		{0, StepIssue, errors.Join(Free(plain), ErrRequest), far, false, time.Hour}, // another request is counted anew
		{0, StepIssue, errors.Join(budget.ErrSpent, ErrUnfit), far, false, time.Hour},
		{1, StepObserve, plain, far, false, 2 * time.Hour},
		{2, StepDeploy, plain, far, false, 4 * time.Hour},
		{4, StepDeploy, plain, far, false, 16 * time.Hour},
		{5, StepDeploy, plain, far, false, 24 * time.Hour},
		{1 << 40, StepDeploy, plain, far, false, 24 * time.Hour},
		{1 << 40, StepDeploy, plain, far, true, time.Hour}, // nobody may be served
		{4, StepIssue, plain, time.Time{}, true, time.Hour},
		{4, StepIssue, plain, at.Add(-time.Hour), true, -1},
		{4, StepIssue, plain, time.Time{}, false, 16 * time.Hour},           // there is no certificate
		{4, StepIssue, plain, at.Add(48 * time.Hour), false, 6 * time.Hour}, // several tries before the end
		{4, StepIssue, plain, at.Add(8 * time.Hour), false, time.Hour},
		{4, StepIssue, plain, at.Add(time.Hour), false, -1},
		{4, StepIssue, plain, at.Add(-time.Hour), false, -1},
	} {
		r := Record{Failures: 30, Costly: test.costly, LastCostly: at.Add(-100 * time.Hour)}
		r.failed(test.step, test.err, at)
		got := r.nextTry(test.end, test.unfit)
		if want := at.Add(test.want - waitSlack); test.want < 0 && !got.IsZero() || test.want >= 0 && !got.Equal(want) {
			t.Errorf("%d cost something before, %v at %s, the end in %s: again at %s", test.costly, test.err, test.step, test.end.Sub(at), got)
		}
	}
	var none Record
	if got := none.nextTry(far, true); !got.IsZero() {
		t.Errorf("nothing has failed: again at %s", got)
	}
	if Free(nil) != nil || Free(plain).Error() != plain.Error() || !errors.Is(Free(plain), plain) || IsFree(plain) || !IsFree(fmt.Errorf("asking: %w", Free(plain))) {
		t.Error("what is free is another error")
	}
}

// TestFree tries at each run what costs nothing, however often it has failed, and says nothing of waiting.
func TestFree(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	w.target.Certificate.TTL, w.target.Certificate.RenewAfter = mesh.Duration(22*time.Hour), mesh.Duration(21*time.Hour)
	now := time.Now()
	w.config.Now = func() time.Time { return now }
	w.first()
	for _, free := range []error{fmt.Errorf("counting: %w", budget.ErrSpent), Free(errors.New("denied"))} {
		w.authority.answers, w.authority.asked = map[string][]byte{}, nil
		refusing := &refusing{authority: w.authority, why: free}
		w.target.Authority = refusing
		for range 5 {
			if r := w.must(Options{Patient: true, Early: true}, Failed); !r.Next.IsZero() || !errors.Is(r.Err, free) {
				t.Errorf("%s: again at %s, %v", free, r.Next, r.Err)
			}
			now = now.Add(time.Minute)
		}
		refusing.why = errors.New("no answer") // it may have been issued
		w.must(Options{Patient: true, Early: true}, Failed)
		w.must(Options{Patient: true, Early: true}, Waiting)
		refusing.why = nil
		w.must(Options{Early: true}, Rotated)
	}
}

// TestPatienceWithTheUnfit comes by each hour to a service whose certificate was revoked, far from its end.
func TestPatienceWithTheUnfit(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	w.target.Certificate.TTL, w.target.Certificate.RenewAfter = mesh.Duration(22*time.Hour), mesh.Duration(21*time.Hour)
	now := time.Now()
	w.config.Now = func() time.Time { return now }
	w.config.Timeout = 20 * time.Millisecond
	first := w.first()
	w.target.Authority = &refusing{authority: w.authority, why: errors.New("no answer")}
	for range 3 {
		w.must(Options{Early: true}, Failed)
	}
	if r := w.must(Options{Patient: true, Early: true}, Waiting); r.Next.Sub(now) < time.Hour {
		t.Fatalf("while it is fit it waits until %s", r.Next)
	}
	w.authority.revoke(w.authority.signer, first.Serial)
	for hour := range 4 {
		r := w.must(Options{Patient: true}, map[bool]Outcome{true: Waiting, false: Failed}[hour == 0])
		if wait := r.Next.Sub(now); wait <= 0 || wait > time.Hour {
			t.Errorf("after %d hours: %s, again in %s", hour, r.Outcome, wait)
		}
		now = now.Add(time.Hour)
	}
}

// TestPatience comes by each hour of some days to a service whose endpoints take no new certificate: each try costs one.
func TestPatience(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	w.target.Certificate.TTL, w.target.Certificate.RenewAfter = mesh.Duration(20*time.Hour), mesh.Duration(19*time.Hour)
	now := time.Now()
	w.config.Now = func() time.Time { return now }
	w.config.Timeout = 20 * time.Millisecond
	end := w.first().NotAfter
	w.fleet.refuses = func(string) bool { return true }

	var tries []int
	for hour := range 16 {
		result := w.run(Options{Patient: true, Early: true})
		switch result.Outcome {
		case Waiting:
			if !now.Before(result.Next) || result.Err != nil {
				t.Fatalf("after %d hours it waits until %s, %v", hour, result.Next, result.Err)
			}
			says(t, result.LastError, "not every endpoint serves")
			says(t, result.Notes[len(result.Notes)-1], "it is tried again after "+result.Next.Format(time.RFC3339), "at the step observe")
		case RolledBack:
			tries = append(tries, hour)
			if result.Next.IsZero() != (end.Sub(now) <= triesLeft*waitSlack) {
				t.Errorf("after %d hours it is tried again at %s", hour, result.Next)
			}
		default:
			t.Fatalf("after %d hours: %s, %v", hour, result.Outcome, result.Err)
		}
		now = now.Add(time.Hour)
	}
	if want := []int{0, 1, 3, 5, 7, 9, 11, 12, 13, 14, 15}; !slices.Equal(tries, want) {
		t.Errorf("it was tried after these hours: %v, want %v; the certificate ends after %s", tries, want, end.Sub(now)+16*time.Hour)
	}
	// Whoever comes by himself has not to wait, and what is mended is gone on with.
	if r := w.run(Options{Patient: true, Force: true}); r.Outcome != RolledBack {
		t.Errorf("forced: %s, %v", r.Outcome, r.Err)
	}
	if r := w.run(Options{Early: true}); r.Outcome != RolledBack {
		t.Errorf("by hand: %s, %v", r.Outcome, r.Err)
	}
	if r := w.must(Options{Patient: true}, Nothing); r.failing {
		t.Error("what is not due any more still fails")
	}
	if s := ReadStatus(t.Context(), w.target); s.Failures != 0 {
		t.Errorf("%+v", s)
	}
}

// TestPatienceOfBundles comes by to a bundle with which no instance starts.
func TestPatienceOfBundles(t *testing.T) {
	w := newWorld(t, secret.LayoutExported)
	w.target.Restart, w.fleet.reload = true, false
	w.target.Certificate.TTL, w.target.Certificate.RenewAfter = mesh.Duration(20*time.Hour), mesh.Duration(19*time.Hour)
	began := time.Now()
	now := began
	w.config.Now = func() time.Time { return now }
	w.first()
	next := newHierarchy(t, "next")
	w.authority.bundle = append(w.authority.bundle, next)
	broken := errors.New("it does not start with that")
	w.fleet.broken = map[string]error{"orders-1": broken, "orders-2": broken}
	come := func(o Options) Result {
		return w.rotator().RotateBundle(t.Context(), SharedBundles([]Target{w.target})[0], o)
	}
	tried := func(o Options, want bool) {
		t.Helper()
		before := len(w.fleet.restarts)
		r := come(o)
		if got := len(w.fleet.restarts) > before; got != want || got != errors.Is(r.Err, broken) || got == (r.Outcome == Waiting) {
			t.Errorf("after %s it was tried %t: %s, %v", now.Sub(began), got, r.Outcome, r.Err)
		}
	}
	tried(Options{Patient: true}, true)
	tried(Options{Patient: true}, false)
	tried(Options{}, true)
	now = now.Add(time.Hour)
	tried(Options{Patient: true}, false)
	now = now.Add(time.Hour)
	tried(Options{Patient: true}, true)
	w.fleet.broken = nil
	tried(Options{Patient: true}, false)
	if r := come(Options{}); r.Outcome != Rotated || r.Err != nil {
		t.Errorf("mended: %s, %v", r.Outcome, r.Err)
	}
	if r := come(Options{Patient: true}); r.Outcome != Nothing || r.Err != nil {
		t.Errorf("and then: %s, %v", r.Outcome, r.Err)
	}
}
