//go:build linux

package ecsfake

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// The states of services.
const (
	serviceActive   = "ACTIVE"
	serviceDraining = "DRAINING"
	serviceInactive = "INACTIVE"
)

// service keeps a number of tasks running. The double's lock guards it.
type service struct {
	arn, status   string
	name          *string
	cluster       *types.Cluster
	in            *ecs.CreateServiceInput // as it was created, with what was updated
	definition    *types.TaskDefinition
	desired       int32
	minimum, most int32 // percent
	deployments   []*deployment
	steady        bool // all tasks that are wanted are ready, and no others are left
	events        []types.ServiceEvent
	created       time.Time
}

// deployment is one roll-out of a service. The first one of a service is the primary.
type deployment struct {
	id         string
	definition *types.TaskDefinition
	created    time.Time
	updated    time.Time
	state      types.DeploymentRolloutState
	reason     string
	completed  bool      // it was COMPLETED once
	failed     int32     // tasks in a row that did not become ready
	notBefore  time.Time // when the next task may be started
}

// service finds a service of a cluster that is not deleted. The lock is held.
func (f *Fake) service(cluster *types.Cluster, name string) *service {
	name = name[strings.LastIndex(name, "/")+1:]
	for _, s := range f.services {
		if s.cluster == cluster && *s.name == name && s.status != serviceInactive {
			return s
		}
	}
	return nil
}

// checkService refuses members that the double does not carry out.
func checkService(in *ecs.CreateServiceInput) error {
	unable := map[string]bool{
		"capacityProviderStrategy": len(in.CapacityProviderStrategy) > 0, "serviceConnectConfiguration": in.ServiceConnectConfiguration != nil && in.ServiceConnectConfiguration.Enabled,
		"serviceRegistries": len(in.ServiceRegistries) > 0, "volumeConfigurations": len(in.VolumeConfigurations) > 0, "vpcLatticeConfigurations": len(in.VpcLatticeConfigurations) > 0,
		"gatewayConnectors": len(in.GatewayConnectors) > 0, "monitoring": in.Monitoring != nil, "placementConstraints": len(in.PlacementConstraints)+len(in.PlacementStrategy) > 0,
		"deploymentController": in.DeploymentController != nil && in.DeploymentController.Type != types.DeploymentControllerTypeEcs,
		"schedulingStrategy":   in.SchedulingStrategy != "" && in.SchedulingStrategy != types.SchedulingStrategyReplica,
	}
	if c := in.DeploymentConfiguration; c != nil {
		unable["deploymentConfiguration other than rolling with circuit breaker"] = c.Alarms != nil || c.CanaryConfiguration != nil || c.LinearConfiguration != nil || c.EarlySuccessCriteria != nil ||
			len(c.LifecycleHooks) > 0 || c.BakeTimeInMinutes != nil || c.Strategy != "" && c.Strategy != types.DeploymentStrategyRolling
	}
	for what, is := range unable {
		if is {
			return unsupported(what + " of a service")
		}
	}
	return checkPlacement(in.LaunchType, in.NetworkConfiguration)
}

// createService makes a service and begins its first deployment.
func (f *Fake) createService(in *ecs.CreateServiceInput) (*ecs.CreateServiceOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	cluster, err := f.cluster(in.Cluster)
	if err != nil {
		return nil, err
	}
	switch {
	case !wellNamed(aws.ToString(in.ServiceName)):
		return nil, refuse("InvalidParameterException", "Invalid service name.")
	case f.service(cluster, *in.ServiceName) != nil:
		return nil, refuse("InvalidParameterException", "Creation of service was not idempotent.")
	case in.DesiredCount == nil || *in.DesiredCount < 0:
		return nil, refuse("InvalidParameterException", "Desired count can not be empty, nor negative.")
	}
	if err := checkService(in); err != nil {
		return nil, err
	}
	definition, err := f.definition(aws.ToString(in.TaskDefinition))
	if err != nil {
		return nil, err
	}
	if err := f.checkBalancing(in.LoadBalancers, definition); err != nil {
		return nil, err
	}
	s := &service{
		arn: f.arn("ecs", "service/"+*cluster.ClusterName+"/"+*in.ServiceName), status: serviceActive, name: in.ServiceName, cluster: cluster, in: in,
		definition: definition, desired: *in.DesiredCount, created: time.Now(),
	}
	if err := s.configure(in.DeploymentConfiguration); err != nil {
		return nil, err
	}
	f.deploy(s)
	f.services = append(f.services, s)
	f.run(func() { f.keep(s) })
	f.wake()
	return &ecs.CreateServiceOutput{Service: f.showService(s)}, nil
}

