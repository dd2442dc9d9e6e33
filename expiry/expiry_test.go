package expiry

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	day        = 24 * time.Hour
	backdating = 5 * time.Minute
	life       = 7 * day
	renewAfter = 5 * day
	apiID      = "spiffe://m.internal/service/api"
)

// noon is a day of which nothing is special.
var noon = time.Date(2027, 3, 14, 12, 0, 0, 0, time.UTC)

// leaf is a certificate of that age.
func leaf(serial string, now time.Time, age time.Duration) Certificate {
	return Certificate{Serial: serial, Identity: apiID, NotBefore: now.Add(-age - backdating), NotAfter: now.Add(life - age)}
}

// served is a pointer to a copy.
func served(c Certificate) *Certificate { return &c }

// healthy is a mesh in which all is well: api gets its certificate from a store and has two listeners.
func healthy(now time.Time) Facts {
	current := leaf("aa01", now, day)
	previous := leaf("aa00", now, 6*day)
	root := CACertificate{
		Subject: "CN=m root", State: Active,
		Certificate: Certificate{Serial: "01", Fingerprint: "f00d", NotBefore: now.Add(-365 * day), NotAfter: now.Add(9 * 365 * day)},
	}
	issuer := CACertificate{
		Subject: "CN=m issuer", State: Active,
		Certificate: Certificate{Serial: "02", Fingerprint: "beef", NotBefore: now.Add(-365 * day), NotAfter: now.Add(2 * 365 * day)},
	}
	server := Certificate{Serial: "03", Identity: "spiffe://m.internal/server/countersign", NotBefore: now.Add(-time.Hour - backdating), NotAfter: now.Add(23 * time.Hour)}
	issued := make(map[string]Issued)
	for _, cert := range []Certificate{current, previous} {
		issued[cert.Serial] = Issued{Serial: cert.Serial, Identity: cert.Identity, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter}
	}
	return Facts{
		Now: now, Backdating: backdating, Issued: issued, Remembered: 30 * day,
		Authority: &Authority{
			Roots: []CACertificate{root}, Issuers: []CACertificate{issuer},
			CRLs: []CRL{{Issuer: "CN=m issuer", ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(23 * time.Hour)}},
		},
		Server: &Server{Address: "10.0.0.1:8443", Served: &server},
		Workloads: []Workload{{
			Name: "api", Identity: apiID, TTL: life, RenewAfter: renewAfter, InstancesKnown: true,
			Stored: &Stored{
				Store: "main", Secret: "m/api",
				Current:  &Version{ID: "v2", Written: now.Add(-day), Certificate: current},
				Previous: &Version{ID: "v1", Written: now.Add(-6 * day), Certificate: previous},
				Bundle:   &Bundle{Secret: "m/bundle", Version: "b1", Roots: []CACertificate{root}},
			},
			Rotation: &Rotation{LastSuccess: now.Add(-day)},
			Instances: []Instance{{
				Name: "api-1", Connected: true, Reported: "aa01", Ends: current.NotAfter, Seen: "aa01",
				Endpoints: []Endpoint{
					{Listener: "0.0.0.0_9080", Address: "10.0.0.2:9080", Served: served(current)},
					{Listener: "0.0.0.0_9090", Address: "10.0.0.2:9090", Served: served(current)},
				},
			}},
		}},
	}
}

// byAgent makes api get its certificate through its agent.
func byAgent(f *Facts) {
	f.Workloads[0].Stored, f.Workloads[0].Rotation = nil, nil
}

// serve makes all listeners of api show a certificate.
func serve(f *Facts, c Certificate) {
	for i := range f.Workloads[0].Instances[0].Endpoints {
		f.Workloads[0].Instances[0].Endpoints[i].Served = served(c)
	}
	f.Workloads[0].Instances[0].Reported, f.Workloads[0].Instances[0].Ends = c.Serial, c.NotAfter
}

// age makes what api has and serves that old.
func age(f *Facts, by time.Duration) {
	cert := leaf("aa01", f.Now, by)
	if f.Workloads[0].Stored != nil {
		f.Workloads[0].Stored.Current.Certificate = cert
		f.Workloads[0].Stored.Current.Written = f.Now.Add(-by)
	}
	if f.Workloads[0].Rotation != nil {
		f.Workloads[0].Rotation.LastSuccess = f.Now.Add(-by)
	}
	f.Issued["aa01"] = Issued{Serial: "aa01", Identity: apiID, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter}
	serve(f, cert)
}

// summary is a finding in a line.
func summary(f Finding) string {
	return strings.Join(strings.Fields(fmt.Sprintf("%s %s %s %s", f.Severity, f.Code, f.Workload, f.Place)), " ")
}

// findingCase is a way in which the facts are wrong, and the findings that it makes.
type findingCase struct {
	change func(f *Facts)
	want   []string
	// says are parts of the first finding's words.
	says []string
}

// Places of the findings.
const (
	store  = "store:main m/api"
	listen = "10.0.0.2:9080 10.0.0.2:9090"
)

