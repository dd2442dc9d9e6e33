//go:build unix

package filestore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"countersign.dev/secret"
)

// faultChild, when set, makes the test binary carry out one operation and end: it is the process that
// dies. It has the form OPERATION:DIRECTORY; the identity is DIRECTORY/id.age, the store DIRECTORY/store.
const faultChild = "FILESTORE_FAULT_CHILD"

// operations are what is interrupted: on a store where a has the versions 1 (previous), 2 (current) and 3
// (pending). A crash leaves one of the states, which are what shown gives.
var operations = map[string]struct {
	run    func(ctx context.Context, s *Store) error
	states []string
	steps  int // at least that many places to die at
}{
	"stage": {
		run: func(ctx context.Context, s *Store) error {
			_, err := s.Stage(ctx, "a", "4", []byte("four"))
			return err
		},
		states: []string{"3=three 2=two 1=one new -", "4=four 2=two 1=one new -"},
		steps:  16,
	},
	"promote": {
		run:    func(ctx context.Context, s *Store) error { return s.Promote(ctx, "a", "pending") },
		states: []string{"3=three 2=two 1=one new -", "- 3=three 2=two new -"},
		steps:  8,
	},
	"new": {
		run: func(ctx context.Context, s *Store) error {
			_, err := s.Stage(ctx, "new", "1", []byte("new"))
			return err
		},
		states: []string{"3=three 2=two 1=one new -", "3=three 2=two 1=one new 1=new"},
		steps:  20,
	},
	"prune": {
		run: func(ctx context.Context, s *Store) error {
			for i := range maxVersions {
				if _, err := s.Stage(ctx, "a", fmt.Sprint("p", i), []byte("p")); err != nil {
					return err
				}
			}
			return nil
		},
		steps: 16 * maxVersions,
	},
	"remove": {
		run:    func(ctx context.Context, s *Store) error { return s.Remove(ctx, "a", "pending") },
		states: []string{"3=three 2=two 1=one new -", "- 2=two 1=one new -"},
		steps:  8,
	},
	"lease": {
		run: func(ctx context.Context, s *Store) error {
			_, err := s.Lease(ctx, "a", "the dead one", minLease)
			return err
		},
		states: []string{"3=three 2=two 1=one new -"},
		steps:  8,
	},
}

// shown are the stages of a, and what is pending of new.
func shown(t *testing.T, s *Store) string {
	t.Helper()
	return staged(t, s, "a") + " new " + read(t, s, "new", "pending")
}

