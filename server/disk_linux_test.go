package server

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"countersign.dev/ca"
)

// TestFullDisk fills the file system that the state is on.
func TestFullDisk(t *testing.T) {
	f := newFixture(t, colorapp)
	f.cfg.State = filepath.Join(f.dir, "small")
	if err := os.Mkdir(f.cfg.State, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", f.cfg.State, "tmpfs", 0, "size=2m,mode=0700"); err != nil {
		t.Skipf("this needs root and may mount a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(f.cfg.State, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if _, err := ca.Init(f.cfg.State, ca.InitConfig{Seal: ca.Unsealed()}); err != nil {
		t.Fatal(err)
	}
	r := f.start()
	enrolled, stranger := r.joinAs("colorteller", "colorteller-1"), r.newPeer("colorteller-2")
	token := r.token("colorteller", 1)
	filler := filepath.Join(f.cfg.State, "filler")
	fill(t, filler)
	everythingIsRefused(t, r, enrolled, stranger, token)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	everythingIsDone(t, r, enrolled, stranger, token)
}

// fill writes until there is no room for one more page.
func fill(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for size := 1 << 16; size > 0; size /= 2 {
		for err = nil; err == nil; {
			_, err = file.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
}
