package ecs

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"countersign.dev/rotate"
)

const checkout = "spiffe://payments.internal/service/checkout"

// TestLook sees what each running task serves, and by whom it was issued.
func TestLook(t *testing.T) {
	ca, stranger := newCA(t), newCA(t)
	target := targetOf(t, ca, 0)
	who := target.Workload.Identity.String()
	port := serve(t, "127.0.0.9", 0, ca.leaf(0x51, who, "checkout"))
	serve(t, "127.0.0.10", port, ca.leaf(0x52, who, "checkout"))
	serve(t, "127.0.0.11", port, stranger.leaf(0x52, who, "checkout"))
	serve(t, "127.0.0.12", port, ca.leaf(0x52, "spiffe://payments.internal/service/other", "checkout"))
	target.Inbound[0].Port = port

	starting, stopping, gone := taskOf("f6", 5, ""), taskOf("g7", 4, "127.0.0.9"), taskOf("h8", 4, "127.0.0.9")
	starting["lastStatus"] = "PENDING"
	stopping["desiredStatus"] = "STOPPED"
	gone["lastStatus"] = "DEPROVISIONING"
	sick, bridge, six := taskOf("b2", 5, "127.0.0.10"), taskOf("i9", 5, ""), taskOf("j10", 5, "")
	sick["healthStatus"] = "UNHEALTHY"
	six["containers"] = []object{{"name": "proxy", "networkInterfaces": []object{{"ipv6Address": "::1"}}}}
	f := &fake{tasks: []object{
		taskOf("a1", 4, "127.0.0.9"), sick, taskOf("c3", 5, "127.0.0.11"), taskOf("d4", 5, "127.0.0.12"), taskOf("e5", 5, "127.0.0.13"), starting, stopping, gone, bridge, six,
	}}
	s := open(t, f)
	seen, err := s.Look(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	problems := map[string]string{}
	for _, sighting := range seen {
		got = append(got, fmt.Sprintf("%s %s %s %s", sighting.Instance, sighting.Endpoint, sighting.By, sighting.Serial))
		problems[sighting.Instance] = sighting.Problem
	}
	want := []string{
		"a1 0.0.0.0_9443 handshake 51", "b2 0.0.0.0_9443 handshake 52", "c3 0.0.0.0_9443 handshake ", "d4 0.0.0.0_9443 handshake ",
		"e5 0.0.0.0_9443 handshake ", "i9 0.0.0.0_9443 handshake ", "j10 0.0.0.0_9443 handshake ",
	}
	if diff := cmp.Diff(want, got, cmpopts.SortSlices(func(a, b string) bool { return a < b })); diff != "" {
		t.Errorf("seen (-want +got):\n%s", diff)
	}
	for task, text := range map[string]string{
		"b2": "UNHEALTHY", "c3": "not to be trusted", "d4": "is not of " + who, "e5": "no certificate is served", "i9": "awsvpc", "j10": "[::1]:",
	} {
		says(t, problems[task], text)
	}
	if who != checkout {
		t.Errorf("it is %s", who)
	}
	if calls := f.called("ListTasks"); calls != 5 {
		t.Errorf("%d pages", calls)
	}
}

// TestLookByName sees a certificate of ACM, which has no SPIFFE ID.
func TestLookByName(t *testing.T) {
	ca := newCA(t)
	target := targetOf(t, ca, 0)
	target.Certificate.DNSIdentity = "checkout.payments.internal"
	port := serve(t, "127.0.0.9", 0, ca.leaf(0x51, "", "checkout.payments.internal"))
	serve(t, "127.0.0.10", port, ca.leaf(0x52, "", "other.payments.internal"))
	target.Inbound[0].Port = port
	s := open(t, &fake{tasks: []object{taskOf("a1", 4, "127.0.0.9"), taskOf("b2", 4, "127.0.0.10"), taskOf("c3", 4, "127.0.0.14")}})
	seen, err := s.Look(t.Context(), target)
	if err != nil || len(seen) != 3 || seen[0].Serial != "51" || seen[1].Serial != "" || seen[2].Serial != "" {
		t.Fatalf("%+v, %v", seen, err)
	}
	says(t, seen[1].Problem, "not to be trusted", "other.payments.internal")
	says(t, seen[2].Problem, "no certificate is served")
}

// TestBelieved takes a task's word that nobody can look at, when it has started late enough.
func TestBelieved(t *testing.T) {
	target := targetOf(t, newCA(t), 0)
	target.Inbound = target.Inbound[1:]
	target.Now.Serial = "77"
	sick := taskOf("c3", 5, "")
	sick["healthStatus"] = "UNHEALTHY"
	f := &fake{tasks: []object{taskOf("a1", 4, ""), taskOf("b2", 5, ""), sick}}
	s := open(t, f)
	for rollout, want := range map[string][]rotate.Sighting{
		"": {
			{Instance: "a1", Problem: "it has no listener with TLS of its own, so that nobody sees what it has"},
			{Instance: "b2", Problem: "it has no listener with TLS of its own, so that nobody sees what it has"},
			{Instance: "c3", Problem: "ECS says that the task is UNHEALTHY"},
		},
		fifth: {
			{Instance: "a1", Problem: "it was started before the roll-out, at 2026-11-23T08:04:03Z"},
			{Instance: "b2", Serial: "77"},
			{Instance: "c3", Problem: "ECS says that the task is UNHEALTHY"},
		},
		nobody: {
			{Instance: "a1", Serial: "77", Problem: "it has started while the service was to have no tasks"},
			{Instance: "b2", Serial: "77", Problem: "it has started while the service was to have no tasks"},
			{Instance: "c3", Problem: "ECS says that the task is UNHEALTHY"},
		},
	} {
		target.Now.Rollout = rollout
		seen, err := s.Look(t.Context(), target)
		if diff := cmp.Diff(want, seen, cmpopts.IgnoreFields(rotate.Sighting{}, "By", "Alone")); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", rollout, err, diff)
		}
		for _, sighting := range seen {
			if sighting.By != rotate.ByReport || !sighting.Alone {
				t.Errorf("%s was seen by %s, alone: %v", sighting.Instance, sighting.By, sighting.Alone)
			}
		}
	}
}

