package acmpca

import (
	"context"
	"sync"
	"time"
)

// Bounds of what one process asks for. AWS issues 25 certificates a second for a whole account and region.
const (
	bucketSize = 5           // requests at once
	bucketRate = time.Second // for one more
)

// bucket is a token bucket. It is safe for concurrent use.
type bucket struct {
	now func() time.Time

	mu     sync.Mutex
	tokens float64
	filled time.Time
}

func newBucket(now func() time.Time) *bucket {
	return &bucket{now: now, tokens: bucketSize, filled: now()}
}

// take takes a token, and waits until there is one.
func (b *bucket) take(ctx context.Context) error {
	wait := b.reserve()
	if wait <= 0 {
		return nil
	}
	return sleep(ctx, wait)
}

// reserve takes a token in advance, and says when it will be there.
func (b *bucket) reserve() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	if since := now.Sub(b.filled); since > 0 { // a clock that goes back fills nothing
		b.tokens = min(bucketSize, b.tokens+float64(since)/float64(bucketRate))
	}
	b.filled = now
	b.tokens--
	return time.Duration(-b.tokens * float64(bucketRate))
}

// sleep waits, unless the context ends before.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
