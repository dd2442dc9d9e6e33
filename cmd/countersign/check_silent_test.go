package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/expiry"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/secret"
	"countersign.dev/secret/filestore"
)

// silentPatience is how long a test waits for what has to come.
const silentPatience = time.Minute

// silentLab is a server and a store, both real, and a proxy in this process that takes from the store what it is told
// to take, and reports to the server as a watcher beside it does.
type silentLab struct {
	dir, socket, url, spec string
	roots                  *x509.CertPool
	store                  *filestore.Store
	serving                atomic.Pointer[tls.Certificate]
	address                string
	member                 *http.Client // with the certificate of the instance
}

const silentSpec = `mesh: m
revocation: none
certificates: {ttl: 24h, renewAfter: %s}
stores:
  main: {type: file, dir: store, identityFile: id.age}
services:
  api:
    ports: [{port: 9443, app: 9080, protocol: http}]
    proxy: {engine: nginx}
    delivery: {type: store, store: main, secret: "{mesh}/{service}", bundle: "{mesh}/bundle"}
    deploy: {type: %s}
`

// newSilentLab starts the server, and has the rotation make the first version.
func newSilentLab(t *testing.T, renewAfter, deploy string) *silentLab {
	t.Helper()
	dir, err := os.MkdirTemp("", "cs") // a socket's path has to be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &silentLab{dir: dir, socket: filepath.Join(dir, "state", "server.sock"), spec: filepath.Join(dir, "mesh.yaml")}
	if err := os.WriteFile(l.spec, fmt.Appendf(nil, silentSpec, renewAfter, deploy), 0o600); err != nil {
		t.Fatal(err)
	}
	l.must(t, "secret", "init", "--store", "file:"+filepath.Join(dir, "store"), "--identity-file", filepath.Join(dir, "id.age"))
	identity, err := filestore.LoadIdentity(filepath.Join(dir, "id.age"))
	if err != nil {
		t.Fatal(err)
	}
	if l.store, err = filestore.Open(filepath.Join(dir, "store"), identity); err != nil {
		t.Fatal(err)
	}
	l.must(t, "ca", "init", "--state", filepath.Join(dir, "state"), "--unsealed", "--mesh", l.spec)
	l.startServer(t)
	l.must(t, "rotate", "once", "--no-deploy", "--socket", l.socket)
	return l
}

// silentCommand is a process of ours.
func silentCommand(ctx context.Context, args ...string) (*exec.Cmd, error) {
	executable, err := os.Executable()
	if err != nil {
		return nil, err
	}
	command := exec.CommandContext(ctx, executable, args...)
	command.Args[0] = "countersign"
	command.Env = append(os.Environ(), "COUNTERSIGN_RUN=", "GORACE=atexit_sleep_ms=0")
	return command, nil
}

// run runs a command line as a process of its own.
func (l *silentLab) run(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	command, err := silentCommand(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	command.Stdout, command.Stderr = &out, &errs
	err = command.Run()
	return out.String(), errs.String(), err
}

// must runs a command line that has to end well.
func (l *silentLab) must(t *testing.T, args ...string) string {
	t.Helper()
	stdout, stderr, err := l.run(t, args...)
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, stderr)
	}
	return stdout
}

func (l *silentLab) startServer(t *testing.T) {
	t.Helper()
	command, err := silentCommand(context.Background(), "server", "--state", filepath.Join(l.dir, "state"), "--mesh", l.spec, "--listen", "127.0.0.1:0", "--unsealed", "--output", "json")
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	command.Stderr = &errs
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = command.Process.Kill()
		_ = command.Wait() // it was killed
	})
	var info struct {
		URL    string `json:"url"`
		CAFile string `json:"caFile"`
	}
	if err := json.NewDecoder(stdout).Decode(&info); err != nil {
		t.Fatalf("the server does not say where it is: %v\n%s", err, errs.String())
	}
	l.url = info.URL
	pem, err := os.ReadFile(info.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	l.roots = x509.NewCertPool()
	l.roots.AppendCertsFromPEM(pem)
}

// call asks the server as an agent does, and hands what it answers to read, until that returns.
func (l *silentLab) call(t *testing.T, client *http.Client, path string, body any, read func(io.Reader) error) {
	t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, l.url+path, bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %v", path, api.DecodeError(response))
	}
	if err := read(response.Body); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// into decodes an answer.
func into(answer any) func(io.Reader) error {
	return func(r io.Reader) error { return json.NewDecoder(r).Decode(answer) }
}

