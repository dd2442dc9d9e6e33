package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
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
			before := family(t, mesh, marker)
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
			if left := remaining(t, before, marker); len(left) > 0 {
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
	before := family(t, mesh, marker)
	if err := mesh.command.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = gone(mesh.ended)
	mesh.ended <- nil // for stop
	await(t, "the end of all processes", func() (bool, string) {
		left := remaining(t, before, marker)
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

// family are the processes of a mesh: those below it now.
func family(t *testing.T, mesh *running, marker string) []process {
	t.Helper()
	found := append(descendants(t, mesh.command.Process.Pid), process{pid: mesh.command.Process.Pid})
	if len(found) < 5 { // up, server, two sidecars, an application
		t.Fatalf("only %d processes were found", len(found))
	}
	if n := len(marked(t, marker)); n < len(found) {
		t.Logf("NOT TESTED: %d of %d processes do not show their mark (it takes root); who changes parents is not found", len(found)-n, len(found))
	}
	return found
}

// remaining are those of a family that still run, and whatever else has the family's mark: who was
// started after the family was counted, or has another parent now. Only root reads the mark of
// processes that keep their memory to themselves.
func remaining(t *testing.T, family []process, marker string) []string {
	t.Helper()
	left := marked(t, marker)
	for _, p := range processes(t) {
		if p.state != "Z" && slices.ContainsFunc(family, func(f process) bool { return f.pid == p.pid && (f.args == nil || slices.Equal(f.args, p.args)) }) {
			left = append(left, fmt.Sprintf("%d %v", p.pid, p.args))
		}
	}
	return left
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
