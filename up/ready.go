package up

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	"countersign.dev/mesh"
)

// readiness is how far an instance has come; each step is looked at until it is done.
type readiness struct {
	healthy   bool // the sidecar holds certificate and Plan, its outbound side is open
	listens   bool // the sidecar reports to the server that its inbound side accepts
	connected bool // its Plan has an endpoint for everything that it calls
	serves    bool // the application accepts
}

// awaitReady starts the applications, each when its sidecar can carry what it calls, and waits until
// everything is ready.
func (r *run) awaitReady(ctx context.Context) error {
	progress := make(map[*instance]*readiness, len(r.all))
	for _, i := range r.all {
		progress[i] = &readiness{serves: !i.runs()}
	}
	for {
		missing, err := r.look(ctx, progress)
		if err != nil {
			return err
		}
		if len(missing) == 0 {
			return nil
		}
		if err := r.broken(); err != nil {
			return err
		}
		r.console.progress("%s: %d of %d instances are ready", r.cfg.Spec.Mesh, r.ready(progress), len(r.all))
		if !sleep(ctx, pollInterval) {
			return r.late(ctx, strings.Join(missing, "\n"))
		}
	}
}

func (r *run) ready(progress map[*instance]*readiness) int {
	n := 0
	for _, p := range progress {
		if *p == (readiness{true, true, true, true}) {
			n++
		}
	}
	return n
}

// look takes one look at everything that is not ready, starts the applications whose turn it is, and
// says what is missing, a line or more each.
func (r *run) look(ctx context.Context, progress map[*instance]*readiness) ([]string, error) {
	listening, problem := r.listening(ctx)
	var missing []string
	for _, i := range r.all {
		p := progress[i]
		p.healthy = p.healthy || r.control.healthy(ctx, i.admin)
		if p.healthy && i.runs() && i.application.Load() == nil {
			if err := r.startApp(i); err != nil {
				return nil, err
			}
		}
		p.listens = p.listens || containsAll(listening[i.name], i.inbound)
		var absent []string
		if p.healthy && !p.connected {
			absent = r.absent(ctx, i)
			p.connected = len(absent) == 0
		}
		if i.application.Load() != nil && !p.serves {
			p.serves = r.acceptsAll(ctx, i)
		}
		switch {
		case !p.healthy:
			missing = append(missing, fmt.Sprintf("%s: its sidecar has no certificate and Plan yet%s", i.name, r.lastLinesOf(i)))
		case !p.listens:
			missing = append(missing, fmt.Sprintf("%s: its sidecar does not report that it listens%s%s", i.name, problem, r.lastLinesOf(i)))
		case !p.connected:
			missing = append(missing, fmt.Sprintf("%s: its sidecar knows no endpoint of %s%s", i.name, strings.Join(absent, ", "), r.lastLinesOf(i)))
		case !p.serves:
			missing = append(missing, fmt.Sprintf("%s: its application does not accept on %s%s", i.name, strings.Join(i.appAddresses(), ", "), r.lastLines(i.application.Load())))
		}
	}
	return missing, nil
}

// listening asks the server where the instances report to listen, by instance. When it cannot say,
// problem says why, for the end of a message.
func (r *run) listening(ctx context.Context) (_ map[string][]string, problem string) {
	all, err := r.control.Endpoints(ctx)
	if err != nil {
		return nil, fmt.Sprintf(" (%v)", err)
	}
	listening := make(map[string][]string, len(all))
	for _, one := range all {
		for _, in := range one.Inbound {
			listening[one.Instance] = append(listening[one.Instance], in.Address)
		}
	}
	return listening, ""
}

func containsAll(have []string, want map[int]netip.AddrPort) bool {
	for _, address := range want {
		if !slices.Contains(have, address.String()) {
			return false
		}
	}
	return true
}

// absent names the services, with their ports, of which a sidecar does not know every instance.
func (r *run) absent(ctx context.Context, i *instance) []string {
	plan := &mesh.Plan{}
	if len(i.plan().Upstreams) > 0 {
		inForce, err := r.control.plan(ctx, i.admin)
		if err == nil {
			plan = inForce
		}
	}
	var absent []string
	for _, wanted := range i.plan().Upstreams {
		known := map[string]bool{}
		if upstream, ok := plan.Upstream(wanted.Name); ok {
			for _, endpoint := range upstream.Endpoints {
				known[endpoint.Instance] = true
			}
		}
		for _, other := range r.all {
			if other.plan().Workload.Name == wanted.Service && !known[other.name] {
				absent = append(absent, fmt.Sprintf("%s:%d", other.name, wanted.Port))
			}
		}
	}
	return absent
}

func (r *run) acceptsAll(ctx context.Context, i *instance) bool {
	for _, port := range i.appPorts() {
		if !r.control.accepts(ctx, i.app[port]) {
			return false
		}
	}
	return true
}

// broken finds what waiting does not mend.
func (r *run) broken() error {
	for _, i := range r.all {
		if err := r.brokenOf(i); err != nil {
			return err
		}
	}
	if _, exits, last := r.server.process(); exits >= maxDeaths {
		return fmt.Errorf("the server %s%s", ending(last), r.lastLines(r.server))
	}
	return nil
}

// brokenOf finds what waiting for an instance does not mend.
func (r *run) brokenOf(i *instance) error {
	for _, c := range i.children() {
		if err := r.brokenChild(i, c); err != nil {
			return err
		}
	}
	return nil
}

// brokenChild tells of a process of an instance why waiting for it does not help.
func (r *run) brokenChild(i *instance, c *child) error {
	_, exits, last := c.process()
	var start *startError
	var exit *exec.ExitError
	usage := c == i.sidecar.Load() && errors.As(last, &exit) && exit.ExitCode() == 2
	switch {
	case exits == 0:
	case errors.As(last, &start), usage, exits >= maxDeaths:
		return fmt.Errorf("%s %s%s", c.name, ending(last), r.lastLines(c))
	}
	return nil
}
