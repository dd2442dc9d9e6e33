package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"countersign.dev/api"
	"countersign.dev/mesh"
)

const (
	// silence is how long the watch may be without an event before it counts as lost. The server
	// sends one every few seconds.
	silence = 20 * time.Second
	// After the loss of the server its agents come back within reconnectLimit of its return, which is
	// less than the time for which it forgives their absence.
	reconnectBase, reconnectLimit = 100 * time.Millisecond, 10 * time.Second
	// steady is how long a stream has to last to count as a success: a server that ends every stream
	// after its first event is not asked ten times a second.
	steady = 5 * time.Second
)

var (
	errNewIdentity = errors.New("there is a new certificate")
	errSilent      = errors.New("the server is silent")
	errOldServer   = errors.New("the server is asked again: the certificate that it showed on this connection is older than the roots that it sent")
)

// watchLoop keeps the stream of Plans open.
func (a *Agent) watchLoop(ctx context.Context) error {
	tries := newBackoff(reconnectBase, reconnectLimit)
	for {
		err := a.watchOnce(ctx, tries)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, errNewIdentity) {
			continue // at once: what runs over the old connection is over
		}
		if errors.Is(err, errOldServer) {
			if !pause(ctx, tries.next()) {
				return ctx.Err()
			}
			continue
		}
		a.lost(ctx, err)
		if refusesOld(err) {
			a.askTime(ctx, err)
			a.certificateRefused(err)
		}
		if !pause(ctx, tries.next()) {
			return ctx.Err()
		}
	}
}

// watchOnce opens the stream and follows it to its end, of which it returns the reason.
func (a *Agent) watchOnce(ctx context.Context, tries *backoff) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a.mu.Lock()
	a.dropWatch = cancel
	revision := a.watched
	a.mu.Unlock()

	opened := time.Now()
	watchdog := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer watchdog.Stop()
	body, chain, err := a.client.watch(ctx, api.WatchRequest{Instance: a.cfg.Instance, Revision: revision})
	if err != nil {
		return reason(ctx, err)
	}
	defer body.Close()
	events := newEventReader(body)
	for {
		e, err := events.next()
		if err != nil {
			return reason(ctx, err)
		}
		watchdog.Reset(silence)
		if time.Since(opened) >= steady {
			tries.reset()
		}
		a.observe(e.ServerTime)
		a.found(ctx)
		a.take(ctx, e, chain)
	}
}

// reason prefers why the stream was ended from here to how that looked.
func reason(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if errors.Is(err, io.EOF) {
		return errors.New("the server ended the stream")
	}
	return err
}

// take carries out one event. What cannot be used is told and leaves everything as it was.
func (a *Agent) take(ctx context.Context, e *event, chain []*x509.Certificate) {
	var bundleErr error
	if e.Bundle != "" {
		bundleErr = a.takeBundle(e.Bundle, chain)
		a.refused(ctx, problemBundle, "the trust bundle", bundleErr)
	}
	if e.CRL != "" { // after the bundle, whose roots sign some of them
		a.noteCRLs(ctx, e.CRL)
	}
	if !e.hasPlan() {
		a.offer(nil, e.Issuer)
		return
	}
	plan, err := parsePlan(e.Plan)
	if err == nil {
		err = checkPlan(plan, a.ID())
	}
	a.refused(ctx, problemPlan, "the Plan", err)
	if err != nil {
		plan = nil
	}
	a.offer(plan, e.Issuer)
	if bundleErr != nil {
		a.askAgain()
	}
}

// askAgain ends the watch and lets the next one, on a new connection, begin with everything. The server
// may have another certificate than when the connection was made, which the roots that it sent vouch for.
func (a *Agent) askAgain() {
	a.client.renew()
	a.mu.Lock()
	a.watched = 0
	drop := a.dropWatch
	a.mu.Unlock()
	if drop != nil {
		drop(errOldServer)
	}
}

// refused tells that something of the server's was not taken; with a nil error, that it was.
func (a *Agent) refused(ctx context.Context, about problem, what string, err error) {
	if err == nil {
		a.setProblem(about, "")
		return
	}
	a.setProblem(about, fmt.Sprintf("%s from the server is refused, and the one before stays in force: %v", what, err))
	a.log.ErrorContext(ctx, "refused what the server sent; what was in force before stays", "what", what, "error", err)
}

