package main

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// How a sidecar's heap is collected, by measurement (docs/performance.md). The heap of a busy sidecar is a
// few MiB, so that collecting it rarely costs little memory; that of one with thousands of connections is
// large, and a multiple of it would be wasted.
const (
	headroom     = 24 << 20 // bytes of garbage before a collection
	maxGCPercent = 400
	minGCPercent = 40
)

// memoryShare is the part of the container's memory that the Go heap may fill before it is collected
// more often instead: sockets and the runtime's own memory are beside it.
const memoryShare = 0.9

// tuneMemory makes the collector keep to the container's limit and run rarely below it. GOGC and GOMEMLIMIT in the environment have their usual meaning and come first.
func tuneMemory(ctx context.Context, log *slog.Logger) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(maxGCPercent)
		(&tuner{percent: maxGCPercent}).watch()
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

// tuner sets how often the heap is collected by what is alive in it. It is run by the collections
// themselves: a process at rest does nothing.
type tuner struct{ percent int }

// watch runs look after each collection from now on.
func (t *tuner) watch() {
	// The sentinel dies with the next collection. It is not of a size that is put together with others.
	runtime.AddCleanup(new([64]byte), func(t *tuner) {
		t.look()
		t.watch()
	}, t)
}

func (t *tuner) look() {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	percent := percentFor(live[0].Value.Uint64())
	if percent*5 < t.percent*4 || percent*4 > t.percent*5 { // setting it stops the world
		t.percent = percent
		debug.SetGCPercent(percent)
	}
}

// percentFor is the GOGC by which a heap grows by the headroom before it is collected.
func percentFor(live uint64) int {
	return int(min(max(headroom*100/max(live, 1), minGCPercent), maxGCPercent))
}
