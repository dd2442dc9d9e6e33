//go:build unix

package filestore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"countersign.dev/secret"
)

// uses is everything that a store is asked for, the secret a being there.
func uses(t *testing.T, s *Store) map[string]error {
	t.Helper()
	_, opening := Open(s.dir, s.identity)
	_, _, reading := s.Read(t.Context(), "a", "")
	_, staging := s.Stage(t.Context(), "a", "2", []byte("two"))
	_, making := s.Stage(t.Context(), "new", "1", []byte("one"))
	_, versions := s.Versions(t.Context(), "a")
	_, listing := s.List(t.Context())
	_, leasing := s.Lease(t.Context(), "a", "me", minLease)
	return map[string]error{
		"opening": opening, "reading": reading, "staging": staging, "making": making, "promoting": s.Promote(t.Context(), "a", "1"),
		"versions": versions, "listing": listing, "leasing": leasing,
	}
}

// refused asks a store for everything, and expects what is named to be refused for a reason, and the rest to
// go well.
func refused(t *testing.T, s *Store, what string, reasons []string, operations ...string) {
	t.Helper()
	want := map[string]bool{}
	for _, operation := range operations {
		want[operation] = true
	}
	for operation, err := range uses(t, s) {
		if !want[operation] {
			if err != nil {
				t.Errorf("%s, %s: %v", what, operation, err)
			}
			continue
		}
		if !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("%s, %s: %v, want ErrInvalid", what, operation, err)
			continue
		}
		for _, reason := range reasons {
			if !strings.Contains(err.Error(), reason) {
				t.Errorf("%s, %s: %v, want %q", what, operation, err, reason)
			}
		}
	}
}

// places are where others may get in, and what is refused then. Readers look at the directories of the store
// when they open it, and at those of the secret always.
var places = map[string][]string{
	".":                   {"opening", "staging", "making", "promoting", "leasing"},
	"secrets":             {"opening", "staging", "making", "promoting", "leasing"},
	"leases":              {"opening", "staging", "making", "promoting", "leasing"},
	"staging":             {"opening", "staging", "making", "promoting", "leasing"},
	"secrets/a":           {"reading", "staging", "promoting", "versions", "listing"},
	"secrets/a/index.age": {"reading", "staging", "promoting", "versions", "listing"},
	"secrets/a/v-1.age":   {"reading", "promoting"},
	"store.age":           {"opening"},
}

// TestOthersMayWrite opens each place to the group and to everybody.
func TestOthersMayWrite(t *testing.T) {
	for place, operations := range places {
		for _, wider := range []fs.FileMode{0o020, 0o002, 0o022} {
			s := newStore(t)
			put(t, s, "a", "1", "one")
			path := filepath.Join(s.dir, place)
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			mode := info.Mode().Perm() | wider
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
			command := fmt.Sprintf("`chmod %o %s`", info.Mode().Perm(), path)
			refused(t, s, fmt.Sprintf("%s %04o", place, mode), []string{"others may write to it", command}, operations...)
		}
	}
}

// TestOthersOwn gives each place away, which only root may.
func TestOthersOwn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: only root gives files away; TestCheckOwner tests the rule")
	}
	const somebody = 4711
	for place, operations := range places {
		s := newStore(t)
		put(t, s, "a", "1", "one")
		path := filepath.Join(s.dir, place)
		if err := os.Chown(path, somebody, -1); err != nil {
			t.Fatal(err)
		}
		refused(t, s, place, []string{path + " belongs to the user 4711", "`chown 0 " + path + "`"}, operations...)
	}
	dir := t.TempDir()
	if err := os.Chown(dir, somebody, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(dir, newIdentity(t)); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("a store was made in somebody's directory: %v", err)
	}
	path := filepath.Join(t.TempDir(), "id")
	if err := errors.Join(GenerateIdentity(path), os.Chown(path, somebody, -1)); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadIdentity(path); !errors.Is(err, ErrIdentity) || !strings.Contains(err.Error(), "belongs to the user 4711") {
		t.Errorf("somebody's identity file: %v", err)
	}
}

func TestCheckOwner(t *testing.T) {
	info, err := os.Stat(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	own := os.Geteuid()
	if uid, known := owner(info); !known || uid != own {
		t.Fatalf("the owner is %d (%v), want %d", uid, known, own)
	}
	if err := checkOwner("it", info, own); err != nil {
		t.Errorf("our own: %v", err)
	}
	if err := checkOwner("it", info, own+1); (err == nil) != (own == 0) {
		t.Errorf("for another user: %v", err)
	}
	if err := checkOwner("it", ownedBy{info, 0}, 4711); err != nil {
		t.Errorf("root's: %v", err)
	}
	if err := checkOwner("it", ownedBy{info, 4712}, 4711); err == nil {
		t.Error("another user's is accepted")
	}
	if err := checkOwner("it", ownedBy{info, 4712}, 0); err == nil {
		t.Error("another user's is accepted by root")
	}
}

// ownedBy is a file of another user.
type ownedBy struct {
	fs.FileInfo
	uid uint32
}

func (o ownedBy) Sys() any { return &syscall.Stat_t{Uid: o.uid} }

// TestLinks puts links to directories in the places of directories. Only the store's own may be one.
func TestLinks(t *testing.T) {
	for _, place := range []string{"secrets", "leases", "staging", "secrets/a"} {
		s := newStore(t)
		put(t, s, "a", "1", "one")
		path, elsewhere := filepath.Join(s.dir, place), filepath.Join(t.TempDir(), "elsewhere")
		if err := errors.Join(os.Rename(path, elsewhere), os.Symlink(elsewhere, path)); err != nil {
			t.Fatal(err)
		}
		refused(t, s, place, []string{path + " is none, but a file or a link"}, places[place]...)
	}
	s := newStore(t)
	put(t, s, "a", "1", "one")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(s.dir, link); err != nil {
		t.Fatal(err)
	}
	opened, err := Open(link, s.identity)
	if err != nil {
		t.Fatal(err)
	}
	if got := read(t, opened, "a", ""); got != "1=one" {
		t.Errorf("by a link it is %s", got)
	}
}

// TestCreateInOthersLeftovers finds the directories of a store that was never finished, open to everybody.
func TestCreateInOthersLeftovers(t *testing.T) {
	for _, name := range []string{secretsDir, leasesDir, stagingDir} {
		dir := t.TempDir()
		path := filepath.Join(dir, name)
		if err := errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, 0o777)); err != nil {
			t.Fatal(err)
		}
		if _, err := Create(dir, newIdentity(t)); !errors.Is(err, secret.ErrInvalid) || !strings.Contains(err.Error(), "chmod 700 "+path) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(filepath.Join(dir, storeFile)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: a store was made (%v)", name, err)
		}
	}
}

// TestIdentityIsNoFile gives pipes and devices for identity files: nothing waits for a writer.
func TestIdentityIsNoFile(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, t.TempDir(), os.DevNull} {
		if _, err := LoadIdentity(path); !errors.Is(err, ErrIdentity) || !strings.Contains(err.Error(), "is not a regular file") {
			t.Errorf("%s: %v", path, err)
		}
	}
}
