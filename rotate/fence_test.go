package rotate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"countersign.dev/secret"
)

// stopped is the store of a process that stands still before its Nth swap of a name that is matched, for as long as
// meanwhile takes, and knows nothing of it.
type stopped struct {
	keeper
	matches   func(name string) bool
	at        int
	meanwhile func()
}

func (s *stopped) Replace(ctx context.Context, name, version, replaces string) error {
	if s.matches(name) {
		if s.at--; s.at == 0 {
			s.meanwhile()
		}
	}
	return s.keeper.Replace(ctx, name, version, replaces)
}

const stoppedHolder = "countersign rotate on elsewhere, pid 1, user nobody place stopped"

// stoppedAt rotates in a process that is stopped before its Nth swap: its lease runs out, and others go on.
func (w *world) stoppedAt(at int, matches func(string) bool, o Options, meanwhile func()) Result {
	w.t.Helper()
	came := false
	s := &stopped{keeper: keeper{w.files}, matches: matches, at: at, meanwhile: func() {
		came = true
		for _, name := range []string{w.target.Secret, w.target.Bundle} {
			if name == "" {
				continue
			}
			if err := w.files.EndLease(w.t.Context(), name, stoppedHolder); err != nil {
				w.t.Error(err)
			}
		}
		meanwhile()
	}}
	config := w.config
	config.Holder = stoppedHolder
	r, err := New(config)
	if err != nil {
		w.t.Fatal(err)
	}
	target := w.target
	target.Store, target.Keeper = s, s
	results := r.RotateAll(w.t.Context(), []Target{target}, o)
	if !came {
		w.t.Fatalf("it came to no swap %d: %+v", at, results)
	}
	return results[slices.IndexFunc(results, func(r Result) bool { return r.Err != nil || r.Service != "" })]
}

// ofCredential matches the secrets of the credential, and ofRecord the record of its rotation.
func (w *world) ofCredential(name string) bool {
	return slices.Contains(w.target.Shape.Names(w.target.Secret), name)
}

func (w *world) ofRecord(name string) bool { return name == w.target.Secret+stateSuffix }

// lost expects a rotation that came too late: it says so, and has changed nothing.
func (w *world) lost(result Result, step Step, winner Result) {
	w.t.Helper()
	if result.Outcome != Lost || result.Step != step || !errors.Is(result.Err, secret.ErrReplaced) {
		w.t.Errorf("%s at %s, %v; want lost at %s", result.Outcome, result.Step, result.Err, step)
	}
	says(w.t, result.Error, "somebody else was faster, and nothing was changed", "is current now where", "countersign secret versions", "has lost its lease")
	if now := w.currentSerial(); now != winner.Serial || result.Version != winner.Version || result.Serial != winner.Serial {
		w.t.Errorf("%s is current, and the result says %s; want %s", now, result.Serial, winner.Serial)
	}
	if s := ReadStatus(w.t.Context(), w.target); s.Failures != 0 || s.Step != "" {
		w.t.Errorf("the record of the winner was changed: %+v", s)
	}
	w.check()
	if result := w.must(Options{}, Nothing); result.Serial != winner.Serial {
		w.t.Errorf("the next one finds %s", result.Serial)
	}
	if result := w.must(Options{Force: true}, Rotated); result.Serial == winner.Serial {
		w.t.Error("the one after does not rotate")
	}
	w.check()
}

// TestStoppedBeforeSwap stops a rotation between its last look at the lease and each swap, until another one has ended what
// it began and a further one has rotated again: nothing older takes the place of that.
func TestStoppedBeforeSwap(t *testing.T) {
	for _, layout := range layouts {
		w := newWorld(t, layout)
		for at := range w.target.Shape.Names(w.target.Secret) {
			t.Run(fmt.Sprintf("%s %d", layout, at+1), func(t *testing.T) {
				w := newWorld(t, layout)
				w.first()
				var winner Result
				result := w.stoppedAt(at+1, w.ofCredential, Options{Force: true}, func() {
					says(t, w.must(Options{}, Rotated).Reason, "was begun and has not ended, at the step promote")
					winner = w.must(Options{Force: true}, Rotated)
				})
				w.lost(result, StepPromote, winner)
			})
		}
	}
}

// TestStoppedBeforeFirstSwap does so when there was none before: the first one names none as what it replaces.
func TestStoppedBeforeFirstSwap(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	var winner Result
	result := w.stoppedAt(1, w.ofCredential, Options{}, func() {
		w.must(Options{}, Rotated)
		winner = w.must(Options{Force: true}, Rotated)
	})
	says(t, result.Error, "where no version was to be replaced")
	w.lost(result, StepPromote, winner)
}

// TestStoppedBeforeRecord stops it before what it writes down of itself: the record of the one that goes on stays.
func TestStoppedBeforeRecord(t *testing.T) {
	w := newWorld(t, secret.LayoutSeparate)
	w.first()
	var winner Result
	result := w.stoppedAt(1, w.ofRecord, Options{Force: true}, func() {
		w.must(Options{}, Rotated)
		winner = w.must(Options{Force: true}, Rotated)
	})
	w.lost(result, StepPromote, winner)
}

