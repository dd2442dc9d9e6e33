//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
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
	"countersign.dev/mesh"
	"countersign.dev/rotate"
	"countersign.dev/secret"
	"countersign.dev/secret/filestore"
)

const rotateSpec = `mesh: shop
certificates: {ttl: 1h}
stores:
  vault: {type: file, dir: store, identityFile: id.age}
services:
  one:
    ports: [{port: 9080, protocol: tcp}]
    proxy: {engine: nginx}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}"}
  two:
    ports: [{port: 9080, protocol: tcp}]
    proxy: {engine: nginx}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}", layout: exported, bundle: "{mesh}/bundle"}
`

// rotateLab is a server with a store, and the binary whose rotations can be made to die.
type rotateLab struct {
	*faultLab
	store *filestore.Store
}

func newRotateLab(t *testing.T) *rotateLab {
	t.Helper()
	l := &rotateLab{faultLab: newLab(t, rotateSpec)}
	file, dir := filepath.Join(l.dir, "id.age"), filepath.Join(l.dir, "store")
	if err := filestore.GenerateIdentity(file); err != nil {
		t.Fatal(err)
	}
	identity, err := filestore.LoadIdentity(file)
	if err != nil {
		t.Fatal(err)
	}
	if l.store, err = filestore.Create(dir, identity); err != nil {
		t.Fatal(err)
	}
	return l
}

// rotate runs a rotation to its end, which dies at a step when that is not empty.
func (l *rotateLab) rotate(t *testing.T, step string, args ...string) (output string, killed bool, err error) {
	t.Helper()
	c := l.run(t, []string{"COUNTERSIGN_FAULT=" + step}, append([]string{"rotate", "once", "--socket", l.socket}, args...)...)
	<-c.ended
	return c.output(), c.killed(), c.err
}

// status is what `rotate status` says of a service.
func (l *rotateLab) status(t *testing.T, service string) rotate.Status {
	t.Helper()
	var statuses []rotate.Status
	if err := json.Unmarshal([]byte(l.output(t, "rotate", "status", service, "--socket", l.socket, "--output", "json")), &statuses); err != nil || len(statuses) != 1 {
		t.Fatalf("%v, %v", statuses, err)
	}
	return statuses[0]
}

// issued counts the certificates of a service.
func (l *rotateLab) issued(t *testing.T, service string) int {
	t.Helper()
	records, err := api.NewAdmin(l.socket).Certificates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, record := range records {
		if record.Identity.Name() == service && record.Instance == "" {
			n++
		}
	}
	return n
}

// consistent expects the store to hold nothing that a rotation has left.
func (l *rotateLab) consistent(t *testing.T, step string) {
	t.Helper()
	entries, err := l.store.List(t.Context())
	if err != nil {
		t.Errorf("step %s: %v", step, err)
	}
	for _, entry := range entries {
		if _, ok := entry.Stage(secret.Pending); ok {
			t.Errorf("step %s: %s has a pending version", step, entry.Name)
		}
		for _, version := range entry.Versions {
			if strings.HasSuffix(version.ID, "-req") {
				t.Errorf("step %s: %s still has the request %s", step, entry.Name, version.ID)
			}
		}
	}
	if s := l.status(t, "two"); s.Step != "" || s.Holder != "" || s.Problem != "" {
		t.Errorf("step %s: %+v", step, s)
	}
}

// TestRotationIsKilled kills a rotation of a real server's certificate at its steps, one after the other: what is
// current can be read at every moment, and the next rotation ends the work with at most one certificate more.
//
// COUNTERSIGN_SOAK=1 tries every step, otherwise every eleventh.
func TestRotationIsKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts many processes")
	}
	t.Parallel() // with a store of its own
	l := newRotateLab(t)
	if output, _, err := l.rotate(t, ""); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	stride := 11
	if os.Getenv("COUNTERSIGN_SOAK") != "" {
		stride = 1
	}
	step := 1
	for ; ; step += stride {
		before, serial := l.issued(t, "two"), l.status(t, "two").Serial
		output, killed, err := l.rotate(t, fmt.Sprint(step), "two", "--force")
		if !killed && err != nil {
			t.Fatalf("step %d: %v\n%s", step, err, output)
		}
		if s := l.status(t, "two"); s.Serial == "" || s.Problem != "" {
			t.Errorf("step %d: %+v", step, s)
		}
		again, _, err := l.rotate(t, "", "two")
		if err != nil {
			t.Fatalf("step %d: the next rotation: %v\n%s", step, err, again)
		}
		if issued := l.issued(t, "two") - before; issued > 1 || (issued == 1) != (l.status(t, "two").Serial != serial) {
			t.Errorf("step %d: %d certificates were issued\n%s\n%s", step, issued, output, again)
		}
		l.consistent(t, fmt.Sprint(step))
		if t.Failed() {
			t.FailNow()
		}
		if !killed {
			break
		}
	}
	if step < 100 {
		t.Errorf("everything was done within %d steps; are they counted?", step)
	}
	t.Logf("%d steps, every %dth tried", step, stride)
}

