package server

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"countersign.dev/api"
	"countersign.dev/id"
)

// Bounds of a report. What is beyond them is cut off: it is for people to look at.
const (
	maxReported    = 256  // entries of each map
	maxProblem     = 1000 // bytes
	maxAdmin       = 100
	maxInstanceLen = 63
)

// checkInstance tells whether a text can name an instance.
func checkInstance(name string) error {
	if err := id.CheckDNSName(strings.ToLower(name)); err != nil {
		return fmt.Errorf("%w: the instance's name: %w", errBadRequest, err)
	}
	return nil
}

// find gives the instance of a declared workload, a new one when need be. The caller holds mu.
func (r *registry) find(workload id.ID, name string) (*instance, error) {
	if err := r.declared(workload); err != nil {
		return nil, err
	}
	if i := r.instances[workload.Name()][name]; i != nil {
		return i, nil
	}
	if len(r.instances[workload.Name()]) >= maxInstances {
		return nil, fmt.Errorf("%w: %s has %d instances already", errBadRequest, workload, maxInstances)
	}
	i := &instance{workload: workload.Name(), name: name, lost: r.now(), grace: r.timing.grace}
	r.put(i)
	return i, nil
}

// attach registers an open stream. A stream of the same instance that is open ends: a sidecar that
// comes back over another network is quicker than the timeout of its old connection.
func (r *registry) attach(ctx context.Context, workload id.ID, name string) (*stream, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, err := r.find(workload, name)
	if err != nil {
		return nil, err
	}
	if i.stream != nil {
		close(i.stream.ended)
	}
	i.stream = &stream{
		instanceKey: instanceKey{i.workload, i.name},
		wake:        make(chan struct{}, 1),
		ended:       make(chan struct{}),
	}
	r.back(i)
	r.publish(ctx)
	r.broadcast()
	return i.stream, nil
}

// back notes that an instance is there. The caller holds mu.
func (r *registry) back(i *instance) {
	if i.away {
		i.away = false
		r.unsaved[instanceKey{i.workload, i.name}] = true
	}
}

// detach notes that a stream has ended. Its instance is forgiven for a while.
func (r *registry) detach(s *stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.instances[s.workload][s.instance]
	if i == nil || i.stream != s {
		return
	}
	i.stream, i.lost, i.grace = nil, r.now(), r.timing.grace
	r.broadcast()
}

// report takes what an instance says of itself.
func (r *registry) report(ctx context.Context, workload id.ID, report api.Report) error {
	if err := checkInstance(report.Instance); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	i, err := r.find(workload, report.Instance)
	if err != nil {
		return err
	}
	report = bounded(report)
	report.Listening = r.usable(workload.Name(), report.Listening)
	stored := sameFacts(i.report, report)
	i.report = report
	if !stored {
		r.unsaved[instanceKey{i.workload, i.name}] = true
	}
	if i.stream == nil { // a sign of life, too
		i.lost, i.grace = r.now(), r.timing.grace
		r.back(i)
	}
	if len(r.unsaved) > 0 {
		r.publish(ctx)
	}
	r.broadcast()
	return nil
}

// usable are the listeners that peers can be told: of ports that the workload has, at addresses that
// can be dialled. A sidecar that says otherwise speaks of nothing that concerns its peers.
func (r *registry) usable(workload string, listening []api.Listening) []api.Listening {
	var usable []api.Listening
	for _, l := range listening {
		address, err := netip.ParseAddrPort(l.Address)
		if err != nil || address.Addr().IsUnspecified() || address.Addr().IsMulticast() || address.Port() == 0 || address.Addr().Zone() != "" {
			continue
		}
		for _, inbound := range r.base[workload].Inbound {
			if inbound.Port == l.Port && !slices.ContainsFunc(usable, func(u api.Listening) bool { return u.Port == l.Port }) {
				usable = append(usable, l)
			}
		}
	}
	slices.SortFunc(usable, func(a, b api.Listening) int { return a.Port - b.Port })
	return usable
}

