package proxy

import (
	"crypto/x509"
	"math/rand/v2"
	"sync"
	"time"
)

// life bounds how long a connection goes on that was proved with certificates. First it retires: it
// takes no further request but the one that tells the other side. Then it is cut. The zero life is
// unbounded.
type life struct {
	mu       sync.Mutex
	ended    bool
	begun    bool
	retireAt time.Time
	cutAt    time.Time
	retiring *time.Timer
	cutting  *time.Timer
	further  *time.Timer
}

// begin sets the bounds and what happens at them; both functions are called at most once, on their own
// goroutine.
func (l *life) begin(retireAt, cutAt time.Time, retire, cut func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	l.begun = true
	l.retireAt, l.cutAt = retireAt, cutAt
	l.retiring = time.AfterFunc(time.Until(retireAt), retire)
	l.cutting = time.AfterFunc(time.Until(cutAt), cut)
}

// shorten brings the bounds forward, never back. A zero time leaves its bound.
func (l *life) shorten(retireAt, cutAt time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.begun || l.ended {
		return
	}
	// Stop fails when the function has been started: then it must not be again.
	if !retireAt.IsZero() && retireAt.Before(l.retireAt) && l.retiring.Stop() {
		l.retireAt = retireAt
		l.retiring.Reset(time.Until(retireAt))
	}
	if !cutAt.IsZero() && cutAt.Before(l.cutAt) && l.cutting.Stop() {
		l.cutAt = cutAt
		l.cutting.Reset(time.Until(cutAt))
	}
}

// also does something at a moment, if the connection lives that long; the first call counts.
func (l *life) also(at time.Time, do func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended || l.further != nil {
		return
	}
	l.further = time.AfterFunc(time.Until(at), do)
}

// end forgets the bounds, because the connection is closed.
func (l *life) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	if l.begun {
		l.retiring.Stop()
		l.cutting.Stop()
	}
	if l.further != nil {
		l.further.Stop()
	}
}

// left is how much of its life a connection has left after a rotation.
func (l *life) left() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Until(l.cutAt)
}

// The part of what is left of the certificates after which a connection retires. The client's side is
// the first, because it can do so without a race: it sends no request any more.
const (
	clientRetires = 0.80
	serverRetires = 0.92
	retireJitter  = 0.04
)

// bounds gives when a connection retires and when it is cut: slightly before the end of the first of
// its certificates. It is false when one of them has ended.
func bounds(now time.Time, part float64, certs ...*x509.Certificate) (retireAt, cutAt time.Time, ok bool) {
	var left time.Duration
	for i, cert := range certs {
		if d := cert.NotAfter.Sub(now); i == 0 || d < left {
			left = d
		}
	}
	if left <= 0 {
		return time.Time{}, time.Time{}, false
	}
	start := time.Now()                                                           // the monotonic clock measures what is left
	retire := time.Duration(float64(left) * (part - retireJitter*rand.Float64())) //nolint:gosec // jitter is no secret
	cut := left - min(left/40, 2*time.Second)
	return start.Add(retire), start.Add(cut), true
}

// soon is a moment within a window, for things that should not all happen at once.
func soon(window time.Duration) time.Time {
	if window <= 0 {
		return time.Now()
	}
	return time.Now().Add(rand.N(window)) //nolint:gosec // jitter is no secret
}
