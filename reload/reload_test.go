package reload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience bounds what a test waits for.
const patience = time.Minute

// real is a proxy that runs.
type real struct {
	proxy    Proxy
	program  string
	conf     string // its configuration
	pid      int
	socket   string // HAProxy's master socket
	exited   chan struct{}
	sentence string // the configuration with a mistake in it
}

// installed finds a program; a test without it is skipped loudly, and fails where every peer is wanted.
func installed(t *testing.T, name string) string {
	t.Helper()
	for _, name := range []string{name, "/usr/sbin/" + name} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed, and CI=true wants every peer: tools/install-peers.sh installs it", name)
	}
	t.Skipf("NOT TESTED: %s is not installed (tools/install-peers.sh installs it)", name)
	return ""
}

func configuration(p Proxy, dir, mistake string) string {
	if p.Name == "nginx" {
		return fmt.Sprintf("daemon off;\nworker_processes 1;\npid %s/pid;\nerror_log stderr;\nevents {}\nhttp { access_log off; server { listen unix:%s/in.sock; } %s }\n", dir, dir, mistake)
	}
	return fmt.Sprintf("global\n    stats socket %s/stats.sock mode 600 level admin\ndefaults\n    mode http\n    timeout connect 1s\n    timeout client 1s\n    timeout server 1s\n%s\nfrontend f\n    bind unix@%s/in.sock\n", dir, mistake, dir)
}

// start starts a proxy as its documentation says.
func start(t *testing.T, p Proxy, args ...string) *real {
	t.Helper()
	program := installed(t, p.Name)
	dir, err := os.MkdirTemp("", "cs") // its name leaves room for a UNIX socket's
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &real{proxy: p, program: program, conf: filepath.Join(dir, "conf"), socket: filepath.Join(dir, "master.sock"), exited: make(chan struct{}), sentence: configuration(p, dir, "no_such_word here;")}
	write(t, r.conf, configuration(p, dir, ""))
	if p.Name == "nginx" {
		args = []string{"-c", r.conf}
	} else {
		args = append(args, "-f", r.conf, "-p", filepath.Join(dir, "pid"))
	}
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "SOCKET", r.socket)
	}
	command := exec.CommandContext(context.WithoutCancel(t.Context()), program, args...)
	var said strings.Builder
	command.Stdout, command.Stderr = &said, &said
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	r.pid = command.Process.Pid
	go func() { _ = command.Wait(); close(r.exited) }()
	t.Cleanup(func() {
		_ = command.Process.Signal(syscall.SIGTERM)
		<-r.exited
		if t.Failed() {
			t.Logf("%s wrote:\n%s", p.Name, &said)
		}
	})
	eventually(t, "it listens", func() bool {
		conn, err := net.Dial("unix", filepath.Join(dir, "in.sock"))
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	if p.Name == "nginx" || slices.Contains(args, "-W") {
		eventually(t, "there is a worker", func() bool { return len(children(r.pid)) > 0 }) // a master listens before it makes one
	}
	return r
}

func (r *real) file(name string) string { return filepath.Join(filepath.Dir(r.conf), name) }

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// within is a context for one step.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestReal reloads real proxies in every way, before and after their files are spoilt.
func TestReal(t *testing.T) {
	t.Run("nginx", func(t *testing.T) {
		t.Parallel()
		r := start(t, NGINX)
		ways := []string{"signal:" + strconv.Itoa(r.pid), "pidfile:" + r.file("pid"), "command:" + r.program + " -s reload -c " + r.conf}
		for _, way := range ways {
			before := children(r.pid)
			r.reload(t, way, nil)
			if old := slices.IndexFunc(before, Signal{Proxy: NGINX}.accepts); old >= 0 && !strings.HasPrefix(way, "command:") {
				t.Errorf("%s: the worker %d of before still accepts", way, before[old])
			}
			eventually(t, "the old workers accept no more", func() bool { return !slices.ContainsFunc(before, Signal{Proxy: NGINX}.accepts) })
		}
		write(t, r.conf, r.sentence)
		r.test(t)
		r.reloadWithin(t, time.Second, ways[0], ErrNotTaken, "has started no new worker since")
		r.reload(t, ways[2], ErrNotTaken)
		write(t, r.conf, configuration(r.proxy, filepath.Dir(r.conf), ""))
		r.reload(t, ways[1], nil)
	})
	t.Run("haproxy", func(t *testing.T) {
		t.Parallel()
		r := start(t, HAProxy, "-W", "-db", "-S", "SOCKET,mode,600")
		ways := []string{"signal:" + strconv.Itoa(r.pid), "pidfile:" + r.file("pid"), "haproxy:" + r.socket}
		for _, way := range ways {
			r.reload(t, way, nil)
		}
		write(t, r.conf, r.sentence)
		r.test(t)
		r.reload(t, ways[2], ErrRefused)
		r.reload(t, ways[2], ErrRefused)
		r.reloadWithin(t, time.Second, ways[0], ErrNotTaken, "has started no new worker since")
		write(t, r.conf, configuration(r.proxy, filepath.Dir(r.conf), ""))
		r.reload(t, ways[2], nil)
		// The other socket knows no reload, and must not be taken for a success.
		r.reload(t, "haproxy:"+r.file("stats.sock"), ErrOtherProgram)
	})
}

func (r *real) reload(t *testing.T, way string, want error) {
	t.Helper()
	r.reloadWithin(t, patience, way, want, "")
}

func (r *real) reloadWithin(t *testing.T, d time.Duration, way string, want error, text string) {
	t.Helper()
	method, err := r.proxy.Parse(way)
	if err != nil {
		t.Fatal(err)
	}
	if method.String() != way {
		t.Errorf("%q reads as %q", way, method)
	}
	err = method.Reload(within(t, d))
	if !errors.Is(err, want) || (want != nil && !strings.Contains(err.Error(), text)) {
		t.Errorf("%s: %v, and %v was expected", way, err, want)
	}
	select {
	case <-r.exited:
		t.Fatalf("%s: the proxy has ended", way)
	default:
	}
}

// test expects the proxy's own test to name the mistake.
func (r *real) test(t *testing.T) {
	t.Helper()
	err := Test(t.Context(), r.proxy.TestCommand(r.program, r.conf))
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "no_such_word") {
		t.Errorf("the test says %v", err)
	}
}

