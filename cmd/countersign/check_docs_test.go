package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestCheckPage runs the commands of docs/check-expiry.md, and sees that they print what it says.
func TestCheckPage(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("bash is not installed, and CI=true wants it")
		}
		t.Skip("NOT TESTED: bash is not installed")
	}
	text, err := os.ReadFile("../../docs/check-expiry.md")
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
	if len(blocks) < 4 {
		t.Fatalf("docs/check-expiry.md has %d blocks of commands", len(blocks))
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
	command := exec.CommandContext(t.Context(), "bash", "-c", "trap 'kill $SERVER 2>/dev/null' EXIT\n"+tutorialScript(blocks))
	command.Dir = dir
	command.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "COUNTERSIGN_RUN=", "GORACE=atexit_sleep_ms=0")
	if out, err := command.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for _, block := range blocks {
		block.check(t, dir)
	}
}

// TestCheckCodes asserts that the page has every code, and no other.
func TestCheckCodes(t *testing.T) {
	source, err := os.ReadFile("../../expiry/expiry.go")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/check-expiry.md")
	if err != nil {
		t.Fatal(err)
	}
	codes := func(text []byte, pattern string) []string {
		var all []string
		for _, match := range regexp.MustCompile(pattern).FindAllSubmatch(text, -1) {
			all = append(all, string(match[1]))
		}
		slices.Sort(all)
		return all
	}
	want := codes(source, `Code = "([a-z_]+)"`)
	if len(want) == 0 {
		t.Fatal("there are no codes")
	}
	if diff := cmp.Diff(want, codes(page, "(?m)^\\| `([a-z_]+)` \\|")); diff != "" {
		t.Errorf("codes on the page (-want +got):\n%s", diff)
	}
}
