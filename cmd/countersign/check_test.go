package main

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/api"
	"countersign.dev/expiry"
	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/secret"
	"countersign.dev/secret/filestore"
)

// cannot is an answer of a server that cannot.
func cannot() *api.Error {
	return &api.Error{Code: api.CodeInternal, Message: "the database is locked"}
}

// TestCheckExpiry asserts what is found when something is wrong with one of the sources: these findings, no others.
func TestCheckExpiry(t *testing.T) {
	for name, test := range map[string]struct {
		change func(t *testing.T, l *checkLab)
		want   []string
		says   string
	}{
		"all is well":                  {func(*testing.T, *checkLab) {}, nil, ""},
		"the store's identity is gone": {func(t *testing.T, l *checkLab) { remove(t, l, "id.age") }, []string{"store_unreadable store:DIR/store"}, "not checked: the secrets of api"},
		"the store is gone":            {func(t *testing.T, l *checkLab) { remove(t, l, "store") }, []string{"store_unreadable store:DIR/store"}, ""},
		"another identity": {func(t *testing.T, l *checkLab) {
			remove(t, l, "id.age")
			if err := filestore.GenerateIdentity(filepath.Join(l.dir, "id.age")); err != nil {
				t.Fatal(err)
			}
		}, []string{"store_unreadable store:DIR/store"}, ""},
		"no secret": {func(t *testing.T, l *checkLab) {
			l.put(t, "m/other", "v1", "x")
			remove(t, l, "store/secrets/m,api")
		}, []string{"secret_missing store:main m/api"}, ""},
		"a damaged secret": {func(t *testing.T, l *checkLab) {
			l.write(t, "store/secrets/m,api/v-v1.age", "not age")
		}, []string{"secret_unreadable store:main m/api"}, "it is damaged"},
		"no JSON": {func(t *testing.T, l *checkLab) { l.put(t, "m/api", "v2", "hello") }, []string{"secret_unreadable store:main m/api"}, "not an object"},
		"a placeholder": {func(t *testing.T, l *checkLab) {
			l.put(t, "m/api", "v2", `{"cert_pem": "PLACEHOLDER", "key_pem": "PLACEHOLDER", "ca_bundle": "PLACEHOLDER"}`)
		}, []string{"secret_unfit store:main m/api", "secret_unreadable store:main m/api"}, "PLACEHOLDER"},
		"another's key": {func(t *testing.T, l *checkLab) {
			leaf := l.leaf(t, id.Service, "api", 23*time.Hour)
			l.issued(t, leaf, "")
			l.put(t, "m/api", "v2", l.object(t, leaf, l.keys[l.root], l.root))
		}, []string{"secret_unfit store:main m/api", "store_ahead_of_endpoint HOST"}, ""},
		"the bundle has another root": {func(t *testing.T, l *checkLab) {
			leaf, other := l.leaf(t, id.Service, "api", 23*time.Hour), l.site(t, 0)
			l.issued(t, leaf, "")
			l.put(t, "m/api", "v2", l.object(t, leaf, l.keys[leaf], other))
		}, []string{"bundle_stale store:main m/api", "bundle_stale store:main m/api", "secret_unfit store:main m/api", "store_ahead_of_endpoint HOST"}, ""},
		"a bundle of its own that is not there": {func(t *testing.T, l *checkLab) {
			l.respecify(t, `secret: "{mesh}/{service}"`, `secret: "{mesh}/{service}", bundle: "{mesh}/bundle"`)
		}, []string{"secret_unfit store:main m/api", "secret_unreadable store:main m/bundle"}, ""},
		"the rotation's record is damaged": {func(t *testing.T, l *checkLab) { l.put(t, "m/api.rotation", "v1", "hello") }, []string{"rotation_unreadable store:main m/api"}, ""},
		"the rotation's record": {func(t *testing.T, l *checkLab) {
			l.put(t, "m/api.rotation", "v1", `{"format": 1, "failures": 2, "failuresTotal": 7, "lastError": "no CA", "lastErrorStep": "issue", "lastSuccess": "2026-01-01T00:00:00Z"}`)
		}, []string{"rotation_failing store:main m/api"}, "failed 2 times since the last success at 2026-01-01T00:00:00Z"},
		"nobody listens": {func(t *testing.T, l *checkLab) {
			l.answers[api.PathEndpoints].([]api.Instance)[0].Inbound[0].Address = "127.0.0.1:1"
		}, []string{"endpoint_unreachable 127.0.0.1:1"}, "connection refused"},
		"a listener is not reported": {func(t *testing.T, l *checkLab) {
			l.answers[api.PathEndpoints].([]api.Instance)[0].Inbound[0].Port = 9444
		}, []string{"endpoint_unreachable"}, "reports no listener"},
		"an instance that left": {func(t *testing.T, l *checkLab) {
			l.answers[api.PathEndpoints] = l.answers[api.PathEndpoints].([]api.Instance)[1:]
			l.answers[api.PathStatus].([]api.Status)[0].Connected = false
		}, []string{"instance_lost"}, ""},
		"a workload without an instance": {func(t *testing.T, l *checkLab) {
			l.answers[api.PathEndpoints] = l.answers[api.PathEndpoints].([]api.Instance)[1:]
			l.answers[api.PathStatus].([]api.Status)[0] = api.Status{Workload: "api", Error: "no instance has connected"}
		}, []string{"no_instance"}, ""},
		"the file is not there": {func(t *testing.T, l *checkLab) { remove(t, l, "site.pem") }, []string{"file_unreadable DIR/site.pem"}, "no such file"},
		"the file is none":      {func(t *testing.T, l *checkLab) { l.write(t, "site.pem", "hello") }, []string{"file_unreadable DIR/site.pem"}, ""},
		"the file is newer": {
			func(t *testing.T, l *checkLab) { l.write(t, "site.pem", string(pemOf(l.site(t, 0)))) },
			[]string{"file_ahead_of_endpoint HOST"},
			"",
		},
		"the books are not to be had": {
			func(t *testing.T, l *checkLab) { l.answers[api.PathCertificates] = cannot() },
			[]string{"server_unreachable SOCKET"},
			"the database is locked; not checked: what the CA has issued",
		},
		"the instances are not to be had": {
			func(t *testing.T, l *checkLab) { l.answers[api.PathStatus] = cannot() },
			[]string{"server_unreachable SOCKET"},
			"not checked: who runs and where",
		},
		"the endpoints are not to be had": {
			func(t *testing.T, l *checkLab) { l.answers[api.PathEndpoints] = cannot() },
			[]string{"server_unreachable SOCKET"},
			"not checked: who runs and where",
		},
		"the CA is not to be had": {
			func(t *testing.T, l *checkLab) { l.answers[api.PathCA] = cannot() },
			[]string{"server_unreachable SOCKET"},
			"roots and issuing CA",
		},
		"the CA is none": {func(t *testing.T, l *checkLab) {
			l.answers[api.PathCA].(*api.CAResponse).Issuer = "hello"
			l.answers[api.PathStatus] = append(l.answers[api.PathStatus].([]api.Status), api.Status{Workload: "(CA)", Error: "it is none"})
		}, []string{"server_unreachable SOCKET"}, "the issuing CA that the server names"},
		"the specification is not to be had": {
			func(t *testing.T, l *checkLab) { l.answers[api.PathMesh] = cannot() },
			[]string{"server_unreachable SOCKET"},
			"and with it stores, endpoints and files",
		},
		"the lists are not to be had": {func(t *testing.T, l *checkLab) { l.answers[api.PathCRL] = cannot() }, []string{"crl_stale ca"}, ""},
		"the lists are none":          {func(t *testing.T, l *checkLab) { l.answers[api.PathCRL] = []byte("hello") }, []string{"crl_stale ca"}, "holds none"},
		"the lists are certificates":  {func(t *testing.T, l *checkLab) { l.answers[api.PathCRL] = pemOf(l.root) }, []string{"crl_stale ca"}, "no revocation list"},
		"on the list": {func(t *testing.T, l *checkLab) {
			leaf := l.leaf(t, id.Service, "api", 23*time.Hour)
			l.issued(t, leaf, "")
			l.put(t, "m/api", "v2", l.object(t, leaf, l.keys[leaf], l.root))
			l.answers[api.PathEndpoints].([]api.Instance)[0].Inbound[0].Address = l.serve(t, leaf)
			l.answers[api.PathStatus].([]api.Status)[0].Serial = mtls.Serial(leaf)
			l.answers[api.PathCRL] = l.lists(t, leaf)
		}, []string{"revoked store:main m/api"}, "was revoked at"},
		"in the books as revoked, where no lists are looked at": {func(t *testing.T, l *checkLab) {
			l.respecify(t, "mesh: m\n", "mesh: m\nrevocation: none\n")
			leaf := l.leaf(t, id.Service, "api", 23*time.Hour)
			l.issued(t, leaf, "")
			records := l.answers[api.PathCertificates].([]api.CertificateRecord)
			records[len(records)-1].Revoked = l.now
			l.put(t, "m/api", "v2", l.object(t, leaf, l.keys[leaf], l.root))
			l.answers[api.PathEndpoints].([]api.Instance)[0].Inbound[0].Address = l.serve(t, leaf)
			l.answers[api.PathStatus].([]api.Status)[0].Serial = mtls.Serial(leaf)
		}, []string{"revoked store:main m/api"}, "was revoked at"},
		"the CA is in two minds": {func(t *testing.T, l *checkLab) {
			next := l.certify(t, nil, &x509.Certificate{Subject: pkix.Name{CommonName: "m root 2"}, IsCA: true, NotAfter: l.now.Add(100000 * time.Hour)})
			answer := l.answers[api.PathCA].(*api.CAResponse)
			answer.Roots = []api.Hierarchy{
				{State: expiry.Active, Root: answer.Root, Issuer: answer.Issuer},
				{State: expiry.Next, Root: string(pemOf(next)), Issuer: string(pemOf(next))},
				{State: expiry.Retiring, Root: answer.Root, Issuer: string(pemOf(l.issuer))},
			}
			l.answers[api.PathStatus] = append(l.answers[api.PathStatus].([]api.Status), api.Status{Workload: "(CA)", Error: "the change of the root waits"})
		}, []string{"bundle_stale store:main m/api", "ca_problem ca"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			l := newCheckLab(t)
			test.change(t, l)
			status, checked := l.check(t, "--socket", l.socket)
			var got []string
			said := ""
			for _, f := range checked.Findings {
				place := strings.NewReplacer(l.dir, "DIR", l.socket, "SOCKET").Replace(f.Place)
				if strings.HasPrefix(place, "127.0.0.1:") && place != "127.0.0.1:1" {
					place = "HOST"
				}
				got = append(got, strings.TrimSpace(string(f.Code)+" "+place))
				said += f.Message + "\n"
			}
			slices.Sort(got)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("findings (-want +got):\n%s\n%s", diff, said)
			}
			if !strings.Contains(said, test.says) {
				t.Errorf("nothing says %q:\n%s", test.says, said)
			}
			if (status == exitOK) != (len(got) == 0) {
				t.Errorf("the exit status is %d", status)
			}
		})
	}
}

