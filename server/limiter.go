package server

import (
	"net/netip"
	"sync"
	"time"
)

// Bounds of refusals. A refusal costs a synced line in the journal, so somebody who only guesses
// must not be able to fill the disk, nor to bury a real attempt under a million others. Requests
// that are right are never limited.
const (
	refusalsPerPeer   = 20              // at once, from one address
	refusalsPerPeerIn = 3 * time.Second // one more after this
	refusals          = 200             // at once, from everywhere
	refusalsIn        = 200 * time.Millisecond
	maxPeers          = 4096 // addresses that are remembered
)

// bucket counts what may still happen.
type bucket struct {
	tokens float64
	filled time.Time
}

func (b *bucket) take(now time.Time, size int, every time.Duration) bool {
	if b.filled.IsZero() {
		b.tokens = float64(size)
	} else if elapsed := now.Sub(b.filled); elapsed > 0 {
		b.tokens = min(float64(size), b.tokens+float64(elapsed)/float64(every))
	}
	b.filled = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// limiter says whether one more refusal is worth recording. It may be used by many goroutines.
type limiter struct {
	mu         sync.Mutex
	peers      map[netip.Addr]*bucket
	everybody  bucket
	suppressed int64
}

// allow counts a refusal. When it is recorded, suppressed is how many were not since the last one
// that was.
func (l *limiter) allow(peer netip.Addr, now time.Time) (suppressed int64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.peers == nil || len(l.peers) >= maxPeers {
		l.peers = make(map[netip.Addr]*bucket) // forgetting is kinder than growing
	}
	b := l.peers[peer]
	if b == nil {
		b = &bucket{}
		l.peers[peer] = b
	}
	if !b.take(now, refusalsPerPeer, refusalsPerPeerIn) || !l.everybody.take(now, refusals, refusalsIn) {
		l.suppressed++
		return 0, false
	}
	suppressed, l.suppressed = l.suppressed, 0
	return suppressed, true
}
