package server

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/journal"
	"countersign.dev/mesh"
)

const permissive = `mesh: colorapp
certificates: {ttl: 1h}
services:
  colorteller:
    ports: [{port: 9080, protocol: http}]
    names: [colour.example.com]
    tls: permissive
gateways:
  colorgateway:
    listen: [{port: 8080, protocol: http}]
    routes: [{match: {prefix: /}, to: [{service: colorteller}]}]
`

func TestApply(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	w := r.joinAs("colorteller", "colorteller-1").watch(0)
	before := w.plan("at once", anyPlan)

	dry, err := r.tryApply(permissive, true)
	if err != nil {
		t.Fatal(err)
	}
	if len(dry.Difference) == 0 || dry.Revision != before.Revision {
		t.Errorf("the trial run says %+v", dry)
	}
	applied := r.apply(t, permissive)
	if strings.Join(applied.Difference, "\n") != strings.Join(dry.Difference, "\n") || applied.Revision <= before.Revision {
		t.Errorf("the apply says %+v", applied)
	}
	after := w.plan("with the change", anyPlan)
	if after.Revision != applied.Revision || after.Inbound[0].TLS != mesh.Permissive {
		t.Errorf("revision %d, TLS %s", after.Revision, after.Inbound[0].TLS)
	}
	if again := r.apply(t, permissive); again.Revision != applied.Revision || len(again.Difference) != 0 {
		t.Errorf("the same once more: %+v", again)
	}
	running, err := r.admin.Mesh(t.Context())
	if err != nil || running.Documents[0].Content != permissive || running.Revision != applied.Revision {
		t.Errorf("running: %+v, %v", running, err)
	}
	if got := f.count(journal.Apply); got != 2 {
		t.Errorf("the journal has %d applies, want the start's and one more", got)
	}
}

// elsewhere is a mesh whose certificates come from AWS.
const elsewhere = `
mesh: colorapp
stores: {vault: {type: secretsmanager}}
authorities: {pca: {type: acmpca}}
services:
  colorteller:
    ports: [{port: 9080, protocol: http}]
    certificates: {authority: pca}
    proxy: {engine: nginx}
    delivery: {type: store, store: vault, secret: colorteller}
`

func TestApplyRefusals(t *testing.T) {
	f := newFixture(t, colorapp)
	f.cfg.FixedTopology = true
	r := f.start()
	_, err := r.tryApply("mesh: colorapp\nservices: {a: {ports: [{port: 0, protocol: http}, {port: x}]}}\n", false)
	wantCode(t, err, api.CodeInvalidSpec)
	refusal, _ := errors.AsType[*api.Error](err)
	if len(refusal.Details) < 2 || !strings.HasPrefix(refusal.Details[0], "mesh.yaml:2:") {
		t.Errorf("details %q", refusal.Details)
	}
	_, err = r.tryApply("trustDomain: other.internal\n"+colorapp, false)
	if message := wantCode(t, err, api.CodeInvalidSpec); !strings.Contains(message, "colorapp.internal") {
		t.Errorf("the message %q does not say of which trust domain the mesh is", message)
	}
	_, err = r.tryApply(elsewhere, false)
	if message := wantCode(t, err, api.CodeInvalidSpec); !strings.Contains(message, "service colorteller from pca (acmpca)") {
		t.Errorf("the message %q does not say whose certificates come from elsewhere", message)
	}
	_, err = r.tryApply(strings.Replace(colorapp, "9080", "9081", 1), false)
	wantCode(t, err, api.CodeFixedTopology)
	refusal, _ = errors.AsType[*api.Error](err)
	if len(refusal.Details) == 0 {
		t.Error("it does not say what cannot be changed")
	}
	_, err = r.tryApply(strings.Replace(colorapp, "9080", "9081", 1), true)
	wantCode(t, err, api.CodeFixedTopology)
	if got := f.count(journal.ApplyRefused); got != 4 {
		t.Errorf("the journal has %d refused applies, want 4", got)
	}
	r.apply(t, permissive) // what does not touch the topology is taken
}

