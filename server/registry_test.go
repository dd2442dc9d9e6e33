package server

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/id"
	"countersign.dev/mesh"
)

// fakeStore keeps what it is told in memory, and fails when it should.
type fakeStore struct {
	fail      error
	revisions []uint64
	plans     map[string]planRow
	instances map[instanceKey]instanceRow
}

func (s *fakeStore) save(_ context.Context, c change) error {
	if s.fail != nil {
		return s.fail
	}
	s.revisions = append(s.revisions, c.revision)
	for workload, row := range c.plans {
		s.plans[workload] = row
	}
	for key, row := range c.instances {
		if row == nil {
			delete(s.instances, key)
		} else {
			s.instances[key] = *row
		}
	}
	return nil
}

// registryFixture is a registry on a fake store, with a clock that stands still.
type registryFixture struct {
	*registry
	t     *testing.T
	store *fakeStore
	clock time.Time
}

func newRegistryFixture(t *testing.T) *registryFixture {
	t.Helper()
	f := &registryFixture{
		t: t, clock: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		store: &fakeStore{plans: map[string]planRow{}, instances: map[instanceKey]instanceRow{}},
	}
	f.restart(0)
	documents, spec := f.spec(colorapp)
	if _, err := f.apply(t.Context(), spec, documents, "", func(uint64) error { return nil }); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *registryFixture) spec(text string) ([]mesh.Document, *mesh.Spec) {
	f.t.Helper()
	documents := []mesh.Document{{Name: "mesh.yaml", Directory: "/", Content: text}}
	spec, err := mesh.ParseDocuments(documents)
	if err != nil {
		f.t.Fatal(err)
	}
	return documents, spec
}

// restart makes a new registry of what the store holds.
func (f *registryFixture) restart(revision uint64) {
	f.t.Helper()
	documents, spec := f.spec(colorapp)
	f.registry = newRegistry(f.store, slog.New(slog.DiscardHandler), func() time.Time { return f.clock }, defaultTiming(), "bundle")
	if err := f.restore(spec, documents, revision, f.store.plans, f.store.instances); err != nil {
		f.t.Fatal(err)
	}
}

func (f *registryFixture) identity(text string) id.ID {
	f.t.Helper()
	identity, err := id.Parse("spiffe://colorapp.internal/" + text)
	if err != nil {
		f.t.Fatal(err)
	}
	return identity
}

// say reports that an instance of colorteller listens.
func (f *registryFixture) say(instance, address string) {
	f.t.Helper()
	report := api.Report{Instance: instance, Listening: []api.Listening{{Port: 9080, Address: address}}, NotAfter: f.clock.Add(time.Hour)}
	if err := f.report(f.t.Context(), f.identity("service/colorteller"), report); err != nil {
		f.t.Fatal(err)
	}
}

// told is what the gateway is told: the revision and its endpoints.
func (f *registryFixture) told() (uint64, string) {
	f.t.Helper()
	plan, err := f.current(f.identity("gateway/colorgateway"))
	if err != nil {
		f.t.Fatal(err)
	}
	return plan.Revision, endpointsOf(plan)
}

func (f *registryFixture) wantTold(when, want string) {
	f.t.Helper()
	if _, endpoints := f.told(); endpoints != want {
		f.t.Errorf("%s: endpoints %q, want %q", when, endpoints, want)
	}
}

// TestGrace follows an instance through the loss of its stream, by the clock alone.
func TestGrace(t *testing.T) {
	f := newRegistryFixture(t)
	st, err := f.attach(t.Context(), f.identity("service/colorteller"), "i-1")
	if err != nil {
		t.Fatal(err)
	}
	f.say("i-1", "10.0.0.1:9080")
	f.wantTold("connected", "i-1=10.0.0.1:9080")
	f.detach(st)
	f.clock = f.clock.Add(f.timing.grace - time.Millisecond)
	f.sweep(t.Context())
	f.wantTold("within the grace", "i-1=10.0.0.1:9080")
	f.clock = f.clock.Add(time.Millisecond)
	f.sweep(t.Context())
	f.wantTold("after the grace", "")

	// After a restart it is not taken for one that was there before.
	revision, _ := f.told()
	f.restart(revision)
	f.wantTold("restarted while it is away", "")
	if again, _ := f.told(); again != revision {
		t.Errorf("revision %d after the restart, want %d", again, revision)
	}
	if st, err = f.attach(t.Context(), f.identity("service/colorteller"), "i-1"); err != nil {
		t.Fatal(err)
	}
	f.wantTold("back", "i-1=10.0.0.1:9080")

	revision, _ = f.told()
	f.restart(revision)
	f.wantTold("restarted while it is there", "i-1=10.0.0.1:9080")
	if again, _ := f.told(); again != revision {
		t.Errorf("revision %d after the restart, want %d", again, revision)
	}
	f.clock = f.clock.Add(f.timing.restartGrace)
	f.sweep(t.Context())
	f.wantTold("when it has not come back", "")
	_ = st
}

