package main

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/bench/internal/proc"
	"countersign.dev/bench/internal/rig"
	"countersign.dev/bench/internal/tally"
)

func TestRows(t *testing.T) {
	seen := make(map[string]bool)
	for _, r := range rows() {
		if seen[r.name] {
			t.Errorf("two rows are called %s", r.name)
		}
		seen[r.name] = true
		if r.title == "" || len(r.metrics) == 0 || r.has == nil || r.run == nil {
			t.Errorf("row %s is not whole", r.name)
		}
	}
}

// A target about a figure that nobody measures would never be missed.
func TestTargets(t *testing.T) {
	all := rows()
	for _, target := range targets() {
		i := slices.IndexFunc(all, func(r row) bool { return r.name == target.Row })
		if i < 0 {
			t.Errorf("%s: there is no row %s", target.What, target.Row)
			continue
		}
		j := slices.IndexFunc(all[i].metrics, func(m tally.Metric) bool { return m.Name == target.Metric })
		if j < 0 {
			t.Errorf("%s: row %s has no metric %s", target.What, target.Row, target.Metric)
			continue
		}
		if all[i].metrics[j].Lower == target.AtLeast {
			t.Errorf("%s: at least %v of what is better when it is less", target.What, target.Limit)
		}
		b := &bench{}
		if target.Beside != "" && !b.wanted(all[i], target.Beside) {
			t.Errorf("%s: row %s is not measured of %s", target.What, target.Row, target.Beside)
		}
		if !b.wanted(all[i], target.Setup) {
			t.Errorf("%s: row %s is not measured of %s", target.What, target.Row, target.Setup)
		}
	}
}

func TestChoose(t *testing.T) {
	all := []row{{name: "a"}, {name: "b"}, {name: "c"}}
	names := func(rows []row) (names []string) {
		for _, r := range rows {
			names = append(names, r.name)
		}
		return names
	}
	got, err := choose(all, []string{"c", "a"})
	if diff := cmp.Diff([]string{"a", "c"}, names(got)); err != nil || diff != "" {
		t.Error(err, diff)
	}
	if got, err = choose(all, nil); err != nil || len(got) != 3 {
		t.Error(names(got), err)
	}
	if _, err = choose(all, []string{"a", "d"}); err == nil || !strings.Contains(err.Error(), `"d"`) {
		t.Errorf("an unknown row: %v", err)
	}
}

func TestCommandLine(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want string // of the error
	}{
		"an unknown row":   {[]string{"--only", "http-0"}, "no row"},
		"no runs":          {[]string{"--runs", "0"}, "--runs"},
		"no time":          {[]string{"--duration", "10ms"}, "--duration"},
		"an unknown setup": {[]string{"--setups", "apache"}, "no setup"},
		"unknown output":   {[]string{"--output", "xml"}, "output"},
	} {
		var out bytes.Buffer
		if err := run(t.Context(), test.args, &out, &out); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--list", "--only", "tcp-bulk"}, &out, &out); err != nil || strings.Count(out.String(), "\n") != 1 {
		t.Errorf("the list is %q, %v", out.String(), err)
	}
}