// TestTest lets each proxy test what is good.
func TestTest(t *testing.T) {
	for _, p := range []Proxy{NGINX, HAProxy} {
		program := installed(t, p.Name)
		dir := t.TempDir()
		write(t, filepath.Join(dir, "conf"), configuration(p, dir, ""))
		if err := Test(t.Context(), p.TestCommand(program, filepath.Join(dir, "conf"))); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
	}
}

// TestOtherProcesses leaves alone whoever is not the master of the right program, and all of them live on.
func TestOtherProcesses(t *testing.T) {
	sleep := exec.Command("sleep", "600")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sleep.Process.Kill(); _ = sleep.Wait() })
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	nginx, single := start(t, NGINX), start(t, HAProxy, "-db")
	master := start(t, HAProxy, "-W", "-db")
	garbage, several, pipe := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b"), filepath.Join(t.TempDir(), "c")
	write(t, garbage, "-1\n")
	write(t, several, "12 13\n")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		method Method
		want   error
		text   string
	}{
		"another program":       {Signal{Proxy: NGINX, PID: sleep.Process.Pid}, ErrOtherProgram, `is "sleep" and not nginx, and was left alone`},
		"the other proxy":       {Signal{Proxy: HAProxy, PID: nginx.pid}, ErrOtherProgram, `is "nginx" and not haproxy`},
		"a worker of nginx":     {Signal{Proxy: NGINX, PID: children(nginx.pid)[0]}, ErrOtherProgram, "is a worker, whose master is " + strconv.Itoa(nginx.pid)},
		"a worker of haproxy":   {Signal{Proxy: HAProxy, PID: children(master.pid)[0]}, ErrOtherProgram, "is a worker, whose master is " + strconv.Itoa(master.pid)},
		"haproxy without -W":    {Signal{Proxy: HAProxy, PID: single.pid}, ErrOtherProgram, "start HAProxy as master and worker (-W)"},
		"a process that ended":  {Signal{Proxy: NGINX, PID: gone.Process.Pid}, ErrNotRunning, "there is no process"},
		"no pid file":           {Signal{Proxy: NGINX, PIDFile: garbage + ".not"}, ErrNotRunning, "there is no pid file"},
		"a pid file of nothing": {Signal{Proxy: NGINX, PIDFile: os.DevNull}, ErrNotRunning, "is not an ordinary file"},
		"a pipe":                {Signal{Proxy: NGINX, PIDFile: pipe}, ErrNotRunning, "is not an ordinary file"},
		"a pid file of garbage": {Signal{Proxy: NGINX, PIDFile: garbage}, ErrNotRunning, "does not hold one number"},
		"several pids":          {Signal{Proxy: NGINX, PIDFile: several}, ErrNotRunning, "does not hold one number"},
		"no socket":             {Master{Socket: garbage + ".sock"}, ErrNotRunning, "nobody answers on the master socket"},
		"a command that fails":  {Command{Args: []string{"sh", "-c", "echo it will not; exit 3"}}, ErrNotTaken, "sh ends with status 3 and says: it will not"},
		"a command of no file":  {Command{Args: []string{"no-such-program"}}, exec.ErrNotFound, "is it in this image?"},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.method.Reload(within(t, patience))
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("%v", err)
			}
		})
	}
	for _, r := range []*real{nginx, single, master} {
		select {
		case <-r.exited:
			t.Errorf("%s has ended", r.proxy.Name)
		default:
		}
	}
	if err := sleep.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("sleep: %v", err)
	}
}

