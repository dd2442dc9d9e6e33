//go:build linux

package ecsfake_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	elbv2 "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
)

// app is the application's container, of a version.
func app(version string) types.ContainerDefinition {
	return types.ContainerDefinition{
		Name: aws.String("app"), Image: aws.String("app"), StopTimeout: aws.Int32(10), PortMappings: []types.PortMapping{{ContainerPort: aws.Int32(8080)}},
		Environment: []types.KeyValuePair{{Name: aws.String("VERSION"), Value: &version}},
	}
}

// register registers a definition and returns its ARN.
func (r *rig) register(in *ecs.RegisterTaskDefinitionInput) *string {
	r.Helper()
	out, err := r.ecs.RegisterTaskDefinition(r.Context(), in)
	if err != nil {
		r.Fatal(err)
	}
	return out.TaskDefinition.TaskDefinitionArn
}

// balance makes a balancer with one listener, and returns its DNS name and the target group's ARN.
func (r *rig) balance(delay string) (name, group string) {
	r.Helper()
	lb, err := r.elb.CreateLoadBalancer(r.Context(), &elbv2.CreateLoadBalancerInput{
		Name: aws.String("checkout"), Type: elb.LoadBalancerTypeEnumNetwork, Scheme: elb.LoadBalancerSchemeEnumInternal, Subnets: []string{"subnet-1"},
	})
	if err != nil {
		r.Fatal(err)
	}
	tg, err := r.elb.CreateTargetGroup(r.Context(), &elbv2.CreateTargetGroupInput{
		Name: aws.String("checkout"), Protocol: elb.ProtocolEnumTcp, Port: aws.Int32(443), TargetType: elb.TargetTypeEnumIp, VpcId: aws.String("vpc-1"),
		HealthCheckIntervalSeconds: aws.Int32(5), HealthyThresholdCount: aws.Int32(2), UnhealthyThresholdCount: aws.Int32(2),
	})
	if err != nil {
		r.Fatal(err)
	}
	group = *tg.TargetGroups[0].TargetGroupArn
	if _, err := r.elb.ModifyTargetGroupAttributes(r.Context(), &elbv2.ModifyTargetGroupAttributesInput{
		TargetGroupArn: &group, Attributes: []elb.TargetGroupAttribute{{Key: aws.String("deregistration_delay.timeout_seconds"), Value: &delay}},
	}); err != nil {
		r.Fatal(err)
	}
	if _, err := r.elb.CreateListener(r.Context(), &elbv2.CreateListenerInput{
		LoadBalancerArn: lb.LoadBalancers[0].LoadBalancerArn, Port: aws.Int32(443), Protocol: elb.ProtocolEnumTcp,
		DefaultActions: []elb.Action{{Type: elb.ActionTypeEnumForward, TargetGroupArn: &group}},
	}); err != nil {
		r.Fatal(err)
	}
	return *lb.LoadBalancers[0].DNSName, group
}

// patience is the grace period of targets, in AWS's seconds: where those are short, a machine that is busy is no reason to replace a task.
const patience = 1000

// create creates the service checkout, whose targets may be unhealthy for a grace period.
func (r *rig) create(definition *string, count int32, group string, grace int32) {
	r.Helper()
	in := &ecs.CreateServiceInput{
		Cluster: aws.String("payments"), ServiceName: aws.String("checkout"), TaskDefinition: definition, DesiredCount: &count, LaunchType: types.LaunchTypeFargate, NetworkConfiguration: network,
		DeploymentConfiguration: &types.DeploymentConfiguration{DeploymentCircuitBreaker: &types.DeploymentCircuitBreaker{Enable: true, Rollback: true}},
	}
	if group != "" {
		in.LoadBalancers = []types.LoadBalancer{{TargetGroupArn: &group, ContainerName: aws.String("app"), ContainerPort: aws.Int32(8080)}}
		in.HealthCheckGracePeriodSeconds = aws.Int32(grace)
	}
	if _, err := r.ecs.CreateService(r.Context(), in); err != nil {
		r.Fatal(err)
	}
}

// update updates it.
func (r *rig) update(in *ecs.UpdateServiceInput) {
	r.Helper()
	in.Cluster, in.Service = aws.String("payments"), aws.String("checkout")
	if _, err := r.ecs.UpdateService(r.Context(), in); err != nil {
		r.Fatal(err)
	}
}

// service describes it.
func (r *rig) service() types.Service {
	r.Helper()
	out, err := r.ecs.DescribeServices(r.Context(), &ecs.DescribeServicesInput{Cluster: aws.String("payments"), Services: []string{"checkout"}})
	if err != nil || len(out.Services) != 1 {
		r.Fatalf("describe the service: %v, %v", out, err)
	}
	return out.Services[0]
}

