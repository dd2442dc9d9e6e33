package rotate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
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

// TestWait waits for another rotation, and does not do what that one has done, though it is asked to: of this machine, or of another
// one, of which it is not known whether it lives.
func TestWait(t *testing.T) {
	for _, o := range []Options{{}, {Force: true}, {Early: true}} {
		waitFor(t, Holder(), "waiting, for 1m0s at most: another rotation of it is under way, at the step promote, begun at 2", o)
		waitFor(t, "rotate elsewhere", "the lease of rotate elsewhere seems to be a dead one's", o)
	}
}

// waitFor rotates while a holder does, who goes on when it is said that he is waited for.
func waitFor(t *testing.T, holder, said string, o Options) {
	t.Helper()
	w := newWorld(t, secret.LayoutJSON)
	before := w.first()
	w.config.leaseTTL, w.config.Wait = 10*time.Second, time.Minute
	first, second := w.config, w.config
	first.Holder = holder
	held, wait := make(chan struct{}), make(chan struct{})
	goOn := sync.OnceFunc(func() { close(wait) })
	first.Progress = func(_ string, step Step, _ string) {
		if step == StepDeploy {
			close(held)
			<-wait
		}
	}
	second.Progress = func(_ string, step Step, text string) {
		if step == StepLease && strings.HasPrefix(text, said) && strings.Contains(text, holder) {
			goOn()
		}
	}
	all := make([]*Rotator, 2)
	for i, config := range []Config{first, second} {
		r, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		all[i] = r
	}
	done := make(chan Result)
	go func() { done <- all[0].Rotate(t.Context(), w.target, Options{Force: true}) }()
	<-held
	late := all[1].Rotate(t.Context(), w.target, o)
	goOn()
	if late.Err != nil || late.Outcome != Nothing {
		t.Errorf("%+v: %s, %v", o, late.Outcome, late.Err)
	}
	if o.Force || o.Early {
		says(t, strings.Join(late.Notes, "; "), "what it brought was not replaced once more")
	}
	if result := <-done; result.Outcome != Rotated || late.Serial != result.Serial || late.Serial == before.Serial {
		t.Errorf("%+v: the first one: %v, %s", o, result.Err, result.Serial)
	}
	if w.authority.issued() != 2 {
		t.Errorf("%+v: %d were issued", o, w.authority.issued())
	}
	w.check()
}

