package server

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/policy"
)

// maxInstances bounds how many instances one workload may register.
const maxInstances = 1000

// timing are the times by which the server works. Tests shorten them.
type timing struct {
	heartbeat    time.Duration // between two events of a stream on which nothing happens
	write        time.Duration // that a peer may take to accept one event
	grace        time.Duration // for which a lost stream is forgiven
	restartGrace time.Duration // the same after a start of the server: everybody has to come back
	sweep        time.Duration // between two looks at what has run out
	forget       time.Duration // for which an instance that is gone is shown in the status
	leafTTL      time.Duration // of the server's own certificate
	socketStop   time.Duration // for which the administrator's requests may finish at the end
	crl          time.Duration // between two makings of the revocation lists when nothing is revoked
}

func defaultTiming() timing {
	return timing{
		heartbeat:    5 * time.Second,
		write:        10 * time.Second,
		grace:        10 * time.Second,
		restartGrace: 30 * time.Second,
		sweep:        time.Second,
		forget:       time.Hour,
		leafTTL:      24 * time.Hour,
		socketStop:   5 * time.Second,
		crl:          ca.CRLInterval,
	}
}

// registryStore is what a registry keeps its state in.
type registryStore interface {
	save(ctx context.Context, c change) error
}

// registry knows the running specification and who serves it, and makes of both the Plan that each
// workload is told. It may be used by many goroutines.
//
// A change is stored before anybody hears of it: after a crash no revision number stands for two
// different Plans.
type registry struct {
	store  registryStore
	log    *slog.Logger
	now    func() time.Time
	timing timing

	mu        sync.Mutex // guards what follows
	trusted   string     // trust.word: what agents are told beside their Plans
	spec      *mesh.Spec
	documents []mesh.Document
	revision  uint64
	base      map[string]*mesh.Plan // as compiled, without endpoints
	plans     map[string]*mesh.Plan // as told; never changed after they were published
	instances map[string]map[string]*instance
	unsaved   map[instanceKey]bool // instances that wait to be stored
	changed   chan struct{}        // closed and replaced when anything here changes
}

// instance is one sidecar.
type instance struct {
	workload, name string
	report         api.Report
	stream         *stream   // nil: not connected
	lost           time.Time // when the stream ended, or the server started
	grace          time.Duration
	away           bool // the grace has run out
}

// stream is an open watch.
type stream struct {
	instanceKey
	wake  chan struct{} // holds one word: there may be another Plan
	ended chan struct{} // closed when another stream of the same instance has taken over
}

func newRegistry(store registryStore, log *slog.Logger, now func() time.Time, t timing, trusted string) *registry {
	return &registry{
		store: store, log: log, now: now, timing: t, trusted: trusted,
		instances: make(map[string]map[string]*instance),
		unsaved:   make(map[instanceKey]bool),
		changed:   make(chan struct{}),
	}
}

// restore puts the registry into the state that the store remembers. Instances count as lost since
// now: their sidecars serve on, and come back within the grace.
func (r *registry) restore(spec *mesh.Spec, documents []mesh.Document, revision uint64, rows map[string]planRow, instances map[instanceKey]instanceRow) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	for key, row := range instances {
		i := &instance{workload: key.workload, name: key.instance, report: row.report, away: row.away, lost: now}
		if !row.away {
			i.grace = r.timing.restartGrace
		}
		r.put(i)
	}
	base, err := compileAll(spec)
	if err != nil {
		return err
	}
	r.spec, r.documents, r.base, r.revision = spec, documents, base, revision
	r.plans = make(map[string]*mesh.Plan)
	for workload := range base {
		plan := r.plan(workload, now)
		plan.Revision = rows[workload].revision
		if digest(plan, r.trusted) != rows[workload].digest {
			plan.Revision = 0 // publish gives it a new one
		}
		r.plans[workload] = plan
	}
	return nil
}

func compileAll(spec *mesh.Spec) (map[string]*mesh.Plan, error) {
	plans := make(map[string]*mesh.Plan)
	for _, workload := range spec.Workloads() {
		plan, err := spec.Compile(workload.Name)
		if err != nil {
			return nil, fmt.Errorf("compile the Plan of %q: %w", workload.Name, err)
		}
		plans[workload.Name] = plan
	}
	return plans, nil
}

// apply makes a specification the running one under a new revision, which every workload gets.
// Before anything changes, record is called with that revision; when it fails, nothing changes.
func (r *registry) apply(ctx context.Context, spec *mesh.Spec, documents []mesh.Document, file string, record func(revision uint64) error) (uint64, error) {
	base, err := compileAll(spec)
	if err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	revision := r.revision + 1
	if err := record(revision); err != nil {
		return 0, err
	}
	c := change{revision: revision, plans: make(map[string]planRow), documents: documents, file: file}
	now := r.now()
	before := r.base
	r.base = base
	plans := make(map[string]*mesh.Plan)
	for workload := range base {
		plan := r.plan(workload, now)
		plan.Revision = revision
		plans[workload] = plan
		c.plans[workload] = planRow{revision, digest(plan, r.trusted)}
	}
	for workload := range before {
		if base[workload] == nil {
			c.gone = append(c.gone, workload)
		}
	}
	if err := r.store.save(ctx, c); err != nil {
		r.base = before
		return 0, fmt.Errorf("store the specification: %w", err)
	}
	r.spec, r.documents, r.revision, r.plans = spec, documents, revision, plans
	r.wakeAll()
	return revision, nil
}

