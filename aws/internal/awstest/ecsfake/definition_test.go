//go:build linux

package ecsfake_test

import (
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	elbv2 "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
)

func TestDefinitionRefused(t *testing.T) {
	r := start(t)
	optional := script("init", "true")
	optional.Essential = aws.Bool(false)
	change := func(f func(in *ecs.RegisterTaskDefinitionInput)) *ecs.RegisterTaskDefinitionInput {
		in := definition("x", script("app", "true"))
		f(in)
		return in
	}
	container := func(f func(c *types.ContainerDefinition)) *ecs.RegisterTaskDefinitionInput {
		return change(func(in *ecs.RegisterTaskDefinitionInput) { f(&in.ContainerDefinitions[0]) })
	}
	for name, c := range map[string]struct {
		in   *ecs.RegisterTaskDefinitionInput
		want string
	}{
		"family":            {change(func(in *ecs.RegisterTaskDefinitionInput) { in.Family = aws.String("a b") }), "Invalid task definition family name"},
		"no container":      {definition("x", []types.ContainerDefinition{}...), "Container list cannot be empty"},
		"nothing essential": {definition("x", optional), "At least one container must be marked as essential"},
		"no memory":         {change(func(in *ecs.RegisterTaskDefinitionInput) { in.Memory = nil }), "Fargate requires that 'memory'"},
		"no cpu":            {change(func(in *ecs.RegisterTaskDefinitionInput) { in.Cpu = nil }), "Fargate requires that 'cpu'"},
		"size":              {change(func(in *ecs.RegisterTaskDefinitionInput) { in.Memory = aws.String("768") }), "No Fargate configuration exists"},
		"bridge":            {change(func(in *ecs.RegisterTaskDefinitionInput) { in.NetworkMode = types.NetworkModeBridge }), "only supports network mode"},
		"pid mode":          {change(func(in *ecs.RegisterTaskDefinitionInput) { in.PidMode = types.PidModeHost }), "only supports pidMode 'task'"},
		"EFS": {change(func(in *ecs.RegisterTaskDefinitionInput) {
			in.Volumes = []types.Volume{{Name: aws.String("v"), EfsVolumeConfiguration: &types.EFSVolumeConfiguration{FileSystemId: aws.String("fs-1")}}}
		}), "does not do volumes"},
		"same name":   {definition("x", script("a", "true"), script("a", "true")), "is there twice"},
		"privileged":  {container(func(c *types.ContainerDefinition) { c.Privileged = aws.Bool(true) }), "do not support privileged"},
		"stopTimeout": {container(func(c *types.ContainerDefinition) { c.StopTimeout = aws.Int32(121) }), "at most 120"},
		"links":       {container(func(c *types.ContainerDefinition) { c.Links = []string{"a"} }), "does not do links"},
		"capability": {container(func(c *types.ContainerDefinition) {
			c.LinuxParameters = &types.LinuxParameters{Capabilities: &types.KernelCapabilities{Add: []string{"SYS_PTRACE"}}}
		}), "capabilities.add"},
		"port": {container(func(c *types.ContainerDefinition) {
			c.PortMappings = []types.PortMapping{{ContainerPort: aws.Int32(80), HostPort: aws.Int32(8080)}}
		}), "must match"},
		"secret's ARN": {container(func(c *types.ContainerDefinition) {
			c.Secrets = []types.Secret{{Name: aws.String("A"), ValueFrom: aws.String(secret + ":x")}}
		}), "Invalid secret ARN"},
		"parameter": {container(func(c *types.ContainerDefinition) {
			c.Secrets = []types.Secret{{Name: aws.String("A"), ValueFrom: aws.String("/a/b")}}
		}), "does not do parameters"},
		"secret twice": {container(func(c *types.ContainerDefinition) {
			c.Environment = []types.KeyValuePair{{Name: aws.String("A"), Value: aws.String("")}}
			c.Secrets = []types.Secret{{Name: aws.String("A"), ValueFrom: aws.String(secret)}}
		}), "must be unique"},
		"no execution role": {change(func(in *ecs.RegisterTaskDefinitionInput) {
			in.ExecutionRoleArn = nil
			in.ContainerDefinitions[0].Secrets = []types.Secret{{Name: aws.String("A"), ValueFrom: aws.String(secret)}}
		}), "you must also specify a value for 'executionRoleArn'"},
		"unknown volume": {container(func(c *types.ContainerDefinition) {
			c.MountPoints = []types.MountPoint{{SourceVolume: aws.String("v"), ContainerPath: aws.String("/v")}}
		}), "Unknown volume 'v'"},
		"health check": {container(func(c *types.ContainerDefinition) { c.HealthCheck = &types.HealthCheck{Command: []string{"true"}} }), "begin with CMD"},
		"health interval": {container(func(c *types.ContainerDefinition) {
			c.HealthCheck = &types.HealthCheck{Command: []string{"CMD", "true"}, Interval: aws.Int32(1)}
		}), "between 5 and 300"},
		"unknown dependency": {definition("x", after(script("a", "true"), "b", types.ContainerConditionStart)), "there is no other container"},
		"cycle":              {definition("x", after(script("a", "true"), "b", types.ContainerConditionStart), after(script("b", "true"), "a", types.ContainerConditionStart)), "contains a cycle"},
		"essential SUCCESS":  {definition("x", after(script("a", "true"), "b", types.ContainerConditionSuccess), script("b", "true")), "conditions COMPLETE and SUCCESS cannot be"},
		"HEALTHY unchecked":  {definition("x", after(script("a", "true"), "b", types.ContainerConditionHealthy), script("b", "true")), "which has no health check"},
		"too large": {container(func(c *types.ContainerDefinition) {
			c.Environment = []types.KeyValuePair{{Name: aws.String("A"), Value: aws.String(strings.Repeat("x", 65536))}}
		}), "Max allowed length is '65536' bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := r.ecs.RegisterTaskDefinition(t.Context(), c.in); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestDefinitionsAndErrors(t *testing.T) {
	r := start(t)
	ctx := t.Context()
	for range 2 {
		if _, err := r.ecs.RegisterTaskDefinition(ctx, definition("checkout", script("app", "true"))); err != nil {
			t.Fatal(err)
		}
	}
	shown, err := r.ecs.DescribeTaskDefinition(ctx, &ecs.DescribeTaskDefinitionInput{TaskDefinition: aws.String("checkout")})
	if err != nil || shown.TaskDefinition.Revision != 2 || shown.TaskDefinition.ContainerDefinitions[0].Command[1] != "-c" {
		t.Fatalf("describe: %v, %v", shown, err)
	}
	if _, err := r.ecs.DeregisterTaskDefinition(ctx, &ecs.DeregisterTaskDefinitionInput{TaskDefinition: aws.String("checkout:2")}); err != nil {
		t.Fatal(err)
	}
	list, err := r.ecs.ListTaskDefinitions(ctx, &ecs.ListTaskDefinitionsInput{FamilyPrefix: aws.String("checkout")})
	if err != nil || len(list.TaskDefinitionArns) != 1 || !strings.HasSuffix(list.TaskDefinitionArns[0], ":1") {
		t.Errorf("list: %v, %v", list, err)
	}
	for name, c := range map[string]struct {
		call func() error
		want string
	}{
		"no cluster": {func() error {
			_, err := r.ecs.ListTasks(ctx, &ecs.ListTasksInput{Cluster: aws.String("x")})
			return err
		}, "ClusterNotFoundException"},
		"no service": {func() error {
			_, err := r.ecs.UpdateService(ctx, &ecs.UpdateServiceInput{Cluster: aws.String("payments"), Service: aws.String("x")})
			return err
		}, "ServiceNotFoundException"},
		"no network": {func() error {
			_, err := r.ecs.RunTask(ctx, &ecs.RunTaskInput{Cluster: aws.String("payments"), TaskDefinition: aws.String("checkout")})
			return err
		}, "Network Configuration must be provided"},
		"inactive": {func() error {
			_, err := r.ecs.RunTask(ctx, &ecs.RunTaskInput{Cluster: aws.String("payments"), TaskDefinition: aws.String("checkout:2"), NetworkConfiguration: network})
			return err
		}, "TaskDefinition is inactive"},
		"unknown call": {func() error {
			_, err := r.ecs.ListAttributes(ctx, &ecs.ListAttributesInput{TargetType: types.TargetTypeContainerInstance})
			return err
		}, "does not do ecs:ListAttributes"},
		"unknown query": {func() error {
			_, err := r.elb.DescribeAccountLimits(ctx, &elbv2.DescribeAccountLimitsInput{})
			return err
		}, "DescribeAccountLimits"},
	} {
		if err := c.call(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
	}
}
