package server

import (
	"os"
	"strings"
	"testing"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/journal"
)

// everythingIsRefused tries all that would have to be recorded.
func everythingIsRefused(t *testing.T, r *running, enrolled, stranger *peer, token string) {
	t.Helper()
	before, err := r.admin.Certificates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, _, revision := r.registry.running()
	size := r.journal.Size()

	message := wantCode(t, stranger.enroll(token), api.CodeNotRecorded)
	if !strings.Contains(message, "journal") {
		t.Errorf("the message %q does not name the journal", message)
	}
	wantCode(t, stranger.enroll("nonsense"), api.CodeNotRecorded)
	wantCode(t, enrolled.renew(), api.CodeNotRecorded)
	_, err = r.admin.CreateToken(t.Context(), api.TokenRequest{Workload: "colorteller"})
	wantCode(t, err, api.CodeNotRecorded)
	_, err = r.admin.Probe(t.Context(), stranger.csr(), 0)
	wantCode(t, err, api.CodeNotRecorded)
	_, err = r.admin.Issue(t.Context(), api.IssueRequest{Workload: "colorteller", CSR: stranger.csr()})
	wantCode(t, err, api.CodeNotRecorded)
	_, err = r.tryApply(permissive, false)
	wantCode(t, err, api.CodeNotRecorded)

	after, err := r.admin.Certificates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, now := r.registry.running(); len(after) != len(before) || now != revision || r.journal.Size() != size {
		t.Errorf("%d certificates, revision %d, %d entries; before they were %d, %d, %d",
			len(after), now, r.journal.Size(), len(before), revision, size)
	}
}

// everythingIsDone tries the same when the journal can be written again.
func everythingIsDone(t *testing.T, r *running, enrolled, stranger *peer, token string) {
	t.Helper()
	if err := stranger.enroll(token); err != nil {
		t.Error(err)
	}
	if err := enrolled.renew(); err != nil {
		t.Error(err)
	}
	r.apply(t, permissive)
	vkey := r.Info().JournalKey
	r.stop()
	if _, err := journal.Verify(ca.JournalDir(r.f.cfg.State), vkey); err != nil {
		t.Error(err)
	}
}

// TestJournalGone takes the journal's directory away from under a running server.
func TestJournalGone(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	enrolled, stranger := r.joinAs("colorteller", "colorteller-1"), r.newPeer("colorteller-2")
	token := r.token("colorteller", 1)
	dir := ca.JournalDir(f.cfg.State)
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	everythingIsRefused(t, r, enrolled, stranger, token)
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	everythingIsDone(t, r, enrolled, stranger, token)
}
