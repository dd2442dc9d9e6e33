package proxy

import (
	"context"
	"fmt"
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

// drain waits until the connections that match have ended, and closes those that do nothing any more.
// When ctx ends, it cuts the others.
func (p *Proxy) drain(ctx context.Context, match func(*conn) bool) {
	tick := time.NewTicker(drainTick)
	defer tick.Stop()
	quiet := time.Now()
	for {
		open, busy := 0, 0
		for c := range p.conns.all() {
			if !match(c) {
				continue
			}
			open++
			if c.busy() {
				busy++
			}
		}
		if open == 0 {
			return
		}
		if busy > 0 {
			quiet = time.Now()
		}
		if time.Since(quiet) >= drainQuiet {
			for c := range p.conns.all() {
				if match(c) && !c.busy() {
					_ = c.Close()
				}
			}
			quiet = time.Now()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			for c := range p.conns.all() {
				if match(c) {
					c.forbidFor(errCut)
				}
			}
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
	for _, l := range p.outbound { // p.closed keeps everybody else away
		l.stop()
	}
	p.drain(ctx, func(*conn) bool { return true })
	p.state.Load().release(&state{})
	p.cancel()
	for u := range p.upconns.all() {
		u.abort()
	}
	p.tasks.Wait()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("shutting down the proxy: what still ran was cut: %w", err)
	}
	return nil
}

// IdentityChanged says that the Source gives another leaf or bundle than before. New connections use it
// already. Those that were proved with another leaf retire within a while, not all at once: with a
// "Connection: close", a GOAWAY, or by getting no more requests; TCP connections, upgrades and streams
// end after Config.MaxAge. The client's side goes first.
func (p *Proxy) IdentityChanged() {
	identity := p.identity()
	if identity == nil {
		return
	}
	serial, bundle := mtls.Serial(identity.Certificate.Leaf), identity.Bundle.Digest()
	now := time.Now()
	older := 0
	for c := range p.conns.all() {
		if c.age(now, serial, bundle) {
			older++
		}
	}
	for u := range p.upconns.all() {
		if u.proved.Load() && (u.ownSerial != serial || u.bundle != bundle) {
			older++
			window := min(renewalWindow, u.life.left()/4)
			u.life.shorten(soon(window/2), soon(p.cfg.MaxAge/10).Add(p.cfg.MaxAge*9/10))
		}
	}
	p.log.Info("identity in force", "serial", serial, "notAfter", identity.Certificate.Leaf.NotAfter, "olderConnections", older)
}

// age lets a connection retire that was proved with another leaf or bundle, and tells whether it was.
// One that was proved with a gateway's files is no concern of a rotation.
func (c *conn) age(now time.Time, serial, bundle string) bool {
	c.mu.Lock()
	kind := c.kind
	c.mu.Unlock()
	if kind == opening || !c.secure || c.bundle == "" || c.ownSerial == serial && c.bundle == bundle {
		return false
	}
	maxAge := c.l.p.cfg.MaxAge
	end := soon(maxAge / 10).Add(maxAge * 9 / 10)
	window := min(renewalWindow, c.life.left()/4)
	if kind == carryTCP {
		c.life.shorten(time.Time{}, end)
		return true
	}
	c.life.shorten(soon(window), time.Time{})
	// A connection of requests lives on while it is not used: its next answer ends it. Streams that run
	// since before the rotation end like a TCP connection.
	c.life.also(end, func() {
		for _, s := range c.streamsNow() {
			if s.began.Before(now) {
				s.cut(errCut)
			}
		}
	})
	return true
}
