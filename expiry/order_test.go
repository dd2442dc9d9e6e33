package expiry

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestItems asserts that everything that expires is in the list, the most urgent first.
func TestItems(t *testing.T) {
	facts := healthy(noon)
	gateway(&facts, day, day)
	var got []string
	report := Compare(facts, DefaultLimits())
	for _, item := range report.Items {
		got = append(got, fmt.Sprintf("%s %s %s %s", item.Kind, item.Place, item.State, time.Duration(item.SecondsLeft)*time.Second))
	}
	want := []string{
		"crl CN=m issuer ok 23h0m0s",
		"server 10.0.0.1:8443 ok 23h0m0s",
		"stored store:main m/api ok 144h0m0s",
		"served 10.0.0.2:9080 10.0.0.2:9090 ok 144h0m0s",
		"file /etc/site.pem ok 9528h0m0s",
		"served 10.0.0.2:443 ok 9528h0m0s",
		"issuer ca ok 17520h0m0s",
		"root ca ok 78840h0m0s",
		"bundle store:main m/bundle ok 78840h0m0s",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("items (-want +got):\n%s", diff)
	}
	if !slices.IsSortedFunc(report.Items, func(a, b Item) int { return a.NotAfter.Compare(b.NotAfter) }) {
		t.Error("the items are not in the order of their ends")
	}

	// What is worse comes first, however long it has.
	facts.Authority.Roots[0].NotBefore, facts.Authority.Roots[0].NotAfter = noon.Add(-9*365*day), noon.Add(50*day)
	if first := Compare(facts, DefaultLimits()).Items[0]; first.Kind != KindRoot || first.State != StateExpiring {
		t.Errorf("the first item is %+v, and the root has 50 days", first)
	}
}

