package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"countersign.dev/bench/internal/proc"
	"countersign.dev/bench/internal/rig"
	"countersign.dev/bench/internal/tally"
)

// bench is one invocation.
type bench struct {
	options
	log     *slog.Logger
	command string
	rig     *rig.Rig
	setups  []*rig.Setup
	chains  map[string]*rig.Chain // that are up, by setup
	halves  map[string]*rig.Chain // connecting halves that are up, by setup and groups
	failed  bool                  // something that should have figures has none
	results tally.Results
	// Of the row that is being measured: runs made again, and runs that were never undisturbed.
	repeated, disturbed int
}

// measure runs all rows.
func (b *bench) measure(ctx context.Context, chosen []row) error {
	b.chains, b.halves = make(map[string]*rig.Chain), make(map[string]*rig.Chain)
	if err := b.findSetups(ctx, chosen); err != nil {
		return err
	}
	for _, r := range chosen {
		if err := b.measureRow(ctx, r); err != nil {
			return fmt.Errorf("row %s: %w", r.name, err)
		}
	}
	return nil
}

// findSetups looks which of the setups are there.
func (b *bench) findSetups(ctx context.Context, chosen []row) error {
	ours, err := b.rig.Product(ctx)
	if err != nil {
		return err
	}
	nginx, err := b.rig.NGINX(ctx)
	if err != nil {
		return fmt.Errorf("the baseline: %w", err)
	}
	b.setups = []*rig.Setup{nginx, ours, b.rig.Mixed(rig.MixedOut), b.rig.Mixed(rig.MixedIn)}
	others, missing := b.rig.Others(ctx)
	rendered, without := b.rig.Rendered(ctx)
	b.setups = append(append(b.setups, others...), rendered...)
	for _, why := range without {
		if !slices.Contains(missing, why) {
			missing = append(missing, why)
		}
	}
	b.results.Missing = missing
	for _, why := range missing {
		b.log.WarnContext(ctx, "left out", "why", why)
	}
	b.results.Machine, b.results.Versions = proc.ThisMachine(), make(map[string]string)
	for _, s := range b.setups {
		b.results.Versions[s.Name] = s.Title
	}
	return nil
}

// setup finds a setup by name; nil: it is not there.
func (b *bench) setup(name string) *rig.Setup {
	for _, s := range b.setups {
		if s.Name == name {
			return s
		}
	}
	return nil
}

// chain is the chain of a setup that all rows share; it is started when it is needed first.
func (b *bench) chain(ctx context.Context, s *rig.Setup) (*rig.Chain, error) {
	if c := b.chains[s.Name]; c != nil {
		return c, nil
	}
	b.log.InfoContext(ctx, "starting", "setup", s.Name)
	c, err := s.Start(ctx)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", s.Name, err)
	}
	if err := b.check(ctx, s, c); err != nil {
		return nil, err
	}
	b.chains[s.Name] = c
	return c, nil
}

// measureRow measures all setups in one row. A setup that fails is left out of the rest of the row, and the
// results say so.
func (b *bench) measureRow(ctx context.Context, r row) error {
	others, err := b.competitors(ctx, r)
	if err != nil || len(others) == 0 {
		return err
	}
	b.repeated, b.disturbed = 0, 0
	baseline := b.setup(rig.Baseline)
	before, err := b.once(ctx, r, baseline)
	if err != nil {
		return b.leaveOut(ctx, r, baseline, err)
	}
	result := tally.Row{
		Name: r.name, Title: r.title, Metrics: r.metrics, Setups: make(map[string]*tally.Series), Baseline: tally.Series{Runs: []tally.Sample{before}},
		Date: time.Now().UTC().Format(time.DateOnly), Version: b.setup(rig.Ours).Title, Command: b.command,
	}
	for run := range b.Runs {
		for i, s := range others {
			if s == nil || run >= b.runs(r, s) {
				continue
			}
			sample, err := b.once(ctx, r, s)
			if err != nil {
				if err := b.leaveOut(ctx, r, s, err); err != nil {
					return err
				}
				others[i] = nil
				continue
			}
			after, err := b.once(ctx, r, baseline)
			if err != nil {
				return b.leaveOut(ctx, r, baseline, err)
			}
			if result.Setups[s.Name] == nil {
				result.Setups[s.Name] = &tally.Series{}
			}
			result.Setups[s.Name].Add(sample, before, after)
			result.Baseline.Runs = append(result.Baseline.Runs, after)
			before = after
			b.progress(ctx, r, s.Name, *result.Setups[s.Name])
		}
	}
	result.Repeated, result.Disturbed = b.repeated, b.disturbed
	b.results.Put(result)
	return nil
}

// competitors are the setups that a row is measured of, beside the baseline.
func (b *bench) competitors(ctx context.Context, r row) ([]*rig.Setup, error) {
	var others []*rig.Setup
	for _, s := range b.setups {
		if s.Name == rig.Baseline || !b.wanted(r, s.Name) {
			continue
		}
		c, err := b.chain(ctx, s)
		if err != nil {
			if err := b.leaveOut(ctx, r, s, err); err != nil {
				return nil, err
			}
			continue
		}
		if r.has(c) {
			others = append(others, s)
		}
	}
	return others, nil
}

