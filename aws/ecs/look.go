package ecs

import (
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"golang.org/x/sync/errgroup"

	"countersign.dev/mtls"
	"countersign.dev/observe"
	"countersign.dev/rotate"
)

// running is the state of a task all of whose containers run that are to (ECS developer guide, task life cycle).
const running = "RUNNING"

// maxLooks is how many tasks are looked at at a time.
const maxLooks = 16

// Look implements [rotate.Observer]: one sighting for each listener of each task that runs, by a full handshake at its
// network interface. A task without such a listener is believed to have what is current when it was made after the
// roll-out began and is not unhealthy; what it really holds in memory nobody sees. Tasks that are being stopped are not
// looked at, and those that have not come to run are only when no other one does.
func (s *Service) Look(ctx context.Context, target rotate.Target) ([]rotate.Sighting, error) {
	all, starting, err := s.live(ctx)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return s.none(ctx, starting)
	}
	var roots []*x509.Certificate
	if len(listeners(target)) > 0 {
		if roots, err = rootsOf(ctx, target); err != nil {
			return nil, err
		}
	}
	found := make([][]rotate.Sighting, len(all))
	var group errgroup.Group
	group.SetLimit(maxLooks)
	for i, task := range all {
		group.Go(func() error {
			found[i] = look(ctx, target, task, roots)
			return nil
		})
	}
	_ = group.Wait() // none of them fails
	return slices.Concat(found...), ctx.Err()
}

// live gives the tasks that run and are to go on, in the order of their ARNs, and how many are on their way to run.
func (s *Service) live(ctx context.Context) (all []*types.Task, starting int, err error) {
	tasks, err := s.tasks(ctx, types.DesiredStatusRunning, 0)
	if err != nil {
		return nil, 0, err
	}
	slices.SortFunc(tasks, func(a, b types.Task) int { return cmp.Compare(aws.ToString(a.TaskArn), aws.ToString(b.TaskArn)) })
	for i := range tasks {
		switch {
		case aws.ToString(tasks[i].DesiredStatus) == "STOPPED":
		case aws.ToString(tasks[i].LastStatus) == running:
			all = append(all, &tasks[i])
		case slices.Contains([]string{"PROVISIONING", "PENDING", "ACTIVATING"}, aws.ToString(tasks[i].LastStatus)):
			starting++
		}
	}
	return all, starting, nil
}

// none says of a service without a running task whether it is to have any.
func (s *Service) none(ctx context.Context, starting int) ([]rotate.Sighting, error) {
	service, err := s.describe(ctx)
	if err != nil {
		return nil, err
	}
	if service.DesiredCount == 0 && starting == 0 {
		return nil, nil
	}
	return []rotate.Sighting{{
		Instance: s.service, By: rotate.ByHandshake,
		Problem: fmt.Sprintf("no task of the service runs; %d are to, and %d are starting", service.DesiredCount, starting),
	}}, nil
}

// rootsOf are the roots that what is served has to lead to.
func rootsOf(ctx context.Context, target rotate.Target) ([]*x509.Certificate, error) {
	text := target.Now.Roots
	if len(text) == 0 && target.Authority != nil {
		trust, err := target.Authority.Trust(ctx)
		if err != nil {
			return nil, fmt.Errorf("asking for the trust bundle: %w", err)
		}
		text = trust.Bundle
	}
	roots, err := mtls.ParseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("the trust bundle, for a look at %s: %w", target.Workload.Name, err)
	}
	return roots, nil
}

// look looks at one task.
func look(ctx context.Context, target rotate.Target, task *types.Task, roots []*x509.Certificate) []rotate.Sighting {
	instance := name(aws.ToString(task.TaskArn))
	problem := ""
	if task.HealthStatus == types.HealthStatusUnhealthy {
		problem = "ECS says that the task is UNHEALTHY"
	}
	seen := listeners(target)
	if len(seen) == 0 {
		return []rotate.Sighting{believed(target, task, instance, problem)}
	}
	var sightings []rotate.Sighting
	where := address(task)
	for _, in := range seen {
		s := rotate.Sighting{Instance: instance, Endpoint: in.Name, By: rotate.ByHandshake, Problem: problem}
		if where == "" {
			s.Problem = join(problem, "the task has no network interface of its own; only the network mode awsvpc lets it be looked at")
		} else if leaf, err := observe.ServedBy(ctx, net.JoinHostPort(where, strconv.Itoa(in.Port)), target.Certificate, in.Protocol, roots); err != nil {
			s.Problem = join(problem, err.Error())
		} else {
			s.Serial = mtls.Serial(leaf)
		}
		sightings = append(sightings, s)
	}
	return sightings
}

// believed is what is taken for true of a task that nobody can look at.
func believed(target rotate.Target, task *types.Task, instance, problem string) rotate.Sighting {
	s := rotate.Sighting{Instance: instance, By: rotate.ByReport, Alone: true, Problem: problem} // peers report to nobody here
	since, err := parseDeployment(target.Now.Rollout)
	switch {
	case problem != "":
	case target.Now.Rollout == "":
		s.Problem = "it has no listener with TLS of its own, so that nobody sees what it has"
	case err != nil:
		s.Problem = "it has started while the service was to have no tasks" // and takes what is current
		s.Serial = target.Now.Serial
	case aws.ToTime(task.CreatedAt).Before(since.created):
		s.Problem = "it was started before the roll-out, at " + aws.ToTime(task.CreatedAt).UTC().Format(time.RFC3339)
	default:
		s.Serial = target.Now.Serial
	}
	return s
}

// address is that of a task's network interface, which it has in the network mode awsvpc: of IPv4 where it has one, else of
// IPv6. It is empty when it has none.
func address(task *types.Task) string {
	var v4, v6 string
	for _, a := range task.Attachments {
		if aws.ToString(a.Type) != "ElasticNetworkInterface" {
			continue
		}
		for _, d := range a.Details {
			switch aws.ToString(d.Name) {
			case "privateIPv4Address":
				v4 = cmp.Or(v4, aws.ToString(d.Value))
			case "ipv6Address", "iPv6Address":
				v6 = cmp.Or(v6, aws.ToString(d.Value))
			}
		}
	}
	for _, c := range task.Containers {
		for _, n := range c.NetworkInterfaces {
			v4, v6 = cmp.Or(v4, aws.ToString(n.PrivateIpv4Address)), cmp.Or(v6, aws.ToString(n.Ipv6Address))
		}
	}
	for _, text := range []string{v4, v6} {
		if parsed, err := netip.ParseAddr(text); err == nil {
			return parsed.WithZone("").String()
		}
	}
	return ""
}

// join puts two problems together.
func join(a, b string) string { return strings.TrimPrefix(a+"; "+b, "; ") }
