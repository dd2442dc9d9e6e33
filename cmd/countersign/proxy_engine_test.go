//go:build linux

package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/supervise"
)

// engineSpec has a leaf that lives for a minute and is renewed after seconds.
const engineSpec = `mesh: engines
certificates: {ttl: 1m, renewAfter: 3s}
services:
  a:
    ports:
      - {port: 9080, protocol: tcp, app: 19080}
      - {port: 9081, protocol: tcp, app: 19080, tls: off}
`

// engineSidecar starts `countersign proxy --engine`.
func (l *faultLab) engineSidecar(t *testing.T, engine, state string, args ...string) *faultChild {
	t.Helper()
	base := []string{
		"proxy", "--engine", engine, "--run-dir", filepath.Join(l.dir, "shm"), "--server", l.url, "--ca-pin", l.pin, "--token-file", l.token(t),
		"--state", state, "--instance", "a-1", "--address", l.address, "--app-address", l.address, "--admin", l.address + ":9901", "--drain-timeout", "5s",
	}
	return l.run(t, nil, append(base, args...)...)
}

// asks asks the administrator's surface of the sidecar.
func (l *faultLab) asks(t *testing.T, path string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.address+":9901"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err.Error()
	}
	return response.StatusCode, string(text)
}

// serial is what the listener presents to anybody.
func (l *faultLab) serial(t *testing.T) string {
	t.Helper()
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
	conn, err := dialer.DialContext(t.Context(), "tcp", l.address+":9080")
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	return mtls.Serial(conn.(*tls.Conn).ConnectionState().PeerCertificates[0])
}

// status is the one row of `countersign status`.
func (l *faultLab) status(t *testing.T) api.Status {
	t.Helper()
	var rows []api.Status
	if err := json.Unmarshal([]byte(l.output(t, "status", "--socket", l.socket, "--output", "json")), &rows); err != nil || len(rows) != 1 {
		t.Fatalf("%d rows: %v", len(rows), err)
	}
	return rows[0]
}

func engineEventually(t *testing.T, what string, child *faultChild, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(2 * faultPatience)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s\n%s", what, child.output())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// programs are the processes of the engine that a run directory belongs to.
func programs(t *testing.T, run string) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, entry := range entries {
		if cwd, err := os.Readlink("/proc/" + entry.Name() + "/cwd"); err == nil && strings.HasPrefix(cwd, run+"/") {
			found = append(found, entry.Name())
		}
	}
	return found
}

// TestProxyEngine runs the whole program with each engine: it serves, renews, refuses, is killed, starts again and
// drains.
func TestProxyEngine(t *testing.T) {
	t.Parallel() // on addresses of its own
	for engine, foreign := range foreignEngines {
		name := string(engine)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := foreign.Find(t.Context(), ""); err != nil {
				if os.Getenv("CI") == "true" {
					t.Fatalf("%v, and CI=true wants every peer: tools/install-peers.sh installs it", err)
				}
				t.Skipf("NOT TESTED: %v (tools/install-peers.sh installs it)", err)
			}
			l := newLab(t, engineSpec)
			shm, err := os.MkdirTemp("/dev/shm", "cs")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(shm) })
			if err := os.Symlink(shm, filepath.Join(l.dir, "shm")); err != nil {
				t.Fatal(err)
			}
			app, err := new(net.ListenConfig).Listen(t.Context(), "tcp", l.address+":19080")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { app.Close() })
			state := filepath.Join(l.dir, "sidecar")
			child := l.engineSidecar(t, name, state)
			engineEventually(t, "it is ready", child, func() bool { status, _ := l.asks(t, "/ready"); return status == http.StatusOK })
			l.renews(t, child)
			l.refuses(t, child)
			l.dies(t, child, name, state)
		})
	}
}

// serialForm is how a serial of 16 random bytes is written: one that begins with zeros is shorter.
var serialForm = regexp.MustCompile(`^(?:[0-9a-f]{2}){12,16}$`)

// renews sees the certificate change on the wire and in the server's status, while the process stays.
func (l *faultLab) renews(t *testing.T, child *faultChild) {
	t.Helper()
	first := l.serial(t)
	engineEventually(t, "another certificate", child, func() bool { now := l.serial(t); return now != first && serialForm.MatchString(now) })
	engineEventually(t, "the server knows what is presented", child, func() bool { return l.status(t).Serial == l.serial(t) })
	if status, body := l.asks(t, "/certs"); status != http.StatusOK || !strings.Contains(body, "spiffe://engines.internal/service/a") {
		t.Errorf("/certs: %d %s", status, body)
	}
}