// TestScanChildren finds the same children as the kernel's list.
func TestScanChildren(t *testing.T) {
	sleep := exec.Command("sleep", "600")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sleep.Process.Kill(); _ = sleep.Wait() }()
	for name, list := range map[string]func(int) []int{"list": children, "scan": scanChildren} {
		found := false
		for _, pid := range list(os.Getpid()) {
			found = found || pid == sleep.Process.Pid
		}
		if !found {
			t.Errorf("%s: the child is not found", name)
		}
	}
}

// TestTime ends what does not end by itself, with all that it has started.
func TestTime(t *testing.T) {
	err := Test(within(t, 200*time.Millisecond), []string{"sh", "-c", "sleep 600 & sleep 600"})
	if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "sh did not end in time, and was ended") {
		t.Error(err)
	}
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if err := (Master{Socket: listener.Addr().String()}).Reload(within(t, 200*time.Millisecond)); err == nil {
		t.Error("a socket that says nothing counts as a success")
	}
}

const shownProc = "#<PID>          <type>          <reloads>       <uptime>        <version>      \n" +
	"6561            master          %d [failed: 0]   0d00h00m01s     2.8.1\n# workers\n6564            worker          0               0d00h00m01s     2.8.1\n# programs\n\n"

// TestNewMaster answers as HAProxy 2.7 and later do.
func TestNewMaster(t *testing.T) {
	key := strings.Repeat("MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEH", 2)
	for name, test := range map[string]struct {
		answer string
		want   error
		text   string
	}{
		"success": {"Success=1\n--\n[NOTICE] loaded\n", nil, ""},
		"failure": {"Success=0\n--\n[ALERT] unknown keyword '" + key + "' in '/etc/haproxy.cfg'\n", ErrRefused, "[ALERT] unknown keyword '[not shown]' in '/etc/haproxy.cfg'"},
		"denied":  {"Permission denied\n\n", ErrNotTaken, "does not allow it"},
		"silence": {"", ErrNotTaken, "counts 4 reloads as before"},
	} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			go func() {
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					asked, _ := io.ReadAll(conn)
					if string(asked) == "reload\n" {
						_, _ = io.WriteString(conn, test.answer)
					} else {
						_, _ = fmt.Fprintf(conn, shownProc, 4)
					}
					conn.Close()
				}
			}()
			err = Master{Socket: listener.Addr().String()}.Reload(within(t, time.Second))
			if !errors.Is(err, test.want) || (test.want != nil && !strings.Contains(err.Error(), test.text)) {
				t.Error(err)
			}
			if err != nil && strings.Contains(err.Error(), "MIGHAgEA") {
				t.Errorf("it shows a key: %v", err)
			}
		})
	}
}

