package ecs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsecs "github.com/aws/aws-sdk-go-v2/service/ecs"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"

	"countersign.dev/aws/session"
	"countersign.dev/mesh"
	"countersign.dev/rotate"
)

// nobody is the id of a roll-out of a service that is to have no tasks.
const nobody = "none"

// deployment is what is remembered of one: its id, and when ECS made it, by ECS's own clock.
type deployment struct {
	id      string
	created time.Time
}

func (d deployment) String() string { return d.id + "@" + d.created.UTC().Format(time.RFC3339Nano) }

// parseDeployment reads what String has written.
func parseDeployment(text string) (deployment, error) {
	id, at, found := strings.Cut(text, "@")
	created, err := time.Parse(time.RFC3339Nano, at)
	if !found || id == "" || err != nil {
		return deployment{}, fmt.Errorf("%w: %.100q is no deployment of ECS that a rotation has begun", rotate.ErrRolloutFailed, text)
	}
	return deployment{id, created}, nil
}

// Settle implements [rotate.Rollout]. ECS tells by an event when a service is steady again after it has started tasks: then all run, are
// healthy, and so are the targets of balancers.
func (s *Service) Settle(ctx context.Context, _ rotate.Target, say func(string)) {
	for told := false; ; {
		service, err := s.describe(ctx)
		if err != nil || service.DesiredCount == 0 || service.RunningCount == 0 {
			return
		}
		started := unsteady(service)
		if started == nil {
			return
		}
		if !told {
			say("the service is not steady since it has started tasks at " + started.UTC().Format(time.RFC3339))
			told = true
		}
		timer := time.NewTimer(s.first + rand.N(s.first/4+1)) //nolint:gosec // to keep many from asking at one moment
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// unsteady gives the time at which a service has started tasks, when it was not steady since. Events are the newest first.
func unsteady(service *types.Service) *time.Time {
	for _, e := range service.Events {
		switch text := aws.ToString(e.Message); {
		case strings.Contains(text, "has reached a steady state"):
			return nil
		case strings.Contains(text, "has started"):
			return aws.Time(aws.ToTime(e.CreatedAt))
		}
	}
	return nil
}

// Begin implements [rotate.Rollout]: it forces a new deployment of the task definition that the service has. A service that is
// to have no tasks is left alone: those that start later take what is current.
func (s *Service) Begin(ctx context.Context, target rotate.Target) (string, error) {
	id, err := s.force(ctx, target)
	if errors.Is(err, session.ErrDenied) { // nothing has begun, and nothing will
		return "", fmt.Errorf("%w: %w", rotate.ErrRolloutFailed, err)
	}
	return id, final(err)
}

// force forces a new deployment.
func (s *Service) force(ctx context.Context, target rotate.Target) (string, error) {
	service, err := s.describe(ctx)
	if err != nil {
		return "", err
	}
	if service.DesiredCount == 0 && service.RunningCount == 0 && service.PendingCount == 0 && service.SchedulingStrategy != types.SchedulingStrategyDaemon {
		return nobody, nil
	}
	if err := s.visible(ctx, target); err != nil {
		return "", err
	}
	out, err := s.client.UpdateService(ctx, &awsecs.UpdateServiceInput{Cluster: &s.cluster, Service: &s.service, ForceNewDeployment: true})
	if err != nil {
		return "", s.explain(err, "UpdateService", s.arn("service", name(s.service)))
	}
	if out.Service != nil {
		if primary := primaryOf(out.Service); primary != nil {
			return deployment{aws.ToString(primary.Id), aws.ToTime(primary.CreatedAt)}.String(), nil
		}
	}
	return "", fmt.Errorf("ECS has answered UpdateService for %s without a primary deployment", s.service)
}

// visible refuses tasks without an address of their own, before they are replaced: in the network modes host and bridge
// they are at ports of a machine of which ECS does not know the address.
func (s *Service) visible(ctx context.Context, target rotate.Target) error {
	if len(listeners(target)) == 0 {
		return nil
	}
	tasks, err := s.tasks(ctx, types.DesiredStatusRunning, 1)
	if err != nil {
		return err
	}
	if len(tasks) > 0 && aws.ToString(tasks[0].LastStatus) == running && address(&tasks[0]) == "" {
		return fmt.Errorf("%w: the tasks of %s have no network interface of their own, so that nobody could see what they serve; "+
			"give the task definition the network mode awsvpc", rotate.ErrRolloutFailed, s.service)
	}
	return nil
}

// primaryOf is the deployment that a service is on its way to.
func primaryOf(service *types.Service) *types.Deployment {
	i := slices.IndexFunc(service.Deployments, func(d types.Deployment) bool { return aws.ToString(d.Status) == "PRIMARY" })
	if i < 0 {
		return nil
	}
	return &service.Deployments[i]
}

// Wait implements [rotate.Rollout]. ECS is asked every few seconds, less often as time goes by and when it throttles.
func (s *Service) Wait(ctx context.Context, _ rotate.Target, id string, say func(string)) error {
	if id == nobody {
		say("the service is to have no tasks, so that there is nothing to replace; those that start later take what is current")
		return nil
	}
	own, err := parseDeployment(id)
	if err != nil {
		return err
	}
	told, pause, shown := "", s.first, time.Now()
	for last, trouble := (state{of: own.id}), errSilent; ; {
		now, err := s.progress(ctx, own, time.Since(shown) > s.settle)
		if now.shown {
			shown = time.Now()
		}
		switch {
		case err == nil && now.done:
			return nil
		case errors.Is(err, rotate.ErrRolloutFailed):
			return s.because(ctx, err, now.of)
		case ctx.Err() != nil: // what was asked for at the last moment says nothing
			return s.late(ctx, last, trouble)
		case errors.Is(err, session.ErrDenied), errors.Is(err, session.ErrCredentials):
			return err // who may not look does not know, and does not learn it by asking again
		case err != nil:
			now.text = err.Error()
			pause = min(2*pause, 2*s.last)
		}
		if last, trouble = now, err; now.text != told {
			say(now.text)
			told = now.text
		}
		timer := time.NewTimer(pause + rand.N(pause/4+1)) //nolint:gosec // to keep many from asking at one moment
		select {
		case <-timer.C:
			pause = min(pause+pause/4, s.last)
		case <-ctx.Done():
			timer.Stop()
			return s.late(ctx, last, trouble)
		}
	}
}

// errSilent says that a deadline came before the first answer.
var errSilent = errors.New("ECS has not answered in time")

// late is the error of a roll-out that has not ended when ctx does: it has failed by its deadline, when it could be looked
// at until then.
func (s *Service) late(ctx context.Context, last state, trouble error) error {
	if trouble != nil || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return errors.Join(ctx.Err(), trouble)
	}
	return s.because(ctx, fmt.Errorf("%w: it has not ended in its time: %s", rotate.ErrRolloutFailed, last.text), last.of)
}

// state is how a roll-out stands: of is the id of the deployment that it stands and falls with, and shown tells that ECS has
// shown the one that was begun.
type state struct {
	done, shown bool
	of          string
	text        string
}

// progress asks how a roll-out stands.
func (s *Service) progress(ctx context.Context, own deployment, settled bool) (state, error) {
	service, err := s.describe(ctx)
	if err != nil {
		return state{of: own.id}, final(err)
	}
	return judge(service, own, settled)
}

// judge says how a roll-out stands. A deployment that was made after it counts in its place: its tasks have started later
// still. One that was made before is a way back or, when nothing else speaks for that and the answers have not settled, the
// answer of a part of ECS that does not know of the new one yet.
func judge(service *types.Service, own deployment, settled bool) (state, error) {
	primary := primaryOf(service)
	if primary == nil {
		return state{of: own.id, text: "the service has no primary deployment"}, nil
	}
	id, reason := aws.ToString(primary.Id), plain(aws.ToString(primary.RolloutStateReason))
	st := state{of: id}
	for _, d := range service.Deployments {
		if aws.ToString(d.Id) == own.id {
			st.shown = true
			if why := plain(aws.ToString(d.RolloutStateReason)); why != "" && id != own.id {
				reason += "; " + why
			}
		}
	}
	before := aws.ToTime(primary.CreatedAt).Before(own.created)
	if id != own.id && (before || strings.Contains(reason, "rolling back")) {
		st.of = own.id
		if before && !settled && !st.shown && !slices.ContainsFunc(service.Events, own.failedBy) {
			st.text = "ECS does not show the new deployment yet"
			return st, nil
		}
		return st, fmt.Errorf("%w: ECS has taken it back and returned to the deployment %s (%s)", rotate.ErrRolloutFailed, id, reason)
	}
	if primary.RolloutState == types.DeploymentRolloutStateFailed {
		return st, fmt.Errorf("%w: ECS has given up the deployment %s (%s)", rotate.ErrRolloutFailed, id, reason)
	}
	if breaker := breakerOf(service); primary.RolloutState == types.DeploymentRolloutStateInProgress && !breaker && primary.FailedTasks >= hopeless(primary.DesiredCount) {
		return st, fmt.Errorf("%w: %d tasks of the deployment %s have failed one after the other, and the service has no circuit breaker to give it up", rotate.ErrRolloutFailed, primary.FailedTasks, id)
	}
	var others int32
	for _, d := range service.Deployments {
		if aws.ToString(d.Id) != id {
			others += d.RunningCount + d.PendingCount
		}
	}
	ended := primary.RolloutState == types.DeploymentRolloutStateCompleted || (primary.RolloutState == "" && primary.RunningCount == primary.DesiredCount)
	st.done = ended && others == 0
	st.text = fmt.Sprintf("%d of %d new tasks run", primary.RunningCount, primary.DesiredCount)
	if primary.FailedTasks > 0 {
		st.text += fmt.Sprintf(", %d have failed", primary.FailedTasks)
	}
	if others > 0 {
		st.text += fmt.Sprintf(", %d of before", others)
	}
	if id != own.id {
		st.text += fmt.Sprintf(" (of the deployment %s, which somebody has begun after the rotation's)", id)
	}
	return st, nil
}

// failedBy tells whether an event is the failure of the deployment.
func (d deployment) failedBy(e types.ServiceEvent) bool {
	text := aws.ToString(e.Message)
	return strings.Contains(text, "(deployment "+d.id+")") && strings.Contains(text, "deployment failed")
}

// breakerOf tells whether ECS gives up deployments by itself.
func breakerOf(service *types.Service) bool {
	c := service.DeploymentConfiguration
	return c != nil && c.DeploymentCircuitBreaker != nil && c.DeploymentCircuitBreaker.Enable
}

// hopeless is how many failed tasks are enough: as the circuit breaker of ECS counts, half of the desired count, at least
// 3 and at most 200.
func hopeless(desired int32) int32 { return min(200, max(3, (desired+1)/2)) }

// Bounds of a reason.
const (
	maxReasons    = 3 // tasks, and as many events
	maxLookedAt   = 20
	reasonTimeout = 20 * time.Second
)

// because adds to a failure what ECS says of the tasks that have stopped. What cannot be asked for is left out.
func (s *Service) because(ctx context.Context, err error, id string) error {
	ctx, cancel := rotate.Detached(ctx, reasonTimeout)
	defer cancel()
	tasks, _ := s.tasks(ctx, types.DesiredStatusStopped, maxLookedAt)
	// The newest first.
	slices.SortStableFunc(tasks, func(a, b types.Task) int { return aws.ToTime(b.StoppedAt).Compare(aws.ToTime(a.StoppedAt)) })
	var reasons []string
	who := make(map[string][]string)
	for i := range tasks {
		if aws.ToString(tasks[i].StartedBy) != id || scaledIn(&tasks[i]) {
			continue
		}
		reason := stopped(&tasks[i])
		if who[reason] == nil {
			reasons = append(reasons, reason)
		}
		who[reason] = append(who[reason], name(aws.ToString(tasks[i].TaskArn)))
	}
	for _, text := range s.told(ctx, id, len(reasons) == 0) {
		err = fmt.Errorf("%w; %s", err, text)
	}
	for _, reason := range reasons[:min(maxReasons, len(reasons))] {
		err = fmt.Errorf("%w; of its tasks %d stopped, first %s: %s", err, len(who[reason]), who[reason][len(who[reason])-1], reason)
	}
	return err
}

// told is what ECS has told of the end of a deployment and, when nothing else is known, why it places no tasks: the newest
// of each. Events are all that is left of a deployment that was taken back.
func (s *Service) told(ctx context.Context, id string, places bool) []string {
	service, err := s.describe(ctx)
	if err != nil {
		return nil
	}
	var all []string
	for _, want := range []func(types.ServiceEvent) bool{
		deployment{id: id}.failedBy,
		func(e types.ServiceEvent) bool {
			return places && strings.Contains(aws.ToString(e.Message), "unable to")
		},
	} {
		i := slices.IndexFunc(service.Events, want) // the newest first
		if i >= 0 {
			all = append(all, "ECS said at "+aws.ToTime(service.Events[i].CreatedAt).UTC().Format(time.RFC3339)+": "+plain(aws.ToString(service.Events[i].Message)))
		}
	}
	return all
}

// scaledIn tells whether the scheduler has stopped a task that nothing was wrong with.
func scaledIn(task *types.Task) bool {
	return task.StopCode == types.TaskStopCodeServiceSchedulerInitiated && !strings.Contains(aws.ToString(task.StoppedReason), "health")
}

// stopped says why a task has stopped: the containers that have not ended well speak for themselves.
func stopped(task *types.Task) string {
	text := plain(aws.ToString(task.StoppedReason))
	for _, c := range task.Containers {
		if c.ExitCode != nil && *c.ExitCode != 0 {
			text += fmt.Sprintf(", the container %s has ended with %d", plain(aws.ToString(c.Name)), *c.ExitCode)
		}
		if reason := plain(aws.ToString(c.Reason)); reason != "" {
			text += fmt.Sprintf(" (%s: %s)", plain(aws.ToString(c.Name)), reason)
		}
		if c.HealthStatus == types.HealthStatusUnhealthy {
			text += fmt.Sprintf(", the container %s was UNHEALTHY", plain(aws.ToString(c.Name)))
		}
	}
	return text
}

// listeners are those at which a workload's own certificate can be seen.
func listeners(target rotate.Target) []mesh.Inbound {
	return slices.DeleteFunc(slices.Clone(target.Inbound), func(in mesh.Inbound) bool { return in.TLS == mesh.Off || in.Certificate != nil })
}
