package up

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/engine"
	"countersign.dev/mesh"
)

// TestProxyEnvironment: a proxy learns nothing of what stands in the user's environment but the time zone.
func TestProxyEnvironment(t *testing.T) {
	t.Setenv("SECRET", "planted")
	t.Setenv("TZ", "Europe/Prague")
	r := &run{state: &state{dir: "/s"}, engines: engines{mesh.EngineNGINX: {Path: "/usr/sbin/nginx"}}}
	i := placed(t, specification(t, delivered))[0]
	want := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TZ=Europe/Prague"}
	if diff := cmp.Diff(want, r.proxyCommand(i).Env); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
}

// TestSupervisedEngine: a sidecar that runs the proxy itself is told which.
func TestSupervisedEngine(t *testing.T) {
	r := &run{state: &state{dir: "/s"}}
	all := placed(t, specification(t, "mesh: m\nservices: {a: {proxy: {engine: haproxy}}, b: {}}"))
	if args := r.sidecarArgs(all[0]); args[0] != "proxy" || !slices.Contains(args, "--engine") || !slices.Contains(args, "haproxy") {
		t.Errorf("the arguments are %q", args)
	}
	if args := r.sidecarArgs(all[1]); slices.Contains(args, "--engine") {
		t.Errorf("the built-in proxy is given %q", args)
	}
}

// TestMissingEngines: one message has all that are missing, and nothing is started.
func TestMissingEngines(t *testing.T) {
	f, stores := newDelivered(t)
	_, err := f.start()()
	if !errors.Is(err, ErrEngine) || strings.Count(err.Error(), "\n") != 1 {
		t.Fatalf("Run = %v, want ErrEngine twice", err)
	}
	for _, want := range []string{
		"back has proxy.engine nginx, and no program nginx is on PATH: install it (the Debian package nginx-light,",
		"front has proxy.engine haproxy, and no program haproxy is on PATH: install it (the Debian package haproxy)",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
	if len(f.events("start")) != 0 || len(*stores) != 0 {
		t.Errorf("started: %v, stores: %v", f.events("start"), *stores)
	}
}

// TestKilledEngine: a proxy that was killed is started again, in a fresh directory for its sockets, and the
// document has the new pid.
func TestKilledEngine(t *testing.T) {
	f, _ := newDelivered(t, "nginx", "haproxy")
	f.start()
	doc := f.document()
	before := doc.Workloads[0].EnginePID
	if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the document has the new pid", func() bool {
		now, err := ReadDocument(filepath.Join(doc.State, "run.json"))
		if err != nil {
			t.Fatal(err)
		}
		after := now.Workloads[0].EnginePID
		return after != before && alive(after)
	})
	eventually(t, "it serves", func() bool { return len(f.events("serve")) == 4 })
	if broken := f.events("broken"); len(broken) != 0 {
		t.Errorf("the proxy met what the killed one left: %v", broken)
	}
}

// TestStubbornEngine: a proxy that does not finish is ended.
func TestStubbornEngine(t *testing.T) {
	f, _ := newDelivered(t, "nginx", "haproxy")
	f.trouble("stubborn haproxy")
	f.config.DrainTimeout = -time.Second // a second for what is under way
	wait := f.start()
	doc := f.document()
	f.signals <- syscall.SIGINT
	if status, err := wait(); status != 0 || err != nil {
		t.Errorf("Run = %d, %v; want 0", status, err)
	}
	if other := f.events("other"); !slices.Equal(other, []string{"front-1 terminated"}) {
		t.Errorf("signals: %v", other)
	}
	if alive(doc.Workloads[2].EnginePID) {
		t.Error("it runs at the end")
	}
}

// TestTableOfEngines: people are told who serves.
func TestTableOfEngines(t *testing.T) {
	d := &Document{Workloads: []Workload{
		{Instance: "a-1", Engine: mesh.EngineNGINX, EnginePID: 7, Delivery: mesh.DeliverStore},
		{Instance: "b-1", Engine: mesh.EngineHAProxy, EnginePID: 8, Delivery: mesh.DeliverAgent},
		{Instance: "c-1", Engine: mesh.EngineBuiltin, Delivery: mesh.DeliverAgent},
	}}
	text := d.table(time.Second, "/run.json", false)
	want := "\na-1 is served by nginx (process 7), with a certificate from a store.\nb-1 is served by haproxy (process 8).\n"
	if !strings.Contains(text, want) || strings.Contains(text, "c-1 is served") {
		t.Errorf("the table is\n%s", text)
	}
}

// TestEnginesOnPath: what was found beside PATH is found by the processes, too.
func TestEnginesOnPath(t *testing.T) {
	e := engines{mesh.EngineNGINX: {Path: "/usr/sbin/nginx"}, mesh.EngineHAProxy: {Path: "/opt/bin/haproxy"}}
	got := e.onPath([]string{"A=1", "PATH=/bin:/opt/bin", "B=2"})
	if diff := cmp.Diff([]string{"A=1", "PATH=/bin:/opt/bin:/usr/sbin", "B=2"}, got); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
}

// TestRefusedPlans: what a proxy cannot carry out is said before anything starts, of all proxies at once.
func TestRefusedPlans(t *testing.T) {
	const routed = `
gateways:
  edge:
    listen: [{port: 8080, protocol: http}]
    routes: [{to: [{service: plain}], timeout: {request: 1s}}]
    proxy: {engine: haproxy, version: "2.6"}
  other:
    listen: [{port: 8080, protocol: http}]
    proxy: {engine: nginx, version: 1.25.1}
`
	f, _ := newDelivered(t, "nginx", "haproxy")
	text := delivered + routed
	f.config.Spec = specification(t, text)
	_, err := f.start()()
	if !errors.Is(err, engine.ErrRefused) || !errors.Is(err, ErrEngine) {
		t.Fatalf("Run = %v, want engine.ErrRefused and ErrEngine", err)
	}
	for _, want := range []string{"edge: haproxy: the plan cannot be carried out by this proxy:\n", "gateways.edge.routes[0].timeout.request: port 8080, route 1: ", "other has proxy.version 1.25.1, and ", "nginx is 1.22.1"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
	if started := f.events("start"); len(started) != 0 {
		t.Errorf("started: %v", started)
	}
}
