package tally

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSpreadOf(t *testing.T) {
	for name, test := range map[string]struct {
		values []float64
		want   Spread
	}{
		"one":  {[]float64{3}, Spread{3, 3, 3, 1}},
		"odd":  {[]float64{9, 1, 4}, Spread{4, 1, 9, 3}},
		"even": {[]float64{8, 1, 4, 2}, Spread{3, 1, 8, 4}},
	} {
		got, err := SpreadOf(test.values)
		if err != nil || got != test.want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, test.want)
		}
	}
	if _, err := SpreadOf(nil); !errors.Is(err, ErrNone) {
		t.Errorf("of nothing: %v", err)
	}
}

// Each run is compared with the two of the baseline beside it, not with those of other times.
func TestRatios(t *testing.T) {
	at := func(cpu float64) Sample { return Sample{"cpu": cpu} }
	var s Series
	s.Add(at(10), at(20), at(30))           // 10 / 25
	s.Add(at(50), at(80), at(120))          // 50 / 100
	s.Add(Sample{"p99": 1}, at(1), at(1))   // was not measured
	s.Add(at(10), Sample{"p99": 1}, at(10)) // no neighbour on one side
	s.Add(at(10), at(0), at(0))             // to nothing there is no ratio
	if diff := cmp.Diff([]float64{0.4, 0.5}, s.Ratios("cpu")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]float64{10, 50, 10, 10}, s.Values("cpu")); diff != "" {
		t.Error(diff)
	}
	if got := (Series{Runs: []Sample{at(1)}}).Ratios("cpu"); got != nil {
		t.Errorf("without neighbours: %v", got)
	}
}

func TestNumber(t *testing.T) {
	for value, want := range map[float64]string{0: "0", 12345.6: "12346", 123.4: "123", 12.34: "12.3", 1.234: "1.23", 0.01234: "0.0123", -2: "-2.00"} {
		if got := Number(value); got != want {
			t.Errorf("%v: %s, want %s", value, got, want)
		}
	}
}

func TestSpreadString(t *testing.T) {
	if got := (Spread{0.405, 0.39, 0.44, 3}).String(); got != "0.41 (0.39-0.44)" && got != "0.40 (0.39-0.44)" {
		t.Error(got)
	}
	if got := (Spread{0.4, 0.4, 0.4, 1}).String(); got != "0.40" {
		t.Error(got)
	}
}

func results() Results {
	cpu := Metric{Name: "cpu", Title: "CPU", Unit: "µs", Lower: true}
	ours := &Series{}
	ours.Add(Sample{"cpu": 10}, Sample{"cpu": 20}, Sample{"cpu": 20})
	return Results{Rows: []Row{
		{Name: "b", Title: "B", Metrics: []Metric{cpu}, Baseline: Series{Runs: []Sample{{"cpu": 20}, {"cpu": 20}}}, Setups: map[string]*Series{"ours": ours}},
		{Name: "a", Title: "A", Metrics: []Metric{cpu}},
	}}
}

func TestResults(t *testing.T) {
	r := results()
	path := t.TempDir() + "/results.json"
	if got, err := Read(path); err != nil || len(got.Rows) != 0 {
		t.Errorf("a file that is not there gives %+v, %v", got, err)
	}
	r.Put(Row{Name: "a", Title: "A2"})
	r.Put(Row{Name: "c", Title: "C"})
	r.Sort([]string{"a", "b"})
	if err := r.Write(path); err != nil {
		t.Fatal(err)
	}
	got, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, got); diff != "" {
		t.Errorf("(-written +read):\n%s", diff)
	}
	var titles []string
	for _, row := range got.Rows {
		titles = append(titles, row.Title)
	}
	if diff := cmp.Diff([]string{"A2", "B", "C"}, titles); diff != "" {
		t.Error(diff)
	}
	if err := (Results{Rows: []Row{{Baseline: Series{Runs: []Sample{{"cpu": math.NaN()}}}}}}).Write(path); err == nil {
		t.Error("what is not a number is written as one")
	}
}

func TestText(t *testing.T) {
	var out strings.Builder
	if err := results().Text(&out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "b    cpu     ours   0.50   10.0   20.0      µs") {
		t.Errorf("the table is\n%s", out.String())
	}
}