func TestRunsAndSetups(t *testing.T) {
	b := &bench{options: options{Runs: 5, PeerRuns: 2}}
	ours, envoy := &rig.Setup{Name: rig.Ours}, &rig.Setup{Name: "envoy"}
	mixed := row{only: []string{rig.MixedOut}}
	for name, test := range map[string]struct {
		got, want int
	}{
		"ours":             {b.runs(row{}, ours), 5},
		"a peer":           {b.runs(row{}, envoy), 2},
		"ours, slow":       {b.runs(row{fresh: true}, ours), 2},
		"mixed, by itself": {b.runs(mixed, &rig.Setup{Name: rig.MixedOut}), 5},
	} {
		if test.got != test.want {
			t.Errorf("%s: %d runs, want %d", name, test.got, test.want)
		}
	}
	if b.wanted(row{}, rig.MixedOut) || !b.wanted(mixed, rig.MixedOut) || b.wanted(mixed, rig.Ours) || !b.wanted(row{}, rig.Ours) {
		t.Error("the mixed setups belong to their row alone")
	}
	rendered := row{only: []string{rig.NGINXRendered, rig.NGINXDuties, "haproxy"}}
	for name, want := range map[string]bool{rig.NGINXRendered: true, rig.NGINXDuties: true, "haproxy": true, rig.Ours: false} {
		if b.wanted(rendered, name) != want || b.wanted(row{}, name) == rig.Apart(name) {
			t.Errorf("%s is measured in the wrong rows", name)
		}
	}
	b.Setups = []string{rig.NGINXDuties}
	if b.wanted(rendered, rig.NGINXRendered) || !b.wanted(rendered, rig.NGINXDuties) || !b.wanted(mixed, rig.MixedOut) {
		t.Error("--setups narrows a row of others, or does not narrow its own")
	}
	b.Setups = []string{rig.Ours}
	if b.wanted(row{}, "envoy") || !b.wanted(row{}, rig.Ours) {
		t.Error("--setups does not choose")
	}
}

func TestQuietest(t *testing.T) {
	for name, test := range map[string]struct {
		shares []float64 // of others, run by run
		want   float64   // which run counts, by its share
		runs   int
	}{
		"quiet at once":     {[]float64{0.05}, 0.05, 1},
		"quiet later":       {[]float64{0.5, 0.4, 0.1}, 0.1, 3},
		"never quiet":       {[]float64{0.5, 0.3, 0.4, 0.6}, 0.3, 4},
		"exactly the limit": {[]float64{0.1}, 0.1, 1},
	} {
		next := 0
		sample, shares, err := quietest(3, 0.1, func() (tally.Sample, float64, error) {
			share := test.shares[next]
			next++
			return tally.Sample{"share": share}, share, nil
		})
		if err != nil || sample["share"] != test.want || len(shares) != test.runs {
			t.Errorf("%s: %v after %v, %v", name, sample, shares, err)
		}
	}
	broken := errors.New("broken")
	if _, _, err := quietest(3, 0.1, func() (tally.Sample, float64, error) { return nil, 0, broken }); !errors.Is(err, broken) {
		t.Errorf("a run that fails: %v", err)
	}
}

// The document says what was met, what was missed, and what was not measured.
func TestDocument(t *testing.T) {
	small := rows()[slices.IndexFunc(rows(), func(r row) bool { return r.name == "http-128-c64" })]
	ours, envoy := &tally.Series{}, &tally.Series{}
	ours.Add(tally.Sample{"cpu": 4, "rate": 10}, tally.Sample{"cpu": 10, "rate": 10}, tally.Sample{"cpu": 10, "rate": 10})
	envoy.Add(tally.Sample{"cpu": 24}, tally.Sample{"cpu": 10}, tally.Sample{"cpu": 10})
	text, err := document(tally.Results{
		Machine: proc.Machine{CPU: "Some CPU", Cores: 2}, Versions: map[string]string{rig.Ours: "countersign v1"}, Missing: []string{"ghostunnel: none"},
		Rows: []tally.Row{{
			Name: small.name, Title: small.title, Metrics: small.metrics, Date: "2026-01-02", Version: "v1", Command: "make bench",
			Baseline: tally.Series{Runs: []tally.Sample{{"cpu": 10}}}, Setups: map[string]*tally.Series{rig.Ours: ours, "envoy": envoy},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"Some CPU, 2 cores",
		"| ours | countersign v1 |",
		"- 2026-01-02, v1: `make bench`",
		"- ghostunnel: none",
		"| CPU per request, 128 B, 64 connections | <= 0.45 | 0.40 | met |",
		"| requests per second, 128 B, 64 connections | >= 1.7 | 1.00 | **missed** |",
		"| CPU per unary gRPC call | <= 0.5 | not measured | - |",
		"Envoy (HTTP) over ours | >= 5 | 6.0 | met |",
		"| CPU per request, both sidecars | 10.0 µs | 0.40 = 4.00 µs | 2.40 |",
		"| `http-128-c64` | CPU per request, both sidecars | 0.17 | yes |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the document lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}
