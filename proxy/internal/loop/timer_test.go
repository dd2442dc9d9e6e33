package loop

import (
	"testing"
	"time"
)

// TestStoppedTimers stops most of many timers, as requests do, and starts some again: those that are
// set run in order, the others never, and what was stopped does not pile up.
func TestStoppedTimers(t *testing.T) {
	drivers(t, func(t *testing.T, g *Group) {
		l := g.Loops()[0]
		ran := make(chan int, 1000)
		piled := make(chan int, 1)
		l.Post(func() {
			most := 0
			for range 5000 {
				l.After(time.Hour, func() { ran <- -1 }).Stop()
				most = max(most, len(l.timers.heap))
			}
			var again []*Timer
			for i := range 100 {
				again = append(again, l.After(time.Millisecond, func() { ran <- i }))
			}
			for _, timer := range again {
				timer.Stop()
				timer.Stop()
			}
			for i := range 5 { // later and later
				again[i].Reset(time.Duration(30+20*i) * time.Millisecond)
			}
			most = max(most, len(l.timers.heap))
			piled <- most
		})
		if n := <-piled; n > 300 {
			t.Errorf("%d timers are kept", n)
		}
		for want := range 5 {
			select {
			case got := <-ran:
				if got != want {
					t.Fatalf("timer %d ran, want %d", got, want)
				}
			case <-time.After(time.Minute):
				t.Fatalf("timer %d did not run", want)
			}
		}
		left := make(chan int, 1)
		l.Post(func() {
			for _, timer := range l.timers.heap {
				timer.Stop()
			}
			left <- len(l.timers.heap) - l.timers.idle
		})
		if n := <-left; n != 0 {
			t.Errorf("%d timers are set, want none", n)
		}
	})
}
