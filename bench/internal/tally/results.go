package tally

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"countersign.dev/bench/internal/proc"
)

// Row is one thing that was measured of several setups.
type Row struct {
	Name    string   `json:"name"`
	Title   string   `json:"title"`
	Metrics []Metric `json:"metrics"`
	// Baseline are all runs of the baseline, Setups those of the others, by name.
	Baseline Series             `json:"baseline"`
	Setups   map[string]*Series `json:"setups"`
	// Date, Version and Command say when, of which product and how the row was measured.
	Date    string `json:"date"`
	Version string `json:"version"`
	Command string `json:"command"`
	// Repeated counts the runs that were made again because of other load; Disturbed those that were
	// never undisturbed.
	Repeated  int `json:"repeated"`
	Disturbed int `json:"disturbed"`
}

// Results are all rows, with what a reader has to know about them.
type Results struct {
	Machine proc.Machine `json:"machine"`
	// Versions say what the setups are, by name.
	Versions map[string]string `json:"versions"`
	Rows     []Row             `json:"rows"`
	// Missing says what was left out, and why.
	Missing []string `json:"missing"`
}

// Add adds a run and its neighbours.
func (s *Series) Add(run, before, after Sample) {
	s.Runs, s.Before, s.After = append(s.Runs, run), append(s.Before, before), append(s.After, after)
}

// Put adds a row, or replaces the one of the same name.
func (r *Results) Put(row Row) {
	for i := range r.Rows {
		if r.Rows[i].Name == row.Name {
			r.Rows[i] = row
			return
		}
	}
	r.Rows = append(r.Rows, row)
}

// Merge adds what was measured later: its rows replace those of the same name, and what it says of
// versions and of what is missing holds from then on.
func (r *Results) Merge(later Results) {
	r.Machine, r.Missing = later.Machine, later.Missing
	if r.Versions == nil {
		r.Versions = make(map[string]string)
	}
	maps.Copy(r.Versions, later.Versions)
	for _, row := range later.Rows {
		r.Put(row)
	}
}

// Row finds a row by name.
func (r *Results) Row(name string) (Row, bool) {
	i := slices.IndexFunc(r.Rows, func(row Row) bool { return row.Name == name })
	if i < 0 {
		return Row{}, false
	}
	return r.Rows[i], true
}

// Sort puts the rows into an order of names; those that it does not name come last.
func (r *Results) Sort(names []string) {
	rank := func(row Row) int {
		if i := slices.Index(names, row.Name); i >= 0 {
			return i
		}
		return len(names)
	}
	slices.SortStableFunc(r.Rows, func(a, b Row) int { return rank(a) - rank(b) })
}

// Read reads results that were written before; there are none yet when the file is not there.
func Read(path string) (Results, error) {
	var r Results
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("%s does not hold results: %w; remove it to begin anew", path, err)
	}
	return r, nil
}

// Write writes the results into a file.
func (r Results) Write(path string) error {
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o600)
}
