package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/mtls"
)

type caRotateRunCmd struct {
	Replace  string        `placeholder:"sha256:HEX" help:"The pin of the root that is to go. When another one signs alone, there is nothing to do: a run that was interrupted can be repeated. Default: the one that signs now."`
	Interval time.Duration `default:"1s" help:"How long to wait between two looks at those who stand in the way."`
	Timeout  time.Duration `default:"1h" help:"How long to wait for all of it; what was done by then stays."`
	newRootFlags
	rotateFlags
}

// Help is what --help adds.
func (caRotateRunCmd) Help() string {
	return `Makes the next root, waits until everybody is seen to accept it, lets it sign, waits until nobody needs the
one before, removes that, and waits until all who are connected have forgotten it. Who is waited for is written to standard error. What was done is done at the
server: interrupted at any moment, the same command goes on where the last one was. A run that begins anew
every time it is started takes --replace with the pin of the root that is to go.

Examples:
  countersign ca rotate run --state ./state
  countersign ca rotate run --state ./state --replace sha256:5d2a... --timeout 24h`
}

// Run replaces the root.
func (c caRotateRunCmd) Run(p *process) error {
	if c.Interval <= 0 || c.Timeout <= 0 {
		return usagef("--interval and --timeout are above 0")
	}
	if c.Replace != "" {
		if err := mtls.CheckPin(c.Replace); err != nil {
			return usagef("--replace: %w", err)
		}
	}
	admin, err := c.admin(p)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(p.ctx, c.Timeout, fmt.Errorf("the root was not replaced within %s; what was done stays: repeat the command", c.Timeout))
	defer cancel()
	run := rotationRun{caRotateRunCmd: c, p: p, admin: admin}
	rotation, err := run.all(ctx)
	if err != nil && p.ctx.Err() != nil {
		return errors.New("interrupted; what was done stays: the same command goes on from there")
	}
	if err != nil {
		return because(ctx, answered(p, err))
	}
	return c.show(p, rotation)
}

// rotationRun is one run.
type rotationRun struct {
	caRotateRunCmd
	p     *process
	admin *api.Admin

	said []string // who was named last
	seen bool     // the server has answered once
	away bool     // the server was away at the last look
}

// say tells how far it is.
func (r *rotationRun) say(format string, a ...any) {
	fmt.Fprintf(r.p.stderr, "countersign: "+format+"\n", a...)
}

// all takes the steps that are left.
func (r *rotationRun) all(ctx context.Context) (*api.Rotation, error) {
	rotation, err := r.look(ctx, false)
	if err != nil {
		return nil, err
	}
	if err := r.known(ctx, rotation); err != nil {
		return nil, err
	}
	if rotation.Next == "" {
		if signs := rotation.Roots[0].Pin; r.Replace != "" && r.Replace != signs {
			r.say("%s is gone already, and %s signs", r.Replace, signs)
			return rotation, nil
		}
		if rotation, err = r.step(ctx, r.newRootFlags.request()); err != nil {
			return nil, err
		}
		r.say("the next root is made and stands in every bundle: %s", rotation.Roots[1].Pin)
	}
	for rotation.Next != "" {
		next := rotation.Next
		if err := r.wait(ctx, next); err != nil {
			return nil, err
		}
		rotation, err = r.step(ctx, api.RotationRequest{Step: next})
		switch {
		case conflict(err):
			// Somebody has come meanwhile, or another administrator was quicker: look again.
			if rotation, err = r.look(ctx, false); err != nil {
				return nil, err
			}
		case err != nil:
			return nil, err
		case next == api.RotateActivate:
			r.say("%s signs; certificates are renewed under it", rotation.Roots[0].Pin)
		default:
			r.say("the root of before is gone")
		}
	}
	return r.takenIn(ctx)
}

// known refuses a pin that is to be replaced and that no root of this CA ever had: a mistake would look like work
// that is done.
func (r *rotationRun) known(ctx context.Context, rotation *api.Rotation) error {
	if r.Replace == "" || slices.ContainsFunc(rotation.Roots, func(h api.Hierarchy) bool { return h.Pin == r.Replace }) {
		return nil
	}
	changes, err := rotationChanges(ctx, r.admin)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(changes, func(c ca.Change) bool { return c.Pin == r.Replace }) {
		return nil
	}
	return usagef("--replace: no root of this CA ever had the pin %s; `countersign ca rotate status` shows those of now", r.Replace)
}

// takenIn waits until everybody who is connected has the bundle without the root of before. Those who are
// away are given it when they come back.
func (r *rotationRun) takenIn(ctx context.Context) (*api.Rotation, error) {
	for {
		rotation, err := r.look(ctx, false)
		if err != nil || len(rotation.Lagging) == 0 {
			return rotation, err
		}
		if lines := names(rotation.Lagging); !slices.Equal(lines, r.said) {
			r.said = lines
			r.say("waiting until it is gone everywhere:\n  %s", strings.Join(lines, "\n  "))
		}
		if err := r.pause(ctx); err != nil {
			return nil, err
		}
	}
}

// wait waits until nobody stands in the way of a step, and says who does whenever that changes.
func (r *rotationRun) wait(ctx context.Context, next string) error {
	for {
		rotation, err := r.look(ctx, true)
		if err != nil || rotation.Next != next || rotation.Checked && len(rotation.Blockers) == 0 {
			r.said = nil
			return err
		}
		if lines := names(rotation.Blockers); !slices.Equal(lines, r.said) {
			r.said = lines
			r.say("waiting with %s for %s:\n  %s", next, count(len(lines), "reason"), strings.Join(lines, "\n  "))
		}
		if err := r.pause(ctx); err != nil {
			return err
		}
	}
}

// look asks how far it is. A server that has answered before and is away comes back.
func (r *rotationRun) look(ctx context.Context, check bool) (*api.Rotation, error) {
	for {
		rotation, err := r.admin.Rotation(ctx, check)
		if err == nil || !r.seen || !passing(err) {
			r.seen, r.away = true, false
			return rotation, err
		}
		if !r.away {
			r.away = true
			r.say("%v; waiting for it", err)
		}
		if err := r.pause(ctx); err != nil {
			return nil, err
		}
	}
}

// step takes a step. When the server goes away meanwhile, nobody knows whether it was taken: it is looked
// at, not repeated.
func (r *rotationRun) step(ctx context.Context, request api.RotationRequest) (*api.Rotation, error) {
	rotation, err := r.admin.Rotate(ctx, request)
	if _, told := errors.AsType[*api.Error](err); err == nil || told && !passing(err) || ctx.Err() != nil {
		return rotation, err
	}
	after, err := r.look(ctx, false)
	if err == nil && request.Step == api.RotateStart && after.Next == "" {
		return nil, fmt.Errorf("the server went away before the next root was made; repeat the command")
	}
	return after, err
}

// passing tells whether an error is one of a server that is away or overburdened for a moment.
func passing(err error) bool {
	refusal, ok := errors.AsType[*api.Error](err)
	if ok {
		return refusal.Code == api.CodeUnavailable
	}
	return !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// conflict tells whether a step was refused because of how things stand.
func conflict(err error) bool {
	refusal, ok := errors.AsType[*api.Error](err)
	return ok && refusal.Code == api.CodeConflict
}

// pause waits for the next look.
func (r *rotationRun) pause(ctx context.Context) error {
	timer := time.NewTimer(r.Interval)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
