package supervise

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// drainTick is how often a drain looks whether it is over.
const drainTick = 50 * time.Millisecond

// quitAgain is how often the program is told to end: HAProxy's master forgets a signal that comes while it starts,
// and one more does neither any harm.
const quitAgain = time.Second

// DrainListeners stops accepting inbound connections, for good; what is open ends as after a reload. Report names no
// listener any more, so that peers go elsewhere.
func (s *Supervisor) DrainListeners(ctx context.Context) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.work, cancel)() //nolint:contextcheck // it ends with either of the two
	return s.drainInbound(ctx)
}

// drainInbound gives the program the Plan without its inbound listeners. The caller holds change.
func (s *Supervisor) drainInbound(ctx context.Context) error {
	s.mu.Lock()
	s.drained = true
	good, running := s.good, s.running
	s.mu.Unlock()
	if good == nil || running == nil || len(good.plan.Inbound) == 0 {
		return nil
	}
	if len(good.plan.Outbound) == 0 {
		// Neither program runs without a listener; what it has left is told to end.
		return s.retire(running)
	}
	return s.bring(ctx, good.plan, good.identity)
}

// retire lets the program finish what it has and end, and nobody start it again.
func (s *Supervisor) retire(p *process) error {
	s.mu.Lock()
	if s.seen != nil {
		seen := *s.seen
		seen.listening = nil
		s.seen = &seen
	}
	s.retired = p
	s.mu.Unlock()
	p.signal(s.cfg.Binary.Engine.quit)
	return nil
}

// Shutdown ends the Supervisor. The program stops accepting inbound and finishes what it has; then the same
// outbound, which is last because the application may need it to finish. When ctx ends, what still runs is cut, and
// the error says so. Nothing of what was written for the program is left.
func (s *Supervisor) Shutdown(ctx context.Context) (err error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.closed = true
	s.mu.Unlock()
	// Whoever holds change gives it back soon.
	s.halt()
	defer func() { err = errors.Join(err, s.Close()) }() //nolint:contextcheck // it ends at once, whatever the context
	if err := s.lock(ctx); err != nil {
		return cut(err)
	}
	err = s.finish(ctx)
	s.unlock()
	return err
}

func cut(err error) error {
	return fmt.Errorf("shutting down the proxy: what still ran was cut: %w", err)
}

// finish lets the program finish. The caller holds change.
func (s *Supervisor) finish(ctx context.Context) error {
	s.mu.Lock()
	running := s.running
	s.mu.Unlock()
	if running == nil {
		return nil
	}
	if err := s.drainInbound(ctx); err != nil && ctx.Err() == nil {
		s.log.WarnContext(ctx, "cannot drain inbound first; everything is drained at once", "error", err)
	}
	for ctx.Err() == nil && !running.isGone() {
		left, err := s.cfg.Binary.Engine.leaving(ctx, running)
		if err != nil || left == 0 {
			break
		}
		pause(ctx, drainTick)
	}
	for ctx.Err() == nil {
		running.signal(s.cfg.Binary.Engine.quit)
		select {
		case <-running.gone:
			return nil
		case <-time.After(quitAgain):
		case <-ctx.Done():
		}
	}
	running.signal(s.cfg.Binary.Engine.stop)
	select {
	case <-running.gone:
	case <-time.After(stopPatience): // Close kills it
	}
	return cut(ctx.Err())
}
