package main

import (
	"log/slog"
	"runtime"
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

// TestTuner checks that a large heap is not multiplied, and that garbage is given back when nothing happens.
func TestTuner(t *testing.T) {
	percent := debug.SetGCPercent(-1)
	t.Cleanup(func() { debug.SetGCPercent(percent) })
	for live, want := range map[uint64]int{0: maxGCPercent, 1 << 20: maxGCPercent, 16 << 20: 150, 1 << 30: minGCPercent} {
		if got := percentFor(live); got != want {
			t.Errorf("%d bytes: %d percent, want %d", live, got, want)
		}
	}
	tuner := newTuner()
	tuner.look()
	var before, after runtime.MemStats
	garbage := make([]byte, 64<<20)
	for i := range garbage {
		garbage[i] = 1
	}
	runtime.KeepAlive(garbage)
	tuner.look() // much was allocated: not now
	runtime.ReadMemStats(&before)
	tuner.look()
	if runtime.ReadMemStats(&after); after.NumForcedGC <= before.NumForcedGC || after.HeapAlloc+32<<20 > before.HeapAlloc {
		t.Errorf("%d bytes were alive and %d are; forced collections %d and %d", before.HeapAlloc, after.HeapAlloc, before.NumForcedGC, after.NumForcedGC)
	}
	tuner.look()
	var again runtime.MemStats
	if runtime.ReadMemStats(&again); again.NumForcedGC != after.NumForcedGC {
		t.Error("a heap without garbage is collected again")
	}
}
