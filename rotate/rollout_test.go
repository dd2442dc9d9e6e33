package rotate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"countersign.dev/mesh"
	"countersign.dev/secret"
)

// TestRollout replaces all instances for each new version, and for nothing else.
func TestRollout(t *testing.T) {
	for _, layout := range layouts {
		w := newWorld(t, layout)
		c := newCluster(w)
		first := w.first()
		if c.serve() != first.Serial || len(c.begun) != 1 || len(first.Seen) != 2 {
			t.Errorf("%s: %q are served after %d roll-outs: %+v", layout, c.serve(), len(c.begun), first)
		}
		w.must(Options{}, Nothing)
		second := w.must(Options{Force: true}, Rotated)
		if second.Serial == first.Serial || c.serve() != second.Serial || len(c.begun) != 2 {
			t.Errorf("%s: %q are served after %d roll-outs: %+v", layout, c.serve(), len(c.begun), second)
		}
		told := c.now[len(c.now)-1]
		if told.Serial != second.Serial || told.Rollout != "rollout-2" || !strings.Contains(string(told.Roots), "BEGIN CERTIFICATE") {
			t.Errorf("%s: it was told %+v", layout, told)
		}
		says(t, w.progress.String(), "deploy: waiting: 0 of 2 new tasks run", "deploy: replacing the instances")
		w.check()

		c.desired = 0
		w.must(Options{Force: true}, Rotated)
		third := w.must(Options{Force: true}, Rotated)
		says(t, strings.Join(third.Notes, "; "), "no instance is known")
		w.must(Options{Force: true, NoDeploy: true}, Promoted)
		if len(c.begun) != 4 {
			t.Errorf("%s: %d roll-outs, and one of them without deployment", layout, len(c.begun))
		}
		w.check()
	}
}

// TestRolloutSettles waits for the instances of before, but not for those that do not serve as they should, and not when told to end.
func TestRolloutSettles(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	c := newCluster(w)
	c.unsettled = func(context.Context) {}
	first := w.first()
	c.takes = func(string) string { return first.Serial }
	w.must(Options{Force: true}, RolledBack)
	if len(c.begun) != 3 || len(c.settled) != 2 {
		t.Errorf("%d of %d roll-outs waited for the instances of before, want all but the way back", len(c.settled), len(c.begun))
	}
	says(t, w.progress.String(), "deploy: waiting: tasks that were started a moment ago do not serve yet")

	c.takes = nil
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.unsettled = func(ctx context.Context) { cancel(); <-ctx.Done() }
	if result := w.rotator().Rotate(ctx, w.target, Options{Force: true}); !errors.Is(result.Err, ErrStopped) || len(c.begun) != 3 {
		t.Errorf("%v after %d roll-outs, want ErrStopped", result.Err, len(c.begun))
	}
	c.unsettled = nil
	if again := w.must(Options{}, Rotated); c.serve() != again.Serial || len(c.begun) != 4 {
		t.Errorf("%s is served after %d roll-outs", c.serve(), len(c.begun))
	}
	w.check()
}