// steady waits until the newest deployment is complete with so many tasks, and returns it.
func (r *rig) steady(count int32) types.Deployment {
	r.Helper()
	var s types.Service
	r.eventually("a steady state", func() bool {
		s = r.service()
		return len(s.Deployments) == 1 && s.Deployments[0].RolloutState == types.DeploymentRolloutStateCompleted && s.RunningCount == count && s.PendingCount == 0
	})
	return s.Deployments[0]
}

// tasks are the ids of the service's tasks that are to run.
func (r *rig) tasks() []string {
	r.Helper()
	out, err := r.ecs.ListTasks(r.Context(), &ecs.ListTasksInput{Cluster: aws.String("payments"), ServiceName: aws.String("checkout")})
	if err != nil {
		r.Fatal(err)
	}
	slices.Sort(out.TaskArns)
	return out.TaskArns
}

// Clients that make connections all the time, and one that has kept one since before, lose nothing while all tasks are replaced twice.
func TestRollingDeployment(t *testing.T) {
	r := start(t)
	name, group := r.balance("10")
	r.create(r.register(definition("checkout", app("1"))), 2, group, patience)
	first := r.steady(2)
	address, ok := r.fake.Resolve(name)
	if !ok {
		t.Fatalf("%s has no address", name)
	}
	url := "http://" + address.String() + ":443/"
	stop, done := make(chan struct{}), make(chan struct{})
	versions, failures := map[string]int{}, []string{}
	go func() {
		defer close(done)
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
		for {
			select {
			case <-stop:
				return
			default:
			}
			answer, err := client.Get(url)
			if err != nil {
				failures = append(failures, err.Error())
				continue
			}
			text, err := io.ReadAll(answer.Body)
			answer.Body.Close()
			if err != nil {
				failures = append(failures, err.Error())
			}
			versions[strings.Fields(string(text))[1]]++
		}
	}()
	before := r.tasks()
	for version := range 2 {
		r.update(&ecs.UpdateServiceInput{TaskDefinition: r.register(definition("checkout", app(fmt.Sprint(version+2))))})
		if got := r.service().Deployments; len(got) != 2 || *got[0].Status != "PRIMARY" || got[0].RolloutState != types.DeploymentRolloutStateInProgress || *got[1].Status != "ACTIVE" {
			t.Errorf("deployments after the update: %+v", got)
		}
		second := r.steady(2)
		if *second.Id == *first.Id || second.FailedTasks != 0 {
			t.Errorf("deployment %s after %s, %d failed", *second.Id, *first.Id, second.FailedTasks)
		}
		after := r.tasks()
		if len(after) != 2 || slices.ContainsFunc(after, func(arn string) bool { return slices.Contains(before, arn) }) {
			t.Errorf("tasks %v after %v", after, before)
		}
		before, first = after, second
	}
	r.eventually("old tasks to end", func() bool {
		out, err := r.elb.DescribeTargetHealth(t.Context(), &elbv2.DescribeTargetHealthInput{TargetGroupArn: &group})
		return err == nil && len(out.TargetHealthDescriptions) == 2
	})
	close(stop)
	<-done
	if len(failures) > 0 {
		t.Errorf("%d requests failed: %v", len(failures), failures[0])
	}
	if versions["1"] == 0 || versions["2"] == 0 || versions["3"] == 0 {
		t.Errorf("answers by version: %v", versions)
	}
	r.update(&ecs.UpdateServiceInput{ForceNewDeployment: true, DesiredCount: aws.Int32(1)})
	if forced := r.steady(1); *forced.Id == *first.Id || *forced.TaskDefinition != *first.TaskDefinition {
		t.Errorf("forced deployment %s of %s, after %s of %s", *forced.Id, *forced.TaskDefinition, *first.Id, *first.TaskDefinition)
	}
}

