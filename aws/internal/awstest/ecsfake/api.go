//go:build linux

package ecsfake

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"countersign.dev/aws/internal/awstest/ecsfake/shape"
)

// operation carries out one call, from its document to the answer's.
type operation func(f *Fake, document any) (any, error)

// call makes an operation of a method that takes and gives the SDK's types.
func call[In, Out any](method func(*Fake, *In) (*Out, error)) operation {
	return func(f *Fake, document any) (any, error) {
		in := new(In)
		if err := shape.Fill(in, document, "request"); err != nil {
			return nil, refuse("ClientException", "%v", err)
		}
		out, err := method(f, in)
		if err != nil {
			return nil, err
		}
		// What is answered points into the double's state.
		f.mu.Lock()
		defer f.mu.Unlock()
		return shape.JSON(out), nil
	}
}

// operations are the calls of ECS that the double knows.
var operations = map[string]operation{
	"CreateCluster":            call((*Fake).createCluster),
	"DescribeClusters":         call((*Fake).describeClusters),
	"RegisterTaskDefinition":   call((*Fake).registerTaskDefinition),
	"DescribeTaskDefinition":   call((*Fake).describeTaskDefinition),
	"DeregisterTaskDefinition": call((*Fake).deregisterTaskDefinition),
	"ListTaskDefinitions":      call((*Fake).listTaskDefinitions),
	"RunTask":                  call((*Fake).runTask),
	"StopTask":                 call((*Fake).stopTaskCall),
	"DescribeTasks":            call((*Fake).describeTasks),
	"ListTasks":                call((*Fake).listTasks),
	"CreateService":            call((*Fake).createService),
	"UpdateService":            call((*Fake).updateService),
	"DeleteService":            call((*Fake).deleteService),
	"DescribeServices":         call((*Fake).describeServices),
	"ListServices":             call((*Fake).listServices),
}