// TestRolloutFails brings the version of before back, and the tasks with it, and says why.
func TestRolloutFails(t *testing.T) {
	for name, c := range map[string]struct {
		fail     func(c *cluster, first string)
		rollouts int // after the first
		says     []string
	}{
		"rolled back": {
			func(c *cluster, first string) {
				c.fails = func(serial string) error {
					if serial == first {
						return nil
					}
					return fmt.Errorf("%w: circuit breaker; the container init has ended with 1", ErrRolloutFailed)
				}
			},
			2,
			[]string{"at the step deploy", "circuit breaker; the container init has ended with 1", "is current again and was seen everywhere"},
		},
		"refused": {
			func(c *cluster, _ string) { c.refuse = fmt.Errorf("%w: ecs:UpdateService denied", ErrRolloutFailed) },
			0,
			[]string{"at the step deploy", "ecs:UpdateService denied", "is current again and was seen everywhere"},
		},
		"not served": {
			func(c *cluster, first string) { c.takes = func(string) string { return first } },
			2,
			[]string{"at the step observe", "serves " /* the first one */, "is current again and was seen everywhere"},
		},
		"neither way": {
			func(c *cluster, _ string) {
				c.fails = func(string) error { return fmt.Errorf("%w: no capacity", ErrRolloutFailed) }
				c.takes = func(string) string { return "" }
				clear(c.tasks)
				c.tasks["task-9-9"] = "f00"
			},
			2,
			[]string{"no capacity", "is current again and was not seen everywhere"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, secret.LayoutJSON)
			cl := newCluster(w)
			first := w.first()
			c.fail(cl, first.Serial)
			result := w.must(Options{Force: true}, RolledBack)
			if w.currentSerial() != first.Serial || len(cl.begun) != 1+c.rollouts || (name != "neither way" && cl.serve() != first.Serial) {
				t.Errorf("%s is current and %s served after %d roll-outs; before it was %s", w.currentSerial(), cl.serve(), len(cl.begun), first.Serial)
			}
			says(t, result.Error, c.says...)
			if c.rollouts == 0 {
				says(t, strings.Join(result.Notes, "; "), "no instance was replaced on the way back")
			}
			w.check()
		})
	}
}

// TestRolloutFirst leaves what has nothing before it, and says who takes it.
func TestRolloutFirst(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	c := newCluster(w)
	c.fails = func(string) error { return fmt.Errorf("%w: no capacity", ErrRolloutFailed) }
	result := w.must(Options{}, Failed)
	says(t, result.Error, "no capacity", "no version of before", result.Version+" stays current, and instances that start from now on take it")
	if w.currentSerial() == "" || len(c.begun) != 1 {
		t.Errorf("%q is current after %d roll-outs", w.currentSerial(), len(c.begun))
	}
	w.check()
}

// TestRolloutUnknown leaves the new version current while nobody knows how the roll-out stands, and begins no second one.
func TestRolloutUnknown(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	c := newCluster(w)
	first := w.first()
	c.refuse = errors.New("throttled")
	if result := w.must(Options{Force: true}, Failed); !errors.Is(result.Err, ErrNotObserved) || w.currentSerial() == first.Serial {
		t.Errorf("%v, want ErrNotObserved", result.Err)
	}
	c.refuse, c.waits = nil, func(context.Context, string) error { return errors.New("500") }
	for range 2 {
		result := w.must(Options{}, Failed)
		if !errors.Is(result.Err, ErrNotObserved) {
			t.Errorf("%v, want ErrNotObserved", result.Err)
		}
		says(t, result.Error, "the roll-out rollout-2: 500")
	}
	c.waits = nil
	c.blind = errors.New("denied")
	if result := w.must(Options{}, Failed); !errors.Is(result.Err, ErrNotObserved) {
		t.Errorf("%v, want ErrNotObserved", result.Err)
	}
	c.blind = nil
	result := w.must(Options{}, Rotated)
	if c.serve() != result.Serial || len(c.begun) != 2 || w.authority.issued() != 2 {
		t.Errorf("%s is served after %d roll-outs, %d issued", c.serve(), len(c.begun), w.authority.issued())
	}
	w.check()
}

