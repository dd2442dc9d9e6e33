package up

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// shell launches a child that runs a script; the console's text comes with it.
func shell(t *testing.T, script string) (*child, *buffer) {
	t.Helper()
	return launch(t, func() (*exec.Cmd, error) { return exec.Command("sh", "-c", script), nil })
}

func launch(t *testing.T, command func() (*exec.Cmd, error)) (*child, *buffer) {
	t.Helper()
	text := new(buffer)
	c := &console{w: text}
	log, err := (&logs{console: c}).open("test", "test")
	if err != nil {
		t.Fatal(err)
	}
	s := newStarter()
	launched := &child{name: "test", command: command, log: log, starter: s, console: c}
	launched.launch()
	t.Cleanup(func() {
		launched.stop(0, nil)
		s.close()
	})
	return launched, text
}

func pidOf(c *child) int {
	pid, _, _ := c.process()
	return pid
}

func TestChildIsRestarted(t *testing.T) {
	c, text := shell(t, "echo started; exec sleep 1000")
	eventually(t, "the child runs", func() bool { return alive(pidOf(c)) && strings.Contains(text.String(), "test | started") })
	first := pidOf(c)
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it runs again", func() bool { return pidOf(c) != first && alive(pidOf(c)) })
	if _, exits, last := c.process(); exits != 1 || ending(last) != "was killed (killed)" {
		t.Errorf("it ended %d times and %s, want once, killed", exits, ending(last))
	}
	if !strings.Contains(text.String(), "test was killed (killed); it is started again in 100ms") {
		t.Errorf("the console has:\n%s", text)
	}
	second := pidOf(c)
	c.stop(20*time.Second, nil)
	if alive(second) {
		t.Error("it runs after it was stopped")
	}
}

// TestChildLeavesNobody: what a child has started goes with it, however it ends.
func TestChildLeavesNobody(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pid")
	c, _ := shell(t, "sleep 1000 & echo $! > "+file+".new; mv "+file+".new "+file+"; wait")
	grandchild := func() int {
		data, _ := os.ReadFile(file)
		pid, _ := strconv.Atoi(strings.TrimSpace(string(data)))
		return pid
	}
	eventually(t, "the grandchild runs", func() bool { return alive(grandchild()) })
	first := grandchild()
	if err := syscall.Kill(pidOf(c), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first grandchild is gone", func() bool { return !alive(first) })
	eventually(t, "there is a second one", func() bool { return grandchild() != first && alive(grandchild()) })
	second := grandchild()
	c.stop(20*time.Second, nil)
	eventually(t, "the second grandchild is gone", func() bool { return !alive(second) })
}

func TestChildThatDoesNotStop(t *testing.T) {
	stubborn := "trap '' TERM; echo ready; while :; do sleep 1000; done"
	t.Run("is killed after its time", func(t *testing.T) {
		c, text := shell(t, stubborn)
		eventually(t, "the child runs", func() bool { return strings.Contains(text.String(), "ready") })
		c.stop(30*time.Millisecond, nil)
		if alive(pidOf(c)) || !strings.Contains(text.String(), "did not end within 30ms and is killed") {
			t.Errorf("it lives, or the console does not say so:\n%s", text)
		}
	})
	t.Run("is killed in a hurry", func(t *testing.T) {
		c, text := shell(t, stubborn)
		eventually(t, "the child runs", func() bool { return strings.Contains(text.String(), "ready") })
		hurry := make(chan struct{})
		close(hurry)
		c.stop(time.Hour, hurry)
		if alive(pidOf(c)) {
			t.Error("it lives")
		}
	})
}

func TestChildThatCannotStart(t *testing.T) {
	var tries atomic.Int32
	c, _ := launch(t, func() (*exec.Cmd, error) {
		tries.Add(1)
		return exec.Command(filepath.Join(t.Name(), "nosuch")), nil
	})
	eventually(t, "it was tried twice", func() bool { return tries.Load() >= 2 })
	_, _, last := c.process()
	var start *startError
	if !errors.As(last, &start) || !strings.Contains(ending(last), "cannot be started") {
		t.Errorf("it ended with %v, want a startError", last)
	}
}

func TestEnding(t *testing.T) {
	for script, want := range map[string]string{
		"exit 0":     "has ended with status 0",
		"exit 3":     "has ended with status 3",
		"kill -9 $$": "was killed (killed)",
	} {
		if got := ending(exec.Command("sh", "-c", script).Run()); got != want {
			t.Errorf("%q %s, want %s", script, got, want)
		}
	}
}

// TestParentIsKilled: after a kill -9 of the process that starts them, no child is left.
func TestParentIsKilled(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux ties a child's life to its parent's")
	}
	parent, out := helper(t, "parent")
	if !out.Scan() {
		t.Fatal("the helper says nothing")
	}
	pid, err := strconv.Atoi(out.Text())
	if err != nil || !alive(pid) {
		t.Fatalf("the helper's child is %q, alive: %v", out.Text(), alive(pid))
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the child is gone", func() bool { return !alive(pid) })
}

// TestOrphans: a process that has left its group and lost its parent is found and ended.
func TestOrphans(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux lets a process adopt orphans")
	}
	_, out := helper(t, "adopter")
	var lines []string
	for out.Scan() {
		lines = append(lines, out.Text())
	}
	if len(lines) != 2 || !strings.HasSuffix(lines[0], "<nil> alive: true") || lines[1] != "<nil> alive: false" {
		t.Errorf("the helper says:\n%s\nwant an orphan that lives, and then does not", strings.Join(lines, "\n"))
	}
}

func TestEnvironmentHidesAnOuterRun(t *testing.T) {
	t.Setenv(EnvRun, "/outer")
	t.Setenv(otherMesh, "/elsewhere/mesh.yaml")
	t.Setenv("COUNTERSIGN_RUNS", "kept")
	env := strings.Join(environment(), "\n") + "\n"
	if strings.Contains(env, EnvRun+"=") || strings.Contains(env, otherMesh+"=") || !strings.Contains(env, "COUNTERSIGN_RUNS=kept\n") {
		t.Errorf("the environment of a child is\n%s", env)
	}
}
