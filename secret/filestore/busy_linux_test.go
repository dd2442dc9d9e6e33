package filestore

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"countersign.dev/durable"
)

// holdVariable makes a process of [TestBusy] that holds the lock it names until its input ends.
const holdVariable = "COUNTERSIGN_TEST_HOLD"

// TestBusy names the process that keeps the lock of a store, and what helps: also when it is stopped, and no text of a dead
// one.
func TestBusy(t *testing.T) {
	if path := os.Getenv(holdVariable); path != "" {
		unlock, err := durable.Lock(path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = os.Stdout.WriteString("held\n")
		_, _ = os.Stdin.Read(make([]byte, 1))
		_ = unlock()
		return
	}
	for _, name := range []string{lockFile, queueFile} {
		t.Run(name, func(t *testing.T) { testBusy(t, newStore(t), name) })
	}
	s := newStore(t)
	unlock, err := durable.Lock(s.path(lockFile))
	if err != nil {
		t.Fatal(err)
	}
	defer unlock() //nolint:errcheck // nothing was written
	if err := s.busy(queueFile); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "another part of this very process") {
		t.Errorf("%v, want that it is this process", err)
	}
}

func testBusy(t *testing.T, s *Store, name string) {
	child := hold(t, s.path(name))
	busy := func(wanted ...string) {
		t.Helper()
		var err error
		synctest.Test(t, func(t *testing.T) { _, err = s.Stage(t.Context(), "a", "", []byte("x")) })
		if !errors.Is(err, ErrBusy) {
			t.Fatalf("%v, want ErrBusy", err)
		}
		host, _ := os.Hostname()
		for _, want := range append(wanted, fmt.Sprintf("process %d (", child.Process.Pid), "of the user", "on "+host, s.path(name), "the store survives") {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%q does not say %q", err, want)
			}
		}
	}
	busy(fmt.Sprintf("end it with `kill %d`", child.Process.Pid))
	if err := child.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		if p, ok := durable.LockHolder(s.path(name)); ok && p.Stopped {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it does not stop")
		}
	}
	busy("and is stopped", fmt.Sprintf("`kill -CONT %d`", child.Process.Pid))
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it was killed
	put(t, s, "a", "1", "x")
}

// hold starts a process that holds a lock.
func hold(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestBusy$")
	child.Env = append(os.Environ(), holdVariable+"="+path)
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	out, err := child.StdoutPipe()
	if err == nil {
		err = child.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "held\n" {
		t.Fatalf("%q, %v", line, err)
	}
	return child
}

// TestBusyBehindAnother names who writes, and not the one that waits for him.
func TestBusyBehindAnother(t *testing.T) {
	s := newStore(t)
	hold(t, s.path(lockFile))
	next := hold(t, s.path(queueFile))
	if err := s.busy(queueFile); !errors.Is(err, ErrBusy) || strings.Contains(err.Error(), fmt.Sprint("process ", next.Process.Pid)) || !strings.Contains(err.Error(), "keeps the lock "+s.path(lockFile)) {
		t.Errorf("%v, want the one that writes", err)
	}
}

// TestBusyElsewhere says what helps when it cannot be seen who keeps the lock.
func TestBusyElsewhere(t *testing.T) {
	s := newStore(t)
	if err := s.busy(lockFile); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "cannot be seen from here") || !strings.Contains(err.Error(), "fuser -v "+s.path(lockFile)) {
		t.Errorf("%v, want that it is not known", err)
	}
}
