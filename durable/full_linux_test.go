package durable

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// fullDisk mounts a file system of 64 KB.
func fullDisk(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: only root can mount the small file system that this test fills")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		t.Skipf("SKIPPED: mounting the small file system that this test fills: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	return dir
}

// TestFullDisk expects a full disk to leave the old contents, an error that says so, and no garbage
// that would keep the disk full.
func TestFullDisk(t *testing.T) {
	dir := fullDisk(t)
	path := filepath.Join(dir, "file")
	if err := WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteGeneration(dir, pair("old")); err != nil {
		t.Fatal(err)
	}
	before := names(t, dir)
	big := bytes.Repeat([]byte("x"), 128<<10)
	if err := WriteFile(path, big, 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a file: %v, want ENOSPC", err)
	}
	files := pair("new")
	files[1].Data = big
	if err := WriteGeneration(dir, files); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a generation: %v, want ENOSPC", err)
	}
	if got := mustRead(t, path); got != "old" {
		t.Errorf("the file holds %d bytes", len(got))
	}
	if got := current(t, dir); got != "old" {
		t.Errorf("the current generation is %q", got)
	}
	if got := names(t, dir); !slices.Equal(got, before) {
		t.Errorf("left are %q", got)
	}
	if got := names(t, filepath.Join(dir, "generations")); !slices.Equal(got, []string{"1"}) {
		t.Errorf("left are the generations %q", got)
	}
	// With space again, all goes on.
	if err := WriteGeneration(dir, pair("new")); err != nil {
		t.Error(err)
	}
}
