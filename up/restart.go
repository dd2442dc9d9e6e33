package up

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// errRestarting says that an instance is being restarted already.
var errRestarting = errors.New("it is being restarted already")

// forgetTimeout bounds how long is waited until the callers of an instance that goes down know it no more.
const forgetTimeout = 3 * time.Second

// restart replaces the sidecar of an instance, without a request that is lost: its peers are told to go
// elsewhere, what runs is finished, and it returns when the new one is ready and its callers know it. Where
// the certificate comes from a store, the new one starts with what is current there; when that will not do,
// the old one serves on. An error says at which step it ended. When nothing serves then, that is tried further
// until something does. Instances of one workload have their turns: at no time are two of them away.
func (r *run) restart(ctx context.Context, i *instance) error {
	i.endMending()
	if !i.restarting.TryLock() {
		return fmt.Errorf("%s: %w", i.name, errRestarting)
	}
	defer i.restarting.Unlock()
	i.endMending() // a restart before may have begun it just now
	turn := r.turns[i.plan().Workload.Name]
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		return fmt.Errorf("%s: %w before its turn came", i.name, errStopping)
	}
	r.console.line("%s: restarting", i.name)
	if i.fromStore() {
		if plan, err := r.control.plan(ctx, i.admin); err == nil { // with the endpoints of this moment
			if err := r.writePlan(i, plan); err != nil {
				return err
			}
		}
	}
	err := r.replace(ctx, i)
	switch {
	case err == nil:
		r.console.line("%s: restarted", i.name)
		return nil
	case ctx.Err() != nil || r.serves(ctx, i):
		return err
	}
	r.mend(ctx, i)
	from := ""
	if i.fromStore() {
		from = ", with what is then current in its store (the version of before, when a rotation goes back to it)"
	}
	return fmt.Errorf("%s does not serve after its restart, and is started again and again until it does%s: %w", i.name, from, err)
}

// replace ends the sidecar of an instance and starts another one, and returns when it is ready. Where the
// certificate comes from a store, the new one starts with what is current there.
func (r *run) replace(ctx context.Context, i *instance) error {
	r.finish(i.sidecar.Load())
	if i.fromStore() {
		if err := r.fetchInTime(ctx, i); err != nil {
			return errors.Join(r.goOn(i, err), r.startSidecar(i), r.back(ctx, i))
		}
		r.forgotten(ctx, i)
		r.finish(i.proxy.Load())
		if err := r.startProxy(i); err != nil {
			return err
		}
	}
	if err := r.startSidecar(i); err != nil {
		return err
	}
	return r.back(ctx, i)
}

// goOn leaves an instance with the files that it has, because there are no others, and says so. A proxy that a
// try before has ended is started with them.
func (r *run) goOn(i *instance, why error) error {
	proxy := i.proxy.Load()
	switch {
	case proxy.ended():
		return errors.Join(fmt.Errorf("%s is started with what it had: %w", i.name, why), r.startProxy(i))
	case r.brokenChild(i, proxy) != nil:
		return fmt.Errorf("%s is left with what it had: %w", i.name, why)
	default:
		return fmt.Errorf("%s serves on with what it had: %w", i.name, why)
	}
}

// fetchInTime is fetch within the time of a start.
func (r *run) fetchInTime(ctx context.Context, i *instance) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.StartTimeout)
	defer cancel()
	return r.fetch(ctx, i)
}

// finish stops one process for good, and closes its log.
func (r *run) finish(c *child) {
	if c == nil {
		return
	}
	c.stop(r.grace(), r.hurry)
	_ = c.log.Close() // what it holds was written
}

// forgotten waits until nobody who calls an instance would choose it any more, or for a while.
func (r *run) forgotten(ctx context.Context, i *instance) {
	ctx, cancel := context.WithTimeout(ctx, forgetTimeout)
	defer cancel()
	for _, caller := range r.callers(i) {
		for r.knows(ctx, caller, i) && sleep(ctx, pollInterval) {
		}
	}
}

// callers are the instances that call one, without itself.
func (r *run) callers(called *instance) []*instance {
	var callers []*instance
	for _, i := range r.all {
		for _, upstream := range i.plan().Upstreams {
			if i != called && upstream.Service == called.plan().Workload.Name {
				callers = append(callers, i)
				break
			}
		}
	}
	return callers
}

// knows tells whether the Plan that a caller has in force names an instance. One that does not answer has
// none.
func (r *run) knows(ctx context.Context, caller, called *instance) bool {
	plan, err := r.control.plan(ctx, caller.admin)
	if err != nil {
		return false
	}
	for _, upstream := range plan.Upstreams {
		for _, endpoint := range upstream.Endpoints {
			if upstream.Service == called.plan().Workload.Name && endpoint.Instance == called.name {
				return true
			}
		}
	}
	return false
}

// back waits until an instance that was started anew is ready, and its callers know it.
func (r *run) back(ctx context.Context, i *instance) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.StartTimeout)
	defer cancel()
	for {
		listening, problem := r.listening(ctx)
		missing := ""
		switch {
		case !r.control.healthy(ctx, i.admin):
			missing = "its sidecar has no certificate and Plan yet, or its proxy does not serve"
		case !containsAll(listening[i.name], i.inbound):
			missing = "its sidecar does not report that it listens" + problem
		default:
			var without []string
			for _, caller := range r.callers(i) {
				if len(i.inbound) > 0 && r.control.healthy(ctx, caller.admin) && !r.knows(ctx, caller, i) {
					without = append(without, caller.name)
				}
			}
			if len(without) == 0 {
				return nil
			}
			missing = "it is not known yet to " + strings.Join(without, ", ")
		}
		if err := r.brokenSidecar(i); err != nil {
			return err
		}
		if !sleep(ctx, pollInterval) {
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("%s is not ready %s after it was started anew (--start-timeout): %s%s", i.name, r.cfg.StartTimeout, missing, r.lastLinesOf(i))
			}
			return fmt.Errorf("%s: %w before it was ready again", i.name, errStopping)
		}
	}
}

// errStopping says that the mesh is coming to its end.
var errStopping = errors.New("the mesh is being stopped")

// lastLinesOf are the last lines of what an instance's sidecar consists of.
func (r *run) lastLinesOf(i *instance) string {
	var lines []string
	for _, c := range slices.DeleteFunc([]*child{i.sidecar.Load(), i.proxy.Load()}, func(c *child) bool { return c == nil }) {
		lines = append(lines, r.lastLines(c))
	}
	return strings.Join(lines, "")
}
