package main

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"countersign.dev/aws/ecs"
	"countersign.dev/aws/session"
	"countersign.dev/expiry"
	"countersign.dev/mesh"
)

// tasks asks Amazon ECS for the tasks of the workloads that it runs, and notes whose instances nobody knows.
func (s *seen) tasks(ctx context.Context) {
	if s.spec == nil {
		return
	}
	ctx, done := context.WithTimeoutCause(ctx, s.patience, fmt.Errorf("ECS does not answer within %s; can it be reached from here?", s.patience))
	defer done()
	alone := s.admin == nil && s.spec.ServerCan() != nil // no server has this mesh in its care
	var mu sync.Mutex
	lost := make(map[[3]string][]string) // who is not known, by the cluster, the problem, and what helps against it
	var group errgroup.Group
	group.SetLimit(maxLooks)
	for n, plan := range s.plans {
		w := &s.facts.Workloads[n]
		if plan.Deploy != mesh.DeployECS {
			w.NotLookedAt = alone && !s.known && len(w.Instances) == 0
			continue
		}
		w.InstancesKnown = false // a server knows none of them
		if slices.Contains(s.silent, plan.Delivery.Store) {
			continue // it was said, and would be the same
		}
		group.Go(func() error {
			if err := s.tasksOf(ctx, plan, w); err != nil {
				mu.Lock()
				defer mu.Unlock()
				at := [3]string{plan.ECS.Cluster, because(ctx, err).Error()}
				if session.Everywhere(err) {
					at[2] = remedyFor(err)
				}
				lost[at] = append(lost[at], w.Name)
			}
			return nil
		})
	}
	_ = group.Wait() // what went wrong is in lost
	order := slices.SortedFunc(maps.Keys(lost), func(a, b [3]string) int { return slices.Compare(a[:], b[:]) })
	for _, at := range order {
		names := lost[at]
		slices.Sort(names)
		s.facts.Unreached = append(s.facts.Unreached, expiry.Unreached{
			Code: expiry.CodeTasks, Place: "ecs:" + at[0], Problem: at[1], Lost: "what the tasks of " + strings.Join(names, ", ") + " serve", Remedy: at[2],
		})
	}
}

// tasksOf asks for the tasks of one workload: each is an instance.
func (s *seen) tasksOf(ctx context.Context, plan *mesh.Plan, w *expiry.Workload) error {
	_, authority := s.spec.AuthorityOf(plan.Workload.Name)
	service, err := s.cloud.service(ctx, plan, authority)
	if err != nil {
		return err
	}
	running, err := service.Running(ctx)
	if err != nil {
		return err
	}
	w.InstancesKnown = true
	w.Tasks = &expiry.Tasks{
		Service: plan.ECS.Cluster + "/" + plan.ECS.Service, Replace: replaceCommand(plan), Desired: running.Desired, Starting: running.Starting,
	}
	for _, task := range running.Tasks {
		w.Instances = append(w.Instances, taskInstance(plan, task))
	}
	return nil
}

// replaceCommand has ECS replace all tasks of a workload.
func replaceCommand(plan *mesh.Plan) string {
	command := "aws ecs update-service --cluster " + plan.ECS.Cluster + " --service " + plan.ECS.Service + " --force-new-deployment"
	if region := plan.Delivery.Store.Region; region != "" {
		command += " --region " + region
	}
	return command
}

// taskInstance is what is to be looked at of a task.
func taskInstance(plan *mesh.Plan, task ecs.Task) expiry.Instance {
	i := expiry.Instance{Name: task.ID, Connected: true, Started: task.Created}
	if task.Unhealthy {
		i.Problem = "the task is UNHEALTHY"
	}
	for _, inbound := range plan.Inbound {
		if inbound.TLS == mesh.Off {
			continue
		}
		e := expiry.Endpoint{Listener: inbound.Name}
		if inbound.Certificate != nil {
			e.File = inbound.Certificate.Cert
		}
		if task.Address == "" {
			e.Problem = "the task has no network interface of its own; only the network mode awsvpc lets it be looked at"
		} else {
			e.Address = net.JoinHostPort(task.Address, strconv.Itoa(inbound.Port))
		}
		i.Endpoints = append(i.Endpoints, e)
	}
	return i
}
