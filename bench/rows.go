package main

import (
	"context"
	"errors"
	"time"

	"countersign.dev/bench/internal/load"
	"countersign.dev/bench/internal/rig"
	"countersign.dev/bench/internal/tally"
)

// row is one thing that is measured, of every setup that can do it.
type row struct {
	name, title string
	metrics     []tally.Metric
	// fresh rows want processes that have done nothing yet, for each run.
	fresh bool
	// only restricts the row to some setups; empty: to those that are measured by default.
	only []string
	// has tells whether a chain has what the row needs; nil: every chain has.
	has func(*rig.Chain) bool
	run func(context.Context, *bench, *rig.Chain) (tally.Sample, error)
}

// The metrics that several rows have.
var (
	cpuPerRequest = tally.Metric{Name: "cpu", Title: "CPU per request, both sidecars", Unit: "µs", Lower: true}
	perSecond     = tally.Metric{Name: "rate", Title: "requests per second", Unit: "1/s"}
	p50           = tally.Metric{Name: "p50", Title: "p50", Unit: "ms", Lower: true}
	p99           = tally.Metric{Name: "p99", Title: "p99", Unit: "ms", Lower: true}
	throughput    = tally.Metric{Name: "throughput", Title: "throughput", Unit: "MiB/s"}
)

func hasHTTP(c *rig.Chain) bool { return c.HTTP != "" }

// rows are all rows, in the order of the tables.
func rows() []row {
	var all []row
	for _, r := range []struct {
		name, title, path string
		connections       int
	}{
		{"http-128-c1", "128 B, 1 connection", rig.PathSmall, 1},
		{"http-128-c64", "128 B, 64 connections", rig.PathSmall, 64},
		{"http-128-c512", "128 B, 512 connections", rig.PathSmall, 512},
		{"http-16k-c64", "16 KiB, 64 connections", rig.PathMiddle, 64},
		{"http-1m-c4", "1 MiB, 4 connections", rig.PathLarge, 4},
	} {
		metrics := []tally.Metric{cpuPerRequest, perSecond, p50, p99}
		if r.path == rig.PathLarge {
			metrics = append(metrics, throughput)
		}
		all = append(all, row{name: r.name, title: r.title, metrics: metrics, has: hasHTTP, run: requests(r.path, r.connections)})
	}
	return all
}

// requests is a run of wrk through a chain.
func requests(path string, connections int) func(context.Context, *bench, *rig.Chain) (tally.Sample, error) {
	return func(ctx context.Context, b *bench, c *rig.Chain) (tally.Sample, error) {
		wrk := load.Wrk{URL: "http://" + c.HTTP + path, Connections: connections}
		var result load.Result
		cpu, err := used(c, func() error {
			var err error
			result, err = wrk.Run(ctx, b.Duration)
			return err
		})
		if err != nil {
			return nil, err
		}
		sample := requestSample(result, cpu)
		sample["throughput"] = float64(result.Bytes) / (1 << 20) / result.Elapsed.Seconds()
		return sample, nil
	}
}

// requestSample is what every load of requests measures.
func requestSample(r load.Result, cpu time.Duration) tally.Sample {
	return tally.Sample{
		"cpu":  micros(cpu) / float64(r.Requests),
		"rate": r.PerSecond(),
		"p50":  millis(r.P50),
		"p99":  millis(r.P99),
	}
}

// used is the processor time that both sidecars use while something is done.
func used(c *rig.Chain, something func() error) (time.Duration, error) {
	connecting, receiving, err := usedBySide(c, something)
	return connecting + receiving, err
}

func usedBySide(c *rig.Chain, something func() error) (connecting, receiving time.Duration, err error) {
	connecting0, receiving0, err := c.CPU()
	if err != nil {
		return 0, 0, err
	}
	err = something()
	connecting1, receiving1, err1 := c.CPU()
	return connecting1 - connecting0, receiving1 - receiving0, errors.Join(err, err1)
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