// TestUrgency asserts the order of findings: the worse first, then what breaks sooner; what nobody knows the
// deadline of comes before what has one.
func TestUrgency(t *testing.T) {
	facts := healthy(noon)
	age(&facts, renewAfter+8*time.Hour)
	facts.Authority.Roots[0].NotBefore, facts.Authority.Roots[0].NotAfter = noon.Add(-9*365*day), noon.Add(10*day)
	facts.Authority.Issuers[0].NotBefore, facts.Authority.Issuers[0].NotAfter = noon.Add(-3*365*day), noon.Add(9*day)
	facts.Workloads[0].Instances[0].Connected = false
	facts.Unreached = []Unreached{{Code: CodeStore, Place: "store:other", Problem: "no such directory"}}
	var got []string
	for _, f := range Compare(facts, DefaultLimits()).Findings {
		got = append(got, summary(f))
	}
	want := []string{
		"critical store_unreadable store:other",
		"critical issuer_expiring ca",
		"critical root_expiring ca",
		"warning instance_lost api",
		"warning rotation_overdue api store:main m/api",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
}

// TestLimits asserts that limits are never so early that they speak of a rotation that is not late yet.
func TestLimits(t *testing.T) {
	limits := DefaultLimits()
	limits.Warn, limits.Critical = Threshold{Left: 72 * time.Hour}, Threshold{Left: 60 * time.Hour} // due is at 48h
	for left, want := range map[time.Duration]State{
		49 * time.Hour: StateOK,
		45 * time.Hour: StateDue,
		43 * time.Hour: StateExpiring, // a warning: the schedule is late
		20 * time.Hour: StateExpiring, // critical: half of what was left is over
		-time.Second:   StateExpired,
	} {
		facts := healthy(noon)
		byAgent(&facts)
		age(&facts, life-left)
		report := Compare(facts, limits)
		i := slices.IndexFunc(report.Items, func(i Item) bool { return i.Kind == KindServed })
		severity := OK
		switch {
		case left <= 20*time.Hour:
			severity = Critical
		case left <= 43*time.Hour:
			severity = Warning
		}
		if item := report.Items[i]; item.State != want || item.Severity != severity || report.Worst != severity {
			t.Errorf("with %s left it is %s and %s, want %s and %s", left, item.State, item.Severity, want, severity)
		}
	}
}

// TestAskedLimits asserts that a limit that somebody asked for speaks of a leaf whose rotation is not late, and of the
// server's own certificate, which always ends soon, no more than before.
func TestAskedLimits(t *testing.T) {
	for name, test := range map[string]struct {
		asked    Limits
		left     time.Duration
		severity Severity
	}{
		"more is left":                  {Limits{Warn: Threshold{Left: 72 * time.Hour}, WarnAlways: true}, 73 * time.Hour, OK},
		"less is left, and it is early": {Limits{Warn: Threshold{Left: 72 * time.Hour}, WarnAlways: true}, 71 * time.Hour, Warning},
		"critical, and it is early":     {Limits{Critical: Threshold{Left: 72 * time.Hour}, CriticalAlways: true}, 71 * time.Hour, Critical},
		"longer than it lives":          {Limits{Critical: Threshold{Left: 30 * day}, CriticalAlways: true}, life, Critical},
		"nobody has asked":              {Limits{Warn: Threshold{Left: 30 * day}, Critical: Threshold{Left: 30 * day}}, 71 * time.Hour, OK},
	} {
		facts := healthy(noon)
		byAgent(&facts)
		age(&facts, life-test.left)
		test.asked.Grace = DefaultLimits().Grace
		report := Compare(facts, test.asked)
		for _, kind := range []Kind{KindServed, KindServer} {
			i := slices.IndexFunc(report.Items, func(i Item) bool { return i.Kind == kind })
			want := test.severity
			if kind == KindServer {
				want = OK
			}
			if item := report.Items[i]; item.Severity != want || report.Worst != test.severity {
				t.Errorf("%s: %s is %s and %s, want %s; the worst is %s", name, kind, item.State, item.Severity, want, report.Worst)
			}
		}
		for _, f := range report.Findings {
			if f.Code != CodeExpiring {
				t.Errorf("%s: also %+v", name, f)
			}
		}
	}
}

// TestDue asserts when a leaf is due: as agents and rotations reckon it.
func TestDue(t *testing.T) {
	for name, test := range map[string]struct {
		life, renewAfter time.Duration
		want             time.Duration // from its issue
	}{
		"as declared":                     {7 * day, 5 * day, 5 * day},
		"declared longer since":           {day, 5 * day, day / 7 * 5},
		"declared shorter since":          {7 * day, time.Hour, time.Hour},
		"nothing is declared":             {7 * day, 0, 5 * day},
		"as long as it lives":             {7 * day, 7 * day, 5 * day},
		"minutes, with five of allowance": {10 * time.Minute, 6 * time.Minute, 6 * time.Minute},
		"shorter than the allowance is":   {3 * time.Minute, 2 * time.Minute, 2 * time.Minute},
		"over the end of a leap February": {7 * day, 5 * day, 5 * day},
		"none of a life":                  {-backdating, day, -backdating},
	} {
		issued := time.Date(2028, 2, 27, 0, 0, 0, 0, time.UTC)
		c := &comparison{facts: Facts{Backdating: backdating}}
		cert := Certificate{NotBefore: issued.Add(-backdating), NotAfter: issued.Add(test.life)}
		if got := c.due(cert, &Workload{RenewAfter: test.renewAfter}).Sub(issued); got != test.want {
			t.Errorf("%s: due at the age of %s, want %s", name, got, test.want)
		}
	}
}

// TestLeapDay asserts that a certificate over 29 February, and one that ends on it, are reckoned in days of 24 hours.
func TestLeapDay(t *testing.T) {
	now := time.Date(2028, 2, 28, 12, 0, 0, 0, time.UTC)
	facts := healthy(now)
	report := Compare(facts, DefaultLimits())
	if len(report.Findings) > 0 {
		t.Errorf("findings: %+v", report.Findings)
	}
	facts.Authority.Roots[0].NotBefore = now.Add(-9 * 365 * day)
	facts.Authority.Roots[0].NotAfter = time.Date(2028, 2, 29, 12, 0, 0, 0, time.UTC)
	report = Compare(facts, DefaultLimits())
	if len(report.Findings) != 1 || !strings.Contains(report.Findings[0].Message, "ends in 1d0h, at 2028-02-29T12:00:00Z") {
		t.Errorf("findings: %+v", report.Findings)
	}
	facts.Now = time.Date(2028, 3, 1, 0, 0, 0, 0, time.UTC)
	report = Compare(facts, DefaultLimits())
	if !slices.ContainsFunc(report.Findings, func(f Finding) bool {
		return f.Code == CodeExpired && f.Place == "ca" && strings.Contains(f.Message, "has expired at 2028-02-29T12:00:00Z, 12h0m ago")
	}) {
		t.Errorf("findings: %+v", report.Findings)
	}
}

// TestZones asserts that a machine's time zone changes nothing: a report is in UTC.
func TestZones(t *testing.T) {
	facts := healthy(noon)
	age(&facts, renewAfter+8*time.Hour)
	want, err := json.Marshal(Compare(facts, DefaultLimits()))
	if err != nil {
		t.Fatal(err)
	}
	local := facts
	local.Now = facts.Now.In(time.FixedZone("east", 13*3600))
	local.Workloads = slices.Clone(facts.Workloads)
	stored := *facts.Workloads[0].Stored
	version := *stored.Current
	version.NotAfter = version.NotAfter.In(time.FixedZone("west", -11*3600))
	version.NotBefore = version.NotBefore.In(time.FixedZone("west", -11*3600))
	stored.Current = &version
	local.Workloads[0].Stored = &stored
	got, err := json.Marshal(Compare(local, DefaultLimits()))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("in another zone (-UTC +there):\n%s", diff)
	}
}

// TestEmpty asserts that nothing known is written as empty lists, and that nobody takes it for well by itself: whoever
// gathered nothing says so in Unreached.
func TestEmpty(t *testing.T) {
	text, err := json.Marshal(Compare(Facts{Now: noon}, DefaultLimits()))
	if err != nil || string(text) != `{"worst":"ok","endpointsSeen":0,"items":[],"findings":[]}` {
		t.Errorf("%s %v", text, err)
	}
}

func TestRoughly(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "0s", 0: "0s", 59 * time.Second: "59s", time.Minute: "1m0s", 90 * time.Minute: "1h30m", day: "1d0h", 49 * time.Hour: "2d1h",
	} {
		if got := Roughly(d); got != want {
			t.Errorf("%s is %q, want %q", d, got, want)
		}
	}
}
