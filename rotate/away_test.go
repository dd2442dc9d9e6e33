package rotate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"countersign.dev/secret"
)

// TestVanished takes back what makes instances go away that were there before, also when it was seen by the next process.
func TestVanished(t *testing.T) {
	lost := func(w *world) { w.fleet.lost = "orders-1" }
	for name, c := range map[string]struct {
		alone bool // there is one instance
		leave func(*world)
		says  string
	}{
		"one of two is lost": {false, lost, "orders-1 was there before, and has been lost since (not connected)"},
		"all are lost":       {true, lost, "orders-1 was there before, and has been lost since (not connected)"},
		"all are gone":       {false, func(w *world) { clear(w.fleet.serves) }, "nobody is there any more; before there were orders-1, orders-2"},
	} {
		for _, killed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, killed %v", name, killed), func(t *testing.T) {
				w := newWorld(t, secret.LayoutJSON)
				if c.alone {
					delete(w.fleet.serves, "orders-2")
				}
				first := w.first()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				w.config.Progress = func(_ string, step Step, _ string) {
					if step == StepDeploy && killed {
						cancel()
					} else if step == StepDeploy {
						c.leave(w)
					}
				}
				result := w.rotator().Rotate(ctx, w.target, Options{Force: true})
				if killed {
					if !errors.Is(result.Err, ErrStopped) {
						t.Fatalf("%v, want ErrStopped", result.Err)
					}
					w.config.Progress = nil
					c.leave(w)
					result = w.run(Options{})
				}
				if result.Outcome != RolledBack || !errors.Is(result.Err, ErrNotServed) || w.currentSerial() != first.Serial {
					t.Errorf("%+v; %s is current, want %s", result, w.currentSerial(), first.Serial)
				}
				says(t, result.Error, c.says)
				w.check()
			})
		}
	}
}

// TestLostByRestart restarts an instance again, on the way back, that the server has lost after its restart.
func TestLostByRestart(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	w.target.Restart, w.fleet.reload = true, false
	w.first()
	w.fleet.restarts = nil
	w.config.Progress = func(_ string, _ Step, text string) {
		if text == "restarting orders-1" {
			w.fleet.lost = map[bool]string{true: "orders-1"}[len(w.fleet.restarts) == 0]
		}
	}
	result := w.must(Options{Force: true}, RolledBack)
	if got := fmt.Sprint(w.fleet.restarts); got != "[orders-1 orders-1]" {
		t.Errorf("restarted %s", got)
	}
	says(t, result.Error, "is current again and was seen everywhere")
	w.check()
}

// TestAway waits a while for an instance that the server has lost, and goes on without it then.
func TestAway(t *testing.T) {
	for _, restart := range []bool{false, true} {
		w := newWorld(t, secret.LayoutJSON)
		w.target.Restart, w.fleet.reload = restart, !restart
		w.fleet.lost = "orders-2"
		begin := time.Now()
		result := w.first()
		if time.Since(begin) < w.config.away {
			t.Error("it was not waited for")
		}
		if len(result.Notes) != 1 || slices.Contains(w.fleet.restarts, "orders-2") {
			t.Errorf("%q, restarted %q", result.Notes, w.fleet.restarts)
		}
		says(t, result.Notes[0], "orders-2 was not seen", "not connected")
		w.check()
	}
	w := newWorld(t, secret.LayoutJSON)
	w.fleet.lost, w.fleet.back, w.config.away = "orders-2", 5, time.Minute
	if result := w.first(); len(result.Notes) != 0 || len(result.Seen) != 2 {
		t.Errorf("%+v", result)
	}
}
