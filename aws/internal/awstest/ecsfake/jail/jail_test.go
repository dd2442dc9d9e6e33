//go:build linux

package jail_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"countersign.dev/aws/internal/awstest/ecsfake/jail"
)

var network = sync.OnceValues(jail.NewNetwork)

func TestMain(m *testing.M) {
	if err := jail.Enter(); err != nil && !errors.Is(err, jail.ErrUnavailable) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// join makes a task's network, or skips the test where it cannot be.
func join(t *testing.T) *jail.Space {
	t.Helper()
	if !jail.Inside() {
		if os.Getenv("CI") == "true" {
			t.Fatal("namespaces cannot be made; CI has to run as root")
		}
		t.Skip("SKIPPED: namespaces need root")
	}
	n, err := network()
	if err != nil {
		t.Fatal(err)
	}
	space, err := n.Join()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(space.Close)
	return space
}

// run runs a shell's line to its end and returns its code and what it said.
func run(t *testing.T, space *jail.Space, line string, change func(*jail.Spec)) (int, string) {
	t.Helper()
	spec := jail.Spec{
		Root: t.TempDir(), Hostname: "ip-test", Host: true, Directory: "/", Arguments: []string{"sh", "-c", line},
		Environment: []string{"PATH=/usr/bin:/bin", "GIVEN=yes"},
	}
	if change != nil {
		change(&spec)
	}
	var output bytes.Buffer
	c, err := jail.Start(spec, space, &output)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	select {
	case <-c.Done():
	case <-time.After(time.Minute):
		c.Signal(syscall.SIGKILL)
		t.Fatalf("%s did not end", line)
	}
	return c.Code(), output.String()
}

func TestContainer(t *testing.T) {
	space := join(t)
	volume := t.TempDir()
	if err := os.Chown(volume, 101, 101); err != nil {
		t.Fatal(err)
	}
	user := func(s *jail.Spec) { s.UID, s.GID = 101, 101 }
	for name, c := range map[string]struct {
		line   string
		change func(*jail.Spec)
		code   int
		want   string
	}{
		"the environment is what was given": {`env | grep -v -e PWD -e _= -e SHLVL | sort`, nil, 0, "GIVEN=yes\nPATH=/usr/bin:/bin\n"},
		"exit code":                         {"exit 7", nil, 7, ""},
		"ended by a signal":                 {"sh -c 'kill -9 $$'; exit $?", nil, 137, "Killed\n"},
		"first process of its own":          {`echo $$; [ $(ls -d /proc/[0-9]* | wc -l) -lt 6 ] && echo few`, nil, 0, "1\nfew\n"},
		"host name":                         {"hostname", nil, 0, "ip-test\n"},
		"nothing of the machine":            {"ls /; ls /root /home /work 2>&1 | wc -l", nil, 0, "bin\ndev\netc\nlib\nlib64\nproc\nrun\nsbin\ntmp\nusr\nvar\n3\n"},
		"root writes":                       {"echo x >/run/x && cat /run/x", nil, 0, "x\n"},
		"read-only root":                    {"echo x >/run/x || echo x >/tmp/x", func(s *jail.Spec) { s.ReadOnly = true }, 2, "sh: 1: cannot create /run/x: Read-only file system\nsh: 1: cannot create /tmp/x: Read-only file system\n"},
		"programs are read-only":            {"touch /usr/bin/x", nil, 1, "touch: cannot touch '/usr/bin/x': Read-only file system\n"},
		"user":                              {"id -u; id -g; id -G", user, 0, "101\n101\n101\n"},
		"output by its name":                {"echo x >/dev/stdout", user, 0, "x\n"},
		"capabilities":                      {"grep CapBnd /proc/self/status", nil, 0, "CapBnd:\t00000000a80425fb\n"},
		"all capabilities dropped":          {"grep CapBnd /proc/self/status", func(s *jail.Spec) { s.DropAll = true }, 0, "CapBnd:\t0000000000000000\n"},
		"volume":                            {"echo x >/v/x && cat /v/x; rm /v/x", func(s *jail.Spec) { user(s); s.Binds = []jail.Bind{{Source: volume, Target: "/v", Writable: true}} }, 0, "x\n"},
		"read-only volume":                  {"echo x >/v/x", func(s *jail.Spec) { user(s); s.Binds = []jail.Bind{{Source: volume, Target: "/v"}} }, 2, "sh: 1: cannot create /v/x: Read-only file system\n"},
		"memory disk with a limit":          {"head -c 100000 /dev/zero >/m/x", func(s *jail.Spec) { s.Tmpfs = []jail.Tmpfs{{Path: "/m", Size: 8192}} }, 1, "head: error writing 'standard output': No space left on device\n"},
		"files of the image": {"cat /etc/hosts; readlink /l; stat -c '%u %a' /d", func(s *jail.Spec) {
			s.Files = []jail.File{{Path: "/etc/hosts", Content: "127.0.0.1 localhost\n"}}
			s.Links = map[string]string{"/l": "/d"}
			s.Dirs = []jail.Dir{{Path: "/d", UID: 99, GID: 99, Mode: 0o700}}
		}, 0, "127.0.0.1 localhost\n/d\n99 700\n"},
		"limits":              {"ulimit -Sn; ulimit -Hn", func(s *jail.Spec) { s.Limits = map[int][2]uint64{unix.RLIMIT_NOFILE: {100, 200}} }, 0, "100\n200\n"},
		"with an init":        {"exit 9", func(s *jail.Spec) { s.Init = true }, 9, ""},
		"network is a task's": {"cat /proc/net/dev | grep -c -e eth0 -e lo", nil, 0, "2\n"},
	} {
		t.Run(name, func(t *testing.T) {
			code, output := run(t, space, c.line, c.change)
			if code != c.code || output != c.want {
				t.Errorf("code %d, output %q, want %d, %q", code, output, c.code, c.want)
			}
		})
	}
}

func TestStartRefuses(t *testing.T) {
	space := join(t)
	for name, c := range map[string]struct {
		change func(*jail.Spec)
		want   string
	}{
		"no program":      {func(s *jail.Spec) { s.Arguments = []string{"no-such"} }, `exec: "no-such": executable file not found in $PATH`},
		"empty root":      {func(s *jail.Spec) { s.Host = false; s.Arguments = []string{"/bin/sh"} }, `exec: "/bin/sh": stat /bin/sh: no such file`},
		"out of the root": {func(s *jail.Spec) { s.Files = []jail.File{{Path: "/../x"}} }, `leads out of it`},
		"no source":       {func(s *jail.Spec) { s.Binds = []jail.Bind{{Source: "/no-such", Target: "/x"}} }, `look at what /x shows`},
	} {
		t.Run(name, func(t *testing.T) {
			spec := jail.Spec{Root: t.TempDir(), Host: true, Directory: "/", Arguments: []string{"true"}, Environment: []string{"PATH=/bin"}}
			c.change(&spec)
			if _, err := jail.Start(spec, space, io.Discard); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestExecAndSignal(t *testing.T) {
	space := join(t)
	for _, first := range []bool{false, true} {
		spec := jail.Spec{
			Root: t.TempDir(), Host: true, Directory: "/tmp", UID: 101, GID: 101, Init: first,
			Arguments:   []string{"sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done"},
			Environment: []string{"PATH=/usr/bin:/bin"},
		}
		c, err := jail.Start(spec, space, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		code, output, err := c.Exec(t.Context(), []string{"sh", "-c", "id -u; pwd; tr '\\0' ' ' </proc/1/cmdline | head -c 2; exit 4"})
		if first {
			if err != nil || code != 4 || !strings.HasPrefix(string(output), "101\n/tmp\nco") {
				t.Errorf("code %d, output %q, error %v", code, output, err)
			}
		} else if err != nil || code != 4 || string(output) != "101\n/tmp\nsh" {
			t.Errorf("code %d, output %q, error %v", code, output, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, _, err := c.Exec(ctx, []string{"sh", "-c", "sleep 60; true"}); err == nil {
			t.Error("a program that took too long is no error")
		}
		cancel()
		c.Signal(syscall.SIGTERM)
		<-c.Done()
		if c.Code() != 3 {
			t.Errorf("exit code %d, want the trap's 3", c.Code())
		}
		if _, _, err := c.Exec(t.Context(), []string{"true"}); err == nil {
			t.Error("a program ran in a container that has ended")
		}
	}
}

func TestNetwork(t *testing.T) {
	one, two := join(t), join(t)
	n, err := network()
	if err != nil {
		t.Fatal(err)
	}
	host, err := n.AddHost()
	if err != nil {
		t.Fatal(err)
	}
	listen := func(l net.Listener, err error) net.Listener {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprint(conn, conn.RemoteAddr().(*net.TCPAddr).IP)
				conn.Close()
			}
		}()
		return l
	}
	read := func(conn net.Conn, err error) string {
		t.Helper()
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		text, _ := io.ReadAll(conn)
		return string(text)
	}
	inOne := listen(one.Listen(t.Context(), netip.AddrPortFrom(one.Address, 8080)))
	own := listen(one.Listen(t.Context(), netip.MustParseAddrPort("169.254.170.2:80")))
	atHost := listen(net.Listen("tcp4", netip.AddrPortFrom(host, 0).String()))
	if got := read(two.Dial(t.Context(), inOne.Addr().String())); got != two.Address.String() {
		t.Errorf("task to task: %q", got)
	}
	if got := read(net.Dial("tcp4", inOne.Addr().String())); got != n.Gateway().String() {
		t.Errorf("test to task: %q", got)
	}
	if got := read(one.Dial(t.Context(), atHost.Addr().String())); got != one.Address.String() {
		t.Errorf("task to test: %q", got)
	}
	if got := read(one.Dial(t.Context(), own.Addr().String())); got != "169.254.170.2" {
		t.Errorf("task to its own service: %q", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if got := read(two.Dial(ctx, own.Addr().String())); !strings.Contains(got, "dial tcp4") {
		t.Errorf("a task reaches another one's service: %q", got)
	}
	outside, err := jail.ListenOutside(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	if got := read(net.Dial("tcp4", outside.Addr().String())); !strings.Contains(got, "refused") {
		t.Errorf("a socket of the network outside is reached from inside: %q", got)
	}
	if _, err := os.Stat("/proc/1/exe"); err != nil {
		t.Errorf("/proc is not this namespace's: %v", err)
	}
}

// A test binary that is killed leaves nothing behind.
func TestNothingSurvives(t *testing.T) {
	if os.Getenv("JAIL_TEST_VICTIM") != "" {
		space := join(t)
		c, err := jail.Start(jail.Spec{Root: t.TempDir(), Host: true, Directory: "/", Arguments: []string{"sleep", "98765"}, Environment: []string{"PATH=/bin"}}, space, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		<-c.Done()
		return
	}
	join(t)
	victim := exec.Command("/proc/self/exe", "-test.run=^TestNothingSurvives$")
	victim.Env = append(os.Environ(), "JAIL_TEST_VICTIM=1", "TMPDIR="+t.TempDir()) // it cannot remove its own
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	awaitProcess(t, "sleep\x0098765\x00", true)
	if err := victim.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = victim.Wait()
	awaitProcess(t, "sleep\x0098765\x00", false)
}

// awaitProcess waits until a process of a command line is there, or is not.
func awaitProcess(t *testing.T, want string, there bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, line := range lines {
			text, _ := os.ReadFile(line)
			found = found || string(text) == want
		}
		if found == there {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("process %q there: want %v", want, there)
}