// TestForgotten lets an instance's certificate end while it is away.
func TestForgotten(t *testing.T) {
	f := newRegistryFixture(t)
	f.say("i-1", "10.0.0.1:9080")
	f.clock = f.clock.Add(59 * time.Minute)
	f.sweep(t.Context())
	if len(f.store.instances) != 1 {
		t.Fatal("it is forgotten while its certificate is good")
	}
	f.clock = f.clock.Add(f.timing.forget)
	f.sweep(t.Context())
	if len(f.store.instances) != 0 || len(f.registry.instances["colorteller"]) != 0 {
		t.Error("it is not forgotten")
	}
}

// TestStoreFails lets the store fail: nobody is told what is not stored, and the next sweep makes up
// for it. No revision is used for two Plans.
func TestStoreFails(t *testing.T) {
	f := newRegistryFixture(t)
	before, _ := f.told()
	f.store.fail = errors.New("the disk is full")
	f.say("i-1", "10.0.0.1:9080")
	if revision, endpoints := f.told(); revision != before || endpoints != "" {
		t.Errorf("revision %d with %q was told, and not stored", revision, endpoints)
	}
	documents, spec := f.spec(permissive)
	if _, err := f.apply(t.Context(), spec, documents, "", func(uint64) error { return nil }); !errors.Is(err, f.store.fail) {
		t.Errorf("apply: %v", err)
	}
	if running, _, revision := f.running(); running == spec || revision != before {
		t.Errorf("revision %d runs after a failure", revision)
	}
	f.sweep(t.Context())
	f.wantTold("while the store fails", "")
	f.store.fail = nil
	f.sweep(t.Context())
	if revision, endpoints := f.told(); revision != before+1 || endpoints != "i-1=10.0.0.1:9080" {
		t.Errorf("revision %d with %q", revision, endpoints)
	}
	f.sweep(t.Context())
	for i := 1; i < len(f.store.revisions); i++ {
		if f.store.revisions[i] < f.store.revisions[i-1] {
			t.Errorf("revisions %v go back", f.store.revisions)
		}
	}
}

// TestRecordFails refuses to record an apply: nothing changes.
func TestRecordFails(t *testing.T) {
	f := newRegistryFixture(t)
	before, _ := f.told()
	documents, spec := f.spec(permissive)
	refused := errors.New("refused")
	stored := len(f.store.revisions)
	if _, err := f.apply(t.Context(), spec, documents, "", func(uint64) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("%v", err)
	}
	if revision, _ := f.told(); revision != before || len(f.store.revisions) != stored {
		t.Error("something has changed")
	}
}

// TestOnlyWhoIsConcernedIsTold changes an endpoint: the service's own Plan keeps its revision.
func TestOnlyWhoIsConcernedIsTold(t *testing.T) {
	f := newRegistryFixture(t)
	teller, err := f.current(f.identity("service/colorteller"))
	if err != nil {
		t.Fatal(err)
	}
	f.say("i-1", "10.0.0.1:9080")
	again, err := f.current(f.identity("service/colorteller"))
	if err != nil {
		t.Fatal(err)
	}
	if again != teller {
		t.Error("the service is told of its own endpoint")
	}
	f.say("i-1", "10.0.0.1:9080")
	if n := len(f.store.revisions); n != 2 {
		t.Errorf("%d changes stored; a report that says nothing new is not one", n)
	}
	if len(teller.Upstreams) != 0 {
		t.Error("colorteller has upstreams")
	}
}

func TestReportsAreBounded(t *testing.T) {
	report := api.Report{
		Problem: string(make([]byte, 5000)), Admin: string(make([]byte, 5000)), Serial: string(make([]byte, 5000)),
		PlaintextCallers: map[string]int64{}, Callers: map[string]api.Caller{},
	}
	for i := range 1000 {
		report.PlaintextCallers[time.Duration(i).String()] = 1
		report.Callers[time.Duration(i).String()] = api.Caller{}
	}
	b := bounded(report)
	if len(b.Problem) > maxProblem+3 || len(b.Admin) > maxAdmin+3 || len(b.Serial) > 70 || len(b.PlaintextCallers) != maxReported || len(b.Callers) != maxReported {
		t.Errorf("%d %d %d %d %d", len(b.Problem), len(b.Admin), len(b.Serial), len(b.PlaintextCallers), len(b.Callers))
	}
	if len(report.Callers) != 1000 {
		t.Error("the original was changed")
	}
}
