package whole_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"

	"countersign.dev/aws/internal/awstest"
	"countersign.dev/aws/internal/awstest/pcafake"
)

// TestMetrics tells CloudWatch how services stand, also when a rotation fails: an alarm is to see that.
func TestMetrics(t *testing.T) {
	cloud := awstest.Start(t)
	pca := pcafake.New(pcafake.Options{})
	cloud.Mount("acm-pca", pca)
	arn, err := pca.Add(pcafake.CA{ShortLived: true})
	if err != nil {
		t.Fatal(err)
	}
	name := "metrics-" + strings.ToLower(strings.ReplaceAll(time.Now().UTC().Format("150405.000"), ".", "-"))
	w := &world{t: t, dir: t.TempDir(), cloud: cloud, env: []string{"COUNTERSIGN_AUTHORITY_PCA_ARN=" + arn, "COUNTERSIGN_MESH=mesh.yaml"}}
	if err := os.WriteFile(filepath.Join(w.dir, "mesh.yaml"), []byte(strings.ReplaceAll(specification, "MESH", name)), 0o600); err != nil {
		t.Fatal(err)
	}
	client := cloudwatch.NewFromConfig(cloud.Admin())
	// told are the metrics of the mesh, each with the service or authority that it is of.
	told := func() []string {
		answer, err := client.ListMetrics(t.Context(), &cloudwatch.ListMetricsInput{Namespace: aws.String("Countersign")})
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, metric := range answer.Metrics {
			var of string
			ours := false
			for _, d := range metric.Dimensions {
				if aws.ToString(d.Name) == "Mesh" {
					ours = aws.ToString(d.Value) == name
				} else {
					of = aws.ToString(d.Value)
				}
			}
			if ours {
				all = append(all, aws.ToString(metric.MetricName)+" "+of)
			}
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	w.must(0, nil, []string{"rotate", "once", "--no-deploy", "--dry-run", "--cloudwatch"}, "would rotate")
	if got := told(); len(got) != 0 {
		t.Errorf("a trial run has told %v", got)
	}
	w.must(0, nil, []string{"rotate", "once", "--no-deploy", "--cloudwatch"}, "checkout: serial")
	want := []string{
		"BudgetLimit pca", "BudgetSpent pca", "DaysToExpiry checkout", "DaysToExpiry ledger", "Failures checkout", "Failures ledger",
		"HoursSinceSuccess checkout", "HoursSinceSuccess ledger",
	}
	if got := told(); !slices.Equal(got, want) {
		t.Errorf("CloudWatch was told %q, want %q", got, want)
	}
	w.must(1, []string{"AWS_ENDPOINT_URL_CLOUDWATCH=http://127.0.0.1:1"}, []string{"rotate", "once", "--no-deploy", "--cloudwatch"}, "publishing metrics")

	// A daemon tells it, too, also when nothing can be rotated: there is no ECS here.
	name += "-daemon"
	if err := os.WriteFile(filepath.Join(w.dir, "mesh.yaml"), []byte(strings.ReplaceAll(onECS, "MESH", name)), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, said := w.until(func() bool { return slices.Contains(told(), "Failures ledger") }, "rotate", "daemon", "--cloudwatch"); status != 0 {
		t.Errorf("the daemon has ended with %d\n%s", status, said)
	}
	for _, want := range []string{"BudgetLimit pca", "BudgetSpent pca", "Failures checkout", "Failures ledger"} {
		if got := told(); !slices.Contains(got, want) {
			t.Errorf("CloudWatch was told %q by the daemon, and not %s", got, want)
		}
	}
}

// until runs the program until something is so, and tells it to end then. It gives its exit status and what it has said.
func (w *world) until(so func() bool, args ...string) (status int, said string) {
	w.t.Helper()
	path, err := program()
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, path, args...)
	command.Dir = w.dir
	command.Env = slices.Concat([]string{"HOME=" + w.dir, "PATH=" + os.Getenv("PATH")}, w.cloud.Env("root"), w.env)
	var out output
	command.Stdout, command.Stderr = &out, &out
	if err := command.Start(); err != nil {
		w.t.Fatal(err)
	}
	for ctx.Err() == nil && !so() {
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
	if err := command.Process.Signal(syscall.SIGTERM); err != nil {
		w.t.Error(err)
	}
	_ = command.Wait() // the status says it
	return command.ProcessState.ExitCode(), out.String()
}
