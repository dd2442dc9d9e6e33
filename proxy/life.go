package proxy

import (
	"crypto/x509"
	"math/rand/v2"
	"time"

	"countersign.dev/proxy/internal/loop"
)

// life bounds how long a connection goes on that was proved with certificates. First it retires: it
// takes no further request but the one that tells the other side. Then it is cut. The zero life is
// unbounded. It belongs to the connection's loop.
type life struct {
	timer   *loop.Timer // nil before begin and after end
	retire  event
	cut     event
	further event
}

// event is something that happens once, at a moment.
type event struct {
	at time.Time // zero: never, or it has happened
	do func()
}

func (e *event) due(now time.Time) bool { return !e.at.IsZero() && !now.Before(e.at) }

// begin sets the bounds and what happens at them; each function is called at most once, on the loop.
func (l *life) begin(on *loop.Loop, retireAt, cutAt time.Time, retire, cut func()) {
	l.timer = on.NewTimer(l.happen)
	l.retire, l.cut = event{retireAt, retire}, event{cutAt, cut}
	l.arm()
}

// shorten brings the bounds forward, never back. A zero time leaves its bound.
func (l *life) shorten(retireAt, cutAt time.Time) {
	if l.timer == nil {
		return
	}
	if !retireAt.IsZero() && retireAt.Before(l.retire.at) {
		l.retire.at = retireAt
	}
	if !cutAt.IsZero() && cutAt.Before(l.cut.at) {
		l.cut.at = cutAt
	}
	l.arm()
}

// also does something at a moment, if the connection lives that long; the first call counts.
func (l *life) also(at time.Time, do func()) {
	if l.timer == nil || l.further.do != nil {
		return
	}
	l.further = event{at, do}
	l.arm()
}

// arm sets the timer to what comes first.
func (l *life) arm() {
	var first time.Time
	for _, e := range []*event{&l.retire, &l.cut, &l.further} {
		if !e.at.IsZero() && (first.IsZero() || e.at.Before(first)) {
			first = e.at
		}
	}
	if first.IsZero() {
		l.timer.Stop()
		return
	}
	l.timer.Reset(max(time.Until(first), 0))
}

func (l *life) happen() {
	now := time.Now().Add(lifeSlack)
	for _, e := range []*event{&l.retire, &l.further, &l.cut} {
		if l.timer != nil && e.due(now) {
			e.at = time.Time{}
			e.do()
		}
	}
	if l.timer != nil {
		l.arm()
	}
}

// lifeSlack is how much earlier than asked a bound may be reached: the loop's timers share wake-ups.
const lifeSlack = 15 * time.Millisecond

// end forgets the bounds, because the connection is closed.
func (l *life) end() {
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
}

// left is how much of its life a connection has left after a rotation.
func (l *life) left() time.Duration { return time.Until(l.cut.at) }

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
