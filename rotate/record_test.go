package rotate

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"countersign.dev/secret"
)

// flaky cannot read records for a while.
type flaky struct {
	Store
	failures int
}

func (f *flaky) Read(ctx context.Context, name, version string) ([]byte, string, error) {
	if f.failures > 0 && strings.HasSuffix(name, stateSuffix) {
		f.failures--
		return nil, "", errors.New("input/output error")
	}
	return f.Store.Read(ctx, name, version)
}

// TestUnreadRecord keeps a rotation in progress whose record could not be read once: what nobody serves is still taken
// back afterwards.
func TestUnreadRecord(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	first := w.first()
	w.fleet.refuses = func(serial string) bool { return serial != first.Serial }
	w.fleet.blind = errors.New("the server is away")
	if result := w.must(Options{Force: true}, Failed); !errors.Is(result.Err, ErrNotObserved) {
		t.Fatalf("%v, want ErrNotObserved", result.Err)
	}
	before, err := readRecord(t.Context(), w.files, w.target.Secret)
	if err != nil || before.Step == "" {
		t.Fatalf("%+v, %v", before, err)
	}
	w.fleet.blind, w.target.Store = nil, &flaky{Store: w.files, failures: 1}
	says(t, w.must(Options{}, Failed).Error, "at the step look", "input/output error")
	if after, err := readRecord(t.Context(), w.files, w.target.Secret); err != nil || after.Step != before.Step || after.Version != before.Version || after.Previous != before.Previous {
		t.Errorf("%+v, %v; before the failed read it was %+v", after, err, before)
	}
	w.must(Options{}, RolledBack)
	if got := w.currentSerial(); got != first.Serial {
		t.Errorf("%s is current, want %s", got, first.Serial)
	}
	w.check()
}

// TestForeignRecord leaves a record alone that is not for this program to replace.
func TestForeignRecord(t *testing.T) {
	newer, damaged := `{"format":2,"step":"promote","version":"x"}`, `nonsense`
	for name, c := range map[string]struct {
		text  string
		force bool
		want  error // nil when it is replaced
	}{
		"of a newer program":         {newer, false, secret.ErrInvalid},
		"of a newer program, forced": {newer, true, secret.ErrInvalid},
		"damaged":                    {damaged, false, secret.ErrCorrupt},
		"damaged, forced":            {damaged, true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, secret.LayoutExported)
			w.first()
			for _, of := range []string{w.target.Secret, w.target.Bundle} {
				id, err := w.files.Stage(t.Context(), of+stateSuffix, "", []byte(c.text))
				if err == nil {
					err = w.files.Promote(t.Context(), of+stateSuffix, id)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			for _, result := range w.rotator().RotateAll(t.Context(), []Target{w.target}, Options{Force: c.force}) {
				if (c.want == nil && result.Err != nil) || !errors.Is(result.Err, c.want) {
					t.Errorf("%s: %v, want %v", result.Secret, result.Err, c.want)
				}
				text, _, err := w.files.Read(t.Context(), result.Secret+stateSuffix, "")
				if replaced := string(text) != c.text; err != nil || (replaced && c.want != nil) {
					t.Errorf("%s: the record is %s, %v", result.Secret, text, err)
				}
				if errors.Is(c.want, secret.ErrCorrupt) {
					says(t, result.Error, "at the step look", "--force")
				}
				if c.want == nil {
					says(t, strings.Join(result.Notes, "; "), "what was known of the rotations before is lost")
				}
			}
		})
	}
}

// TestFailureEnds forgets a failure as soon as all is found as it should be, and writes nothing at the looks after that.
func TestFailureEnds(t *testing.T) {
	w := newWorld(t, secret.LayoutExported)
	w.first()
	d := &Daemon{Rotator: w.rotator(), Log: slog.New(slog.DiscardHandler), Targets: func(context.Context) ([]Target, error) {
		return []Target{w.target}, nil
	}}
	names := []string{w.target.Secret, w.target.Bundle}
	for what, look := range map[string]func(){
		"once":   func() { w.must(Options{}, Nothing) },
		"daemon": func() { d.round(t.Context(), map[string]*retry{}) },
	} {
		w.authority.down = errors.New("the server is away")
		before := map[string]int64{}
		w.rotator().RotateAll(t.Context(), []Target{w.target}, Options{})
		for _, name := range names {
			record, err := readRecord(t.Context(), w.files, name)
			if err != nil || record.Failures != 1 || record.LastError == "" {
				t.Fatalf("%s, %s: %+v, %v; want a failure", what, name, record, err)
			}
			before[name] = record.FailuresTotal
		}
		w.authority.down = nil
		w.must(Options{DryRun: true}, Nothing)
		look()
		var was []string
		for _, name := range names {
			record, err := readRecord(t.Context(), w.files, name)
			if err != nil || record.clearFailure() || record.FailuresTotal != before[name] || record.LastSuccess.IsZero() {
				t.Errorf("%s, %s: %+v, %v; want no failure any more", what, name, record, err)
			}
			was = append(was, w.recordVersion(name))
		}
		look()
		for i, name := range names {
			if got := w.recordVersion(name); got != was[i] {
				t.Errorf("%s: a quiet look has written the record of %s", what, name)
			}
		}
	}
}

// recordVersion is the version of a secret's record that is current.
func (w *world) recordVersion(name string) string {
	w.t.Helper()
	_, version, err := w.files.Read(w.t.Context(), name+stateSuffix, "")
	if err != nil {
		w.t.Fatal(err)
	}
	return version
}
