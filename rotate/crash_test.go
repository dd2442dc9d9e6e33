package rotate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"countersign.dev/secret"
)

// errDead is what a process gets that was killed: nothing that it does has any effect any more.
var errDead = errors.New("killed")

// mortal is a store whose user dies at the Nth operation that changes something, before or after it is done; or, with
// fail, one that refuses that one operation and works again.
type mortal struct {
	keeper
	at    int
	after bool
	fail  error

	count int
	dead  bool
}

func (m *mortal) operation(do func() error) error {
	if m.dead {
		return errDead
	}
	m.count++
	if m.count != m.at {
		return do()
	}
	if m.fail != nil {
		return m.fail
	}
	m.dead = true
	if m.after {
		_ = do()
	}
	return errDead
}

func (m *mortal) Read(ctx context.Context, name, version string) ([]byte, string, error) {
	if m.dead {
		return nil, "", errDead
	}
	return m.keeper.Read(ctx, name, version)
}

func (m *mortal) Stage(ctx context.Context, name, id string, value []byte) (made string, err error) {
	err = m.operation(func() (err error) {
		made, err = m.keeper.Stage(ctx, name, id, value)
		return err
	})
	return made, err
}

func (m *mortal) Replace(ctx context.Context, name, version, replaces string) error {
	return m.operation(func() error { return m.keeper.Replace(ctx, name, version, replaces) })
}

func (m *mortal) Remove(ctx context.Context, name, version string) error {
	return m.operation(func() error { return m.keeper.Remove(ctx, name, version) })
}

func (m *mortal) Lease(ctx context.Context, name, holder string, ttl time.Duration) (Lease, error) {
	lease, err := m.keeper.Lease(ctx, name, holder, ttl)
	return mortalLease{lease, m}, err
}

// mortalLease is given back by a dead process as well: the tests do not wait for leases to end.
type mortalLease struct {
	Lease
	m *mortal
}

func (l mortalLease) Renew(ctx context.Context) error {
	if l.m.dead {
		return errDead
	}
	return l.Lease.Renew(ctx)
}

// dying rotates with a store that dies, or fails, at its Nth operation; it tells whether it came to that.
func (w *world) dying(m *mortal, o Options) (Result, bool) {
	w.t.Helper()
	m.keeper = keeper{w.files}
	target := w.target
	target.Store, target.Keeper = m, m
	result := w.rotator().Rotate(w.t.Context(), target, o)
	return result, m.count >= m.at
}

// places are the first operation to die at, and how many come until the next one: of every three operations one of two tests
// takes the first, and the other the second; with COUNTERSIGN_SOAK=1 both take all.
func places(odd bool) (first, stride int) {
	switch {
	case os.Getenv("COUNTERSIGN_SOAK") != "":
		return 1, 1
	case odd:
		return 1, 3
	default:
		return 2, 3
	}
}

// TestKilledAtEveryOperation kills a rotation before and after each change of the store: what is current is fit at every
// moment, the next one ends what was begun, and in all one certificate is issued.
func TestKilledAtEveryOperation(t *testing.T) {
	for _, layout := range layouts {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, after %t", layout, after), func(t *testing.T) {
				t.Parallel()
				at, stride := places(after)
				for ; ; at += stride {
					w := newWorld(t, layout)
					w.quiet = true
					w.first()
					_, died := w.dying(&mortal{at: at, after: after}, Options{Force: true})
					w.checkCurrent()
					issued := w.authority.issued()
					again := w.run(Options{})
					if again.Err != nil || (again.Outcome != Rotated && again.Outcome != Nothing) {
						t.Errorf("operation %d: the next rotation: %s, %v", at, again.Outcome, again.Err)
					}
					w.check()
					if now := w.authority.issued(); now > 2 || now > issued+1 {
						t.Errorf("operation %d: %d certificates were issued, %d of them by the next rotation", at, now, now-issued)
					}
					if t.Failed() {
						t.Fatalf("at operation %d", at)
					}
					if !died {
						break
					}
				}
				if at < 8 {
					t.Errorf("everything was done in %d operations", at)
				}
			})
		}
	}
}

// TestKilledOnTheWayBack kills a rotation that goes back.
func TestKilledOnTheWayBack(t *testing.T) {
	for _, after := range []bool{false, true} {
		t.Run(fmt.Sprintf("after %t", after), func(t *testing.T) {
			t.Parallel()
			at, stride := places(after)
			for ; ; at += stride {
				w := newWorld(t, secret.LayoutSeparate)
				w.quiet = true
				w.config.Timeout = 20 * time.Millisecond
				first := w.first()
				w.fleet.refuses = func(serial string) bool { return serial != first.Serial }
				_, died := w.dying(&mortal{at: at, after: after}, Options{Force: true})
				w.checkCurrent()
				again := w.run(Options{})
				if again.Outcome != RolledBack && again.Outcome != Nothing {
					t.Errorf("operation %d: the next rotation: %s, %v", at, again.Outcome, again.Err)
				}
				if w.currentSerial() != first.Serial {
					t.Errorf("operation %d: what is refused is current", at)
				}
				w.check()
				if w.authority.issued() > 2 {
					t.Errorf("operation %d: %d certificates were issued", at, w.authority.issued())
				}
				if t.Failed() {
					t.Fatalf("at operation %d", at)
				}
				if !died {
					break
				}
			}
		})
	}
}

// TestFullAtEveryOperation lets the store be full, or damaged, for one operation.
func TestFullAtEveryOperation(t *testing.T) {
	for _, fail := range []error{secret.ErrFull, secret.ErrCorrupt} {
		t.Run(fail.Error(), func(t *testing.T) {
			t.Parallel()
			at, stride := places(errors.Is(fail, secret.ErrFull))
			for ; ; at += stride {
				w := newWorld(t, secret.LayoutExported)
				w.quiet = true
				w.first()
				result, failed := w.dying(&mortal{at: at, fail: fail}, Options{Force: true})
				w.checkCurrent()
				if result.Err == nil && failed && len(result.Notes) == 0 {
					t.Errorf("operation %d failed, and nothing is said", at)
				}
				if result.Err != nil && !errors.Is(result.Err, fail) {
					t.Errorf("operation %d: %v", at, result.Err)
				}
				if again := w.run(Options{}); again.Err != nil {
					t.Errorf("operation %d: the next rotation: %v", at, again.Err)
				}
				w.check()
				if t.Failed() {
					t.Fatalf("at operation %d", at)
				}
				if !failed {
					break
				}
			}
		})
	}
}
