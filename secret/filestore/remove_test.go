package filestore

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"countersign.dev/secret"
)

func remove(t *testing.T, s *Store, name, version string) {
	t.Helper()
	if err := s.Remove(t.Context(), name, version); err != nil {
		t.Fatal(err)
	}
}

func TestRemove(t *testing.T) {
	s := newStore(t)
	put(t, s, "a", "1", "one")
	put(t, s, "a", "2", "two")
	stage(t, s, "a", "3", "three")
	stage(t, s, "a", "4", "four")
	for _, version := range []string{"current", "2"} {
		if err := s.Remove(t.Context(), "a", version); !errors.Is(err, secret.ErrInvalid) || !strings.Contains(err.Error(), "make another current first") {
			t.Errorf("%s: %v, want ErrInvalid", version, err)
		}
	}
	for _, bad := range [][2]string{{"a", ""}, {"/a", "1"}} {
		if err := s.Remove(t.Context(), bad[0], bad[1]); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("%q: %v, want ErrInvalid", bad, err)
		}
	}
	for range 2 { // it may be repeated
		remove(t, s, "a", "3")
	}
	remove(t, s, "a", "pending")
	remove(t, s, "a", "previous")
	remove(t, s, "unknown", "1")
	if got := staged(t, s, "a"); got != "- 2=two -" {
		t.Error(got)
	}
	if files, err := os.ReadDir(s.secretDir("a")); err != nil || len(files) != 2 {
		t.Errorf("the directory holds %v, %v; want the index and one value", files, err)
	}
	stage(t, s, "a", "3", "another three")
	if got := staged(t, s, "a"); got != "3=another three 2=two -" {
		t.Error(got)
	}
}

// TestRemoveTheOnly removes a secret that was never in use, and makes it again.
func TestRemoveTheOnly(t *testing.T) {
	s := newStore(t)
	stage(t, s, "a/b", "1", "one")
	remove(t, s, "a/b", "1")
	if _, err := s.Versions(t.Context(), "a/b"); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("%v, want ErrNotFound", err)
	}
	if files, err := os.ReadDir(s.path(stagingDir)); err != nil || len(files) != 0 {
		t.Errorf("left: %v, %v", files, err)
	}
	// A crash between the two halves of it.
	stage(t, s, "a/b", "1", "one")
	if err := os.Rename(s.secretDir("a/b"), s.path(stagingDir, directory("a/b"))); err != nil {
		t.Fatal(err)
	}
	remove(t, s, "a/b", "1")
	if files, err := os.ReadDir(s.path(stagingDir)); err != nil || len(files) != 0 {
		t.Errorf("left: %v, %v", files, err)
	}
	put(t, s, "a/b", "1", "two")
	if got := read(t, s, "a/b", ""); got != "1=two" {
		t.Error(got)
	}
}

func TestRemoveDamaged(t *testing.T) {
	s := newStore(t)
	put(t, s, "a", "1", "one")
	stage(t, s, "a", "2", "two")
	mustWriteFile(t, s.valuePath("a", "2"), []byte("no value"))
	remove(t, s, "a", "2")
	mustWriteFile(t, s.indexPath("a"), []byte("no index"))
	if err := s.Remove(t.Context(), "a", "1"); !errors.Is(err, secret.ErrCorrupt) {
		t.Errorf("%v, want ErrCorrupt", err)
	}
}

func TestHolder(t *testing.T) {
	s := newStore(t)
	nobody := func() {
		t.Helper()
		if holder, _, err := s.Holder(t.Context(), "a"); err != nil || holder != "" {
			t.Errorf("%q, %v, want nobody", holder, err)
		}
	}
	nobody()
	l, err := s.Lease(t.Context(), "a", "somebody", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if holder, until, err := s.Holder(t.Context(), "a"); err != nil || holder != "somebody" || !until.Equal(l.Until()) {
		t.Errorf("%q until %s, %v", holder, until, err)
	}
	if err := l.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	nobody()
	if _, err = s.Lease(t.Context(), "a", "the dead one", time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := s.EndLease(t.Context(), "a", "another"); err != nil {
		t.Error(err)
	}
	if holder, _, err := s.Holder(t.Context(), "a"); err != nil || holder != "the dead one" {
		t.Errorf("%q, %v", holder, err)
	}
	for range 2 { // it may be repeated
		if err := s.EndLease(t.Context(), "a", "the dead one"); err != nil {
			t.Error(err)
		}
		nobody()
	}
	if err := s.EndLease(t.Context(), "/a", "x"); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("%v, want ErrInvalid", err)
	}
	if _, _, err := s.Holder(t.Context(), "/a"); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("%v, want ErrInvalid", err)
	}
}