// sameFacts tells whether a report changes something that outlives the server: what peers are told,
// and what the status shows after a restart.
func sameFacts(a, b api.Report) bool {
	return slices.Equal(a.Listening, b.Listening) && a.Draining == b.Draining && a.Serial == b.Serial &&
		a.NotAfter.Equal(b.NotAfter) && a.LastRenewal.Equal(b.LastRenewal) && a.PID == b.PID && a.Admin == b.Admin && a.Bundle == b.Bundle
}

// bounded cuts off what nobody would read.
func bounded(report api.Report) api.Report {
	report.Problem = cut(report.Problem, maxProblem)
	report.Admin = cut(report.Admin, maxAdmin)
	report.Serial = cut(report.Serial, maxInstanceLen)
	report.Bundle = cut(report.Bundle, maxAdmin)
	report.PlaintextCallers = boundedMap(report.PlaintextCallers)
	report.Callers = boundedMap(report.Callers)
	return report
}

// cut shortens a text.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}

func boundedMap[V any](m map[string]V) map[string]V {
	if len(m) <= maxReported {
		return m
	}
	kept := make(map[string]V, maxReported)
	for _, key := range slices.Sorted(maps.Keys(m))[:maxReported] {
		kept[key] = m[key]
	}
	return kept
}

// sweep publishes what time alone has changed, stores what could not be stored, and forgets
// instances that have left.
func (r *registry) sweep(ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	for workload, instances := range r.instances {
		for name, i := range instances {
			if !i.live(now) && !i.away {
				i.away = true
				r.unsaved[instanceKey{workload, name}] = true
			}
			if r.gone(i, now) {
				delete(instances, name)
				r.unsaved[instanceKey{workload, name}] = true
			}
		}
	}
	r.publish(ctx)
}

// gone tells whether an instance is not worth showing any more: it has said good-bye, its workload is
// not declared, or it has been away for so long that its certificate has ended as well.
func (r *registry) gone(i *instance, now time.Time) bool {
	switch away := now.Sub(i.lost); {
	case i.live(now):
		return false
	case i.report.Draining, r.base[i.workload] == nil:
		return true
	default:
		return away > r.timing.forget && now.After(i.report.NotAfter)
	}
}

// confirmed says which connected instances obey a revision, and gives the channel that is
// closed when that may have changed.
func (r *registry) confirmed(revision uint64) (api.Confirmation, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := api.Confirmation{Revision: revision, Confirmed: []string{}, Missing: []string{}}
	for workload, instances := range r.instances {
		for name, i := range instances {
			switch {
			case i.stream == nil || r.base[workload] == nil || i.report.Draining:
			// A workload that nothing has changed for since is not told of a revision: its last Plan says
			// the same.
			case i.report.Revision >= min(revision, r.plans[workload].Revision):
				c.Confirmed = append(c.Confirmed, name)
			default:
				c.Missing = append(c.Missing, name)
			}
		}
	}
	slices.Sort(c.Confirmed)
	slices.Sort(c.Missing)
	return c, r.changed
}

// endpointsNow lists the live instances with what they listen on.
func (r *registry) endpointsNow() []api.Instance {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	list := []api.Instance{}
	for workload, instances := range r.instances {
		for _, i := range instances {
			if !i.live(now) || i.report.Draining || r.base[workload] == nil || i.report.Instance == "" {
				continue
			}
			list = append(list, api.Instance{
				Workload: workload, Kind: r.base[workload].Workload.Kind, Instance: i.name,
				Serial: i.report.Serial, Revision: i.report.Revision, PID: i.report.PID, Admin: i.report.Admin,
				Inbound: append([]api.Listening{}, i.report.Listening...),
			})
		}
	}
	slices.SortFunc(list, func(a, b api.Instance) int {
		return strings.Compare(a.Workload+"\x00"+a.Instance, b.Workload+"\x00"+b.Instance)
	})
	return list
}
