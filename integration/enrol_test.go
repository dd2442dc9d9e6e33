package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"countersign.dev/agent"
	"countersign.dev/api"
	"countersign.dev/journal"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// impersonate enrols an instance of a workload that says it listens at an address of the test's own,
// and waits until the server lists it.
func impersonate(t *testing.T, mesh *running, workload, instance, address string) {
	t.Helper()
	token := strings.TrimSpace(mesh.admin(t, "token", "create", workload))
	impersonateWith(t, mesh, workload, instance, address, token)
}

func impersonateWith(t *testing.T, running *running, workload, instance, address, token string) {
	t.Helper()
	dir := shortDir(t)
	tokenFile := filepath.Join(dir, "token")
	if err := os.WriteFile(tokenFile, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	server, err := url.Parse(running.Server.URL)
	if err != nil {
		t.Fatal(err)
	}
	made, err := agent.New(agent.Config{
		Server: server, Pin: running.Server.CAPin, TokenFile: tokenFile, StateDir: filepath.Join(dir, "state"), Instance: instance,
		Log: slog.New(slog.DiscardHandler), OnPlan: func(*mesh.Plan) error { return nil },
		Report: func() api.Report { return api.Report{Listening: []api.Listening{{Port: 9080, Address: address}}} },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- made.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the agent of %s: %v", instance, err)
		}
	})
	await(t, instance+" is an endpoint", func() (bool, string) {
		instances, err := api.NewAdmin(running.Server.Socket).Endpoints(t.Context())
		if err != nil {
			return false, err.Error()
		}
		for _, i := range instances {
			if i.Workload == workload && i.Instance == instance && len(i.Inbound) > 0 {
				return true, ""
			}
		}
		return false, fmt.Sprint(instances)
	})
}

// control is a server without `up`, as it runs in production.
type control struct {
	state, spec, address, socket string
	pin                          string
	seal                         []string // how the keys of the CA are sealed
	command                      *exec.Cmd
	log                          *logBuffer
	ended                        chan error
	once                         sync.Once
}

// logBuffer is what a process wrote, to be read while it runs.
type logBuffer struct {
	mu   sync.Mutex
	data bytes.Buffer
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.data.Write(b)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.data.String()
}

// newControl makes a CA in a state directory and prepares a server for a specification.
func newControl(t *testing.T, state, spec string) *control {
	t.Helper()
	c := &control{state: state, spec: spec, address: freeAddress(t), seal: []string{"--unsealed"}}
	c.init(t)
	return c
}

func (c *control) init(t *testing.T) {
	t.Helper()
	c.socket = filepath.Join(c.state, "server.sock")
	if got := countersign(t, append([]string{"ca", "init", "--state", c.state}, c.seal...)...); got.status != 0 {
		t.Fatalf("ca init: %s", got.stderr)
	}
}

// start runs the server until the test ends.
func (c *control) start(t *testing.T, program string, environment ...string) {
	t.Helper()
	c.log, c.ended, c.once = &logBuffer{}, make(chan error, 1), sync.Once{}
	args := append([]string{"server", "--state", c.state, "--mesh", c.spec, "--listen", c.address}, c.seal...)
	c.command = exec.CommandContext(context.Background(), program, args...)
	c.command.Env = append(os.Environ(), environment...)
	c.command.Stdout, c.command.Stderr = c.log, c.log
	if err := c.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { c.ended <- c.command.Wait() }()
	t.Cleanup(func() { _ = c.stop(syscall.SIGTERM) })
}

// stop ends the server and returns how it ended.
func (c *control) stop(signal syscall.Signal) error {
	var err error
	c.once.Do(func() {
		_ = c.command.Process.Signal(signal) // it may have ended
		err = <-c.ended
	})
	return err
}

// ready waits until the server answers, and tells whether it did before it died.
func (c *control) ready(t *testing.T) bool {
	t.Helper()
	died := false
	await(t, "the server answers", func() (bool, string) {
		select {
		case err := <-c.ended:
			c.ended <- err
			died = true
			return true, ""
		default:
		}
		authority, err := api.NewAdmin(c.socket).CA(t.Context())
		if err != nil {
			return false, err.Error() + c.log.String()
		}
		c.pin = authority.Pin
		return true, ""
	})
	return !died
}

// token makes a join token and writes it into a file.
func (c *control) token(t *testing.T, workload string, args ...string) string {
	t.Helper()
	got := countersign(t, append([]string{"token", "create", workload, "--socket", c.socket}, args...)...)
	if got.status != 0 {
		t.Fatalf("token create: %s", got.stderr)
	}
	return tokenFile(t, strings.TrimSpace(got.stdout))
}

