package ecs

import (
	"context"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// Running is what ECS says of the tasks of a service, to whoever wants to look at them himself.
type Running struct {
	// Tasks are those that run and are to go on, in the order of their ids.
	Tasks []Task
	// Starting are on their way to run. Desired is how many are to run; it is asked for, and not 0, only when none does.
	Starting, Desired int
}

// Task is one of them.
type Task struct {
	// ID is the last part of its ARN.
	ID string
	// Address is that of its network interface; empty when it has none of its own (another network mode than awsvpc).
	Address string
	// Created is when ECS made it, which is before its containers read any secret; zero when ECS does not say.
	Created time.Time
	// Unhealthy tells that ECS finds it so.
	Unhealthy bool
}

// Running asks for the tasks of the service. Errors are those of [session.Explain], and [rotate.ErrRolloutFailed] for a
// service that is not there.
//
// [session.Explain]: https://pkg.go.dev/countersign.dev/aws/session#Explain
// [rotate.ErrRolloutFailed]: https://pkg.go.dev/countersign.dev/rotate#pkg-variables
func (s *Service) Running(ctx context.Context) (Running, error) {
	all, starting, err := s.live(ctx)
	if err != nil {
		return Running{}, err
	}
	r := Running{Starting: starting}
	for _, task := range all {
		r.Tasks = append(r.Tasks, Task{
			ID: name(aws.ToString(task.TaskArn)), Address: address(task), Created: aws.ToTime(task.CreatedAt).UTC(),
			Unhealthy: task.HealthStatus == types.HealthStatusUnhealthy,
		})
	}
	if len(all) > 0 {
		return r, nil
	}
	service, err := s.describe(ctx)
	if err != nil {
		return Running{}, err
	}
	r.Desired = int(service.DesiredCount)
	return r, nil
}