// TestFaultChild is the process that dies; by itself it does nothing.
func TestFaultChild(t *testing.T) {
	name, dir, ok := strings.Cut(os.Getenv(faultChild), ":")
	if !ok {
		return
	}
	syscall.Umask(0) // what protects a secret must not be the caller's umask
	s, err := openIn(dir)
	if name == "create" {
		err = createIn(dir)
	}
	if err == nil && name != "create" {
		err = operations[name].run(t.Context(), s)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func openIn(dir string) (*Store, error) {
	identity, err := LoadIdentity(filepath.Join(dir, "id.age"))
	if err != nil {
		return nil, err
	}
	return Open(filepath.Join(dir, "store"), identity)
}

func createIn(dir string) error {
	identity, err := LoadIdentity(filepath.Join(dir, "id.age"))
	if err != nil {
		return err
	}
	_, err = Create(filepath.Join(dir, "store"), identity)
	return err
}

// newPlace makes a directory with an identity in it.
func newPlace(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := GenerateIdentity(filepath.Join(dir, "id.age")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// steps calls try with the steps at which a process is to die: the first, every strideth from there, and the last one. try tells
// whether it died.
func steps(stride int, try func(step int) (died bool)) {
	last, step := 0, 1
	for try(step) {
		last, step = step, step+stride
	}
	for step--; step > last && !try(step); {
		step--
	}
}

// strideOf is a stride, and 1 with COUNTERSIGN_SOAK=1.
func strideOf(stride int) int {
	if os.Getenv("COUNTERSIGN_SOAK") != "" {
		return 1
	}
	return stride
}

// TestCrashAtEveryStep kills a process before and after changes of the disk that it makes, at every third of them: the store
// is as it was before or as it was to be, no file is open to others, and the next process succeeds.
func TestCrashAtEveryStep(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "filestore.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-tags", "faultinject", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as the other steps of a check build the packages below it
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the process that dies: %v\n%s", err, output)
	}
	t.Run("create", func(t *testing.T) { crashCreate(t, binary) })
	for name := range operations {
		t.Run(name, func(t *testing.T) { crash(t, binary, name) })
	}
}

func crashCreate(t *testing.T, binary string) {
	before, after, stride := 0, 0, strideOf(3)
	steps(stride, func(step int) bool {
		dir := newPlace(t)
		died := runChild(t, binary, "create:"+dir, step)
		_, err := openIn(dir)
		switch {
		case err == nil:
			after++
		case errors.Is(err, ErrNoStore) && died:
			before++
			if err := createIn(dir); err != nil {
				t.Fatalf("step %d: the next create: %v", step, err)
			}
		default:
			t.Fatalf("step %d: %v", step, err)
		}
		s, err := openIn(dir)
		if err != nil {
			t.Fatal(err)
		}
		put(t, s, "a", "1", "one")
		checkFiles(t, filepath.Join(dir, "store"), "one of")
		return died
	})
	if before*stride < 15 || after < 2 {
		t.Errorf("%d crashes before there was a store, %d after: the faults are not where they should be", before, after)
	}
}

func crash(t *testing.T, binary, name string) {
	operation := operations[name]
	deaths, seen, stride := 0, map[string]int{}, strideOf(3)
	try := func(step int) bool {
		dir := newPlace(t)
		if err := createIn(dir); err != nil {
			t.Fatal(err)
		}
		s, err := openIn(dir)
		if err != nil {
			t.Fatal(err)
		}
		put(t, s, "a", "1", "one")
		put(t, s, "a", "2", "two")
		stage(t, s, "a", "3", "three")
		died := runChild(t, binary, name+":"+dir, step)
		checkFiles(t, s.dir)
		checkCrashed(t, s, name, step, seen)
		if died {
			deaths++
			repeat(t, s, name)
		}
		return died
	}
	if name == "prune" { // hundreds of steps that repeat, the last like others; 37 shares no factor with their period
		stride = strideOf(37)
		for step := 1; try(step); step += stride {
		}
	} else {
		steps(stride, try)
	}
	for _, state := range operation.states {
		if seen[state] == 0 {
			t.Errorf("no crash left %s", state)
		}
	}
	if deaths*stride < operation.steps {
		t.Errorf("it died in %d places: the faults are not where they should be", deaths)
	}
}

func checkCrashed(t *testing.T, s *Store, name string, step int, seen map[string]int) {
	t.Helper()
	if _, err := s.List(t.Context()); err != nil {
		t.Errorf("step %d: %v", step, err)
	}
	versions, err := s.Versions(t.Context(), "a")
	if err != nil {
		t.Fatalf("step %d: %v", step, err)
	}
	for _, version := range versions {
		read(t, s, "a", version.ID)
	}
	got := shown(t, s)
	seen[got]++
	if name == "prune" {
		if !strings.HasSuffix(got, " 2=two 1=one new -") {
			t.Errorf("step %d: %s", step, got)
		}
		return
	}
	for _, state := range operations[name].states {
		if got == state {
			return
		}
	}
	t.Errorf("step %d: %s", step, got)
}

// repeat carries the operation out again, as the next start would, and expects nothing to be left.
func repeat(t *testing.T, s *Store, name string) {
	t.Helper()
	var err error
	if name != "promote" || read(t, s, "a", "pending") != "-" {
		err = operations[name].run(t.Context(), s)
	}
	var held *secret.HeldError
	if name == "lease" && errors.As(err, &held) && held.Holder == "the dead one" && time.Until(held.Until) < minLease {
		err = nil // it was taken before the crash, and runs out by itself
	}
	if err != nil {
		t.Fatalf("repeating: %v", err)
	}
	want := operations[name].states
	if got := shown(t, s); len(want) > 0 && got != want[len(want)-1] {
		t.Errorf("after the repetition: %s", got)
	}
	put(t, s, "a", "last", "last")
	put(t, s, "last", "last", "last")
	versions, err := s.Versions(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	if files, err := os.ReadDir(s.secretDir("a")); err != nil || len(files) != len(versions)+1 {
		t.Errorf("there are %v of %d versions: %v", files, len(versions), err)
	}
	if files, err := os.ReadDir(s.path(stagingDir)); err != nil || len(files) != 0 {
		t.Errorf("left in staging: %v, %v", files, err)
	}
}

// runChild tells whether the child was killed by the fault.
func runChild(t *testing.T, binary, operation string, step int) bool {
	t.Helper()
	child := exec.CommandContext(t.Context(), binary, "-test.run", "^TestFaultChild$")
	child.Env = append(os.Environ(), faultChild+"="+operation, "COUNTERSIGN_FAULT="+strconv.Itoa(step))
	output, err := child.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
			return true
		}
	}
	if err != nil {
		t.Fatalf("step %d: %v\n%s", step, err, output)
	}
	return false
}
