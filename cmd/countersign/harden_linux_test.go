package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// hardenChild, when set, makes the test binary harden itself as the command that it names and report;
// hardenGrandchild makes it report only.
const (
	hardenChild      = "HARDEN_CHILD"
	hardenGrandchild = "HARDEN_GRANDCHILD"
)

// hardness is what a process says about itself.
type hardness struct {
	Dumpable   int       `json:"dumpable"`
	Core       uint64    `json:"core"` // the soft limit
	Grandchild *hardness `json:"grandchild,omitempty"`
}

func ownHardness() (*hardness, error) {
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		return nil, err
	}
	var limit unix.Rlimit
	err = unix.Getrlimit(unix.RLIMIT_CORE, &limit)
	return &hardness{Dumpable: dumpable, Core: limit.Cur}, err
}

// TestHardenChild is the process that is looked at; by itself it does nothing.
func TestHardenChild(t *testing.T) {
	command, child := os.LookupEnv(hardenChild)
	_, grandchild := os.LookupEnv(hardenGrandchild)
	if !child && !grandchild {
		return
	}
	if child {
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
			t.Fatal(err)
		}
		limit.Cur = limit.Max // so that there is something to see
		if err := unix.Setrlimit(unix.RLIMIT_CORE, &limit); err != nil {
			t.Fatal(err)
		}
		if err := harden(command); err != nil {
			t.Fatal(err)
		}
	}
	own, err := ownHardness()
	if err != nil {
		t.Fatal(err)
	}
	if child {
		own.Grandchild = report(t, hardenGrandchild+"=1")
	}
	text, err := json.Marshal(own)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(os.Stderr, "%s\n", text)
	os.Exit(0) // without what the testing package would print
}

// report starts this test binary and reads what it says about itself.
func report(t *testing.T, env string) *hardness {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), self, "-test.run", "^TestHardenChild$")
	for _, variable := range os.Environ() {
		if variable != "" && !isHardenVariable(variable) {
			child.Env = append(child.Env, variable)
		}
	}
	child.Env = append(child.Env, env)
	output, err := child.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	var h hardness
	if err := json.Unmarshal(output, &h); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	return &h
}

func isHardenVariable(variable string) bool {
	for _, name := range []string{hardenChild, hardenGrandchild} {
		if len(variable) > len(name) && variable[:len(name)+1] == name+"=" {
			return true
		}
	}
	return false
}

// TestHarden looks at processes that hold keys, and at the children of `up`, which are other people's
// applications and have to be as they were.
func TestHarden(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Max == 0 {
		t.Log("LESS IS TESTED: core dumps are forbidden here already (ulimit -H -c is 0)")
	}
	cases := map[string]struct {
		dumpable   int
		core       uint64
		childsCore uint64
	}{
		"ca issue <workload>":     {0, 0, 0},
		"server":                  {0, 0, 0},
		"proxy":                   {0, 0, 0},
		"init":                    {0, 0, 0},
		"up <path> <command>":     {0, limit.Max, limit.Max},
		"example run colorteller": {1, limit.Max, limit.Max},
	}
	for command, want := range cases {
		got := report(t, hardenChild+"="+command)
		if got.Dumpable != want.dumpable || got.Core != want.core {
			t.Errorf("%s: dumpable %d and a core of %d, want %d and %d", command, got.Dumpable, got.Core, want.dumpable, want.core)
		}
		if got.Grandchild == nil || got.Grandchild.Dumpable != 1 || got.Grandchild.Core != want.childsCore {
			t.Errorf("a child of %s: %+v, want dumpable 1 and a core of %d", command, got.Grandchild, want.childsCore)
		}
	}
}
