package stack

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	elbv2 "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
)

type cluster struct {
	ClusterName                     *string
	ClusterSettings                 []types.ClusterSetting
	Configuration                   *types.ClusterConfiguration
	CapacityProviders               []string
	DefaultCapacityProviderStrategy []types.CapacityProviderStrategyItem
	Tags                            []types.Tag
}

// makeCluster creates a cluster.
func makeCluster(ctx context.Context, s *Stack, id string, properties map[string]any, _ *Resource) (result, error) {
	p, err := decode[cluster](properties)
	if err != nil {
		return result{}, err
	}
	out, err := s.clients.ecs.CreateCluster(ctx, &ecs.CreateClusterInput{
		ClusterName: s.named(p.ClusterName, id, 255), Settings: p.ClusterSettings, Configuration: p.Configuration,
		CapacityProviders: p.CapacityProviders, DefaultCapacityProviderStrategy: p.DefaultCapacityProviderStrategy, Tags: p.Tags,
	})
	if err != nil {
		return result{}, fmt.Errorf("create the cluster: %w", err)
	}
	return result{aws.ToString(out.Cluster.ClusterName), map[string]string{"Arn": aws.ToString(out.Cluster.ClusterArn)}}, nil
}

// makeTaskDefinition registers a revision, and another one when it differs.
func makeTaskDefinition(ctx context.Context, s *Stack, id string, properties map[string]any, old *Resource) (result, error) {
	in, err := decode[ecs.RegisterTaskDefinitionInput](properties)
	if err != nil {
		return result{}, err
	}
	if old != nil && in.Family == nil {
		family, _, _ := strings.Cut(old.Physical[strings.LastIndex(old.Physical, "/")+1:], ":")
		in.Family = &family
	}
	in.Family = s.named(in.Family, id, 255)
	out, err := s.clients.ecs.RegisterTaskDefinition(ctx, in)
	if err != nil {
		return result{}, fmt.Errorf("register the task definition: %w", err)
	}
	arn := aws.ToString(out.TaskDefinition.TaskDefinitionArn)
	return result{arn, map[string]string{"TaskDefinitionArn": arn}}, nil
}

// makeService creates a service or updates it, and waits until its tasks are in a steady state, as CloudFormation does.
func makeService(ctx context.Context, s *Stack, id string, properties map[string]any, old *Resource) (result, error) {
	in, err := decode[ecs.CreateServiceInput](properties)
	if err != nil {
		return result{}, err
	}
	if old != nil {
		in.ServiceName = aws.String(old.Attributes["Name"])
	}
	in.ServiceName = s.named(in.ServiceName, id, 255)
	var service *types.Service
	if old == nil {
		out, err := s.clients.ecs.CreateService(ctx, in)
		if err != nil {
			return result{}, fmt.Errorf("create the service: %w", err)
		}
		service = out.Service
	} else {
		if err := onlyChanged(old.Properties, properties, "DesiredCount", "TaskDefinition", "DeploymentConfiguration", "NetworkConfiguration", "LoadBalancers", "HealthCheckGracePeriodSeconds"); err != nil {
			return result{}, err
		}
		update := &ecs.UpdateServiceInput{
			Cluster: in.Cluster, Service: in.ServiceName, DesiredCount: in.DesiredCount, TaskDefinition: in.TaskDefinition,
			DeploymentConfiguration: in.DeploymentConfiguration, HealthCheckGracePeriodSeconds: in.HealthCheckGracePeriodSeconds,
		}
		// Each of these begins another deployment, also when it is what it was.
		if onlyChanged(old.Properties, properties, "DesiredCount", "TaskDefinition", "DeploymentConfiguration", "HealthCheckGracePeriodSeconds") != nil {
			update.NetworkConfiguration, update.LoadBalancers = in.NetworkConfiguration, in.LoadBalancers
		}
		out, err := s.clients.ecs.UpdateService(ctx, update)
		if err != nil {
			return result{}, fmt.Errorf("update the service: %w", err)
		}
		service = out.Service
	}
	made := result{aws.ToString(service.ServiceArn), map[string]string{"Name": *in.ServiceName, "ServiceArn": aws.ToString(service.ServiceArn)}}
	return made, s.settle(ctx, in.Cluster, service)
}

// poll is how long the double waits between two looks.
const poll = 20 * time.Millisecond

