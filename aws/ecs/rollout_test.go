package ecs

import (
	"context"
	"errors"
	"testing"
	"time"

	"countersign.dev/rotate"
)

const fifth = "ecs-svc/5@2026-11-23T08:05:00.125Z"

// because adds a reason to a deployment.
func because(d object, reason string) object {
	d["rolloutStateReason"] = reason
	return d
}

// TestWait follows deployments to their ends.
func TestWait(t *testing.T) {
	completed := func(n int) object { return deployed(n, "PRIMARY", "COMPLETED", 2, 2) }
	breaker := "ECS deployment circuit breaker: rolling back to deploymentId ecs-svc/4."
	init := taskOf("b7", 5, "")
	init["lastStatus"], init["desiredStatus"], init["stopCode"] = "STOPPED", "STOPPED", "EssentialContainerExited"
	init["stoppedReason"] = "Essential container in task exited"
	init["containers"] = []object{{"name": "init", "exitCode": 1}, {"name": "proxy", "reason": "a dependency failed"}, {"name": "app", "exitCode": 0}}
	drained := taskOf("a1", 4, "")
	drained["stopCode"], drained["stoppedReason"] = "ServiceSchedulerInitiated", "Scaling activity initiated by (deployment ecs-svc/5)"
	sick := taskOf("b8", 5, "")
	sick["stopCode"], sick["stoppedReason"] = "ServiceSchedulerInitiated", "Task failed container health checks"
	sick["containers"] = []object{{"name": "proxy", "healthStatus": "UNHEALTHY", "exitCode": 143}}

	for name, c := range map[string]struct {
		states  []object // of the service, one look after the other; the last one stays
		stopped []object
		want    error
		said    []string
		says    []string
	}{
		"rolled out": {
			[]object{
				serviceOf(2, deployed(5, "PRIMARY", "IN_PROGRESS", 2, 0), deployed(4, "ACTIVE", "COMPLETED", 2, 2)),
				serviceOf(2, deployed(5, "PRIMARY", "IN_PROGRESS", 2, 2), deployed(4, "ACTIVE", "COMPLETED", 1, 1)),
				serviceOf(2, completed(5), deployed(4, "ACTIVE", "COMPLETED", 0, 1)),
				serviceOf(2, completed(5)),
			},
			nil, nil,
			[]string{"0 of 2 new tasks run, 2 of before", "2 of 2 new tasks run, 1 of before"},
			nil,
		},
		"ended long ago": {[]object{serviceOf(2, completed(5))}, nil, nil, nil, nil},
		"somebody else's after it": {
			[]object{
				serviceOf(2, deployed(6, "PRIMARY", "IN_PROGRESS", 2, 1), deployed(5, "ACTIVE", "IN_PROGRESS", 2, 1)),
				serviceOf(2, completed(6)),
			},
			nil, nil,
			[]string{"ecs-svc/6, which somebody has begun after the rotation's"},
			nil,
		},
		"somebody else's, after this one had failed": {
			[]object{
				serviceOf(2, deployed(6, "PRIMARY", "IN_PROGRESS", 2, 1), deployed(5, "ACTIVE", "FAILED", 2, 1)),
				serviceOf(2, completed(6), deployed(5, "INACTIVE", "FAILED", 0, 0)),
			},
			nil, nil, nil, nil,
		},
		"somebody else's fails": {
			[]object{serviceOf(2, because(deployed(6, "PRIMARY", "FAILED", 2, 0), "tasks failed to start"), deployed(5, "ACTIVE", "COMPLETED", 2, 2))},
			nil, rotate.ErrRolloutFailed, nil,
			[]string{"ecs-svc/6", "tasks failed to start"},
		},
		"rolled back by the circuit breaker": {
			[]object{
				serviceOf(2, deployed(5, "PRIMARY", "IN_PROGRESS", 2, 0), deployed(4, "ACTIVE", "COMPLETED", 2, 2)),
				serviceOf(2, because(deployed(4, "PRIMARY", "IN_PROGRESS", 2, 2), breaker), because(deployed(5, "ACTIVE", "FAILED", 0, 0), "ECS deployment circuit breaker: tasks failed to start.")),
			},
			[]object{init, drained, sick},
			rotate.ErrRolloutFailed, nil,
			[]string{
				"returned to the deployment ecs-svc/4", "rolling back to deploymentId ecs-svc/4", "tasks failed to start",
				"of its tasks 1 stopped, first b7: Essential container in task exited, the container init has ended with 1 (proxy: a dependency failed)",
				"of its tasks 1 stopped, first b8: Task failed container health checks", "the container proxy was UNHEALTHY",
			},
		},
		"rolled back by a deployment of its own": {
			[]object{serviceOf(2, because(deployed(6, "PRIMARY", "IN_PROGRESS", 2, 2), breaker), deployed(5, "ACTIVE", "FAILED", 0, 0))},
			nil, rotate.ErrRolloutFailed, nil,
			[]string{"returned to the deployment ecs-svc/6"},
		},
		"not shown at once": {
			[]object{
				serviceOf(2, because(deployed(4, "PRIMARY", "COMPLETED", 2, 2), breaker)),
				serviceOf(2, deployed(5, "PRIMARY", "IN_PROGRESS", 2, 0), deployed(4, "ACTIVE", "COMPLETED", 2, 2)),
				serviceOf(2, deployed(4, "PRIMARY", "COMPLETED", 2, 2)), // of another part of ECS
				serviceOf(2, completed(5)),
			},
			nil, nil,
			[]string{"does not show the new deployment yet"},
			nil,
		},
		"rolled back a while ago": {
			[]object{serviceOf(2, because(completed(4), "ECS deployment ecs-svc/4 completed."))},
			[]object{init},
			rotate.ErrRolloutFailed,
			[]string{"does not show the new deployment yet"},
			[]string{"returned to the deployment ecs-svc/4", "the container init has ended with 1"},
		},
		"rolled back, as an event says": {
			[]object{func() object {
				s := serviceOf(2, completed(4))
				s["events"] = []object{
					{"id": "3", "createdAt": at(500), "message": "(service checkout) rolling back to deployment ecs-svc/4."},
					{"id": "2", "createdAt": at(400), "message": "(service checkout) (deployment ecs-svc/5) deployment failed: tasks failed to start."},
				}
				return s
			}()},
			nil, rotate.ErrRolloutFailed, nil,
			[]string{"ECS said at 2026-11-23T08:06:40Z: (service checkout) (deployment ecs-svc/5) deployment failed"},
		},
		"given up without a way back": {
			[]object{serviceOf(2, because(deployed(5, "PRIMARY", "FAILED", 2, 0), "tasks failed to start"), deployed(4, "ACTIVE", "COMPLETED", 2, 2))},
			[]object{init},
			rotate.ErrRolloutFailed, nil,
			[]string{"given up", "the container init has ended with 1"},
		},
		"deleted in the middle": {
			[]object{serviceOf(2, deployed(5, "PRIMARY", "IN_PROGRESS", 2, 0)), nil},
			nil, rotate.ErrRolloutFailed, nil,
			[]string{"has no service checkout"},
		},
		"without a rollout state": {[]object{serviceOf(2, deployed(5, "PRIMARY", "", 2, 2))}, nil, nil, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{stopped: c.stopped}
			f.change = func(looks int) { f.service = c.states[min(looks, len(c.states))-1] }
			s := open(t, f)
			said, err := wait(t.Context(), s, fifth)
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			says(t, said, c.said...)
			if err != nil {
				says(t, err.Error(), c.says...)
			}
		})
	}
}

