package lambda

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"countersign.dev/rotate"
	"countersign.dev/secret"
)

// ReportOf makes a report of what rotations gave. services are all that were to have their turn: those without a result are
// unfinished. A rotation that was told to end is unfinished, and so is one whose lease another run holds or whose
// work another one has overtaken.
func ReportOf(services []string, results []rotate.Result) Report {
	report := Report{}
	seen := make(map[string]bool)
	for _, result := range results {
		name := cmp.Or(result.Service, result.Secret)
		seen[result.Service] = true
		switch {
		case errors.Is(result.Err, rotate.ErrStopped), errors.Is(result.Err, secret.ErrHeld), errors.Is(result.Err, secret.ErrLeaseLost),
			errors.Is(result.Err, secret.ErrReplaced), errors.Is(result.Err, context.DeadlineExceeded) && result.Outcome == rotate.Failed:
			report.Unfinished = append(report.Unfinished, name)
		case result.Err != nil:
			report.Failed = append(report.Failed, Failure{Service: name, Error: result.Error, Again: result.Next.UTC()})
		case result.Outcome == rotate.Waiting:
			report.Waiting = append(report.Waiting, Failure{Service: name, Error: result.LastError, Again: result.Next.UTC()})
		case result.Outcome == rotate.Nothing:
			report.Nothing = append(report.Nothing, name)
		default:
			report.Rotated = append(report.Rotated, name)
		}
	}
	for _, service := range services {
		if !seen[service] {
			report.Unfinished = append(report.Unfinished, service)
		}
	}
	slices.Sort(report.Unfinished)
	report.Unfinished = slices.Compact(report.Unfinished)
	return report.full()
}
