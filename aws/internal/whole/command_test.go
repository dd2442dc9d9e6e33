package whole_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"countersign.dev/aws/internal/awstest"
	"countersign.dev/aws/internal/awstest/pcafake"
)

// programDir is where the binary lies.
var programDir string

// TestMain enters namespaces of its own, in which the double of ECS runs tasks, and makes room for the binary.
func TestMain(m *testing.M) {
	if err := enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var err error
	if programDir, err = os.MkdirTemp("", "whole"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	status := m.Run()
	_ = os.RemoveAll(programDir) // it is only litter
	os.Exit(status)
}

// program is the binary, built once.
var program = sync.OnceValues(func() (string, error) {
	path := filepath.Join(programDir, "countersign")
	build := exec.Command("go", "build", "-pgo=off", "-o", path, "countersign.dev/cmd/countersign")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // it runs in images without libraries
	if output, err := build.CombinedOutput(); err != nil {
		return "", errors.Join(err, errors.New(string(output)))
	}
	return path, nil
})

// world is a directory, and who runs programs in it.
type world struct {
	t     *testing.T
	dir   string
	cloud *awstest.Cloud
	env   []string
}

// run runs the program and gives its exit status, and what it wrote to both outputs.
func (w *world) run(role string, env []string, args ...string) (status int, stdout, stderr string) {
	w.t.Helper()
	path, err := program()
	if err != nil {
		w.t.Fatal(err)
	}
	command := exec.CommandContext(w.t.Context(), path, args...)
	command.Dir = w.dir
	command.Env = append(append(append([]string{"HOME=" + w.dir, "PATH=" + os.Getenv("PATH")}, w.cloud.Env(role)...), w.env...), env...)
	var out, said bytes.Buffer
	command.Stdout, command.Stderr = &out, &said
	began := time.Now()
	err = command.Run()
	if _, ended := errors.AsType[*exec.ExitError](err); err != nil && !ended {
		w.t.Fatal(err)
	}
	later(w.t, "countersign %s: %d after %s\n%s%s", strings.Join(args, " "), command.ProcessState.ExitCode(), time.Since(began).Round(time.Millisecond), out.String(), said.String())
	return command.ProcessState.ExitCode(), out.String(), said.String()
}

// must runs the program, which has to end with a status and to write some texts.
func (w *world) must(status int, env []string, args []string, wants ...string) {
	w.t.Helper()
	got, stdout, stderr := w.run("root", env, args...)
	if got != status {
		w.t.Errorf("countersign %s: status %d, want %d", strings.Join(args, " "), got, status)
	}
	for _, want := range wants {
		if !strings.Contains(stdout+stderr, want) {
			w.t.Errorf("countersign %s: it does not say %q", strings.Join(args, " "), want)
		}
	}
}

const specification = `
mesh: MESH
revocation: none
stores: {vault: {type: secretsmanager}}
authorities: {pca: {type: acmpca, mode: short-lived, budget: {certificates: 3}}}
certificates: {authority: pca, ttl: 24h}
services:
  checkout:
    ports: [{port: 8443, protocol: http, app: 8080}]
    calls: [{service: ledger}]
    proxy: {engine: nginx}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}", bundle: "{mesh}/bundle"}
  ledger:
    ports: [{port: 7000, protocol: tcp}]
    proxy: {engine: haproxy}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}", bundle: "{mesh}/bundle", layout: separate}
`

// TestFill fills secrets by a rotation without a server, takes them into files as a task of ECS does, and spends a budget.
func TestFill(t *testing.T) {
	cloud := awstest.Start(t)
	pca := pcafake.New(pcafake.Options{})
	cloud.Mount("acm-pca", pca)
	arn, err := pca.Add(pcafake.CA{ShortLived: true})
	if err != nil {
		t.Fatal(err)
	}
	name := "fill-" + strings.ToLower(strings.ReplaceAll(time.Now().UTC().Format("150405.000"), ".", "-"))
	w := &world{t: t, dir: t.TempDir(), cloud: cloud, env: []string{"COUNTERSIGN_AUTHORITY_PCA_ARN=" + arn, "COUNTERSIGN_MESH=mesh.yaml"}}
	if err := os.WriteFile(filepath.Join(w.dir, "mesh.yaml"), []byte(strings.ReplaceAll(specification, "MESH", name)), 0o600); err != nil {
		t.Fatal(err)
	}
	task := []string{"ECS_CONTAINER_METADATA_URI_V4=http://127.0.0.1:1/v4", "COUNTERSIGN_SECRET=" + name + "/checkout"}
	_, plan, _ := w.run("root", nil, "mesh", "plan", "mesh.yaml", "--workload", "checkout", "--output", "json")
	task = append(task, "COUNTERSIGN_PLAN="+plan)
	start := []string{
		"init", "--to", "tls", "--bundle-from", "secret:" + name + "/bundle", "--engine", "nginx", "--conf", "conf", "--run-dir", filepath.Join(w.dir, "run"),
		"--plan", "env:COUNTERSIGN_PLAN", "--endpoint", "ledger:7000=localhost:7001",
	}
	// As a template makes it.
	_, err = secretsmanager.NewFromConfig(cloud.Admin()).CreateSecret(t.Context(), &secretsmanager.CreateSecretInput{
		Name: aws.String(name + "/checkout"), SecretString: aws.String("PLACEHOLDER"),
	})
	if err != nil {
		t.Fatal(err)
	}
	store := []string{"COUNTERSIGN_STORE=secretsmanager:"}
	w.must(1, task, start, "nothing has been written to it yet", "No rotation has written this secret yet", "countersign rotate once --mesh PATH")
	w.must(0, nil, []string{"rotate", "once", "--no-deploy", "--dry-run"}, "checkout: would rotate", "authority pca: 2 certificates would be issued; of the budget of 3 for", "0 are spent")
	if pca.Issued() != 0 {
		t.Errorf("%d were issued by a trial run", pca.Issued())
	}
	w.must(0, nil, []string{"rotate", "once", "--no-deploy"}, "checkout: serial", "ledger: serial")
	w.must(0, nil, []string{"rotate", "status"}, name+"/checkout", name+"/ledger")
	w.must(0, task, start, "spiffe://"+name+".internal/service/checkout")
	w.must(0, nil, []string{"init", "--from", "secretsmanager:" + name + "/ledger", "--layout", "separate", "--bundle-from", "secret:" + name + "/bundle", "--to", "other"}, "service/ledger")
	w.must(0, nil, []string{"rotate", "once", "checkout", "--no-deploy", "--force"}, "checkout: serial")
	w.must(1, nil, []string{"rotate", "once", "checkout", "--no-deploy", "--force"}, "the budget is spent", "3 of 3")
	w.must(0, nil, []string{"rotate", "once", "--no-deploy", "--force", "--dry-run"}, "so that the last 2 are refused")
	w.must(0, task, start, "service/checkout")
	w.must(0, store, []string{"secret", "list"}, name+"/pca.budget")
	w.must(0, store, []string{"secret", "versions", name + "/checkout"}, "current", "previous")
	conf, err := os.ReadFile(filepath.Join(w.dir, "conf", "nginx.conf"))
	if err != nil || !strings.Contains(string(conf), "127.0.0.1:7001") {
		t.Errorf("the configuration does not lead to the endpoint (%v):\n%s", err, conf)
	}
	if pca.Issued() != 3 {
		t.Errorf("%d were issued, want 3", pca.Issued())
	}
}
