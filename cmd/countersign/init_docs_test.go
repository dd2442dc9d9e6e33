package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
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
	runPage(t, "../../docs/init.md", 4, "bash", "openssl")
}

// TestStorePage runs the commands of docs/secret-store-to-nginx.md with the real NGINX, and sees that they print what it says.
func TestStorePage(t *testing.T) {
	runPage(t, "../../docs/secret-store-to-nginx.md", 6, "bash", "nginx", "curl")
}

// runPage runs the commands of a page, which has at least so many blocks, with the programs that it needs.
func runPage(t *testing.T, page string, least int, programs ...string) {
	t.Helper()
	path := os.Getenv("PATH") + ":/usr/sbin" // where distributions put servers
	t.Setenv("PATH", path)
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range programs {
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
	if len(blocks) < least {
		t.Fatalf("%s has %d blocks of commands", page, len(blocks))
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
	wrapper := fmt.Sprintf("#!/bin/bash\nexec -a countersign '%s' \"$@\"\n", executable)
	if err := os.WriteFile(filepath.Join(dir, "countersign"), []byte(wrapper), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, "bash", "-c", tutorialScript(blocks))
	command.Dir = dir
	command.Env = append(os.Environ(), "PATH="+dir+":"+path, "GORACE=atexit_sleep_ms=0")
	// What a page leaves in the background ends with it.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGKILL) }
	command.WaitDelay = 10 * time.Second
	out, err := command.CombinedOutput()
	_ = syscall.Kill(-command.Process.Pid, syscall.SIGTERM) // usually nobody is left
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for _, block := range blocks {
		block.check(t, dir)
	}
}
