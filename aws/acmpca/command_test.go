package acmpca

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign.dev/aws/internal/awstest/pcafake"
	"countersign.dev/mesh"
)

// command is the program, built once.
var command struct {
	once sync.Once
	path string
	err  error
}

// built builds the program.
func built(t *testing.T) string {
	t.Helper()
	command.once.Do(func() {
		var dir string
		if dir, command.err = os.MkdirTemp("", "countersign"); command.err != nil {
			return
		}
		command.path = filepath.Join(dir, "countersign")
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		build := exec.CommandContext(ctx, "go", "build", "-pgo=off", "-o", command.path, "countersign.dev/cmd/countersign")
		build.Env = append(os.Environ(), "CGO_ENABLED=0") // as the other steps of a check build it: then most of it is compiled already
		var output []byte
		if output, command.err = build.CombinedOutput(); command.err != nil {
			t.Logf("%s", output)
		}
	})
	if command.err != nil {
		t.Fatal(command.err)
	}
	return command.path
}

func TestMain(m *testing.M) {
	code := m.Run()
	if command.path != "" {
		_ = os.RemoveAll(filepath.Dir(command.path))
	}
	os.Exit(code)
}

// run runs `countersign ca aws`, and gives what it has printed, both ways, and its status.
func (w *world) run(args ...string) (stdout, stderr string, status int) {
	w.t.Helper()
	c := exec.CommandContext(w.t.Context(), built(w.t), append([]string{"ca", "aws"}, args...)...)
	c.Env = append(os.Environ(), "AWS_ENDPOINT_URL="+w.server.URL)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil && c.ProcessState == nil {
		w.t.Fatal(err)
	}
	return out.String(), errs.String(), c.ProcessState.ExitCode()
}

// made runs a command that prints a CA.
func (w *world) made(args ...string) (ca State, stderr string) {
	w.t.Helper()
	stdout, stderr, status := w.run(append(args, "--output", "json")...)
	if status != 0 {
		w.t.Fatalf("%v: status %d\n%s", args, status, stderr)
	}
	if err := json.Unmarshal([]byte(stdout), &ca); err != nil {
		w.t.Fatalf("%v: %v\n%s", args, err, stdout)
	}
	return ca, stderr
}

// TestCommand makes a root, a CA below it and one that is signed elsewhere by the command line, each cut off and repeated.
func TestCommand(t *testing.T) {
	w := newWorld(t, pcafake.Options{PendingPolls: 1}, pcafake.CA{})
	w.set(func() { w.now = time.Now() }) // the command's clock
	create := []string{"create", "--common-name", "Payments root", "--organization", "Example", "--country", "DE", "--mode", "short-lived"}
	t.Run("not agreed", func(t *testing.T) {
		_, stderr, status := w.run(create...)
		if status != 2 || !strings.Contains(stderr, "costs $50 a month until it is deleted") || !strings.Contains(stderr, "say --yes to agree") {
			t.Errorf("status %d\n%s", status, stderr)
		}
		if w.fake.Calls("CreateCertificateAuthority") != 0 {
			t.Error("it was made all the same")
		}
	})
	var root State
	t.Run("cut off", func(t *testing.T) {
		w.set(func() { w.spoil = refuse("ImportCertificateAuthorityCertificate", 400, "AccessDeniedException", "no") })
		_, stderr, status := w.run(append(create, "--yes")...)
		if status != 1 || !strings.Contains(stderr, "repeat the command, which goes on with it") || !strings.Contains(stderr, `"Action":"acm-pca:ImportCertificateAuthorityCertificate"`) {
			t.Errorf("status %d\n%s", status, stderr)
		}
		w.set(func() { w.spoil, w.now = nil, w.now.Add(30*time.Minute) }) // AWS has forgotten the token
		var said string
		root, said = w.made(create...) // nothing is made that costs, and nothing asked
		if !root.Active() || root.Mode != mesh.ModeShortLived || root.Key != "EC_secp384r1" || root.Subject != "CN=Payments root,O=Example,C=DE" || !strings.Contains(said, "goes on with it") {
			t.Errorf("%+v\n%s", root, said)
		}
		again, _ := w.made(create...)
		if again != root || w.fake.Calls("CreateCertificateAuthority") != 1 {
			t.Errorf("repeated, it is %+v, made by %d calls", again, w.fake.Calls("CreateCertificateAuthority"))
		}
	})
	t.Run("below a CA", func(t *testing.T) {
		sub := []string{"create", "--type", "subordinate", "--common-name", "Issuing", "--yes"}
		_, stderr, status := w.run(append(sub, "--parent", root.ARN)...)
		if status != 1 || !strings.Contains(stderr, "short-lived mode") || w.fake.Calls("CreateCertificateAuthority") != 1 {
			t.Errorf("status %d\n%s", status, stderr)
		}
		made, _ := w.made(append(sub, "--parent", w.arn, "--validity", "30d")...)
		if !made.Active() || made.Type != TypeSubordinate || time.Until(made.NotAfter).Round(24*time.Hour) != 30*24*time.Hour {
			t.Errorf("%+v", made)
		}
	})
	t.Run("signed elsewhere", w.signedElsewhere)
	t.Run("by activate", w.byActivate)
	t.Run("as text", func(t *testing.T) {
		stdout, stderr, status := w.run("activate", "--arn", root.ARN)
		if status != 0 || !strings.Contains(stdout, "ACTIVE") || !strings.Contains(stdout, "Next: name it in the specification") || !strings.Contains(stderr, "it is active already") {
			t.Errorf("status %d\n%s%s", status, stdout, stderr)
		}
	})
}

