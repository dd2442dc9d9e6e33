//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// record is what a program writes while it runs.
type record struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// await waits until the program has said something.
func (r *record) await(t *testing.T, ended <-chan error, what string) []string {
	t.Helper()
	pattern := regexp.MustCompile(what)
	for deadline := time.Now().Add(2 * time.Minute); ; {
		if found := pattern.FindStringSubmatch(r.String()); found != nil {
			return found
		}
		select {
		case err := <-ended:
			t.Fatalf("it has ended (%v) without saying %q:\n%s", err, what, r.String())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not say %q:\n%s", what, r.String())
		}
	}
}

// build builds the program.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "payments")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-pgo=off", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// TestStart starts the example, books a payment from outside, rotates by a line that is typed, and ends it by Ctrl-C.
func TestStart(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("CI has to run as root")
		}
		t.Skip("SKIPPED, AND WITH IT ALL THAT IT WOULD HAVE SHOWN: tasks in namespaces need root")
	}
	if _, err := os.Stat("../../../tools/bin/aws-venv/requirements"); err != nil && os.Getenv("CI") != "true" {
		t.Skipf("SKIPPED, AND WITH IT ALL THAT IT WOULD HAVE SHOWN: %v: run `make peers`", err)
	}
	files := t.TempDir()
	command := exec.CommandContext(t.Context(), build(t), "-second", "50ms")
	command.Env = append(os.Environ(), "TMPDIR="+files)
	var said record
	command.Stdout, command.Stderr = &said, &said
	typed, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	booking := said.await(t, ended, `curl (-d .*) (http://127\.0\.0\.1:\d+/payments)\n`)
	said.await(t, ended, `Ctrl-C ends everything`)
	if got := curl(t, "-d", `{"card": "4111111111111111", "amount": 12.34}`, booking[2]); !strings.Contains(got, `"card": "************1111"`) {
		t.Errorf("the payment: %s", got)
	}
	serial := said.await(t, ended, `(?m)^checkout .* ([0-9a-f]{24,32})$`)[1]
	if _, err := typed.Write([]byte("countersign rotate once checkout --force\nnonsense\nps\n")); err != nil {
		t.Error(err)
	}
	rotated := said.await(t, ended, `(?m)^checkout: rotated, and seen at 1 place: serial ([0-9a-f]{24,32}),`)[1]
	said.await(t, ended, `unexpected argument nonsense`)
	if said.await(t, ended, `(?m)^checkout .* `+rotated+`$`); rotated == serial {
		t.Errorf("nothing was rotated: %s", said.String())
	}
	// A store that was updated while the proxy serves the old certificate is what the check is there for.
	if _, err := typed.Write([]byte("check expiry mesh.yaml --settle 0s\n")); err != nil {
		t.Error(err)
	}
	said.await(t, ended, `(?m)^All is well with \d+ things that can end; looked at [3-9] endpoints\.$`)
	if _, err := typed.Write([]byte("rotate once ledger --force --no-deploy\ncheck expiry mesh.yaml --settle 0s\n")); err != nil {
		t.Error(err)
	}
	said.await(t, ended, `(?m)^CRITICAL store_ahead_of_endpoint  ledger  \w+  \S+\n.*: the new one was never taken\n.*aws ecs update-service --cluster payments --service ledger --force-new-deployment`)
	if got := curl(t, booking[2]+"/balance"); !strings.Contains(got, `"entries": 1`) {
		t.Errorf("the balance: %s", got)
	}
	if err := command.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("at its end: %v\n%s", err, said.String())
		}
	case <-time.After(time.Minute):
		t.Fatalf("it does not end:\n%s", said.String())
	}
	if left, err := os.ReadDir(files); err != nil || len(left) > 0 {
		t.Errorf("it leaves %v, %v", left, err)
	}
	if t.Failed() {
		t.Log(said.String())
	}
}

// curl asks a URL as a person would.
func curl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "curl", append([]string{"-sS", "--max-time", "20"}, args...)...).CombinedOutput()
	if err != nil {
		t.Errorf("curl %s: %v %s", args, err, out)
	}
	return string(out)
}

