package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"countersign.dev/rotate"
)

// serviceStatus is what a store says of a service, with the budget of the authority that it has its certificates of.
type serviceStatus struct {
	rotate.Status
	Authority string       `json:"authority,omitempty"`
	Budget    *trialBudget `json:"budget,omitempty"`
}

// spending asks the budget of each authority that a target has its certificates of.
func (w *cloud) spending(ctx context.Context, targets []rotate.Target) []estimate {
	return slices.DeleteFunc(w.estimates(ctx, nil, nil), func(e estimate) bool {
		return !slices.ContainsFunc(targets, func(t rotate.Target) bool { return t.Certificate.Authority == e.authority })
	})
}

// withBudgets puts to each status the budget of the authority that the service has its certificates of.
func withBudgets(targets []rotate.Target, statuses []rotate.Status, budgets []estimate) []serviceStatus {
	authorities := make(map[string]string)
	for _, t := range targets {
		authorities[t.Workload.Name] = t.Certificate.Authority
	}
	all := []serviceStatus{}
	for _, status := range statuses {
		s := serviceStatus{Status: status}
		for _, e := range budgets {
			if e.authority == authorities[status.Service] {
				spent := e.spent()
				s.Authority, s.Budget = e.authority, &spent
			}
		}
		all = append(all, s)
	}
	return all
}

// spent is the budget before anything else is issued.
func (e estimate) spent() trialBudget {
	b := trialBudget{Month: e.month, Used: e.used, Limit: e.limit}
	if e.err != nil {
		b.Error = e.err.Error()
	}
	return b
}

// printBudgets writes a line for each authority.
func printBudgets(out io.Writer, budgets []estimate) error {
	var text strings.Builder
	for _, e := range budgets {
		if e.err != nil {
			fmt.Fprintf(&text, "\nauthority %s: %v\n", e.authority, e.err)
			continue
		}
		fmt.Fprintf(&text, "\nauthority %s: %d of the %d certificates of %s are spent\n", e.authority, e.used, e.limit, e.month)
	}
	_, err := io.WriteString(out, text.String())
	return err
}
