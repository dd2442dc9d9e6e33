package filestore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"countersign.dev/secret"
)

// TestFullDisk fills the disk page by page less: a write succeeds as a whole, or says that the store is
// full and leaves everything as it was, so that it succeeds when there is room again.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: only root can mount the small file system that this test fills")
	}
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		t.Skipf("SKIPPED: mounting the small file system that this test fills: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	s, err := Create(filepath.Join(disk, "store"), newIdentity(t))
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "a", "1", "one")
	value := strings.Repeat("x", 9000) // three pages
	refused := 0
	for free := range 12 {
		id := fmt.Sprintf("2-%d", free)
		fill(t, disk, free)
		_, err := s.Stage(t.Context(), "a", id, []byte(value))
		if err == nil {
			err = s.Promote(t.Context(), "a", id)
		}
		_, newErr := s.Stage(t.Context(), "new/"+id, "", []byte(value))
		if err != nil {
			refused++
			if !errors.Is(err, secret.ErrFull) || !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("%d pages: %v, want ErrFull", free, err)
			}
			if got := read(t, s, "a", ""); got != "1=one" {
				t.Errorf("%d pages: current is %s", free, got)
			}
		}
		if newErr != nil && !errors.Is(newErr, secret.ErrFull) {
			t.Errorf("%d pages, a new secret: %v, want ErrFull", free, newErr)
		}
		if _, err := s.List(t.Context()); err != nil {
			t.Errorf("%d pages: %v", free, err)
		}
		if err := os.Remove(filepath.Join(disk, "ballast")); err != nil {
			t.Fatal(err)
		}
		put(t, s, "a", id, value)
		put(t, s, "new/"+id, "", value)
		put(t, s, "a", "1", "one")
	}
	if refused < 3 || refused == 12 {
		t.Errorf("%d of 12 writes were refused", refused)
	}
}

// fill leaves so many pages of 4 KiB.
func fill(t *testing.T, disk string, pages int) {
	t.Helper()
	f, err := os.Create(filepath.Join(disk, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	size := int64(0)
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
		size += 4096
	}
	if err := errors.Join(f.Truncate(max(0, size-4096-int64(pages)*4096)), f.Close()); err != nil {
		t.Fatal(err)
	}
}
