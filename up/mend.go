package up

import (
	"context"
	"fmt"
	"time"
)

// How long an instance that a restart has left down waits for the next try: the first time, and at most. Between the
// later ones its watcher has the time to go back to files that the proxy took.
const (
	firstMend = time.Second
	lastMend  = time.Minute
)

// mender brings an instance back that a restart has left down.
type mender struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when nothing more is tried
}

// mend begins to try to start an instance until it serves, or until somebody restarts it himself. Who calls it
// holds i.restarting, and has ended what mended the instance before.
func (r *run) mend(ctx context.Context, i *instance) {
	ctx, cancel := context.WithCancel(ctx)
	m := &mender{cancel: cancel, done: make(chan struct{})}
	i.mender.Store(m)
	r.mending.Go(func() {
		defer close(m.done)
		defer cancel()
		r.keepMending(ctx, i)
	})
}

// endMending ends the tries: who restarts the instance sees to the rest.
func (i *instance) endMending() {
	if m := i.mender.Swap(nil); m != nil {
		m.cancel()
		<-m.done
	}
}

// keepMending tries until the instance serves or ctx ends.
func (r *run) keepMending(ctx context.Context, i *instance) {
	said := ""
	for pause := firstMend; sleep(ctx, pause); pause = min(2*pause, lastMend) {
		if !i.restarting.TryLock() {
			return // somebody restarts it at this moment
		}
		err := r.tryAgain(ctx, i)
		serves := r.serves(ctx, i)
		i.restarting.Unlock()
		switch {
		case ctx.Err() != nil:
			return
		case serves:
			r.console.line("%s: serves again", i.name)
			return
		case err != nil && err.Error() != said:
			said = err.Error()
			r.console.line("%s: it still does not serve, and is tried again: %v", i.name, err)
		}
	}
}

// tryAgain starts an instance anew that does not come up by itself. One that only takes its time is left to it, and one
// that is well and of which the server does not know yet is not ended for that.
func (r *run) tryAgain(ctx context.Context, i *instance) error {
	if r.control.healthy(ctx, i.admin) || r.brokenSidecar(i) == nil {
		return nil
	}
	return r.replace(ctx, i)
}

// serves tells whether an instance is ready, whoever knows it.
func (r *run) serves(ctx context.Context, i *instance) bool {
	listening, _ := r.listening(ctx)
	return r.control.healthy(ctx, i.admin) && containsAll(listening[i.name], i.inbound)
}

// brokenSidecar is brokenOf without the application, which a restart leaves alone: how often that has died does
// not matter. What should run and was ended is broken, too.
func (r *run) brokenSidecar(i *instance) error {
	for _, c := range []*child{i.sidecar.Load(), i.proxy.Load()} {
		if c == nil {
			continue // it has none
		}
		if c.ended() {
			return fmt.Errorf("%s was not started again", c.name)
		}
		if err := r.brokenChild(i, c); err != nil {
			return err
		}
	}
	return nil
}
