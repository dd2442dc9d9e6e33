package rotate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign.dev/mesh"
	"countersign.dev/secret"
)

// TestWaves gives callees their turn before their callers.
func TestWaves(t *testing.T) {
	for text, want := range map[string]string{
		"":                               "[]",
		"a b c":                          "[[a b c]]",
		"web>shop shop>db db":            "[[db] [shop] [web]]",
		"web>shop,db shop>db db":         "[[db] [shop] [web]]",
		"a>b b>a c":                      "[[a b c]]",
		"a>b b>a,d c>a d":                "[[d] [a b] [c]]",
		"a>b b>c c>a,x d>d,gone x":       "[[d x] [a b c]]",
		"z>a a>b b>a,c c>d d>c e>z e2>e": "[[c d] [a b] [z] [e] [e2]]",
	} {
		var targets []Target
		for word := range strings.FieldsSeq(text) {
			name, calls, found := strings.Cut(word, ">")
			target := Target{Workload: mesh.Workload{Name: name}}
			if found {
				target.Calls = strings.Split(calls, ",")
			}
			targets = append(targets, target)
		}
		var got [][]string
		for _, wave := range waves(targets) {
			var names []string
			for _, i := range wave {
				names = append(names, targets[i].Workload.Name)
			}
			got = append(got, names)
		}
		if fmt.Sprint(got) != want {
			t.Errorf("%s: %v, want %s", text, got, want)
		}
	}
}

// TestRotateInWaves rolls out several services at the same time, not too many, callees first, and gives the results in the
// order of the targets.
func TestRotateInWaves(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	var now, most atomic.Int32
	var mu sync.Mutex
	var order []string
	together := make(chan struct{})
	var targets []Target
	for _, name := range []string{"web", "s1", "s2", "s3", "s4", "s5", "s6"} {
		target := w.target
		target.Workload.Name, target.Secret = name, "shop/"+name
		c := newCluster(&world{t: t, files: w.files, target: target})
		c.waits = func(context.Context, string) error {
			most.Store(max(most.Load(), now.Add(1)))
			if now.Load() == maxRollouts {
				close(together)
			}
			if name != "web" {
				<-together
			}
			defer now.Add(-1)
			mu.Lock()
			defer mu.Unlock()
			order = append(order, name)
			return nil
		}
		target.Rollout, target.Observer = c, c
		if name == "web" {
			target.Calls = []string{"s1", "s6"}
		}
		targets = append(targets, target)
	}
	var names []string
	for _, result := range w.rotator().RotateAll(t.Context(), targets, Options{}) {
		if result.Outcome != Rotated {
			t.Errorf("%+v", result)
		}
		names = append(names, result.Service)
	}
	if got := fmt.Sprint(names); got != "[web s1 s2 s3 s4 s5 s6]" || order[len(order)-1] != "web" || most.Load() != maxRollouts {
		t.Errorf("results of %s; in the order %s, at most %d at a time", got, order, most.Load())
	}
}

// TestSingleFlight issues one certificate, and rolls out once, for fifty triggers at the same time.
func TestSingleFlight(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	c := newCluster(w)
	w.first()
	w.authority.bundle = append(w.authority.bundle, newHierarchy(t, "second")) // it is due until it is rotated
	var group sync.WaitGroup
	start := make(chan struct{})
	results := make([]Result, 50)
	for i := range results {
		config := w.config
		config.Holder = fmt.Sprintf("countersign rotate on machine%d, pid 1, user nobody", i)
		config.Progress = nil
		r, err := New(config)
		if err != nil {
			t.Fatal(err)
		}
		group.Go(func() {
			<-start
			results[i] = r.Rotate(t.Context(), w.target, Options{})
		})
	}
	close(start)
	group.Wait()
	outcomes := map[Outcome]int{}
	for _, result := range results {
		if result.Err != nil && !errors.Is(result.Err, secret.ErrHeld) {
			t.Errorf("%v", result.Err)
		}
		outcomes[result.Outcome]++
	}
	if outcomes[Rotated] != 1 || w.authority.issued() != 2 || len(c.begun) != 2 {
		t.Errorf("%v; %d issued, %d rolled out", outcomes, w.authority.issued(), len(c.begun))
	}
	w.check()
}

// TestDaemonInWaves lets a daemon roll out some services at the same time, and remembers of each that it failed.
func TestDaemonInWaves(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	var targets []Target
	var clusters []*cluster
	for i := range 6 {
		target := w.target
		target.Workload.Name = fmt.Sprintf("s%d", i)
		target.Secret = "shop/" + target.Workload.Name
		c := newCluster(&world{t: t, files: w.files, target: target})
		c.refuse = fmt.Errorf("%w: denied", ErrRolloutFailed)
		target.Rollout, target.Observer = c, c
		targets, clusters = append(targets, target), append(clusters, c)
	}
	d := &Daemon{Rotator: w.rotator(), Log: slog.New(slog.DiscardHandler), Targets: func(context.Context) ([]Target, error) { return targets, nil }}
	retries := map[string]*retry{}
	if wait := d.round(t.Context(), retries); wait > firstRetry || len(retries) != len(targets) {
		t.Errorf("it waits %s after %d failures", wait, len(retries))
	}
	for _, c := range clusters {
		c.refuse = nil
	}
	for _, r := range retries {
		r.next = time.Time{}
	}
	d.round(t.Context(), retries) // what is current is not due any more
	for _, s := range d.Statuses(t.Context()) {
		if s.Serial == "" || s.Failures != 0 || s.Holder != "" {
			t.Errorf("%+v", s)
		}
	}
	if len(retries) != 0 {
		t.Errorf("%+v", retries)
	}
}

// TestTargetOf takes from a Plan whom the workload calls, each once.
func TestTargetOf(t *testing.T) {
	plan := &mesh.Plan{
		Workload: mesh.Workload{Name: "web"}, Delivery: mesh.DeliveryPlan{Secret: "shop/web", Layout: string(secret.LayoutJSON)},
		Upstreams: []mesh.Upstream{{Service: "orders", Port: 1}, {Service: "orders", Port: 2}, {Service: "carts"}},
	}
	target, err := TargetOf(plan)
	if got := fmt.Sprint(target.Calls); err != nil || got != "[orders carts]" || target.Restart {
		t.Errorf("%s, %v", got, err)
	}
	plan.Delivery.Layout = "none"
	if _, err := TargetOf(plan); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("%v, want ErrInvalid", err)
	}
}
