package engine

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

// TestPaths asserts that reasons lead to what they are about, and to nothing where that is no part of the specification.
func TestPaths(t *testing.T) {
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: "/", Content: `
mesh: m
services:
  a:
    ports: [{port: 9080, protocol: http, app: 8080}, {port: 9081, protocol: http}]
    calls: [{service: b}]
  b: {ports: [{port: 7000, protocol: tcp}], proxy: {engine: nginx, version: 1.18.0}}
gateways:
  g:
    listen: [{port: 80, protocol: http}, {port: 81, protocol: tcp}, {port: 82, protocol: http}]
    routes:
      - {match: {listener: 82}, to: [{service: a, port: 9080}]}
      - {match: {listener: 81}, to: [{service: b}]}
      - {to: [{service: a, port: 9081}], timeout: {request: 5s}}
`}})
	if err != nil {
		t.Fatal(err)
	}
	a, g := mesh.Workload{Name: "a", Kind: id.Service}, mesh.Workload{Name: "g", Kind: id.Gateway}
	for _, test := range []struct {
		workload mesh.Workload
		reason   string
		want     []string
	}{
		{a, "port 9081: no", []string{"services.a.ports[1]"}},
		{a, "port 9080 listens on ...; give the application another port (app)", []string{"services.a.ports[0].app", "services.a.ports[0]"}},
		{a, "port 90801: no", nil},
		{a, "the call on port 7000: no", []string{"services.a.calls[0]"}},
		{a, "the call on port 9080: no", nil},
		{a, "upstream b_7000: of its key exchanges (tlsGroups) none", []string{"services.b.ports[0].tlsGroups", "services.b.ports[0]"}},
		{a, `upstream "b_7000": no`, []string{"services.b.ports[0]"}},
		{a, `upstream "b_7001": no`, nil},
		{a, `upstream "c_7000": no`, nil},
		{a, "NGINX 1.18.0 is older than 1.22", nil},
		{mesh.Workload{Name: "b", Kind: id.Service}, "NGINX 1.18.0 is older than 1.22", []string{"services.b.proxy.version"}},
		{mesh.Workload{Name: "b", Kind: id.Service}, "NGINX 1.18 is older than 1.22", nil}, // of a flag
		{a, `"x" is not a user's name (--user)`, nil},
		{g, "port 81: no", []string{"gateways.g.listen[1]"}},
		{g, "a route of port 81: no", []string{"gateways.g.listen[1]"}},
		{g, "port 82, route 1: no", []string{"gateways.g.routes[0]"}},
		{g, "port 82, route 2: no (timeout.request)", []string{"gateways.g.routes[2].timeout.request", "gateways.g.routes[2]"}},
		{g, "port 80, route 1: no", []string{"gateways.g.routes[2]"}},
		{g, "port 80, route 2: no", []string{"gateways.g.listen[0]"}},
		{g, "port 81, route 1: no", []string{"gateways.g.routes[1]"}},
		{g, "port 83: no", nil},
		{mesh.Workload{Name: "absent", Kind: id.Gateway}, "port 80: no", nil},
		{mesh.Workload{Name: "absent", Kind: id.Service}, "the call on port 80: no", nil},
	} {
		if got := Paths(spec, test.workload, test.reason); !slices.Equal(got, test.want) {
			t.Errorf("%s, %q: %q, want %q", test.workload.Name, test.reason, got, test.want)
		}
	}
}

// TestReasons asserts that the reasons of a refusal are had one by one, and those of another error are none.
func TestReasons(t *testing.T) {
	r := Refusal{Engine: "nginx"}
	if err := r.Err(); err != nil || Reasons(err) != nil {
		t.Errorf("%v", err)
	}
	r.Addf("one")
	r.Addf("two")
	err := fmt.Errorf("a: %w", r.Err())
	if got := Reasons(err); !errors.Is(err, ErrRefused) || !slices.Equal(got, []string{"one", "two"}) {
		t.Errorf("%v has %q", err, got)
	}
	if got, want := err.Error(), "a: nginx: the plan cannot be carried out by this proxy:\n  - one\n  - two"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := Reasons(errors.New("x")); got != nil {
		t.Errorf("%q", got)
	}
}

// TestPlaced asserts that reasons about the specification say where they stand, before those that do not, and that another error is
// left alone.
func TestPlaced(t *testing.T) {
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: "/", Content: `mesh: m
services:
  a:
    ports:
      - {port: 9080, protocol: http, app: 8080}
      - {port: 9081, protocol: http}
`}})
	if err != nil {
		t.Fatal(err)
	}
	r := Refusal{Engine: "haproxy"}
	r.Addf("port 9081: two")
	r.Addf("of a flag")
	r.Addf("port 9080: one (app)")
	const want = "haproxy: the plan cannot be carried out by this proxy:\n" +
		"mesh.yaml:5:43: services.a.ports[0].app: port 9080: one (app)\n" +
		"mesh.yaml:6:9: services.a.ports[1]: port 9081: two\n" +
		"  - of a flag"
	a := mesh.Workload{Name: "a", Kind: id.Service}
	if got := Placed(spec, a, r.Err()); !errors.Is(got, ErrRefused) || got.Error() != want {
		t.Errorf("%v, want %s", got, want)
	}
	other := errors.New("x")
	if got := Placed(spec, a, other); got != other { //nolint:errorlint // it is to be the very same
		t.Errorf("%v", got)
	}
	if got := Placed(spec, a, nil); got != nil {
		t.Errorf("%v", got)
	}
}
