//go:build unix

package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// faultChild, when set, makes the test binary carry out one operation and end: it is the process that
// dies. It has the form OPERATION:DIRECTORY.
const faultChild = "DURABLE_FAULT_CHILD"

// operations are what is interrupted. Each replaces what setUp has put there.
var operations = map[string]struct {
	run func(dir string) error
	// check looks at what is there after a crash or a success; it gives "old" or "new".
	check func(t *testing.T, dir string) string
	steps int // at least that many places to die at
}{
	"file": {
		run: func(dir string) error { return WriteFile(filepath.Join(dir, "file"), []byte("new"), 0o600) },
		check: func(t *testing.T, dir string) string {
			return mustRead(t, filepath.Join(dir, "file"))
		},
		steps: 8,
	},
	"generation": {
		run:   func(dir string) error { return WriteGeneration(dir, pair("new")) },
		check: func(t *testing.T, dir string) string { return current(t, dir) },
		steps: 20,
	},
	"generation for others": {
		run: func(dir string) error {
			return WriteGenerationFor(dir, pair("new"), Access{UID: os.Geteuid(), GID: os.Getegid(), Dir: 0o700})
		},
		check: func(t *testing.T, dir string) string { return current(t, dir) },
		steps: 26,
	},
}

// TestFaultChild is the process that dies; by itself it does nothing.
func TestFaultChild(t *testing.T) {
	name, dir, ok := strings.Cut(os.Getenv(faultChild), ":")
	if !ok {
		return
	}
	syscall.Umask(0) // what protects a secret must not be the caller's umask
	if err := operations[name].run(dir); err != nil {
		t.Fatal(err)
	}
}

// TestCrashAtEveryStep kills a process before and after each change of the disk that it makes, and
// expects the old contents or the new, no mode wider than asked, and that the next call cleans up.
func TestCrashAtEveryStep(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "durable.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-tags", "faultinject", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as the other steps of a check build the packages below it
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the process that dies: %v\n%s", err, output)
	}
	for name, operation := range operations {
		t.Run(name, func(t *testing.T) {
			deaths, seen := 0, map[string]int{}
			for step := 1; ; step++ {
				dir := t.TempDir()
				setUp(t, dir)
				died := runChild(t, binary, name+":"+dir, strconv.Itoa(step))
				checkModes(t, dir)
				found := operation.check(t, dir)
				if found != "old" && found != "new" {
					t.Fatalf("step %d: %q is there", step, found)
				}
				seen[found]++
				if !died {
					if found != "new" {
						t.Errorf("it succeeded, and %q is there", found)
					}
					break
				}
				deaths++
				repeat(t, dir, name)
			}
			if deaths < operation.steps || seen["old"] < 2 || seen["new"] < 2 {
				t.Errorf("it died in %d places, and found %v: the faults are not where they should be", deaths, seen)
			}
		})
	}
}

func setUp(t *testing.T, dir string) {
	t.Helper()
	if err := WriteFile(filepath.Join(dir, "file"), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"older", "old"} {
		if err := WriteGeneration(dir, pair(text)); err != nil {
			t.Fatal(err)
		}
	}
}

// runChild tells whether the child was killed by the fault.
func runChild(t *testing.T, binary, operation, step string) bool {
	t.Helper()
	child := exec.CommandContext(t.Context(), binary, "-test.run", "^TestFaultChild$")
	child.Env = append(os.Environ(), faultChild+"="+operation, "COUNTERSIGN_FAULT="+step)
	output, err := child.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
			return true
		}
	}
	if err != nil {
		t.Fatalf("step %s: %v\n%s", step, err, output)
	}
	return false
}

// checkModes refuses a file that is, at the moment of the crash, open to more than was asked for. The
// certificate is the one file that may be read by others.
func checkModes(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		allowed := fs.FileMode(0o600)
		switch {
		case path == dir:
			return nil // made by the test
		case entry.IsDir():
			allowed = 0o700
		case entry.Name() == "cert.pem":
			allowed = 0o644
		}
		if info.Mode().Perm()&^allowed != 0 {
			return fmt.Errorf("%s has the mode %04o", path, info.Mode().Perm())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// repeat carries the operation out again, as the next start would, and expects nothing to be left.
func repeat(t *testing.T, dir, name string) {
	t.Helper()
	if err := Sweep(dir); err != nil {
		t.Fatal(err)
	}
	if err := operations[name].run(dir); err != nil {
		t.Fatal(err)
	}
	if got := operations[name].check(t, dir); got != "new" {
		t.Errorf("after the repetition %q is there", got)
	}
	if got := names(t, filepath.Join(dir, "generations")); len(got) != 2 {
		t.Errorf("after the repetition there are the generations %q", got)
	}
	if got := names(t, dir); len(got) != 3 {
		t.Errorf("after the repetition there are %q", got)
	}
}
