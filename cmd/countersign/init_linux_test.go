package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// initPatience is how long a process may take for what it has to do.
const initPatience = 90 * time.Second

// initLab is an authority's credential in a directory.
func initLab(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, args := range [][]string{
		{"ca", "init", "--state", filepath.Join(dir, "state"), "--trust-domain", "shop.internal", "--unsealed"},
		{"ca", "issue", "--state", filepath.Join(dir, "state"), "--unsealed", "service/orders", "--out", filepath.Join(dir, "made")},
	} {
		if output, err := initCommand(t, nil, args...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, output)
		}
	}
	return dir
}

// initCommand is this test binary as countersign; see TestMain.
func initCommand(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// main_test.go looks at the name of the program's file.
	bin := filepath.Join(t.TempDir(), "countersign")
	if err := os.Symlink(self, bin); err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(context.WithoutCancel(t.Context()), bin, args...)
	command.Env = append(os.Environ(), env...)
	return command
}

// TestInitEnvironment looks at the process before its end, which is while it waits to say what it did: neither its
// environment nor its arguments hold a part of the key, and it allows no core dump. Before it starts itself anew its environment
// does hold the key, which shows that the search works.
func TestInitEnvironment(t *testing.T) {
	dir := initLab(t)
	env, key := initVariables(t, dir)
	env = append(env, "MARKER=planted-for-the-search")
	control := exec.Command("sleep", "60")
	control.Env = env
	if err := control.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = control.Process.Kill() // it is there to be looked at
		_ = control.Wait()
	}()
	// A program that was just started has no environment for a moment, as far as /proc is concerned.
	for deadline := time.Now().Add(initPatience); !initSearch(t, control.Process.Pid, key); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the search does not find a key in an environment that holds it")
		}
	}

	command := initCommand(t, env, "init", "--from", "env", "--to", filepath.Join(dir, "tls"))
	var output bytes.Buffer
	command.Stderr = &output
	stdout, full := initFullPipe(t)
	command.Stdout = full
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	if err := full.Close(); err != nil { // the process has its own
		t.Fatal(err)
	}
	keyFile := filepath.Join(dir, "tls", "current", "key.pem")
	initAwait(t, keyFile)
	if os.Geteuid() != 0 {
		if _, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", command.Process.Pid)); err == nil {
			t.Error("its environment can be read by processes of its user")
		}
	} else {
		if initSearch(t, command.Process.Pid, key) || initSearch(t, command.Process.Pid, []byte("planted-for-the-search")) {
			t.Error("the process that works has the key, or other variables, in its environment or its arguments")
		}
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", command.Process.Pid))
	if err != nil || !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), "Max core file size 0 ") {
		t.Errorf("it may leave a core (%v)", err)
	}
	said, err := io.ReadAll(stdout)
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, output.Bytes())
	}
	if bytes.Contains(output.Bytes(), key) || bytes.Contains(said, key) || !bytes.Contains(said, []byte("spiffe://shop.internal/service/orders")) {
		t.Error("its output holds the key, or not what it says")
	}
	written, err := os.ReadFile(keyFile)
	if err != nil || !bytes.Contains(written, key) {
		t.Errorf("the key is not what it wrote (%v)", err)
	}
}

// initVariables are the variables of a good start, and a line of the key.
func initVariables(t *testing.T, dir string) (env []string, key []byte) {
	t.Helper()
	for variable, name := range map[string]string{"CERT_PEM": "cert.pem", "KEY_PEM": "key.pem", "CA_BUNDLE": "ca.pem"} {
		text, err := os.ReadFile(filepath.Join(dir, "made", "current", name))
		if err != nil {
			t.Fatal(err)
		}
		env = append(env, variable+"="+string(text))
		if variable == "KEY_PEM" {
			key = bytes.Split(text, []byte("\n"))[1]
		}
	}
	return env, key
}

// initSearch looks for a text in the environment and the arguments of a process.
func initSearch(t *testing.T, pid int, text []byte) bool {
	t.Helper()
	for _, name := range []string{"environ", "cmdline"} {
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(content, text) {
			return true
		}
	}
	return false
}

