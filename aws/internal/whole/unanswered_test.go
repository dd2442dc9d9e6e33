package whole_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"countersign.dev/aws/internal/awstest"
	"countersign.dev/aws/internal/awstest/lambdafake"
	"countersign.dev/aws/internal/awstest/pcafake"
	"countersign.dev/aws/lambda"
)

// TestUnanswered leaves a step's call without an answer for longer than the function may run: the function itself says in time what
// is unfinished, and the next run brings it to its end without another certificate.
func TestUnanswered(t *testing.T) {
	cloud := awstest.Start(t)
	pca := pcafake.New(pcafake.Options{})
	cloud.Mount("acm-pca", pca)
	cloud.Mount("ecs", awstest.Moto(t))
	arn, err := pca.Add(pcafake.CA{ShortLived: true})
	if err != nil {
		t.Fatal(err)
	}
	name := "unanswered-" + strings.ReplaceAll(time.Now().UTC().Format("150405.000"), ".", "-")
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
	var hung atomic.Int32
	cloud.Fault(func(r *http.Request, action string) *http.Response {
		if action != "secretsmanager:PutSecretValue" {
			return nil
		}
		body, err := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		if err == nil && bytes.Contains(body, []byte(name+`/ledger"`)) {
			hung.Add(1)
			<-r.Context().Done()
		}
		return nil
	})
	text, err := function.Invoke([]byte(schedule), 12*time.Second)
	cloud.Fault(nil)
	var report lambda.Report
	if err == nil {
		err = json.Unmarshal(text, &report)
	}
	if err != nil || len(report.Failed) > 0 || !strings.Contains(strings.Join(report.Unfinished, " "), "ledger") || hung.Load() == 0 {
		t.Fatalf("%d calls without an answer: %s, %v\n%s", hung.Load(), text, err, log.String())
	}
	text, err = function.Invoke([]byte(schedule), time.Minute)
	if err == nil {
		err = json.Unmarshal(text, &report)
	}
	if err != nil || len(report.Failed)+len(report.Unfinished) > 0 || pca.Issued() != 2 || function.Starts() != 1 {
		t.Errorf("the next one: %s, %v, %d issued, %d starts", text, err, pca.Issued(), function.Starts())
	}
}
