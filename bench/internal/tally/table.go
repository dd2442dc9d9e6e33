package tally

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// Text writes the rows for a terminal: a line for each metric and setup, with the median and the range
// of the ratios, and the medians of the values themselves.
func (r Results) Text(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ROW\tMETRIC\tSETUP\tRATIO\tVALUE\tBASELINE\tUNIT")
	for _, row := range r.Rows {
		for _, metric := range row.Metrics {
			for _, setup := range sortedKeys(row.Setups) {
				series := row.Setups[setup]
				value, err := SpreadOf(series.Values(metric.Name))
				if err != nil {
					continue // this setup does not have it
				}
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", row.Name, metric.Name, setup,
					RatioText(*series, metric.Name), Number(value.Median), MedianText(row.Baseline, metric.Name), metric.Unit)
			}
		}
	}
	return table.Flush()
}

// RatioText is the spread of a series' ratios, or a dash.
func RatioText(s Series, metric string) string {
	spread, err := SpreadOf(s.Ratios(metric))
	if err != nil {
		return "-"
	}
	return spread.String()
}

// MedianText is the median of a series' values, or a dash.
func MedianText(s Series, metric string) string {
	spread, err := SpreadOf(s.Values(metric))
	if err != nil {
		return "-"
	}
	return Number(spread.Median)
}
