//go:build linux

package ecsfake

import (
	"fmt"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
)

// defaultStart is how long a container waits for one that it depends on, in seconds.
const defaultStart = 180

// named finds a container of a task. checkDependencies has seen that it is there.
func (t *task) named(name *string) *container {
	i := slices.IndexFunc(t.containers, func(c *container) bool { return aws.ToString(c.definition.Name) == aws.ToString(name) })
	return t.containers[i]
}

// awaitDependencies waits until a container may begin. An error says why it never will; nil can also mean that
// the task stops.
func (f *Fake) awaitDependencies(c *container) error {
	for _, dependency := range c.definition.DependsOn {
		on := c.task.named(dependency.ContainerName)
		met, failed := false, ""
		inTime := f.await(f.seconds(orDefaultNumber(on.definition.StartTimeout, defaultStart)), func() bool {
			met, failed = on.meets(dependency.Condition)
			return met || failed != "" || c.task.desired == stopped
		})
		if !met && !inTime && f.ctx.Err() == nil {
			failed = "did not become " + string(dependency.Condition) + " in time"
		}
		if failed != "" {
			return fmt.Errorf("dependency graph: failed to resolve container ordering dependency [%s] for target [%s] as dependency %s",
				aws.ToString(on.definition.Name), aws.ToString(c.definition.Name), failed)
		}
	}
	return nil
}

// meets says whether a container meets a condition, or why it never will. The lock is held.
func (c *container) meets(condition types.ContainerCondition) (met bool, failed string) {
	over := c.status == stopped
	if over && !c.began {
		return false, "was never started"
	}
	switch condition {
	case types.ContainerConditionStart:
		return c.began, ""
	case types.ContainerConditionComplete:
		return over, ""
	case types.ContainerConditionSuccess:
		if over && aws.ToInt32(c.exit) != 0 {
			return false, "did not exit successfully."
		}
		return over, ""
	case types.ContainerConditionHealthy:
		if over {
			return false, "has exited before it was healthy"
		}
		return c.health == types.HealthStatusHealthy, ""
	}
	return false, "has an unknown condition"
}

// awaitDependants waits until everybody who depends on a container has stopped: the order of starting, backwards.
func (f *Fake) awaitDependants(c *container) {
	var dependants []*container
	for _, other := range c.task.containers {
		if slices.ContainsFunc(other.definition.DependsOn, func(d types.ContainerDependency) bool {
			return aws.ToString(d.ContainerName) == aws.ToString(c.definition.Name)
		}) {
			dependants = append(dependants, other)
		}
	}
	f.await(0, func() bool {
		return !slices.ContainsFunc(dependants, func(d *container) bool { return d.status != stopped })
	})
}
