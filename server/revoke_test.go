package server

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/journal"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// mustRevoke revokes at the administrator's word.
func (r *running) mustRevoke(t *testing.T, request api.RevokeRequest) *api.RevokeResponse {
	t.Helper()
	done, err := r.admin.Revoke(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// lists reads what everybody is told.
func lists(t *testing.T, text string) []*x509.RevocationList {
	t.Helper()
	var all []*x509.RevocationList
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, list)
	}
	return all
}

func listsSerial(list *x509.RevocationList, serial string) bool {
	return slices.ContainsFunc(list.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool {
		return mtls.Serial(&x509.Certificate{SerialNumber: e.SerialNumber}) == serial
	})
}

// TestRevoke revokes one instance of two: it may do nothing any more, its peers are told, and the other goes on.
func TestRevoke(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	gateway := r.joinAs("colorgateway", "colorgateway-1")
	one, two := r.joinAs("colorteller", "colorteller-1"), r.joinAs("colorteller", "colorteller-2")
	token := r.token("colorteller", 5)
	w := gateway.watch(0)
	first := w.next()
	if all := lists(t, first.CRL); len(all) != 2 || len(all[0].RevokedCertificateEntries) != 0 || first.Plan == nil {
		t.Fatalf("the first event has %d lists", len(all))
	}
	watchOne, watchTwo := one.watch(0), two.watch(0)
	watchOne.next()
	watchTwo.next()
	for i, p := range []*peer{one, two} {
		if err := p.report(1, at(9080, []string{"127.0.0.2:9080", "127.0.0.3:9080"}[i])); err != nil {
			t.Fatal(err)
		}
	}
	w.plan("with both", func(p *mesh.Plan) bool { return len(p.Upstreams[0].Endpoints) == 2 })

	done := r.mustRevoke(t, api.RevokeRequest{Serial: one.serial(), Reason: "keyCompromise"})
	if len(done.Revoked) != 1 || done.Revoked[0].Serial != one.serial() || done.Revoked[0].Already || done.Revoked[0].Reason != "keyCompromise" {
		t.Errorf("%+v", done)
	}
	wantCode(t, one.renew(), api.CodeRevoked)
	wantCode(t, one.report(1), api.CodeRevoked)
	_, err := one.tryWatch(0)
	wantCode(t, err, api.CodeRevoked)
	watchOne.ended()
	told, gone := false, false
	eventually(t, "the peer is told", func() bool {
		event := w.next()
		if event.CRL != "" {
			all := lists(t, event.CRL)
			told = told || listsSerial(all[0], one.serial()) && all[0].Number.Int64() == done.CRLNumber
		}
		gone = gone || event.Plan != nil && endpointsOf(event.Plan) == "colorteller-2=127.0.0.3:9080"
		return told && gone
	})
	if err := two.renew(); err != nil {
		t.Errorf("the other instance: %v", err)
	}
	stranger := r.newPeer("colorteller-3")
	wantCode(t, stranger.enroll(token), api.CodeUnknownToken)
	if err := stranger.enroll(r.token("colorteller", 1)); err != nil {
		t.Errorf("with a new token: %v", err)
	}
	again := r.mustRevoke(t, api.RevokeRequest{Serial: one.serial()})
	if len(again.Revoked) != 1 || !again.Revoked[0].Already || again.Revoked[0].Reason != "keyCompromise" {
		t.Errorf("again: %+v", again)
	}
	if n := f.count(journal.Revoke); n != 1 {
		t.Errorf("%d revocations are recorded", n)
	}
	records, err := r.admin.Certificates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, record := range records {
		if revoked := !record.Revoked.IsZero(); revoked != (record.Serial == one.serial()) || revoked != (record.Reason == "keyCompromise") {
			t.Errorf("%+v", record)
		}
	}
}