// trusting is an authority that says what it believes.
type trusting struct {
	rotate.Authority
	roots []byte
	err   error
}

func (a trusting) Trust(context.Context) (rotate.Trust, error) {
	return rotate.Trust{Bundle: a.roots}, a.err
}

// TestLookWithout says who could not look, and what for.
func TestLookWithout(t *testing.T) {
	ca := newCA(t)
	target := targetOf(t, ca, 1)
	f := &fake{service: serviceOf(2, deployed(4, "PRIMARY", "IN_PROGRESS", 2, 0))}
	s := open(t, f)
	pending := taskOf("a1", 4, "")
	pending["lastStatus"] = "PROVISIONING"
	f.tasks = []object{pending}
	seen, err := s.Look(t.Context(), target)
	if err != nil || len(seen) != 1 || seen[0].Serial != "" {
		t.Fatalf("%+v, %v", seen, err)
	}
	says(t, seen[0].Problem, "no task of the service runs; 2 are to, and 1 are starting")

	f.tasks = []object{taskOf("a1", 4, "127.0.0.14")}
	target.Now.Roots = nil
	if _, err := s.Look(t.Context(), target); err == nil {
		t.Error("it has looked without roots")
	}
	target.Authority = trusting{roots: ca.pem}
	if seen, err := s.Look(t.Context(), target); err != nil || len(seen) != 1 {
		t.Errorf("%+v, %v", seen, err)
	}
	away := errors.New("away")
	target.Authority = trusting{err: away}
	if _, err := s.Look(t.Context(), target); !errors.Is(err, away) {
		t.Errorf("%v, want %v", err, away)
	}
	for _, action := range []string{"ListTasks", "DescribeTasks"} {
		f.answer = func(called string, _ object) (int, object) {
			if called != action {
				return 0, nil
			}
			return failure(400, "AccessDeniedException", caller+"ecs:"+action)
		}
		_, err := s.Look(t.Context(), target)
		if err == nil || errors.Is(err, rotate.ErrRolloutFailed) {
			t.Fatalf("%s: %v", action, err)
		}
		says(t, err.Error(), `{"Effect":"Allow","Action":"ecs:`+action)
	}
}

// TestRunning tells whoever looks himself which tasks run, and how many are to when none does.
func TestRunning(t *testing.T) {
	starting, sick, bridge := taskOf("f6", 5, ""), taskOf("b2", 5, "127.0.0.10"), taskOf("c3", 4, "")
	starting["lastStatus"], sick["healthStatus"] = "PENDING", "UNHEALTHY"
	f := &fake{tasks: []object{bridge, sick, starting, taskOf("a1", 4, "127.0.0.9")}, service: serviceOf(3, deployed(5, "PRIMARY", "COMPLETED", 3, 3))}
	s := open(t, f)
	got, err := s.Running(t.Context())
	made := func(deployment int) time.Time {
		return epoch.Add(time.Duration(deployment)*time.Minute + 3*time.Second)
	}
	want := Running{Starting: 1, Tasks: []Task{
		{ID: "a1", Address: "127.0.0.9", Created: made(4)}, {ID: "b2", Address: "127.0.0.10", Created: made(5), Unhealthy: true}, {ID: "c3", Created: made(4)},
	}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	f.set(func() { f.tasks = []object{starting} })
	if got, err = s.Running(t.Context()); err != nil || got.Desired != 3 || got.Starting != 1 || len(got.Tasks) > 0 {
		t.Errorf("none runs: %+v, %v", got, err)
	}
	f.set(func() { f.service = nil })
	if _, err = s.Running(t.Context()); !errors.Is(err, rotate.ErrRolloutFailed) {
		t.Errorf("there is no such service: %v", err)
	}
}
