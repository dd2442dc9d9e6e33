package agent

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoff is the time between tries of something that fails: it doubles from base to limit, and the
// upper half of each delay is random, so that agents that lost the server together do not come back
// together. It belongs to one goroutine.
type backoff struct {
	base, limit time.Duration
	failures    int
	random      func() float64 // in [0,1)
}

func newBackoff(base, limit time.Duration) *backoff {
	return &backoff{base: base, limit: limit, random: random}
}

// next is the delay before the next try.
func (b *backoff) next() time.Duration {
	d := b.base
	for range b.failures {
		if d >= b.limit {
			break
		}
		d *= 2
	}
	d = min(d, b.limit)
	b.failures++
	return d/2 + time.Duration(b.random()*float64(d/2))
}

// reset forgets the failures: something worked.
func (b *backoff) reset() { b.failures = 0 }

// random is the source of all jitter.
func random() float64 {
	return rand.Float64() //nolint:gosec // jitter spreads load; nobody gains by guessing it
}

// pause waits for d, and says false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
