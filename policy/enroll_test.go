package policy

import (
	"errors"
	"slices"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

func enrollSpec(t *testing.T) *mesh.Spec {
	t.Helper()
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: "/", Content: `mesh: m
certificates: {ttl: 1h, renewAfter: 20m}
services:
  a:
    ports: [{port: 9080, protocol: http}]
    names: [a.example.com]
gateways:
  g:
    listen: [{port: 8080, protocol: http}]
    routes: [{match: {prefix: /}, to: [{service: a}]}]
`}})
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func TestEnrollment(t *testing.T) {
	spec := enrollSpec(t)
	plan, err := Enrollment(spec, "a")
	if err != nil {
		t.Fatal(err)
	}
	if plan.Identity.String() != "spiffe://m.internal/service/a" || !slices.Equal(plan.DNSNames, []string{"a", "a.m.internal", "a.example.com"}) ||
		time.Duration(plan.TTL) != time.Hour || time.Duration(plan.RenewAfter) != 20*time.Minute {
		t.Errorf("%+v", plan)
	}
	for _, stranger := range []string{"", "b", "A", "a.m.internal"} {
		if _, err := Enrollment(spec, stranger); !errors.Is(err, ErrNotDeclared) {
			t.Errorf("%q: %v, want ErrNotDeclared", stranger, err)
		}
	}
}

func TestRenewal(t *testing.T) {
	spec := enrollSpec(t)
	for text, want := range map[string]error{
		"spiffe://m.internal/service/a":          nil,
		"spiffe://m.internal/gateway/g":          nil,
		"spiffe://m.internal/gateway/a":          ErrNotDeclared,
		"spiffe://m.internal/service/b":          ErrNotDeclared,
		"spiffe://other.internal/service/a":      ErrNotDeclared,
		"spiffe://m.internal/probe/verify":       ErrNoWorkload,
		"spiffe://m.internal/server/countersign": ErrNoWorkload,
	} {
		holder, err := id.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := Renewal(spec, holder)
		if !errors.Is(err, want) || (want == nil && plan.Identity != holder) {
			t.Errorf("%s: %v, %v, want %v", text, plan.Identity, err, want)
		}
	}
	if _, err := Renewal(spec, id.ID{}); !errors.Is(err, ErrNoWorkload) {
		t.Errorf("nobody: %v, want ErrNoWorkload", err)
	}
}

func TestProbe(t *testing.T) {
	for ttl, want := range map[time.Duration]time.Duration{
		0: MaxProbeTTL, time.Second: time.Second, MaxProbeTTL: MaxProbeTTL, time.Hour: MaxProbeTTL,
	} {
		probe, got, err := Probe("m.internal", ttl)
		if err != nil || got != want || probe.String() != "spiffe://m.internal/probe/verify" {
			t.Errorf("%s: %s, %s, %v, want %s", ttl, probe, got, err, want)
		}
	}
	if _, _, err := Probe("m.internal", -1); err == nil {
		t.Error("a negative life is accepted")
	}
	if _, _, err := Probe("Not a domain", 0); !errors.Is(err, id.ErrTrustDomain) {
		t.Errorf("%v, want ErrTrustDomain", err)
	}
}
