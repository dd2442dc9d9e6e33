package server

import (
	"bytes"
	"context"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/issue"
	"countersign.dev/journal"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// adminGet asks the socket for a path and gives the code of the refusal, or "".
func adminGet(t *testing.T, r *running, path string) (code string, err error) {
	t.Helper()
	return adminDo(t, r, http.MethodGet, path, "", "")
}

func adminDo(t *testing.T, r *running, method, path, contentType, body string) (code string, err error) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", r.Info().Socket)
		},
	}}
	request, err := http.NewRequestWithContext(t.Context(), method, "http://x"+path, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusOK {
		return "", nil
	}
	return api.DecodeError(response).Code, nil
}

func TestTokenRequests(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	created, err := r.admin.CreateToken(t.Context(), api.TokenRequest{Workload: "colorteller"})
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(created.Expires); left > defaultTokenTTL || left < defaultTokenTTL-time.Minute {
		t.Errorf("it expires in %s", left)
	}
	if !wellFormedToken(created.Token) {
		t.Errorf("the token does not look like one")
	}
	for name, c := range map[string]struct {
		request api.TokenRequest
		code    string
	}{
		"nobody":        {api.TokenRequest{}, api.CodeNotDeclared},
		"a stranger":    {api.TokenRequest{Workload: "stranger"}, api.CodeNotDeclared},
		"too long":      {api.TokenRequest{Workload: "colorteller", TTL: mesh.Duration(maxTokenTTL + 1)}, api.CodeBadRequest},
		"negative time": {api.TokenRequest{Workload: "colorteller", TTL: -1}, api.CodeBadRequest},
		"too often":     {api.TokenRequest{Workload: "colorteller", Uses: maxTokenUses + 1}, api.CodeBadRequest},
		"negative uses": {api.TokenRequest{Workload: "colorteller", Uses: -1}, api.CodeBadRequest},
	} {
		_, err := r.admin.CreateToken(t.Context(), c.request)
		if message := wantCode(t, err, c.code); message == "" {
			t.Errorf("%s: no message", name)
		}
	}
	if created, refused := f.count(journal.TokenCreated), f.count(journal.TokenRefused); created != 1 || refused != 6 {
		t.Errorf("the journal has %d created and %d refused tokens, want 1 and 6", created, refused)
	}
	// The database holds the hash only.
	r.stop()
	for _, name := range []string{"server.db", "server.db-wal"} {
		text, err := os.ReadFile(filepath.Join(f.cfg.State, name))
		if err == nil && bytes.Contains(text, []byte(created.Token)) {
			t.Errorf("%s holds the token", name)
		}
	}
}

func TestProbeAndIssue(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	p := r.newPeer("x")
	leaf := func(credentials *api.Credentials, err error) *x509.Certificate {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		chain, err := mtls.ParseCertificates([]byte(credentials.Chain))
		if err != nil {
			t.Fatal(err)
		}
		return chain[0]
	}
	cert := leaf(r.admin.Probe(t.Context(), p.csr(), time.Hour))
	if got := cert.URIs[0].String(); got != "spiffe://colorapp.internal/probe/verify" {
		t.Errorf("identity %s", got)
	}
	if life := cert.NotAfter.Sub(cert.NotBefore) - issue.ClockAllowance; life > 5*time.Minute {
		t.Errorf("the probe's certificate lives %s", life)
	}
	if short := leaf(r.admin.Probe(t.Context(), p.csr(), time.Second)); short.NotAfter.After(time.Now().Add(time.Second)) {
		t.Errorf("asked for a second, it ends at %s", short.NotAfter)
	}
	cert = leaf(r.admin.Issue(t.Context(), api.IssueRequest{Workload: "colorgateway", CSR: p.csr()}))
	if got := cert.URIs[0].String(); got != "spiffe://colorapp.internal/gateway/colorgateway" {
		t.Errorf("identity %s", got)
	}
	_, err := r.admin.Probe(t.Context(), p.csr(), -time.Second)
	wantCode(t, err, api.CodeBadRequest)
	_, err = r.admin.Probe(t.Context(), "nonsense", 0)
	wantCode(t, err, api.CodeBadRequest)
	_, err = r.admin.Issue(t.Context(), api.IssueRequest{Workload: "stranger", CSR: p.csr()})
	wantCode(t, err, api.CodeNotDeclared)
	_, err = r.admin.Issue(t.Context(), api.IssueRequest{Workload: "colorgateway", CSR: "nonsense"})
	wantCode(t, err, api.CodeBadRequest)
	types := f.journalTypes()
	tail := []journal.Type{
		journal.Probe, journal.IssueIntent, journal.Issued, journal.Probe, journal.IssueIntent, journal.Issued,
		journal.IssueIntent, journal.Issued, journal.ProbeRefused, journal.ProbeRefused, journal.IssueRefused, journal.IssueRefused,
	}
	if got := types[max(0, len(types)-len(tail)):]; !slices.Equal(got, tail) {
		t.Errorf("the journal ends with %v, want %v", got, tail)
	}
}