// TestWaitEnds gives up after the time that it was given, or when it is told to end.
func TestWaitEnds(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	w.first()
	lease, err := w.files.Lease(t.Context(), w.target.Secret, "maintenance", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	w.config.Wait = 50 * time.Millisecond
	began := time.Now()
	if r := w.must(Options{Force: true}, Failed); !errors.Is(r.Err, secret.ErrHeld) || time.Since(began) < w.config.Wait {
		t.Errorf("after %s: %v", time.Since(began), r.Err)
	}
	w.config.Wait = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	w.config.Progress = func(_ string, step Step, _ string) {
		if step == StepLease {
			cancel()
		}
	}
	if r := w.rotator().Rotate(ctx, w.target, Options{Force: true}); !errors.Is(r.Err, ErrStopped) {
		t.Errorf("told to end: %v", r.Err)
	}
	if err := lease.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.config.Progress = nil
	w.must(Options{Force: true}, Rotated)
}

// TestBundleOfTwo waits for whoever is at the bundle that both share, or needs no lease when there is nothing to do.
func TestBundleOfTwo(t *testing.T) {
	w := newWorld(t, secret.LayoutExported)
	w.first()
	lease, err := w.files.Lease(t.Context(), w.target.Bundle, "the other one", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	w.config.bundleWait = time.Minute
	w.must(Options{Force: true}, Rotated) // nothing is to be done about the bundle
	w.authority.bundle = append(w.authority.bundle, newHierarchy(t, "second"))
	w.config.Progress = func(_ string, step Step, text string) {
		if step == StepLease && strings.HasPrefix(text, "waiting, for 1m0s at most") {
			if err := lease.Release(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
	w.must(Options{}, Nothing)
	if got := len(w.bundle()); got != 2 {
		t.Errorf("the bundle has %d roots", got)
	}
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

// shaky gives leases of which one renewal fails, and all others are good.
type shaky struct {
	keeper
	renewals int
	fails    error
}

type shakyLease struct {
	Lease
	s *shaky
}

func (s *shaky) Lease(ctx context.Context, name, holder string, ttl time.Duration) (Lease, error) {
	lease, err := s.keeper.Lease(ctx, name, holder, ttl)
	return shakyLease{lease, s}, err
}

func (l shakyLease) Renew(ctx context.Context) error {
	if l.s.renewals--; l.s.renewals == -1 {
		return l.s.fails
	}
	return l.Lease.Renew(ctx)
}

var errAway = errors.New("the store does not answer")

// TestLeaseUnsure takes nothing back because the store did not answer for a moment, or has said that the lease was lost, at no step: the
// next rotation goes on, and no certificate is asked for twice.
func TestLeaseUnsure(t *testing.T) {
	reloaded, replaced := func(*world) {}, func(w *world) { newCluster(w) }
	restarted := func(w *world) { w.target.Restart, w.fleet.reload = true, false }
	for name, test := range map[string]struct {
		fails  error
		deploy func(*world)
	}{"reloaded": {errAway, reloaded}, "restarted": {errAway, restarted}, "replaced": {errAway, replaced}, "replaced, and lost": {secret.ErrLeaseLost, replaced}} {
		renewals := 0
		for ; unsure(t, fmt.Sprintf("%s, renewal %d", name, renewals), &shaky{renewals: renewals, fails: test.fails}, test.deploy); renewals++ {
		}
		if renewals < 6 {
			t.Errorf("%s: the lease is looked at %d times", name, renewals)
		}
	}
}

// unsure rotates with such a lease, and again. It tells whether the renewal that fails was reached.
func unsure(t *testing.T, name string, keeps *shaky, deploy func(*world)) bool {
	t.Helper()
	w := newWorld(t, secret.LayoutJSON)
	deploy(w)
	w.first()
	issued := w.authority.issued()
	keeps.keeper = keeper{w.files}
	target := w.target
	target.Keeper = keeps
	result := w.rotator().Rotate(t.Context(), target, Options{Force: true})
	w.checkCurrent()
	if result.Err == nil {
		return false
	}
	says(t, result.Error, "nothing more was done: ", keeps.fails.Error())
	if result.Outcome != Failed || !errors.Is(result.Err, keeps.fails) {
		t.Errorf("%s: %s: %v", name, result.Outcome, result.Err)
	}
	again := w.run(Options{})
	if again.Err == nil && again.Outcome == Nothing {
		again = w.run(Options{Force: true})
	}
	if again.Err != nil || again.Outcome != Rotated || w.authority.issued() != issued+1 {
		t.Errorf("%s: the next rotation: %s, %v; %d were issued", name, again.Outcome, again.Err, w.authority.issued()-issued)
	}
	w.check()
	return true
}

// TestLeaseUnsureOnTheWayBack asserts that the next rotation goes a way back to its end in which the store did not answer for a moment, at
// whatever step and however long ago it was begun: nobody is left with a version that is not current any more.
func TestLeaseUnsureOnTheWayBack(t *testing.T) {
	for name, test := range map[string]struct {
		fails  error
		deploy func(*world) (spoil func(first string), served func() string)
	}{"restarted": {errAway, restartedInPart}, "restarted, and lost": {secret.ErrLeaseLost, restartedInPart}, "replaced": {errAway, replacedInVain}} {
		onTheWay := 0
		for renewals, reached := 0, true; reached; renewals++ {
			w := newWorld(t, secret.LayoutJSON)
			w.config.Timeout = 40 * time.Millisecond
			spoil, served := test.deploy(w)
			first := w.first().Serial
			spoil(first)
			keeps := &shaky{keeper: keeper{w.files}, renewals: renewals, fails: test.fails}
			target := w.target
			target.Keeper = keeps
			result := w.rotator().Rotate(t.Context(), target, Options{Force: true})
			if reached = keeps.renewals < 0; result.Outcome != RolledBack {
				if !errors.Is(result.Err, test.fails) {
					t.Fatalf("%s, renewal %d: %s: %v", name, renewals, result.Outcome, result.Err)
				}
				if s := ReadStatus(t.Context(), w.target); s.Step == StepRollback {
					onTheWay++
				}
				if again := w.run(Options{Force: renewals == 0}); again.Outcome != RolledBack {
					t.Errorf("%s, renewal %d: the next rotation: %s: %v", name, renewals, again.Outcome, again.Err)
				}
			}
			if got := served(); got != first || w.currentSerial() != first {
				t.Errorf("%s, renewal %d: %q is served, and %s is current: %s", name, renewals, got, w.currentSerial(), result.Error)
			}
			w.check()
		}
		if onTheWay == 0 {
			t.Errorf("%s: no way back was cut short", name)
		}
	}
}

// picky restarts an instance with the first certificate only.
type picky struct {
	*fleet
	instance, first string
}

func (p picky) Restart(ctx context.Context, workload, instance string) error {
	if instance == p.instance && p.w.currentSerial() != p.first {
		return errors.New("it does not take it")
	}
	return p.fleet.Restart(ctx, workload, instance)
}

// restartedInPart has the second instance refuse what the first one has taken.
func restartedInPart(w *world) (spoil func(string), served func() string) {
	w.target.Restart, w.fleet.reload = true, false
	return func(first string) { w.config.Deployer = picky{w.fleet, "orders-2", first} }, func() string {
		return strings.Join(slices.Compact(slices.Sorted(maps.Values(w.fleet.serves))), " ")
	}
}

// replacedInVain has new instances serve something else than they were given, and counts a way back as old at once.
func replacedInVain(w *world) (spoil func(string), served func() string) {
	c := newCluster(w)
	return func(first string) {
		w.config.RolloutTimeout = time.Nanosecond
		c.takes = func(serial string) string {
			if serial != first {
				return "other"
			}
			return serial
		}
	}, c.serve
}
