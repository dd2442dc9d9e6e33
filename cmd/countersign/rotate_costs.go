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

// estimate is what a trial run says of an authority of AWS.
type estimate struct {
	authority string
	issuer    *issuer
	wanted    []string // the services that would have a certificate of it, in the order of the results

	used, limit int
	month       string
	err         error // why the budget could not be read
}

// trialResult is a result of a trial run, in JSON.
type trialResult struct {
	rotate.Result
	// Issue is there when an authority of AWS would be asked for a certificate.
	Issue *trialIssue `json:"issue,omitempty"`
}

// trialIssue is the certificate that would be issued.
type trialIssue struct {
	Authority string `json:"authority"`
	Mode      string `json:"mode"`
	// USD is an estimate of what it costs, in US dollars, by prices as of PricesOf.
	USD      float64 `json:"usd"`
	PricesOf string  `json:"pricesOf"`
	// Refused says that the budget does not allow it, so that nothing would be issued or paid.
	Refused bool        `json:"refused"`
	Budget  trialBudget `json:"budget"`
}

// trialBudget is the budget of an authority before anything is issued. Error says why it could not be read.
type trialBudget struct {
	Month string `json:"month,omitempty"`
	Used  int    `json:"used"`
	Limit int    `json:"limit"`
	Error string `json:"error,omitempty"`
}

// trial writes what a trial run has found: for people what would be done, and of each authority of AWS how many certificates
// would be issued, what is left of its budget, and what AWS asks for them; in JSON the same with each result.
func (c *rotateOnceCmd) trial(p *process, world *rotation, targets []rotate.Target, results []rotate.Result) error {
	estimates := world.cloud.estimates(p.ctx, targets, results)
	if c.json() {
		if err := writeJSON(p, trialResults(estimates, results)); err != nil {
			return err
		}
		return printCosts(p.stderr, estimates) // the results have standard output for themselves
	}
	if err := printResults(p, results); err != nil {
		return err
	}
	return printCosts(p.stdout, estimates)
}

// estimates asks the budget of each authority, and sees who would have a certificate of it.
func (w *cloud) estimates(ctx context.Context, targets []rotate.Target, results []rotate.Result) []estimate {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []estimate
	for _, name := range slices.Sorted(maps.Keys(w.issuers)) {
		e := estimate{authority: name, issuer: w.issuers[name]}
		for _, r := range results {
			would := r.Outcome == rotate.WouldRotate && r.Service != ""
			if would && slices.ContainsFunc(targets, func(t rotate.Target) bool {
				return t.Workload.Name == r.Service && t.Certificate.Authority == name
			}) {
				e.wanted = append(e.wanted, r.Service)
			}
		}
		e.used, e.limit, e.month, e.err = e.issuer.budget.State(ctx)
		all = append(all, e)
	}
	return all
}

// trialResults puts the certificates that would be issued to the results. Those that the budget has left are the first ones.
func trialResults(estimates []estimate, results []rotate.Result) []trialResult {
	all := make([]trialResult, 0, len(results))
	for _, r := range results {
		result := trialResult{Result: r}
		for _, e := range estimates {
			if n := slices.Index(e.wanted, r.Service); n >= 0 && r.Service != "" {
				result.Issue = e.issue(n)
			}
		}
		all = append(all, result)
	}
	return all
}

// issue is the certificate that would be issued when n were before it.
func (e estimate) issue(n int) *trialIssue {
	mode := e.issuer.mode()
	return &trialIssue{
		Authority: e.authority, Mode: mode, USD: acmpca.Cost(mode, e.used+n, 1), PricesOf: acmpca.PricesOf,
		Refused: e.err != nil || e.used+n >= e.limit, Budget: e.spent(),
	}
}

// mode is the word for what the CA issues.
func (i *issuer) mode() string { return cmp.Or(i.declared.Mode, mesh.ModeGeneralPurpose) }

// printCosts writes a line for each authority.
func printCosts(out io.Writer, estimates []estimate) error {
	var text strings.Builder
	for _, e := range estimates {
		fmt.Fprintf(&text, "authority %s: %s\n", e.authority, e.cost())
	}
	if text.Len() > 0 {
		fmt.Fprintf(&text, "Prices of AWS Private CA as of %s, US East; an estimate.\n", acmpca.PricesOf)
	}
	_, err := io.WriteString(out, text.String())
	return err
}

// cost says what the certificates cost, of money and of the budget.
func (e estimate) cost() string {
	wanted := len(e.wanted)
	text := count(wanted, "certificate") + " would be issued"
	switch {
	case e.err != nil:
		text += fmt.Sprintf("; nothing will be: %v", e.err)
	case e.used+wanted > e.limit:
		text += fmt.Sprintf("; of the budget of %d for %s %d are spent, so that %s refused", e.limit, e.month, e.used, areRefused(e.used+wanted-max(e.used, e.limit)))
	default:
		text += fmt.Sprintf("; of the budget of %d for %s %d are spent", e.limit, e.month, e.used)
	}
	mode := e.issuer.mode()
	authority, certificate := acmpca.Price(mode)
	text += fmt.Sprintf("; %s, about $%.2f together", certificate, acmpca.Cost(mode, e.used, wanted))
	return text + fmt.Sprintf("; the CA itself (%s) %s", mode, authority)
}

func areRefused(n int) string {
	if n == 1 {
		return "the last one is"
	}
	return fmt.Sprintf("the last %d are", n)
}
