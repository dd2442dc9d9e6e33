package main

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// How a sidecar's heap is collected, by measurement (docs/performance.md). The heap of a busy sidecar is a
// few MiB, so that collecting it rarely costs little memory; that of one
// with thousands of connections is large, and a multiple of it would be wasted.
const (
	headroom     = 24 << 20 // bytes of garbage before a collection
	maxGCPercent = 400
	minGCPercent = 40
	tuneEvery    = 5 * time.Second
	// quiet is how little is allocated between two looks when nothing happens; garbage of before is
	// collected then and its memory given back, if it is worth the work.
	quiet = 1 << 20
	worth = 4 << 20
)

// memoryShare is the part of the container's memory that the Go heap may fill before it is collected
// more often instead: sockets and the runtime's own memory are beside it.
const memoryShare = 0.9

// tuneMemory makes the collector keep to the container's limit and run rarely below it, until ctx ends.
// GOGC and GOMEMLIMIT in the environment have their usual meaning and come first.
func tuneMemory(ctx context.Context, log *slog.Logger) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(maxGCPercent)
		go newTuner().run(ctx)
	}
	limit, err := memlimit.Set(memlimit.WithRatio(memoryShare), memlimit.WithProvider(memlimit.FromCgroup))
	switch {
	case errors.Is(err, memlimit.ErrCgroupsNotSupported), errors.Is(err, memlimit.ErrNoCgroup):
	case err != nil:
		log.WarnContext(ctx, "the container's memory limit cannot be read; set GOMEMLIMIT if it has one", "error", err)
	case limit != math.MaxInt64:
		log.InfoContext(ctx, "the heap keeps to the container's memory limit", "bytes", limit)
	}
}

// tuner sets how often the heap is collected by what is alive in it.
type tuner struct {
	samples []metrics.Sample
	percent int
	allocs  uint64 // bytes since the start, at the last look
}

func newTuner() *tuner {
	return &tuner{percent: maxGCPercent, samples: []metrics.Sample{
		{Name: "/gc/heap/live:bytes"},
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}}
}

func (t *tuner) run(ctx context.Context) {
	tick := time.NewTicker(tuneEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			t.look()
		}
	}
}

// look is one step of run.
func (t *tuner) look() {
	metrics.Read(t.samples)
	live, allocs := t.samples[0].Value.Uint64(), t.samples[1].Value.Uint64()
	held := t.samples[2].Value.Uint64() + t.samples[3].Value.Uint64()
	if percent := percentFor(live); percent*5 < t.percent*4 || percent*4 > t.percent*5 { // setting it stops the world
		t.percent = percent
		debug.SetGCPercent(percent)
	}
	if allocs-t.allocs < quiet && held > live+worth {
		debug.FreeOSMemory()
		metrics.Read(t.samples)
		allocs = t.samples[1].Value.Uint64()
	}
	t.allocs = allocs
}

// percentFor is the GOGC by which a heap grows by the headroom before it is collected.
func percentFor(live uint64) int {
	return int(min(max(headroom*100/max(live, 1), minGCPercent), maxGCPercent))
}
