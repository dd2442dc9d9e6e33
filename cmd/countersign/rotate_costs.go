package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"countersign.dev/aws/acmpca"
	"countersign.dev/mesh"
	"countersign.dev/rotate"
)

// costs says of each authority of AWS how many certificates would be issued, what is left of its budget, and what AWS asks
// for them. In JSON the results have standard output for themselves.
func (c *rotateOnceCmd) costs(p *process, world *rotation, targets []rotate.Target, results []rotate.Result) error {
	out := p.stdout
	if c.json() {
		out = p.stderr
	}
	return world.cloud.costs(p.ctx, out, targets, results)
}

func (w *cloud) costs(ctx context.Context, out io.Writer, targets []rotate.Target, results []rotate.Result) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(w.issuers)) {
		issuer, wanted := w.issuers[name], 0
		for _, r := range results {
			would := r.Outcome == rotate.WouldRotate && r.Service != ""
			if would && slices.ContainsFunc(targets, func(t rotate.Target) bool {
				return t.Workload.Name == r.Service && t.Certificate.Authority == name
			}) {
				wanted++
			}
		}
		fmt.Fprintf(&text, "authority %s: %s\n", name, issuer.cost(ctx, wanted))
	}
	if text.Len() > 0 {
		fmt.Fprintf(&text, "Prices of AWS Private CA as of %s, US East; an estimate.\n", acmpca.PricesOf)
	}
	_, err := io.WriteString(out, text.String())
	return err
}

// cost says what a number of certificates costs, of money and of the budget.
func (i *issuer) cost(ctx context.Context, wanted int) string {
	text := count(wanted, "certificate") + " would be issued"
	used, limit, month, err := i.budget.State(ctx)
	switch {
	case err != nil:
		text += fmt.Sprintf("; nothing will be: %v", err)
	case used+wanted > limit:
		text += fmt.Sprintf("; of the budget of %d for %s %d are spent, so that %s refused", limit, month, used, areRefused(used+wanted-max(used, limit)))
	default:
		text += fmt.Sprintf("; of the budget of %d for %s %d are spent", limit, month, used)
	}
	mode := cmp.Or(i.declared.Mode, mesh.ModeGeneralPurpose)
	authority, certificate := acmpca.Price(mode)
	text += fmt.Sprintf("; %s, about $%.2f together", certificate, acmpca.Cost(mode, used, wanted))
	return text + fmt.Sprintf("; the CA itself (%s) %s", mode, authority)
}

func areRefused(n int) string {
	if n == 1 {
		return "the last one is"
	}
	return fmt.Sprintf("the last %d are", n)
}