// TestRolloutStopped goes on with the roll-out that was begun, forward and on the way back, and gives the lease back.
func TestRolloutStopped(t *testing.T) {
	for _, back := range []bool{false, true} {
		t.Run(fmt.Sprintf("back %v", back), func(t *testing.T) {
			w := newWorld(t, secret.LayoutJSON)
			c := newCluster(w)
			first := w.first()
			stopAt := "rollout-2"
			if back {
				stopAt = "rollout-3"
				c.fails = func(serial string) error {
					if serial != first.Serial {
						return fmt.Errorf("%w: unhealthy", ErrRolloutFailed)
					}
					return nil
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			c.waits = func(ctx context.Context, id string) error {
				if id == stopAt {
					cancel() // as the deadline of a function does
					<-ctx.Done()
					return ctx.Err()
				}
				return nil
			}
			result := w.rotator().Rotate(ctx, w.target, Options{Force: true})
			if !errors.Is(result.Err, ErrStopped) {
				t.Fatalf("%v, want ErrStopped", result.Err)
			}
			record, err := readRecord(t.Context(), w.files, w.target.Secret)
			if err != nil || record.Rollout != stopAt || record.RolloutBegan.IsZero() || (record.Step == StepRollback) != back || record.Failures != 0 {
				t.Errorf("%+v, %v", record, err)
			}
			if holder, _, err := w.files.Holder(t.Context(), w.target.Secret); holder != "" || err != nil {
				t.Errorf("%q has the lease, %v", holder, err)
			}
			if s := ReadStatus(t.Context(), w.target); s.Rollout != stopAt {
				t.Errorf("the status is %+v", s)
			}
			c.waits = nil
			want := Rotated
			if back {
				want = RolledBack
			}
			again := w.must(Options{}, want)
			if n := len(c.begun); fmt.Sprintf("rollout-%d", n) != stopAt || c.serve() != again.Serial || (again.Serial == first.Serial) != back {
				t.Errorf("%d roll-outs; %s is served", n, c.serve())
			}
			says(t, w.progress.String(), "going on with the roll-out "+stopAt)
			if back {
				says(t, again.Error, "unhealthy")
			}
			w.check()
		})
	}
}

// TestRolloutDied is killed at operations on the store: one certificate more is issued at most, and one roll-out more begun
// than the versions that are brought in.
func TestRolloutDied(t *testing.T) {
	for _, after := range []bool{false, true} {
		at, stride := places(after)
		for ; ; at += stride {
			w := newWorld(t, secret.LayoutJSON)
			w.quiet = true
			c := newCluster(w)
			w.first()
			_, died := w.dying(&mortal{at: at, after: after}, Options{Force: true})
			w.checkCurrent()
			again := w.run(Options{})
			if again.Err != nil || c.serve() != w.currentSerial() || w.authority.issued() > 2 || len(c.begun) > 3 {
				t.Fatalf("operation %d, after %v: %v; %s is served, %s current; %d issued, %d rolled out", at, after, again.Err, c.serve(), w.currentSerial(), w.authority.issued(), len(c.begun))
			}
			w.check()
			if !died {
				break
			}
		}
	}
}

// TestRolloutTimeout gives a roll-out its time in all, and each rotation that waits for it some of its own; on the way back
// it does not last for ever either.
func TestRolloutTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, secret.LayoutJSON)
		w.target.Certificate.TTL, w.target.Certificate.RenewAfter = mesh.Duration(20*time.Hour), mesh.Duration(15*time.Hour)
		c := newCluster(w)
		first := w.first()
		w.config.RolloutTimeout, w.config.leaseTTL = 10*time.Minute, 24*time.Hour
		c.waits = func(ctx context.Context, id string) error {
			if id == "rollout-3" {
				return nil
			}
			<-ctx.Done()
			return fmt.Errorf("%w: it has not ended in its time", ErrRolloutFailed)
		}
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 9*time.Minute+30*time.Second)
		defer cancel()
		ends := c.waits
		c.waits = func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
		if result := w.rotator().Rotate(ctx, w.target, Options{Force: true}); !errors.Is(result.Err, ErrStopped) {
			t.Fatalf("%v, want ErrStopped", result.Err)
		}
		c.waits = ends
		result := w.must(Options{}, RolledBack)
		if took := time.Since(begin); took != 10*time.Minute+30*time.Second || w.currentSerial() != first.Serial {
			t.Errorf("it took %s; %s is current", took, w.currentSerial())
		}
		says(t, result.Error, "not ended in its time")

		// A way back of which nobody knows how it stands is gone on with for a while.
		c.fails = func(string) error { return fmt.Errorf("%w: unhealthy", ErrRolloutFailed) }
		c.waits = func(_ context.Context, id string) error {
			if id == "rollout-5" {
				return errors.New("500")
			}
			return nil
		}
		for range 2 {
			if result := w.run(Options{Force: true}); result.Outcome != Failed || !errors.Is(result.Err, ErrNotObserved) {
				t.Errorf("%s, %v", result.Outcome, result.Err)
			}
			time.Sleep(5 * time.Minute) // of the bubble's time
		}
		time.Sleep(time.Hour)
		says(t, w.run(Options{}).Error, "unhealthy", "was not seen everywhere")
		w.check()
		if len(c.begun) != 5 {
			t.Errorf("%d roll-outs", len(c.begun))
		}
	})
}

