package server

import (
	"testing"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/journal"
	"countersign.dev/mtls"
)

// TestRevokeKilled kills the server between the steps of a revocation, and of the making of a list at its start: what is
// recorded holds after the next start, in the database, in the lists and for the tokens, and numbers do not go back.
func TestRevokeKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts many processes")
	}
	binary := faultyBinary(t)
	for _, step := range []string{"ca.revoke.recorded", "server.revoke.stored", "ca.crl.signed", "ca.crl.recorded", "server.crl.made"} {
		t.Run(step, func(t *testing.T) {
			f := newFixture(t, colorapp)
			key, err := mtls.GenerateKey("ecdsa-p256")
			if err != nil {
				t.Fatal(err)
			}
			v := &visit{key: key}
			p := spawn(t, binary, f, step)
			var told, void string
			if p.ready {
				r := f.at(p.info)
				if err := v.run(r); err != nil {
					t.Fatal(err)
				}
				void = r.token("colorteller", 5)
				before, err := r.admin.CRL(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				told = string(before)
				if _, err := r.admin.Revoke(t.Context(), api.RevokeRequest{Workload: "colorteller"}); err == nil {
					t.Error("everything was done")
				}
			}
			if !p.end() {
				t.Error("nobody was killed")
			}
			p = spawn(t, binary, f, "")
			defer p.end()
			if !p.ready {
				t.Fatalf("the server does not start again:\n%s", p.stderr.String())
			}
			r := f.at(p.info)
			text, err := r.admin.CRL(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			after := lists(t, string(text))
			ledger, err := ca.ReadLedger(journal.Records(ca.JournalDir(f.cfg.State)))
			if err != nil {
				t.Fatal(err)
			}
			if told == "" {
				return // it died at its start
			}
			if before := lists(t, told); after[0].Number.Cmp(before[0].Number) <= 0 {
				t.Errorf("list %v after %v", after[0].Number, before[0].Number)
			}
			for _, serial := range v.received {
				if _, revoked := ledger.Revoked(serial); !revoked || !listsSerial(after[0], serial) {
					t.Errorf("%s: recorded as revoked: %t, on the list: %t", serial, revoked, listsSerial(after[0], serial))
				}
			}
			wantCode(t, r.newPeer("colorteller-3").enroll(void), api.CodeUnknownToken)
			if done, err := r.admin.Revoke(t.Context(), api.RevokeRequest{Workload: "colorteller"}); err != nil || len(done.Revoked) != len(v.received) || !done.Revoked[0].Already {
				t.Errorf("again: %+v, %v", done, err)
			}
		})
	}
}