// TestStepsOfARotation kills it at steps by their names, so that a step that is taken out is noticed.
func TestStepsOfARotation(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts many processes")
	}
	l := newRotateLab(t)
	for _, step := range []string{
		"rotate.bundle.stage", "rotate.bundle.staged", "rotate.bundle.promote", "rotate.bundle.promoted",
		"rotate.request", "rotate.request.staged", "rotate.issue", "rotate.issued", "rotate.stage", "rotate.version.staged", "rotate.verify",
		"rotate.promote", "rotate.record.written", "rotate.promoted", "rotate.deploy", "rotate.observe", "rotate.observed",
	} {
		if output, killed, err := l.rotate(t, step, "two"); !killed {
			t.Fatalf("nobody was killed at %s: %v\n%s", step, err, output)
		}
	}
	if output, _, err := l.rotate(t, "", "two"); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	if n := l.issued(t, "two"); n != 1 {
		t.Errorf("%d certificates were issued, want 1: each start was to go on where the one before was killed", n)
	}
	l.consistent(t, "all")
}

// sidecarOf is what a watcher and its proxy do, as far as others see it: it registers, and serves what is current in the
// store, unless it is told to refuse it.
type sidecarOf struct {
	l    *rotateLab
	mu   sync.Mutex
	last *tls.Certificate
	// refuse lets it serve what it has.
	refuse bool
}

func (s *sidecarOf) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse && s.last != nil {
		return s.last, nil
	}
	shape, err := secret.NewShape(secret.LayoutJSON, secret.Fields{})
	if err != nil {
		return nil, err
	}
	material, err := shape.Read(context.Background(), s.l.store, "shop/one", "")
	if err != nil {
		return nil, err
	}
	certificate, err := tls.X509KeyPair(material.Certificate, material.Key)
	s.last = &certificate
	return &certificate, err
}

func (s *sidecarOf) setRefuse(refuse bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = refuse
}

