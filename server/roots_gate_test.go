package server

import (
	"strings"
	"testing"

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