// settle waits until the deployment that is the primary now is complete.
func (s *Stack) settle(ctx context.Context, cluster *string, service *types.Service) error {
	want := aws.ToString(service.Deployments[0].Id)
	for {
		out, err := s.clients.ecs.DescribeServices(ctx, &ecs.DescribeServicesInput{Cluster: cluster, Services: []string{*service.ServiceArn}})
		if err != nil {
			return fmt.Errorf("look at the service: %w", err)
		}
		if len(out.Services) != 1 {
			return errors.New("the service is gone")
		}
		now := out.Services[0]
		primary := now.Deployments[0]
		switch {
		case aws.ToString(primary.Id) != want:
			return fmt.Errorf("the deployment %s was rolled back", want)
		case primary.RolloutState == types.DeploymentRolloutStateFailed:
			return fmt.Errorf("the deployment failed: %s", aws.ToString(primary.RolloutStateReason))
		case primary.RolloutState == types.DeploymentRolloutStateCompleted && primary.RunningCount == now.DesiredCount && len(now.Deployments) == 1:
			return nil
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("wait for the service to become steady: %w", err)
		}
	}
}

// pause waits a moment.
func pause(ctx context.Context) error {
	timer := time.NewTimer(poll)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

type balancer struct {
	elbv2.CreateLoadBalancerInput
	LoadBalancerAttributes []elb.LoadBalancerAttribute
}

// makeBalancer creates a load balancer.
func makeBalancer(ctx context.Context, s *Stack, id string, properties map[string]any, _ *Resource) (result, error) {
	p, err := decode[balancer](properties)
	if err != nil {
		return result{}, err
	}
	p.Name = s.named(p.Name, id, 32)
	out, err := s.clients.balancer.CreateLoadBalancer(ctx, &p.CreateLoadBalancerInput)
	if err != nil {
		return result{}, fmt.Errorf("create the load balancer: %w", err)
	}
	b := out.LoadBalancers[0]
	if len(p.LoadBalancerAttributes) > 0 {
		if _, err := s.clients.balancer.ModifyLoadBalancerAttributes(ctx, &elbv2.ModifyLoadBalancerAttributesInput{LoadBalancerArn: b.LoadBalancerArn, Attributes: p.LoadBalancerAttributes}); err != nil {
			return result{}, fmt.Errorf("set the load balancer's attributes: %w", err)
		}
	}
	arn := aws.ToString(b.LoadBalancerArn)
	_, full, _ := strings.Cut(arn, ":loadbalancer/")
	return result{arn, map[string]string{
		"DNSName": aws.ToString(b.DNSName), "LoadBalancerName": aws.ToString(b.LoadBalancerName), "LoadBalancerArn": arn, "LoadBalancerFullName": full,
		"CanonicalHostedZoneID": aws.ToString(b.CanonicalHostedZoneId),
	}}, nil
}

type targetGroup struct {
	elbv2.CreateTargetGroupInput
	TargetGroupAttributes []elb.TargetGroupAttribute
}

// makeTargetGroup creates a target group.
func makeTargetGroup(ctx context.Context, s *Stack, id string, properties map[string]any, _ *Resource) (result, error) {
	p, err := decode[targetGroup](properties)
	if err != nil {
		return result{}, err
	}
	p.Name = s.named(p.Name, id, 32)
	out, err := s.clients.balancer.CreateTargetGroup(ctx, &p.CreateTargetGroupInput)
	if err != nil {
		return result{}, fmt.Errorf("create the target group: %w", err)
	}
	arn := aws.ToString(out.TargetGroups[0].TargetGroupArn)
	if len(p.TargetGroupAttributes) > 0 {
		if _, err := s.clients.balancer.ModifyTargetGroupAttributes(ctx, &elbv2.ModifyTargetGroupAttributesInput{TargetGroupArn: &arn, Attributes: p.TargetGroupAttributes}); err != nil {
			return result{}, fmt.Errorf("set the target group's attributes: %w", err)
		}
	}
	return result{arn, map[string]string{"TargetGroupArn": arn, "TargetGroupName": *p.Name, "TargetGroupFullName": arn[strings.LastIndex(arn, ":")+1:]}}, nil
}

// makeListener creates a listener.
func makeListener(ctx context.Context, s *Stack, _ string, properties map[string]any, _ *Resource) (result, error) {
	in, err := decode[elbv2.CreateListenerInput](properties)
	if err != nil {
		return result{}, err
	}
	out, err := s.clients.balancer.CreateListener(ctx, in)
	if err != nil {
		return result{}, fmt.Errorf("create the listener: %w", err)
	}
	arn := aws.ToString(out.Listeners[0].ListenerArn)
	return result{arn, map[string]string{"ListenerArn": arn}}, nil
}
