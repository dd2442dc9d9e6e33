package rotate

import (
	"errors"
	"slices"
	"testing"
	"time"

	"countersign.dev/mesh"
	"countersign.dev/secret"
)

// TestNextTry says when what failed is tried again.
func TestNextTry(t *testing.T) {
	at := time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	far := at.Add(365 * 24 * time.Hour)
	for _, test := range []struct {
		failures int64
		step     Step
		end      time.Time
		want     time.Duration // less than nothing: at once
	}{
		{0, StepIssue, far, -1},
		{1, StepLook, far, -1},
		{1, StepRequest, far, -1},
		{1, StepIssue, far, time.Hour},
		{2, StepObserve, far, 2 * time.Hour},
		{3, StepDeploy, far, 4 * time.Hour},
		{5, StepDeploy, far, 16 * time.Hour},
		{6, StepDeploy, far, 24 * time.Hour},
		{1 << 40, StepDeploy, far, 24 * time.Hour},
		{5, StepIssue, time.Time{}, 16 * time.Hour},           // there is no certificate
		{5, StepIssue, at.Add(48 * time.Hour), 6 * time.Hour}, // several tries before the end
		{5, StepIssue, at.Add(8 * time.Hour), time.Hour},
		{5, StepIssue, at.Add(time.Hour), -1},
		{5, StepIssue, at.Add(-time.Hour), -1},
	} {
		got := Record{Failures: test.failures, LastErrorStep: test.step, LastErrorTime: at}.nextTry(test.end)
		if want := at.Add(test.want - waitSlack); test.want < 0 && !got.IsZero() || test.want >= 0 && !got.Equal(want) {
			t.Errorf("%d failures, at %s, the end in %s: again at %s", test.failures, test.step, test.end.Sub(at), got)
		}
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
