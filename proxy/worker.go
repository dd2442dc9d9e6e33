package proxy

import (
	"sync"
	"time"

	"countersign.dev/proxy/internal/loop"
	"countersign.dev/proxy/internal/relay"
)

// worker is what one event loop serves. Everything in it, and every conn and upconn, belongs to that
// loop's goroutine; others ask by [Proxy.onLoops].
type worker struct {
	p     *Proxy
	loop  *loop.Loop
	relay *relay.Worker
	conns map[*conn]struct{}      // from clients
	ups   map[*upconn]*relay.Link // to peers
}

// sweepEvery is how often a worker looks for callers that take nothing.
const sweepEvery = 30 * time.Second

func (p *Proxy) newWorker(l *loop.Loop) *worker {
	w := &worker{
		p: p, loop: l, relay: relay.NewWorker(l, p.limits),
		conns: make(map[*conn]struct{}), ups: make(map[*upconn]*relay.Link),
	}
	l.Post(w.sweep)
	return w
}

// sweep gives up on callers that have stopped reading.
func (w *worker) sweep() {
	for c := range w.conns {
		if c.front == nil {
			continue
		}
		for _, x := range w.relay.Stalled(c.front) {
			x.Cut()
		}
		if since, ok := c.Blocked(); ok && w.loop.Now().Sub(since) > w.p.limits.Stalled {
			c.Reset()
		}
	}
	w.loop.After(sweepEvery, w.sweep)
}

// onLoops runs f on every loop and returns when it has run on all. It does nothing after Shutdown.
func (p *Proxy) onLoops(f func(*worker)) {
	var running sync.WaitGroup
	for _, w := range p.workers {
		running.Add(1)
		if !w.loop.Post(func() {
			defer running.Done()
			f(w)
		}) {
			running.Done()
		}
	}
	running.Wait()
}

// workerOf finds the worker of a loop; there are as many as processors.
func (p *Proxy) workerOf(l *loop.Loop) *worker {
	for _, w := range p.workers {
		if w.loop == l {
			return w
		}
	}
	return nil // cannot be: every loop is of this proxy's group
}