func TestDescribeAndExport(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	described, err := r.admin.CA(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	roots, err := mtls.ParseCertificates([]byte(described.Root))
	if err != nil || mtls.Pin(roots[0]) != described.Pin || described.TrustDomain != "colorapp.internal" {
		t.Errorf("%+v, %v", described, err)
	}
	info := r.Info()
	if text, err := os.ReadFile(info.CAFile); err != nil || string(text) != described.Root {
		t.Errorf("%s does not hold the root: %v", info.CAFile, err)
	}
	reader, writer := io.Pipe()
	go func() { writer.CloseWithError(r.admin.Journal(context.Background(), writer)) }()
	dir := filepath.Join(t.TempDir(), "copy")
	if err := journal.Extract(reader, dir); err != nil {
		t.Fatal(err)
	}
	if _, err := journal.Verify(dir, described.JournalKey); err != nil {
		t.Error(err)
	}
	// A journal that is damaged under a running server is not copied as if it were whole.
	damage(t, filepath.Join(ca.JournalDir(f.cfg.State), "entries.jsonl"))
	if err := r.admin.Journal(t.Context(), io.Discard); err == nil {
		t.Error("a damaged journal was exported")
	}
}

func damage(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[10] ^= 1
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestRequestForms sends requests that are wrong before anybody looks at what they ask for.
func TestRequestForms(t *testing.T) {
	r := newFixture(t, colorapp).start()
	const isJSON = "application/json"
	for name, c := range map[string]struct{ method, path, contentType, body, code string }{
		"another method":   {http.MethodGet, api.PathTokens, "", "", api.CodeBadRequest},
		"a method of none": {http.MethodDelete, api.PathStatus, "", "", api.CodeBadRequest},
		"no type":          {http.MethodPost, api.PathTokens, "", "{}", api.CodeBadRequest},
		"a form":           {http.MethodPost, api.PathTokens, "application/x-www-form-urlencoded", "{}", api.CodeBadRequest},
		"no JSON":          {http.MethodPost, api.PathTokens, isJSON, "workload=x", api.CodeBadRequest},
		"no body":          {http.MethodPost, api.PathTokens, isJSON, "", api.CodeBadRequest},
		"an unknown field": {http.MethodPost, api.PathTokens, isJSON, `{"workload":"colorteller","admin":true}`, api.CodeBadRequest},
		"two texts":        {http.MethodPost, api.PathTokens, isJSON, `{"workload":"colorteller"}{}`, api.CodeBadRequest},
		"a wrong type":     {http.MethodPost, api.PathTokens, isJSON, `{"workload":1}`, api.CodeBadRequest},
		"too large":        {http.MethodPost, api.PathTokens, isJSON, `{"workload":"` + strings.Repeat("x", maxBody) + `"}`, api.CodeTooLarge},
		"another path":     {http.MethodGet, "/v2/status", "", "", api.CodeNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			code, err := adminDo(t, r, c.method, c.path, c.contentType, c.body)
			if err != nil || code != c.code {
				t.Errorf("code %q, %v, want %q", code, err, c.code)
			}
		})
	}
	// The administrator's paths are not on the agents' listener.
	p := r.joinAs("colorteller", "colorteller-1")
	for _, path := range []string{api.PathStatus, api.PathApply, api.PathTokens, api.PathJournal, api.PathIssue} {
		wantCode(t, p.post(path, struct{}{}, &struct{}{}), api.CodeNotFound)
	}
	wantCode(t, p.send(api.PathReport, "text/plain", strings.NewReader("{}"), &struct{}{}), api.CodeBadRequest)
	wantCode(t, p.send(api.PathReport, isJSON, strings.NewReader(strings.Repeat(" ", maxBody+1)), &struct{}{}), api.CodeTooLarge)
}

func TestStatus(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	status := func() map[string]api.Status {
		t.Helper()
		rows, err := r.admin.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		byInstance := make(map[string]api.Status)
		for _, row := range rows {
			byInstance[row.Workload+"/"+row.Instance] = row
		}
		return byInstance
	}
	if row, ok := status()["colorteller/"]; !ok || row.Error == "" {
		t.Errorf("a workload without an instance: %+v", row)
	}
	teller, gateway := r.joinAs("colorteller", "colorteller-1"), r.joinAs("colorgateway", "colorgateway-1")
	w := teller.watch(0)
	if row := status()["colorteller/colorteller-1"]; !strings.Contains(row.Error, "not reported") {
		t.Errorf("an instance without a report: %+v", row)
	}
	gateway.watch(0)
	if err := gateway.report(3); err != nil {
		t.Fatal(err)
	}
	spiffe := "spiffe://colorapp.internal/gateway/colorgateway"
	report := api.Report{
		Revision: 7, PlaintextCallers: map[string]int64{"10.0.0.9": 3, "10.0.0.1": 1},
		Callers: map[string]api.Caller{spiffe: {Serial: gateway.serial(), Seen: time.Now()}},
	}
	if err := teller.reportAs(report); err != nil {
		t.Fatal(err)
	}
	rows := status()
	row := rows["colorteller/colorteller-1"]
	if row.Serial != teller.serial() || row.Revision != 7 || !row.Connected || row.Error != "" || row.Identity != teller.chain[0].URIs[0].String() ||
		strings.Join(row.PlaintextCallers, " ") != "10.0.0.1 10.0.0.9" || !row.NotAfter.Equal(teller.chain[0].NotAfter) || row.LastRenewal.IsZero() {
		t.Errorf("%+v", row)
	}
	if row.SurvivesSeconds < 3500 || row.SurvivesSeconds > 3600 {
		t.Errorf("it survives for %d s", row.SurvivesSeconds)
	}
	if row := rows["colorgateway/colorgateway-1"]; row.ObservedSerial != gateway.serial() || row.PlaintextCallers == nil {
		t.Errorf("the gateway as its peers see it: %+v", row)
	}

	for offset, word := range map[time.Duration]string{6 * time.Minute: "ahead of", -6 * time.Minute: "behind"} {
		if err := teller.reportAs(api.Report{ClockOffset: mesh.Duration(offset)}); err != nil {
			t.Fatal(err)
		}
		if row := status()["colorteller/colorteller-1"]; !strings.Contains(row.Error, "clock is 6m0s "+word) {
			t.Errorf("a clock that is off by %s: %q", offset, row.Error)
		}
	}
	if err := teller.reportAs(api.Report{ClockOffset: mesh.Duration(4 * time.Minute), Problem: "the disk is full"}); err != nil {
		t.Fatal(err)
	}
	if row := status()["colorteller/colorteller-1"]; row.Error != "the disk is full" {
		t.Errorf("a problem of its own: %q", row.Error)
	}
	w.close()
	eventually(t, "that the loss is shown", func() bool {
		row := status()["colorteller/colorteller-1"]
		return !row.Connected && strings.Contains(row.Error, "not connected since")
	})
	f.offset.Store(int64(2 * time.Hour))
	if row := status()["colorteller/colorteller-1"]; row.SurvivesSeconds != 0 || !strings.Contains(row.Error, "expired") {
		t.Errorf("after its end: %+v", row)
	}
}

func TestEndpointsList(t *testing.T) {
	r := newFixture(t, colorapp).start()
	p := r.joinAs("colorteller", "colorteller-1")
	p.watch(0)
	if list, err := r.admin.Endpoints(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("before a report: %+v, %v", list, err)
	}
	if err := p.reportAs(api.Report{PID: 42, Admin: "127.0.0.1:1", Listening: []api.Listening{at(9080, "127.0.0.2:9080")}}); err != nil {
		t.Fatal(err)
	}
	list, err := r.admin.Endpoints(t.Context())
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	if e := list[0]; e.Workload != "colorteller" || e.Kind != "service" || e.PID != 42 || e.Admin != "127.0.0.1:1" || e.Serial != p.serial() || e.Inbound[0].Address != "127.0.0.2:9080" {
		t.Errorf("%+v", e)
	}
}

// removeDatabase loses the database.
func (f *fixture) removeDatabase() {
	f.t.Helper()
	for _, name := range []string{"server.db", "server.db-wal", "server.db-shm"} {
		if err := os.Remove(filepath.Join(f.cfg.State, name)); err != nil && !os.IsNotExist(err) {
			f.t.Fatal(err)
		}
	}
}

// saveJournal keeps a copy of the journal's files.
func (f *fixture) saveJournal() map[string][]byte {
	f.t.Helper()
	saved := make(map[string][]byte)
	for _, name := range []string{"checkpoint", "entries.jsonl"} {
		text, err := os.ReadFile(filepath.Join(ca.JournalDir(f.cfg.State), name))
		if err != nil {
			f.t.Fatal(err)
		}
		saved[name] = text
	}
	return saved
}

func (f *fixture) restoreJournal(saved map[string][]byte) {
	f.t.Helper()
	for name, text := range saved {
		if err := os.WriteFile(filepath.Join(ca.JournalDir(f.cfg.State), name), text, 0o600); err != nil {
			f.t.Fatal(err)
		}
	}
}