// A connection lives on while its target drains, and the program gets its signal only then.
func TestDraining(t *testing.T) {
	r := start(t)
	name, group := r.balance("50")
	r.create(r.register(definition("checkout", app("1"))), 1, group, patience)
	r.steady(1)
	address, _ := r.fake.Resolve(name)
	conn, err := net.Dial("tcp4", address.String()+":443")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	reader := bufio.NewReader(conn)
	ask := func() error {
		fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		answer, err := http.ReadResponse(reader, nil)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		_, err = io.Copy(io.Discard, answer.Body)
		return err
	}
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	old := r.tasks()[0]
	r.update(&ecs.UpdateServiceInput{ForceNewDeployment: true})
	r.eventually("the old task to drain", func() bool { return *r.show(old).LastStatus == "DEACTIVATING" })
	if err := ask(); err != nil {
		t.Errorf("a request on a connection to a task that drains: %v", err)
	}
	task := r.await(old, "STOPPED")
	if got := r.containers(task); got != "app 0" || !strings.Contains(*task.StoppedReason, "Scaling activity initiated by (deployment ecs-svc/") {
		t.Errorf("containers %s, reason %s", got, *task.StoppedReason)
	}
	if err := ask(); err == nil {
		t.Error("the connection outlived its task")
	}
}

func TestCircuitBreaker(t *testing.T) {
	r := start(t)
	good := r.register(definition("checkout", app("1")))
	r.create(good, 2, "", patience)
	first := r.steady(2)
	before := r.tasks()
	broken := script("app", "exit 1")
	gate := script("gate", "exit 1")
	gate.Essential = aws.Bool(false)
	r.update(&ecs.UpdateServiceInput{TaskDefinition: r.register(definition("checkout", gate, after(broken, "gate", types.ContainerConditionSuccess)))})
	var s types.Service
	r.eventually("the roll-back", func() bool {
		s = r.service()
		return *s.Deployments[0].Id == *first.Id && s.Deployments[0].RolloutState == types.DeploymentRolloutStateCompleted
	})
	if *s.TaskDefinition != *good || !slices.Equal(r.tasks(), before) {
		t.Errorf("after the roll-back: definition %s, tasks %v, want %s and %v", *s.TaskDefinition, r.tasks(), *good, before)
	}
	var said []string
	for _, event := range s.Events {
		said = append(said, *event.Message)
	}
	for _, want := range []string{"deployment failed: tasks failed to start.", "rolling back to deployment " + *first.Id, "is unable to consistently start tasks successfully", "has reached a steady state"} {
		if !strings.Contains(strings.Join(said, "\n"), want) {
			t.Errorf("no event says %q: %q", want, said)
		}
	}

	r.update(&ecs.UpdateServiceInput{
		TaskDefinition:          r.register(definition("checkout", gate, after(broken, "gate", types.ContainerConditionSuccess))),
		DeploymentConfiguration: &types.DeploymentConfiguration{DeploymentCircuitBreaker: &types.DeploymentCircuitBreaker{Enable: true}},
	})
	r.eventually("the failure", func() bool {
		s = r.service()
		return s.Deployments[0].RolloutState == types.DeploymentRolloutStateFailed
	})
	if d := s.Deployments[0]; d.FailedTasks < 3 || len(s.Deployments) != 2 || s.Deployments[1].RunningCount != 2 {
		t.Errorf("deployments without roll-back: %+v", s.Deployments)
	}
}

func TestUnhealthyTaskIsReplaced(t *testing.T) {
	r := start(t)
	c := script("app", "touch /tmp/well; exec sleep 1000")
	c.StopTimeout = aws.Int32(0)
	c.HealthCheck = &types.HealthCheck{Command: []string{"CMD", "test", "-e", "/tmp/well"}, Interval: aws.Int32(5), Retries: aws.Int32(2)}
	r.create(r.register(definition("checkout", c)), 1, "", patience)
	r.steady(1)
	ill := r.tasks()[0]
	if code, output, err := r.fake.Exec(t.Context(), ill, "app", "rm", "/tmp/well"); err != nil || code != 0 {
		t.Fatalf("exec: %d %s %v", code, output, err)
	}
	task := r.await(ill, "STOPPED")
	if *task.StoppedReason != "Task failed container health checks" || task.HealthStatus != types.HealthStatusUnhealthy {
		t.Errorf("reason %s, health %s", *task.StoppedReason, task.HealthStatus)
	}
	r.eventually("another task", func() bool { tasks := r.tasks(); return len(tasks) == 1 && tasks[0] != ill })
}

func TestUnhealthyTargetIsReplaced(t *testing.T) {
	r := start(t)
	_, group := r.balance("0")
	deaf := script("app", "exec sleep 1000")
	deaf.PortMappings = []types.PortMapping{{ContainerPort: aws.Int32(8080)}}
	deaf.StopTimeout = aws.Int32(0)
	r.create(r.register(definition("checkout", deaf)), 1, group, 0)
	r.eventually("a failure", func() bool {
		out, err := r.ecs.ListTasks(t.Context(), &ecs.ListTasksInput{Cluster: aws.String("payments"), DesiredStatus: types.DesiredStatusStopped})
		return err == nil && len(out.TaskArns) > 0 && strings.HasPrefix(*r.show(out.TaskArns[0]).StoppedReason, "Task failed ELB health checks in (target-group "+group)
	})
	if s := r.service(); s.Deployments[0].RolloutState == types.DeploymentRolloutStateCompleted {
		t.Error("a deployment whose targets are not healthy is complete")
	}
}

