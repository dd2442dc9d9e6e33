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

// TestKeysPage runs the commands of docs/keys.md and sees that they print what it says: most of them in a running
// mesh, those marked outside without one, and those marked rotation in one whose certificates live shortly.
func TestKeysPage(t *testing.T) {
	for _, program := range []string{"bash", "curl", "openssl"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is not installed, and CI=true wants it", program)
			}
			t.Skipf("NOT TESTED: %s is not installed", program)
		}
	}
	text, err := os.ReadFile("../../docs/keys.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := map[string][]tutorialBlock{}
	for n, match := range regexp.MustCompile("(?s)```sh( [a-z]+)?\n(.*?)```").FindAllSubmatch(text, -1) {
		block := tutorialBlock{number: n, commands: string(match[2])}
		for line := range strings.Lines(block.commands) {
			if prints, ok := strings.CutPrefix(line, "# => "); ok {
				block.prints = append(block.prints, strings.TrimSpace(prints))
			}
		}
		where := strings.TrimSpace(string(match[1]))
		blocks[where] = append(blocks[where], block)
	}
	if len(blocks) != 3 || len(blocks[""]) < 8 || len(blocks["outside"]) < 3 || len(blocks["rotation"]) != 1 {
		t.Fatalf("docs/keys.md has other blocks of commands than this test knows: %v", blocks)
	}
	dir := t.TempDir()
	temp, err := os.MkdirTemp("", "cs") // its name leaves room for a UNIX socket's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(temp) })
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	wrapper := fmt.Sprintf("#!/bin/bash\nexec -a countersign '%s' \"$@\"\n", executable)
	if err := os.WriteFile(filepath.Join(bin, "countersign"), []byte(wrapper), 0o700); err != nil {
		t.Fatal(err)
	}
	shell := func(script string) {
		t.Helper()
		command := exec.CommandContext(t.Context(), "bash", "-c", script)
		command.Dir = dir
		command.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "TMPDIR="+temp, "GORACE=atexit_sleep_ms=0")
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	setup := `
TELLER=$(tr , '\n' <$COUNTERSIGN_RUN | sed -n 's/.*"address":"\(.*:9080\)"/\1/p' | head -1)
ADMIN=$(tr , '\n' <$COUNTERSIGN_RUN | sed -n 's/.*"admin":"\(.*\)"/\1/p' | tail -1)
`
	for _, where := range []string{"", "rotation"} {
		if err := os.WriteFile(filepath.Join(dir, "inside"+where), []byte(setup+tutorialScript(blocks[where])+"true\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	shell("countersign example colorapp . && sed -i 's/ttl: .*}/ttl: 12s, renewAfter: 3s}/' rotation.yaml && grep 'renewAfter: 3s' rotation.yaml")
	shell("countersign up mesh.yaml --logs logs -- bash inside")
	shell("countersign up rotation.yaml --logs rotation -- bash insiderotation")
	shell(tutorialScript(blocks["outside"]) + "true")
	for _, all := range blocks {
		for _, block := range all {
			block.check(t, dir)
		}
	}
}
