//go:build linux

package credential

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign.dev/durable"
)

// mkdir makes a directory of exactly this mode.
func mkdir(t *testing.T, mode fs.FileMode) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "volume")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, mode); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestDirectoryMode writes to directories that are there: not to one in which anybody could put other files in the place
// of these.
func TestDirectoryMode(t *testing.T) {
	c := parsed(t)
	for _, mode := range []fs.FileMode{0o777, 0o702, 0o777 | fs.ModeSetgid} {
		dir := mkdir(t, mode)
		err := c.Write(here(dir))
		if !errors.Is(err, ErrDirectory) || !strings.Contains(err.Error(), "may be written to by everybody") || !strings.Contains(err.Error(), "--to "+dir+"/tls") {
			t.Errorf("%v: %v", mode, err)
		}
		if left := list(t, dir); len(left) != 0 {
			t.Errorf("%v: there are %q", mode, left)
		}
	}
	for _, mode := range []fs.FileMode{0o700, 0o755, 0o770 | fs.ModeSetgid, 0o777 | fs.ModeSticky} {
		dir := mkdir(t, mode)
		for range 2 { // the second time with what the first one has left
			if err := c.Write(here(dir)); err != nil {
				t.Errorf("%v: %v", mode, err)
			}
		}
	}
	// What the message proposes.
	below := filepath.Join(mkdir(t, 0o777), "tls")
	if err := c.Write(here(below)); err != nil {
		t.Error(err)
	}
	checkMode(t, below, 0o700)
}

// TestTrusted is about who may own a directory.
func TestTrusted(t *testing.T) {
	out := here("/x")
	for uid, want := range map[int]bool{0: true, os.Geteuid(): true, os.Geteuid() + 4711: false} {
		if trusted(out, uid) != want {
			t.Errorf("user %d is trusted: %t", uid, !want)
		}
	}
	out.UID = os.Geteuid() + 4711
	if !trusted(out, out.UID) {
		t.Error("the user whom the files are for is not trusted")
	}
}

// TestDirectoryOwner writes to directories of others, which only root can make.
func TestDirectoryOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: giving a directory to another user needs root")
	}
	c := parsed(t)
	dir := mkdir(t, 0o700)
	if err := os.Chown(dir, 4711, -1); err != nil {
		t.Fatal(err)
	}
	if err := c.Write(here(dir)); !errors.Is(err, ErrDirectory) || !strings.Contains(err.Error(), "belongs to user 4711") {
		t.Error(err)
	}
	if left := list(t, dir); len(left) != 0 {
		t.Errorf("there are %q", left)
	}
	out := here(dir)
	out.UID = 4711
	for range 2 { // the second time all of it belongs to that user
		if err := c.Write(out); err != nil {
			t.Error(err)
		}
	}

	// Root makes nothing for a user who has put a link in its way.
	elsewhere, lock := filepath.Join(t.TempDir(), "nologin"), filepath.Join(dir, lockFile)
	if err := errors.Join(os.Remove(lock), os.Symlink(elsewhere, lock)); err != nil {
		t.Fatal(err)
	}
	if err := c.Write(out); err == nil {
		t.Error("written past a link")
	}
	if _, err := os.Lstat(elsewhere); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("root has made what a link of another user leads to: %v", err)
	}

	// Everybody may make files, and somebody was first.
	for _, name := range []string{lockFile, generationsDir, "current"} {
		dir := mkdir(t, 0o777|fs.ModeSticky)
		path := filepath.Join(dir, name)
		var err error
		switch name {
		case lockFile:
			err = os.WriteFile(path, nil, 0o666)
		case generationsDir:
			err = os.Mkdir(path, 0o777)
		default:
			err = os.Symlink("generations/1", path)
		}
		if err == nil {
			err = os.Lchown(path, 4711, -1)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Write(here(dir)); !errors.Is(err, ErrDirectory) || !strings.Contains(err.Error(), path+" belongs to user 4711") {
			t.Errorf("%s: %v", name, err)
		}
		if files, err := durable.ReadCurrent(dir); err == nil {
			t.Errorf("%s: there is a generation of %d files", name, len(files))
		}
	}
}
