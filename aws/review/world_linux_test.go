//go:build linux

package review_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"countersign.dev/aws/internal/awstest"
	"countersign.dev/aws/internal/awstest/ecsfake"
	"countersign.dev/aws/internal/awstest/ecsfake/jail"
	"countersign.dev/aws/internal/awstest/pcafake"
	"countersign.dev/aws/internal/awstest/stack"
	"countersign.dev/aws/lambda/event"
	"countersign.dev/aws/review"
	"countersign.dev/iac"
	"countersign.dev/mesh"
)

// auditor is the policy of docs/check-aws.md.
func auditor(t *testing.T) []byte {
	t.Helper()
	page, err := os.ReadFile("../../docs/check-aws.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(page), "```json\n{\n  \"Version\": \"2012-10-17\"")
	policy, _, ended := strings.Cut(after, "```")
	if !found || !ended {
		t.Fatal("the page has no policy")
	}
	return []byte("{\n  \"Version\": \"2012-10-17\"" + policy)
}

// world is the example as it is deployed, with no task yet.
type world struct {
	*testing.T
	cloud *awstest.Cloud
	spec  *mesh.Spec
	stack *stack.Stack
	known []review.Finding // what is planted and stays
}

func newWorld(t *testing.T) *world {
	t.Helper()
	if !jail.Inside() {
		if os.Getenv("CI") == "true" {
			t.Fatal("namespaces cannot be made; CI has to run as root")
		}
		t.Skip("SKIPPED: the double of ECS needs root")
	}
	spec, err := mesh.Load("../../examples/payments-ecs/mesh.yaml")
	if err != nil {
		t.Fatal(err)
	}
	template, err := iac.CloudFormation(spec, iac.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, cloud: awstest.Start(t), spec: spec}
	fake, err := ecsfake.New(ecsfake.Options{Region: w.cloud.Region, Account: w.cloud.Account, Images: map[string]ecsfake.Image{"shell": ecsfake.Shell()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	w.cloud.Mount("ecs", fake)
	w.cloud.Mount("elasticloadbalancing", fake)
	w.cloud.Mount("acm-pca", pcafake.New(pcafake.Options{PendingPolls: 1}))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	w.stack, err = stack.Create(ctx, stack.Options{Config: w.cloud.Admin(), Account: w.cloud.Account, Name: "payments"}, template, map[string]string{
		"VpcId": "vpc-1", "SubnetIds": "subnet-1,subnet-2", "CountersignImage": "countersign", "NginxImage": "nginx", "HaproxyImage": "haproxy",
		"CheckoutImage": "app", "LedgerImage": "app", "TerminalImage": "app", "ImageRepositories": "arn:aws:ecr:eu-central-1:123456789012:repository/app",
		"FunctionBucket": "bucket", "FunctionKey": "function.zip", "AlarmTopic": "arn:aws:sns:eu-central-1:123456789012:alarms",
	})
	if err != nil {
		t.Fatal(err)
	}
	w.cloud.PutRole("auditor", auditor(t))
	w.cloud.PutRole("administrator", []byte(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}`))
	return w
}

// as lets the SDK's default chain of this process be a role.
func (w *world) as(role string) {
	for _, pair := range w.cloud.Env(role) {
		key, value, _ := strings.Cut(pair, "=")
		w.Setenv(key, value)
	}
}

// look looks, as the auditor.
func (w *world) look(change func(*review.Config)) *review.Report {
	w.Helper()
	c := review.Config{Spec: w.spec, Scheduled: func(input string) bool {
		e, err := event.Parse([]byte(input))
		return err == nil && e.Kind == event.Schedule
	}}
	c.Rights = func(environment bool, known map[string]string) (map[string]string, error) {
		by := iac.InitTaskRole
		if environment {
			by = iac.InitEnvironment
		}
		return iac.Rights(c.Spec, iac.Options{Init: by}, known)
	}
	if change != nil {
		change(&c)
	}
	report, err := review.Run(w.Context(), c)
	if err != nil {
		w.Fatal(err)
	}
	return report
}

// findings are what was found in short.
func findings(report *review.Report) string {
	var all []string
	for _, f := range report.Findings {
		all = append(all, fmt.Sprintf("%s %s %s: %s", f.Severity, f.Code, f.Subject, f.Message))
	}
	return strings.Join(all, "\n")
}

// document writes a policy.
func document(statements ...map[string]any) []byte {
	text, err := json.Marshal(map[string]any{"Version": "2012-10-17", "Statement": statements})
	if err != nil {
		panic(err)
	}
	return text
}
