package mesh_test

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/mesh"
)

func TestExpand(t *testing.T) {
	lookup := func(name string) (string, bool) {
		value, ok := map[string]string{"A": "1.2.3.4:80", "LOOP": "${A}"}[name]
		return value, ok
	}
	for text, want := range map[string]string{
		"":             "",
		"plain":        "plain",
		"${A}":         "1.2.3.4:80",
		"x${A}y${A}":   "x1.2.3.4:80y1.2.3.4:80",
		"$$":           "$",
		"$${A}":        "${A}",
		"$$${A}":       "$1.2.3.4:80",
		"$HOME $ 5$":   "$HOME $ 5$",
		"${LOOP}":      "${A}", // what is put in is not looked at again
		"http://${A}/": "http://1.2.3.4:80/",
	} {
		got, err := mesh.Expand(text, lookup)
		if err != nil || got != want {
			t.Errorf("Expand(%q) = %q, %v, want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"${", "${A", "${}", "${B}", "${ A}", "${a}", "x${A}${"} {
		if got, err := mesh.Expand(text, lookup); !errors.Is(err, mesh.ErrVariable) {
			t.Errorf("Expand(%q) = %q, %v, want %v", text, got, err, mesh.ErrVariable)
		}
	}
}

func TestVariables(t *testing.T) {
	spec := parse(t, `
mesh: m
services:
  a:
    ports: [{port: 80, protocol: http, app: 8080}, {port: 81, protocol: http}]
    calls: [{service: b-c, listen: 10}, {service: e, port: 2}, {service: e, port: 3, listen: 30}]
  e: {ports: [{port: 2, protocol: http}, {port: 3, protocol: http}]}
  b-c: {ports: [{port: 1, protocol: http}]}
`)
	want := []mesh.Variable{
		{Name: "APP_ADDRESS", App: true, Port: 8080},
		{Name: "APP_ADDRESS_80", App: true, Port: 8080},
		{Name: "APP_ADDRESS_81", App: true, Port: 81},
		{Name: "CALL_B_C", Port: 10},
		{Name: "CALL_E_2", Port: 2},
		{Name: "CALL_E_3", Port: 30},
	}
	if diff := cmp.Diff(want, spec.Services["a"].Variables()); diff != "" {
		t.Errorf("variables (-want +got):\n%s", diff)
	}
	if got := spec.Services["b-c"].Variables(); len(got) != 2 {
		t.Errorf("a service with one port has %v", got)
	}
}
