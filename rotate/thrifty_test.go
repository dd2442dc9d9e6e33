package rotate

import (
	"errors"
	"testing"
	"time"

	"countersign.dev/secret"
)

// few is a store that bears few writes.
type few struct{ Store }

func (few) FewWrites() bool { return true }

// versions counts those of the record: the store of the tests keeps sixteen.
func (w *world) records() map[string]bool {
	w.t.Helper()
	all := make(map[string]bool)
	versions, err := w.files.Versions(w.t.Context(), w.target.Secret+stateSuffix)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, version := range versions {
		all[version.ID] = true
	}
	return all
}

func TestTheSameFailureIsWrittenDownSeldom(t *testing.T) {
	for _, layout := range []secret.Layout{secret.LayoutJSON, secret.LayoutExported} {
		w := newWorld(t, layout)
		now := time.Now()
		w.config.Now = func() time.Time { return now }
		w.target.Store = few{w.files}
		w.must(Options{}, Rotated)
		down := &refusing{authority: w.authority, why: errors.New("not now")}
		w.target.Authority = down
		w.must(Options{Force: true}, Failed)
		before := w.records()
		for range 5 {
			w.must(Options{Force: true}, Failed)
		}
		if after := w.records(); len(after) != len(before) {
			t.Errorf("%s: %d versions have become %d", layout, len(before), len(after))
		}
		status := ReadStatus(t.Context(), w.target)
		if status.Failures != 1 || status.LastError == "" {
			t.Errorf("%s: %+v", layout, status)
		}
		// After a while it is written down again, and another failure at once.
		now = now.Add(failuresApart)
		w.must(Options{Force: true}, Failed)
		if status = ReadStatus(t.Context(), w.target); status.Failures != 2 {
			t.Errorf("%s: after a while: %+v", layout, status)
		}
		down.why = nil
		w.fleet.refuses = func(string) bool { return true }
		w.must(Options{Force: true}, RolledBack)
		if status = ReadStatus(t.Context(), w.target); status.Failures != 3 || status.LastErrorStep != StepObserve || status.Step != "" {
			t.Errorf("%s: another failure: %+v", layout, status)
		}
		// The way back is written down always, also when it failed in the same way just before.
		w.must(Options{Force: true}, RolledBack)
		if status = ReadStatus(t.Context(), w.target); status.Failures != 4 || status.Step != "" {
			t.Errorf("%s: the same, with something to write down: %+v", layout, status)
		}
	}
}
