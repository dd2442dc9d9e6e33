package policy_test

import (
	"encoding/json"
	"fmt"
	"testing"

	"countersign.dev/mesh"
	"countersign.dev/policy"
)

// FuzzAgreement looks for a path that a specification may hold and a sidecar would not put in force:
// it would refuse every Plan with it. The two read paths by code of their own.
func FuzzAgreement(f *testing.F) {
	for _, seed := range []string{"/", "/a", "/a/*", "/*", "/a/", "/caf%C3%A9", "/a%20b/*", "/a%2e", "/a//b", "/a/../*", "/a;b", "/%", "/*/"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		quoted, err := json.Marshal(path)
		if err != nil {
			t.Skip()
		}
		if plan := compiled(t, fmt.Sprintf("allow: [{from: any, paths: [%s]}]", quoted), "/", "a"); plan != nil {
			if _, err := policy.Compile(plan.TrustDomain, plan.Inbound[0].Rules); err != nil {
				t.Errorf("a rule may hold the path %q, and the sidecar refuses it: %v", path, err)
			}
		}
		if plan := compiled(t, "tls: strict", string(quoted), "g"); plan != nil {
			if _, problem := policy.Canonical(plan.Inbound[0].Routes[0].Match.Path); problem != "" {
				t.Errorf("a route may hold the path %q, and the sidecar refuses it: %s", path, problem)
			}
		}
	})
}

// compiled is the Plan of a workload, nil when the specification is not valid.
func compiled(t *testing.T, service, route, workload string) *mesh.Plan {
	t.Helper()
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Content: fmt.Sprintf(`
mesh: shop
services: {a: {ports: [{port: 80, protocol: http}], %s}}
gateways: {g: {listen: [{port: 80, protocol: http}], routes: [{match: {path: %s}, to: [{service: a}]}]}}
`, service, route)}})
	if err != nil {
		return nil
	}
	plan, err := spec.Compile(workload)
	if err != nil {
		t.Fatal(err)
	}
	return plan
}
