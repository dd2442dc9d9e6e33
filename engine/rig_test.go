package engine_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"countersign.dev/engine"
	"countersign.dev/haproxy"
	"countersign.dev/id"
	"countersign.dev/issue/issuetest"
	"countersign.dev/mesh"
	"countersign.dev/nginx"
)

// foreign is one of the programs.
type foreign struct {
	name    string
	program string
	render  func(*mesh.Plan, engine.Options) (*engine.Config, error)
	check   func(file string) []string
	serve   func(file string) []string
}

var engines = []foreign{
	{
		"nginx", "nginx", nginx.Render,
		func(file string) []string { return []string{"-t", "-q", "-c", file} },
		func(file string) []string { return []string{"-c", file} },
	},
	{
		"haproxy", "haproxy", haproxy.Render,
		func(file string) []string { return []string{"-c", "-f", file} },
		func(file string) []string { return []string{"-db", "-f", file} },
	},
}

// path finds the program; a test without it is skipped loudly, and fails where every peer is wanted.
func (f foreign) path(t *testing.T) string {
	t.Helper()
	for _, name := range []string{f.program, "/usr/sbin/" + f.program} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed, and CI=true wants every peer: tools/install-peers.sh installs it", f.program)
	}
	t.Skipf("NOT TESTED: %s is not installed (tools/install-peers.sh installs it)", f.program)
	return ""
}

// options are those for a process of this test.
func options(dir string) engine.Options {
	o := engine.Options{Certificates: filepath.Join(dir, "certs"), Run: filepath.Join(dir, "run")}
	if _, err := os.Stat(nginx.DefaultStreamModule); err == nil {
		o.StreamModule = nginx.DefaultStreamModule
	}
	if os.Geteuid() == 0 {
		o.User = "root" // or the workers could not reach the test's directories
	}
	return o
}

// authority is a CA in memory.
type authority struct{ *issuetest.Authority }

func newAuthority(t testing.TB) *authority { return &authority{issuetest.New(t)} }

// write fills a directory of certificates as `countersign init` does.
func (a *authority) write(t testing.TB, dir string, who id.ID) {
	t.Helper()
	chain, key := a.Pair(t, who)
	current := filepath.Join(dir, "certs", "current")
	for _, d := range []string{current, filepath.Join(dir, "run")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string][]byte{"cert.pem": chain, "key.pem": key, "ca.pem": issuetest.PEM(a.Root), "cert-and-key.pem": slices.Concat(chain, key), "crl.pem": a.CRLs(t, 1, time.Hour)} {
		if err := os.WriteFile(filepath.Join(current, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// client is the TLS of a member, or of nobody when who is zero.
func (a *authority) client(t testing.TB, who id.ID, server string, protos ...string) *tls.Config {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(a.Root)
	c := &tls.Config{RootCAs: roots, ServerName: server, NextProtos: protos, MinVersion: tls.VersionTLS12}
	if !who.IsZero() {
		chain, key := a.Pair(t, who)
		pair, err := tls.X509KeyPair(chain, key)
		if err != nil {
			t.Fatal(err)
		}
		// A client that shows its certificate whether or not it is asked for one of this CA.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	return c
}

func parse(t testing.TB, text string) *mesh.Spec {
	t.Helper()
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: "/etc/mesh", Content: text}})
	var errs mesh.Errors
	if errors.As(err, &errs) {
		t.Fatal(strings.Join(errs.Lines(), "\n"))
	}
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func compile(t testing.TB, spec *mesh.Spec, workload string) *mesh.Plan {
	t.Helper()
	plan, err := spec.Compile(workload)
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// freeAddress gives an address of 127.0.0.0/8 on which none of the ports is taken.
func freeAddress(t testing.TB, ports ...int) netip.Addr {
	t.Helper()
	for n := range 50_000 { // none is given twice, however often the tests run
		address := netip.AddrFrom4([4]byte{127, byte(40 + os.Getpid()%150), byte(n % 250), byte(1 + (len(t.Name())+n/250)%250)})
		if taken[address] {
			continue
		}
		free := true
		for _, port := range ports {
			listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", netip.AddrPortFrom(address, uint16(port)).String())
			if err != nil {
				free = false
				break
			}
			listener.Close()
		}
		if free {
			taken[address] = true
			return address
		}
	}
	t.Fatal("no address of 127.0.0.0/8 is free")
	return netip.Addr{}
}

var taken = map[netip.Addr]bool{}

// output collects what a process writes.
type output struct {
	mu  chan struct{}
	buf bytes.Buffer
}

func newOutput() *output {
	o := &output{mu: make(chan struct{}, 1)}
	o.mu <- struct{}{}
	return o
}

func (o *output) Write(p []byte) (int, error) {
	<-o.mu
	defer func() { o.mu <- struct{}{} }()
	return o.buf.Write(p)
}

func (o *output) String() string {
	<-o.mu
	defer func() { o.mu <- struct{}{} }()
	return o.buf.String()
}

// start renders a Plan, starts the program and waits until all of it listens. It gives what comes to
// standard output: the access log.
func (f foreign) start(t *testing.T, dir string, plan *mesh.Plan, o engine.Options) *output {
	t.Helper()
	config, err := f.render(plan, o)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, f.name+".conf")
	if err := os.WriteFile(file, []byte(config.Text), 0o600); err != nil {
		t.Fatal(err)
	}
	out := newOutput()
	command := exec.CommandContext(context.WithoutCancel(t.Context()), f.path(t), f.serve(file)...)
	said := newOutput()
	command.Stdout, command.Stderr = out, said
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { _ = command.Wait(); close(exited) }()
	t.Cleanup(func() {
		_ = command.Process.Signal(syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(10 * time.Second):
			_ = command.Process.Kill()
			<-exited
		}
		if t.Failed() {
			t.Logf("%s of %s wrote:\n%s%s", f.name, plan.Workload.Name, said, out)
		}
	})
	o = o.WithDefaults("")
	for _, in := range plan.Inbound {
		await(t, o.Inbound(in.Port), exited)
	}
	for _, call := range plan.Outbound {
		await(t, o.Outbound(call.Listen), exited)
	}
	return out
}

func await(t *testing.T, address string, exited <-chan struct{}) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(t.Context(), "tcp", address)
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-exited:
			t.Fatalf("it ended before it listened on %s", address)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("nothing listens on %s: %v", address, err)
		}
	}
}

// eventually polls until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		select {
		case <-t.Context().Done():
			t.Fatal(fmt.Errorf("%s: %w", what, t.Context().Err()))
		case <-time.After(10 * time.Millisecond):
		}
	}
}