func TestConfirmed(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	ask := func(revision uint64, timeout time.Duration) *api.Confirmation {
		t.Helper()
		confirmation, err := r.admin.Confirmed(t.Context(), revision, timeout)
		if err != nil {
			t.Fatal(err)
		}
		return confirmation
	}
	if c := ask(99, time.Minute); len(c.Confirmed)+len(c.Missing) != 0 {
		t.Errorf("nobody is connected, and %+v", c)
	}
	one, two := r.joinAs("colorteller", "colorteller-1"), r.joinAs("colorteller", "colorteller-2")
	one.watch(0).plan("at once", anyPlan)
	watchTwo := two.watch(0)
	watchTwo.plan("at once", anyPlan)
	revision := r.apply(t, permissive).Revision
	if err := one.report(revision); err != nil {
		t.Fatal(err)
	}
	if err := two.report(revision - 1); err != nil {
		t.Fatal(err)
	}
	if c := ask(revision, time.Millisecond); strings.Join(c.Confirmed, " ") != "colorteller-1" || strings.Join(c.Missing, " ") != "colorteller-2" {
		t.Errorf("%+v", c)
	}
	answer := make(chan *api.Confirmation)
	go func() {
		c, err := r.admin.Confirmed(t.Context(), revision, patience)
		if err != nil {
			t.Error(err)
		}
		answer <- c
	}()
	if err := two.report(revision); err != nil {
		t.Fatal(err)
	}
	if c := <-answer; c == nil || len(c.Confirmed) != 2 || len(c.Missing) != 0 {
		t.Errorf("after both have reported: %+v", c)
	}
	// Who leaves is not waited for.
	watchTwo.close()
	eventually(t, "that only one is asked", func() bool { return len(ask(revision, 0).Confirmed) == 1 })
	// Revisions go on where nothing changes for a workload, which is not told of them: to have its
	// last Plan in force is to obey them.
	if c := ask(revision+1, time.Minute); len(c.Confirmed) != 1 || len(c.Missing) != 0 {
		t.Errorf("a revision that changes nothing: %+v", c)
	}
	for _, query := range []string{"", "?revision=x&timeout=1s", "?revision=1&timeout=x", "?revision=1&timeout=-1s", "?revision=1&timeout=1000h"} {
		response, err := adminGet(t, r, api.PathConfirmed+query)
		if err != nil || response != api.CodeBadRequest {
			t.Errorf("%q: %s, %v", query, response, err)
		}
	}
}

// TestRestartKeepsWhatWasApplied restarts the server with the same file, and then with another.
func TestRestartKeepsWhatWasApplied(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	applied := r.apply(t, permissive)
	tls := func(r *running) mesh.TLSMode {
		spec, _, _ := r.registry.running()
		return spec.Services["colorteller"].Ports[0].TLS
	}
	r.stop()
	r = f.start()
	if tls(r) != mesh.Permissive || r.Info().Revision != applied.Revision {
		t.Errorf("after a restart: TLS %s, revision %d, want what was applied under %d", tls(r), r.Info().Revision, applied.Revision)
	}
	r.stop()
	f.write(colorapp + "# changed\n")
	r = f.start()
	if tls(r) != mesh.Strict || r.Info().Revision <= applied.Revision {
		t.Errorf("after the file has changed: TLS %s, revision %d", tls(r), r.Info().Revision)
	}
	r.stop()
	file := f.cfg.Mesh
	f.cfg.Mesh = ""
	r = f.start()
	if tls(r) != mesh.Strict {
		t.Errorf("without --mesh: TLS %s", tls(r))
	}
	r.stop()
	f.cfg.Mesh = file + ".gone"
	if _, err := New(t.Context(), f.cfg); !errors.Is(err, ErrReadMesh) {
		t.Errorf("with a file that is gone: %v, want ErrReadMesh", err)
	}
}

// TestLostDatabase throws the database away: certificates come back from the journal, and no revision
// is given out twice.
func TestLostDatabase(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	p := r.joinAs("colorteller", "colorteller-1")
	revision := r.apply(t, permissive).Revision
	r.stop()
	f.removeDatabase()
	r = f.start()
	if got := r.Info().Revision; got <= revision {
		t.Errorf("revision %d after %d", got, revision)
	}
	p.r = r.remote
	p.connect()
	if err := p.renew(); err != nil {
		t.Error(err)
	}
	records, err := r.admin.Certificates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	byInstance := 0
	for _, record := range records {
		if record.Instance == "colorteller-1" {
			byInstance++
		}
	}
	if byInstance != 2 {
		t.Errorf("%d certificates of the instance are known, want both", byInstance)
	}
}

