package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// However a mesh ends, no process and no file is left.
func TestNothingIsLeft(t *testing.T) {
	tests := map[string]func(t *testing.T, mesh *running){
		"Ctrl-C": func(t *testing.T, mesh *running) {
			// A terminal sends the signal to the whole process group.
			if err := syscall.Kill(-mesh.command.Process.Pid, syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
		},
		"SIGTERM": func(t *testing.T, mesh *running) {
			if err := mesh.command.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		},
		"kill -9 of every child, then SIGINT": func(t *testing.T, mesh *running) {
			for _, p := range descendants(t, mesh.command.Process.Pid) {
				_ = syscall.Kill(p.pid, syscall.SIGKILL) // it may have ended
			}
			if err := mesh.command.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, end := range tests {
		t.Run(name, func(t *testing.T) {
			tmp, marker := shortDir(t), fmt.Sprintf("COUNTERSIGN_TEST_MARK=%d.%d", os.Getpid(), time.Now().UnixNano())
			mesh := start(t, colorapp("mesh.yaml"), env("TMPDIR="+tmp, marker))
			if !strings.HasPrefix(mesh.State, tmp) {
				t.Errorf("the state is in %s, not below TMPDIR", mesh.State)
			}
			if n := len(marked(t, marker)); n < 5 { // up, server, two sidecars, an application
				t.Skipf("NOT TESTED: only %d processes can be recognised by their environment (it takes root)", n)
			}
			get(t, "http://"+mesh.inbound(t, "colorgateway", 8080)+"/color")
			began := time.Now()
			end(t, mesh)
			select {
			case err := <-mesh.ended:
				mesh.ended <- nil // for stop
				if err != nil {
					t.Errorf("up ended with %v", err)
				}
			case <-time.After(patience):
				t.Fatal("up goes on")
			}
			t.Logf("it took %s to end", time.Since(began).Round(time.Millisecond))
			if left := marked(t, marker); len(left) > 0 {
				t.Errorf("processes are left: %v", left)
			}
			if left, err := filepath.Glob(filepath.Join(tmp, "*")); err != nil || len(left) > 0 {
				t.Errorf("files are left: %v (%v)", left, err)
			}
		})
	}
}

// When `up` itself is killed its children die with it.
func TestKilledUpTakesItsChildrenAlong(t *testing.T) {
	marker := fmt.Sprintf("COUNTERSIGN_TEST_MARK=%d.%d", os.Getpid(), time.Now().UnixNano())
	mesh := start(t, colorapp("mesh.yaml"), env("TMPDIR="+shortDir(t), marker))
	if n := len(marked(t, marker)); n < 5 {
		t.Skipf("NOT TESTED: only %d processes can be recognised by their environment (it takes root)", n)
	}
	if err := mesh.command.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = gone(mesh.ended)
	mesh.ended <- nil // for stop
	await(t, "the end of all processes", func() (bool, string) {
		left := marked(t, marker)
		return len(left) == 0, fmt.Sprint(left)
	})
}

// shortDir is a directory whose name leaves room for that of a UNIX socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// marked are the processes whose environment holds a text.
func marked(t *testing.T, marker string) []string {
	t.Helper()
	var found []string
	for _, p := range processes(t) {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.pid))
		if err == nil && strings.Contains(string(data), marker) && p.state != "Z" {
			found = append(found, fmt.Sprintf("%d %v", p.pid, p.args))
		}
	}
	return found
}

// Two meshes of one specification run side by side.
func TestTwoMeshesOfOneFile(t *testing.T) {
	one, two := start(t, colorapp("mesh.yaml")), start(t, colorapp("mesh.yaml"))
	for _, mesh := range []*running{one, two} {
		if body := get(t, "http://"+mesh.inbound(t, "colorgateway", 8080)+"/color"); body != "yellow" {
			t.Errorf("the colour is %q", body)
		}
	}
	if one.State == two.State || one.inbound(t, "colorteller", 9080) == two.inbound(t, "colorteller", 9080) {
		t.Errorf("they share %s or %s", one.State, one.inbound(t, "colorteller", 9080))
	}
}
