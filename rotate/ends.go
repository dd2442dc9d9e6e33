package rotate

import (
	"context"
	"fmt"
	"time"
)

// ends are the times of [WithEnds].
type ends struct{ steps, all time.Time }

type endsKey struct{}

// WithEnds gives a context for rotations of a process that somebody ends at a known time, whatever it is at: a function of Lambda.
// A rotation otherwise lets the step in progress come to its end when its context has ended. With this one a step is cut at
// steps, when whoever was asked has not answered by then; the result is [ErrStopped], and the next rotation goes on as after a
// process that died there. What is still to be done then (leases are given back) is over at all.
func WithEnds(ctx context.Context, steps, all time.Time) context.Context {
	return context.WithValue(ctx, endsKey{}, ends{steps, all})
}

// Detached gives a context for what is to be done also when ctx has ended: it lasts for most, and no longer than [WithEnds]
// of ctx allows.
func Detached(ctx context.Context, most time.Duration) (context.Context, context.CancelFunc) {
	until := time.Now().Add(most)
	if e, ok := ctx.Value(endsKey{}).(ends); ok && e.all.Before(until) {
		until = e.all
	}
	return context.WithDeadline(context.WithoutCancel(ctx), until)
}

// cut ends the context of a run's steps when [WithEnds] says so.
func cut(ctx context.Context) (context.Context, context.CancelFunc) {
	e, ok := ctx.Value(endsKey{}).(ends)
	if !ok {
		return ctx, func() {}
	}
	return context.WithDeadlineCause(ctx, e.steps, fmt.Errorf("the time was up in the middle of a step: %w", ErrStopped))
}
