package awstest_test

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"countersign.dev/aws/internal/awstest"
	"countersign.dev/aws/internal/awstest/ecsfake"
	"countersign.dev/aws/internal/awstest/ecsfake/jail"
)

// TestMain gives the double of ECS the namespaces that it needs.
func TestMain(m *testing.M) {
	if err := ecsfake.Enter(); err != nil && !errors.Is(err, ecsfake.ErrUnavailable) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ours["ecs"] = mountContainers
	os.Exit(m.Run())
}

// mountContainers starts the double of ECS, or skips the test where it cannot be.
func mountContainers(t *testing.T, cloud *awstest.Cloud) {
	t.Helper()
	if !jail.Inside() {
		if os.Getenv("CI") == "true" {
			t.Fatal("namespaces cannot be made; CI has to run as root")
		}
		t.Skip("SKIPPED, AND WITH IT THE COMPARISON OF ALL DOUBLES: the double of ECS needs root")
	}
	cloud.PutRole("contract-execution", []byte(allowAll))
	fake, err := ecsfake.New(ecsfake.Options{
		Region: awstest.Region, Account: awstest.Account, Front: cloud.URL, Second: 50 * time.Millisecond,
		Images: map[string]ecsfake.Image{"busybox": ecsfake.Shell()},
		Assume: func(role string) (ecsfake.Credentials, error) {
			c, err := cloud.AssumeAs("ecs-tasks.amazonaws.com", role, "task", "arn:aws:ecs:"+awstest.Region+":"+awstest.Account+":task/contract/1")
			return ecsfake.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, Token: c.SessionToken, Expires: c.Expires}, err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fake.Close)
	cloud.Mount("ecs", fake)
	cloud.Mount("elasticloadbalancing", fake)
}
