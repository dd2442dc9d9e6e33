//go:build linux

package ecsfake

import (
	"fmt"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// The circuit breaker opens at half of the desired count of failures in a row, within these limits.
const (
	leastFailures = 3
	mostFailures  = 200
)

// maxBackOff bounds the time between two starts of tasks that fail, in seconds.
const maxBackOff = 60

// keep works for a service until it is deleted.
func (f *Fake) keep(s *service) {
	for {
		f.mu.Lock()
		if f.ctx.Err() != nil {
			f.mu.Unlock()
			return
		}
		wait := f.reconcile(s)
		changed, over := f.changed, s.status == serviceInactive
		f.mu.Unlock()
		if over {
			return
		}
		var later <-chan time.Time
		if wait > 0 {
			later = time.After(wait)
		}
		select {
		case <-changed:
		case <-later:
		case <-f.ctx.Done():
			return
		}
	}
}

// reconcile takes the steps that a service needs now, and says when to look again (0: at the next change). The lock is held.
func (f *Fake) reconcile(s *service) (wait time.Duration) {
	f.judge(s)
	f.breakCircuit(s)
	primary := s.deployments[0]
	lower := (s.desired*s.minimum + 99) / 100
	upper := s.desired * s.most / 100
	var current, old []*task
	ready := int32(0)
	for _, t := range f.tasks {
		if t.service != s || t.desired != running {
			continue
		}
		if t.deployment == primary {
			current = append(current, t)
		} else {
			old = append(old, t)
		}
		if t.ready {
			ready++
		}
	}
	if primary.state == types.DeploymentRolloutStateFailed {
		return 0 // neither more tasks nor less: somebody has to look
	}
	for n := int32(len(current)); n < s.desired && n+int32(len(old)) < upper; n++ {
		if left := time.Until(primary.notBefore); left > 0 {
			wait = left
			break
		}
		f.place(s, primary)
		current = append(current, nil)
	}
	for n := int32(len(current)); n > s.desired; n-- {
		if t := current[n-1]; t != nil {
			f.retire(t)
		}
	}
	// Those that are of no use go first.
	slices.SortStableFunc(old, func(a, b *task) int { return number(a.ready) - number(b.ready) })
	for _, t := range old {
		if t.ready && ready-1 < lower {
			break
		}
		ready -= int32(number(t.ready))
		f.retire(t)
	}
	f.finish(s, primary)
	return wait
}

// number is 1 for true.
func number(b bool) int {
	if b {
		return 1
	}
	return 0
}

// place starts a task of a deployment. The lock is held.
func (f *Fake) place(s *service, d *deployment) {
	t := f.launch(&task{cluster: s.cluster, definition: d.definition, service: s, deployment: d, group: "service:" + *s.name, startedBy: d.id, tags: s.in.Tags})
	f.event(s, "has started 1 tasks: (task %s).", t.id)
}

// retire stops a task that is too many. The lock is held.
func (f *Fake) retire(t *task) {
	if t.desired == stopped {
		return
	}
	f.event(t.service, "has stopped 1 running tasks: (task %s).", t.id)
	f.stopTask(t, types.TaskStopCodeServiceSchedulerInitiated, "Scaling activity initiated by (deployment "+t.service.deployments[0].id+")")
}

// event notes what happened to a service. The lock is held.
func (f *Fake) event(s *service, format string, arguments ...any) {
	message := "(service " + *s.name + ") " + fmt.Sprintf(format, arguments...)
	s.events = append(s.events, types.ServiceEvent{Id: aws.String(hexID()), CreatedAt: aws.Time(time.Now()), Message: &message})
	f.options.Log("%s", message)
}

// judge looks at a service's tasks: which are ready, which have failed, which have to be replaced. The lock is held.
func (f *Fake) judge(s *service) {
	for _, t := range f.tasks {
		if t.service != s || t.counted {
			continue
		}
		d := t.deployment
		f.register(t)
		was := t.ready
		t.ready = t.desired == running && t.last == running && (!t.checked() || t.health() == types.HealthStatusHealthy) && t.targetsHealthy()
		if t.ready && !was {
			d.failed = 0
			f.wake()
		}
		if t.desired == running {
			f.replaceUnhealthy(t)
		}
		if t.desired != stopped {
			continue
		}
		t.counted = true
		if t.stopCode == types.TaskStopCodeUserInitiated || t.stopCode == types.TaskStopCodeServiceSchedulerInitiated && !t.failed {
			continue
		}
		if !was || t.failed {
			d.failed++
			f.event(s, "(deployment %s) task %s failed: %s", d.id, t.id, t.stoppedReason)
		}
		delay := int32(1) << min(max(d.failed-1, 0), 6)
		if d.failed > 1 {
			f.event(s, "is unable to consistently start tasks successfully.")
		}
		d.notBefore = time.Now().Add(f.seconds(min(delay, maxBackOff)))
	}
}

// replaceUnhealthy stops a task whose health checks, or whose targets', have failed. The lock is held.
func (f *Fake) replaceUnhealthy(t *task) {
	reason := ""
	if t.last == running && t.health() == types.HealthStatusUnhealthy {
		reason = "Task failed container health checks"
	}
	grace := f.seconds(aws.ToInt32(t.service.in.HealthCheckGracePeriodSeconds))
	for _, target := range t.targets {
		if target.state == unhealthy && time.Since(*t.started) > grace {
			reason = "Task failed ELB health checks in (target-group " + target.group.arn() + ")"
		}
	}
	if reason == "" {
		return
	}
	t.failed, t.ready = true, false
	f.event(t.service, "(task %s) %s", t.id, reason)
	f.stopTask(t, types.TaskStopCodeServiceSchedulerInitiated, reason)
}

// breakCircuit ends a deployment whose tasks fail, and goes back where that is asked for. The lock is held.
func (f *Fake) breakCircuit(s *service) {
	d := s.deployments[0]
	var breaker *types.DeploymentCircuitBreaker
	if c := s.in.DeploymentConfiguration; c != nil {
		breaker = c.DeploymentCircuitBreaker
	}
	limit := min(max((s.desired+1)/2, leastFailures), mostFailures)
	if breaker == nil || !breaker.Enable || d.state != types.DeploymentRolloutStateInProgress || d.completed || d.failed < limit {
		return
	}
	d.state, d.reason, d.updated = types.DeploymentRolloutStateFailed, "ECS deployment circuit breaker: tasks failed to start.", time.Now()
	f.event(s, "(deployment %s) deployment failed: tasks failed to start.", d.id)
	back := slices.IndexFunc(s.deployments, func(d *deployment) bool { return d.completed })
	if breaker.Rollback && back > 0 {
		to := s.deployments[back]
		s.deployments = append([]*deployment{to}, slices.Delete(slices.Clone(s.deployments), back, back+1)...)
		s.definition = to.definition
		to.state, to.updated = types.DeploymentRolloutStateInProgress, time.Now()
		to.reason = "ECS deployment circuit breaker: rolling back to deploymentId " + to.id + "."
		d.reason = "ECS deployment circuit breaker: tasks failed to start. Rolling back to deploymentId " + to.id + "."
		f.event(s, "rolling back to deployment %s.", to.id)
	}
	f.wake()
}

// finish notes that a roll-out is complete: all tasks ready, and none of another deployment left to stop; and when a service becomes
// steady again. The lock is held.
func (f *Fake) finish(s *service, primary *deployment) {
	ready, others, left := int32(0), false, false
	for _, t := range f.tasks {
		if t.service != s {
			continue
		}
		if t.deployment == primary && t.ready {
			ready++
		}
		others = others || t.deployment != primary && t.desired == running
		left = left || t.last != stopped
	}
	if s.status == serviceDraining && !left {
		s.status = serviceInactive
		f.wake()
		return
	}
	was := s.steady
	s.steady = ready >= s.desired && !others
	if s.steady && primary.state == types.DeploymentRolloutStateInProgress {
		primary.state, primary.completed, primary.updated = types.DeploymentRolloutStateCompleted, true, time.Now()
		primary.reason = "ECS deployment " + primary.id + " completed."
		s.deployments = s.deployments[:1]
		f.event(s, "(deployment %s) deployment completed.", primary.id)
		f.wake()
		was = false
	}
	if s.steady && !was {
		f.event(s, "has reached a steady state.")
		f.wake()
	}
}