// remove removes a file or a directory of the lab.
func remove(t *testing.T, l *checkLab, name string) {
	t.Helper()
	path := filepath.Join(l.dir, name)
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

// issued puts a certificate into the books.
func (l *checkLab) issued(t *testing.T, leaf *x509.Certificate, instance string) {
	t.Helper()
	l.answers[api.PathCertificates] = append(l.answers[api.PathCertificates].([]api.CertificateRecord), l.record(t, leaf, instance))
}

// respecify changes the specification that the server runs.
func (l *checkLab) respecify(t *testing.T, from, to string) {
	t.Helper()
	text := strings.Replace(checkSpec, from, to, 1)
	if text == checkSpec {
		t.Fatalf("%q is not in the specification", from)
	}
	l.write(t, "mesh.yaml", text)
	documents, err := mesh.ReadDocuments(l.spec)
	if err != nil {
		t.Fatal(err)
	}
	l.answers[api.PathMesh] = &api.MeshResponse{Revision: 2, Documents: documents}
}

// TestCheckWithoutServer asserts that stores and files are looked at while no server answers, or none is named.
func TestCheckWithoutServer(t *testing.T) {
	l := newCheckLab(t)
	old := l.leaf(t, id.Service, "api", 167*time.Hour)
	l.put(t, "m/api", "v2", l.object(t, old, l.keys[old], l.root))
	for _, args := range [][]string{{l.spec}, {l.spec, "--socket", filepath.Join(l.dir, "nobody")}} {
		status, checked := l.check(t, args...)
		var got []string
		for _, f := range checked.Findings {
			got = append(got, string(f.Code))
		}
		want := []string{"server_unreachable", "expiring", "rotation_overdue"}
		if status != exitFailure || !slices.Equal(got, want) {
			t.Errorf("%v: status %d, findings %v, want %v", args, status, got, want)
		}
		if !slices.ContainsFunc(checked.Items, func(i expiry.Item) bool { return i.Kind == expiry.KindFile && i.State == expiry.StateOK }) {
			t.Errorf("%v: the gateway's file is not looked at: %+v", args, checked.Items)
		}
	}
}

// TestCheckSilentServer asserts that a server that takes connections and says nothing is a finding, and that everybody
// else is looked at.
func TestCheckSilentServer(t *testing.T) {
	l := newCheckLab(t)
	socket := l.socket + "2"
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for _, args := range [][]string{{"--socket", socket}, {l.spec, "--socket", socket}} {
		status, checked := l.check(t, append(args, "--timeout", "3s")...)
		if status != exitFailure || len(checked.Findings) == 0 || checked.Findings[0].Code != expiry.CodeServer ||
			!strings.Contains(fmt.Sprint(checked.Findings[0]), "the server does not answer within 1s") {
			t.Errorf("%v: status %d, %+v", args, status, checked.Findings)
		}
		if args[0] == l.spec && !slices.ContainsFunc(checked.Items, func(i expiry.Item) bool { return i.Kind == expiry.KindFile && i.State == expiry.StateOK }) {
			t.Errorf("%v: the gateway's file is not looked at: %+v", args, checked.Items)
		}
	}
}

// TestCheckSettings asserts which settings are mistakes.
func TestCheckSettings(t *testing.T) {
	for limits, good := range map[[4]string]bool{
		{"20%,30d", "10%,7d", "20%,180d", "10%,60d"}: true,
		{"30d", "20%", "30d", "30d"}:                 true, // for a year it is the other way round, for a week it is not
		{"10%", "10%", "1d", "0s"}:                   true,
		{"1d", "2d", "1d", "1d"}:                     false,
		{"5%", "10%", "1d", "1d"}:                    false,
		{"1d", "1d", "1h", "10%"}:                    false,
		{"119m", "", "", ""}:                         true, // the default for critical makes room
		{"", "90d", "", "365d"}:                      true,
		{"", "", "1h", ""}:                           true,
		{"0s", "", "0s", ""}:                         true,
	} {
		c := checkExpiryCmd{Timeout: time.Second}
		for i, threshold := range []**expiry.Threshold{&c.Warn, &c.Critical, &c.CAWarn, &c.CACritical} {
			if limits[i] == "" {
				continue // it is not given
			}
			*threshold = new(expiry.Threshold)
			if err := (*threshold).UnmarshalText([]byte(limits[i])); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.limits(); (err == nil) != good {
			t.Errorf("%q: %v", limits, err)
		}
	}
}

// TestCheckOther asserts that somebody who gives another specification than the running one is told.
func TestCheckOther(t *testing.T) {
	l := newCheckLab(t)
	l.write(t, "other.yaml", strings.Replace(checkSpec, "168h", "169h", 1))
	t.Setenv("COUNTERSIGN_RUN", "")
	for path, differs := range map[string]bool{l.spec: false, filepath.Join(l.dir, "other.yaml"): true} {
		status, _, stderr := command(t, "check", "expiry", path, "--settle", "0s", "--socket", l.socket)
		if status != exitOK || strings.Contains(stderr, "the running specification differs from") != differs {
			t.Errorf("%s: status %d\n%s", path, status, stderr)
		}
	}
}

// TestCheckMetricsFails asserts that a report is shown although its metrics cannot be written, and that this is no
// success.
func TestCheckMetricsFails(t *testing.T) {
	l := newCheckLab(t)
	t.Setenv("COUNTERSIGN_RUN", "")
	status, stdout, stderr := command(t, "check", "expiry", "--settle", "0s", "--socket", l.socket, "--metrics-file", filepath.Join(l.spec, "below"))
	if status != exitFailure || !strings.Contains(stdout, "All is well") || !strings.Contains(stderr, "writing the metrics") {
		t.Errorf("status %d\n%s\n%s", status, stdout, stderr)
	}
}

// TestCheckLooksAgain asserts that a check that takes its time says so, and once.
func TestCheckLooksAgain(t *testing.T) {
	l := newCheckLab(t)
	t.Setenv("COUNTERSIGN_RUN", "")
	l.write(t, "more.yaml", strings.Replace(checkSpec, "services:\n", "services:\n  nobody:\n    ports: [{port: 9099, protocol: http}]\n", 1))
	status, stdout, stderr := command(t, "check", "expiry", filepath.Join(l.dir, "more.yaml"), "--settle", "5s", "--socket", l.socket)
	if status != exitFailure || !strings.Contains(stdout, "no_instance") || strings.Count(stderr, "looking again for 5s at most (--settle)") != 1 {
		t.Errorf("status %d\n%s\n%s", status, stdout, stderr)
	}
}

// TestCheckTimeout asserts that a check that is not done in time says so, and does not say that all is well.
func TestCheckTimeout(t *testing.T) {
	l := newCheckLab(t)
	t.Setenv("COUNTERSIGN_RUN", "")
	status, stdout, stderr := command(t, "check", "expiry", "--socket", l.socket, "--timeout", "1ns")
	if status != exitFailure || stdout != "" || !strings.Contains(stderr, "was not done after 1ns; give it more time with --timeout") {
		t.Errorf("status %d\n%s\n%s", status, stdout, stderr)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := &expiryWatch{noServer: errors.New("none")}
	if _, err := w.look(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("of a check that was ended: %v", err)
	}
}

// TestCheckTable asserts that columns stand below one another, with colours and without, and that what comes from
// elsewhere cannot command the terminal.
func TestCheckTable(t *testing.T) {
	now := time.Date(2027, 3, 14, 12, 0, 0, 0, time.UTC)
	checked := checkedExpiry{Checked: now, Report: expiry.Report{Worst: expiry.Critical, Items: []expiry.Item{
		{Kind: expiry.KindStored, Workload: "a-long-name", Place: "store:main m/a", Serial: "0123456789abcdef", NotAfter: now.Add(-time.Hour), Due: now.Add(-2 * time.Hour), State: expiry.StateExpired, Severity: expiry.Critical},
		{Kind: expiry.KindServed, Workload: "b", Instance: "b\x1b[2J-1", Place: "10.0.0.2:9080", State: expiry.StateUnknown, Severity: expiry.Warning},
		{Kind: expiry.KindRoot, Place: "ca", Serial: "01", NotAfter: now.Add(400 * 24 * time.Hour), State: expiry.StateOK, Severity: expiry.OK},
	}, Findings: []expiry.Finding{{Code: expiry.CodeExpired, Severity: expiry.Critical, Workload: "a", Place: "p", Message: "it\nhas \x1b]0;expired", Action: "mend it"}}}}
	const want = `ENDS IN   STATE    WHAT    WORKLOAD     INSTANCE  SERIAL        DUE       WHERE
1h0m ago  expired  stored  a-long-name  -         0123456789ab  2h0m ago  store:main m/a
-         unknown  served  b            b?[2J-1   -             -         10.0.0.2:9080
400d0h    ok       root    -            -         01            -         ca

CRITICAL expired  a  p
    it has ?]0;expired
    -> mend it
`
	var plain, coloured strings.Builder
	for _, out := range []struct {
		to    *strings.Builder
		paint func(expiry.Severity, string) string
	}{{&plain, painter(false)}, {&coloured, painter(true)}} {
		writeExpiryItems(out.to, checked, out.paint)
		writeExpiryFinding(out.to, checked.Findings[0], out.paint)
	}
	if diff := cmp.Diff(want, plain.String()); diff != "" {
		t.Errorf("the table (-want +got):\n%s", diff)
	}
	bare := strings.NewReplacer("\x1b[31m", "", "\x1b[33m", "", "\x1b[0m", "").Replace(coloured.String())
	if bare != plain.String() || coloured.String() == plain.String() || !strings.Contains(coloured.String(), "\x1b[31mCRITICAL\x1b[0m") {
		t.Errorf("with colours:\n%q", coloured.String())
	}
}

// TestCheckMetrics asserts the file for Prometheus, character by character.
func TestCheckMetrics(t *testing.T) {
	path := filepath.Join(t.TempDir(), "countersign.prom")
	now := time.Unix(1800000000, 0)
	checked := checkedExpiry{Checked: now, Report: expiry.Report{
		Items: []expiry.Item{
			{Kind: expiry.KindServed, Workload: "a", Instance: "a-1", Place: `x"\` + "\ny", NotAfter: now.Add(time.Minute), SecondsLeft: 60},
			{Kind: expiry.KindServed, Workload: "a", Instance: "a-2", State: expiry.StateUnknown},
			{Kind: expiry.KindRoot, Place: "ca", Serial: "01", NotAfter: now.Add(-time.Second), SecondsLeft: -1},
			{Kind: expiry.KindRoot, Place: "ca", Serial: "02", NotAfter: now.Add(time.Second), SecondsLeft: 1},
		},
		Findings: []expiry.Finding{
			{Code: expiry.CodeExpired, Severity: expiry.Critical},
			{Code: expiry.CodeExpired, Severity: expiry.Critical},
			{Code: expiry.CodeExpiring, Severity: expiry.Warning, Workload: "a"},
		},
	}}
	if err := writeExpiryMetrics(path, checked); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := `# HELP countersign_expiry_seconds Seconds until the end of a certificate or a revocation list; below 0 when it has ended.
# TYPE countersign_expiry_seconds gauge
countersign_expiry_seconds{kind="served",workload="a",instance="a-1",place="x\"\\\ny"} 60
countersign_expiry_seconds{kind="root",workload="",instance="",place="ca",serial="01"} -1
countersign_expiry_seconds{kind="root",workload="",instance="",place="ca",serial="02"} 1
# HELP countersign_expiry_findings Findings of the last check, by their code.
# TYPE countersign_expiry_findings gauge
countersign_expiry_findings{code="expired",severity="critical",workload=""} 2
countersign_expiry_findings{code="expiring",severity="warning",workload="a"} 1
# HELP countersign_expiry_check_timestamp_seconds When the check was made: alarm when it is old.
# TYPE countersign_expiry_check_timestamp_seconds gauge
countersign_expiry_check_timestamp_seconds 1800000000
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
	if err := writeExpiryMetrics(filepath.Join(path, "below"), checked); err == nil {
		t.Error("a path below a file could be written to")
	}
}

// TestCheckVersion asserts that versions that are not in use are read by their certificate alone.
func TestCheckVersion(t *testing.T) {
	l := newCheckLab(t)
	leaf := l.leaf(t, id.Service, "api", 0)
	if _, err := l.store.Stage(t.Context(), "m/api", "v2", []byte(l.object(t, leaf, l.keys[leaf], l.root))); err != nil {
		t.Fatal(err)
	}
	spec, err := mesh.Load(l.spec)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := spec.Compile("api")
	if err != nil {
		t.Fatal(err)
	}
	shape, err := plan.Delivery.Shape()
	if err != nil {
		t.Fatal(err)
	}
	s := &seen{facts: expiry.Facts{Now: l.now}}
	pending := s.version(t.Context(), l.store, shape, plan, secret.Pending)
	if pending == nil || pending.ID != "v2" || pending.Serial != mtls.Serial(leaf) {
		t.Errorf("pending is %+v", pending)
	}
	if previous := s.version(t.Context(), l.store, shape, plan, secret.Previous); previous != nil {
		t.Errorf("previous is %+v", previous)
	}
	if at := written(t.Context(), l.store, "m/api", "v2"); at.IsZero() {
		t.Error("it is not known when the version was written")
	}
	if at := written(t.Context(), l.store, "m/api", "v9"); !at.IsZero() {
		t.Errorf("a version that is not there was written at %s", at)
	}
	if fmt.Sprint(written(t.Context(), l.store, "m/none", "v1")) != fmt.Sprint(time.Time{}) {
		t.Error("a secret that is not there was written")
	}
}
