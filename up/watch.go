package up

import (
	"context"
	"fmt"
	"strings"
	"time"

	"countersign.dev/api"
	"countersign.dev/mesh"
)

const (
	watchInterval = 2 * time.Second
	// tokenPatience is how long a sidecar is given to use a token before it gets another.
	tokenPatience = 15 * time.Second
)

// watch keeps what was written when the mesh became ready true while it runs: the run document, when a
// process is restarted or `mesh apply` changes a listener; and the join tokens, when a certificate has
// expired, as it does while a laptop sleeps. It returns when ctx ends.
func (r *run) watch(ctx context.Context) {
	ticker := time.NewTicker(r.watchInterval)
	defer ticker.Stop()
	renewed := map[string]time.Time{}
	revision := uint64(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.changed:
			if err := r.document().write(r.state.documentPath()); err != nil {
				r.console.line("%v", err)
			}
		case <-ticker.C:
			r.refreshTokens(ctx, renewed)
			revision = r.refreshPlans(ctx, revision)
		}
	}
}

// refreshTokens gives instances whose certificate has expired a fresh token: an expired certificate
// renews nothing. A watcher has one of its own, beside that which its proxy serves and the status shows; it is
// given a token when it is away.
func (r *run) refreshTokens(ctx context.Context, renewed map[string]time.Time) {
	statuses, err := r.control.Status(ctx)
	if err != nil {
		return // the server is being restarted
	}
	now := time.Now().Round(0) // by the wall clock: the other one stands still while the machine sleeps
	for _, status := range statuses {
		if now.Sub(renewed[status.Instance]) < tokenPatience {
			continue
		}
		expired := !status.NotAfter.IsZero() && !now.Before(status.NotAfter)
		for _, i := range r.all {
			if i.name != status.Instance || !expired && (status.Connected || !i.fromStore()) {
				continue
			}
			renewed[i.name] = now
			if err := r.newToken(ctx, i); err != nil && ctx.Err() == nil {
				r.console.line("%v", err)
			}
		}
	}
}

// refreshPlans takes over what `mesh apply` has changed, modes and calls, when the revision is no more
// the one that is known. It gives the revision.
func (r *run) refreshPlans(ctx context.Context, known uint64) uint64 {
	running, err := r.control.Mesh(ctx)
	if err != nil || running.Revision == known {
		return known
	}
	if err := r.follow(running); err != nil {
		r.console.line("%v", err)
	}
	r.noteChange()
	return running.Revision
}

// follow takes over the specification that the server runs.
func (r *run) follow(running *api.MeshResponse) error {
	spec, err := mesh.ParseDocuments(running.Documents)
	if err != nil {
		return fmt.Errorf("the specification that the server runs: %w", err)
	}
	if different := mesh.SameTopology(r.cfg.Spec, spec); len(different) > 0 {
		return fmt.Errorf("the server runs another specification than %s, which an earlier run on %s has left: %s", r.cfg.Path, r.state.dir, strings.Join(different, "; "))
	}
	for _, i := range r.all {
		plan, err := spec.Compile(i.plan().Workload.Name)
		if err != nil {
			return fmt.Errorf("compiling the plan of %s: %w", i.plan().Workload.Name, err)
		}
		i.planned.Store(plan)
	}
	return nil
}