// TestRevokeCompromised revokes a stolen certificate by its serial: what a thief has renewed with it goes, too, and so do
// the keys; what the same workload got otherwise stays, and so does what was renewed with one that was only superseded.
func TestRevokeCompromised(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	thief, other := r.joinAs("colorteller", "colorteller-1"), r.joinAs("colorteller", "colorteller-2")
	stolen := thief.serial()
	gotten := r.newPeer(thief.instance) // by the stolen one, with a key of the thief's own
	var credentials api.Credentials
	if err := thief.post(api.PathRenew, api.RenewRequest{Instance: thief.instance, CSR: gotten.csr()}, &credentials); err != nil {
		t.Fatal(err)
	}
	if err := gotten.take(credentials); err != nil {
		t.Fatal(err)
	}
	if err := gotten.renew(); err != nil { // a second generation
		t.Fatal(err)
	}
	r.mustRevoke(t, api.RevokeRequest{Serial: stolen, Reason: "superseded"})
	if err := gotten.renew(); err != nil {
		t.Errorf("after what it came from was superseded: %v", err)
	}
	done := r.mustRevoke(t, api.RevokeRequest{Serial: stolen, Reason: "keyCompromise"})
	renewed := 0
	for _, row := range done.Revoked {
		if row.Renewed {
			renewed++
		}
	}
	if len(done.Revoked) != 4 || renewed != 3 || done.Revoked[3].Serial != stolen || !done.Revoked[3].Already {
		t.Errorf("%+v", done.Revoked)
	}
	wantCode(t, gotten.renew(), api.CodeRevoked)
	if err := other.renew(); err != nil {
		t.Errorf("the other instance: %v", err)
	}
	again := func(r *remote, p *peer) error {
		_, err := r.admin.Issue(t.Context(), api.IssueRequest{Workload: "colorteller", CSR: p.csr()})
		return err
	}
	wantCode(t, again(r.remote, thief), api.CodeRevoked)
	wantCode(t, thief.enroll(r.token("colorteller", 1)), api.CodeRevoked)
	r.mustRevoke(t, api.RevokeRequest{Serial: stolen, Reason: "keyCompromise"})
	if n := f.count(journal.Revoke); n != 2 {
		t.Errorf("%d revocations are recorded", n)
	}
	r.stop()
	r = f.start()
	wantCode(t, again(r.remote, gotten), api.CodeRevoked)
	if err := again(r.remote, r.newPeer("x")); err != nil {
		t.Errorf("another key: %v", err)
	}
}

// TestRevokeEnded revokes, for a key that was stolen, a certificate that has ended: what was renewed with it is valid.
func TestRevokeEnded(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	thief, other := r.joinAs("colorteller", "colorteller-1"), r.joinAs("colorteller", "colorteller-2")
	stolen := thief.serial()
	f.offset.Store(int64(50 * time.Minute)) // the certificates live for an hour
	if err := thief.renew(); err != nil {
		t.Fatal(err)
	}
	f.offset.Store(int64(65 * time.Minute))
	for serial, reason := range map[string]string{stolen: "superseded", other.serial(): "keyCompromise"} {
		_, err := r.admin.Revoke(t.Context(), api.RevokeRequest{Serial: serial, Reason: reason})
		if text := wantCode(t, err, api.CodeBadRequest); !strings.Contains(text, "expired") {
			t.Error(text)
		}
	}
	done := r.mustRevoke(t, api.RevokeRequest{Serial: stolen, Reason: "keyCompromise"})
	if len(done.Revoked) != 1 || done.Revoked[0].Serial != thief.serial() || !done.Revoked[0].Renewed {
		t.Errorf("%+v", done.Revoked)
	}
}

// TestRevokeWorkload revokes all of a workload, also one that has nothing but a token.
func TestRevokeWorkload(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	one, two := r.joinAs("colorteller", "colorteller-1"), r.joinAs("colorteller", "colorteller-2")
	if err := one.report(1); err != nil {
		t.Fatal(err)
	}
	done := r.mustRevoke(t, api.RevokeRequest{Workload: "service/colorteller"})
	if len(done.Revoked) != 2 {
		t.Errorf("%+v", done)
	}
	wantCode(t, one.renew(), api.CodeRevoked)
	wantCode(t, two.renew(), api.CodeRevoked)
	rows, err := r.admin.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		if row.Instance == "colorteller-1" && !strings.Contains(row.Error, "its certificate was revoked on ") {
			t.Errorf("the status says %q", row.Error)
		}
	}
	token := r.token("colorgateway", 1)
	if done := r.mustRevoke(t, api.RevokeRequest{Workload: "colorgateway"}); len(done.Revoked) != 0 {
		t.Errorf("%+v", done)
	}
	wantCode(t, r.newPeer("colorgateway-1").enroll(token), api.CodeUnknownToken)
	r.mustRevoke(t, api.RevokeRequest{Workload: "colorteller"})
	if n := f.count(journal.Revoke); n != 2 {
		t.Errorf("%d revocations are recorded", n)
	}
}

