package filestore

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"countersign.dev/secret"
)

// TestReplace makes a version current only in place of the one that its writer knows.
func TestReplace(t *testing.T) {
	const now = "4=four 2=two 1=one" // pending, current, previous; 3 has no stage
	for _, c := range []struct {
		what, version, replaces string
		want                    error
		then                    string
	}{
		{"what is current", "4", "2", nil, "- 4=four 2=two"},
		{"by stage", "pending", "2", nil, "- 4=four 2=two"},
		{"the way back", "previous", "2", nil, "4=four 1=one 2=two"},
		{"what was current before", "4", "1", secret.ErrReplaced, now},
		{"what never was", "4", "3", secret.ErrReplaced, now},
		{"what is not there", "4", "9", secret.ErrReplaced, now},
		{"none", "4", "", secret.ErrReplaced, now},
		{"with what is current already", "2", "1", nil, now},
		{"with what is current already, by stage", "current", "", nil, now},
		{"with what is not there", "9", "2", secret.ErrNotFound, now},
		{"with what was removed, too late", "9", "1", secret.ErrReplaced, now},
		{"a stage", "4", "current", secret.ErrInvalid, now},
		{"with nothing", "", "2", secret.ErrInvalid, now},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := newStore(t)
			put(t, s, "a/b", "1", "one")
			put(t, s, "a/b", "2", "two")
			stage(t, s, "a/b", "3", "three")
			stage(t, s, "a/b", "4", "four")
			err := s.Replace(t.Context(), "a/b", c.version, c.replaces)
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("%v, want %v", err, c.want)
			}
			var lost *secret.ReplacedError
			if errors.As(err, &lost) && (lost.Current != "2" || lost.Expected != c.replaces || lost.Name != "a/b" || lost.Written.IsZero()) {
				t.Errorf("it says %+v", lost)
			}
			if got := staged(t, s, "a/b"); got != c.then {
				t.Errorf("%s, want %s", got, c.then)
			}
		})
	}
}

func TestReplaceNone(t *testing.T) {
	s := newStore(t)
	stage(t, s, "a", "1", "one")
	err := s.Replace(t.Context(), "a", "1", "0")
	if !errors.Is(err, secret.ErrReplaced) || !strings.Contains(err.Error(), "no version is current now where the version 0 was to be replaced") {
		t.Errorf("%v, want that none is current", err)
	}
	for range 2 {
		if err := s.Replace(t.Context(), "a", "1", ""); err != nil {
			t.Error(err)
		}
	}
	if err := s.Replace(t.Context(), "b", "1", ""); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("%v, want ErrNotFound", err)
	}
}

// TestReplaceAtOnce lets several replace the same version: one of them does, and the others hear of it.
func TestReplaceAtOnce(t *testing.T) {
	s := newStore(t)
	put(t, s, "a", "0", "zero")
	const writers = 8
	errs := make([]error, writers)
	for i := range writers {
		stage(t, s, "a", fmt.Sprint(i+1), "value")
	}
	var all sync.WaitGroup
	for i := range writers {
		all.Go(func() {
			own := *s // as another process would open it
			errs[i] = own.Replace(t.Context(), "a", fmt.Sprint(i+1), "0")
		})
	}
	all.Wait()
	won := ""
	for i, err := range errs {
		switch {
		case err == nil && won == "":
			won = fmt.Sprint(i + 1)
		case !errors.Is(err, secret.ErrReplaced):
			t.Errorf("writer %d: %v, want ErrReplaced", i+1, err)
		}
	}
	if got := read(t, s, "a", "current"); won == "" || got != won+"=value" {
		t.Errorf("%q has won, and %s is current", won, got)
	}
}
