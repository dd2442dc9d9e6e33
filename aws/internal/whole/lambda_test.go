package whole_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign.dev/aws/internal/awstest/lambdafake"
)

// TestFunctionCannotBeMade starts the function with a specification that it cannot rotate by: whoever invokes it is told why, as of an
// error of its start, and once that is mended the next invocation is served.
func TestFunctionCannotBeMade(t *testing.T) {
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := os.Symlink(path, filepath.Join(root, "bootstrap")); err != nil {
		t.Fatal(err)
	}
	good := strings.ReplaceAll(onECS, "MESH", "unmade")
	elsewhere := strings.ReplaceAll(good, "    deploy: {type: ecs, cluster: unmade}\n", "")
	var env []string
	var wants []string
	var log output
	function := lambdafake.New(t, func(ctx context.Context) *exec.Cmd {
		command := exec.CommandContext(ctx, filepath.Join(root, "bootstrap"))
		command.Env = append([]string{"LAMBDA_TASK_ROOT=" + root, "AWS_REGION=eu-central-1"}, env...)
		command.Stdout, command.Stderr = &log, &log
		return command
	})
	const arn = "COUNTERSIGN_AUTHORITY_PCA_ARN=arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/61f50cd4-45b9-4259-b049-d0a53682fa4b"
	for _, test := range []struct {
		mesh string
		env  []string
		want string
	}{
		{"", nil, "mesh.yaml: no such file or directory"},
		{strings.Replace(good, "engine: nginx", "engine: apache", 1), []string{arn}, "mesh.yaml:"},
		{good, nil, "set COUNTERSIGN_AUTHORITY_PCA_ARN to the ARN of its private CA"},
		{elsewhere, []string{arn}, "say that Amazon ECS replaces them"},
	} {
		env = test.env
		file := filepath.Join(root, "mesh.yaml")
		if err := os.WriteFile(file, []byte(test.mesh), 0o600); err != nil {
			t.Fatal(err)
		}
		if test.mesh == "" {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
		_, err := function.Invoke([]byte(schedule), time.Minute)
		told, ok := errors.AsType[*lambdafake.FunctionError](err)
		if !ok || told.Type != "Runtime.ConfigInvalid" || !strings.Contains(told.Message, test.want) {
			t.Errorf("%v, want an error of the start with %q", err, test.want)
		}
		wants = append(wants, test.want)
	}
	// Made it is, and asks who it is told about an event of nobody: that is an answer of the handler, not of the start.
	env = []string{arn}
	if err := os.WriteFile(filepath.Join(root, "mesh.yaml"), []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	before := function.Starts()
	for range 2 {
		_, err = function.Invoke([]byte(`{"what": "is this"}`), time.Minute)
		if told, ok := errors.AsType[*lambdafake.FunctionError](err); !ok || told.Type == "Runtime.ConfigInvalid" {
			t.Errorf("a function that is mended: %v", err)
		}
	}
	if got := function.Starts() - before; got != 1 {
		t.Errorf("it was started %d times", got)
	}
	for _, want := range wants {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log does not say %q:\n%s", want, log.String())
		}
	}
}
