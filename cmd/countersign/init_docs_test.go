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

// TestInitPage runs the commands of docs/init.md, sees that they print what it says, and that the Dockerfile in it is
// the repository's.
func TestInitPage(t *testing.T) {
	text, err := os.ReadFile("../../docs/init.md")
	if err != nil {
		t.Fatal(err)
	}
	dockerfile, err := os.ReadFile("../../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(text, append(append([]byte("```dockerfile\n"), dockerfile...), "```\n"...)) {
		t.Error("docs/init.md has another Dockerfile than the repository")
	}
	for _, program := range []string{"bash", "openssl"} {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is not installed, and CI=true wants it", program)
			}
			t.Skipf("NOT TESTED: %s is not installed", program)
		}
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
		t.Fatalf("docs/init.md has %d blocks of commands", len(blocks))
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
	command := exec.Command("bash", "-c", tutorialScript(blocks))
	command.Dir = dir
	command.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "GORACE=atexit_sleep_ms=0")
	if out, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, block := range blocks {
		block.check(t, dir)
	}
}