// leaveOut notes that a setup has no figures in a row. It fails only when everything is to end.
func (b *bench) leaveOut(ctx context.Context, r row, s *rig.Setup, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// A program that is not there is no failure: the results say so.
	b.failed = b.failed || !errors.Is(err, exec.ErrNotFound)
	b.log.ErrorContext(ctx, "left out", "row", r.name, "setup", s.Name, "error", err)
	text, _, _ := strings.Cut(err.Error(), "\n")
	b.results.Missing = append(b.results.Missing, fmt.Sprintf("%s in %s: %s", s.Name, r.name, text))
	return nil
}

// runs is how often a setup runs in a row.
func (b *bench) runs(r row, s *rig.Setup) int {
	const slow = 2
	n := b.Runs
	if len(r.only) == 0 && s.Name != rig.Ours {
		n = min(n, b.PeerRuns)
	}
	if r.fresh {
		n = min(n, slow)
	}
	return n
}

// wanted tells whether a setup is measured in a row.
func (b *bench) wanted(r row, name string) bool {
	if len(r.only) > 0 {
		// --setups narrows such a row only when it names one of it.
		chosen := func(name string) bool { return slices.Contains(b.Setups, name) }
		return slices.Contains(r.only, name) && (chosen(name) || !slices.ContainsFunc(r.only, chosen))
	}
	if rig.Apart(name) {
		return false
	}
	return len(b.Setups) == 0 || slices.Contains(b.Setups, name)
}

// progress says what the last run came to.
func (b *bench) progress(ctx context.Context, r row, setup string, s tally.Series) {
	run := len(s.Runs) - 1
	attributes := []slog.Attr{slog.String("row", r.name), slog.String("setup", setup), slog.Int("run", run+1)}
	last := tally.Series{Runs: s.Runs[run:], Before: s.Before[run:], After: s.After[run:]}
	for _, m := range r.metrics {
		for _, ratio := range last.Ratios(m.Name) {
			attributes = append(attributes, slog.String(m.Name, fmt.Sprintf("%.2f", ratio)))
		}
	}
	b.log.LogAttrs(ctx, slog.LevelInfo, "ratio to the baseline beside it", attributes...)
}

// once makes one run, again when the machine had other work. Of several that all were disturbed the
// quietest counts.
func (b *bench) once(ctx context.Context, r row, s *rig.Setup) (tally.Sample, error) {
	sample, shares, err := quietest(b.Repeats, b.Other, func() (tally.Sample, float64, error) {
		if err := b.quiet(ctx); err != nil {
			return nil, 0, err
		}
		sample, share, err := b.attempt(ctx, r, s)
		if err == nil && share > b.Other {
			b.log.WarnContext(ctx, "others worked on this machine meanwhile", "row", r.name, "setup", s.Name, "share", fmt.Sprintf("%.2f", share))
		}
		return sample, share, err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	b.repeated += len(shares) - 1
	if slices.Min(shares) > b.Other {
		b.disturbed++
	}
	return sample, nil
}

// quietest makes a run, and again, up to so many times, while others used more of the processors than the
// limit. It gives the run with the least of that, and the shares of all.
func quietest(repeats int, limit float64, attempt func() (tally.Sample, float64, error)) (best tally.Sample, shares []float64, err error) {
	for range repeats + 1 {
		sample, share, err := attempt()
		if err != nil {
			return nil, nil, err
		}
		if len(shares) == 0 || share < slices.Min(shares) {
			best = sample
		}
		if shares = append(shares, share); share <= limit {
			break
		}
	}
	return best, shares, nil
}

// attempt makes one run and tells which share of the processors others used meanwhile.
func (b *bench) attempt(ctx context.Context, r row, s *rig.Setup) (sample tally.Sample, others float64, err error) {
	var c *rig.Chain
	if r.fresh {
		if c, err = s.Start(ctx); c != nil {
			defer func() { err = errors.Join(err, c.Stop()) }()
		}
	} else {
		c, err = b.chain(ctx, s)
	}
	if err != nil {
		return nil, 0, err
	}
	watch, err := proc.NewWatch(os.Getpid())
	if err != nil {
		return nil, 0, err
	}
	sample, err = r.run(ctx, b, c)
	if ctx.Err() != nil {
		return nil, 0, ctx.Err()
	}
	if err != nil {
		return nil, 0, err
	}
	others, err = watch.Foreign()
	return sample, others, err
}

// quiet waits until others leave the machine alone, but not for ever.
func (b *bench) quiet(ctx context.Context) error {
	const (
		look    = 250 * time.Millisecond
		longest = 20 * time.Second
	)
	for began := time.Now(); time.Since(began) < longest; {
		watch, err := proc.NewWatch(os.Getpid())
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(look):
		}
		others, err := watch.Foreign()
		if err != nil || others <= b.Other {
			return err
		}
	}
	return nil // the run itself will say how bad it is
}