// refuses applies what neither engine can carry out: key exchanges that their OpenSSL does not speak.
func (l *faultLab) refuses(t *testing.T, child *faultChild) {
	t.Helper()
	if b, err := supervise.Find(t.Context(), supervise.NGINX, "", "1"); err == nil && strings.HasPrefix(b.OpenSSL, "3.5") {
		t.Log("NOT TESTED: this OpenSSL speaks MLKEM, so that nothing is refused")
		return
	}
	spec := filepath.Join(l.dir, "refused.yaml")
	text := strings.Replace(engineSpec, "app: 19080}", "app: 19080, minTLS: \"1.3\", tlsGroups: [X25519MLKEM768]}", 1)
	if err := os.WriteFile(spec, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	apply := l.run(t, nil, "mesh", "apply", spec, "--socket", l.socket, "--timeout", "1s")
	<-apply.ended // it says that nobody has confirmed it
	engineEventually(t, "the server knows that it is refused", child, func() bool { return strings.Contains(l.status(t).Error, "speaks none") })
	if status, body := l.asks(t, "/ready"); status != http.StatusOK || !strings.HasPrefix(body, "LIVE\n") || !strings.Contains(body, "speaks none") {
		t.Errorf("/ready: %d %s", status, body)
	}
	if got := l.serial(t); !serialForm.MatchString(got) {
		t.Errorf("what was in force does not serve: %s", got)
	}
	good := filepath.Join(l.dir, "mesh.yaml")
	l.output(t, "mesh", "apply", good, "--socket", l.socket)
	engineEventually(t, "the server knows that all is well", child, func() bool { return l.status(t).Error == "" })
}

// dies kills the sidecar, starts it again, and lets it drain.
func (l *faultLab) dies(t *testing.T, child *faultChild, name, state string) {
	t.Helper()
	before, err := filepath.EvalSymlinks(filepath.Join(l.dir, "shm"))
	if err != nil {
		t.Fatal(err)
	}
	runs := func() []string {
		found, err := filepath.Glob(filepath.Join(before, "countersign-run-*"))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if n := len(programs(t, before)); n < 2 {
		t.Fatalf("%d processes of the engine are found", n)
	}
	old := runs()
	child.kill()
	engineEventually(t, "the engine ends with its supervisor", child, func() bool { return len(programs(t, before)) == 0 })
	again := l.engineSidecar(t, name, state)
	engineEventually(t, "it is ready again", again, func() bool { status, _ := l.asks(t, "/ready"); return status == http.StatusOK })
	if now := runs(); len(old) != 1 || len(now) != 1 || now[0] == old[0] {
		t.Errorf("run directories before %v, after %v", old, now)
	}
	if err := again.command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case <-again.ended:
	case <-time.After(faultPatience):
		t.Fatalf("it does not end:\n%s", again.output())
	}
	if again.err != nil || len(runs()) != 0 || len(programs(t, before)) != 0 {
		t.Errorf("drained: %v, left: %v %v\n%s", again.err, runs(), programs(t, before), again.output())
	}
	for _, c := range []*faultChild{child, again} {
		if text := c.output(); strings.Contains(text, "PRIVATE") || strings.Contains(text, "panic") {
			t.Errorf("it says:\n%s", text)
		}
	}
}

// TestCompareEngine is about a sidecar that is another one than the specification says.
func TestCompareEngine(t *testing.T) {
	for name, c := range map[string]struct {
		flag string
		said mesh.Engine
		warn bool
	}{
		"neither says anything": {"", "", false}, "the same": {"nginx", mesh.EngineNGINX, false}, "the built-in": {"builtin", "", false},
		"another": {"haproxy", mesh.EngineNGINX, true}, "none": {"", mesh.EngineNGINX, true}, "not said": {"nginx", "", true},
	} {
		var out bytes.Buffer
		proxyCmd{Engine: c.flag}.compareEngine(&mesh.Plan{Proxy: mesh.ProxyPlan{Engine: c.said}}, slog.New(slog.NewTextHandler(&out, nil)))
		if warned := strings.Contains(out.String(), "says another proxy"); warned != c.warn {
			t.Errorf("%s: %q", name, &out)
		}
	}
}

// TestCompareBinds is about a --bind for a port that the workload does not have: its listener would stay where it is.
func TestCompareBinds(t *testing.T) {
	plan := &mesh.Plan{Inbound: []mesh.Inbound{{Port: 80, App: 8080}}, Outbound: []mesh.Outbound{{Listen: 9000}}}
	binds := map[string]string{}
	for _, name := range []string{"inbound/80", "app/8080", "outbound/9000", "inbound/8080", "app/80", "outbound/80"} {
		binds[name] = "127.0.0.1:1"
	}
	var out bytes.Buffer
	compareBinds(plan, binds, slog.New(slog.NewTextHandler(&out, nil)))
	var said []string
	for _, match := range regexp.MustCompile(`level=WARN msg="--bind replaces nothing: [^"]*" bind=(\S+)`).FindAllStringSubmatch(out.String(), -1) {
		said = append(said, match[1])
	}
	if want := []string{"app/80", "inbound/8080", "outbound/80"}; !slices.Equal(said, want) {
		t.Errorf("it names %q, want %q:\n%s", said, want, &out)
	}
}

// TestEngineFlags is about command lines that make no sense.
func TestEngineFlags(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*proxyCmd)
		want  string
	}{
		"a path without an engine":          {func(c *proxyCmd) { c.EnginePath = "/usr/sbin/nginx" }, "--engine-path"},
		"a run directory without an engine": {func(c *proxyCmd) { c.Engine, c.RunDir = "builtin", "/dev/shm" }, "--run-dir"},
		"a permission without an engine":    {func(c *proxyCmd) { c.KeysOnDisk = true }, "--allow-keys-on-disk"},
		"a drain of less than a second":     {func(c *proxyCmd) { c.Engine, c.DrainTimeout = "nginx", time.Millisecond }, "whole seconds"},
	} {
		cmd := goodProxy()
		c.spoil(&cmd)
		_, err := cmd.check()
		var usage usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want a usage error with %q", name, err, c.want)
		}
	}
	for _, engine := range []string{"nginx", "haproxy"} {
		cmd := goodProxy()
		cmd.Engine, cmd.EnginePath, cmd.RunDir = engine, "/usr/sbin/"+engine, "/dev/shm"
		if _, err := cmd.check(); err != nil {
			t.Error(fmt.Errorf("%s: %w", engine, err))
		}
	}
}
