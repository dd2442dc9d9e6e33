package main

import (
	"log/slog"
	"runtime/debug"
	"testing"
)

// TestTuneMemory checks that the environment comes before what a sidecar sets by itself.
func TestTuneMemory(t *testing.T) {
	percent, limit := debug.SetGCPercent(100), debug.SetMemoryLimit(-1)
	t.Cleanup(func() {
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(limit)
	})
	log := slog.New(slog.DiscardHandler)
	t.Setenv("GOMEMLIMIT", "1GiB") // read at the start of a process only: here it keeps us from setting one
	t.Setenv("GOGC", "50")
	tuneMemory(log)
	if got := debug.SetGCPercent(100); got != 100 {
		t.Errorf("GOGC is set and became %d", got)
	}
	if got := debug.SetMemoryLimit(-1); got != limit {
		t.Errorf("GOMEMLIMIT is set and became %d", got)
	}
	t.Setenv("GOGC", "")
	tuneMemory(log)
	if got := debug.SetGCPercent(100); got != gcPercent {
		t.Errorf("the collector runs at %d percent", got)
	}
}
