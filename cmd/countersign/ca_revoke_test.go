package main

import (
	"crypto/x509"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"countersign.dev/ca"
	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/journal"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// TestRevokeTokenHolder revokes, without a server, a workload that has a join token and never had a certificate.
func TestRevokeTokenHolder(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	if _, err := ca.Init(state, ca.InitConfig{TrustDomain: "colorapp.internal", Seal: ca.Unsealed()}); err != nil {
		t.Fatal(err)
	}
	open, log, ledger, err := openLedger(state, ca.Unsealed())
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	token := map[string]any{"token": "0123456789abcdef", "workload": "colorteller", "uses": 1}
	if _, err := log.Append(t.Context(), journal.Entry{Time: time.Now(), Type: journal.TokenCreated, Data: token}); err != nil {
		t.Fatal(err)
	}
	revoke := func(workload string) error {
		done, err := revokeInto(t.Context(), log, open, ledger, ca.Target{Workload: workload}, issue.Unspecified)
		if err == nil && len(done.Revoked) != 0 {
			t.Errorf("%s: %+v", workload, done)
		}
		return err
	}
	if err := revoke("colorgateway"); !errors.Is(err, ca.ErrUnknownCertificate) {
		t.Errorf("without a token: %v", err)
	}
	if err := revoke("colorteller"); !errors.Is(err, ca.ErrTarget) {
		t.Errorf("without its kind: %v", err)
	}
	if err := revoke("service/colorteller"); err != nil {
		t.Fatal(err)
	}
	if tokens, err := ca.ReadTokens(log.Records()); err != nil || len(tokens.Open) != 0 || len(tokens.Void) != 1 || tokens.Void[0] != "0123456789abcdef" {
		t.Errorf("%+v, %v", tokens, err)
	}
}

// TestIssueCompromisedKey issues no certificate of a key that was compromised, without a server.
func TestIssueCompromisedKey(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	if _, err := ca.Init(state, ca.InitConfig{TrustDomain: "colorapp.internal", Seal: ca.Unsealed()}); err != nil {
		t.Fatal(err)
	}
	open, log, ledger, err := openLedger(state, ca.Unsealed())
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	identity, err := id.Parse("spiffe://colorapp.internal/service/colorteller")
	if err != nil {
		t.Fatal(err)
	}
	plan := mesh.CertificatePlan{Identity: identity, TTL: mesh.Duration(time.Hour)}
	key, err := mtls.GenerateKey(mesh.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := mtls.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	var serials []string
	for range 2 {
		issued, err := issueInto(t.Context(), log, open, ledger, plan, csr)
		if err != nil {
			t.Fatal(err)
		}
		serials = append(serials, mtls.Serial(issued.Certificate))
	}
	done, err := revokeInto(t.Context(), log, open, ledger, ca.Target{Serial: serials[0]}, issue.KeyCompromise)
	if err != nil || len(done.Revoked) != 2 {
		t.Fatal(done, err)
	}
	for _, row := range done.Revoked {
		if !slices.Contains(serials, row.Serial) || row.Renewed != (row.Serial == serials[1]) {
			t.Errorf("%+v", row)
		}
	}
	if _, err := issueInto(t.Context(), log, open, ledger, plan, csr); !errors.Is(err, ca.ErrCompromised) {
		t.Errorf("the same key: %v", err)
	}
	if again, err := ca.ReadLedger(log.Records()); err != nil || !errors.Is(again.CheckKey(spki(t, key.Public())), ca.ErrCompromised) {
		t.Errorf("the next run does not know it: %v", err)
	}
}

func spki(t *testing.T, public any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// slowSealer is a sealer whose owner does something else first, such as to look for a passphrase.
type slowSealer struct {
	ca.Sealer
	first func()
}

// Unseal implements [ca.Sealer].
func (s slowSealer) Unseal(sealed []byte) ([]byte, error) {
	s.first()
	return s.Sealer.Unseal(sealed)
}

// TestOfflineRunsTakeTurns lets one renewal of the issuing CA come in between while another waits for its passphrase: the
// second does not undo the first.
func TestOfflineRunsTakeTurns(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	if _, err := ca.Init(state, ca.InitConfig{TrustDomain: "colorapp.internal", Seal: ca.Unsealed(), IssuerLife: time.Hour}); err != nil {
		t.Fatal(err)
	}
	p := &process{ctx: t.Context()}
	run := func(sealer ca.Sealer, life time.Duration) string {
		t.Helper()
		c := caRotateIssuerCmd{IssuerLife: life}
		c.State = state
		authority, err := c.byState(p, sealer, "")
		if err != nil {
			t.Fatal(err)
		}
		return authority.Hierarchies()[0].ID
	}
	var once sync.Once
	var first string
	second := run(slowSealer{ca.Unsealed(), func() { once.Do(func() { first = run(ca.Unsealed(), 2*time.Hour) }) }}, 3*time.Hour)
	authority, err := ca.Read(state)
	if err != nil {
		t.Fatal(err)
	}
	all := authority.Hierarchies()
	if len(all) != 3 || all[0].ID != second || !slices.ContainsFunc(all, func(h ca.Hierarchy) bool { return h.ID == first }) {
		t.Errorf("%d hierarchies: the first renewal is lost", len(all))
	}
}