// offer makes a Plan the newest one, and notes which issuing CA signs; nil and "" leave what is known. Both
// change in one step: a renewal between them would ask for what nobody wants, and there would be a second.
func (a *Agent) offer(plan *mesh.Plan, issuer string) {
	a.mu.Lock()
	first := a.plan == nil
	sameIssuer := issuer == "" || issuer == a.issuer
	if plan == nil && sameIssuer {
		a.mu.Unlock()
		return
	}
	if !sameIssuer {
		a.issuer = issuer
	}
	if plan != nil {
		a.plan, a.planNew = plan, true
		a.watched = plan.Revision
	}
	a.planChangesRenewal(first)
	a.mu.Unlock()
	wake(a.wakeApply)
	wake(a.wakeRenew)
}

// applyLoop puts the newest Plan in force, and tries again when that fails: a port that is in use
// now may be free in a second. It never waits for the server.
func (a *Agent) applyLoop(ctx context.Context) error {
	tries := newBackoff(250*time.Millisecond, 15*time.Second)
	var tried *mesh.Plan
	for {
		a.mu.Lock()
		plan, isNew := a.plan, a.planNew
		a.mu.Unlock()
		var again <-chan time.Time
		if isNew {
			if plan != tried {
				tries.reset()
			}
			tried = plan
			if err := a.apply(ctx, plan); err != nil {
				again = time.After(tries.next())
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.wakeApply:
		case <-again:
		}
	}
}

// apply puts one Plan in force, keeps it and confirms it.
func (a *Agent) apply(ctx context.Context, plan *mesh.Plan) error {
	if !a.loosens(plan.Revocation) {
		a.takeRevocation(plan.Revocation)
	}
	if err := a.cfg.OnPlan(plan); err != nil {
		a.setProblem(problemPlan, fmt.Sprintf("revision %d of the Plan is not in force: %v", plan.Revision, err))
		a.log.ErrorContext(ctx, "cannot put a Plan in force; the one before stays, and it is tried again", "revision", plan.Revision, "error", err)
		return err
	}
	a.mu.Lock()
	a.inForce, a.planSave = plan, true
	if a.plan == plan {
		a.planNew = false
	}
	a.mu.Unlock()
	a.takeRevocation(plan.Revocation)
	a.setProblem(problemPlan, "")
	wake(a.wakeReport)
	a.saving.Lock()
	defer a.saving.Unlock()
	a.savePlan(plan)
	a.log.DebugContext(ctx, "a Plan is in force, and kept", "revision", plan.Revision)
	return nil
}

// found notes that the server answers.
func (a *Agent) found(ctx context.Context) {
	a.mu.Lock()
	was := a.connected
	a.connected = true
	if !was {
		a.retryAt = time.Time{} // a renewal that failed for want of a server is tried now
	}
	a.mu.Unlock()
	if was {
		return
	}
	a.setProblem(problemServer, "")
	a.log.InfoContext(ctx, "connected to the server", "server", a.cfg.Server.String())
	wake(a.wakeReport)
	wake(a.wakeRenew)
}

// lost notes that the server does not answer, and says it once.
func (a *Agent) lost(ctx context.Context, err error) {
	a.mu.Lock()
	was := a.connected
	a.connected = false
	known := a.problems[problemServer] != ""
	a.mu.Unlock()
	a.setProblem(problemServer, err.Error())
	if was || !known {
		a.log.WarnContext(ctx, "no word from the server; serving on with what is held", "server", a.cfg.Server.String(),
			"error", err, "survivesSeconds", a.Status().SurvivesSeconds)
		return
	}
	a.log.DebugContext(ctx, "still no word from the server", "error", err)
}

// certificateRefused lets the renewal begin at once when the server says that the certificate has
// expired, or its clock does.
func (a *Agent) certificateRefused(err error) {
	if c := code(err); c == api.CodeExpiredCert || c == api.CodeRevoked {
		a.mu.Lock()
		a.refusedOld = true
		a.mu.Unlock()
	}
	wake(a.wakeRenew)
}
