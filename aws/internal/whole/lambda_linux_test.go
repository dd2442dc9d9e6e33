package whole_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"countersign.dev/aws/internal/awstest/deployed"
)

// slow answers the function in a way that lets no work be done, where it is told to. Requests of others are left alone.
type slow struct {
	at    atomic.Pointer[string] // the action
	begun atomic.Bool            // a deployment was
	met   atomic.Int64           // how often the function had to wait
}

// answer is an [awstest.Fault]. A certificate is never ready; another service does not answer before the function has gone.
func (s *slow) answer(request *http.Request, action string) *http.Response {
	if action == "ecs:UpdateService" {
		s.begun.Store(true)
	}
	at := s.at.Load()
	if at == nil || *at != action || action == "ecs:DescribeServices" && !s.begun.Load() {
		return nil
	}
	s.met.Add(1)
	if action == "acm-pca:GetCertificate" {
		return &http.Response{
			StatusCode: http.StatusBadRequest, Header: http.Header{"Content-Type": {"application/x-amz-json-1.1"}},
			Body: io.NopCloser(strings.NewReader(`{"__type": "RequestInProgressException", "message": "The request has not been completed."}`)),
		}
	}
	<-request.Context().Done()
	return &http.Response{StatusCode: http.StatusServiceUnavailable}
}

// cut invokes the function with the schedule and too little time, until it was met at an action. What it has not done is unfinished.
func (s *slow) cut(f *rotation, action, workload string) {
	f.t.Helper()
	s.at.Store(&action)
	s.begun.Store(false)
	defer s.at.Store(nil)
	for before := s.met.Load(); s.met.Load() == before; {
		report := f.invoke(schedule, 8*time.Second)
		if !slices.Contains(report.Unfinished, workload) {
			f.t.Fatalf("%s was cut off at %s, and is not unfinished: %+v", workload, action, report)
		}
	}
}

// deployments is how often the function has had a service deployed.
func (f *rotation) deployments(service string) int {
	n := 0
	for _, call := range f.mesh.Cloud.Calls() {
		if call.Role == f.mesh.Role("rotation") && call.Action == "ecs:UpdateService" && strings.HasSuffix(call.Resource, "/"+service) {
			n++
		}
	}
	return n
}

// TestFunctionOnECS lets the function rotate tasks that really run: cut off by its time while a certificate is made, and again while
// tasks are replaced, it is continued by the next run, with the same certificate and the same deployment; and it does the four
// steps of Secrets Manager's own rotation.
func TestFunctionOnECS(t *testing.T) {
	t.Parallel()
	m := deploy(t, deployed.Options{Specification: example(t, "lambda")})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if err := m.Deploy(ctx, 0, nil); err != nil {
		t.Fatal(err)
	}
	f := newRotation(t, m)
	all := []string{"checkout", "ledger", "paygate", "terminal"}
	issued := m.PCA.Calls("IssueCertificate")
	f.does(schedule, all...)
	if got := m.PCA.Calls("IssueCertificate") - issued; got != len(all) {
		t.Errorf("%d certificates were asked for, want %d", got, len(all))
	}
	if err := m.Deploy(ctx, 1, nil); err != nil {
		t.Fatal(err)
	}
	if got := m.Run(ctx, "root", nil, "check", "aws", "mesh.yaml"); got.Status != 0 || !strings.Contains(got.Stdout, "; 0 findings.") {
		t.Errorf("check aws finds with status %d in what runs as it was deployed:\n%s%s", got.Status, got.Stdout, got.Stderr)
	}
	open(ctx, t, m, "paygate")

	// All are due when the specification wants other keys.
	file := filepath.Join(f.root, "mesh.yaml")
	changed := strings.Replace(string(example(t, "lambda")), "certificates: {ttl:", "certificates: {key: ecdsa-p384, ttl:", 1)
	if err := os.WriteFile(file, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	issued = m.PCA.Issued()
	before := make(map[string]string)
	for workload, port := range ports {
		before[workload], _ = serials(ctx, t, m, workload, port)
	}
	fault := &slow{}
	m.Cloud.Fault(fault.answer)
	fault.cut(f, "acm-pca:GetCertificate", "ledger")
	if shown, _ := serials(ctx, t, m, "ledger", ports["ledger"]); shown != before["ledger"] || f.deployments("ledger") != 0 {
		t.Errorf("a rotation without a certificate has replaced %s by %s", before["ledger"], shown)
	}
	fault.cut(f, "ecs:DescribeServices", "ledger")
	if got := f.deployments("ledger"); got != 1 {
		t.Errorf("%d deployments of the ledger were begun, want 1", got)
	}
	m.Cloud.Fault(nil)
	f.does(schedule, all...)
	if got := m.PCA.Issued() - issued; got != len(all) {
		t.Errorf("%d certificates were issued for %d workloads", got, len(all))
	}
	for _, workload := range all {
		if got := f.deployments(workload); got != 1 {
			t.Errorf("%s was deployed %d times, want once", workload, got)
		}
	}
	for workload, port := range ports {
		if shown, _ := serials(ctx, t, m, workload, port); shown == before[workload] {
			t.Errorf("%s still serves %s", workload, shown)
		}
	}
	if err := pay(ctx, m, "paygate"); err != nil {
		t.Error(err)
	}
	f.does(schedule)

	ownSteps(ctx, t, f)
	if f.Starts() != 1 {
		t.Errorf("the function was started %d times", f.Starts())
	}
	allowed(t, m)
}

// ownSteps goes through Secrets Manager's own rotation of the ledger's secret. Each event comes twice, as it does when AWS
// has not heard the answer to the first.
func ownSteps(ctx context.Context, t *testing.T, f *rotation) {
	t.Helper()
	m := f.mesh
	client := secretsmanager.NewFromConfig(m.Cloud.Admin())
	at := func(stage string) string {
		t.Helper()
		out, err := client.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: aws.String("lambda/ledger"), VersionStage: &stage})
		if err != nil {
			t.Fatal(err)
		}
		return aws.ToString(out.VersionId)
	}
	old := at("AWSCURRENT")
	shown, _ := serials(ctx, t, m, "ledger", ports["ledger"])
	issued := m.PCA.Issued()
	arn, version := (&world{t: t, cloud: m.Cloud}).ownRotation("lambda/ledger")
	for _, step := range []string{"createSecret", "setSecret", "testSecret", "finishSecret"} {
		if got := at("AWSCURRENT"); got != old {
			t.Errorf("before %s %s is current, want %s", step, got, old)
		}
		if now, _ := serials(ctx, t, m, "ledger", ports["ledger"]); now != shown {
			t.Errorf("before %s the ledger serves %s, want %s", step, now, shown)
		}
		for range 2 {
			f.invoke(fmt.Sprintf(`{"Step": %q, "SecretId": %q, "ClientRequestToken": %q}`, step, arn, version), patience)
		}
	}
	if got, previous := at("AWSCURRENT"), at("AWSPREVIOUS"); got != version || previous != old {
		t.Errorf("%s is current and %s previous, want %s and %s", got, previous, version, old)
	}
	if now, _ := serials(ctx, t, m, "ledger", ports["ledger"]); now == shown {
		t.Errorf("the ledger still serves %s", now)
	}
	if got := m.PCA.Issued() - issued; got != 1 {
		t.Errorf("%d certificates were issued, want 1", got)
	}
	if err := pay(ctx, m, "paygate"); err != nil {
		t.Error(err)
	}
}
