package ca

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFullDisk makes a CA on ever larger disks until it fits. One that does not fit leaves nothing.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: only root can mount the small file systems that this test fills")
	}
	refused := 0
	for pages := 1; pages < 64; pages++ {
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dk,mode=0700", 4*pages)); err != nil {
			t.Skipf("SKIPPED: mounting the small file systems that this test fills: %v", err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Errorf("unmounting: %v", err)
			}
		})
		state := filepath.Join(dir, "state")
		_, err := Init(state, InitConfig{TrustDomain: trustDomain, Seal: Unsealed()})
		if err == nil {
			issueOnFullDisk(t, dir, state)
			break
		}
		refused++
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%d pages: %v, want ENOSPC", pages, err)
		}
		for _, name := range []string{caDir, stagingDir, journalDir} {
			if found, err := present(filepath.Join(state, name)); found || err != nil {
				t.Errorf("%d pages: %s is left: %v", pages, name, err)
			}
		}
	}
	if refused < 3 {
		t.Errorf("only %d disks were too small", refused)
	}
}

// issueOnFullDisk fills the disk and expects that nothing is issued until it has space again.
func issueOnFullDisk(t *testing.T, disk, state string) {
	t.Helper()
	c, err := Open(state, Unsealed())
	if err != nil {
		t.Fatal(err)
	}
	log, err := OpenJournal(state, Unsealed())
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	ballast := filepath.Join(state, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	issued, err := c.Issue(t.Context(), JournalRecorder{Journal: log}, service(t))
	if !errors.Is(err, syscall.ENOSPC) || issued != nil {
		t.Errorf("on a full disk: %v, %v; want ENOSPC and no certificate", issued, err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT, "size=1m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Issue(t.Context(), JournalRecorder{Journal: log}, service(t)); err != nil {
		t.Errorf("with space again: %v", err)
	}
}
