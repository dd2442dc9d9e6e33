package integration

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
)

// binary is the path of countersign, built once for all tests.
var binary string

// soak tells that the long forms are wanted.
var soak = os.Getenv("COUNTERSIGN_SOAK") != ""

func TestMain(m *testing.M) {
	if role := os.Getenv(envRole); role != "" {
		os.Exit(runRole(role))
	}
	os.Exit(runTests(m))
}

// runTests builds the binary, runs the tests and stops the shared mesh.
func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "countersign-integration-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := parallel(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	binary = filepath.Join(dir, "countersign")
	if err := build(binary); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	status := m.Run()
	if err := stopLab(); err != nil {
		fmt.Fprintln(os.Stderr, "stopping the shared mesh:", err)
		return 1
	}
	return status
}

// parallel lets one more test than there are processors run at a time, unless -parallel was given: they wait for processes
// more than they work.
func parallel() error {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if given {
		return nil
	}
	return flag.Set("test.parallel", strconv.Itoa(runtime.GOMAXPROCS(0)+1))
}

// build makes the binary as it is released, with further tags for the tests that need them.
func build(path string, tags ...string) error {
	args := append([]string{"build", "-o", path}, tags...)
	// No time limit but that of the tests: the first build compiles SQLite.
	command := exec.CommandContext(context.Background(), "go", append(args, "countersign.dev/cmd/countersign")...)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("go %v: %w\n%s", command.Args[1:], err, out)
	}
	return nil
}

// peer finds a program that a test speaks to.
func peer(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed, and CI=true wants every peer: tools/install-peers.sh installs it", name)
	}
	t.Skipf("NOT TESTED: %s is not installed (tools/install-peers.sh installs it)", name)
	return ""
}
