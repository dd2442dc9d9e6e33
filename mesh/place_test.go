package mesh_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"countersign.dev/mesh"
)

// placed are two documents with something of everything that has a place.
var placed = []mesh.Document{
	{Name: "dir/a.yaml", Directory: "/spec", Content: `mesh: shop # 1
certificates: {ttl: 24h}
services:
  cart:
    proxy: {engine: nginx}
    ports:
      - port: 9080
        protocol: http
      - {port: 9081, protocol: tcp, allow: [{from: any}]}
    run:
      command: [app, "é", x]
      env: {A_B: "1"}
  plain: &plain
    instances: 2
  same: *plain
  merged: {<<: *plain, names: [two.example]}
`},
	{Name: "dir/b.yaml", Directory: "/spec", Content: "\ufeffgateways:\r\n  edge:\r\n    listen: [{port: 8080, protocol: http}]\r\n    routes: [{match: {headers: {x-a.b: v}}, to: [{service: cart, port: 9080}]}]\r\nservices: {stock: {}}\r\n"},
}

// TestSpecAt asserts where things are said to stand: a name, a list and a mapping at the key, an entry, a text and a number
// where they begin, and what is not written at what is around it.
func TestSpecAt(t *testing.T) {
	spec, err := mesh.ParseDocuments(placed)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ path, want string }{
		{"", "dir/a.yaml:1:1"},
		{"document", "dir/a.yaml:1:1"},
		{"mesh", "dir/a.yaml:1:7"},
		{"trustDomain", "dir/a.yaml:1:1"},
		{"certificates", "dir/a.yaml:2:1"},
		{"certificates.ttl", "dir/a.yaml:2:21"},
		{"certificates.authority", "dir/a.yaml:2:1"},
		{"services", "dir/a.yaml:3:1"},
		{"services.cart", "dir/a.yaml:4:3"},
		{"services.cart.proxy", "dir/a.yaml:5:5"},
		{"services.cart.proxy.engine", "dir/a.yaml:5:21"},
		{"services.cart.proxy.version", "dir/a.yaml:5:5"},
		{"services.cart.delivery.store", "dir/a.yaml:4:3"},
		{"services.cart.ports", "dir/a.yaml:6:5"},
		{"services.cart.ports[0]", "dir/a.yaml:7:9"},
		{"services.cart.ports[0].port", "dir/a.yaml:7:15"},
		{"services.cart.ports[0].app", "dir/a.yaml:7:9"},
		{"services.cart.ports[1].allow", "dir/a.yaml:9:37"},
		{"services.cart.ports[1].allow[0].from", "dir/a.yaml:9:52"},
		{"services.cart.ports[2]", "dir/a.yaml:6:5"},
		{"services.cart.run.command[2]", "dir/a.yaml:11:27"},
		{"services.cart.run.env.A_B", "dir/a.yaml:12:18"},
		{"services.same", "dir/a.yaml:15:3"},
		{"services.same.instances", "dir/a.yaml:14:16"},
		{"services.merged.instances", "dir/a.yaml:14:16"},
		{"services.merged.names[0]", "dir/a.yaml:16:32"},
		{"services.absent.proxy", "dir/a.yaml:3:1"},
		{"services.stock", "dir/b.yaml:5:12"},
		{"gateways.edge", "dir/b.yaml:2:3"},
		{"gateways.edge.listen[0].port", "dir/b.yaml:3:21"},
		{`gateways.edge.routes[0].match.headers["x-a.b"]`, "dir/b.yaml:4:40"},
		{`gateways.edge.routes[0].match.headers["x-a.b].c"]`, "dir/b.yaml:4:23"},
		{`gateways.edge.routes[0].match.headers["x-`, "dir/b.yaml:4:23"},
	} {
		path, want := test.path, test.want
		file, line, column := spec.At(path)
		if got := fmt.Sprintf("%s:%d:%d", file, line, column); got != want {
			t.Errorf("At(%q) = %s, want %s", path, got, want)
		}
		written := !strings.HasSuffix(path, "version") && !slices.Contains([]string{
			"document", "trustDomain", "certificates.authority", "services.cart.delivery.store", "services.cart.ports[0].app", "services.cart.ports[2]",
			"services.absent.proxy", `gateways.edge.routes[0].match.headers["x-a.b].c"]`, `gateways.edge.routes[0].match.headers["x-`,
		}, path)
		if got := spec.Written(path); got != written {
			t.Errorf("Written(%q) = %v", path, got)
		}
	}
}

// TestSpecAtKeepsTheDocuments asserts that the places are those of the documents as they were parsed, whatever the caller does with them
// afterwards, and that several may ask at once.
func TestSpecAtKeepsTheDocuments(t *testing.T) {
	documents := slices.Clone(placed)
	spec, err := mesh.ParseDocuments(documents)
	if err != nil {
		t.Fatal(err)
	}
	documents[0] = mesh.Document{Name: "other.yaml", Content: "mesh: other"}
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			if file, line, _ := spec.At("services.cart"); file != "dir/a.yaml" || line != 4 {
				t.Errorf("%s:%d", file, line)
			}
		})
	}
	wait.Wait()
}

// TestSpecAtWithoutDocuments asserts that a specification that nobody wrote has no places, and that errors about it say none.
func TestSpecAtWithoutDocuments(t *testing.T) {
	spec := &mesh.Spec{}
	if file, line, column := spec.At("services.a"); file != "" || line != 0 || column != 0 || spec.Written("services.a") {
		t.Errorf("%s:%d:%d", file, line, column)
	}
	if got, want := spec.Refuse("no", "services.a.proxy", "services.a").Error(), "services.a: no"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestRefuse asserts which of several paths an error is about, and in which order errors are read.
func TestRefuse(t *testing.T) {
	spec, err := mesh.ParseDocuments(placed)
	if err != nil {
		t.Fatal(err)
	}
	errs := mesh.Errors{
		spec.Refuse("c", "gateways.edge"),
		spec.Refuse("b", "services.cart.certificates.ttl", "certificates.ttl"),
		spec.Refuse("d", "services.cart.delivery.type", "services.cart.delivery"),
		spec.Refuse("b", "certificates.ttl"),
		spec.Refuse("a", "certificates.ttl"),
	}
	want := []string{
		"dir/a.yaml:2:21: certificates.ttl: a",
		"dir/a.yaml:2:21: certificates.ttl: b",
		"dir/a.yaml:4:3: services.cart.delivery: d",
		"dir/b.yaml:2:3: gateways.edge: c",
	}
	if got := errs.Sorted().Lines(); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := errs[0].Message; got != "c" {
		t.Errorf("Sorted changed what it sorted: %q is first", got)
	}
	if got := mesh.Errors(nil).Sorted(); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

// TestWorkloadPath asserts that a workload's path is the one that is written for it.
func TestWorkloadPath(t *testing.T) {
	spec, err := mesh.ParseDocuments(placed)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range spec.Workloads() {
		if !spec.Written(w.Path()) {
			t.Errorf("%s: %s is written nowhere", w.Name, w.Path())
		}
	}
}
