// Package ecs knows how a service of Amazon ECS takes a new certificate: all its tasks are replaced by a forced deployment,
// which is watched to its end, and every new task is looked at by a handshake of its own.
package ecs

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"countersign.dev/aws/session"
	"countersign.dev/rotate"
)

// Times between two looks at a deployment.
const (
	firstPause = 2 * time.Second
	lastPause  = 15 * time.Second
	// settle is how long an answer of before may be ECS's: its API is consistent in the end, and not at once.
	settle = time.Minute
)

// Config says which service it is.
type Config struct {
	// Region and Endpoint are as in [session.Config].
	Region, Endpoint string
	// Cluster and Service are names, or ARNs.
	Cluster, Service string
}

// client is what is used of the SDK's.
type client interface {
	UpdateService(ctx context.Context, in *awsecs.UpdateServiceInput, options ...func(*awsecs.Options)) (*awsecs.UpdateServiceOutput, error)
	DescribeServices(ctx context.Context, in *awsecs.DescribeServicesInput, options ...func(*awsecs.Options)) (*awsecs.DescribeServicesOutput, error)
	ListTasks(ctx context.Context, in *awsecs.ListTasksInput, options ...func(*awsecs.Options)) (*awsecs.ListTasksOutput, error)
	DescribeTasks(ctx context.Context, in *awsecs.DescribeTasksInput, options ...func(*awsecs.Options)) (*awsecs.DescribeTasksOutput, error)
}

// Service is one service of a cluster. It is a [rotate.Rollout] and a [rotate.Observer], and safe for concurrent use.
type Service struct {
	client           client
	region           string
	cluster, service string

	first, last time.Duration // between two looks; each is longer than the one before
	settle      time.Duration
}

// Open makes a client for a service. Nothing is asked yet. Errors are those of [session.Load].
func Open(ctx context.Context, c Config) (*Service, error) {
	if c.Cluster == "" || c.Service == "" {
		return nil, errors.New("a service of ECS needs the names of its cluster and its own: write 'deploy: {type: ecs, cluster: ..., service: ...}'")
	}
	loaded, err := session.Load(ctx, session.Config{Region: c.Region, Endpoint: c.Endpoint})
	if err != nil {
		return nil, err
	}
	return &Service{
		client: awsecs.NewFromConfig(loaded), region: loaded.Region, cluster: c.Cluster, service: c.Service,
		first: firstPause, last: lastPause, settle: settle,
	}, nil
}

// name is the last part of an ARN, or the name itself.
func name(arn string) string { return arn[strings.LastIndexByte(arn, '/')+1:] }

// arn is the ARN of something in the cluster, as far as it is known: AWS fills in the account when it refuses something.
func (s *Service) arn(kind, what string) string {
	return fmt.Sprintf("arn:aws:ecs:%s:*:%s/%s/%s", s.region, kind, name(s.cluster), what)
}

// refused are AWS's names of errors that stay the same however often one asks.
var refused = map[string]bool{
	"ClusterNotFoundException": true, "ServiceNotFoundException": true, "ServiceNotActiveException": true, "InvalidParameterException": true,
	"ClientException": true, "PlatformUnknownException": true, "PlatformTaskDefinitionIncompatibilityException": true,
	"UnsupportedFeatureException": true, "NamespaceNotFoundException": true,
}

// explain says what an error of ECS means.
func (s *Service) explain(err error, action, resource string) error {
	err = session.Explain(err, "ecs:"+action, resource)
	if session.Code(err) == "ClusterNotFoundException" {
		err = fmt.Errorf("there is no cluster %s in %s; see 'deploy' in the specification: %w", s.cluster, s.region, err)
	}
	return err
}

// final makes an error [rotate.ErrRolloutFailed] that stays the same however often one asks.
func final(err error) error {
	if errors.Is(err, rotate.ErrRolloutFailed) || !refused[session.Code(err)] {
		return err
	}
	return fmt.Errorf("%w: %w", rotate.ErrRolloutFailed, err)
}

// describe asks for the service. One that is not there, or cannot be deployed to, is [rotate.ErrRolloutFailed].
func (s *Service) describe(ctx context.Context) (*types.Service, error) {
	out, err := s.client.DescribeServices(ctx, &awsecs.DescribeServicesInput{Cluster: &s.cluster, Services: []string{s.service}})
	if err != nil {
		return nil, s.explain(err, "DescribeServices", s.arn("service", name(s.service)))
	}
	if len(out.Services) == 0 {
		reason := "MISSING"
		if len(out.Failures) > 0 {
			reason = aws.ToString(out.Failures[0].Reason)
		}
		return nil, fmt.Errorf("%w: the cluster %s has no service %s (%s); see 'deploy' in the specification, or deploy the service first", rotate.ErrRolloutFailed, s.cluster, s.service, plain(reason))
	}
	service := &out.Services[0]
	if status := aws.ToString(service.Status); status != "ACTIVE" {
		return nil, fmt.Errorf("%w: the service %s of the cluster %s is %s: it was deleted, and starts no tasks any more", rotate.ErrRolloutFailed, s.service, s.cluster, plain(status))
	}
	if c := service.DeploymentController; c != nil && c.Type != "" && c.Type != types.DeploymentControllerTypeEcs {
		return nil, fmt.Errorf("%w: the deployments of the service %s are %s's, not ECS's, and cannot be forced from here; deploy it there after a rotation with --no-deploy, "+
			"or give it the deployment controller ECS", rotate.ErrRolloutFailed, s.service, plain(string(c.Type)))
	}
	return service, nil
}

// maxTasks is how many tasks one call takes (API reference, DescribeTasks and ListTasks).
const maxTasks = 100

// tasks gives the service's tasks that are to run, or those that have stopped a while ago: at most limit, 0 for all.
func (s *Service) tasks(ctx context.Context, status types.DesiredStatus, limit int) ([]types.Task, error) {
	var arns []string
	for next := (*string)(nil); ; {
		out, err := s.client.ListTasks(ctx, &awsecs.ListTasksInput{Cluster: &s.cluster, ServiceName: &s.service, DesiredStatus: status, NextToken: next})
		if err != nil {
			return nil, s.explain(err, "ListTasks", s.arn("container-instance", "*"))
		}
		arns = append(arns, out.TaskArns...)
		if next = out.NextToken; aws.ToString(next) == "" || (limit > 0 && len(arns) >= limit) {
			break
		}
	}
	if limit > 0 {
		arns = arns[:min(limit, len(arns))]
	}
	var tasks []types.Task
	for len(arns) > 0 {
		some := arns[:min(maxTasks, len(arns))]
		arns = arns[len(some):]
		out, err := s.client.DescribeTasks(ctx, &awsecs.DescribeTasksInput{Cluster: &s.cluster, Tasks: some})
		if err != nil {
			return nil, s.explain(err, "DescribeTasks", s.arn("task", "*"))
		}
		tasks = append(tasks, out.Tasks...) // one that is gone meanwhile is no task any more
	}
	return tasks, nil
}

// plain is a text of AWS's for one line of a message.
func plain(text string) string {
	const most = 300
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + " ..."
	}
	return text
}
