package main

import (
	"errors"
	"log/slog"
	"math"
	"os"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// gcPercent is the GOGC of a sidecar. Its live heap is a few MiB, so that collecting rarely costs little
// memory; docs/performance.md has what it saves.
const gcPercent = 400

// memoryShare is the part of the container's memory that the Go heap may fill before it is collected
// more often instead: sockets and the runtime's own memory are beside it.
const memoryShare = 0.9

// tuneMemory makes the collector keep to the container's limit and run rarely below it. GOGC and
// GOMEMLIMIT in the environment have their usual meaning and come first.
func tuneMemory(log *slog.Logger) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	limit, err := memlimit.Set(memlimit.WithRatio(memoryShare), memlimit.WithProvider(memlimit.FromCgroup))
	switch {
	case errors.Is(err, memlimit.ErrCgroupsNotSupported), errors.Is(err, memlimit.ErrNoCgroup):
	case err != nil:
		log.Warn("the container's memory limit cannot be read; set GOMEMLIMIT if it has one", "error", err)
	case limit != math.MaxInt64:
		log.Info("the heap keeps to the container's memory limit", "bytes", limit)
	}
}
