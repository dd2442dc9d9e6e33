package main

import (
	"log/slog"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
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
	tuneMemory(t.Context(), log)
	if got := debug.SetGCPercent(100); got != 100 {
		t.Errorf("GOGC is set and became %d", got)
	}
	if got := debug.SetMemoryLimit(-1); got != limit {
		t.Errorf("GOMEMLIMIT is set and became %d", got)
	}
	t.Setenv("GOGC", "")
	tuneMemory(t.Context(), log)
	if got := debug.SetGCPercent(100); got != maxGCPercent {
		t.Errorf("the collector runs at %d percent", got)
	}
}

// TestTuner checks that a large heap is not multiplied.
func TestTuner(t *testing.T) {
	for live, want := range map[uint64]int{0: maxGCPercent, 1 << 20: maxGCPercent, 16 << 20: 150, 1 << 30: minGCPercent} {
		if got := percentFor(live); got != want {
			t.Errorf("%d bytes: %d percent, want %d", live, got, want)
		}
	}
	percent := debug.SetGCPercent(100)
	t.Cleanup(func() { debug.SetGCPercent(percent) })
	const untouched = 12345
	debug.SetGCPercent(untouched)
	(&tuner{percent: untouched}).watch()
	for deadline := time.Now().Add(10 * time.Second); ; {
		runtime.GC()
		if got := debug.SetGCPercent(100); got != untouched {
			break // a collection has set it
		}
		if time.Now().After(deadline) {
			t.Fatal("collections do not set how often there are any")
		}
		debug.SetGCPercent(untouched)
	}
}