// silentFindings are those that nobody would hear of.
var silentFindings = map[string]findingCase{
	"all is well":             {change: func(*Facts) {}},
	"all is well with agents": {change: byAgent},

	// The four that nobody hears of.
	"a schedule that stopped": {
		change: func(f *Facts) { age(f, renewAfter+8*time.Hour) },
		want:   []string{"warning rotation_overdue api " + store},
		says:   []string{"was due at 2027-03-14T04:00:00Z, 8h0m ago", "nobody has tried it since; the last rotation was tried at 2027-03-09T04:00:00Z", "rotate daemon"},
	},
	"a schedule that stopped, near the end": {
		change: func(f *Facts) { age(f, life-3*time.Hour) },
		want:   []string{"critical expiring api " + store, "critical rotation_overdue api " + store},
		says:   []string{"ends in 3h0m"},
	},
	"a rotation that always fails at once": {
		change: func(f *Facts) {
			age(f, renewAfter+8*time.Hour)
			*f.Workloads[0].Rotation = Rotation{
				LastFailure: noon, LastSuccess: noon.Add(-renewAfter), Failures: 4,
				FailedStep: "issue", LastError: "the CA is down",
			}
		},
		want: []string{"critical rotation_failing api " + store, "warning rotation_overdue api " + store},
		says: []string{"failed 4 times", "at the step issue", "the CA is down"},
	},
	"a rotation that failed once, before it is due": {
		change: func(f *Facts) {
			f.Workloads[0].Rotation.Failures, f.Workloads[0].Rotation.LastFailure = 1, noon
		},
		want: []string{"warning rotation_failing api " + store},
		says: []string{"failed once", "no reason was kept"},
	},
	"a store that was updated while the proxy serves the old one": {
		change: func(f *Facts) {
			serve(f, f.Workloads[0].Stored.Previous.Certificate)
		},
		want: []string{"critical store_ahead_of_endpoint api " + listen, "warning expiring api " + listen},
		says: []string{"it serves aa00", "the store has aa01 since 2027-03-13T12:00:00Z", "countersign init --watch"},
	},
	"a proxy that refused a reload": {
		change: func(f *Facts) {
			old := leaf("aa00", noon, 2*day)
			f.Workloads[0].Stored.Previous.Certificate = old
			serve(f, old)
			f.Workloads[0].Instances[0].Problem = "nginx -t: key values mismatch"
		},
		want: []string{"critical reload_refused api " + listen},
		says: []string{"nginx -t: key values mismatch", "it serves aa00", "the store has aa01"},
	},
}

// clockFindings are about clocks.
var clockFindings = map[string]findingCase{
	// Clocks.
	"this machine's clock is behind": {
		change: func(f *Facts) { f.Now = noon.Add(-2 * day) },
		// All of them begin in the future; nothing but the clock is wrong.
		want: []string{
			"critical clock_skew", "critical crl_stale CN=m issuer", "critical not_yet_valid 10.0.0.1:8443",
			"critical not_yet_valid api store:main m/api", "critical not_yet_valid api " + listen,
		},
		says: []string{"this machine's clock is at least 1d0h behind the server's"},
	},
	"another machine's clock is off": {
		change: func(f *Facts) { f.Workloads[0].Instances[0].ClockOffset = -10 * time.Minute },
		want:   []string{"warning clock_skew api"},
		says:   []string{"10m0s behind the server's"},
	},
	"another machine's clock is a little off": {
		change: func(f *Facts) { f.Workloads[0].Instances[0].ClockOffset = 4 * time.Minute },
	},
}

// TestFindings has a case for every way in which the facts can be wrong: exactly these findings, in this order.
func TestFindings(t *testing.T) {
	for _, cases := range []map[string]findingCase{silentFindings, rotationFindings, certificateFindings, authorityFindings, clockFindings, taskFindings} {
		for name, test := range cases {
			t.Run(name, func(t *testing.T) { test.run(t) })
		}
	}
}

// run changes the facts, and compares what is found.
func (test findingCase) run(t *testing.T) {
	t.Helper()
	facts := healthy(noon)
	test.change(&facts)
	report := Compare(facts, DefaultLimits())
	var got []string
	for _, f := range report.Findings {
		got = append(got, summary(f))
		if f.Action == "" || f.Message == "" {
			t.Errorf("%s says nothing or does not say what to do: %+v", summary(f), f)
		}
	}
	slices.Sort(got)
	want := slices.Sorted(slices.Values(test.want))
	if diff := cmp.Diff(want, got, cmp.Transformer("", func(s []string) []string { return append([]string{}, s...) })); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
	for _, part := range test.says {
		if len(report.Findings) == 0 || !strings.Contains(report.Findings[0].Message+report.Findings[0].Action, part) {
			t.Errorf("the first finding does not say %q: %+v", part, report.Findings)
		}
	}
	if (report.Worst == OK) != (len(report.Findings) == 0) {
		t.Errorf("the worst is %s with %d findings", report.Worst, len(report.Findings))
	}
}
