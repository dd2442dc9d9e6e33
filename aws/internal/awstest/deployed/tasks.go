//go:build linux

package deployed

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"countersign.dev/mtls"
)

// poll is how long is waited between two looks.
const poll = 20 * time.Millisecond

// service is where a workload runs.
func (m *Mesh) service(ctx context.Context, workload string) (*types.Service, error) {
	plan, err := m.spec.Compile(workload)
	if err != nil {
		return nil, err
	}
	if plan.ECS == nil {
		return nil, fmt.Errorf("%s is not deployed on ECS", workload)
	}
	out, err := m.admin.DescribeServices(ctx, &ecs.DescribeServicesInput{Cluster: &plan.ECS.Cluster, Services: []string{plan.ECS.Service}})
	if err != nil {
		return nil, fmt.Errorf("look at the service %s: %w", workload, err)
	}
	if len(out.Services) != 1 {
		return nil, fmt.Errorf("there is no service %s", workload)
	}
	return &out.Services[0], nil
}

// StartTask starts one task of a workload that belongs to no service, and gives its ARN.
func (m *Mesh) StartTask(ctx context.Context, workload string) (string, error) {
	s, err := m.service(ctx, workload)
	if err != nil {
		return "", err
	}
	out, err := m.admin.RunTask(ctx, &ecs.RunTaskInput{
		Cluster: s.ClusterArn, TaskDefinition: s.TaskDefinition, NetworkConfiguration: s.NetworkConfiguration, LaunchType: types.LaunchTypeFargate,
	})
	if err != nil {
		return "", fmt.Errorf("start a task of %s: %w", workload, err)
	}
	return aws.ToString(out.Tasks[0].TaskArn), nil
}

// Task describes a task of a workload by its ARN.
func (m *Mesh) Task(ctx context.Context, workload, task string) (types.Task, error) {
	s, err := m.service(ctx, workload)
	if err != nil {
		return types.Task{}, err
	}
	out, err := m.admin.DescribeTasks(ctx, &ecs.DescribeTasksInput{Cluster: s.ClusterArn, Tasks: []string{task}})
	if err != nil {
		return types.Task{}, fmt.Errorf("look at the task %s: %w", task, err)
	}
	if len(out.Tasks) != 1 {
		return types.Task{}, fmt.Errorf("there is no task %s", task)
	}
	return out.Tasks[0], nil
}

// Stopped waits until a task has stopped, and describes it.
func (m *Mesh) Stopped(ctx context.Context, workload, task string) (types.Task, error) {
	for {
		found, err := m.Task(ctx, workload, task)
		if err != nil || aws.ToString(found.LastStatus) == "STOPPED" {
			return found, err
		}
		if err := pause(ctx); err != nil {
			return found, fmt.Errorf("wait for the end of the task %s, which is %s: %w", task, aws.ToString(found.LastStatus), err)
		}
	}
}

// Tasks describes the tasks of a workload's service that are to run, in the order of their ARNs.
func (m *Mesh) Tasks(ctx context.Context, workload string) ([]types.Task, error) {
	s, err := m.service(ctx, workload)
	if err != nil {
		return nil, err
	}
	list, err := m.admin.ListTasks(ctx, &ecs.ListTasksInput{Cluster: s.ClusterArn, ServiceName: s.ServiceName})
	if err != nil || len(list.TaskArns) == 0 {
		return nil, err
	}
	out, err := m.admin.DescribeTasks(ctx, &ecs.DescribeTasksInput{Cluster: s.ClusterArn, Tasks: list.TaskArns})
	if err != nil {
		return nil, fmt.Errorf("look at the tasks of %s: %w", workload, err)
	}
	slices.SortFunc(out.Tasks, func(a, b types.Task) int { return strings.Compare(*a.TaskArn, *b.TaskArn) })
	return out.Tasks, nil
}

// Address is where a task has a port: an IPv4 address, and the port.
func Address(task types.Task, port int) (string, error) {
	for _, attachment := range task.Attachments {
		for _, detail := range attachment.Details {
			if aws.ToString(detail.Name) == "privateIPv4Address" {
				return net.JoinHostPort(aws.ToString(detail.Value), strconv.Itoa(port)), nil
			}
		}
	}
	return "", fmt.Errorf("the task %s has no address", aws.ToString(task.TaskArn))
}

// Serial is that of the certificate which a TLS server at an address shows in a handshake, as this product writes serials. Whether the
// handshake could be ended (the server may want a certificate, of which there is none) does not matter.
func Serial(ctx context.Context, address string) (string, error) {
	serial := ""
	dialer := &tls.Dialer{Config: &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // it is to be seen, not believed
		MinVersion:         tls.VersionTLS12,
		VerifyConnection: func(state tls.ConnectionState) error {
			serial = mtls.Serial(state.PeerCertificates[0])
			return nil
		},
	}}
	conn, err := dialer.DialContext(ctx, "tcp4", address)
	if err == nil {
		err = conn.Close()
	}
	if serial != "" {
		return serial, nil
	}
	return "", fmt.Errorf("a handshake with %s: %w", address, err)
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
