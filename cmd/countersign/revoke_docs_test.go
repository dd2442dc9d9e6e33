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

// TestRevokePage runs the commands of docs/revoke.md and sees that they print what it says.
func TestRevokePage(t *testing.T) {
	for _, program := range []string{"bash", "curl", "openssl"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is not installed, and CI=true wants it", program)
			}
			t.Skipf("NOT TESTED: %s is not installed", program)
		}
	}
	text, err := os.ReadFile("../../docs/revoke.md")
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
		t.Fatalf("docs/revoke.md has %d blocks of commands", len(blocks))
	}
	dir, err := os.MkdirTemp("", "cs") // its name leaves room for a UNIX socket's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	wrapper := fmt.Sprintf("#!/bin/bash\nexec -a countersign '%s' \"$@\"\n", executable)
	if err := os.WriteFile(filepath.Join(bin, "countersign"), []byte(wrapper), 0o700); err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), "bash", "-c", tutorialScript(blocks))
	command.Dir = dir
	command.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "TMPDIR="+dir, "GORACE=atexit_sleep_ms=0")
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, block := range blocks {
		block.check(t, dir)
	}
}