func TestScaleAndDelete(t *testing.T) {
	r := start(t)
	r.create(r.register(definition("checkout", app("1"))), 0, "", patience)
	first := r.steady(0)
	r.update(&ecs.UpdateServiceInput{DesiredCount: aws.Int32(2)})
	if second := r.steady(2); *second.Id != *first.Id {
		t.Error("another count began another deployment")
	}
	r.eventually("the event of a steady state after the start of tasks", func() bool {
		return strings.HasSuffix(*r.service().Events[0].Message, "has reached a steady state.")
	})
	if _, err := r.ecs.StopTask(t.Context(), &ecs.StopTaskInput{Cluster: aws.String("payments"), Task: &r.tasks()[0]}); err != nil {
		t.Fatal(err)
	}
	r.steady(2)
	if _, err := r.ecs.DeleteService(t.Context(), &ecs.DeleteServiceInput{Cluster: aws.String("payments"), Service: aws.String("checkout")}); err == nil {
		t.Error("a service that runs was deleted")
	}
	if _, err := r.ecs.DeleteService(t.Context(), &ecs.DeleteServiceInput{Cluster: aws.String("payments"), Service: aws.String("checkout"), Force: aws.Bool(true)}); err != nil {
		t.Fatal(err)
	}
	r.eventually("the service to be gone", func() bool {
		out, err := r.ecs.DescribeServices(t.Context(), &ecs.DescribeServicesInput{Cluster: aws.String("payments"), Services: []string{"checkout"}})
		return err == nil && len(out.Failures) == 1
	})
	list, err := r.ecs.ListServices(t.Context(), &ecs.ListServicesInput{Cluster: aws.String("payments")})
	if err != nil || len(list.ServiceArns) != 0 {
		t.Errorf("list: %v, %v", list, err)
	}
}

func TestServiceRefused(t *testing.T) {
	r := start(t)
	_, group := r.balance("0")
	arn := r.register(definition("checkout", app("1")))
	change := func(f func(in *ecs.CreateServiceInput)) *ecs.CreateServiceInput {
		in := &ecs.CreateServiceInput{Cluster: aws.String("payments"), ServiceName: aws.String("x"), TaskDefinition: arn, DesiredCount: aws.Int32(0), NetworkConfiguration: network}
		f(in)
		return in
	}
	balanced := func(group, container string, port int32) *ecs.CreateServiceInput {
		return change(func(in *ecs.CreateServiceInput) {
			in.LoadBalancers = []types.LoadBalancer{{TargetGroupArn: &group, ContainerName: &container, ContainerPort: &port}}
		})
	}
	for name, c := range map[string]struct {
		in   *ecs.CreateServiceInput
		want string
	}{
		"name":       {change(func(in *ecs.CreateServiceInput) { in.ServiceName = aws.String("a b") }), "Invalid service name"},
		"count":      {change(func(in *ecs.CreateServiceInput) { in.DesiredCount = nil }), "Desired count"},
		"definition": {change(func(in *ecs.CreateServiceInput) { in.TaskDefinition = aws.String("x:9") }), "Unable to describe task definition"},
		"percent": {change(func(in *ecs.CreateServiceInput) {
			in.DeploymentConfiguration = &types.DeploymentConfiguration{MaximumPercent: aws.Int32(100)}
		}), "cannot be 100"},
		"EC2": {change(func(in *ecs.CreateServiceInput) { in.LaunchType = types.LaunchTypeEc2 }), "does not do the launch type EC2"},
		"blue/green": {change(func(in *ecs.CreateServiceInput) {
			in.DeploymentConfiguration = &types.DeploymentConfiguration{Strategy: types.DeploymentStrategyBlueGreen}
		}), "does not do deploymentConfiguration"},
		"target group": {balanced(group+"x", "app", 8080), "target group does not exist"},
		"container":    {balanced(group, "nobody", 8080), "did not have a container port"},
		"port":         {balanced(group, "app", 80), "did not have a container port"},
	} {
		if _, err := r.ecs.CreateService(t.Context(), c.in); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
	}
	if _, err := r.elb.CreateTargetGroup(t.Context(), &elbv2.CreateTargetGroupInput{Name: aws.String("x"), TargetType: elb.TargetTypeEnumInstance}); err == nil || !strings.Contains(err.Error(), "need ip") {
		t.Errorf("target group of instances: %v", err)
	}
	groups, err := r.elb.DescribeTargetGroups(t.Context(), &elbv2.DescribeTargetGroupsInput{Names: []string{"checkout"}})
	if err != nil || len(groups.TargetGroups) != 1 || len(groups.TargetGroups[0].LoadBalancerArns) != 1 {
		t.Errorf("target groups: %v, %v", groups, err)
	}
	listeners, err := r.elb.DescribeListeners(t.Context(), &elbv2.DescribeListenersInput{LoadBalancerArn: &groups.TargetGroups[0].LoadBalancerArns[0]})
	if err != nil || len(listeners.Listeners) != 1 || *listeners.Listeners[0].Port != 443 {
		t.Errorf("listeners: %v, %v", listeners, err)
	}
}

