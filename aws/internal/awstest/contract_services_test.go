package awstest_test

import (
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	ecstypes "github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

var containersContract = []expectation{
	{"RegisterTaskDefinition", "counts revisions, and keeps dependsOn, secrets and volumes", registersDefinition},
	{"RegisterTaskDefinition", "refuses dependsOn on a container that is not there: ClientException", refusesDependency},
	{"DescribeTaskDefinition", "of a family gives its newest active revision", newestDefinition},
	{"RunTask", "runs the containers: the exit code is the program's", runsTask},
	{"RunTask", "stops a task whose secret cannot be read before anything runs: ResourceInitializationError", refusesSecret},
	{"RunTask", "runs no container that waits for SUCCESS of one that failed", refusesFailure},
	{"CreateService", "starts as many tasks as desired, which ListTasks names by service", startsService},
	{"UpdateService", "with forceNewDeployment replaces every task, and the roll-out becomes COMPLETED", replacesTasks},
	{"UpdateService", "to no task stops them", stopsService},
	{"DescribeServices", "tells of a service that is not there as a failure: MISSING", missesService},
	{"DescribeTasks", "of a cluster that is not there: ClusterNotFoundException", missesCluster},
}

// patience is how long a double gets for what AWS does in the background: those that do it at once, unless they were late
// once, and those that start processes.
func (w *world) patience() time.Time {
	if w.double == "ours" || w.again {
		return time.Now().Add(20 * time.Second)
	}
	return time.Now().Add(2 * time.Second)
}

// until asks again until the answer is yes, or an error, or patience ends.
func (w *world) until(complaint string, done func() (bool, error)) error {
	for deadline := w.patience(); time.Now().Before(deadline); {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-w.ctx.Done():
			return w.ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return wrong("%s", complaint)
}

// cluster is one of its own, and a family of task definitions.
type cluster struct {
	*world
	client *ecs.Client
	name   string
	family string
}

func (w *world) cluster() (*cluster, error) {
	c := &cluster{world: w, client: ecs.NewFromConfig(w.config), name: w.name("cluster"), family: w.name("family")}
	_, err := c.client.CreateCluster(w.ctx, &ecs.CreateClusterInput{ClusterName: &c.name})
	return c, err
}

// register registers a definition with one container.
func (c *cluster) register(command ...string) (*ecstypes.TaskDefinition, error) {
	return c.registerWith(ecstypes.ContainerDefinition{
		Name: aws.String("app"), Image: aws.String("busybox"), Essential: aws.Bool(true), EntryPoint: []string{"/bin/sh", "-c"}, Command: command,
	})
}

func (c *cluster) registerWith(containers ...ecstypes.ContainerDefinition) (*ecstypes.TaskDefinition, error) {
	role := aws.String("arn:aws:iam::123456789012:role/contract-execution")
	for i := range containers {
		containers[i].Memory = aws.Int32(64) // which AWS does not need here, but moto does
	}
	made, err := c.client.RegisterTaskDefinition(c.ctx, &ecs.RegisterTaskDefinitionInput{
		Family: &c.family, ContainerDefinitions: containers, NetworkMode: ecstypes.NetworkModeAwsvpc, Cpu: aws.String("256"), Memory: aws.String("512"),
		RequiresCompatibilities: []ecstypes.Compatibility{ecstypes.CompatibilityFargate}, ExecutionRoleArn: role,
		Volumes: []ecstypes.Volume{{Name: aws.String("certs")}},
	})
	if err != nil {
		return nil, err
	}
	return made.TaskDefinition, nil
}

// network is a subnet that is there: moto has a VPC of its own and refuses others.
func (w *world) network() *ecstypes.NetworkConfiguration {
	subnet := "subnet-1"
	if w.double == "moto" {
		subnet = motoSubnet(w.ctx)
	}
	return &ecstypes.NetworkConfiguration{AwsvpcConfiguration: &ecstypes.AwsVpcConfiguration{Subnets: []string{subnet}, SecurityGroups: []string{"sg-1"}}}
}

func registersDefinition(w *world) error {
	c, err := w.cluster()
	if err != nil {
		return err
	}
	containers := []ecstypes.ContainerDefinition{
		{Name: aws.String("init"), Image: aws.String("busybox"), Essential: aws.Bool(false), Command: []string{"true"}},
		{
			Name: aws.String("app"), Image: aws.String("busybox"), Essential: aws.Bool(true), Command: []string{"true"},
			DependsOn:   []ecstypes.ContainerDependency{{ContainerName: aws.String("init"), Condition: ecstypes.ContainerConditionSuccess}},
			Secrets:     []ecstypes.Secret{{Name: aws.String("S"), ValueFrom: aws.String("arn:aws:secretsmanager:eu-central-1:123456789012:secret:s-AbCdEf:key::")}},
			MountPoints: []ecstypes.MountPoint{{SourceVolume: aws.String("certs"), ContainerPath: aws.String("/certs"), ReadOnly: aws.Bool(true)}},
		},
	}
	if _, err := c.registerWith(containers...); err != nil {
		return err
	}
	got, err := c.registerWith(containers...)
	if err != nil {
		return err
	}
	if got.Revision != 2 || len(got.Volumes) != 1 || len(got.ContainerDefinitions) != 2 {
		return wrong("another revision, or parts are lost")
	}
	app := got.ContainerDefinitions[1]
	if len(app.DependsOn) != 1 || app.DependsOn[0].Condition != ecstypes.ContainerConditionSuccess || len(app.Secrets) != 1 || len(app.MountPoints) != 1 || !aws.ToBool(app.MountPoints[0].ReadOnly) {
		return wrong("parts are lost")
	}
	return nil
}

func refusesDependency(w *world) error {
	c, err := w.cluster()
	if err != nil {
		return err
	}
	_, err = c.registerWith(ecstypes.ContainerDefinition{
		Name: aws.String("app"), Image: aws.String("busybox"), Essential: aws.Bool(true),
		DependsOn: []ecstypes.ContainerDependency{{ContainerName: aws.String("absent"), Condition: ecstypes.ContainerConditionStart}},
	})
	return refuses(err, "ClientException")
}

func newestDefinition(w *world) error {
	c, err := w.cluster()
	if err != nil {
		return err
	}
	for range 2 {
		if _, err := c.register("true"); err != nil {
			return err
		}
	}
	if _, err := c.client.DeregisterTaskDefinition(c.ctx, &ecs.DeregisterTaskDefinitionInput{TaskDefinition: aws.String(c.family + ":2")}); err != nil {
		return err
	}
	got, err := c.client.DescribeTaskDefinition(c.ctx, &ecs.DescribeTaskDefinitionInput{TaskDefinition: &c.family})
	if err == nil && got.TaskDefinition.Revision != 1 {
		return wrong("gives another revision")
	}
	return err
}

// run starts a task and waits for its end.
func (c *cluster) run() (*ecstypes.Task, error) {
	started, err := c.client.RunTask(c.ctx, &ecs.RunTaskInput{Cluster: &c.name, TaskDefinition: &c.family, LaunchType: ecstypes.LaunchTypeFargate, NetworkConfiguration: c.network()})
	if err != nil {
		return nil, err
	}
	if len(started.Tasks) != 1 {
		return nil, wrong("starts nothing")
	}
	var task ecstypes.Task
	err = c.until("the task never ends", func() (bool, error) {
		got, err := c.client.DescribeTasks(c.ctx, &ecs.DescribeTasksInput{Cluster: &c.name, Tasks: []string{*started.Tasks[0].TaskArn}})
		if err != nil || len(got.Tasks) != 1 {
			return false, err
		}
		task = got.Tasks[0]
		return aws.ToString(task.LastStatus) == "STOPPED", nil
	})
	return &task, err
}

func runsTask(w *world) error {
	c, err := w.cluster()
	if err != nil {
		return err
	}
	if _, err := c.register("exit 7"); err != nil {
		return err
	}
	task, err := c.run()
	if err == nil && (len(task.Containers) != 1 || aws.ToInt32(task.Containers[0].ExitCode) != 7) {
		return wrong("another exit code")
	}
	return err
}

func refusesSecret(w *world) error {
	c, err := w.cluster()
	if err != nil {
		return err
	}
	_, err = c.registerWith(ecstypes.ContainerDefinition{
		Name: aws.String("app"), Image: aws.String("busybox"), Essential: aws.Bool(true), EntryPoint: []string{"/bin/sh", "-c"}, Command: []string{"true"},
		Secrets: []ecstypes.Secret{{Name: aws.String("S"), ValueFrom: aws.String("arn:aws:secretsmanager:eu-central-1:123456789012:secret:contract-absent-AbCdEf")}},
	})
	if err != nil {
		return err
	}
	task, err := c.run()
	if err == nil && (len(task.Containers) == 1 && task.Containers[0].ExitCode != nil || task.StopCode != ecstypes.TaskStopCodeTaskFailedToStart ||
		!strings.HasPrefix(aws.ToString(task.StoppedReason), "ResourceInitializationError")) {
		return wrong("starts it")
	}
	return err
}

func refusesFailure(w *world) error {
	c, err := w.cluster()
	if err != nil {
		return err
	}
	_, err = c.registerWith(
		ecstypes.ContainerDefinition{Name: aws.String("init"), Image: aws.String("busybox"), Essential: aws.Bool(false), EntryPoint: []string{"/bin/sh", "-c"}, Command: []string{"exit 1"}},
		ecstypes.ContainerDefinition{
			Name: aws.String("app"), Image: aws.String("busybox"), Essential: aws.Bool(true), EntryPoint: []string{"/bin/sh", "-c"}, Command: []string{"exit 0"},
			DependsOn: []ecstypes.ContainerDependency{{ContainerName: aws.String("init"), Condition: ecstypes.ContainerConditionSuccess}},
		})
	if err != nil {
		return err
	}
	task, err := c.run()
	if err != nil {
		return err
	}
	for _, container := range task.Containers {
		switch exit := container.ExitCode; {
		case aws.ToString(container.Name) == "init" && aws.ToInt32(exit) != 1:
			return wrong("another exit code")
		case aws.ToString(container.Name) == "app" && exit != nil:
			return wrong("runs it")
		}
	}
	return nil
}

// service is one with two tasks that wait.
func (c *cluster) service() (string, error) {
	if _, err := c.register("trap 'exit 0' TERM; while :; do sleep 0.1; done"); err != nil {
		return "", err
	}
	name := c.world.name("service")
	_, err := c.client.CreateService(c.ctx, &ecs.CreateServiceInput{
		Cluster: &c.name, ServiceName: &name, TaskDefinition: &c.family, DesiredCount: aws.Int32(2), LaunchType: ecstypes.LaunchTypeFargate, NetworkConfiguration: c.network(),
	})
	if err != nil {
		return "", err
	}
	return name, c.until("no task runs", func() (bool, error) {
		tasks, err := c.tasks(name)
		return len(tasks) == 2, err
	})
}

// tasks are the running ones of a service.
func (c *cluster) tasks(service string) ([]string, error) {
	got, err := c.client.ListTasks(c.ctx, &ecs.ListTasksInput{Cluster: &c.name, ServiceName: &service, DesiredStatus: ecstypes.DesiredStatusRunning})
	if err != nil {
		return nil, err
	}
	return got.TaskArns, nil
}

func startsService(w *world) error {
	c, err := w.cluster()
	if err != nil {
		return err
	}
	_, err = c.service()
	return err
}

func replacesTasks(w *world) error {
	c, err := w.cluster()
	if err != nil {
		return err
	}
	name, err := c.service()
	if err != nil {
		return err
	}
	before, err := c.tasks(name)
	if err != nil {
		return err
	}
	if _, err := c.client.UpdateService(c.ctx, &ecs.UpdateServiceInput{Cluster: &c.name, Service: &name, ForceNewDeployment: true}); err != nil {
		return err
	}
	return c.until("the tasks stay", func() (bool, error) {
		after, err := c.tasks(name)
		if err != nil || len(after) != 2 || slices.ContainsFunc(after, func(arn string) bool { return slices.Contains(before, arn) }) {
			return false, err
		}
		got, err := c.client.DescribeServices(c.ctx, &ecs.DescribeServicesInput{Cluster: &c.name, Services: []string{name}})
		if err != nil {
			return false, err
		}
		return len(got.Services) == 1 && len(got.Services[0].Deployments) == 1 && got.Services[0].Deployments[0].RolloutState == ecstypes.DeploymentRolloutStateCompleted, nil
	})
}

func stopsService(w *world) error {
	c, err := w.cluster()
	if err != nil {
		return err
	}
	name, err := c.service()
	if err != nil {
		return err
	}
	if _, err := c.client.UpdateService(c.ctx, &ecs.UpdateServiceInput{Cluster: &c.name, Service: &name, DesiredCount: aws.Int32(0)}); err != nil {
		return err
	}
	return c.until("they run on", func() (bool, error) {
		tasks, err := c.tasks(name)
		return len(tasks) == 0, err
	})
}

func missesService(w *world) error {
	c, err := w.cluster()
	if err != nil {
		return err
	}
	got, err := c.client.DescribeServices(c.ctx, &ecs.DescribeServicesInput{Cluster: &c.name, Services: []string{"absent"}})
	if err == nil && (len(got.Failures) != 1 || aws.ToString(got.Failures[0].Reason) != "MISSING") {
		return wrong("tells of none")
	}
	return err
}

func missesCluster(w *world) error {
	_, err := ecs.NewFromConfig(w.config).DescribeTasks(w.ctx, &ecs.DescribeTasksInput{Cluster: aws.String("absent"), Tasks: []string{"0123456789abcdef0123456789abcdef"}})
	return refuses(err, "ClusterNotFoundException")
}