func tokenFile(t *testing.T, token string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// freeAddress is an address that nobody listens on for now.
func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// sidecar runs `countersign proxy` until it ends by itself or enough is true of what it has written,
// and tells which. Nil is never enough.
func (c *control) sidecar(t *testing.T, token, state string, enough func(log string) bool, args ...string) (status int, log string, ended bool) {
	t.Helper()
	command, end, out := c.launchSidecar(t, binary, token, state, nil, args...)
	await(t, "the sidecar ends, or has done enough", func() (bool, string) {
		select {
		case err := <-end:
			end <- err
			ended = true
			return true, ""
		default:
			return enough != nil && enough(out.String()), out.String()
		}
	})
	_ = command.Process.Signal(syscall.SIGTERM) // it may have ended
	_ = gone(end)
	return command.ProcessState.ExitCode(), out.String(), ended
}

// launchSidecar starts a sidecar of the lone service; further arguments replace those before.
func (c *control) launchSidecar(t *testing.T, program, token, state string, environment []string, further ...string) (command *exec.Cmd, ended chan error, out *logBuffer) {
	t.Helper()
	out, ended = &logBuffer{}, make(chan error, 1)
	args := []string{
		"proxy", "--server", "https://" + c.address, "--ca-pin", c.pin, "--token-file", token,
		"--state", state, "--instance", "one", "--address", "127.0.0.1", "--app-address", "127.0.0.2", "--admin", "127.0.0.1:0",
	}
	command = exec.CommandContext(context.Background(), program, append(args, further...)...)
	command.Env = append(os.Environ(), environment...)
	command.Stdout, command.Stderr = out, out
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { ended <- command.Wait() }()
	t.Cleanup(func() { _ = command.Process.Kill() }) // it may have ended
	return command, ended, out
}

const loneService = `mesh: lone
services:
  alone:
    ports: [{port: %d, protocol: http}]
  other:
    ports: [{port: 9999, protocol: http}]
`

// A sidecar whose first enrolment cannot succeed says why in one clear message and ends; one whose
// server is away goes on trying.
func TestEnrolmentIsRefused(t *testing.T) {
	server := newControl(t, shortDir(t), write(t, fmt.Sprintf(loneService, port(t))))
	server.start(t, binary)
	if !server.ready(t) {
		t.Fatal(server.log.String())
	}
	used := server.token(t, "alone")
	first := t.TempDir()
	if _, log, ended := server.sidecar(t, used, first, func(string) bool { return stateSerial(first) != "" }); ended {
		t.Fatalf("a sidecar with a good token ended: %s", log)
	}
	for _, name := range []string{"cert.pem", "key.pem", "ca.pem"} {
		if _, err := os.Stat(filepath.Join(first, "current", name)); err != nil {
			t.Error(err)
		}
	}
	expired := server.token(t, "alone", "--ttl", "1s")
	made := time.Now()
	await(t, "a token of a second becomes older", func() (bool, string) { return time.Since(made) > 1100*time.Millisecond, "" })
	wrongPin := "sha256:" + strings.Repeat("0", 64)
	for name, test := range map[string]struct{ token, pin, says string }{
		"unknown token": {tokenFile(t, "this-is-no-token-that-anybody-made"), server.pin, "token"},
		"used token":    {used, server.pin, "used"},
		"expired token": {expired, server.pin, "expired"},
		"no token":      {tokenFile(t, ""), server.pin, "token"},
		"wrong pin":     {server.token(t, "alone"), wrongPin, "pin"},
		"no pin":        {server.token(t, "alone"), "sha256:", "pin"},
	} {
		t.Run(name, func(t *testing.T) {
			state := t.TempDir()
			status, log, _ := server.sidecar(t, test.token, state, nil, "--ca-pin", test.pin)
			if status == 0 {
				t.Errorf("it ends with 0: %s", log)
			}
			if !strings.Contains(strings.ToLower(log), test.says) {
				t.Errorf("it does not speak of %q: %s", test.says, log)
			}
			if _, err := os.Stat(filepath.Join(state, "current")); err == nil {
				t.Error("a certificate is left behind")
			}
			token, err := os.ReadFile(test.token)
			if err == nil && len(token) > 0 && strings.Contains(log, string(token)) {
				t.Errorf("the log holds the token: %s", log)
			}
		})
	}
	t.Run("the state of another workload", func(t *testing.T) {
		status, log, _ := server.sidecar(t, server.token(t, "other"), first, nil, "--instance", "two")
		if status == 0 {
			t.Errorf("it ends with 0: %s", log)
		}
	})
	t.Run("the state of another CA", func(t *testing.T) {
		foreign := newControl(t, shortDir(t), server.spec)
		foreign.start(t, binary)
		if !foreign.ready(t) {
			t.Fatal(foreign.log.String())
		}
		before := stateSerial(first)
		status, log, _ := foreign.sidecar(t, foreign.token(t, "alone"), first, nil)
		if status == 0 {
			t.Errorf("it ends with 0: %s", log)
		}
		if after := stateSerial(first); after != before {
			t.Errorf("the certificate of the other CA was replaced: %s -> %s", before, after)
		}
	})
	t.Run("server away", func(t *testing.T) {
		away := &control{address: freeAddress(t), pin: server.pin}
		if _, log, ended := away.sidecar(t, server.token(t, "alone"), t.TempDir(), says("connection refused")); ended {
			t.Errorf("it does not go on trying: %s", log)
		}
	})
}

// port is a port that nobody listens on for now.
func port(t *testing.T) int {
	t.Helper()
	var number int
	if _, err := fmt.Sscanf(freeAddress(t), "127.0.0.1:%d", &number); err != nil {
		t.Fatal(err)
	}
	return number
}

// A port that somebody else has is one clear message of the server, and a problem that status shows
// of a sidecar, which serves when the port is free.
func TestPortInUse(t *testing.T) {
	number := port(t)
	server := newControl(t, shortDir(t), write(t, fmt.Sprintf(loneService, number)))
	occupant, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", server.address)
	if err != nil {
		t.Fatal(err)
	}
	server.start(t, binary)
	if server.ready(t) || !strings.Contains(server.log.String(), "another program listens there") {
		t.Errorf("the server says %s", server.log.String())
	}
	if err := server.stop(syscall.SIGTERM); err == nil {
		t.Error("the server ended with 0")
	}
	occupant.Close()
	server.start(t, binary)
	if !server.ready(t) {
		t.Fatal(server.log.String())
	}
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", number))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	_, log, ended := server.sidecar(t, server.token(t, "alone"), t.TempDir(), says("address already in use"))
	if ended || !strings.Contains(log, fmt.Sprint(number)) {
		t.Errorf("ended %v: %s", ended, log)
	}
}

// says tells whether a log holds a text.
func says(text string) func(log string) bool {
	return func(log string) bool { return strings.Contains(log, text) }
}

// When the disk is full nothing is issued and the API says so; with space again all goes on, and the
// journal is whole.
func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: a small disk takes root")
	}
	disk := shortDir(t)
	if got := execute(t, nil, "mount", "-t", "tmpfs", "-o", "size=3m,mode=0700", "tmpfs", disk); got.status != 0 {
		t.Skipf("NOT TESTED: this machine mounts no tmpfs: %s", got.stderr)
	}
	t.Cleanup(func() {
		if got := execute2("umount", disk); got != nil {
			t.Errorf("umount: %v", got)
		}
	})
	server := newControl(t, filepath.Join(disk, "state"), write(t, fmt.Sprintf(loneService, port(t))))
	server.start(t, binary)
	if !server.ready(t) {
		t.Fatal(server.log.String())
	}
	t.Cleanup(func() { _ = server.stop(syscall.SIGTERM) }) // before the disk is taken away
	admin := api.NewAdmin(server.socket)
	before, err := admin.Certificates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(disk, "filler")
	fill(t, filler)
	_, err = probe(t, admin)
	if refusal, ok := errors.AsType[*api.Error](err); !ok || refusal.Code != api.CodeNotRecorded {
		t.Errorf("a certificate with a full disk: %v, want %s", err, api.CodeNotRecorded)
	}
	if got := countersign(t, "token", "create", "alone", "--socket", server.socket); got.status != 1 || got.stdout != "" {
		t.Errorf("a token with a full disk: status %d %q", got.status, got.stdout)
	}
	if after, err := admin.Certificates(t.Context()); err != nil || len(after) != len(before) {
		t.Errorf("%d certificates were issued with a full disk (%v)", len(after)-len(before), err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if _, err := probe(t, admin); err != nil {
		t.Errorf("with space again: %v", err)
	}
	journalHolds(t, server)
}

// probe obtains a certificate of the observer's identity.
func probe(t *testing.T, admin *api.Admin) (*api.Credentials, error) {
	t.Helper()
	key, err := mtls.GenerateKey(mesh.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := mtls.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	return admin.Probe(t.Context(), string(csr), time.Minute)
}

// journalHolds checks a copy of the server's journal, and that it knows every certificate that the
// server says it issued and all of those that somebody holds. It returns the copy's entries.
func journalHolds(t *testing.T, c *control, held ...string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "copy")
	authority, err := api.NewAdmin(c.socket).CA(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := countersign(t, "audit", "log", "export", dir, "--socket", c.socket); got.status != 0 {
		t.Fatalf("audit log export: %s", got.stderr)
	}
	if got := countersign(t, "audit", "log", "verify", dir, "--key", authority.JournalKey); got.status != 0 {
		t.Errorf("the journal does not verify: %s", got.stderr)
	}
	records, err := api.NewAdmin(c.socket).Certificates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, record := range records {
		held = append(held, record.Serial)
	}
	issued := map[string]bool{}
	for record, err := range journal.Records(dir) {
		if err != nil {
			t.Fatal(err)
		}
		var data struct{ Serial string }
		if record.Type == journal.Issued && json.Unmarshal(record.Data, &data) == nil {
			issued[data.Serial] = true
		}
	}
	for _, serial := range held {
		if !issued[serial] {
			t.Errorf("the journal does not know that certificate %s was issued", serial)
		}
	}
}

// fill writes a file until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, size := range []int{1 << 20, 4096, 512, 1} {
		for err = nil; err == nil; {
			_, err = file.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
}

// execute2 runs a command after the test's context has ended.
func execute2(name string, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return exec.CommandContext(ctx, name, args...).Run()
}