// TestDaemonPaid has a roll-out fail again and again: where each try costs a certificate, the next one comes later.
func TestDaemonPaid(t *testing.T) {
	for _, paid := range []bool{false, true} {
		w := newWorld(t, secret.LayoutJSON)
		c := newCluster(w)
		w.first()
		w.target.Certificate.RenewAfter = 1 // it is due
		if paid {
			w.target.Authority = w.authority
		}
		c.refuse = fmt.Errorf("%w: denied", ErrRolloutFailed)
		d := &Daemon{Rotator: w.rotator(), Log: slog.New(slog.DiscardHandler), Targets: func(context.Context) ([]Target, error) { return []Target{w.target}, nil }}
		retries := map[string]*retry{}
		d.round(t.Context(), retries)
		r := retries["service orders"]
		if r == nil || w.authority.issued() != 2 {
			t.Fatalf("it did not fail: %+v, %d issued", r, w.authority.issued())
		}
		if wait := time.Until(r.next); (wait > firstRetry) != paid {
			t.Errorf("paid for: %t; it is tried again in %s", paid, wait)
		}
	}
}

// TestEarly rotates what is not due, and takes none of the liberties of a person's --force.
func TestEarly(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	c := newCluster(w)
	first := w.first()
	if again := w.must(Options{Early: true}, Rotated); again.Serial == first.Serial {
		t.Error("the certificate is the one of before")
	}
	w.check()
	c.unreachable = true
	if r := w.run(Options{Early: true}); !errors.Is(r.Err, ErrUnreachable) {
		t.Errorf("nobody could see what is asked for, and: %+v", r)
	}
	c.unreachable = false
	name := w.target.Secret + stateSuffix
	current, err := currentVersion(t.Context(), w.files, name)
	if err != nil {
		t.Fatal(err)
	}
	id, err := w.files.Stage(t.Context(), name, "", []byte("somebody's"))
	if err == nil {
		err = w.files.Replace(t.Context(), name, id, current)
	}
	if err != nil {
		t.Fatal(err)
	}
	issued := w.authority.issued()
	if r := w.run(Options{Early: true}); !errors.Is(r.Err, secret.ErrCorrupt) || w.authority.issued() != issued {
		t.Errorf("the record of a rotation that may be in progress is damaged, and: %+v", r)
	}
}

// TestUnreachable asks for nothing that could not be proved.
func TestUnreachable(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	c := newCluster(w)
	w.first()
	w.target.Certificate.RenewAfter = 1 // it is due
	c.unreachable = true
	result := w.must(Options{}, Failed)
	if !errors.Is(result.Err, ErrUnreachable) || w.authority.issued() != 1 || len(c.begun) != 1 {
		t.Errorf("%v; %d issued, %d rolled out", result.Err, w.authority.issued(), len(c.begun))
	}
	says(t, result.Error, "task-1-0", "i/o timeout", "security groups", "--force")
	c.unreachable, c.blind = false, errors.New("ecs:ListTasks denied")
	says(t, w.must(Options{}, Failed).Error, "before anything is asked for", "ecs:ListTasks denied")
	if w.authority.issued() != 1 {
		t.Errorf("%d issued", w.authority.issued())
	}
	w.check()
}

