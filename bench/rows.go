package main

import (
	"context"
	"errors"
	"time"

	"countersign.dev/bench/internal/rig"
	"countersign.dev/bench/internal/tally"
)

// row is one thing that is measured, of every setup that can do it.
type row struct {
	name, title string
	metrics     []tally.Metric
	// fresh rows want processes that have done nothing yet, for each run, and are slow: they are run
	// twice at most.
	fresh bool
	// only restricts the row to setups that no other row measures; empty: all but those.
	only []string
	// has tells whether a chain has what the row needs.
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
	receivingCPU  = tally.Metric{Name: "cpu_receiving", Title: "CPU per connection, receiving sidecar", Unit: "µs", Lower: true}
	bothCPU       = tally.Metric{Name: "cpu_both", Title: "CPU per connection, both sidecars", Unit: "µs", Lower: true}
)

// requestMetrics are those of a load of requests.
func requestMetrics(more ...tally.Metric) []tally.Metric {
	return append([]tally.Metric{cpuPerRequest, perSecond, p50, p99}, more...)
}

// sides are the metrics of chains whose halves differ, or are worth a look of their own.
var sides = []tally.Metric{
	{Name: "cpu_connecting", Title: "CPU per request, connecting side", Unit: "µs", Lower: true},
	{Name: "cpu_receiving", Title: "CPU per request, receiving side", Unit: "µs", Lower: true},
}

func hasHTTP(c *rig.Chain) bool { return c.HTTP != "" }
func hasGRPC(c *rig.Chain) bool { return c.GRPC != "" }
func hasTCP(c *rig.Chain) bool  { return c.TCP != "" }

// readsHTTP is false of carriers of TCP: they hold two connections for each idle one, and more files than many
// systems grant.
func readsHTTP(c *rig.Chain) bool { return c.HTTP != "" && c.PeerHTTP != "" && !c.PassThrough }

func hasReceiver(c *rig.Chain) bool { return c.PeerHTTP != "" || c.PeerTCP != "" }

// rows are all rows, in the order of the tables.
func rows() []row {
	return []row{
		{name: "http-128-c1", title: "HTTP, 128 B, 1 connection", metrics: requestMetrics(), has: hasHTTP, run: requests(rig.PathSmall, 1)},
		{name: "http-128-c64", title: "HTTP, 128 B, 64 connections", metrics: requestMetrics(), has: hasHTTP, run: requests(rig.PathSmall, 64)},
		{name: "http-128-c512", title: "HTTP, 128 B, 512 connections", metrics: requestMetrics(), has: hasHTTP, run: requests(rig.PathSmall, 512)},
		{name: "http-16k-c64", title: "HTTP, 16 KiB, 64 connections", metrics: requestMetrics(throughput), has: hasHTTP, run: requests(rig.PathMiddle, 64)},
		{name: "http-1m-c4", title: "HTTP, 1 MiB, 4 connections", metrics: requestMetrics(throughput), has: hasHTTP, run: requests(rig.PathLarge, 4)},
		{
			name: "beside-1m", title: "HTTP, 128 B on 8 connections beside four streams of 1 MiB", has: hasHTTP, run: beside,
			metrics: []tally.Metric{p99, p50, perSecond, throughput},
		},
		{
			name: "mixed-128-c64", title: "one of ours and one NGINX, 128 B, 64 connections", has: hasHTTP,
			metrics: requestMetrics(sides...),
			only:    []string{rig.MixedOut, rig.MixedIn}, run: requests(rig.PathSmall, 64),
		},
		{
			name: "rendered-128-c64", title: "NGINX and HAProxy as the product configures them and by hand, 128 B, 64 connections", has: hasHTTP,
			metrics: requestMetrics(sides...), only: []string{rig.NGINXRendered, rig.NGINXDuties, rig.HAProxyRendered, rig.HAProxyDuties, "haproxy"},
			run: requests(rig.PathSmall, 64),
		},
		{name: "grpc-unary", title: "gRPC, unary, 128 B, 16 connections with 4 calls each", metrics: requestMetrics(), has: hasGRPC, run: calls},
		{
			name: "tcp-bulk", title: "TCP, 4 connections as fast as it goes", has: hasTCP, run: bulk,
			metrics: []tally.Metric{throughput, {Name: "cpu", Title: "CPU per GiB, both sidecars", Unit: "ms", Lower: true}},
		},
		{
			name: "handshake-full", title: "new mTLS connections, full handshakes, X25519 on both sides", has: hasReceiver, run: fullHandshakes(x25519...),
			metrics: []tally.Metric{receivingCPU, bothCPU},
		},
		{
			name: "handshake-default", title: "the same with the default groups of each", has: hasReceiver, run: fullHandshakes(),
			metrics: []tally.Metric{receivingCPU, bothCPU},
		},
		{
			name: "handshake-resumed", title: "new mTLS connections, resumed sessions", has: hasReceiver, run: resumedHandshakes,
			metrics: []tally.Metric{receivingCPU, bothCPU},
		},
		{name: "idle", title: "memory and CPU of those who wait", metrics: idleMetrics(), fresh: true, has: hasReceiver, run: idle},
		{
			name: "reconnect", title: "peers that come back all at once", fresh: true, has: readsHTTP,
			run: reconnect, metrics: []tally.Metric{
				{Name: "peak", Title: "peak memory, receiving sidecar", Unit: "MiB", Lower: true},
				{Name: "back", Title: "until all are back", Unit: "s", Lower: true},
				{Name: "p99", Title: "p99 of small requests beside it", Unit: "ms", Lower: true},
				{Name: "retries", Title: "attempts that failed", Unit: "", Lower: true},
			},
		},
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
func mebi(bytes int64) float64       { return float64(bytes) / (1 << 20) }