// initFullPipe is a pipe that takes nothing more until somebody reads: who writes to it waits.
func initFullPipe(t *testing.T) (reader, writer *os.File) {
	t.Helper()
	var ends [2]int
	if err := syscall.Pipe2(ends[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	page := make([]byte, os.Getpagesize())
	for {
		_, err := syscall.Write(ends[1], page)
		if errors.Is(err, syscall.EAGAIN) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, end := range ends {
		if err := syscall.SetNonblock(end, false); err != nil {
			t.Fatal(err)
		}
	}
	reader, writer = os.NewFile(uintptr(ends[0]), "reader"), os.NewFile(uintptr(ends[1]), "writer")
	t.Cleanup(func() { _ = reader.Close() }) // it was read to its end
	return reader, writer
}

// initAwait waits until there is a file.
func initAwait(t *testing.T, path string) {
	t.Helper()
	deadline := time.Now().Add(initPatience)
	for {
		_, err := os.Stat(path)
		if err == nil {
			return
		}
		if !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not come", path)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// TestInitNamedPipe gives a pipe where a file with roots belongs: to open it would last until somebody writes to it.
func TestInitNamedPipe(t *testing.T) {
	dir := initLab(t)
	env, _ := initVariables(t, dir)
	pipe := filepath.Join(dir, "roots")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	command := initCommand(t, env, "init", "--from", "env", "--bundle-from", "pem:"+pipe, "--to", filepath.Join(dir, "tls"))
	var output bytes.Buffer
	command.Stdout, command.Stderr = &output, &output
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	patience := time.AfterFunc(initPatience, func() { _ = command.Process.Kill() }) // what it says tells
	defer patience.Stop()
	err := command.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(output.String(), pipe+" is not an ordinary file; see that --bundle-from names one") {
		t.Errorf("%v\n%s", err, output.Bytes())
	}
}

// TestInitRuntime sees that what the Go runtime was told holds for the process that does the work too: each of the two
// says how long it takes to start.
func TestInitRuntime(t *testing.T) {
	dir := initLab(t)
	env, _ := initVariables(t, dir)
	output, err := initCommand(t, append(env, "GODEBUG=inittrace=1"), "init", "--from", "env", "--to", filepath.Join(dir, "tls")).CombinedOutput()
	if starts := bytes.Count(output, []byte("\ninit os @")); err != nil || starts != 2 {
		t.Errorf("%d of 2 processes were told (%v)\n%s", starts, err, output)
	}
}

// TestInitKeptEnvironment keeps what the runtime and the logs need, and never a variable that a value was read from.
func TestInitKeptEnvironment(t *testing.T) {
	for name, value := range map[string]string{
		"COUNTERSIGN_LOG_FORMAT": "json", "COUNTERSIGN_LOG_LEVEL": "debug", "GODEBUG": "inittrace=0", "GOMEMLIMIT": "1GiB", "KEY_PEM": "x", "OTHER": "y",
	} {
		t.Setenv(name, value)
	}
	want := []string{"COUNTERSIGN_LOG_FORMAT=json", "COUNTERSIGN_LOG_LEVEL=debug", "GODEBUG=inittrace=0", "GOMEMLIMIT=1GiB"}
	if got := keptEnvironment([]string{"CERT_PEM", "KEY_PEM"}); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if got := keptEnvironment([]string{"KEY_PEM", "GODEBUG", "COUNTERSIGN_LOG_LEVEL"}); !slices.Equal(got, []string{want[0], want[3]}) {
		t.Errorf("%q", got)
	}
}

// TestInitReadOnly runs it as a user without any privilege in a root file system that is read-only and empty of all
// else, as the image in the documentation does.
func TestInitReadOnly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: changing the user and the root directory needs root")
	}
	dir := initLab(t)
	env, _ := initVariables(t, dir)
	for _, path := range []string{dir, filepath.Dir(dir), filepath.Dir(filepath.Dir(dir))} {
		if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o005 == 0 && strings.Contains(path, t.Name()) {
			if err := os.Chmod(path, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	root := filepath.Join(dir, "root")
	volume := filepath.Join(root, "tls")
	if err := os.MkdirAll(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(volume, 101, 101); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(root, "countersign")
	build := exec.Command("go", "build", "-pgo=off", "-o", binary, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	// The shell makes the root read-only but for the volume, and gives all privileges away.
	script := `set -e
mount --bind "$1" "$1"
mount --bind "$1/tls" "$1/tls"
mount -t proc proc "$1/proc"
mount -o remount,bind,ro "$1"
shift
exec "$@"`
	command := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", root,
		"chroot", "--userspec=101:101", root, "/countersign", "init", "--from", "env", "--to", "/tls")
	command.Env = append(env, "PATH="+os.Getenv("PATH"))
	output, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	info, err := os.Stat(filepath.Join(volume, "current", "key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if owner := info.Sys().(*syscall.Stat_t); owner.Uid != 101 || info.Mode().Perm() != 0o600 {
		t.Errorf("the key belongs to %d and has the mode %04o", owner.Uid, info.Mode().Perm())
	}
	// And where the volume is missing, the message says so.
	command = exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", root,
		"chroot", "--userspec=101:101", root, "/countersign", "init", "--from", "env", "--to", "/elsewhere")
	command.Env = append(env, "PATH="+os.Getenv("PATH"))
	if output, err = command.CombinedOutput(); err == nil || !strings.Contains(string(output), "/elsewhere is read-only; mount a volume there") {
		t.Errorf("%v\n%s", err, output)
	}
}

// hugeSource has more than can be handed over.
type hugeSource struct{}

func (hugeSource) Read(context.Context, string, string) ([]byte, string, error) {
	return make([]byte, maxHandOver), "", nil
}

// TestInitHandOverTooMuch refuses what no pipe takes: to wait for a reader that never comes would be worse.
func TestInitHandOverTooMuch(t *testing.T) {
	err := handOver(t.Context(), hugeSource{}, []string{"CERT_PEM"})
	if err == nil || !strings.Contains(err.Error(), "at most 983040 can be handed over; are they the right secrets?") {
		t.Error(err)
	}
}

// TestInitFillPipe puts as much into a pipe as it may take, without a reader.
func TestInitFillPipe(t *testing.T) {
	text := bytes.Repeat([]byte("x"), maxHandOver)
	fd, err := fillPipe(text)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "pipe")
	defer f.Close()
	got, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(got, text) {
		t.Errorf("%d of %d bytes (%v)", len(got), len(text), err)
	}
}
