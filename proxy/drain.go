package proxy

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"countersign.dev/mtls"
)

// Times of a drain.
const (
	// drainTick is how often a drain looks whether it is over.
	drainTick = 20 * time.Millisecond
	// drainQuiet is how long nothing has to run before connections that are only kept open are closed.
	// Each that is used meanwhile ends by itself, after an answer that says so.
	drainQuiet = 500 * time.Millisecond
	// renewalWindow is the longest time over which connections retire after a rotation.
	renewalWindow = 30 * time.Second
)

// drain tells the connections that match to end, waits until they have, and closes those that do nothing
// any more. When ctx ends, it cuts the others.
func (p *Proxy) drain(ctx context.Context, match func(*conn) bool) {
	tick := time.NewTicker(drainTick)
	defer tick.Stop()
	quiet := time.Now()
	for {
		var open, busy atomic.Int64
		p.onLoops(func(w *worker) {
			for c := range w.conns {
				if !match(c) {
					continue
				}
				open.Add(1)
				c.leave()
				if c.busy() {
					busy.Add(1)
				}
			}
		})
		if open.Load() == 0 {
			return
		}
		if busy.Load() > 0 {
			quiet = time.Now()
		}
		if time.Since(quiet) >= drainQuiet {
			p.onLoops(func(w *worker) {
				for c := range w.conns {
					if match(c) && !c.busy() {
						c.Close()
					}
				}
			})
			quiet = time.Now()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			p.onLoops(func(w *worker) {
				for c := range w.conns {
					if match(c) {
						c.cut()
					}
				}
			})
			return
		}
	}
}

// DrainListeners stops accepting inbound connections, for good; what is open ends with its next answer
// or when it is over. Report names no listener any more, so that peers go elsewhere.
func (p *Proxy) DrainListeners() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.noBinds = true
	for port, l := range p.inbound {
		delete(p.inbound, port)
		l.stop()
	}
	p.log.Info("inbound listeners drained")
}

// Shutdown ends the Proxy. It stops accepting inbound, lets what runs finish and tells clients with
// each answer to go elsewhere; then the same outbound, which is last because the application may need
// it to finish. When ctx ends, what still runs is cut, and the error says so. The Proxy cannot be used
// again.
func (p *Proxy) Shutdown(ctx context.Context) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return ErrClosed
	}
	p.closed = true
	p.draining.Store(true)
	for _, l := range p.inbound {
		l.stop()
	}
	p.mu.Unlock()
	p.drain(ctx, func(c *conn) bool { return c.l.side == inboundSide })
	p.mu.Lock()
	for _, l := range p.outbound {
		l.stop()
	}
	p.mu.Unlock()
	p.drain(ctx, func(*conn) bool { return true })
	p.release(p.state.Load(), &state{})
	p.cancel()
	p.tasks.Wait()
	p.onLoops(func(w *worker) {
		for _, k := range w.ups {
			k.Conn.Reset()
		}
	})
	p.group.Stop()
	p.access.Close()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("shutting down the proxy: what still ran was cut: %w", err)
	}
	return nil
}

// IdentityChanged says that the Source gives another leaf, bundle or revocation lists than before. New
// connections use it already. Those whose peer was revoked are cut before it returns. Those that were proved with another leaf retire within a while, not all at once: with a
// "Connection: close", a GOAWAY, or by getting no more requests; TCP connections, upgrades and streams
// end after Config.MaxAge. The client's side goes first.
func (p *Proxy) IdentityChanged() {
	identity := p.identity()
	if identity == nil {
		return
	}
	serial, bundle := mtls.Serial(identity.Certificate.Leaf), identity.Bundle.Digest()
	p.cutRevoked(identity)
	before := p.announced.Swap(&announced{serial, bundle})
	if before != nil && *before == (announced{serial, bundle}) {
		return // nothing has changed but lists
	}
	now := time.Now()
	var older atomic.Int64
	p.onLoops(func(w *worker) {
		for c := range w.conns {
			if c.age(now, serial, bundle) {
				older.Add(1)
			}
		}
		for u := range w.ups {
			if u.age(p.cfg.MaxAge, serial, bundle) {
				older.Add(1)
			}
		}
	})
	p.log.Info("identity in force", "serial", serial, "notAfter", identity.Certificate.Leaf.NotAfter, "olderConnections", older.Load())
}