// client is one with a certificate, or with none.
func (l *silentLab) client(certificates ...tls.Certificate) *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: l.roots, Certificates: certificates, MinVersion: tls.VersionTLS13}}}
}

// join starts the proxy and registers it as the instance api-1.
func (l *silentLab) join(t *testing.T) {
	t.Helper()
	l.take(t)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return l.serving.Load(), nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	l.address = listener.Addr().String()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).Handshake() // whoever looks may go as soon as he has seen the certificate
			conn.Close()
		}
	}()
	t.Cleanup(func() { listener.Close(); <-done })

	key, err := mtls.GenerateKey(mesh.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := mtls.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	token := strings.TrimSpace(l.must(t, "token", "create", "api", "--socket", l.socket))
	var credentials api.Credentials
	l.call(t, l.client(), api.PathEnroll, api.EnrollRequest{Token: token, Instance: "api-1", CSR: string(csr)}, into(&credentials))
	l.member = l.client(pairOf(t, credentials.Chain, key))
	watching, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		l.watch(t.Context(), watching)
	}()
	t.Cleanup(func() { <-watched })
	select {
	case <-watching:
	case <-watched:
		t.Fatal("the server does not let the instance watch")
	}
	l.report(t, "")
}

// watch follows the Plans, as every instance does that is there, until ctx ends.
func (l *silentLab) watch(ctx context.Context, watching chan<- struct{}) {
	text := strings.NewReader(`{"instance":"api-1","revision":0}`)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, l.url+api.PathWatch, text)
	if err != nil {
		return
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := l.member.Do(request)
	if err != nil {
		return
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return
	}
	close(watching)
	_, _ = io.Copy(io.Discard, response.Body) // ctx ends it
}

func pairOf(t *testing.T, chain string, key crypto.Signer) tls.Certificate {
	t.Helper()
	certificates, err := mtls.ParseCertificates([]byte(chain))
	if err != nil {
		t.Fatal(err)
	}
	pair := tls.Certificate{PrivateKey: key, Leaf: certificates[0]}
	for _, cert := range certificates {
		pair.Certificate = append(pair.Certificate, cert.Raw)
	}
	return pair
}

// take makes the proxy serve what is current in the store.
func (l *silentLab) take(t *testing.T) {
	t.Helper()
	shape, err := secret.NewShape(secret.LayoutJSON, secret.Fields{})
	if err != nil {
		t.Fatal(err)
	}
	material, err := shape.Read(t.Context(), l.store, "m/api", "")
	if err != nil {
		t.Fatal(err)
	}
	key, err := mtls.ParseKey(material.Key)
	if err != nil {
		t.Fatal(err)
	}
	pair := pairOf(t, string(material.Certificate), key)
	l.serving.Store(&pair)
}

// report tells the server what the proxy serves, and what is wrong.
func (l *silentLab) report(t *testing.T, problem string) {
	t.Helper()
	leaf := l.serving.Load().Leaf
	_, port, err := net.SplitHostPort(l.address)
	if err != nil || port == "" {
		t.Fatalf("the address %q: %v", l.address, err)
	}
	l.call(t, l.member, api.PathReport, api.Report{
		Instance: "api-1", Serial: mtls.Serial(leaf), NotAfter: leaf.NotAfter, LastRenewal: time.Now(), Revision: 1,
		Listening: []api.Listening{{Port: 9443, Address: l.address}}, Problem: problem,
	}, into(&api.ReportResponse{}))
}

// check runs `check expiry`, and compares the exit status with the report.
func (l *silentLab) check(t *testing.T, more ...string) checkedExpiry {
	t.Helper()
	stdout, stderr, err := l.run(t, append([]string{"check", "expiry", "--socket", l.socket, "--settle", "0s", "--output", "json"}, more...)...)
	var checked checkedExpiry
	if decoded := json.Unmarshal([]byte(stdout), &checked); decoded != nil {
		t.Fatalf("%v, %v\n%s\n%s", err, decoded, stdout, stderr)
	}
	var ended *exec.ExitError
	switch {
	case checked.Worst == expiry.OK && err != nil:
		t.Fatalf("all is well, and the exit status says %v", err)
	case checked.Worst != expiry.OK && (!asExit(err, &ended) || ended.ExitCode() != exitFailure):
		t.Fatalf("not all is well, and the exit status says %v", err)
	}
	return checked
}

func asExit(err error, ended **exec.ExitError) bool {
	e, ok := err.(*exec.ExitError) //nolint:errorlint // exec.Cmd.Run returns it as it is
	*ended = e
	return ok
}

