package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"countersign.dev/aws/secretsmanager"
	"countersign.dev/aws/session"
	"countersign.dev/rotate"
)

// Where commands take the region from, beside the environment: what they say when it is missing.
const (
	regionInStore = "name it with the store: --store secretsmanager:REGION"
	regionByFlag  = "give --region"
	regionInSpec  = "name it in the specification (region, with the store)"
	regionByBoth  = "give --region, or name it in the specification (region, with the store)"
)

// badAWS makes an error about what somebody has configured for AWS one of usage. region says where else than in the environment the region can
// be named; other errors stay as they are.
func badAWS(err error, region string) error {
	switch {
	case errors.Is(err, session.ErrNoRegion):
		return usageError{fmt.Errorf("%w, or %s", err, region)}
	case errors.Is(err, session.ErrConfig):
		return usageError{err}
	default:
		return err
	}
}

// reach finds out whether the store answers this program at all, as far as it lies on AWS: [secretsmanager.Store.Reach].
func (s *anyStore) reach(ctx context.Context, name string) error {
	if cloud, ok := s.Store.(*secretsmanager.Store); ok {
		return cloud.Reach(ctx, name)
	}
	return nil
}

// unreached says why nothing of what was asked for can be done, when that is so for every target: what is configured for AWS is
// a mistake, or nobody there knows or hears this program. It is said once then, before anything is tried; when only some are
// concerned, these fail when their turn comes. Each store is asked once.
func (w *rotation) unreached(p *process, targets []rotate.Target) error {
	if err := unconfigured(targets); err != nil {
		return err
	}
	asked := make(map[rotate.Store]error)
	var first error
	for _, t := range targets {
		store, ok := t.Store.(*anyStore)
		if !ok {
			continue // it is broken, and fails when its turn comes
		}
		err, known := asked[store]
		if !known {
			err = patiently(p.stderr, "asking the secret store "+t.StoreName, func() error { return store.reach(p.ctx, t.Shape.Names(t.Secret)[0]) })
			asked[store] = err
		}
		if p.ctx.Err() != nil {
			return exitError{exitFailure, "interrupted before anything was looked at"}
		}
		if err == nil {
			return nil
		}
		first = cmp.Or(first, err)
	}
	return first
}

// unconfigured gives the mistake in what is configured for AWS that keeps every target from its turn; nil when one is kept by none.
func unconfigured(targets []rotate.Target) error {
	var first error
	for _, t := range targets {
		err := misconfigured(t)
		if err == nil {
			return nil
		}
		first = cmp.Or(first, err)
	}
	return badAWS(first, regionInSpec)
}

// misconfigured gives the mistake that keeps a target from its turn; nil when there is none.
func misconfigured(t rotate.Target) error {
	var broken []error
	if store, ok := t.Store.(brokenStore); ok {
		broken = append(broken, store.err)
	}
	if authority, ok := t.Authority.(brokenAuthority); ok {
		broken = append(broken, authority.err)
	}
	if service, ok := t.Rollout.(brokenService); ok {
		broken = append(broken, service.err)
	}
	for _, err := range broken {
		if errors.Is(err, session.ErrConfig) {
			return err
		}
	}
	return nil
}

// storesAlone are targets of which nothing but the store will be asked.
func storesAlone(targets []rotate.Target) []rotate.Target {
	targets = slices.Clone(targets)
	for i := range targets {
		targets[i].Authority, targets[i].Rollout = nil, nil
	}
	return targets
}

// ofService are the targets that a service's name chooses; empty chooses all.
func ofService(targets []rotate.Target, service string) []rotate.Target {
	if service == "" {
		return targets
	}
	return slices.DeleteFunc(slices.Clone(targets), func(t rotate.Target) bool { return t.Workload.Name != service })
}

// patience is for how long nothing is said.
const patience = time.Second

// patiently says what is being done when that takes long.
func patiently(stderr io.Writer, what string, do func() error) error {
	waiting := newWaiting(stderr)
	defer waiting.stop()
	waiting.say(what)
	return do()
}

// waiting says what is being done to those who have waited for a while, and nothing where all goes fast.
type waiting struct {
	mu     sync.Mutex
	out    io.Writer
	what   string // not yet said
	speaks bool   // the while is over
	timer  *time.Timer
}

func newWaiting(out io.Writer) *waiting {
	w := &waiting{out: out}
	w.timer = time.AfterFunc(patience, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.out != nil {
			w.speaks = true
			w.tell()
		}
	})
	return w
}

// say notes what is being done now.
func (w *waiting) say(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.what = what
	if w.speaks {
		w.tell()
	}
}

func (w *waiting) tell() {
	if w.what != "" && w.out != nil {
		fmt.Fprintf(w.out, "countersign: %s ...\n", w.what)
		w.what = ""
	}
}

// stop ends it: nothing is written after it.
func (w *waiting) stop() {
	w.timer.Stop()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out = nil
}