// TestRevokeSurvives stops the server and revokes without it, as the command does: the next start knows it, and voids the
// tokens of before; it also makes good what a crash between the journal and the database left.
func TestRevokeSurvives(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	one, two := r.joinAs("colorteller", "colorteller-1"), r.joinAs("colorteller", "colorteller-2")
	token, other := r.token("colorteller", 5), r.token("colorgateway", 1)
	r.mustRevoke(t, api.RevokeRequest{Serial: one.serial()})
	token2 := r.token("colorteller", 5)
	before := lists(t, r.crls())[0].Number
	r.stop()

	log, err := ca.OpenJournal(f.cfg.State, ca.Unsealed())
	if err != nil {
		t.Fatal(err)
	}
	ledger, err := ca.ReadLedger(log.Records())
	if err != nil {
		t.Fatal(err)
	}
	revocation := ca.Revocation{
		Identity: mustIdentity(t, two.chain[0]), Certificates: []ca.RevokedShort{ca.ShortOf(two.serial(), two.chain[0])}, Reason: issue.Superseded,
	}
	if err := ledger.Revoke(t.Context(), log, revocation, f.cfg.Now()); err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}

	r = f.start()
	for _, p := range []*peer{one, two} {
		p.r = r.remote
		p.connect()
		wantCode(t, p.renew(), api.CodeRevoked)
	}
	now := lists(t, r.crls())[0]
	if now.Number.Cmp(before) <= 0 || !listsSerial(now, one.serial()) || !listsSerial(now, two.serial()) {
		t.Errorf("list %v after %v has %d entries", now.Number, before, len(now.RevokedCertificateEntries))
	}
	for _, void := range []string{token, token2} {
		wantCode(t, r.newPeer("colorteller-9").enroll(void), api.CodeUnknownToken)
	}
	if err := r.newPeer("colorgateway-1").enroll(other); err != nil {
		t.Errorf("another workload's token: %v", err)
	}
	r.stop()
	f.removeDatabase()
	r = f.start()
	one.r = r.remote
	one.connect()
	wantCode(t, one.renew(), api.CodeRevoked)
}