// healthy fails the test unless all is well.
func (l *silentLab) healthy(t *testing.T, more ...string) {
	t.Helper()
	if checked := l.check(t, more...); checked.Worst != expiry.OK || len(checked.Findings) > 0 {
		t.Fatalf("before anything was broken there are findings: %+v", checked.Findings)
	}
}

// has finds a finding of a code.
func has(t *testing.T, checked checkedExpiry, code expiry.Code, texts ...string) {
	t.Helper()
	for _, f := range checked.Findings {
		if f.Code != code {
			continue
		}
		for _, text := range texts {
			if !strings.Contains(f.Message+" "+f.Action, text) {
				t.Errorf("the finding %s does not say %q: %+v", code, text, f)
			}
		}
		if f.Workload != "api" {
			t.Errorf("the finding is about %q", f.Workload)
		}
		return
	}
	t.Errorf("%s is not found; there are %+v", code, checked.Findings)
}

// TestCheckScheduleStopped: nobody rotates any more, and nothing fails, so that nobody hears of it.
func TestCheckScheduleStopped(t *testing.T) {
	l := newSilentLab(t, "5s", "reload")
	l.join(t)
	deadline := time.Now().Add(silentPatience)
	for {
		checked := l.check(t, "--grace", "0s")
		if len(checked.Findings) > 0 {
			has(t, checked, expiry.CodeRotationOverdue, "nobody has tried it since", "countersign rotate daemon")
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a rotation that was due after 5 s is not overdue")
		}
		time.Sleep(100 * time.Millisecond)
	}
	l.must(t, "rotate", "once", "--no-deploy", "--socket", l.socket)
	l.take(t)
	l.report(t, "")
	l.healthy(t)
}

// TestCheckRotationFails: the rotation runs, and fails each time at once: what restarts the instances is not there.
func TestCheckRotationFails(t *testing.T) {
	l := newSilentLab(t, "18h", "restart")
	l.join(t)
	l.healthy(t)
	for n := 1; n <= 3; n++ {
		if stdout, _, err := l.run(t, "rotate", "once", "--force", "--timeout", "1s", "--socket", l.socket); err == nil {
			t.Fatalf("the rotation did not fail:\n%s", stdout)
		}
	}
	checked := l.check(t)
	has(t, checked, expiry.CodeRotationFailing, "failed 3 times", "at the step", "countersign up")
	if checked.Findings[0].Severity != expiry.Critical {
		t.Errorf("the third failure is %s", checked.Findings[0].Severity)
	}
	if len(checked.Findings) != 1 {
		t.Errorf("one thing is wrong, and there are %+v", checked.Findings)
	}
}

// TestCheckStoreAhead: the store was updated, and the proxy serves the old certificate on.
func TestCheckStoreAhead(t *testing.T) {
	l := newSilentLab(t, "18h", "reload")
	l.join(t)
	l.healthy(t)
	old := mtls.Serial(l.serving.Load().Leaf)
	l.must(t, "rotate", "once", "--force", "--no-deploy", "--socket", l.socket)
	checked := l.check(t)
	has(t, checked, expiry.CodeStoreAhead, "it serves "+old, "countersign init --watch")
	if len(checked.Findings) != 1 {
		t.Errorf("one thing is wrong, and there are %+v", checked.Findings)
	}

	// While it looks again, the proxy takes the new one: nothing was wrong.
	command, err := silentCommand(t.Context(), "check", "expiry", "--socket", l.socket, "--settle", "1m")
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	command.Stdout, command.Stderr = &said, &said
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	l.take(t)
	l.report(t, "")
	if err := command.Wait(); err != nil {
		t.Errorf("the proxy has taken it, and the check says %v\n%s", err, said.String())
	}
}

// TestCheckReloadRefused: the proxy was given the new certificate, and does not take it.
func TestCheckReloadRefused(t *testing.T) {
	l := newSilentLab(t, "18h", "reload")
	l.join(t)
	l.healthy(t)
	old := mtls.Serial(l.serving.Load().Leaf)
	l.must(t, "rotate", "once", "--force", "--no-deploy", "--socket", l.socket)
	l.report(t, "nginx -t refuses the new generation: key values mismatch")
	checked := l.check(t)
	has(t, checked, expiry.CodeReloadRefused, "key values mismatch", "it serves "+old)
	if len(checked.Findings) != 1 {
		t.Errorf("one thing is wrong, and there are %+v", checked.Findings)
	}
	if checked.Findings[0].Instance != "api-1" || checked.Findings[0].Place != l.address {
		t.Errorf("it is found at %+v", checked.Findings[0])
	}
}
