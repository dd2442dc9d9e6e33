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

// pageBlocks reads the blocks of commands of a page, by the word after sh.
func pageBlocks(t *testing.T, path string) map[string][]tutorialBlock {
	t.Helper()
	text, err := os.ReadFile(path)
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
	return blocks
}

// pageShell gives a directory, and what runs a script of bash there: this test binary is its countersign, which
// main_test.go makes of it. The programs have to be there.
func pageShell(t *testing.T, programs ...string) (dir string, shell func(script string)) {
	t.Helper()
	path := os.Getenv("PATH") + ":/usr/sbin" // where distributions put NGINX and HAProxy
	t.Setenv("PATH", path)
	for _, program := range append(programs, "bash") {
		if _, err := exec.LookPath(program); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is not installed, and CI=true wants it: tools/install-peers.sh installs the peers", program)
			}
			t.Skipf("NOT TESTED: %s is not installed", program)
		}
	}
	dir = t.TempDir()
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
	return dir, func(script string) {
		t.Helper()
		command := exec.CommandContext(t.Context(), "bash", "-c", script)
		command.Dir = dir
		command.Env = append(os.Environ(), "PATH="+bin+":"+path, "TMPDIR="+temp, "GORACE=atexit_sleep_ms=0")
		if out, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
}

// inside writes blocks as the script name, to be run by `up`.
func inside(t *testing.T, dir, name, setup string, blocks []tutorialBlock) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(setup+tutorialScript(blocks)+"true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestKeysPage runs the commands of docs/keys.md and sees that they print what it says: most of them in a running
// mesh, those marked outside without one, and those marked rotation in one whose certificates live shortly.
func TestKeysPage(t *testing.T) {
	blocks := pageBlocks(t, "../../docs/keys.md")
	if len(blocks) != 3 || len(blocks[""]) < 8 || len(blocks["outside"]) < 3 || len(blocks["rotation"]) != 1 {
		t.Fatalf("docs/keys.md has other blocks of commands than this test knows: %v", blocks)
	}
	dir, shell := pageShell(t, "curl", "openssl")
	setup := `
TELLER=$(tr , '\n' <$COUNTERSIGN_RUN | sed -n 's/.*"address":"\(.*:9080\)"/\1/p' | head -1)
ADMIN=$(tr , '\n' <$COUNTERSIGN_RUN | sed -n 's/.*"admin":"\(.*\)"/\1/p' | tail -1)
`
	inside(t, dir, "inside.sh", setup, blocks[""])
	inside(t, dir, "rotation.sh", setup, blocks["rotation"])
	shell("countersign example colorapp . && sed -i 's/ttl: .*}/ttl: 12s, renewAfter: 3s}/' rotation.yaml && grep 'renewAfter: 3s' rotation.yaml")
	shell("countersign up mesh.yaml --logs logs -- bash inside.sh")
	shell("countersign up rotation.yaml --logs rotation -- bash rotation.sh")
	shell(tutorialScript(blocks["outside"]) + "true")
	for _, all := range blocks {
		for _, block := range all {
			block.check(t, dir)
		}
	}
}

// TestPaymentsPage runs the commands of docs/payments.md on real NGINX and HAProxy.
func TestPaymentsPage(t *testing.T) {
	blocks := pageBlocks(t, "../../docs/payments.md")[""]
	if len(blocks) < 8 {
		t.Fatalf("docs/payments.md has %d blocks of commands", len(blocks))
	}
	dir, shell := pageShell(t, "curl", "nginx", "haproxy")
	inside(t, dir, "inside.sh", `
at() { tr , '\n' <$COUNTERSIGN_RUN | sed -n "s/.*\"address\":\"\(.*:$1\)\"/\1/p" | head -1; }
GATE=$(at 8080) BOOKS=$(at 8090) TILL=$(at 7070)
`, blocks)
	shell("countersign example payments . && countersign up mesh.yaml --logs logs -- bash inside.sh")
	for _, block := range blocks {
		block.check(t, dir)
	}
}
