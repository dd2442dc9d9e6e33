// Package tally turns runs into figures: the ratio of each run to the baseline's runs beside it, the
// median and range of ratios, targets, and the tables that people read.
package tally

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
)

// Metric is one thing that a run measures.
type Metric struct {
	Name string `json:"name"` // in JSON and in targets
	// Title and Unit are for tables.
	Title string `json:"title"`
	Unit  string `json:"unit"`
	// Lower tells that less is better.
	Lower bool `json:"lower"`
}

// Sample is what one run has measured, by metric's name. What it did not measure is missing.
type Sample map[string]float64

// Series are the runs of one setup in one row, each with the baseline's run before it and the one
// after it. With the baseline itself it has no neighbours.
type Series struct {
	Runs []Sample `json:"runs"`
	// Before and After are as long as Runs.
	Before []Sample `json:"before"`
	After  []Sample `json:"after"`
}

// Spread is a median with its range.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	Runs   int     `json:"runs"`
}

// ErrNone says that there is nothing to take the median of.
var ErrNone = errors.New("no run has this figure")

// SpreadOf is the spread of some values.
func SpreadOf(values []float64) (Spread, error) {
	if len(values) == 0 {
		return Spread{}, ErrNone
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	median := sorted[n/2]
	if n%2 == 0 {
		median = (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return Spread{Median: median, Min: sorted[0], Max: sorted[n-1], Runs: n}, nil
}

// Values are what the runs measured.
func (s Series) Values(metric string) []float64 {
	var values []float64
	for _, run := range s.Runs {
		if value, ok := run[metric]; ok {
			values = append(values, value)
		}
	}
	return values
}

// Ratios are the runs' values over the mean of the neighbours'. A run whose neighbours have no figure, or
// a mean of zero, has no ratio.
func (s Series) Ratios(metric string) []float64 {
	var ratios []float64
	for i, run := range s.Runs {
		value, ok := run[metric]
		if !ok || i >= len(s.Before) || i >= len(s.After) {
			continue
		}
		if ratio, ok := Ratio(value, s.Before[i], s.After[i], metric); ok {
			ratios = append(ratios, ratio)
		}
	}
	return ratios
}

// Ratio is a value over the mean of the two neighbours' values.
func Ratio(value float64, before, after Sample, metric string) (float64, bool) {
	b, ok1 := before[metric]
	a, ok2 := after[metric]
	mean := (b + a) / 2
	if !ok1 || !ok2 || mean <= 0 {
		return 0, false
	}
	return value / mean, true
}

// String writes the spread of ratios: 0.41 (0.39-0.44).
func (s Spread) String() string {
	if s.Runs < 2 {
		return fmt.Sprintf("%.2f", s.Median)
	}
	return fmt.Sprintf("%.2f (%.2f-%.2f)", s.Median, s.Min, s.Max)
}

// Number writes a value with three digits that say something: 1234, 123, 12.3, 1.23, 0.0123.
func Number(value float64) string {
	magnitude := math.Abs(value)
	switch {
	case magnitude == 0:
		return "0"
	case magnitude >= 100:
		return fmt.Sprintf("%.0f", value)
	case magnitude >= 10:
		return fmt.Sprintf("%.1f", value)
	case magnitude >= 1:
		return fmt.Sprintf("%.2f", value)
	}
	return fmt.Sprintf("%.3g", value)
}

// sortedKeys are a map's keys in order.
func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
