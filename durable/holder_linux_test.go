package durable

import (
	"bufio"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// holdVariable makes a process of [TestLockHolder] that holds the lock it names until its input ends.
const holdVariable = "COUNTERSIGN_TEST_HOLD"

// TestLockHolder finds who holds a lock, stopped or not, and nobody when he is dead.
func TestLockHolder(t *testing.T) {
	if path := os.Getenv(holdVariable); path != "" {
		unlock, err := Lock(path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = os.Stdout.WriteString("held\n")
		_, _ = os.Stdin.Read(make([]byte, 1))
		_ = unlock()
		return
	}
	path := filepath.Join(t.TempDir(), "lock")
	if p, ok := LockHolder(path); ok {
		t.Errorf("no file: %s", p)
	}
	unlock, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	if p, ok := LockHolder(path); !ok || p.PID != os.Getpid() || p.Stopped {
		t.Errorf("%s, %t; want this process", p, ok)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	// Who only has the file open does not hold the lock, whatever stands in the file.
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString("pid 1\n"); err != nil {
		t.Fatal(err)
	}
	if p, ok := LockHolder(path); ok {
		t.Errorf("nobody holds it: %s", p)
	}

	child := holding(t, path)
	p, ok := LockHolder(path)
	if !ok || p.PID != child.Process.Pid || p.Stopped {
		t.Errorf("%s, %t; want %d", p, ok, child.Process.Pid)
	}
	if me, err := user.Current(); err == nil && !strings.Contains(p.String(), me.Username) {
		t.Errorf("%s does not name the user %s", p, me.Username)
	}
	if !strings.Contains(p.String(), "durable.test") {
		t.Errorf("%s does not name the program", p)
	}
	if err := child.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); !p.Stopped; p, ok = LockHolder(path) {
		if !ok || time.Now().After(deadline) {
			t.Fatalf("%s, %t; want it stopped", p, ok)
		}
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // it was killed
	if p, ok := LockHolder(path); ok {
		t.Errorf("it is dead: %s", p)
	}
}

// holding starts a process that holds a lock.
func holding(t *testing.T, path string) *exec.Cmd {
	t.Helper()
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestLockHolder$")
	child.Env = append(os.Environ(), holdVariable+"="+path)
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
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

// TestHasLock reads what the kernel says of open files.
func TestHasLock(t *testing.T) {
	for text, want := range map[string]bool{
		"pos:\t0\nflags:\t02100001\nino:\t9978174\nlock:\t1: FLOCK  ADVISORY  WRITE 14779 fe:00:9978174 0 EOF\n": true,
		"pos:\t0\nlock:\t1: POSIX  ADVISORY  WRITE 14779 fe:00:9978174 0 EOF\n":                                  false,
		"pos:\t0\nlock:\t1: FLOCK  ADVISORY  READ 14779 fe:00:9978174 0 EOF\n":                                   false,
		"pos:\t0\nflags:\t02100001\n": false,
		"lock:\n":                     false,
		"":                            false,
	} {
		if got := hasLock([]byte(text)); got != want {
			t.Errorf("%q: %t, want %t", text, got, want)
		}
	}
}
