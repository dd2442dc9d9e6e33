package credential

import (
	"crypto/tls"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"countersign.dev/durable"
)

// TestDirectory goes the way of a watcher: stage, look, make current, prove, go back.
func TestDirectory(t *testing.T) {
	c, out := parsed(t), here(filepath.Join(t.TempDir(), "tls"))
	d, err := OpenDirectory(out)
	if err != nil {
		t.Fatal(err)
	}
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	first, err := d.Stage(c, durable.File{Name: "nginx.conf", Data: []byte("events {}\n"), Perm: 0o644})
	ok(err)
	if n, err := d.Current(); n != 0 || err != nil {
		t.Errorf("what was staged is current: %d, %v", n, err)
	}
	if _, err := tls.LoadX509KeyPair(filepath.Join(d.Path(first), CertFile), filepath.Join(d.Path(first), KeyFile)); err != nil {
		t.Errorf("what was staged cannot be read: %v", err)
	}
	checkMode(t, filepath.Join(d.Path(first), KeyFile), 0o600)
	checkMode(t, filepath.Join(d.Path(first), "nginx.conf"), 0o644)
	ok(d.Activate(first))
	if n, err := d.Proved(); n != 0 || err != nil {
		t.Errorf("before it was proved: %d, %v", n, err)
	}
	ok(d.Prove(first))

	for range 4 { // none of them is good
		n, err := d.Stage(c)
		ok(err)
		ok(d.Activate(n))
	}
	if n, err := d.Proved(); n != first || err != nil {
		t.Errorf("%d is proved (%v), and %d was", n, err, first)
	}
	ok(d.Activate(first))
	staged, err := d.Stage(c)
	ok(err)
	ok(d.Discard(staged))
	if err := d.Discard(first); err == nil {
		t.Error("the current generation was discarded")
	}
	if err := d.Activate(staged); err == nil {
		t.Error("what was discarded is current")
	}

	// Others are kept out, and told so.
	if err := c.Write(out); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("a second writer: %v", err)
	}
	if _, err := OpenDirectory(out); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("a second one: %v", err)
	}
	ok(d.Close())
	ok(c.Write(out))
	if d, err = OpenDirectory(out); err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if n, err := d.Current(); n != first+1 || err != nil {
		t.Errorf("after the other writer %d is current (%v)", n, err)
	}

	// A link that somebody else has put there proves nothing.
	for _, target := range []string{"elsewhere", "generations/1x", "generations/999", "generations"} {
		ok(os.Remove(filepath.Join(out.Dir, provedLink)))
		ok(os.Symlink(target, filepath.Join(out.Dir, provedLink)))
		if n, err := d.Proved(); n != 0 || err != nil {
			t.Errorf("%s proves %d (%v)", target, n, err)
		}
	}
	bad := out
	bad.Mode = 0o644
	if _, err := OpenDirectory(bad); !errors.Is(err, ErrMode) {
		t.Errorf("a mode for everybody: %v", err)
	}
}
