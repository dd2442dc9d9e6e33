//go:build unix

package durable

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestPrivateSocket: the socket is narrow from the beginning, whatever the umask is, and what others make at the same
// moment is as they want it.
func TestPrivateSocket(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	dir := t.TempDir()
	path := filepath.Join(dir, "control.sock")
	ended, wrong := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(wrong)
		for n := 0; ; n++ {
			select {
			case <-ended:
				return
			default:
			}
			name := filepath.Join(dir, fmt.Sprint("d", n))
			if err := os.Mkdir(name, 0o755); err != nil {
				wrong <- err
				return
			}
			info, err := os.Stat(name)
			if err == nil && info.Mode().Perm() != 0o755 {
				err = fmt.Errorf("a directory has the mode %v", info.Mode())
			}
			if err != nil {
				wrong <- err
				return
			}
		}
	}()
	for range 300 {
		listener, err := ListenPrivately(path)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("the socket has the mode %v (%v)", info.Mode(), err)
		}
		if err := listener.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("the socket is left: %v", err)
		}
	}
	close(ended)
	if err := <-wrong; err != nil {
		t.Error(err)
	}
	if _, err := ListenPrivately(filepath.Join(dir, "nowhere", "s")); err == nil {
		t.Error("a socket in no directory")
	}
	var err error
	for _, taken := range []string{"file", "stale"} {
		path := filepath.Join(dir, taken)
		if taken == "file" {
			err = os.WriteFile(path, []byte("kept"), 0o600)
		} else {
			var left *net.UnixListener
			if left, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}); err == nil {
				left.SetUnlinkOnClose(false)
				err = left.Close()
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ListenPrivately(path); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("over a %s: %v, want EADDRINUSE", taken, err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("the %s that was there is gone: %v", taken, err)
		}
	}
}
