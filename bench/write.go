package main

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/template"

	"countersign.dev/bench/internal/rig"
	"countersign.dev/bench/internal/tally"
)

// documentTemplate is the document with everything in it that is written by hand.
//
//go:embed performance.md.tmpl
var documentTemplate string

// reasons say why figures are missed; they are written by hand.
//
//go:embed missed.md
var reasons string

// write writes what was measured to where the command line says.
func (b *bench) write(stdout io.Writer) error {
	measured := b.results
	if err := b.merge(); err != nil {
		return err
	}
	if b.Document != "" {
		text, err := document(b.results)
		if err != nil {
			return err
		}
		if err := os.WriteFile(b.Document, []byte(text), 0o644); err != nil { //nolint:gosec // a document is for everybody
			return err
		}
	}
	if b.Output == "json" {
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "\t")
		return encoder.Encode(measured)
	}
	return measured.Text(stdout)
}

// merge adds the rows of earlier runs on this machine from the file of --results, and writes it anew.
func (b *bench) merge() error {
	if b.Results == "" {
		return nil
	}
	all, err := tally.Read(b.Results)
	if err != nil {
		return err
	}
	if len(all.Rows) > 0 && all.Machine != b.results.Machine {
		return fmt.Errorf("the rows in %s were measured on another machine; remove it, or name another file", b.Results)
	}
	all.Merge(b.results)
	var order []string
	for _, r := range rows() {
		order = append(order, r.name)
	}
	all.Sort(order)
	b.results = all
	return all.Write(b.Results)
}

// document writes the document.
func document(r tally.Results) (string, error) {
	page, err := template.New("performance.md").Parse(documentTemplate)
	if err != nil {
		return "", fmt.Errorf("reading the document's template: %w", err)
	}
	var out strings.Builder
	if err := page.Execute(&out, pageOf(r)); err != nil {
		return "", fmt.Errorf("writing the document: %w", err)
	}
	return out.String(), nil
}

// page is what the document's template is filled with.
type page struct {
	tally.Results
	Verdicts []verdict
	Setups   []setupLine
	Tables   []table
	Envoy    []tally.Rivalry
	// EnvoyCPU is how many times the CPU per small request of ours Envoy needs; 0 when it was not measured.
	EnvoyCPU    float64
	EnvoyFactor float64
	Occasions   []string // on which the rows were measured
	Reasons     string
	// Repeated and Disturbed are the sums over all rows.
	Repeated, Disturbed int
}

type verdict struct {
	tally.Verdict
	Measured, Result string
}

type setupLine struct{ Name, Title string }

// table is a row as a table: a line for each metric, a column for each setup.
type table struct {
	tally.Row
	Columns []string
	Lines   [][]string
}

func pageOf(r tally.Results) page {
	p := page{Results: r, EnvoyFactor: envoyFactor, Reasons: strings.TrimSpace(reasons)}
	for _, t := range targets() {
		v := verdict{Measured: "not measured", Result: "-"}
		judged, err := r.Judge(t)
		if !errors.Is(err, tally.ErrNone) {
			v.Measured, v.Result = judged.Spread.String(), "**missed**"
			if judged.Met {
				v.Result = "met"
			}
		}
		v.Verdict = judged
		p.Verdicts = append(p.Verdicts, v)
	}
	names := setupNames(r)
	for _, name := range append([]string{rig.Baseline}, names...) {
		p.Setups = append(p.Setups, setupLine{name, r.Versions[name]})
	}
	for _, row := range r.Rows {
		p.Tables = append(p.Tables, tableOf(row, names))
		p.Repeated += row.Repeated
		p.Disturbed += row.Disturbed
		occasion := fmt.Sprintf("%s, %s: `%s`", row.Date, row.Version, row.Command)
		if !slices.Contains(p.Occasions, occasion) {
			p.Occasions = append(p.Occasions, occasion)
		}
	}
	for _, c := range r.Compare(rig.Ours, "envoy") {
		if c.Row.Name == "http-128-c64" && c.Metric.Name == "cpu" && c.Factor > 0 {
			p.EnvoyCPU = 1 / c.Factor
		}
		p.Envoy = append(p.Envoy, c)
	}
	return p
}

// setupNames are the setups that any row has, ours first.
func setupNames(r tally.Results) []string {
	var names []string
	for _, row := range r.Rows {
		for name := range row.Setups {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		if (a == rig.Ours) != (b == rig.Ours) {
			return map[bool]int{true: -1, false: 1}[a == rig.Ours]
		}
		return strings.Compare(a, b)
	})
	return names
}

func tableOf(row tally.Row, names []string) table {
	t := table{Row: row}
	for _, name := range names {
		if row.Setups[name] != nil {
			t.Columns = append(t.Columns, name)
		}
	}
	for _, metric := range row.Metrics {
		line := []string{metric.Title, strings.TrimSpace(tally.MedianText(row.Baseline, metric.Name) + " " + metric.Unit)}
		for _, name := range t.Columns {
			cell := tally.RatioText(*row.Setups[name], metric.Name)
			if cell == "-" { // there is nothing to compare with: the value itself
				if value := tally.MedianText(*row.Setups[name], metric.Name); value != "-" {
					cell = strings.TrimSpace(value + " " + metric.Unit)
				}
			} else if name == rig.Ours {
				cell += " = " + strings.TrimSpace(tally.MedianText(*row.Setups[name], metric.Name)+" "+metric.Unit)
			}
			line = append(line, cell)
		}
		t.Lines = append(t.Lines, line)
	}
	return t
}