// start registers an instance and serves.
func (l *rotateLab) start(t *testing.T) *sidecarOf {
	t.Helper()
	s := &sidecarOf{l: l}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			server := tls.Server(conn, &tls.Config{GetCertificate: s.certificate, ClientAuth: tls.RequireAnyClientCert})
			_ = server.HandshakeContext(context.Background()) // the observer has no certificate
			server.Close()
		}
	}()
	server, err := url.Parse(l.url)
	if err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(l.output(t, "token", "create", "one", "--socket", l.socket)), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := agent.New(agent.Config{
		Server: server, Pin: l.pin, TokenFile: token, StateDir: filepath.Join(t.TempDir(), "agent"), Instance: "one-1", Log: slog.New(slog.DiscardHandler),
		OnPlan: func(*mesh.Plan) error { return nil },
		Report: func() api.Report {
			return api.Report{Listening: []api.Listening{{Port: 9080, Address: listener.Addr().String()}}}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the agent ended with %v", err)
		}
		listener.Close()
	})
	admin := api.NewAdmin(l.socket)
	deadline := time.Now().Add(faultPatience)
	for {
		endpoints, err := admin.Endpoints(t.Context())
		if err == nil && len(endpoints) == 1 && len(endpoints[0].Inbound) == 1 {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("the instance is not registered: %v, %v", endpoints, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestRotationIsObserved rotates with an instance that serves what is current, and then with one that refuses to.
func TestRotationIsObserved(t *testing.T) {
	l := newRotateLab(t)
	s := l.start(t)
	output, _, err := l.rotate(t, "", "one")
	if err != nil || !strings.Contains(output, "one: rotated, and seen at 1 place: serial ") {
		t.Fatalf("%v\n%s", err, output)
	}
	first := l.status(t, "one").Serial

	// It refuses the next one; while it is waited for, another rotation is told who is at work.
	s.setRefuse(true)
	waiting := l.run(t, nil, "rotate", "once", "one", "--force", "--timeout", "3s", "--socket", l.socket)
	if !waiting.says(t, "one: observe: waiting: one-1 0.0.0.0_9080 serves "+first) {
		t.Fatal(waiting.output())
	}
	var exit *exec.ExitError
	output, _, err = l.rotate(t, "", "one", "--force")
	host, hostErr := os.Hostname()
	if hostErr != nil {
		t.Fatal(hostErr)
	}
	holder := fmt.Sprintf("is held by countersign rotate on %s, pid %d, user ", host, waiting.command.Process.Pid)
	if !asExit(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(output, holder) {
		t.Errorf("%v, want status 1 and %q:\n%s", err, holder, output)
	}
	<-waiting.ended
	if !asExit(waiting.err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("%v, want status 1", waiting.err)
	}
	for _, want := range []string{"at the step observe: not every endpoint serves the new certificate", "is current again and was seen everywhere"} {
		if !strings.Contains(waiting.output(), want) {
			t.Errorf("it does not say %q:\n%s", want, waiting.output())
		}
	}
	if status := l.status(t, "one"); status.Serial != first || status.Failures != 1 || status.LastErrorStep != rotate.StepObserve {
		t.Errorf("%+v", status)
	}

	// Killed while it waits, or on the way back, it is brought to its end by the next one.
	for _, step := range []string{"rotate.observe", "rotate.rollback"} {
		s.setRefuse(true)
		if output, killed, err := l.rotate(t, step, "one", "--force", "--timeout", "1s"); !killed {
			t.Fatalf("nobody was killed at %s: %v\n%s", step, err, output)
		}
		before := l.issued(t, "one")
		if output, _, err := l.rotate(t, "", "one", "--timeout", "1s"); err == nil || !strings.Contains(output, "is current again") {
			t.Errorf("%v\n%s", err, output)
		}
		if status := l.status(t, "one"); status.Serial != first || l.issued(t, "one") != before {
			t.Errorf("killed at %s: %+v, %d more", step, status, l.issued(t, "one")-before)
		}
	}
	s.setRefuse(false)
	if output, _, err := l.rotate(t, "", "one", "--force"); err != nil {
		t.Errorf("%v\n%s", err, output)
	}
	if status := l.status(t, "one"); status.Serial == first || status.Failures != 0 || status.FailuresTotal < 3 {
		t.Errorf("%+v", status)
	}
}

// TestRotationDaemon lets a daemon make the first versions, reads its metrics, and ends it: when it has nothing to do, and
// in the middle of a rotation.
func TestRotationDaemon(t *testing.T) {
	l := newRotateLab(t)
	s := l.start(t)
	d := l.run(t, nil, "rotate", "daemon", "--socket", l.socket, "--metrics", "127.0.0.1:0")
	if !d.says(t, "serving metrics", "secret=shop/two service=two") {
		t.Fatal(d.output())
	}
	_, rest, _ := strings.Cut(d.output(), "address=")
	address, _, _ := strings.Cut(rest, "\n")
	response, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`countersign_rotate_certificate_expiry_days{service="one"} 0.0`, `countersign_rotate_last_success_timestamp_seconds{service="two"} 1`,
		`countersign_rotate_failures_total{service="one"} 0`, `countersign_rotate_in_flight{service="one"} 0`,
	} {
		if !strings.Contains(string(body), want) {
			t.Errorf("the metrics do not say %s:\n%s", want, body)
		}
	}
	_ = d.command.Process.Signal(syscall.SIGTERM)
	if <-d.ended; d.err != nil {
		t.Errorf("it ended with %v\n%s", d.err, d.output())
	}

	// The next certificate is refused, and waited for.
	s.setRefuse(true)
	first := l.status(t, "one").Serial
	if output, killed, err := l.rotate(t, "rotate.request.staged", "one", "--force"); !killed {
		t.Fatalf("%v\n%s", err, output)
	}
	d = l.run(t, nil, "rotate", "daemon", "--socket", l.socket)
	if !d.says(t, "waiting: one-1 0.0.0.0_9080 serves "+first) {
		t.Fatal(d.output())
	}
	_ = d.command.Process.Signal(syscall.SIGTERM)
	if <-d.ended; d.err != nil || !strings.Contains(d.output(), "the rotation was stopped; the next start goes on from here") {
		t.Errorf("it ended with %v\n%s", d.err, d.output())
	}
	if status := l.status(t, "one"); status.Holder != "" || status.Step == "" || status.Failures != 0 {
		t.Errorf("%+v", status)
	}
	s.setRefuse(false)
	if output, _, err := l.rotate(t, "", "one"); err != nil || l.issued(t, "one") != 2 {
		t.Errorf("%v, %d were issued\n%s", err, l.issued(t, "one"), output)
	}
}