// callECS decodes, carries out and encodes one call.
func (f *Fake) callECS(action string, body []byte) (any, error) {
	perform, known := operations[action]
	if !known {
		return nil, unsupported("ecs:" + action)
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.UseNumber()
	var document any
	if err := decoder.Decode(&document); err != nil {
		return nil, refuse("SerializationException", "%v", err)
	}
	return perform(f, document)
}

// createCluster makes a cluster, or gives the one of this name.
func (f *Fake) createCluster(in *ecs.CreateClusterInput) (*ecs.CreateClusterOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := orDefault(aws.ToString(in.ClusterName), "default")
	if !wellNamed(name) {
		return nil, refuse("InvalidParameterException", "Invalid cluster name.")
	}
	if f.clusters[name] == nil {
		f.clusters[name] = &types.Cluster{
			ClusterName: &name, ClusterArn: aws.String(f.arn("ecs", "cluster/"+name)), Status: aws.String("ACTIVE"),
			Settings: in.Settings, Configuration: in.Configuration, CapacityProviders: in.CapacityProviders,
			DefaultCapacityProviderStrategy: in.DefaultCapacityProviderStrategy, Tags: in.Tags,
		}
	}
	return &ecs.CreateClusterOutput{Cluster: f.clusters[name]}, nil
}

// cluster finds a cluster by name or ARN. The lock is held.
func (f *Fake) cluster(name *string) (*types.Cluster, error) {
	short := orDefault(aws.ToString(name), "default")
	short = short[strings.LastIndex(short, "/")+1:]
	if cluster := f.clusters[short]; cluster != nil {
		return cluster, nil
	}
	return nil, refuse("ClusterNotFoundException", "Cluster not found.")
}

// describeClusters shows clusters, with what runs in them.
func (f *Fake) describeClusters(in *ecs.DescribeClustersInput) (*ecs.DescribeClustersOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &ecs.DescribeClustersOutput{Clusters: []types.Cluster{}, Failures: []types.Failure{}}
	names := in.Clusters
	if len(names) == 0 {
		names = []string{"default"}
	}
	for _, name := range names {
		cluster, err := f.cluster(&name)
		if err != nil {
			out.Failures = append(out.Failures, missing(name))
			continue
		}
		shown := *cluster
		for _, t := range f.tasks {
			switch {
			case t.cluster != cluster:
			case t.last == running:
				shown.RunningTasksCount++
			case t.desired == running:
				shown.PendingTasksCount++
			}
		}
		for _, s := range f.services {
			if s.cluster == cluster && s.status == serviceActive {
				shown.ActiveServicesCount++
			}
		}
		out.Clusters = append(out.Clusters, shown)
	}
	return out, nil
}

// missing is how AWS says that something is not there.
func missing(name string) types.Failure {
	return types.Failure{Arn: aws.String(name), Reason: aws.String("MISSING")}
}

// runTask starts tasks of their own.
func (f *Fake) runTask(in *ecs.RunTaskInput) (*ecs.RunTaskOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	cluster, err := f.cluster(in.Cluster)
	if err != nil {
		return nil, err
	}
	definition, err := f.definition(aws.ToString(in.TaskDefinition))
	if err != nil {
		return nil, err
	}
	if definition.Status != types.TaskDefinitionStatusActive {
		return nil, invalid("TaskDefinition is inactive")
	}
	if err := checkPlacement(in.LaunchType, in.NetworkConfiguration); err != nil {
		return nil, err
	}
	count := orDefaultNumber(in.Count, 1)
	if count < 1 || count > 10 {
		return nil, refuse("InvalidParameterException", "count should be between 1 and 10.")
	}
	if err := checkOverrides(in.Overrides, definition); err != nil {
		return nil, err
	}
	out := &ecs.RunTaskOutput{Tasks: []types.Task{}, Failures: []types.Failure{}}
	for range count {
		t := f.launch(&task{
			cluster: cluster, definition: definition, overrides: in.Overrides, tags: in.Tags, startedBy: aws.ToString(in.StartedBy),
			group: orDefault(aws.ToString(in.Group), "family:"+aws.ToString(definition.Family)),
		})
		out.Tasks = append(out.Tasks, t.show())
	}
	return out, nil
}

// checkPlacement refuses a task that is not for Fargate, or has no network.
func checkPlacement(launch types.LaunchType, network *types.NetworkConfiguration) error {
	if launch != "" && launch != types.LaunchTypeFargate {
		return unsupported("the launch type " + string(launch))
	}
	if network == nil || network.AwsvpcConfiguration == nil || len(network.AwsvpcConfiguration.Subnets) == 0 {
		return refuse("InvalidParameterException", "Network Configuration must be provided when networkMode 'awsvpc' is specified.")
	}
	return nil
}

// checkOverrides refuses overrides of containers that are not there, and those that the double does not carry out.
func checkOverrides(overrides *types.TaskOverride, definition *types.TaskDefinition) error {
	if overrides == nil {
		return nil
	}
	if overrides.ExecutionRoleArn != nil || overrides.EphemeralStorage != nil {
		return unsupported("overrides of execution role and storage")
	}
	for _, o := range overrides.ContainerOverrides {
		if !slices.ContainsFunc(definition.ContainerDefinitions, func(c types.ContainerDefinition) bool { return aws.ToString(c.Name) == aws.ToString(o.Name) }) {
			return refuse("InvalidParameterException", "Override for container named %s is not a container in the TaskDefinition.", aws.ToString(o.Name))
		}
		if len(o.EnvironmentFiles) > 0 || len(o.ResourceRequirements) > 0 {
			return unsupported("overrides of environment files and resources")
		}
	}
	return nil
}

// stopTaskCall stops a task; of a service, another one comes.
func (f *Fake) stopTaskCall(in *ecs.StopTaskInput) (*ecs.StopTaskOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, err := f.cluster(in.Cluster); err != nil {
		return nil, err
	}
	t := f.find(aws.ToString(in.Task))
	if t == nil {
		return nil, refuse("InvalidParameterException", "The referenced task was not found.")
	}
	f.stopTask(t, types.TaskStopCodeUserInitiated, orDefault(aws.ToString(in.Reason), "Task stopped by user"))
	shown := t.show()
	return &ecs.StopTaskOutput{Task: &shown}, nil
}

// describeTasks shows tasks, also those that have stopped.
func (f *Fake) describeTasks(in *ecs.DescribeTasksInput) (*ecs.DescribeTasksOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	cluster, err := f.cluster(in.Cluster)
	if err != nil {
		return nil, err
	}
	if len(in.Tasks) == 0 || len(in.Tasks) > 100 {
		return nil, refuse("InvalidParameterException", "Tasks cannot be empty, nor more than 100.")
	}
	out := &ecs.DescribeTasksOutput{Tasks: []types.Task{}, Failures: []types.Failure{}}
	for _, name := range in.Tasks {
		if t := f.find(name); t != nil && t.cluster == cluster {
			out.Tasks = append(out.Tasks, t.show())
		} else {
			out.Failures = append(out.Failures, missing(name))
		}
	}
	return out, nil
}

// listTasks lists ARNs, of those that are to run unless others are asked for.
func (f *Fake) listTasks(in *ecs.ListTasksInput) (*ecs.ListTasksOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	cluster, err := f.cluster(in.Cluster)
	if err != nil {
		return nil, err
	}
	if in.ContainerInstance != nil || in.DaemonName != nil || in.LaunchType != "" && in.LaunchType != types.LaunchTypeFargate {
		return nil, unsupported("lists by container instance, daemon or another launch type")
	}
	desired := orDefault(string(in.DesiredStatus), running)
	service := aws.ToString(in.ServiceName)
	service = service[strings.LastIndex(service, "/")+1:]
	if service != "" && f.service(cluster, service) == nil {
		return nil, refuse("ServiceNotFoundException", "Service not found.")
	}
	arns := []string{}
	for _, t := range f.tasks {
		if t.cluster == cluster && t.desired == desired &&
			(service == "" || t.group == "service:"+service) &&
			(in.Family == nil || aws.ToString(t.definition.Family) == *in.Family) &&
			(in.StartedBy == nil || t.startedBy == *in.StartedBy) {
			arns = append(arns, t.arn)
		}
	}
	page, next, err := paged(arns, in.NextToken, orDefaultNumber(in.MaxResults, 100))
	if err != nil {
		return nil, err
	}
	return &ecs.ListTasksOutput{TaskArns: page, NextToken: next}, nil
}

// paged is the page of a list that begins where the token says.
func paged(all []string, token *string, most int32) (page []string, next *string, err error) {
	from := 0
	if token != nil {
		if _, err := fmt.Sscanf(*token, "from-%d", &from); err != nil || from < 0 || from > len(all) {
			return nil, nil, refuse("InvalidParameterException", "Invalid token %q.", *token)
		}
	}
	if most < 1 || most > 100 {
		return nil, nil, refuse("InvalidParameterException", "maxResults should be between 1 and 100.")
	}
	if len(all)-from > int(most) {
		return all[from : from+int(most)], aws.String(fmt.Sprintf("from-%d", from+int(most))), nil
	}
	return all[from:], nil, nil
}