// TestStoppedOnTheWayBack stops it before previous is made current, until another one has gone the way back and a further
// one has rotated.
func TestStoppedOnTheWayBack(t *testing.T) {
	for _, layout := range layouts {
		w := newWorld(t, layout)
		names := len(w.target.Shape.Names(w.target.Secret))
		for at := names + 1; at <= 2*names; at++ {
			t.Run(fmt.Sprintf("%s %d", layout, at-names), func(t *testing.T) {
				w := newWorld(t, layout)
				w.config.Timeout = w.config.away
				first := w.first()
				w.fleet.refuses = func(serial string) bool { return serial != first.Serial }
				var winner Result
				result := w.stoppedAt(at, w.ofCredential, Options{Force: true}, func() {
					if back := w.must(Options{}, RolledBack); back.Serial != first.Serial {
						t.Errorf("%s is current after the way back", back.Serial)
					}
					w.fleet.refuses = nil
					winner = w.must(Options{Force: true}, Rotated)
				})
				says(t, result.Error, "going back failed", "not every endpoint serves")
				w.lost(result, StepRollback, winner)
			})
		}
	}
}

// TestStoppedWhileAnotherDies lets the one that goes on die at each of its operations, and the stopped one go on with what
// it knew: whatever comes first, what is current is fit, and the next one ends it.
func TestStoppedWhileAnotherDies(t *testing.T) {
	for at, died := 1, true; died; at++ {
		w := newWorld(t, secret.LayoutSeparate)
		w.quiet = true
		w.first()
		result := w.stoppedAt(2, w.ofCredential, Options{Force: true}, func() {
			_, died = w.dying(&mortal{at: at}, Options{})
			w.checkCurrent()
		})
		w.checkCurrent()
		if !errors.Is(result.Err, secret.ErrLeaseLost) && !errors.Is(result.Err, secret.ErrReplaced) {
			t.Errorf("operation %d: %v: it went on without the lease", at, result.Err)
		}
		if again := w.run(Options{}); again.Err != nil {
			t.Errorf("operation %d: the next rotation: %v", at, again.Err)
		}
		w.check()
		if issued := w.authority.issued(); issued != 2 {
			t.Errorf("operation %d: %d certificates were issued", at, issued)
		}
		if t.Failed() {
			t.Fatalf("at operation %d", at)
		}
	}
}

// TestPutMeanwhile does not replace what somebody puts there by hand between the look and the swap.
func TestPutMeanwhile(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	first := w.first()
	value, _, err := w.files.Read(t.Context(), w.target.Secret, first.Version)
	if err != nil {
		t.Fatal(err)
	}
	target := w.target
	target.Store = &stopped{keeper: keeper{w.files}, matches: w.ofCredential, at: 1, meanwhile: func() {
		_, err := w.files.Stage(t.Context(), w.target.Secret, "by-hand", value)
		if err == nil {
			err = w.files.Replace(t.Context(), w.target.Secret, "by-hand", first.Version)
		}
		if err != nil {
			t.Error(err)
		}
	}}
	result := w.rotator().Rotate(t.Context(), target, Options{Force: true})
	if result.Outcome != Lost || result.Version != "by-hand" {
		t.Errorf("%+v", result)
	}
	says(t, result.Error, "at the step promote", "the version by-hand, written at", "it was done by hand")
	if result := w.must(Options{}, Nothing); result.Version != "by-hand" {
		t.Errorf("%+v", result)
	}
	w.check()
}

// TestStoppedBundle stops the rotation of a trust bundle before its swap, until others have brought in further roots.
func TestStoppedBundle(t *testing.T) {
	w := newWorld(t, secret.LayoutExported)
	w.first()
	second, third := newHierarchy(t, "second"), newHierarchy(t, "third")
	w.authority.bundle = append(w.authority.bundle, second)
	var winner string
	ofBundle := func(name string) bool { return name == w.target.Bundle }
	result := w.stoppedAt(1, ofBundle, Options{}, func() {
		w.authority.bundle = append(w.authority.bundle, third)
		w.must(Options{Force: true}, Rotated)
		value, id, err := w.files.Read(t.Context(), w.target.Bundle, "")
		if err != nil || !strings.Contains(string(value), string(third.rootPEM)) {
			t.Errorf("%v: the bundle has not the third root", err)
		}
		winner = id
	})
	if result.Outcome != Lost || result.Secret != w.target.Bundle || result.Step != StepPromote || result.Version != winner {
		t.Errorf("%+v, want lost", result)
	}
	says(t, result.Error, "somebody else was faster", "has lost its lease")
	if _, id, err := w.files.Read(t.Context(), w.target.Bundle, ""); err != nil || id != winner {
		t.Errorf("%s is current, %v; want %s", id, err, winner)
	}
	w.must(Options{}, Nothing)
	w.check()
}