// TestRefused asserts what is said where it cannot be started.
func TestRefused(t *testing.T) {
	program := build(t)
	run := func(who uint32, dir string, args ...string) string {
		command := exec.CommandContext(t.Context(), program, args...)
		command.Dir = dir
		if who != 0 {
			command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: who, Gid: who}}
		}
		out, err := command.CombinedOutput()
		if _, ended := errors.AsType[*exec.ExitError](err); !ended {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	if got := run(0, "", "-tasks", "0"); !strings.Contains(got, "payments: -tasks 0 is out of range; give 1 to 4\nusage: sudo env PATH=\"$PATH\" go run ./aws/internal/payments") {
		t.Errorf("no tasks: %s", got)
	}
	if got := run(0, "", "-second", "1h"); !strings.Contains(got, "payments: -second 1h0m0s is out of range; give 10ms to 1s\n") {
		t.Errorf("too slow: %s", got)
	}
	if got := run(0, "", "ps"); !strings.Contains(got, `payments: unexpected argument "ps"; commands are typed when the example runs`) {
		t.Errorf("an argument: %s", got)
	}
	if os.Geteuid() != 0 {
		if got := run(0, ""); !strings.Contains(got, "which only root can make") {
			t.Errorf("not as root: %s", got)
		}
		return
	}
	for path := program; path != "/"; path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o755); err != nil && filepath.Dir(path) != "/" {
			t.Fatal(err)
		}
		if filepath.Dir(path) == os.TempDir() {
			break
		}
	}
	if got := run(65534, "/"); !strings.Contains(got, "which only root can make: run it by sudo env PATH=") {
		t.Errorf("as nobody: %s", got)
	}
	if got := run(0, "/"); !strings.Contains(got, "this has to be run in the repository of countersign.dev") {
		t.Errorf("elsewhere: %s", got)
	}
}

// TestInstalled asserts that who has not installed the peers is told how to.
func TestInstalled(t *testing.T) {
	root := t.TempDir()
	if err := installed(root); err == nil || !strings.Contains(err.Error(), "run `make peers` first") {
		t.Errorf("nothing is installed: %v", err)
	}
	file := filepath.Join(root, "tools", "bin", "aws-venv", "requirements")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := installed(root); err != nil {
		t.Errorf("all is installed: %v", err)
	}
}

// TestObey asserts what the words that are typed do.
func TestObey(t *testing.T) {
	for typed, want := range map[string]struct {
		says  string
		ended bool
	}{
		"ps\n":                         {"table\n", false},
		"\n  \nps":                     {"table\n", false},
		"rotate once --force\n":        {"run rotate once --force\n", false},
		"countersign rotate status\n":  {"run rotate status\n", false},
		"./bin/countersign ps\nexit\n": {"table\n", true},
		"help\n":                       {words + "Whatever else", false},
		"?\n":                          {words + "Whatever else", false},
		"countersign\n":                {words + "Whatever else", false},
		"help rotate\n":                {"run help rotate\n", false},
		"fail\nps\n":                   {"run fail\nbroken\ntable\n", false},
		"exit\nps\n":                   {"", true},
		"quit\n":                       {"", true},
	} {
		var out bytes.Buffer
		c := console{
			out:   &out,
			table: func() error { out.WriteString("table\n"); return nil },
			run: func(args ...string) error {
				out.WriteString("run " + strings.Join(args, " ") + "\n")
				if args[0] == "fail" {
					return errors.New("broken")
				}
				return nil
			},
		}
		ended := c.obey(t.Context(), strings.NewReader(typed))
		if got := out.String(); ended != want.ended || !strings.HasPrefix(got, want.says) || want.says == "" && got != "" {
			t.Errorf("%q: %q, ended %t; want %q, %t", typed, got, ended, want.says, want.ended)
		}
	}
	over, stop := context.WithCancel(t.Context())
	stop()
	if (console{}).obey(over, strings.NewReader("ps\n")) {
		t.Error("it goes on after its end")
	}
}

// TestTerminal asserts that what a test would fail with is what the program ends with, and that all is undone.
func TestTerminal(t *testing.T) {
	var said record
	for name, c := range map[string]struct {
		work func(t *terminal) error
		want string
	}{
		"well":  {func(*terminal) error { return nil }, ""},
		"error": {func(*terminal) error { return errors.New("broken") }, "broken"},
		"fatal": {func(t *terminal) error { t.Fatalf("no %s", "way"); return nil }, "no way"},
		"skip":  {func(t *terminal) error { t.Skip("no root"); return nil }, "no root"},
		"tests": {func(t *terminal) error {
			t.Skipf("SKIPPED, AND WITH IT ALL THAT IT WOULD HAVE SHOWN: no %s", "moto")
			return nil
		}, "no moto"},
		"later": {func(t *terminal) error { t.Errorf("first"); t.Error("second"); return nil }, "first\nsecond"},
	} {
		stand := newTerminal(context.Background(), &said)
		dir, order := "", ""
		err := stand.do(func() error {
			stand.Cleanup(func() { order += "2" })
			stand.Cleanup(func() { order += "1" })
			dir = stand.TempDir()
			return c.work(stand)
		})
		got := ""
		if err != nil {
			got = err.Error()
		}
		stand.end()
		if _, err := os.Stat(dir); got != c.want || stand.Failed() != (c.want != "" && name != "error") || order != "12" || err == nil {
			t.Errorf("%s: %q, want %q; undone in the order %s, %s: %v", name, got, c.want, order, dir, err)
		}
	}
}