func TestStartRefusals(t *testing.T) {
	t.Run("no CA", func(t *testing.T) {
		f := newFixture(t, colorapp)
		f.cfg.State = t.TempDir()
		f.refuses(ca.ErrNoCA)
	})
	t.Run("two servers", func(t *testing.T) {
		f := newFixture(t, colorapp)
		f.start()
		f.refuses(journal.ErrLocked)
	})
	t.Run("another trust domain", func(t *testing.T) {
		f := newFixture(t, colorapp)
		f.start().stop()
		f.write("trustDomain: other.internal\n" + colorapp)
		f.refuses(ca.ErrOtherTrustDomain)
	})
	t.Run("no specification", func(t *testing.T) {
		f := newFixture(t, colorapp)
		f.cfg.Mesh = ""
		f.refuses(ErrNoMesh)
	})
	t.Run("a wrong specification", func(t *testing.T) {
		f := newFixture(t, "mesh: 1\n")
		_, err := New(t.Context(), f.cfg)
		if _, ok := errors.AsType[mesh.Errors](err); !ok {
			t.Errorf("%v, want mesh.Errors", err)
		}
	})
	t.Run("a port in use", func(t *testing.T) {
		f := newFixture(t, colorapp)
		f.cfg.Listen = newFixture(t, colorapp).start().address.String()
		f.refuses(ErrListen)
	})
	t.Run("an address of another machine", func(t *testing.T) {
		f := newFixture(t, colorapp)
		f.cfg.Listen = "192.0.2.1:0"
		f.refuses(ErrListen)
	})
	t.Run("a database of another CA", func(t *testing.T) {
		f, other := newFixture(t, colorapp), newFixture(t, colorapp)
		f.start().stop()
		f.start().stop() // its journal is longer than the one of the other
		other.start().stop()
		text, err := os.ReadFile(filepath.Join(other.cfg.State, "server.db"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(f.cfg.State, "server.db"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		f.refuses(ErrDatabase)
	})
	t.Run("a journal of another CA", func(t *testing.T) {
		f, other := newFixture(t, colorapp), newFixture(t, colorapp)
		f.restoreJournal(other.saveJournal())
		f.refuses(journal.ErrForged)
	})
	t.Run("a journal that was put back", func(t *testing.T) {
		f := newFixture(t, colorapp)
		f.start().stop()
		old := f.saveJournal()
		f.start().stop()
		f.restoreJournal(old)
		f.refuses(journal.ErrTruncated)
	})
}

// refuses checks that no server can be made, and that nothing is left open: afterwards one can be
// made again, or fails in the same way.
func (f *fixture) refuses(want error) {
	f.t.Helper()
	for range 2 {
		s, err := New(f.t.Context(), f.cfg)
		if !errors.Is(err, want) {
			f.t.Errorf("%v, want %v", err, want)
		}
		if err == nil {
			f.t.Error(s.Close())
		}
	}
}

// TestJournalHoldsNoSecret looks for tokens and keys in everything that was recorded.
func TestJournalHoldsNoSecret(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	token := r.token("colorteller", 1)
	p := r.newPeer("colorteller-1")
	if err := p.enroll(token); err != nil {
		t.Fatal(err)
	}
	wantCode(t, r.newPeer("colorteller-2").enroll(token), api.CodeUsedToken)
	for record, err := range journal.Records(ca.JournalDir(f.cfg.State)) {
		if err != nil {
			t.Fatal(err)
		}
		if text := string(record.Data); strings.Contains(text, token) || strings.Contains(text, tokenPrefix) || strings.Contains(text, "PRIVATE") {
			t.Errorf("entry %d holds a secret: %s", record.Index, text)
		}
		if !json.Valid(record.Data) {
			t.Errorf("entry %d is not JSON", record.Index)
		}
	}
}
