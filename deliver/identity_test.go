package deliver

import (
	"errors"
	"testing"

	"countersign.dev/credential"
	"countersign.dev/id"
	"countersign.dev/mesh"
)

// TestOtherPlan: a Plan of another workload than the certificate's does not come into force, whether it is the first or a later
// one, and whether or not somebody said whose certificate is expected.
func TestOtherPlan(t *testing.T) {
	const own = "spiffe://shop.internal/service/orders"
	of := func(name string) *mesh.Plan { // another workload has another configuration
		who, err := id.New("shop.internal", id.Service, name)
		ok(t, err)
		return &mesh.Plan{Revision: 2, Mesh: name, Workload: mesh.Workload{Identity: who}}
	}
	for name, test := range map[string]struct{ expected, want string }{
		"expected": {own, "the plan is another workload's: it is of spiffe://shop.internal/service/billing, and " + own + " is expected"},
		"any":      {"", `the leaf has the SPIFFE ID "` + own + `", and spiffe://shop.internal/service/billing is expected`},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, rendered, func(c *Config) {
				before := c.Expect
				c.Expect = func() credential.Expect { e := before(); e.ID = test.expected; return e }
			})
			l.round("")
			err := l.w.takePlan(t.Context(), of("billing"))
			expect(t, err, test.want)
			if errors.Is(err, ErrOtherPlan) != (test.expected != "") {
				t.Errorf("%v", err)
			}
			l.holds("v1", true)
			if plan := l.w.Status().Plan; plan.Mesh != "one" {
				t.Errorf("the plan of %q is in force", plan.Mesh)
			}
			ok(t, l.w.takePlan(t.Context(), of("orders")))
			l.holds("v1", true)

			l.cfg.Plan = of("billing")
			l.open()
			l.put("v2")
			l.round(test.want)
			l.holds("v1", true)
		})
	}
}
