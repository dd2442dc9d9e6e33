package rotate

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// cluster has the instances of a workload replaced, and looks at them.
type cluster struct {
	w *world
	// desired is how many tasks there are to be.
	desired int
	// refuse is what it answers instead of a roll-out.
	refuse error
	// fails says what becomes of a roll-out whose tasks have a serial; its tasks do not come up then.
	fails func(serial string) error
	// takes says what a task serves that has read a serial; nil is that serial.
	takes func(serial string) string
	// unsettled is how it waits for the instances of before.
	unsettled func(ctx context.Context)
	// waits is told about each wait, before it ends.
	waits func(ctx context.Context, id string) error
	// blind is why nobody can be looked at; unreachable, that nobody answers.
	blind       error
	unreachable bool

	mu      sync.Mutex
	tasks   map[string]string // what each serves
	begun   []string          // the serials of roll-outs
	settled []string          // the serials that were current when it was asked to settle
	waited  []string          // their ids, each time
	now     []Now             // what it was told at its last look, by which it looked
}

func newCluster(w *world) *cluster {
	c := &cluster{w: w, desired: 2, tasks: map[string]string{}}
	w.target.Rollout, w.target.Observer = c, c
	w.config.Observer, w.config.Deployer = nil, nil
	return c
}

func (c *cluster) Settle(ctx context.Context, _ Target, say func(string)) {
	c.mu.Lock()
	c.settled = append(c.settled, c.w.currentSerial())
	c.mu.Unlock()
	if c.unsettled != nil {
		say("tasks that were started a moment ago do not serve yet")
		c.unsettled(ctx)
	}
}

func (c *cluster) Begin(context.Context, Target) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refuse != nil {
		return "", c.refuse
	}
	c.begun = append(c.begun, c.w.currentSerial())
	return fmt.Sprintf("rollout-%d", len(c.begun)), nil
}

func (c *cluster) Wait(ctx context.Context, _ Target, id string, say func(string)) error {
	c.mu.Lock()
	c.waited = append(c.waited, id)
	var n int
	if _, err := fmt.Sscanf(id, "rollout-%d", &n); err != nil || n < 1 || n > len(c.begun) {
		c.mu.Unlock()
		return fmt.Errorf("%w: there is no %s", ErrRolloutFailed, id)
	}
	serial := c.begun[n-1]
	c.mu.Unlock()
	say("0 of 2 new tasks run")
	if c.waits != nil {
		if err := c.waits(ctx, id); err != nil {
			return err
		}
	}
	if c.fails != nil {
		if err := c.fails(serial); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.tasks)
	for i := range c.desired {
		serves := serial
		if c.takes != nil {
			serves = c.takes(serial)
		}
		c.tasks[fmt.Sprintf("task-%d-%d", n, i)] = serves
	}
	return nil
}

func (c *cluster) Look(_ context.Context, target Target) ([]Sighting, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = append(c.now, target.Now)
	if c.blind != nil {
		return nil, c.blind
	}
	var all []Sighting
	for task, serial := range c.tasks {
		s := Sighting{Instance: task, Endpoint: "0.0.0.0_9080", Serial: serial, By: ByHandshake}
		if c.unreachable {
			s.Serial, s.Problem = "", "i/o timeout"
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b Sighting) int { return strings.Compare(a.Instance, b.Instance) })
	return all, nil
}

// serve are the serials that are served.
func (c *cluster) serve() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []string
	for _, serial := range c.tasks {
		all = append(all, serial)
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), " ")
}
