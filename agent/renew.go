package agent

import (
	"context"
	"errors"
	"net"
	"time"

	"countersign.dev/api"
)

// contactTimeout is how long a certificate that was read from the disk waits for the server's clock
// to tell its age, before the machine's clock decides.
const contactTimeout = time.Minute

// renewLoop replaces the certificate in time, again and again. It returns an error only when the
// certificate that was on the disk has expired and the server refuses to give another.
func (a *Agent) renewLoop(ctx context.Context) error {
	tries := newBackoff(time.Second, 5*time.Minute)
	expiryTold := false
	for {
		timer := time.NewTimer(a.renewalWait())
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-a.wakeRenew: // the schedule has changed
			timer.Stop()
			continue
		case <-timer.C:
		}
		err := a.obtain(ctx)
		if err == nil {
			tries.reset()
			expiryTold = false
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if permanent(err) && !a.hasServed() {
			return errors.Join(a.expiry(), err)
		}
		expiryTold = a.renewalFailed(ctx, err, tries, expiryTold)
	}
}

// hasServed tells whether this process has held a certificate that was good: then it goes on, however
// hopeless it looks, because somebody may replace the token file.
func (a *Agent) hasServed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.everValid
}

// expiry is the error of an expired certificate, nil when it is good.
func (a *Agent) expiry() error {
	_, err := a.Identity()
	return err
}

// obtain gets the next certificate: by the one in hand, or by the token when that has expired.
func (a *Agent) obtain(ctx context.Context) error {
	have, err := a.current()
	if err != nil {
		return err
	}
	now, known := a.clock.now()
	a.mu.Lock()
	byToken := a.refusedOld || (known && have.lease.expired(now))
	a.refusedOld = false
	a.mu.Unlock()
	if byToken {
		err = a.enroll(ctx)
	} else {
		err = a.renew(ctx)
	}
	if err == nil {
		a.mu.Lock()
		a.renewals++
		a.mu.Unlock()
		return nil
	}
	if refusesOld(err) || (have.orphan && code(err) == api.CodeForbidden) {
		a.askTime(ctx, err)
		a.mu.Lock()
		a.refusedOld = !byToken && code(err) != ""
		a.mu.Unlock()
	}
	return err
}

// refusesOld tells whether the server does not accept the certificate that it was shown: it says so,
// or it ends the connection with an alert, or with one that was not heard.
func refusesOld(err error) bool {
	if c := code(err); c == api.CodeExpiredCert || c == api.CodeUnauthorized || c == api.CodeRevoked {
		return true
	}
	if errors.Is(err, errUnanswered) {
		return true
	}
	var remote *net.OpError // crypto/tls has no type of its own for the other side's alerts
	return errors.As(err, &remote) && remote.Op == "remote error"
}

// askTime asks for the server's clock without showing a certificate, after err: an alert does not say
// whether the certificate has expired, and the clock does.
func (a *Agent) askTime(ctx context.Context, err error) {
	if code(err) == "" {
		a.client.askTime(ctx)
	}
}

// renewalFailed notes a failure and plans the next try. It says the certificate's end once.
func (a *Agent) renewalFailed(ctx context.Context, err error, tries *backoff, expiryTold bool) bool {
	have, _ := a.current()
	now, _ := a.clock.now()
	tries.limit = have.lease.renewalLimit(now)
	if permanent(err) {
		tries.limit = time.Minute
	}
	delay := tries.next()
	a.mu.Lock()
	a.failures++
	a.retryAt = time.Now().Add(delay)
	if a.refusedOld { // what to do instead is known
		a.retryAt = time.Time{}
	}
	a.mu.Unlock()
	a.setProblem(problemCertificate, err.Error())
	a.log.WarnContext(ctx, "cannot renew the certificate; trying again", "error", err,
		"retryIn", delay.Round(time.Millisecond), "survives", have.lease.notAfter.Sub(now).Round(time.Second))
	expired := a.expiry()
	if expired != nil && !expiryTold {
		a.log.ErrorContext(ctx, "the certificate has expired; peers are refused until there is a new one", "error", expired)
	}
	return expired != nil
}

// renewalWait is the time until the next try to renew.
func (a *Agent) renewalWait() time.Duration {
	server, known := a.clock.now()
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	have := a.held
	wait := have.lease.wait(a.renewAfterNow(), now, server, known)
	if a.soonNow() || a.refusedOld {
		wait = 0
	}
	if !known {
		wait = max(wait, a.started.Add(contactTimeout).Sub(now))
	}
	return max(0, wait, a.soonAt.Sub(now), a.retryAt.Sub(now))
}

// renewAfterNow is the age to renew at. The caller holds mu.
func (a *Agent) renewAfterNow() time.Duration {
	if a.plan != nil {
		return time.Duration(a.plan.Certificate.RenewAfter)
	}
	return a.renewAfter
}

// soonNow tells whether the certificate has to be replaced whatever its age: the newest Plan wants
// another one, another issuing CA signs now, or its root is gone. A certificate that came back different
// from what was asked for is not asked for again until the server says something else. The caller holds
// mu.
func (a *Agent) soonNow() bool {
	want := a.wantedNow()
	return a.held.orphan || (!want.fits(a.held.identity.Certificate.Leaf) && want != a.tried)
}

// planChangesRenewal is called when a new Plan has come. When it makes a renewal due at once, it
// does so for every instance of the mesh, and they spread out. The caller holds mu.
func (a *Agent) planChangesRenewal(first bool) {
	if a.held == nil {
		return
	}
	server, known := a.clock.now()
	after := a.renewAfterNow()
	if !a.soonNow() && a.held.lease.wait(after, time.Now(), server, known) > 0 {
		a.soonAt = time.Time{}
		return
	}
	if !first && a.soonAt.IsZero() {
		most := maxSpread
		if !a.wantedNow().fitsIssuer(a.held.identity.Certificate.Leaf) {
			most = maxIssuerSpread
		}
		a.soonAt = time.Now().Add(a.held.lease.spread(after, most, random()))
	}
}