// configure takes the percentages of a rolling deployment.
func (s *service) configure(c *types.DeploymentConfiguration) error {
	s.minimum, s.most = 100, 200
	if c != nil {
		s.minimum, s.most = orDefaultNumber(c.MinimumHealthyPercent, 100), orDefaultNumber(c.MaximumPercent, 200)
	}
	if s.minimum < 0 || s.minimum > 100 || s.most < 100 || s.most > 200 || s.minimum == 100 && s.most == 100 {
		return refuse("InvalidParameterException", "Both maximumPercent and minimumHealthyPercent cannot be 100 as this will block deployments, nor out of 0..100 and 100..200.")
	}
	return nil
}

// checkBalancing refuses target groups that are not there, and ports that no container has. The lock is held.
func (f *Fake) checkBalancing(balancers []types.LoadBalancer, definition *types.TaskDefinition) error {
	for _, b := range balancers {
		g := f.group(aws.ToString(b.TargetGroupArn))
		if g == nil {
			return refuse("InvalidParameterException", "The specified target group does not exist.")
		}
		if !f.balanced(g) {
			return refuse("InvalidParameterException", "The target group with targetGroupArn %s does not have an associated load balancer.", aws.ToString(b.TargetGroupArn))
		}
		if !slices.ContainsFunc(definition.ContainerDefinitions, func(c types.ContainerDefinition) bool {
			return aws.ToString(c.Name) == aws.ToString(b.ContainerName) && slices.ContainsFunc(c.PortMappings, func(p types.PortMapping) bool {
				return aws.ToInt32(p.ContainerPort) == aws.ToInt32(b.ContainerPort)
			})
		}) {
			return refuse("InvalidParameterException", "The container %s did not have a container port %d defined.", aws.ToString(b.ContainerName), aws.ToInt32(b.ContainerPort))
		}
	}
	return nil
}

// deploy begins another deployment of a service. The lock is held.
func (f *Fake) deploy(s *service) *deployment {
	d := &deployment{
		id: fmt.Sprintf("ecs-svc/%019d", f.number()), definition: s.definition, created: time.Now(), updated: time.Now(),
		state: types.DeploymentRolloutStateInProgress,
	}
	d.reason = "ECS deployment " + d.id + " in progress."
	s.deployments = append([]*deployment{d}, s.deployments...)
	return d
}

// updateService changes a service; what concerns its tasks, or force, begins another deployment.
func (f *Fake) updateService(in *ecs.UpdateServiceInput) (*ecs.UpdateServiceOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	cluster, err := f.cluster(in.Cluster)
	if err != nil {
		return nil, err
	}
	s := f.service(cluster, aws.ToString(in.Service))
	if s == nil {
		return nil, refuse("ServiceNotFoundException", "Service not found.")
	}
	if s.status != serviceActive {
		return nil, refuse("ServiceNotActiveException", "Service was not ACTIVE.")
	}
	if in.DesiredCount != nil && *in.DesiredCount < 0 {
		return nil, refuse("InvalidParameterException", "Desired count can not be negative.")
	}
	updated := *s.in
	again := in.ForceNewDeployment
	if in.NetworkConfiguration != nil {
		updated.NetworkConfiguration, again = in.NetworkConfiguration, true
	}
	if in.LoadBalancers != nil {
		updated.LoadBalancers, again = in.LoadBalancers, true
	}
	if in.DeploymentConfiguration != nil {
		updated.DeploymentConfiguration = in.DeploymentConfiguration
	}
	if in.EnableExecuteCommand != nil {
		updated.EnableExecuteCommand = *in.EnableExecuteCommand
	}
	if in.HealthCheckGracePeriodSeconds != nil {
		updated.HealthCheckGracePeriodSeconds = in.HealthCheckGracePeriodSeconds
	}
	updated.CapacityProviderStrategy, updated.ServiceConnectConfiguration, updated.ServiceRegistries = in.CapacityProviderStrategy, in.ServiceConnectConfiguration, in.ServiceRegistries
	updated.PlacementConstraints, updated.PlacementStrategy, updated.DeploymentController = in.PlacementConstraints, in.PlacementStrategy, in.DeploymentController
	updated.VolumeConfigurations, updated.VpcLatticeConfigurations, updated.GatewayConnectors, updated.Monitoring = in.VolumeConfigurations, in.VpcLatticeConfigurations, in.GatewayConnectors, in.Monitoring
	if err := checkService(&updated); err != nil {
		return nil, err
	}
	definition := s.definition
	if in.TaskDefinition != nil {
		if definition, err = f.definition(*in.TaskDefinition); err != nil {
			return nil, err
		}
		again = again || definition != s.definition
	}
	if err := f.checkBalancing(updated.LoadBalancers, definition); err != nil {
		return nil, err
	}
	if err := s.configure(updated.DeploymentConfiguration); err != nil {
		return nil, err
	}
	s.in, s.definition, s.desired = &updated, definition, orDefaultNumber(in.DesiredCount, s.desired)
	if again {
		f.deploy(s)
	}
	f.wake()
	return &ecs.UpdateServiceOutput{Service: f.showService(s)}, nil
}

