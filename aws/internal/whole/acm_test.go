package whole_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign.dev/aws/internal/awstest"
	"countersign.dev/aws/internal/awstest/acmfake"
	"countersign.dev/aws/internal/awstest/lambdafake"
	"countersign.dev/aws/internal/awstest/pcafake"
	"countersign.dev/aws/lambda"
)

// ofACM is a mesh of one service, whose name puts its own renewal behind the 360th day: the tests meet its certificate before.
const ofACM = `
mesh: MESH
trustDomain: payments.internal
revocation: none
stores: {vault: {type: secretsmanager}}
authorities: {acm: {type: acm, names: {terminal: terminal.payments.example}, budget: {certificates: 3}}}
certificates: {authority: acm}
services:
  terminal:
    ports: [{port: 8443, protocol: http, app: 8080}]
    proxy: {engine: nginx}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}", bundle: "{mesh}/bundle", layout: exported}
    deploy: {type: ecs, cluster: MESH}
`

// acmWay is a mesh of which ACM has issued a certificate some days ago.
type acmWay struct {
	*world
	fake     *acmfake.Fake
	name     string
	function *lambdafake.Function
	log      output

	mu     sync.Mutex
	ago    time.Duration // how far ACM's clock is behind
	events [][]byte
}

func newACMWay(t *testing.T, daysAgo int) *acmWay {
	t.Helper()
	w := &acmWay{ago: time.Duration(daysAgo) * 24 * time.Hour, name: "acm-" + strings.ReplaceAll(time.Now().UTC().Format("150405.000"), ".", "-")}
	w.world = &world{t: t, dir: t.TempDir(), cloud: awstest.Start(t)}
	pca := pcafake.New(pcafake.Options{Now: w.now, PendingPolls: 1})
	arn, err := pca.Add(pcafake.CA{})
	if err != nil {
		t.Fatal(err)
	}
	w.fake = acmfake.New(acmfake.Options{Issuer: acmfake.Through(pca), Now: w.now, PendingPolls: 1, Events: func(document []byte) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.events = append(w.events, document)
	}})
	w.cloud.Mount("acm-pca", pca)
	w.cloud.Mount("acm", w.fake)
	w.cloud.Mount("ecs", awstest.Moto(t))
	w.env = []string{"COUNTERSIGN_AUTHORITY_ACM_ARN=" + arn, "COUNTERSIGN_MESH=mesh.yaml"}
	if err := os.WriteFile(filepath.Join(w.dir, "mesh.yaml"), []byte(strings.ReplaceAll(ofACM, "MESH", w.name)), 0o600); err != nil {
		t.Fatal(err)
	}
	w.services(w.name, "terminal")
	w.must(0, nil, []string{"rotate", "once", "--no-deploy"}, "terminal: serial")
	w.must(0, nil, []string{"rotate", "package", "mesh.yaml", "--out", "function.zip"}, "runtime provided.al2023")
	root := t.TempDir()
	w.unpack(filepath.Join(w.dir, "function.zip"), root)
	w.function = lambdafake.New(t, func(ctx context.Context) *exec.Cmd {
		command := exec.CommandContext(ctx, filepath.Join(root, "bootstrap"))
		command.Env = append(w.cloud.Env("root"), "LAMBDA_TASK_ROOT="+root, "COUNTERSIGN_AUTHORITY_ACM_ARN="+arn)
		command.Stdout, command.Stderr = &w.log, &w.log
		return command
	})
	return w
}

// now is ACM's and the CA's time.
func (w *acmWay) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Add(-w.ago)
}

// today lets ACM do what it does by its clock, and gives what it says then of a kind.
func (w *acmWay) today(kind string) []byte {
	w.t.Helper()
	w.mu.Lock()
	w.ago, w.events = 0, nil
	w.mu.Unlock()
	w.fake.Tick()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, event := range w.events {
		if strings.Contains(string(event), `"`+kind+`"`) {
			return event
		}
	}
	w.t.Fatalf("ACM does not say %q: %s", kind, w.events)
	return nil
}

// start takes the secrets into files as a task does when it starts, and gives the serial.
func (w *acmWay) start() string {
	w.t.Helper()
	_, plan, _ := w.run("root", nil, "mesh", "plan", "mesh.yaml", "--workload", "terminal", "--output", "json")
	task := []string{"ECS_CONTAINER_METADATA_URI_V4=http://127.0.0.1:1/v4", "COUNTERSIGN_SECRET=" + w.name + "/terminal", "COUNTERSIGN_PLAN=" + plan}
	status, stdout, _ := w.run("root", task, "init", "--to", "tls", "--layout", "exported", "--bundle-from", "secret:"+w.name+"/bundle",
		"--engine", "nginx", "--conf", "conf", "--run-dir", filepath.Join(w.dir, "run"), "--plan", "env:COUNTERSIGN_PLAN")
	if status != 0 || !strings.HasPrefix(stdout, "terminal.payments.example\n") {
		w.t.Fatalf("init: %d, %s", status, stdout)
	}
	key, err := os.ReadFile(filepath.Join(w.dir, "tls", "current", "key.pem"))
	if err != nil || !strings.Contains(string(key), "BEGIN PRIVATE KEY") {
		w.t.Fatalf("the key is not decrypted: %v", err)
	}
	_, serial, _ := strings.Cut(stdout, "serial ")
	serial, _, _ = strings.Cut(serial, ",")
	return serial
}

// invoke gives the function an event, after which terminal is to have been rotated.
func (w *acmWay) invoke(event []byte) {
	w.t.Helper()
	answer, err := w.function.Invoke(event, time.Minute)
	var report lambda.Report
	if err == nil {
		err = json.Unmarshal(answer, &report)
	}
	if err != nil || strings.Join(report.Rotated, " ") != "terminal" || len(report.Failed)+len(report.Unfinished) > 0 {
		w.t.Errorf("%s: %s, %v\n%s", event, answer, err, w.log.String())
	}
}

// TestACMRenews goes the way of a certificate that ACM has renewed: event, export, four values, redeployed, decrypted at start.
func TestACMRenews(t *testing.T) {
	w := newACMWay(t, 336)
	first := w.start()
	w.invoke(w.today("ACM Certificate Available"))
	if second := w.start(); second == first || w.fake.Calls("RenewCertificate") != 0 {
		t.Errorf("%s after %s, and %d renewals by us", second, first, w.fake.Calls("RenewCertificate"))
	}
	w.must(0, nil, []string{"rotate", "once", "--no-deploy", "--dry-run"}, "of the budget of 3", "2 are spent")
}

// TestACMApproaches goes the way of one that ACM could not renew: the event that its end is near, renewed by us, and the rest.
func TestACMApproaches(t *testing.T) {
	w := newACMWay(t, 351)
	first := w.start()
	w.fake.Deny("PCA_ACCESS_DENIED")
	event := w.today("ACM Certificate Approaching Expiration")
	w.fake.Deny("")
	w.invoke(event)
	if second := w.start(); second == first || w.fake.Calls("RenewCertificate") != 1 {
		t.Errorf("%s after %s, and %d renewals by us", second, first, w.fake.Calls("RenewCertificate"))
	}
}
