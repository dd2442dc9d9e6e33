package loop

import (
	"runtime/debug"
	"runtime/metrics"
	"sync/atomic"
	"time"
)

// Bounds of a [trimmer].
const (
	// lively is the number of rounds in a second from which on the loops have work to do.
	lively = 20
	// worthTrim is how many bytes the heap must have grown since it was trimmed last.
	worthTrim = 4 << 20
)

// trimmer gives memory back to the system when the loops have become quiet: what a storm of handshakes
// leaves behind would stay until the heap has doubled, which nothing makes it do in a process at rest.
// It costs nothing while nothing happens: the first round after a rest starts its clock.
type trimmer struct {
	quiet  time.Duration
	timer  *time.Timer
	armed  atomic.Bool
	rounds atomic.Int64
	least  uint64 // bytes of the heap after it was trimmed; belongs to the timer's goroutine
}

// newTrimmer makes a trimmer that waits for quiet, or none when that is 0.
func newTrimmer(quiet time.Duration) *trimmer {
	if quiet == 0 {
		return nil
	}
	t := &trimmer{quiet: quiet}
	t.timer = time.AfterFunc(time.Hour, t.look)
	t.timer.Stop()
	return t
}

// round is told of every round. It may be called from any goroutine.
func (t *trimmer) round() {
	if t == nil {
		return
	}
	t.rounds.Add(1)
	if !t.armed.Load() && t.armed.CompareAndSwap(false, true) {
		t.timer.Reset(t.quiet)
	}
}

// look is called when it may have become quiet.
func (t *trimmer) look() {
	if float64(t.rounds.Swap(0)) > lively*t.quiet.Seconds() {
		t.timer.Reset(t.quiet)
		return
	}
	if now := heapBytes(); now < t.least {
		t.least = now
	} else if now > t.least+worthTrim {
		debug.FreeOSMemory()
		t.least = heapBytes()
	}
	t.armed.Store(false)
}

// stop ends it.
func (t *trimmer) stop() {
	if t != nil {
		t.armed.Store(true)
		t.timer.Stop()
	}
}

// heapBytes is the part of the heap that the system has had to give memory for.
func heapBytes() uint64 {
	samples := []metrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(samples)
	sum := uint64(0)
	for _, s := range samples {
		if s.Value.Kind() == metrics.KindUint64 {
			sum += s.Value.Uint64()
		}
	}
	return sum
}
