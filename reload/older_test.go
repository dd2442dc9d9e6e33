package reload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// child is a process of this one whose program has that name.
func child(t *testing.T, name string) (pid int, ended chan struct{}) {
	t.Helper()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(program, text, 0o700); err != nil {
		t.Fatal(err)
	}
	command := exec.Command(program, "600")
	command.Args[0] = "sleep"
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ended = make(chan struct{})
	go func() { defer close(ended); _ = command.Wait() }()
	t.Cleanup(func() { _ = command.Process.Kill(); <-ended })
	return command.Process.Pid, ended
}

// masterOf answers as the master of some old workers does.
func masterOf(t *testing.T, master int, old ...int) (Master, func(old ...int)) {
	t.Helper()
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	var answer atomic.Pointer[string]
	set := func(old ...int) {
		text := fmt.Sprintf("#<PID> <type> <reloads>\n%d master 1\n# workers\n999999999 worker 0\n# old workers\n", master)
		for _, pid := range old {
			text += fmt.Sprintf("%d worker 1\n", pid)
		}
		text += "# programs\n\n"
		answer.Store(&text)
	}
	set(old...)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.ReadAll(conn)
			_, _ = io.WriteString(conn, *answer.Load())
			conn.Close()
		}
	}()
	return Master{Socket: listener.Addr().String()}, set
}

// TestOlder ends those that were old when it was asked, and nobody else.
func TestOlder(t *testing.T) {
	first, firstEnded := child(t, "haproxy")
	second, secondEnded := child(t, "haproxy")
	other, otherEnded := child(t, "database")
	master, set := masterOf(t, os.Getpid(), first, other)
	older, err := master.Older(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	set(first, second, other) // the second grows old afterwards
	ended, err := older.End(within(t, patience), 0)
	if !slices.Equal(ended, []int{first}) || !errors.Is(err, ErrOtherProgram) || !strings.Contains(err.Error(), fmt.Sprint(other)) {
		t.Errorf("%v, %v", ended, err)
	}
	<-firstEnded
	for name, ended := range map[string]chan struct{}{"who grew old later": secondEnded, "another program": otherEnded} {
		select {
		case <-ended:
			t.Errorf("%s is ended", name)
		default:
		}
	}
}

// TestOlderSpared is about those that need no end: who is listed no more, and everybody when there is no time.
func TestOlderSpared(t *testing.T) {
	pid, ended := child(t, "haproxy")
	master, set := masterOf(t, os.Getpid(), pid)
	older, err := master.Older(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if pids, err := older.End(ctx, time.Hour); len(pids) > 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("no time: %v, %v", pids, err)
	}
	if older, err = master.Older(t.Context()); err != nil {
		t.Fatal(err)
	}
	set()
	if pids, err := older.End(within(t, patience), 0); len(pids) > 0 || err != nil {
		t.Errorf("listed no more: %v, %v", pids, err)
	}
	stranger, _ := masterOf(t, 1, pid)
	if older, err = stranger.Older(t.Context()); err != nil {
		t.Fatal(err)
	}
	if pids, err := older.End(within(t, patience), 0); len(pids) > 0 || !errors.Is(err, ErrOtherProgram) {
		t.Errorf("another's child: %v, %v", pids, err)
	}
	if _, err := (Master{Socket: filepath.Join(t.TempDir(), "none")}).Older(within(t, patience)); !errors.Is(err, ErrNotRunning) {
		t.Errorf("nobody there: %v", err)
	}
	select {
	case <-ended:
		t.Error("it is ended")
	default:
	}
}

// TestOlderNGINX ends a real worker that has a connection which would keep it, and leaves those alone that have the new files.
func TestOlderNGINX(t *testing.T) {
	r := start(t, NGINX)
	before := children(r.pid)
	// sockets are the worker's. It closes some after its start; one that is new is a connection.
	sockets := func() []string {
		paths, err := filepath.Glob(filepath.Join(procFile(before[0], "fd"), "*"))
		if err != nil {
			t.Fatal(err)
		}
		var open []string
		for _, path := range paths {
			if to, err := os.Readlink(path); err == nil && strings.HasPrefix(to, "socket:") {
				open = append(open, to)
			}
		}
		return open
	}
	known := sockets()
	conn, err := net.Dial("unix", r.file("in.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\n"); err != nil { // a request that does not end
		t.Fatal(err)
	}
	eventually(t, "the worker has taken the connection", func() bool {
		return slices.ContainsFunc(sockets(), func(s string) bool { return !slices.Contains(known, s) })
	})
	way := Signal{Proxy: NGINX, PID: r.pid}
	if none, err := way.Older(t.Context()); err != nil || len(none.held) > 0 {
		t.Errorf("before a reload: %v, %v", none, err)
	}
	if err := way.Reload(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	older, err := way.Older(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ended, err := older.End(within(t, patience), 0)
	if err != nil || !slices.Equal(ended, before) {
		t.Errorf("ended %v of %v, %v", ended, before, err)
	}
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("the old worker's connection lives: %d bytes", n)
	}
	eventually(t, "only the new worker is left", func() bool {
		now := children(r.pid)
		return len(now) > 0 && !slices.ContainsFunc(now, func(pid int) bool { return slices.Contains(before, pid) })
	})
	if _, err := (Signal{Proxy: NGINX, PIDFile: filepath.Join(t.TempDir(), "none")}).Older(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("nobody there: %v", err)
	}
	if none, err := (Signal{Proxy: HAProxy, PID: r.pid}).Older(t.Context()); err != nil || len(none.held) > 0 {
		t.Errorf("a proxy without titles: %v, %v", none, err)
	}
}

func TestWorkers(t *testing.T) {
	master, now, old := readWorkers("#<PID>          <type>          <reloads>\n9118            master          1\n# workers\n9343            worker          0\n# old workers\n9121            worker          1\n# programs\n\n")
	if master != 9118 || !slices.Equal(now, []int{9343}) || !slices.Equal(old, []int{9121}) {
		t.Errorf("%d, %v, %v", master, now, old)
	}
}

func FuzzWorkers(f *testing.F) {
	f.Add(fmt.Sprintf(shownProc, 3) + "# old workers\n-7 worker 1\n")
	f.Fuzz(func(t *testing.T, text string) {
		_, now, old := readWorkers(text)
		for _, pid := range append(now, old...) {
			if pid <= 0 {
				t.Errorf("process %d in %q", pid, text)
			}
		}
	})
}
