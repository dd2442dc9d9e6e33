package tally

import "fmt"

// Target is a figure that is asked for.
type Target struct {
	Group string // that it is listed under
	What  string
	// Row, Setup and Metric say which figure it is.
	Row, Setup, Metric string
	// Beside, when set, is the setup that this one is compared with instead of the baseline.
	Beside string
	// Limit is the most, or with AtLeast the least, that the median may be: of the ratios, or with
	// Absolute of the values.
	Limit             float64
	AtLeast, Absolute bool
}

// Verdict is what a target came to.
type Verdict struct {
	Target
	Spread Spread
	Met    bool
}

// Judge finds the figure of a target. It is ErrNone when it was not measured.
func (r *Results) Judge(t Target) (Verdict, error) {
	row, ok := r.Row(t.Row)
	if !ok || row.Setups[t.Setup] == nil {
		return Verdict{Target: t}, ErrNone
	}
	values := row.Setups[t.Setup].Ratios(t.Metric)
	switch {
	case t.Absolute:
		values = row.Setups[t.Setup].Values(t.Metric)
	case t.Beside != "":
		other := row.Setups[t.Beside]
		if other == nil {
			return Verdict{Target: t}, ErrNone
		}
		values = pairwise(values, other.Ratios(t.Metric))
	}
	spread, err := SpreadOf(values)
	if err != nil {
		return Verdict{Target: t}, err
	}
	met := spread.Median <= t.Limit
	if t.AtLeast {
		met = spread.Median >= t.Limit
	}
	return Verdict{Target: t, Spread: spread, Met: met}, nil
}

// pairwise divides ratios by those of another setup in the same round. Both were taken beside the baseline, so that
// what the machine did meanwhile is out of both.
func pairwise(values, others []float64) []float64 {
	var quotients []float64
	for i := range min(len(values), len(others)) {
		if others[i] > 0 {
			quotients = append(quotients, values[i]/others[i])
		}
	}
	return quotients
}

// Asked writes what a target asks for: <= 0.45.
func (t Target) Asked() string {
	if t.AtLeast {
		return fmt.Sprintf(">= %g", t.Limit)
	}
	return fmt.Sprintf("<= %g", t.Limit)
}

// Rivalry compares two setups in one figure.
type Rivalry struct {
	Row    Row
	Metric Metric
	// Factor is the first one's figure over the second one's.
	Factor float64
	Better bool
}

// Compare compares two setups in every figure that both have: by the medians of their ratios to the baseline, for
// these were taken side by side, and by the medians of their values where the baseline has none.
func (r *Results) Compare(first, second string) []Rivalry {
	var all []Rivalry
	for _, row := range r.Rows {
		a, b := row.Setups[first], row.Setups[second]
		if a == nil || b == nil {
			continue
		}
		for _, metric := range row.Metrics {
			factor, ok := quotient(a.Ratios(metric.Name), b.Ratios(metric.Name))
			if !ok {
				factor, ok = quotient(a.Values(metric.Name), b.Values(metric.Name))
			}
			if ok {
				all = append(all, Rivalry{Row: row, Metric: metric, Factor: factor, Better: (factor < 1) == metric.Lower && factor != 1})
			}
		}
	}
	return all
}

// quotient is the quotient of two medians.
func quotient(a, b []float64) (float64, bool) {
	first, err1 := SpreadOf(a)
	second, err2 := SpreadOf(b)
	if err1 != nil || err2 != nil || second.Median <= 0 {
		return 0, false
	}
	return first.Median / second.Median, true
}