func TestJudge(t *testing.T) {
	r := results()
	target := Target{Row: "b", Setup: "ours", Metric: "cpu", Limit: 0.5}
	for name, test := range map[string]struct {
		change func(*Target)
		met    bool
		err    error
	}{
		"met":              {func(*Target) {}, true, nil},
		"missed":           {func(t *Target) { t.Limit = 0.49 }, false, nil},
		"at least, met":    {func(t *Target) { t.AtLeast = true }, true, nil},
		"at least, missed": {func(t *Target) { t.AtLeast, t.Limit = true, 0.6 }, false, nil},
		"by the value":     {func(t *Target) { t.Absolute = true }, false, nil},
		"of no row":        {func(t *Target) { t.Row = "c" }, false, ErrNone},
		"of no setup":      {func(t *Target) { t.Setup = "theirs" }, false, ErrNone},
		"beside nobody":    {func(t *Target) { t.Beside = "theirs" }, false, ErrNone},
		"of no metric":     {func(t *Target) { t.Metric = "p50" }, false, ErrNone},
	} {
		changed := target
		test.change(&changed)
		verdict, err := r.Judge(changed)
		if verdict.Met != test.met || !errors.Is(err, test.err) {
			t.Errorf("%s: %+v, %v", name, verdict, err)
		}
	}
	// Of two setups that both cost half as much again as the baseline, one costs what the other does.
	beside := Results{Rows: []Row{{Name: "d", Setups: map[string]*Series{"ours": {}, "theirs": {}}}}}
	for _, name := range []string{"ours", "theirs"} {
		for _, baseline := range []float64{20, 40} {
			beside.Rows[0].Setups[name].Add(Sample{"cpu": 1.5 * baseline}, Sample{"cpu": baseline}, Sample{"cpu": baseline})
		}
	}
	for limit, met := range map[float64]bool{1: true, 0.99: false} {
		verdict, err := beside.Judge(Target{Row: "d", Setup: "ours", Beside: "theirs", Metric: "cpu", Limit: limit})
		if err != nil || verdict.Met != met || verdict.Spread.Median != 1 || verdict.Spread.Runs != 2 {
			t.Errorf("beside another setup, at most %v: %+v, %v", limit, verdict, err)
		}
	}
	if got := target.Asked(); got != "<= 0.5" {
		t.Error(got)
	}
	target.AtLeast = true
	if got := target.Asked(); got != ">= 0.5" {
		t.Error(got)
	}
}

func TestCompare(t *testing.T) {
	r := results()
	r.Rows[0].Metrics = append(r.Rows[0].Metrics, Metric{Name: "rate"}, Metric{Name: "rest", Lower: true})
	theirs := &Series{}
	theirs.Add(Sample{"cpu": 40, "rate": 10, "rest": 3}, Sample{"cpu": 20, "rate": 10}, Sample{"cpu": 20, "rate": 10})
	ours := r.Rows[0].Setups["ours"]
	ours.Runs[0]["rate"], ours.Before[0]["rate"], ours.After[0]["rate"] = 5, 10, 10
	ours.Runs[0]["rest"] = 1.5
	r.Rows[0].Setups["theirs"] = theirs
	type line struct {
		metric string
		factor float64
		better bool
	}
	var got []line
	for _, c := range r.Compare("ours", "theirs") {
		got = append(got, line{c.Metric.Name, c.Factor, c.Better})
	}
	want := []line{{"cpu", 0.25, true}, {"rate", 0.5, false}, {"rest", 0.5, true}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(line{})); diff != "" {
		t.Error(diff)
	}
	if got := r.Compare("ours", "nobody"); got != nil {
		t.Errorf("compared with nobody: %v", got)
	}
}

func TestMerge(t *testing.T) {
	earlier := results()
	earlier.Missing, earlier.Versions = []string{"old"}, map[string]string{"ours": "v1", "envoy": "1.40"}
	later := Results{Rows: []Row{{Name: "a", Title: "A2"}}, Missing: []string{"new"}, Versions: map[string]string{"ours": "v2"}}
	earlier.Merge(later)
	if len(earlier.Rows) != 2 || earlier.Missing[0] != "new" || earlier.Versions["ours"] != "v2" || earlier.Versions["envoy"] != "1.40" {
		t.Errorf("%+v", earlier)
	}
	if row, ok := earlier.Row("a"); !ok || row.Title != "A2" {
		t.Errorf("%+v", row)
	}
	var empty Results
	empty.Merge(later)
	if len(empty.Rows) != 1 || empty.Versions["ours"] != "v2" {
		t.Errorf("%+v", empty)
	}
}