// TestNeverHealthy ends a roll-out that never ends: by its failed tasks, where no circuit breaker does, or by its time.
func TestNeverHealthy(t *testing.T) {
	for desired, want := range map[int32]int32{0: 3, 1: 3, 6: 3, 7: 4, 20: 10, 1000: 200} {
		if got := hopeless(desired); got != want {
			t.Errorf("%d tasks to run: hopeless after %d, want %d", desired, got, want)
		}
	}
	primary := deployed(5, "PRIMARY", "IN_PROGRESS", 2, 1)
	primary["failedTasks"] = 3
	f := &fake{service: serviceOf(2, primary)}
	f.service["events"] = []object{
		{"id": "2", "createdAt": at(400), "message": "(service checkout) was unable to place a task. Reason: Capacity is unavailable at this time."},
		{"id": "1", "createdAt": at(1), "message": "(service checkout) has reached a steady state."},
	}
	s := open(t, f)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := wait(ctx, s, fifth)
	if !errors.Is(err, rotate.ErrRolloutFailed) {
		t.Fatalf("%v, want ErrRolloutFailed", err)
	}
	says(t, err.Error(), "it has not ended in its time: 1 of 2 new tasks run, 3 have failed", "Capacity is unavailable")

	f.set(func() {
		f.service["deploymentConfiguration"] = object{"deploymentCircuitBreaker": object{"enable": false, "rollback": false}}
	})
	_, err = wait(t.Context(), s, fifth)
	if !errors.Is(err, rotate.ErrRolloutFailed) {
		t.Fatalf("%v, want ErrRolloutFailed", err)
	}
	says(t, err.Error(), "3 tasks of the deployment ecs-svc/5 have failed", "no circuit breaker")

	late, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	cancelled, cancel2 := context.WithCancel(t.Context())
	cancel2()
	f.set(func() {
		primary["failedTasks"] = 0
		f.answer = func(string, object) (int, object) {
			f.mu.Unlock()
			defer f.mu.Lock()
			<-late.Done()
			return 0, nil
		}
	})
	if _, err := wait(late, s, fifth); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, rotate.ErrRolloutFailed) {
		t.Errorf("%v, want one that says nothing of the roll-out", err)
	}
	f.set(func() { f.answer = nil })
	if _, err := wait(cancelled, s, fifth); !errors.Is(err, context.Canceled) || errors.Is(err, rotate.ErrRolloutFailed) {
		t.Errorf("%v, want the end of the context", err)
	}
}