// plan is a workload's Plan with the endpoints of now and no revision. The caller holds mu.
func (r *registry) plan(workload string, now time.Time) *mesh.Plan {
	plan := *r.base[workload]
	plan.Upstreams = slices.Clone(plan.Upstreams)
	for i, upstream := range plan.Upstreams {
		plan.Upstreams[i].Endpoints = r.endpoints(upstream.Service, upstream.Port, now)
	}
	return &plan
}

// endpoints are where a port of a service is served, by instance.
func (r *registry) endpoints(service string, port int, now time.Time) []mesh.Endpoint {
	endpoints := []mesh.Endpoint{}
	for _, i := range r.instances[service] {
		if i.report.Draining || !i.live(now) {
			continue
		}
		for _, listening := range i.report.Listening {
			if address, err := netip.ParseAddrPort(listening.Address); listening.Port == port && err == nil {
				endpoints = append(endpoints, mesh.Endpoint{Instance: i.name, Address: address})
			}
		}
	}
	slices.SortFunc(endpoints, func(a, b mesh.Endpoint) int {
		return cmp.Or(cmp.Compare(a.Instance, b.Instance), a.Address.Compare(b.Address))
	})
	return endpoints
}

// live tells whether an instance is connected or was a moment ago.
func (i *instance) live(now time.Time) bool {
	return i.stream != nil || now.Sub(i.lost) < i.grace
}

// retrust lets everybody be told anew, because what is told beside every Plan has changed. What cannot be
// stored at once is told by a later sweep.
func (r *registry) retrust(ctx context.Context, trusted string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trusted = trusted
	for workload, told := range r.plans {
		plan := *told
		plan.Revision = 0 // publish gives it a new one
		r.plans[workload] = &plan
	}
	r.publish(ctx)
}

// digest tells Plans apart, whatever their revision.
func digest(plan *mesh.Plan, trusted string) string {
	unnumbered := *plan
	unnumbered.Revision = 0
	text, err := json.Marshal(&unnumbered)
	if err != nil {
		return "" // never of two equal Plans then: they are told once too often
	}
	sum := sha256.Sum256(append(text, trusted...))
	return hex.EncodeToString(sum[:])
}

// publish makes Plans anew where endpoints have changed, stores them and tells those whom they are
// for. When they cannot be stored nobody is told, and the next sweep tries again. The caller holds mu.
func (r *registry) publish(ctx context.Context) {
	now := r.now()
	revision := r.revision + 1
	plans := make(map[string]*mesh.Plan)
	c := change{revision: r.revision, plans: make(map[string]planRow), instances: make(map[instanceKey]*instanceRow)}
	for workload := range r.base {
		plan := r.plan(workload, now)
		told := r.plans[workload]
		if told != nil && told.Revision != 0 && sameEndpoints(told, plan) {
			continue
		}
		plan.Revision = revision
		plans[workload] = plan
		c.plans[workload] = planRow{revision, digest(plan, r.trusted)}
		c.revision = revision
	}
	for key := range r.unsaved {
		c.instances[key] = nil
		if i := r.instances[key.workload][key.instance]; i != nil {
			c.instances[key] = &instanceRow{i.report, i.away}
		}
	}
	if len(c.plans) == 0 && len(c.instances) == 0 {
		return
	}
	// The state is everybody's: it is not lost because the one whose request changed it has gone.
	if err := r.store.save(context.WithoutCancel(ctx), c); err != nil {
		r.log.ErrorContext(ctx, "cannot store a change; it is tried again", "error", err)
		return
	}
	clear(r.unsaved)
	r.revision = c.revision
	maps.Copy(r.plans, plans)
	for workload := range plans {
		for _, i := range r.instances[workload] {
			i.wake()
		}
	}
	r.broadcast()
}

// sameEndpoints compares two Plans of one base.
func sameEndpoints(a, b *mesh.Plan) bool {
	return slices.EqualFunc(a.Upstreams, b.Upstreams, func(a, b mesh.Upstream) bool {
		return slices.Equal(a.Endpoints, b.Endpoints)
	})
}

func (i *instance) wake() {
	if i.stream == nil {
		return
	}
	select {
	case i.stream.wake <- struct{}{}:
	default: // it has not read the last word yet
	}
}

// wakeAll tells every stream to look. The caller holds mu.
func (r *registry) wakeAll() {
	for _, instances := range r.instances {
		for _, i := range instances {
			i.wake()
		}
	}
	r.broadcast()
}

// broadcast wakes those who wait for anything to change. The caller holds mu.
func (r *registry) broadcast() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// current is the Plan that a workload is to be told; [policy.ErrNotDeclared] when it has none.
func (r *registry) current(workload id.ID) (*mesh.Plan, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.declared(workload); err != nil {
		return nil, err
	}
	return r.plans[workload.Name()], nil
}

// declared tells whether the running specification has a workload of that identity. The caller
// holds mu.
func (r *registry) declared(workload id.ID) error {
	if plan := r.base[workload.Name()]; plan == nil || plan.Workload.Identity != workload {
		return fmt.Errorf("%s: %w", workload, policy.ErrNotDeclared)
	}
	return nil
}

// running is the specification of this moment.
func (r *registry) running() (*mesh.Spec, []mesh.Document, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.spec, r.documents, r.revision
}

// put adds an instance. The caller holds mu.
func (r *registry) put(i *instance) {
	if r.instances[i.workload] == nil {
		r.instances[i.workload] = make(map[string]*instance)
	}
	r.instances[i.workload][i.name] = i
}