// A listener that ends TLS is recorded, with what its policy allows.
func TestListenerPolicy(t *testing.T) {
	r := start(t)
	_, group := r.balance("0")
	balancers, err := r.elb.DescribeLoadBalancers(t.Context(), &elbv2.DescribeLoadBalancersInput{})
	if err != nil {
		t.Fatal(err)
	}
	in := &elbv2.CreateListenerInput{
		LoadBalancerArn: balancers.LoadBalancers[0].LoadBalancerArn, Port: aws.Int32(8443), Protocol: elb.ProtocolEnumTls, SslPolicy: aws.String("ELBSecurityPolicy-TLS-1-2-2017-01"),
		DefaultActions: []elb.Action{{Type: elb.ActionTypeEnumForward, TargetGroupArn: &group}},
	}
	if _, err := r.elb.CreateListener(t.Context(), in); err != nil {
		t.Fatal(err)
	}
	listeners, err := r.elb.DescribeListeners(t.Context(), &elbv2.DescribeListenersInput{LoadBalancerArn: in.LoadBalancerArn})
	if err != nil || len(listeners.Listeners) != 2 {
		t.Fatalf("listeners: %v, %v", listeners, err)
	}
	shown, err := r.elb.DescribeSSLPolicies(t.Context(), &elbv2.DescribeSSLPoliciesInput{Names: []string{*listeners.Listeners[1].SslPolicy}})
	if err != nil || !slices.Equal(shown.SslPolicies[0].SslProtocols, []string{"TLSv1.2"}) {
		t.Errorf("policy: %v, %v", shown, err)
	}
	in.Port, in.SslPolicy = aws.Int32(9443), aws.String("no-such")
	if _, err := r.elb.CreateListener(t.Context(), in); err == nil || !strings.Contains(err.Error(), "SSLPolicyNotFound") {
		t.Errorf("an unknown policy: %v", err)
	}
}

// Registered by hand, addresses are balanced like a service's.
func TestTargets(t *testing.T) {
	r := start(t)
	name, group := r.balance("0")
	arn := r.task(definition("checkout", app("1")))
	task := r.await(arn, "RUNNING")
	targets := []elb.TargetDescription{{Id: task.Containers[0].NetworkInterfaces[0].PrivateIpv4Address, Port: aws.Int32(8080)}}
	address, _ := r.fake.Resolve(name)
	ask := func() error {
		answer, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + address.String() + ":443/")
		if err == nil {
			answer.Body.Close()
		}
		return err
	}
	if err := ask(); err == nil {
		t.Error("a balancer without targets answers")
	}
	if _, err := r.elb.RegisterTargets(t.Context(), &elbv2.RegisterTargetsInput{TargetGroupArn: &group, Targets: targets}); err != nil {
		t.Fatal(err)
	}
	r.eventually("the target to be healthy", func() bool {
		out, err := r.elb.DescribeTargetHealth(t.Context(), &elbv2.DescribeTargetHealthInput{TargetGroupArn: &group})
		return err == nil && len(out.TargetHealthDescriptions) == 1 && out.TargetHealthDescriptions[0].TargetHealth.State == elb.TargetHealthStateEnumHealthy
	})
	var wait sync.WaitGroup
	for range 20 {
		wait.Go(func() {
			if err := ask(); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if _, err := r.elb.DeregisterTargets(t.Context(), &elbv2.DeregisterTargetsInput{TargetGroupArn: &group, Targets: targets}); err != nil {
		t.Fatal(err)
	}
	r.eventually("the target to be gone", func() bool { return ask() != nil })
}
