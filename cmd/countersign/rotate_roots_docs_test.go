package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestRotateRootsPage runs the commands of docs/rotate-roots.md in a running mesh, in their order, and sees
// that they print what it says.
func TestRotateRootsPage(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("bash is not installed, and CI=true wants it")
		}
		t.Skip("NOT TESTED: bash is not installed")
	}
	text, err := os.ReadFile("../../docs/rotate-roots.md")
	if err != nil {
		t.Fatal(err)
	}
	var blocks []tutorialBlock
	for n, match := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllSubmatch(text, -1) {
		block := tutorialBlock{number: n, commands: string(match[1])}
		for line := range strings.Lines(block.commands) {
			if prints, ok := strings.CutPrefix(line, "# => "); ok {
				block.prints = append(block.prints, strings.TrimSpace(prints))
			}
		}
		blocks = append(blocks, block)
	}
	if len(blocks) < 3 {
		t.Fatalf("docs/rotate-roots.md has %d blocks of commands", len(blocks))
	}
	dir := t.TempDir()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	wrapper := fmt.Sprintf("#!/bin/bash\nexec -a countersign '%s' \"$@\"\n", executable)
	if err := os.WriteFile(filepath.Join(dir, "countersign"), []byte(wrapper), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "inside.sh"), []byte(tutorialScript(blocks)), 0o600); err != nil {
		t.Fatal(err)
	}
	temp, err := os.MkdirTemp("", "cs") // its name leaves room for a UNIX socket's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(temp) })
	mesh, err := filepath.Abs("../../examples/colorapp/rotation.yaml")
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command("countersign", "up", mesh, "--logs", "logs", "--", "bash", "inside.sh")
	command.Path = filepath.Join(dir, "countersign")
	command.Err = nil // it is not in this process's PATH
	command.Dir = dir
	command.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "TMPDIR="+temp, "GORACE=atexit_sleep_ms=0")
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, block := range blocks {
		block.check(t, dir)
	}
}