// TestRolloutBundle has everybody start with a new root before anybody shows a certificate under it, one after the other;
// what fails is tried again, and what was done is not.
func TestRolloutBundle(t *testing.T) {
	w := newWorld(t, secret.LayoutExported)
	c := newCluster(w)
	carts := w.target
	carts.Workload.Name, carts.Secret = "carts", "shop/carts"
	other := newCluster(&world{t: t, files: w.files, target: carts})
	carts.Rollout, carts.Observer = other, other
	all := []Target{w.target, carts}
	run := func() []Result { return w.rotator().RotateAll(t.Context(), all, Options{}) }
	for _, result := range run() {
		if result.Err != nil {
			t.Fatal(result.Err)
		}
	}
	if len(c.begun) != 1 || len(other.begun) != 1 {
		t.Fatalf("%d and %d roll-outs; the first bundle needs none", len(c.begun), len(other.begun))
	}
	older, newer := w.authority.signer, newHierarchy(t, "second")
	w.authority.bundle, w.authority.signer = []*hierarchy{older, newer}, newer
	other.fails = func(string) error { return fmt.Errorf("%w: unhealthy", ErrRolloutFailed) }
	results := run()
	if len(c.begun) != 2 || !errors.Is(results[0].Err, ErrRolloutFailed) || w.authority.issued() != 2 {
		t.Errorf("%+v; %d roll-outs, %d issued", results, len(c.begun), w.authority.issued())
	}
	says(t, results[0].Error, "carts: the roll-out rollout-2: ", "unhealthy")
	for _, result := range results[1:] {
		if !errors.Is(result.Err, ErrUnfit) {
			t.Errorf("%s: %v, want ErrUnfit", result.Service, result.Err)
		}
		says(t, result.Error, "is new in the trust bundle shop/bundle", "unhealthy")
	}
	other.fails = nil
	for _, result := range run() {
		if result.Outcome != Rotated {
			t.Errorf("%+v", result)
		}
	}
	if len(c.begun) != 3 || len(other.begun) != 4 {
		t.Errorf("%d and %d roll-outs, want one more for the leaf, and one more for bundle and leaf each", len(c.begun), len(other.begun))
	}
	for _, result := range run() {
		if result.Outcome != Nothing {
			t.Errorf("%+v", result)
		}
	}
}

// TestWithoutParts refuses targets that nobody issues for, looks at or restarts.
func TestWithoutParts(t *testing.T) {
	w := newWorld(t, secret.LayoutExported)
	c := newCluster(w)
	for want, change := range map[string]func(*Target){
		"who issues":             func(*Target) {},
		"who could look":         func(t *Target) { t.Authority, t.Observer = w.authority, nil },
		"who could restart":      func(t *Target) { t.Authority, t.Restart, t.Rollout = w.authority, true, nil },
		"restarted or replaced":  func(t *Target) { t.Authority, t.Restart = w.authority, true },
		"name for a trust bundl": func(t *Target) { t.Authority, t.Bundle = w.authority, "" },
	} {
		config := w.config
		config.Authority = nil
		r, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		target := w.target
		change(&target)
		for _, result := range r.RotateAll(t.Context(), []Target{target}, Options{}) {
			if !errors.Is(result.Err, secret.ErrInvalid) {
				t.Errorf("%s: %v, want ErrInvalid", want, result.Err)
			}
		}
	}
	if len(c.begun) > 0 {
		t.Errorf("%q", c.begun)
	}
	w.config.Holder = ""
	if _, err := New(w.config); err == nil {
		t.Error("a Rotator without a name for its lease")
	}
}