// signedElsewhere has a CA outside of AWS sign the request that the command writes.
func (w *world) signedElsewhere(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	made, _ := w.made("create", "--type", "subordinate", "--common-name", "Issuing", "--csr-out", file("ca.csr"), "--yes")
	if made.Active() {
		t.Fatalf("%+v", made)
	}
	text, err := os.ReadFile(file("ca.csr"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	e := newExternal(t, w.now)
	good := e.sign(t, &x509.Certificate{RawSubject: csr.RawSubject}, w.now, csr.PublicKey)
	for name, data := range map[string][]byte{"good.pem": toPEM(good), "root.pem": toPEM(e.root), "both.pem": append(toPEM(good), toPEM(e.root)...), "hello": []byte("hello")} {
		if err := os.WriteFile(file(name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		status int
		says   string
		args   []string
	}{
		{2, "no such file", []string{"--certificate", file("missing")}},
		{2, "--certificate " + file("hello"), []string{"--certificate", file("hello")}},
		{1, "another key", []string{"--certificate", file("root.pem")}},
		{1, "does not lead to a root", []string{"--certificate", file("good.pem")}},
		{2, "say who signs it", nil},
	} {
		_, stderr, status := w.run(append([]string{"activate", "--arn", made.ARN}, test.args...)...)
		if status != test.status || !strings.Contains(stderr, test.says) {
			t.Errorf("%v: status %d\n%s", test.args, status, stderr)
		}
	}
	for _, args := range [][]string{{"--certificate", file("good.pem"), "--chain", file("root.pem")}, {"--certificate", file("both.pem")}} {
		if done, _ := w.made(append([]string{"activate", "--arn", made.ARN}, args...)...); !done.Active() {
			t.Errorf("%+v", done)
		}
	}
}

// byActivate gives CAs their certificates that others, such as a template, have made.
func (w *world) byActivate(t *testing.T) {
	admin := w.admin()
	root, err := admin.Create(t.Context(), NewCA{Type: TypeRoot, KeyAlgorithm: "EC_prime256v1", Subject: Subject{CommonName: "of a template"}})
	if err != nil {
		t.Fatal(err)
	}
	sub, err := admin.Create(t.Context(), NewCA{Type: TypeSubordinate, KeyAlgorithm: "EC_prime256v1", Subject: Subject{CommonName: "of a template"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, stderr, status := w.run("activate", "--arn", root.ARN, "--parent", w.arn); status != 2 || !strings.Contains(stderr, "which signs itself") {
		t.Errorf("a root below a parent: status %d\n%s", status, stderr)
	}
	if done, _ := w.made("activate", "--arn", root.ARN); !done.Active() {
		t.Errorf("%+v", done)
	}
	if _, stderr, status := w.run("activate", "--arn", sub.ARN, "--parent", root.ARN); status != 2 || !strings.Contains(stderr, "say --yes") {
		t.Errorf("not agreed: status %d\n%s", status, stderr)
	}
	if done, _ := w.made("activate", "--arn", sub.ARN, "--parent", root.ARN, "--yes"); !done.Active() {
		t.Errorf("%+v", done)
	}
	if err := w.fake.SetStatus(sub.ARN, "DISABLED"); err != nil {
		t.Fatal(err)
	}
	if _, stderr, status := w.run("activate", "--arn", sub.ARN, "--parent", root.ARN, "--yes"); status != 1 || !strings.Contains(stderr, "in the state DISABLED") {
		t.Errorf("a disabled one: status %d\n%s", status, stderr)
	}
}
