package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// page is a page of the documentation whose commands are run, as by somebody who follows it.
type page struct {
	t    *testing.T
	path string
	dir  string // where the commands work; its name leaves room for a UNIX socket's
	temp string // where they put what is temporary, in a directory that nobody else uses
	env  []string
	// blocks are those of commands, by the word after sh where they begin.
	blocks map[string][]pageBlock
}

// pageBlock is one block of commands and what they print, in this order.
type pageBlock struct {
	number   int
	commands string
	prints   []string
}

// openPage reads a page of docs and makes a place for its commands, where this test binary is countersign. A test
// without one of the programs that the page needs, beside bash, is skipped loudly, and fails where every peer is wanted.
func openPage(t *testing.T, name string, programs ...string) *page {
	t.Helper()
	for _, program := range append(programs, "bash") {
		_, err := exec.LookPath(program)
		if err != nil {
			_, err = exec.LookPath("/usr/sbin/" + program)
		}
		if err != nil && os.Getenv("CI") == "true" {
			t.Fatalf("%s is not installed, and CI=true wants it: tools/install-peers.sh installs the peers", program)
		}
		if err != nil {
			t.Skipf("NOT TESTED: %s is not installed", program)
		}
	}
	root, err := os.MkdirTemp("", "cs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	p := &page{t: t, path: filepath.Join("../../docs", name), dir: filepath.Join(root, "w"), temp: filepath.Join(root, "t")}
	bin := filepath.Join(root, "b")
	for _, dir := range []string{p.dir, p.temp, bin} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// By this name main_test.go makes countersign of the test binary.
	wrapper := fmt.Sprintf("#!/bin/bash\nexec -a countersign '%s' \"$@\"\n", executable)
	if err := os.WriteFile(filepath.Join(bin, "countersign"), []byte(wrapper), 0o700); err != nil {
		t.Fatal(err)
	}
	path := bin + ":" + os.Getenv("PATH") + ":/usr/sbin" // where distributions put servers
	p.env = append(os.Environ(), "PATH="+path, "TMPDIR="+p.temp, "COUNTERSIGN_RUN=", "GORACE=atexit_sleep_ms=0")
	p.read()
	return p
}

// read reads the blocks.
func (p *page) read() {
	p.t.Helper()
	text, err := os.ReadFile(p.path)
	if err != nil {
		p.t.Fatal(err)
	}
	p.blocks = make(map[string][]pageBlock)
	for n, match := range regexp.MustCompile("(?s)```sh( [a-z]+)?\n(.*?)```").FindAllSubmatch(text, -1) {
		block := pageBlock{number: n, commands: string(match[2])}
		for line := range strings.Lines(block.commands) {
			if prints, ok := strings.CutPrefix(line, "# => "); ok {
				block.prints = append(block.prints, strings.TrimSpace(prints))
			}
		}
		where := strings.TrimSpace(string(match[1]))
		p.blocks[where] = append(p.blocks[where], block)
	}
}

// atLeast gives the blocks that say nothing of where they belong, of which there are so many.
func (p *page) atLeast(n int) []pageBlock {
	p.t.Helper()
	if len(p.blocks[""]) < n {
		p.t.Fatalf("%s has %d blocks of commands", p.path, len(p.blocks[""]))
	}
	return p.blocks[""]
}

// write writes a script to the directory in which the commands work.
func (p *page) write(name, script string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), []byte(script), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// run runs a script and gives what it prints beside its blocks. What it leaves in the background ends with it.
func (p *page) run(script string) string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 5*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, "bash", "-c", script)
	command.Dir, command.Env = p.dir, p.env
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGKILL) }
	command.WaitDelay = 10 * time.Second
	out, err := command.CombinedOutput()
	_ = syscall.Kill(-command.Process.Pid, syscall.SIGTERM) // usually nobody is left
	if err != nil {
		printed, _ := filepath.Glob(filepath.Join(p.dir, "out.*")) // the pattern is one
		for _, file := range printed {
			text, _ := os.ReadFile(file)
			p.t.Logf("%s:\n%s", filepath.Base(file), text)
		}
		p.t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// check sees that the blocks have printed what the page says.
func (p *page) check() {
	p.t.Helper()
	var all []pageBlock
	for _, blocks := range p.blocks {
		all = append(all, blocks...)
	}
	slices.SortFunc(all, func(a, b pageBlock) int { return cmp.Compare(a.number, b.number) })
	for _, block := range all {
		block.check(p.t, p.dir)
	}
}

// pageScript runs blocks one after the other in one shell, each with its output in a file.
func pageScript(blocks []pageBlock) string {
	var script strings.Builder
	for _, block := range blocks {
		fmt.Fprintf(&script, "{\n%s\n} >out.%d 2>&1\n", block.commands, block.number)
	}
	return script.String()
}

// check sees that the block has printed what the page says.
func (b pageBlock) check(t *testing.T, dir string) {
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

// runPage runs the commands of a page, which has at least so many blocks, with the programs that it needs.
func runPage(t *testing.T, name string, least int, programs ...string) {
	t.Helper()
	p := openPage(t, name, programs...)
	p.run(pageScript(p.atLeast(least)))
	p.check()
}
