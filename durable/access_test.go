//go:build unix

package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestAccess writes generations with modes that a umask would narrow.
func TestAccess(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	dir := filepath.Join(t.TempDir(), "new")
	access := Access{UID: -1, GID: -1, Dir: 0o750}
	if err := WriteGenerationFor(dir, []File{{"key", []byte("k"), 0o640}, {"cert", []byte("c"), 0o644}}, access); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{"": 0o750, "generations": 0o750, "current": 0o750, "current/key": 0o640, "current/cert": 0o644} {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%q has the mode %04o, want %04o", path, got, want)
		}
	}
}

// TestAccessOwner gives files away, which only root may.
func TestAccessOwner(t *testing.T) {
	dir := t.TempDir()
	access := Access{UID: 4711, GID: 4712, Dir: 0o700}
	err := WriteGenerationFor(dir, []File{{"key", []byte("k"), 0o600}}, access)
	if os.Geteuid() != 0 {
		if !errors.Is(err, fs.ErrPermission) {
			t.Errorf("without a privilege: %v", err)
		}
		if _, err := os.Lstat(filepath.Join(dir, "current")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("without a privilege something is in force (%v)", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"generations", "current", "current/key"} {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		if owner := info.Sys().(*syscall.Stat_t); owner.Uid != 4711 || owner.Gid != 4712 {
			t.Errorf("%s belongs to %d:%d", path, owner.Uid, owner.Gid)
		}
	}
}

// TestAccessLink puts a link where the generations are to be: it is not followed.
func TestAccessLink(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	if err := os.Chmod(elsewhere, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(elsewhere, filepath.Join(dir, "generations")); err != nil {
		t.Fatal(err)
	}
	if err := WriteGenerationFor(dir, []File{{"key", []byte("k"), 0o600}}, Access{UID: -1, GID: -1, Dir: 0o700}); err == nil {
		t.Error("a link is followed")
	}
	info, err := os.Stat(elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o711 {
		t.Errorf("the directory elsewhere has the mode %04o", got)
	}
}