func TestRevokeRefusals(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	one := r.joinAs("colorteller", "colorteller-1")
	for name, request := range map[string]api.RevokeRequest{
		"nothing":          {},
		"both":             {Serial: one.serial(), Workload: "colorteller"},
		"a reason":         {Serial: one.serial(), Reason: "certificateHold"},
		"no serial":        {Serial: "colorteller"},
		"no workload":      {Workload: one.serial()},
		"an unknown one":   {Serial: strings.Repeat("ab", 16)},
		"a stranger":       {Workload: "nobody"},
		"of another mesh":  {Workload: "spiffe://other.internal/service/colorteller"},
		"the issuing CA's": {Serial: mtls.Serial(r.ca.Issuer())},
		"the root's":       {Serial: mtls.Serial(r.ca.Root())},
	} {
		_, err := r.admin.Revoke(t.Context(), request)
		if message := wantCode(t, err, api.CodeBadRequest); message == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if n := f.count(journal.RevokeRefused); n != 10 {
		t.Errorf("%d refusals are recorded", n)
	}
	if err := one.renew(); err != nil {
		t.Error(err)
	}
	before := one.chain[0]
	f.offset.Store(int64(2 * time.Hour))
	_, err := r.admin.Revoke(t.Context(), api.RevokeRequest{Serial: mtls.Serial(before)})
	if message := wantCode(t, err, api.CodeBadRequest); !strings.Contains(message, "it expired") {
		t.Errorf("one that has ended: %q", message)
	}
}

// TestRevokeServersOwn revokes the server's certificate: it gets another.
func TestRevokeServersOwn(t *testing.T) {
	r := newFixture(t, colorapp).start()
	before := mtls.Serial(r.leaf.held.Load().Certificate.Leaf)
	r.mustRevoke(t, api.RevokeRequest{Serial: before})
	if after := mtls.Serial(r.leaf.held.Load().Certificate.Leaf); after == before {
		t.Error("it serves on with a revoked certificate")
	}
}

// TestCRLListener asks for the lists as anybody may.
func TestCRLListener(t *testing.T) {
	f := newFixture(t, colorapp)
	f.cfg.CRLListen = "127.0.0.1:0"
	r := f.start()
	one := r.joinAs("colorteller", "colorteller-1")
	get := func(method, path string) (status int, contentType string, body []byte) {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), method, r.info.CRL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if body, err = io.ReadAll(response.Body); err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, response.Header.Get("Content-Type"), body
	}
	r.mustRevoke(t, api.RevokeRequest{Serial: one.serial()})
	for path, want := range map[string]*x509.Certificate{api.PathIssuerCRL: r.ca.Issuer(), api.PathRootCRL: r.ca.Root()} {
		_, contentType, body := get(http.MethodGet, path)
		if contentType != "application/pkix-crl" {
			t.Errorf("%s: %s", path, contentType)
		}
		list, err := x509.ParseRevocationList(body)
		if err != nil || list.CheckSignatureFrom(want) != nil || listsSerial(list, one.serial()) != (path == api.PathIssuerCRL) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for path, want := range map[string]int{"/": 404, api.PathRevoke: 404, "/crl/": 404} {
		if status, _, _ := get(http.MethodGet, path); status != want {
			t.Errorf("%s: status %d", path, status)
		}
	}
	if status, _, _ := get(http.MethodPost, api.PathIssuerCRL); status != http.StatusMethodNotAllowed {
		t.Errorf("POST: status %d", status)
	}
	http.DefaultClient.CloseIdleConnections()
	text, err := r.admin.CRL(t.Context())
	if err != nil || string(text) != r.crls() {
		t.Errorf("the administrator gets %q, %v", text, err)
	}
}

// TestCRLSchedule lets time pass: the lists are made anew, and outlive every certificate.
func TestCRLSchedule(t *testing.T) {
	f := newFixture(t, strings.Replace(colorapp, "ttl: 1h", "ttl: 720h", 1))
	r := f.start()
	first := lists(t, r.crls())
	if left := first[0].NextUpdate.Sub(f.cfg.Now()); left < 720*time.Hour+ca.CRLInterval {
		t.Errorf("the list ends in %v, and a certificate that is issued at the end of the schedule lives 720h", left)
	}
	if !first[1].NextUpdate.Equal(r.ca.Issuer().NotAfter) {
		t.Errorf("the root's list ends on %v, the issuing CA on %v", first[1].NextUpdate, r.ca.Issuer().NotAfter)
	}
	f.offset.Store(int64(ca.CRLInterval + time.Second))
	eventually(t, "another list", func() bool { return lists(t, r.crls())[0].Number.Cmp(first[0].Number) > 0 })
	if got := lists(t, r.crls())[1].Number; got.Cmp(first[1].Number) != 0 {
		t.Errorf("the root's list was made anew: %v", got)
	}
	second := lists(t, r.crls())[0]
	r.apply(t, strings.Replace(colorapp, "ttl: 1h", "ttl: 2000h", 1))
	eventually(t, "a longer list", func() bool {
		list := lists(t, r.crls())[0]
		return list.Number.Cmp(second.Number) > 0 && list.NextUpdate.Sub(f.cfg.Now()) > 2000*time.Hour
	})
}

// TestCRLClock lets the clock be ahead for a while: the lists that are made then lack who was revoked and ends before, and
// are not valid when the clock is right again. They are replaced at once, and not by a schedule of the wrong time.
func TestCRLClock(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	serial := r.joinAs("colorteller", "colorteller-1").serial()
	r.mustRevoke(t, api.RevokeRequest{Serial: serial})
	if !listsSerial(lists(t, r.crls())[0], serial) {
		t.Fatal("it is not on the list")
	}
	f.offset.Store(int64(20 * 24 * time.Hour))
	eventually(t, "a list of the wrong time", func() bool { return !listsSerial(lists(t, r.crls())[0], serial) })
	if err := r.renewRootCRL(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if err := r.refreshCRLs(t.Context()); err != nil {
		t.Fatal(err)
	}
	wrong := lists(t, r.crls())
	f.offset.Store(0)
	eventually(t, "lists of the right time", func() bool {
		all := lists(t, r.crls())
		return listsSerial(all[0], serial) && !slices.ContainsFunc(all, func(l *x509.RevocationList) bool { return l.ThisUpdate.After(f.cfg.Now()) })
	})
	for i, list := range lists(t, r.crls()) {
		if list.Number.Cmp(wrong[i].Number) <= 0 {
			t.Errorf("list %d has the number %v, and that of the wrong time %v: nobody takes it", i, list.Number, wrong[i].Number)
		}
	}
}

// TestNoRootCRL has a CA of a version without lists whose root's key was moved away.
func TestNoRootCRL(t *testing.T) {
	f := newFixture(t, colorapp)
	key, safe := filepath.Join(f.cfg.State, "ca", "root.key"), filepath.Join(f.dir, "root.key")
	if err := os.Rename(key, safe); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(f.cfg.State, "ca", "root.crl")); err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), f.cfg); !errors.Is(err, ErrRootCRL) || !strings.Contains(err.Error(), "--renew-root") {
		t.Fatalf("started: %v", err)
	}
	f.write("revocation: none\n" + colorapp)
	r := f.start()
	rows, err := r.admin.Status(t.Context())
	if err != nil || len(rows) == 0 {
		t.Fatal(rows, err)
	}
	_, err = r.tryApply(colorapp, false)
	wantCode(t, err, api.CodeInvalidSpec)
	if problem := r.crlProblem(); !strings.Contains(problem, "the root's key is not here") {
		t.Errorf("problem %q", problem)
	}
	made := f.count(journal.CRLIssued)
	f.offset.Store(int64(10 * crlRetry))
	for range 10 {
		r.tendCRLs(t.Context())
	}
	if n := f.count(journal.CRLIssued); n != made {
		t.Errorf("%d lists were made for a root whose key is not there", n-made)
	}
	if _, err := r.admin.RenewCRL(t.Context(), api.RenewCRLRequest{}); err == nil {
		t.Error("the root's list was made without its key")
	}
	renewed, err := r.admin.RenewCRL(t.Context(), api.RenewCRLRequest{RootKeyFile: safe})
	if err != nil || len(lists(t, renewed.CRL)) != 2 {
		t.Fatalf("%+v, %v", renewed, err)
	}
	r.apply(t, colorapp)
}

// TestRevocationInStatus asserts that the choice stands in the status, with the reason for it.
func TestRevocationInStatus(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	r.joinAs("colorteller", "colorteller-1").watch(0)
	word := func() string {
		rows, err := r.admin.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			if row.Instance == "colorteller-1" {
				return row.Revocation
			}
		}
		return ""
	}
	eventually(t, "check", func() bool { return word() == "check" })
	r.apply(t, "revocation: none\n"+colorapp)
	if got := word(); got != "none: a certificate that is lost is good until it ends, at most 1h0m0s" {
		t.Errorf("%q", got)
	}
	r.apply(t, colorapp)
	f.offset.Store(int64(ca.DefaultIssuerLife - 20*24*time.Hour))
	if problem := r.crlProblem(); problem != "" {
		t.Errorf("a list that lasts as long as the issuing CA: %q", problem)
	}
}

func mustIdentity(t *testing.T, cert *x509.Certificate) id.ID {
	t.Helper()
	identity, err := id.FromCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	return identity
}
