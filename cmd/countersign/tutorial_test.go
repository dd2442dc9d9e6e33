package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestTutorial runs the commands of the tutorial and sees that they print what it says. What needs a
// running mesh is run in one, in the order of the text; what starts one itself is run afterwards.
func TestTutorial(t *testing.T) {
	for _, program := range []string{"curl", "openssl"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is not installed, and CI=true wants it", program)
			}
			t.Skipf("NOT TESTED: %s is not installed", program)
		}
	}
	inside, outside := tutorialBlocks(t)
	if len(inside) == 0 || len(outside) == 0 {
		t.Fatal("the tutorial has no commands")
	}
	dir := t.TempDir()
	// The shell of the tutorial finds this test binary as countersign, which main_test.go makes of it.
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	wrapper := fmt.Sprintf("#!/bin/bash\nexec -a countersign '%s' \"$@\"\n", executable)
	if err := os.WriteFile(filepath.Join(bin, "countersign"), []byte(wrapper), 0o700); err != nil {
		t.Fatal(err)
	}
	temp, err := os.MkdirTemp("", "cs") // its name leaves room for a UNIX socket's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(temp) })
	shell := func(script string) {
		t.Helper()
		command := exec.Command("bash", "-c", script)
		command.Dir = dir
		command.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "TMPDIR="+temp, "GORACE=atexit_sleep_ms=0")
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}

	shell("countersign example colorapp .")
	setup := `
GATEWAY=$(tr , '\n' <$COUNTERSIGN_RUN | sed -n 's/.*"address":"\(.*:8080\)"/\1/p')
TELLER=$(tr , '\n' <$COUNTERSIGN_RUN | sed -n 's/.*"address":"\(.*:9080\)"/\1/p' | head -1)
ADMIN=$(tr , '\n' <$COUNTERSIGN_RUN | sed -n 's/.*"admin":"\(.*\)"/\1/p' | tail -1)
`
	if err := os.WriteFile(filepath.Join(dir, "inside.sh"), []byte(setup+tutorialScript(inside)), 0o600); err != nil {
		t.Fatal(err)
	}
	shell("countersign up mesh.yaml --logs logs -- bash inside.sh")
	shell(tutorialScript(outside))
	for _, block := range append(inside, outside...) {
		block.check(t, dir)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) != 0 {
		t.Errorf("%v is left (%v)", left, err)
	}
}

// tutorialBlock is one block of commands and what they print, in this order.
type tutorialBlock struct {
	number   int
	commands string
	prints   []string
}

// tutorialBlocks reads the blocks: those that need a running mesh, and those that start one.
func tutorialBlocks(t *testing.T) (inside, outside []tutorialBlock) {
	t.Helper()
	text, err := os.ReadFile("../../docs/tutorial-colorapp.md")
	if err != nil {
		t.Fatal(err)
	}
	for n, match := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllSubmatch(text, -1) {
		block := tutorialBlock{number: n, commands: string(match[1])}
		for line := range bytes.Lines(match[1]) {
			if prints, ok := bytes.CutPrefix(line, []byte("# => ")); ok {
				block.prints = append(block.prints, strings.TrimSpace(string(prints)))
			}
		}
		if strings.Contains(block.commands, "countersign up") {
			outside = append(outside, block)
		} else {
			inside = append(inside, block)
		}
	}
	return inside, outside
}

// tutorialScript runs blocks one after the other in one shell, each with its output in a file.
func tutorialScript(blocks []tutorialBlock) string {
	var script strings.Builder
	for _, block := range blocks {
		fmt.Fprintf(&script, "{\n%s\n} >out.%d 2>&1\n", block.commands, block.number)
	}
	return script.String()
}

// check sees that the block has printed what the tutorial says.
func (b tutorialBlock) check(t *testing.T, dir string) {
	t.Helper()
	out, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("out.%d", b.number)))
	if err != nil {
		t.Fatal(err)
	}
	rest := string(out)
	for _, prints := range b.prints {
		_, after, found := strings.Cut(rest, prints)
		if !found {
			t.Errorf("the commands\n%sdo not print %q, but\n%s", b.commands, prints, out)
			return
		}
		rest = after
	}
}