// TestParse refuses what names no way.
func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"":                         "write signal:PID",
		"signal":                   "write signal:PID",
		"signal:":                  "write signal:PID",
		"signal:0":                 "write signal:PID",
		"signal:-1":                "write signal:PID",
		"signal:9999999999":        "no process has so high a number",
		"kill:12":                  "write signal:PID",
		"command: ":                "the command has no words",
		"command:[]":               "the command has no words",
		`command:["a",1]`:          "is no JSON list of texts",
		"command:a\x00b":           "zero byte",
		"haproxy:/run/master.sock": "nginx has no master socket",
	} {
		if method, err := NGINX.Parse(text); !errors.Is(err, ErrMethod) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v %v", text, method, err)
		}
	}
	for text, want := range map[string]string{
		"command:nginx  -s reload":          "command:nginx -s reload",
		`command:["sh","-c","kill -HUP 1"]`: `command:["sh","-c","kill -HUP 1"]`,
		"haproxy:/run/master.sock":          "haproxy:/run/master.sock",
	} {
		method, err := HAProxy.Parse(text)
		if err != nil || method.String() != want {
			t.Errorf("%q: %v %v", text, method, err)
		}
	}
	if p, ok := Known("haproxy"); !ok || p.Signal != syscall.SIGUSR2 {
		t.Error("haproxy is not known")
	}
	if _, ok := Known("envoy"); ok {
		t.Error("envoy is known")
	}
}

// TestRedact keeps paths and sentences, and no part of a key.
func TestRedact(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, strings.Repeat("a", 50))
	for text, want := range map[string]string{
		"nginx: [emerg] cannot load " + path + ":12\n": "nginx: [emerg] cannot load " + path + ":12",
		"a\x1b[31mb\nc\n": "a[31mb; c",
		"-----BEGIN EC PRIVATE KEY-----\nabc\n-----END EC PRIVATE KEY-----\nand": "[a private key, not shown]; and",
		"-----BEGIN PRIVATE KEY-----\nabc":                                       "[a private key, not shown]",
		`unknown directive "` + strings.Repeat("Ab/+9", 12) + `" in x`:           `unknown directive "[not shown]" in x`,
		`unknown directive "/` + strings.Repeat("Ab9", 20) + `" in x`:            `unknown directive "[not shown]" in x`,
	} {
		if got := Redact(text); got != want {
			t.Errorf("%q becomes %q", text, got)
		}
	}
	var long bounded
	fmt.Fprint(&long, strings.Repeat("word ", mostOutput))
	if text := long.text(); len(text) > mostOutput+20 || !strings.HasSuffix(text, " [and more]") {
		t.Errorf("%d bytes are kept", len(text))
	}
}

func FuzzRedact(f *testing.F) {
	f.Add("nginx: [emerg] x\n" + strings.Repeat("QUJD", 20))
	f.Add("-----BEGIN PRIVATE KEY-----\n")
	f.Fuzz(func(t *testing.T, text string) {
		const secret = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgQUJDREVGR0hJSktM"
		got := Redact(text + "\n" + secret)
		if strings.Contains(got, secret) && !strings.Contains(text, secret) {
			t.Errorf("it shows a line of a key: %q", got)
		}
		if strings.ContainsFunc(got, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			t.Errorf("control characters: %q", got)
		}
	})
}

func FuzzParseMaster(f *testing.F) {
	f.Add(fmt.Sprintf(shownProc, 3))
	f.Add("1 master 0 0d")
	f.Fuzz(func(t *testing.T, answer string) {
		if s, err := parseMaster(answer); err != nil && (s != masterState{}) || s.reloads < 0 || s.failed < 0 {
			t.Errorf("%v %v", s, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{"signal:1", "pidfile:/run/nginx.pid", "command:nginx -s reload", `command:["a b"]`, "haproxy:/s"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		method, err := HAProxy.Parse(text)
		if err != nil {
			return
		}
		again, err := HAProxy.Parse(method.String())
		if err != nil || again.String() != method.String() {
			t.Errorf("%q reads as %q, and that as %v (%v)", text, method, again, err)
		}
	})
}
