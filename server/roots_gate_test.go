package server

import (
	"strings"
	"testing"
	"time"

	"countersign.dev/api"
)

// TestRevokedBlockNothing replaces the root while revoked certificates, and one of a workload that is not declared any
// more, would live on for long: nobody admits their holders, so that nobody waits for them.
func TestRevokedBlockNothing(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	byHand := func(workload string) string {
		t.Helper()
		credentials, err := r.admin.Issue(t.Context(), api.IssueRequest{Workload: workload, CSR: r.newPeer("x").csr()})
		return serialOf(t, credentials, err)
	}
	byHand("colorteller")
	one := r.joinAs("colorteller", "colorteller-1")
	w := one.watch(0)
	w.next()
	if err := one.report(1, at(9080, "127.0.0.2:9080")); err != nil {
		t.Fatal(err)
	}
	r.mustRevoke(t, api.RevokeRequest{Workload: "colorteller", Reason: "keyCompromise"})
	w.ended()
	r.apply(t, strings.Replace(colorapp, "gateways:", "  colorold: {ports: [{port: 9081, protocol: http}]}\ngateways:", 1))
	old := byHand("colorold")
	kept := byHand("colorteller")
	r.takes(api.RotationRequest{Step: api.RotateStart})
	r.takes(api.RotationRequest{Step: api.RotateActivate})
	r.refuses(api.RotateFinish, "colorold: the certificate "+old, "colorteller: the certificate "+kept)
	r.apply(t, colorapp)
	r.refuses(api.RotateFinish, "colorteller: the certificate "+kept)
	r.mustRevoke(t, api.RevokeRequest{Serial: kept})
	r.takes(api.RotationRequest{Step: api.RotateFinish})
}

// TestFinishNamesStores asserts that who waits for a certificate out of a store is told what renews that.
func TestFinishNamesStores(t *testing.T) {
	spec := strings.Replace(colorapp, "services:", "stores:\n  main: {type: file, dir: store, identityFile: id.age}\nservices:", 1)
	spec = strings.Replace(spec, "    names: [colour.example.com]\n", "    proxy: {engine: nginx}\n    delivery: {type: store, store: main, secret: \"{mesh}/{service}\"}\n", 1)
	r := newFixture(t, spec).start()
	for _, workload := range []string{"colorteller", "colorgateway"} {
		if _, err := r.admin.Issue(t.Context(), api.IssueRequest{Workload: workload, CSR: r.newPeer("x").csr()}); err != nil {
			t.Fatal(err)
		}
	}
	r.takes(api.RotationRequest{Step: api.RotateStart})
	r.takes(api.RotationRequest{Step: api.RotateActivate})
	r.refuses(api.RotateFinish, "colorteller: the certificate ...comes from a store...: `countersign rotate once colorteller`",
		"colorgateway: the certificate ...issued for it by hand")
}

// TestFinishBelievesPeersOfStores waits while peers see a workload present what a store gave it: nobody renews that but
// who issues it.
func TestFinishBelievesPeersOfStores(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	gateway, teller := r.joinAs("colorgateway", "colorgateway-1"), r.joinAs("colorteller", "colorteller-1")
	csr := r.newPeer("").csr()
	byHand := func() string {
		t.Helper()
		credentials, err := r.admin.Issue(t.Context(), api.IssueRequest{Workload: "colorgateway", CSR: csr})
		return serialOf(t, credentials, err)
	}
	old := byHand()
	r.takes(api.RotationRequest{Step: api.RotateStart})
	r.takes(api.RotationRequest{Step: api.RotateActivate, Force: api.CutOff})
	r.info = r.Info()
	byHand()
	for _, p := range []*peer{gateway, teller} { // what watches over them renews its own
		p.connect()
		if err := p.renew(); err != nil {
			t.Fatal(err)
		}
		if err := p.report(1); err != nil {
			t.Fatal(err)
		}
	}
	saw := func(at time.Time) {
		t.Helper()
		who := "spiffe://colorapp.internal/gateway/colorgateway"
		if err := teller.reportAs(api.Report{Callers: map[string]api.Caller{who: {Serial: old, Seen: at}}}); err != nil {
			t.Fatal(err)
		}
	}
	saw(time.Now().Add(time.Second))
	r.refuses(api.RotateFinish, "colorgateway colorgateway-1: its peers saw it present the certificate "+old)
	saw(time.Now().Add(-recently))
	r.takes(api.RotationRequest{Step: api.RotateFinish})
}
