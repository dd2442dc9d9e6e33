package deliver

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestFull has a volume without room for another generation: what was served is served on, and with more room the next try does.
func TestFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: only root can mount the small file system that this test fills")
	}
	var mounted string
	l := newLab(t, rendered, func(c *Config) {
		mounted = c.Output.Dir
		ok(t, os.Mkdir(mounted, 0o700))
		if err := unix.Mount("tmpfs", mounted, "tmpfs", 0, "size=128k,mode=0700"); err != nil {
			t.Skipf("SKIPPED: mounting the small file system that this test fills: %v", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(mounted, unix.MNT_DETACH) }) // nobody works there any more
	})
	l.round("")
	l.put("v2")
	l.round("")
	fill(t, filepath.Join(mounted, "filler"))
	l.put("v3")
	l.round("is full; a generation needs about")
	l.holds("v2", true)
	l.round("is full")
	ok(t, os.Remove(filepath.Join(mounted, "filler")))
	for key, r := range l.w.refused {
		r.until = time.Time{}
		l.w.refused[key] = r
	}
	l.round("")
	l.holds("v3", true)
	if s := l.w.Status(); s.Rollbacks != 0 || s.Problems() != "" {
		t.Errorf("%+v", s)
	}
}

// fill takes all the room there is.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	ok(t, err)
	defer f.Close()
	for {
		_, err := f.Write(bytes.Repeat([]byte{1}, 4096))
		if errors.Is(err, syscall.ENOSPC) {
			return
		}
		ok(t, err)
	}
}
