// Package cloudwatch knows what a rotation tells Amazon CloudWatch, so that an alarm notices what is wrong, and also that nobody
// has rotated at all: metrics are published by each run, and an alarm takes missing ones for bad ones.
//
// In the namespace Countersign, with the dimensions Mesh and Service:
//
//	DaysToExpiry       days until the current certificate ends; below 0 when it has; none when there is no certificate
//	HoursSinceSuccess  hours since a rotation last came to its end; none when none ever did
//	Failures           1 when the last rotation failed, or nothing can be known of it, else 0
//
// and with the dimensions Mesh and Authority:
//
//	BudgetSpent        certificates that were paid for in this calendar month (UTC)
//	BudgetLimit        how many may be
package cloudwatch

import (
	"time"

	"countersign.dev/rotate"
)

// Namespace is where all metrics are.
const Namespace = "Countersign"

// Names of metrics.
const (
	DaysToExpiry      = "DaysToExpiry"
	HoursSinceSuccess = "HoursSinceSuccess"
	Failures          = "Failures"
	BudgetSpent       = "BudgetSpent"
	BudgetLimit       = "BudgetLimit"
)

// Names of dimensions: each metric has Mesh and one of the others.
const (
	DimensionMesh      = "Mesh"
	DimensionService   = "Service"
	DimensionAuthority = "Authority"
)

// Metric is one value of one metric.
type Metric struct {
	Name string
	Mesh string
	// Of is the service or the authority, as Dimension says.
	Dimension, Of string
	Value         float64
}

// Budget is what was spent of an authority's budget.
type Budget struct {
	Authority   string
	Used, Limit int
}

// Metrics are those of a mesh at a time.
func Metrics(mesh string, statuses []rotate.Status, budgets []Budget, now time.Time) []Metric {
	var all []Metric
	for _, s := range statuses {
		add := func(name string, value float64) {
			all = append(all, Metric{Name: name, Mesh: mesh, Dimension: DimensionService, Of: s.Service, Value: value})
		}
		if !s.NotAfter.IsZero() {
			add(DaysToExpiry, s.NotAfter.Sub(now).Hours()/24) //nolint:mnd // a day's hours
		}
		if !s.LastSuccess.IsZero() {
			add(HoursSinceSuccess, now.Sub(s.LastSuccess).Hours())
		}
		failed := 0.0
		if s.Failures > 0 || s.Problem != "" {
			failed = 1
		}
		add(Failures, failed)
	}
	for _, b := range budgets {
		all = append(all,
			Metric{Name: BudgetSpent, Mesh: mesh, Dimension: DimensionAuthority, Of: b.Authority, Value: float64(b.Used)},
			Metric{Name: BudgetLimit, Mesh: mesh, Dimension: DimensionAuthority, Of: b.Authority, Value: float64(b.Limit)})
	}
	return all
}
