package main

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	// The race detector makes every process wait a second at its end, for other threads' reports; the tests start
	// hundreds of processes that run this binary.
	_ = os.Setenv("GORACE", "atexit_sleep_ms=0") // a name and a value that cannot be refused
	testscript.Main(cleaned{m}, map[string]func(){"countersign": main})
}

// cleaned runs the tests and removes what all of them share.
type cleaned struct{ *testing.M }

func (c cleaned) Run() int {
	code := c.M.Run()
	if faulty.dir != "" {
		os.RemoveAll(faulty.dir)
	}
	return code
}

// faulty is the binary with the fault injection: it takes seconds to link, and is the same for all tests.
var faulty struct {
	once sync.Once
	dir  string
	err  error
}

// faultyBinary builds the command with the tag that lets a step kill it, once for all tests.
func faultyBinary(t *testing.T) string {
	t.Helper()
	faulty.once.Do(func() {
		if faulty.dir, faulty.err = os.MkdirTemp("", "cs"); faulty.err != nil {
			return
		}
		build := exec.Command("go", "build", "-tags", "faultinject", "-o", filepath.Join(faulty.dir, "countersign"), ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is released
		if output, err := build.CombinedOutput(); err != nil {
			faulty.err = fmt.Errorf("building with faults: %w\n%s", err, output)
		}
	})
	if faulty.err != nil {
		t.Fatal(faulty.err)
	}
	return filepath.Join(faulty.dir, "countersign")
}

// TestScripts runs every command line in testdata/script as a user would.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("GORACE", os.Getenv("GORACE"))
			if cache, err := os.UserCacheDir(); err == nil { // a script that builds a program need not build the standard library
				env.Setenv("GOCACHE", cmp.Or(os.Getenv("GOCACHE"), filepath.Join(cache, "go-build")))
			}
			return nil
		},
	})
}
