package rotate

import (
	"context"
	"errors"
	"testing"
	"time"

	"countersign.dev/secret"
)

// TestTwoAtOnce tells the second one who is at it: at once when that process lives, soon when its lease is renewed.
func TestTwoAtOnce(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	w.first()
	w.config.leaseTTL = 10 * time.Second
	hold := make(chan struct{})
	held := make(chan struct{})
	first := w.config
	first.Holder = "countersign rotate on elsewhere, pid 1, user nobody"
	first.Progress = func(_ string, step Step, _ string) {
		if step == StepVerify {
			close(held)
			<-hold
		}
	}
	r, err := New(first)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan Result)
	go func() { done <- r.Rotate(t.Context(), w.target, Options{Force: true}) }()
	<-held
	result := w.must(Options{Force: true}, Failed)
	if !errors.Is(result.Err, secret.ErrHeld) {
		t.Errorf("%v, want ErrHeld", result.Err)
	}
	says(t, result.Error, "at the step lease", first.Holder)
	if s := ReadStatus(t.Context(), w.target); s.Holder != first.Holder {
		t.Errorf("%q holds it", s.Holder)
	}
	close(hold)
	if result := <-done; result.Outcome != Rotated {
		t.Errorf("the first one: %v", result.Err)
	}
	w.check()
	if w.authority.issued() != 2 {
		t.Errorf("%d were issued", w.authority.issued())
	}
}

// TestDeadHolder waits for what a dead process has left.
func TestDeadHolder(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	if _, err := w.files.Lease(t.Context(), w.target.Secret, "countersign rotate on elsewhere, pid 1, user nobody", time.Second); err != nil {
		t.Fatal(err)
	}
	w.first()
	says(t, w.progress.String(), "seems to be a dead one's", "on elsewhere")
	w.check()
}

// TestLongLease does not wait for a lease that is meant to last.
func TestLongLease(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	if _, err := w.files.Lease(t.Context(), w.target.Secret, "maintenance", time.Hour); err != nil {
		t.Fatal(err)
	}
	says(t, w.must(Options{}, Failed).Error, "maintenance")
}

// lossy gives leases that are lost before the Nth renewal.
type lossy struct {
	keeper
	renewals int
}

type lossyLease struct {
	Lease
	l *lossy
}

func (l *lossy) Lease(ctx context.Context, name, holder string, ttl time.Duration) (Lease, error) {
	lease, err := l.keeper.Lease(ctx, name, holder, ttl)
	return lossyLease{lease, l}, err
}

func (l lossyLease) Renew(ctx context.Context) error {
	if l.l.renewals--; l.l.renewals < 0 {
		return secret.ErrLeaseLost
	}
	return l.Lease.Renew(ctx)
}

// TestLeaseLost stops at once, at every step, and writes nothing more.
func TestLeaseLost(t *testing.T) {
	for renewals := 0; ; renewals++ {
		w := newWorld(t, secret.LayoutSeparate)
		w.first()
		target := w.target
		target.Keeper = &lossy{keeper: keeper{w.files}, renewals: renewals}
		result := w.rotator().Rotate(t.Context(), target, Options{Force: true})
		w.checkCurrent()
		if result.Err == nil {
			if renewals < 6 {
				t.Errorf("the lease is looked at %d times", renewals)
			}
			break
		}
		if !errors.Is(result.Err, secret.ErrLeaseLost) {
			t.Errorf("renewal %d: %v, want ErrLeaseLost", renewals, result.Err)
		}
		if s := ReadStatus(t.Context(), w.target); s.Failures != 0 {
			t.Errorf("renewal %d: it was recorded without the lease", renewals)
		}
		if again := w.run(Options{}); again.Err != nil {
			t.Errorf("renewal %d: the next rotation: %v", renewals, again.Err)
		}
		w.check()
	}
}

// TestLeaseLostInTheBackground ends a wait that lasts.
func TestLeaseLostInTheBackground(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	w.first()
	w.fleet.reload = false
	w.config.Timeout, w.config.leaseTTL = time.Minute, time.Second
	target := w.target
	target.Keeper = &lossy{keeper: keeper{w.files}, renewals: 7}
	if result := w.rotator().Rotate(t.Context(), target, Options{Force: true}); !errors.Is(result.Err, secret.ErrLeaseLost) {
		t.Errorf("%v, want ErrLeaseLost", result.Err)
	}
}