// deleteService stops a service's tasks and forgets it.
func (f *Fake) deleteService(in *ecs.DeleteServiceInput) (*ecs.DeleteServiceOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	cluster, err := f.cluster(in.Cluster)
	if err != nil {
		return nil, err
	}
	s := f.service(cluster, aws.ToString(in.Service))
	if s == nil {
		return nil, refuse("ServiceNotFoundException", "Service not found.")
	}
	if s.desired > 0 && !aws.ToBool(in.Force) {
		return nil, refuse("InvalidParameterException", "The service cannot be stopped while it is scaled above 0.")
	}
	s.status, s.desired = serviceDraining, 0
	f.wake()
	return &ecs.DeleteServiceOutput{Service: f.showService(s)}, nil
}

// describeServices shows services with their deployments.
func (f *Fake) describeServices(in *ecs.DescribeServicesInput) (*ecs.DescribeServicesOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	cluster, err := f.cluster(in.Cluster)
	if err != nil {
		return nil, err
	}
	if len(in.Services) == 0 || len(in.Services) > 10 {
		return nil, refuse("InvalidParameterException", "Services cannot be empty, nor more than 10.")
	}
	out := &ecs.DescribeServicesOutput{Services: []types.Service{}, Failures: []types.Failure{}}
	for _, name := range in.Services {
		if s := f.service(cluster, name); s != nil {
			out.Services = append(out.Services, *f.showService(s))
		} else {
			out.Failures = append(out.Failures, missing(name))
		}
	}
	return out, nil
}

// listServices lists the ARNs of a cluster's services.
func (f *Fake) listServices(in *ecs.ListServicesInput) (*ecs.ListServicesOutput, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	cluster, err := f.cluster(in.Cluster)
	if err != nil {
		return nil, err
	}
	arns := []string{}
	for _, s := range f.services {
		if s.cluster == cluster && s.status != serviceInactive {
			arns = append(arns, s.arn)
		}
	}
	page, next, err := paged(arns, in.NextToken, orDefaultNumber(in.MaxResults, 10))
	if err != nil {
		return nil, err
	}
	return &ecs.ListServicesOutput{ServiceArns: page, NextToken: next}, nil
}

// showService is a service as AWS describes it. The lock is held.
func (f *Fake) showService(s *service) *types.Service {
	shown := &types.Service{
		ServiceArn: &s.arn, ServiceName: s.name, ClusterArn: s.cluster.ClusterArn, Status: aws.String(s.status), DesiredCount: s.desired,
		LaunchType: types.LaunchTypeFargate, PlatformVersion: aws.String("1.4.0"), SchedulingStrategy: types.SchedulingStrategyReplica,
		TaskDefinition: s.definition.TaskDefinitionArn, LoadBalancers: s.in.LoadBalancers, NetworkConfiguration: s.in.NetworkConfiguration,
		DeploymentController:          &types.DeploymentController{Type: types.DeploymentControllerTypeEcs},
		HealthCheckGracePeriodSeconds: s.in.HealthCheckGracePeriodSeconds, CreatedAt: &s.created, Events: slices.Clone(s.events), Tags: s.in.Tags,
		EnableExecuteCommand: s.in.EnableExecuteCommand, EnableECSManagedTags: s.in.EnableECSManagedTags, PropagateTags: s.in.PropagateTags,
		DeploymentConfiguration: &types.DeploymentConfiguration{MinimumHealthyPercent: aws.Int32(s.minimum), MaximumPercent: aws.Int32(s.most), Strategy: types.DeploymentStrategyRolling},
		Deployments:             []types.Deployment{},
	}
	if c := s.in.DeploymentConfiguration; c != nil {
		shown.DeploymentConfiguration.DeploymentCircuitBreaker = c.DeploymentCircuitBreaker
	}
	slices.Reverse(shown.Events) // the newest first
	for i, d := range s.deployments {
		one := types.Deployment{
			Id: aws.String(d.id), Status: aws.String("ACTIVE"), TaskDefinition: d.definition.TaskDefinitionArn, CreatedAt: aws.Time(d.created), UpdatedAt: aws.Time(d.updated),
			RolloutState: d.state, RolloutStateReason: aws.String(d.reason), FailedTasks: d.failed, LaunchType: types.LaunchTypeFargate, NetworkConfiguration: s.in.NetworkConfiguration,
		}
		if i == 0 {
			one.Status, one.DesiredCount = aws.String("PRIMARY"), s.desired
		}
		for _, t := range f.tasks {
			switch {
			case t.deployment != d:
			case t.last == running:
				one.RunningCount++
			case t.desired == running:
				one.PendingCount++
			}
		}
		shown.RunningCount += one.RunningCount
		shown.PendingCount += one.PendingCount
		shown.Deployments = append(shown.Deployments, one)
	}
	return shown
}
