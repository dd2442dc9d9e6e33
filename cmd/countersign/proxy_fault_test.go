//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"countersign.dev/durable"
	"countersign.dev/mtls"
)

// faultSpec lets every start of a sidecar renew its certificate at once.
const faultSpec = `mesh: faults
certificates: {ttl: 1h, renewAfter: 300ms}
services:
  a:
    ports:
      - {port: 9080, protocol: tcp}
      - {port: 9081, protocol: tcp, tls: off}
`

// faultPatience is how long a process may take for what it has to do.
const faultPatience = 90 * time.Second

// faultLab is a control plane and the binary whose sidecars can be made to die at a step.
type faultLab struct {
	binary string
	dir    string
	url    string
	pin    string
	socket string
	// address is the sidecars': a loopback address that no other run of this test has.
	address string
}

// faultChild is a process whose output is collected.
type faultChild struct {
	command *exec.Cmd
	mu      sync.Mutex
	out     bytes.Buffer
	ended   chan struct{}
	err     error // after ended
}

func (c *faultChild) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.Write(p)
}

func (c *faultChild) output() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out.String()
}

// says waits until the output holds each text, and tells whether it came to that before the end.
func (c *faultChild) says(t *testing.T, texts ...string) bool {
	t.Helper()
	deadline := time.Now().Add(faultPatience)
	for {
		ended := false
		select {
		case <-c.ended:
			ended = true
		default:
		}
		missing := ""
		for _, text := range texts {
			if !strings.Contains(c.output(), text) {
				missing = text
			}
		}
		switch {
		case missing == "":
			return true
		case ended:
			return false
		case time.Now().After(deadline):
			_ = c.command.Process.Signal(syscall.SIGQUIT) // it tells where it hangs
			<-c.ended
			t.Fatalf("the process does not say %q:\n%s", missing, c.output())
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// outlives tells whether a process that is to die at a step came to say the texts and could then be
// ended in good order, by which time all its writes are done. Another death is an error.
func (c *faultChild) outlives(t *testing.T, texts ...string) bool {
	t.Helper()
	if c.says(t, texts...) {
		_ = c.command.Process.Signal(syscall.SIGTERM) // it may die at this moment
	}
	select {
	case <-c.ended:
	case <-time.After(faultPatience):
		t.Fatalf("the process does not end:\n%s", c.output())
	}
	if c.err != nil && !c.killed() {
		t.Fatalf("the process ended by itself: %v\n%s", c.err, c.output())
	}
	return c.err == nil
}

func (c *faultChild) kill() {
	_ = c.command.Process.Kill() // it may have ended
	<-c.ended
}

// killed tells whether it died by SIGKILL.
func (c *faultChild) killed() bool {
	status, ok := c.command.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

func (l *faultLab) run(t *testing.T, environment []string, args ...string) *faultChild {
	t.Helper()
	c := &faultChild{command: exec.CommandContext(context.Background(), l.binary, args...), ended: make(chan struct{})}
	c.command.Env = append(os.Environ(), environment...)
	c.command.Stdout, c.command.Stderr = c, c
	if err := c.command.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		c.err = c.command.Wait()
		close(c.ended)
	}()
	t.Cleanup(c.kill)
	return c
}

func newFaultLab(t *testing.T) *faultLab { return newLab(t, faultSpec) }

// newLab starts a control plane with a specification.
func newLab(t *testing.T, specification string) *faultLab {
	t.Helper()
	dir, err := os.MkdirTemp("", "cs") // a socket's path has to be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &faultLab{binary: faultyBinary(t), dir: dir, socket: filepath.Join(dir, "server", "server.sock")}
	l.address = fmt.Sprintf("127.%d.%d.%d", 64+rand.N(64), rand.N(256), 1+rand.N(254))
	spec := filepath.Join(dir, "mesh.yaml")
	if err := os.WriteFile(spec, []byte(specification), 0o600); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(dir, "server")
	l.output(t, "ca", "init", "--state", state, "--unsealed")
	server := l.run(t, nil, "server", "--state", state, "--mesh", spec, "--listen", "127.0.0.1:0", "--unsealed", "--output", "json")
	if !server.says(t, "}\n") {
		t.Fatalf("the server does not start:\n%s", server.output())
	}
	var info struct {
		URL   string `json:"url"`
		CAPin string `json:"caPin"`
	}
	for line := range strings.Lines(server.output()) {
		if strings.HasPrefix(line, "{") {
			if err := json.Unmarshal([]byte(line), &info); err != nil {
				t.Fatal(err)
			}
		}
	}
	l.url, l.pin = info.URL, info.CAPin
	return l
}

// output runs a command to its end.
func (l *faultLab) output(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), l.binary, args...).Output()
	if err != nil {
		t.Fatalf("%v: %v", args, err)
	}
	return string(out)
}

// token makes a file with a fresh join token for one use.
func (l *faultLab) token(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(l.output(t, "token", "create", "a", "--socket", l.socket)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// sidecar starts one, which dies at the given step when that is not empty.
func (l *faultLab) sidecar(t *testing.T, state, token, step string, more ...string) *faultChild {
	t.Helper()
	args := []string{
		"proxy", "--server", l.url, "--ca-pin", l.pin, "--token-file", token,
		"--state", state, "--instance", "a-1", "--address", l.address, "--drain-timeout", "0s", "--log-level", "debug",
	}
	return l.run(t, []string{"COUNTERSIGN_FAULT=" + step}, append(args, more...)...)
}

// checkStored proves that a state directory holds a certificate, its key and its roots.
func checkStored(t *testing.T, state string) string {
	t.Helper()
	files, err := durable.ReadCurrent(state)
	if err != nil {
		t.Fatal(err)
	}
	identity, err := mtls.LoadIdentity(files["cert.pem"], files["key.pem"], files["ca.pem"])
	if err != nil {
		t.Fatal(err)
	}
	return mtls.Serial(identity.Certificate.Leaf)
}

// The words by which a sidecar says how far it is.
const (
	saysEnrolled = "msg=enrolled"
	saysInForce  = `msg="a Plan is in force, and kept"`
	saysRenewed  = `msg="renewed the certificate"`
)

// TestProxyProcess sends signals to sidecars: SIGKILL between two writes, and those that drain.
func TestProxyProcess(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts some two hundred processes")
	}
	t.Parallel() // on addresses of its own
	l := newFaultLab(t)
	t.Run("killed in enrolment", l.killInEnrolment)
	t.Run("killed in renewal", l.killInRenewal)
	t.Run("drained", l.drain)
}

// killSteps calls try with the steps that a process is to die at, from the first to the last of them, until one is beyond
// the process's end. COUNTERSIGN_SOAK=1 tries all, otherwise it is one in stride, and the last.
func killSteps(t *testing.T, stride int, try func(step int) (survived bool)) {
	t.Helper()
	if os.Getenv("COUNTERSIGN_SOAK") != "" {
		stride = 1
	}
	last, step := 0, 1
	for !try(step) {
		last, step = step, step+stride
	}
	for step--; step > last; step-- {
		if !try(step) {
			last = step
		}
	}
	if last < 20 {
		t.Fatalf("there are only %d steps: is the binary built with faults?", last)
	}
	t.Logf("killed at one in %d of %d steps, and at the last", stride, last)
}

// killInEnrolment kills a sidecar at steps of its first start, one after the other; the next start finishes with the same
// token, which has only one use.
func (l *faultLab) killInEnrolment(t *testing.T) {
	killSteps(t, 3, func(step int) (survived bool) {
		state, token := filepath.Join(t.TempDir(), "state"), l.token(t)
		first := l.sidecar(t, state, token, fmt.Sprint(step))
		survived = first.outlives(t, saysEnrolled, saysInForce)
		second := l.sidecar(t, state, token, "")
		if !second.says(t, saysInForce) {
			t.Fatalf("after step %d: the next start ended: %v\n%s", step, second.err, second.output())
		}
		second.kill()
		checkStored(t, state)
		return survived
	})
}

// killInRenewal kills a sidecar at steps of a start with a renewal; the next start
// serves by one of both certificates and renews. The token has been used up long before.
func (l *faultLab) killInRenewal(t *testing.T) {
	state, token := filepath.Join(t.TempDir(), "state"), l.token(t)
	first := l.sidecar(t, state, token, "")
	if !first.says(t, saysEnrolled, saysInForce) {
		t.Fatalf("the first start: %v\n%s", first.err, first.output())
	}
	first.kill()
	killSteps(t, 3, func(step int) (survived bool) {
		before := checkStored(t, state)
		dying := l.sidecar(t, state, token, fmt.Sprint(step))
		survived = dying.outlives(t, saysInForce, saysRenewed)
		between := checkStored(t, state)
		next := l.sidecar(t, state, token, "")
		if !next.says(t, saysInForce, saysRenewed) || strings.Contains(next.output(), "level=ERROR") || strings.Contains(next.output(), "damaged") {
			t.Fatalf("after step %d: %v\n%s", step, next.err, next.output())
		}
		next.kill()
		if after := checkStored(t, state); after == before || after == between {
			t.Errorf("after step %d: the renewed certificate %s is not on the disk", step, after)
		}
		return survived
	})
}

// drain ends sidecars through which a connection runs.
func (l *faultLab) drain(t *testing.T) {
	application, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer application.Close()
	// through makes a connection to the application through a sidecar, and proves that it carries.
	through := func() (client, server net.Conn) {
		t.Helper()
		client, err := net.Dial("tcp", l.address+":9081")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		if server, err = application.Accept(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { server.Close() })
		carries(t, client, server)
		return client, server
	}
	start := func(timeout string) *faultChild {
		t.Helper()
		c := l.sidecar(t, filepath.Join(t.TempDir(), "state"), l.token(t), "", "--drain-timeout", timeout,
			"--bind", "app/9081="+application.Addr().String())
		if !c.says(t, saysInForce) {
			t.Fatalf("the sidecar does not start:\n%s", c.output())
		}
		return c
	}
	wait := func(c *faultChild, status int, text string) {
		t.Helper()
		select {
		case <-c.ended:
		case <-time.After(faultPatience):
			t.Fatalf("it does not end:\n%s", c.output())
		}
		if got := c.command.ProcessState.ExitCode(); got != status || !strings.Contains(c.output(), text) {
			t.Errorf("exit status %d, want %d and %q:\n%s", got, status, text, c.output())
		}
	}
	signal := func(c *faultChild, s syscall.Signal) {
		t.Helper()
		if err := c.command.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}

	finishing := start("1h")
	client, server := through()
	signal(finishing, syscall.SIGTERM)
	finishing.says(t, "msg=draining")
	carries(t, client, server)
	client.Close()
	server.Close()
	wait(finishing, 0, "msg=stopped")

	impatient := start("1h")
	through()
	signal(impatient, syscall.SIGTERM)
	signal(impatient, syscall.SIGTERM) // the echo of the first, as timeout(1) sends it
	impatient.says(t, "msg=draining")
	for insisting := true; insisting; {
		_ = impatient.command.Process.Signal(syscall.SIGINT) // fails when it has ended
		select {
		case <-impatient.ended:
			insisting = false
		case <-time.After(20 * time.Millisecond):
		}
	}
	wait(impatient, 1, "ended at a second signal")

	cut := start("100ms")
	client, _ = through()
	signal(cut, syscall.SIGTERM)
	wait(cut, 0, "not everything was finished in time")
	if _, err := client.Read(make([]byte, 1)); err == nil {
		t.Error("the connection lives on")
	}
}

// carries proves that what one end says arrives at the other.
func carries(t *testing.T, from, to net.Conn) {
	t.Helper()
	if _, err := from.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := to.SetReadDeadline(time.Now().Add(faultPatience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(to, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}
