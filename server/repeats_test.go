package server

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/journal"
	"countersign.dev/mtls"
)

// serialOf is the serial of the leaf that was answered.
func serialOf(t *testing.T, credentials *api.Credentials, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := mtls.ParseCertificates([]byte(credentials.Chain))
	if err != nil {
		t.Fatal(err)
	}
	return mtls.Serial(chain[0])
}

// TestRepeatedRequest asks again and again for one certificate.
func TestRepeatedRequest(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	csr, other := r.newPeer("x").csr(), r.newPeer("y").csr()
	ask := func(workload, csr, request string) (*api.Credentials, error) {
		return r.admin.Issue(t.Context(), api.IssueRequest{Workload: workload, CSR: csr, Request: request})
	}
	credentials, err := ask("colorteller", csr, "first")
	first := serialOf(t, credentials, err)
	issued := f.count(journal.Issued)
	for range 3 {
		if credentials, err = ask("colorteller", csr, "first"); serialOf(t, credentials, err) != first {
			t.Error("the same request gave another certificate")
		}
	}
	if n := f.count(journal.Issued); n != issued {
		t.Errorf("%d certificates were issued, want %d", n, issued)
	}
	_, err = ask("colorteller", other, "first")
	wantCode(t, err, api.CodeConflict)
	_, err = ask("colorteller", csr, "a slash/")
	wantCode(t, err, api.CodeBadRequest)
	for name, again := range map[string][2]string{"another id": {"colorteller", "second"}, "another workload": {"colorgateway", "first"}, "no id": {"colorteller", ""}} {
		if credentials, err := ask(again[0], csr, again[1]); serialOf(t, credentials, err) == first {
			t.Errorf("%s: the certificate of the first request", name)
		}
	}

	// What the database has lost, the journal knows.
	r.stop()
	for _, name := range []string{"server.db", "server.db-wal", "server.db-shm"} {
		if err := os.Remove(filepath.Join(f.cfg.State, name)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	r = f.start()
	if credentials, err = ask("colorteller", csr, "first"); serialOf(t, credentials, err) != first {
		t.Error("after the loss of the database the same request gave another certificate")
	}
	_, err = ask("colorteller", other, "first")
	wantCode(t, err, api.CodeConflict)
}

// TestRepeatedRequestAfterTheRoot repeats a request whose answer nobody trusts any more: it gets one other certificate,
// which is the answer from then on, and the journal knows that, too.
func TestRepeatedRequestAfterTheRoot(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	csr := r.newPeer("x").csr()
	ask := func() string {
		t.Helper()
		credentials, err := r.admin.Issue(t.Context(), api.IssueRequest{Workload: "colorteller", CSR: csr, Request: "first"})
		return serialOf(t, credentials, err)
	}
	first := ask()
	r.takes(api.RotationRequest{Step: api.RotateStart})
	r.takes(api.RotationRequest{Step: api.RotateActivate})
	r.takes(api.RotationRequest{Step: api.RotateFinish, Force: api.CutOff})
	second := ask()
	if second == first || ask() != second {
		t.Errorf("%s, after %s: want one other certificate", second, first)
	}
	r.stop()
	for _, name := range []string{"server.db", "server.db-wal", "server.db-shm"} {
		if err := os.Remove(filepath.Join(f.cfg.State, name)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	r = f.start()
	if ask() != second {
		t.Error("after the loss of the database the request gave another certificate")
	}
}

// TestRepeatedRequestIsNotStored lets the database fail when the journal has the certificate already.
func TestRepeatedRequestIsNotStored(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	csr := r.newPeer("x").csr()
	request := api.IssueRequest{Workload: "colorteller", CSR: csr, Request: "first"}
	db := r.store.db
	if _, err := db.ExecContext(t.Context(), "CREATE TRIGGER fail BEFORE INSERT ON requests BEGIN SELECT RAISE(ABORT, 'no'); END"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.admin.Issue(t.Context(), request); err == nil {
		t.Fatal("it was answered although it is not stored")
	}
	issued := f.count(journal.Issued)
	if _, err := db.ExecContext(t.Context(), "DROP TRIGGER fail"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.admin.Issue(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	if n := f.count(journal.Issued); n != issued {
		t.Errorf("%d certificates were issued, want %d", n, issued)
	}
}

// TestRepeatedRequestAfterACrash kills the server before it answers.
func TestRepeatedRequestAfterACrash(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts many processes")
	}
	binary := faultyBinary(t)
	f := newFixture(t, colorapp)
	request := api.IssueRequest{Workload: "colorteller", CSR: (&remote{f: f}).newPeer("x").csr(), Request: "first"}
	p := spawn(t, binary, f, "server.issue.stored")
	if !p.ready {
		t.Fatal(p.stderr.String())
	}
	if _, err := f.at(p.info).admin.Issue(t.Context(), request); err == nil {
		t.Error("everything was done")
	}
	if !p.end() {
		t.Error("nobody was killed")
	}
	p = spawn(t, binary, f, "")
	r := f.at(p.info)
	first, err := r.admin.Issue(t.Context(), request)
	serial := serialOf(t, first, err)
	records, err := r.admin.Certificates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, record := range records {
		if record.Identity.Name() == "colorteller" && record.Serial != serial {
			t.Errorf("the second certificate %s was issued beside %s", record.Serial, serial)
		}
	}
	p.end()
}

// TestSharedCertificateIsSeen tells of a certificate that was issued to no instance which instances were seen with it.
func TestSharedCertificateIsSeen(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	var shared [2]string
	for i := range shared {
		credentials, err := r.admin.Issue(t.Context(), api.IssueRequest{Workload: "colorgateway", CSR: r.newPeer("x").csr()})
		shared[i] = serialOf(t, credentials, err)
	}
	teller := r.joinAs("colorteller", "colorteller-1")
	teller.watch(0)
	gateways := []*peer{r.joinAs("colorgateway", "colorgateway-1"), r.joinAs("colorgateway", "colorgateway-2")}
	serve := func(i int, serial string) {
		t.Helper()
		report := api.Report{Instance: gateways[i].instance, Serial: serial, NotAfter: time.Now().Add(time.Hour), LastRenewal: time.Now()}
		if err := gateways[i].post(api.PathReport, report, &api.ReportResponse{}); err != nil {
			t.Fatal(err)
		}
	}
	see := func(serial string, at time.Time) {
		t.Helper()
		spiffe := "spiffe://colorapp.internal/gateway/colorgateway"
		if err := teller.reportAs(api.Report{Callers: map[string]api.Caller{spiffe: {Serial: serial, Seen: at}}}); err != nil {
			t.Fatal(err)
		}
	}
	observed := func() (all []string) {
		t.Helper()
		rows, err := r.admin.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			if row.Workload == "colorgateway" {
				all = append(all, row.ObservedSerial)
			}
		}
		return all
	}
	for i, gateway := range gateways {
		gateway.watch(0)
		serve(i, shared[0])
	}
	see(shared[0], time.Now())
	if got := observed(); !slices.Equal(got, []string{shared[0], shared[0]}) {
		t.Errorf("observed %q, want twice %s", got, shared[0])
	}
	serve(0, shared[1])
	see(shared[1], time.Now())
	if got := observed(); got[0] != shared[1] || got[1] == shared[1] {
		t.Errorf("observed %q: only the first one says that it serves %s", got, shared[1])
	}
	see(gateways[1].serial(), time.Now())
	if got := observed(); got[1] != gateways[1].serial() {
		t.Errorf("observed %q: the second one's own is %s", got, gateways[1].serial())
	}
	// Somebody presents what nobody says that it serves: it may be any of them.
	serve(1, shared[1])
	at := time.Now().Add(time.Second)
	see(shared[0], at)
	if got := observed(); !slices.Equal(got, []string{shared[0], shared[0]}) {
		t.Errorf("observed %q, want twice %s", got, shared[0])
	}
	rows, err := r.admin.Status(t.Context())
	if i := slices.IndexFunc(rows, func(row api.Status) bool { return row.Instance == "colorgateway-2" }); err != nil || i < 0 || !rows[i].ObservedTime.Equal(at) {
		t.Errorf("%+v, %v; it was seen at %s", rows, err, at)
	}
}
