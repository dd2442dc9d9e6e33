package whole_test

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	smtypes "github.com/aws/aws-sdk-go-v2/service/secretsmanager/types"

	"countersign.dev/aws/internal/awstest"
	"countersign.dev/aws/internal/awstest/lambdafake"
	"countersign.dev/aws/internal/awstest/pcafake"
	"countersign.dev/aws/lambda"
)

const onECS = `
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
    delivery: &d {type: store, store: vault, secret: "{mesh}/{service}", bundle: "{mesh}/bundle"}
    deploy: {type: ecs, cluster: MESH}
  ledger:
    ports: [{port: 7000, protocol: tcp}]
    proxy: {engine: haproxy}
    delivery: *d
    deploy: {type: ecs, cluster: MESH}
`

const schedule = `{"version": "0", "id": "53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa", "detail-type": "Scheduled Event", "source": "aws.events",
	"account": "123456789012", "time": "2026-11-23T09:00:00Z", "region": "eu-central-1",
	"resources": ["arn:aws:events:eu-central-1:123456789012:rule/payments-rotation"], "detail": {}}`

// services makes services of ECS of which no task is wanted yet.
func (w *world) services(cluster string, names ...string) {
	w.t.Helper()
	admin := ecs.NewFromConfig(w.cloud.Admin())
	if _, err := admin.CreateCluster(w.t.Context(), &ecs.CreateClusterInput{ClusterName: aws.String(cluster)}); err != nil {
		w.t.Fatal(err)
	}
	for _, name := range names {
		_, err := admin.RegisterTaskDefinition(w.t.Context(), &ecs.RegisterTaskDefinitionInput{
			Family: aws.String(name), Memory: aws.String("512"),
			ContainerDefinitions: []types.ContainerDefinition{{Name: aws.String("app"), Image: aws.String("app@sha256:00"), Essential: aws.Bool(true)}},
		})
		if err != nil {
			w.t.Fatal(err)
		}
		_, err = admin.CreateService(w.t.Context(), &ecs.CreateServiceInput{
			Cluster: aws.String(cluster), ServiceName: aws.String(name), TaskDefinition: aws.String(name), DesiredCount: aws.Int32(0), LaunchType: types.LaunchTypeEc2,
			DeploymentController: &types.DeploymentController{Type: types.DeploymentControllerTypeEcs},
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// unpack unpacks what `rotate package` has written.
func (w *world) unpack(path, to string) {
	w.t.Helper()
	archive, err := zip.OpenReader(path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer archive.Close()
	for _, f := range archive.File {
		r, err := f.Open()
		if err != nil {
			w.t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil {
			w.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, f.Name), data, f.Mode()); err != nil {
			w.t.Fatal(err)
		}
	}
}

// output is what a process writes while it runs.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// ownRotation begins Secrets Manager's own rotation of a secret, as AWS does, and gives its ARN and the version's id. The double
// has no function to call.
func (w *world) ownRotation(name string) (arn, version string) {
	w.t.Helper()
	version = "c8a55f1e-6c1e-4a3b-9a37-4b8a8a7d9f10"
	client := secretsmanager.NewFromConfig(w.cloud.Admin())
	_, err := client.RotateSecret(w.t.Context(), &secretsmanager.RotateSecretInput{
		SecretId: aws.String(name), ClientRequestToken: aws.String(version), RotationRules: &smtypes.RotationRulesType{AutomaticallyAfterDays: aws.Int64(1)},
		RotationLambdaARN: aws.String("arn:aws:lambda:eu-central-1:123456789012:function:countersign-rotation"),
	})
	if missing := (&smtypes.ResourceNotFoundException{}); err != nil && !errors.As(err, &missing) {
		w.t.Fatal(err)
	}
	described, err := client.DescribeSecret(w.t.Context(), &secretsmanager.DescribeSecretInput{SecretId: aws.String(name)})
	if err != nil || described.VersionIdsToStages[version] == nil {
		w.t.Fatalf("the rotation was not begun: %+v, %v", described, err)
	}
	return aws.ToString(described.ARN), version
}

// changed changes the specification, in one place.
func changed(t *testing.T, specification, from, to string) {
	t.Helper()
	text, err := os.ReadFile(specification)
	if err == nil && strings.Count(string(text), from) == 1 {
		err = os.WriteFile(specification, []byte(strings.Replace(string(text), from, to, 1)), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// again is what an error says of what the schedule leaves alone for a while.
const again = "; the schedule tries it again after "

// spentBudget makes all due while the budget is spent. That costs nothing: each run of the schedule tries it.
func spentBudget(t *testing.T, specification string, invoke func(event string) (lambda.Report, error)) {
	t.Helper()
	changed(t, specification, "certificates: {authority: pca, ttl: 24h}", "certificates: {authority: pca, ttl: 24h, key: ecdsa-p384}")
	for range 2 {
		if report, err := invoke(schedule); err == nil || strings.Contains(err.Error(), again) || strings.Count(err.Error(), "the budget is spent: 3 of 3") != 2 {
			t.Fatalf("the budget is spent: %+v, %v", report, err)
		}
	}
	changed(t, specification, "budget: {certificates: 3}", "budget: {certificates: 30}")
	if report, err := invoke(schedule); err != nil || len(report.Rotated) != 2 {
		t.Errorf("it was raised: %+v, %v", report, err)
	}
}

// leftAlone makes all due while the CA certifies something else than it is asked for, which costs a certificate each time: the schedule tries
// once, and leaves it alone then; whoever has mended it does not have to wait.
func leftAlone(t *testing.T, specification string, broken *atomic.Bool, invoke func(event string) (lambda.Report, error)) {
	t.Helper()
	changed(t, specification, "ttl: 24h, key: ecdsa-p384}", "ttl: 24h, key: rsa-2048}")
	broken.Store(true)
	if report, err := invoke(schedule); err == nil || strings.Count(err.Error(), again) != 2 || !strings.Contains(err.Error(), "is not what was asked for") {
		t.Fatalf("wrong certificates: %+v, %v", report, err)
	}
	report, err := invoke(schedule)
	if err != nil || len(report.Waiting) != 2 || len(report.Rotated)+len(report.Failed) > 0 {
		t.Fatalf("at once again: %+v, %v", report, err)
	}
	for _, waiting := range report.Waiting {
		if !strings.Contains(waiting.Error, "is not what was asked for") || time.Until(waiting.Again) < 10*time.Minute || time.Until(waiting.Again) > time.Hour {
			t.Errorf("it waits: %+v", waiting)
		}
	}
	byHand := `{"source": "aws.events", "detail-type": "Scheduled Event"}`
	if report, err := invoke(byHand); err == nil || strings.Count(err.Error(), again) != 2 {
		t.Errorf("by hand: %+v, %v", report, err)
	}
	broken.Store(false)
	if report, err := invoke(schedule); err != nil || len(report.Waiting) != 2 {
		t.Errorf("mended, and nobody says so: %+v, %v", report, err)
	}
	if report, err := invoke(byHand); err != nil || len(report.Rotated) != 2 {
		t.Errorf("mended: %+v, %v", report, err)
	}
	if report, err := invoke(schedule); err != nil || len(report.Waiting)+len(report.Rotated) > 0 || len(report.Nothing) < 2 {
		t.Errorf("and then: %+v, %v", report, err)
	}
}

// TestFunction packs the rotation function, and lets events start it: what is due is rotated, what is not is left, and an
// event of somebody else's certificate is none of its business.
func TestFunction(t *testing.T) {
	cloud := awstest.Start(t)
	var broken atomic.Bool
	pca := pcafake.New(pcafake.Options{Tamper: func(template *x509.Certificate) {
		if broken.Load() {
			template.NotAfter = template.NotAfter.Add(24 * time.Hour)
		}
	}})
	cloud.Mount("acm-pca", pca)
	cloud.Mount("ecs", awstest.Moto(t))
	arn, err := pca.Add(pcafake.CA{ShortLived: true})
	if err != nil {
		t.Fatal(err)
	}
	name := "function-" + strings.ReplaceAll(time.Now().UTC().Format("150405.000"), ".", "-")
	w := &world{t: t, dir: t.TempDir(), cloud: cloud}
	if err := os.WriteFile(filepath.Join(w.dir, "mesh.yaml"), []byte(strings.ReplaceAll(onECS, "MESH", name)), 0o600); err != nil {
		t.Fatal(err)
	}
	w.services(name, "checkout", "ledger")
	w.must(0, nil, []string{"rotate", "package", "mesh.yaml", "--out", "function.zip"}, "runtime provided.al2023")
	root := t.TempDir()
	w.unpack(filepath.Join(w.dir, "function.zip"), root)
	var log output
	function := lambdafake.New(t, func(ctx context.Context) *exec.Cmd {
		command := exec.CommandContext(ctx, filepath.Join(root, "bootstrap"))
		command.Env = append(cloud.Env("root"), "LAMBDA_TASK_ROOT="+root, "COUNTERSIGN_AUTHORITY_PCA_ARN="+arn)
		command.Stdout, command.Stderr = &log, &log
		return command
	})
	invoke := func(event string) (report lambda.Report, err error) {
		t.Helper()
		began := time.Now()
		text, err := function.Invoke([]byte(event), time.Minute)
		later(t, "after %s: %s (%v)", time.Since(began).Round(time.Millisecond), text, err)
		if err == nil {
			err = json.Unmarshal(text, &report)
		}
		return report, err
	}
	report, err := invoke(schedule)
	if err != nil || strings.Join(report.Rotated, " ") == "" || len(report.Failed)+len(report.Unfinished) > 0 {
		t.Fatalf("the first: %+v, %v\n%s", report, err, log.String())
	}
	if pca.Issued() != 2 {
		t.Errorf("%d were issued, want 2", pca.Issued())
	}
	report, err = invoke(schedule)
	if err != nil || strings.Join(report.Nothing, " ") == "" || len(report.Rotated)+len(report.Failed)+len(report.Unfinished) > 0 {
		t.Errorf("the second: %+v, %v", report, err)
	}
	if report, err = invoke(`{"what": "is this"}`); err == nil {
		t.Errorf("an event that nobody knows: %+v", report)
	}
	renewed := strings.NewReplacer("Scheduled Event", "ACM Certificate Available", "aws.events", "aws.acm",
		"arn:aws:events:eu-central-1:123456789012:rule/payments-rotation", "arn:aws:acm:eu-central-1:123456789012:certificate/61f50cd4-45b9-4259-b049-d0a53682fa4b",
		`"detail": {}`, `"detail": {"Action": "RENEWAL", "CertificateType": "PRIVATE", "CommonName": "other.example.com", "DomainValidationMethod": "NONE", "CertificateCreatedDate": "2025-09-23T09:00:00Z", "CertificateExpirationDate": "2027-09-23T09:00:00Z", "DaysToExpiry": 395, "InUse": false, "Exported": true}`).Replace(schedule)
	if report, err = invoke(renewed); err != nil || len(report.Nothing) != 1 {
		t.Errorf("somebody else's certificate: %+v, %v", report, err)
	}
	for _, want := range []string{`"Namespace":"Countersign"`, `"BudgetSpent"`, `"DaysToExpiry"`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not hold %s:\n%s", want, log.String())
		}
	}
	// Secrets Manager's own rotation of one of the secrets.
	secret, version := w.ownRotation(name + "/ledger")
	for _, step := range []string{"createSecret", "setSecret", "testSecret", "finishSecret"} {
		if _, err := invoke(fmt.Sprintf(`{"Step": %q, "SecretId": %q, "ClientRequestToken": %q}`, step, secret, version)); err != nil {
			t.Fatalf("%s: %v\n%s", step, err, log.String())
		}
	}
	value, err := secretsmanager.NewFromConfig(cloud.Admin()).GetSecretValue(t.Context(), &secretsmanager.GetSecretValueInput{SecretId: aws.String(name + "/ledger"), VersionStage: aws.String("AWSCURRENT")})
	if err != nil || aws.ToString(value.VersionId) != version {
		t.Errorf("what is current is not what the rotation began: %v", err)
	}
	if pca.Issued() != 3 {
		t.Errorf("%d were issued, want 3", pca.Issued())
	}
	if _, err := invoke(fmt.Sprintf(`{"Step": "createSecret", "SecretId": %q, "ClientRequestToken": %q}`, strings.Replace(secret, "/ledger", "/nobody", 1), version)); err == nil || !strings.Contains(err.Error(), "the secret of no workload") {
		t.Errorf("a secret of nobody: %v", err)
	}
	spentBudget(t, filepath.Join(root, "mesh.yaml"), invoke)
	leftAlone(t, filepath.Join(root, "mesh.yaml"), &broken, invoke)
	if function.Starts() != 1 {
		t.Errorf("it was started %d times", function.Starts())
	}
}
