package agent

import (
	"crypto/x509"
	"time"

	"countersign.dev/issue"
)

const (
	// jitterFraction is the part of renewAfter in which renewals are spread: each certificate is
	// renewed at an age that is drawn from the last tenth before renewAfter. Renewals are early, not
	// late, so that renewAfter stays a bound and jitter can never reach the expiry.
	jitterFraction = 0.1
	// maxSpread bounds the random delay before a renewal that something made due for every
	// instance at once: a new Plan.
	maxSpread = 3 * time.Second
	// maxIssuerSpread is the same for another issuing CA, which concerns every instance of the mesh.
	maxIssuerSpread = 30 * time.Second
)

// lease is what the schedule knows of the certificate in hand. It is not changed after it was made.
type lease struct {
	// obtained is when the certificate had age 0, on this process's monotonic clock.
	obtained time.Time
	// issued and notAfter are on the server's clock.
	issued, notAfter time.Time
	// jitter in [0,1) is drawn once for a certificate, so that asking again does not draw again.
	jitter float64
}

// leaseOf dates a certificate from what is written in it. The time now of the best clock there is
// gives its age; a clock that is off can make it no younger than new and no older than its life.
func leaseOf(leaf *x509.Certificate, now time.Time, jitter float64) lease {
	l := lease{issued: leaf.NotBefore.Add(issue.ClockAllowance), notAfter: leaf.NotAfter, jitter: jitter}
	age := min(max(0, now.Sub(l.issued)), max(0, l.lifetime()))
	l.obtained = time.Now().Add(-age)
	return l
}

// lifetime is how long the certificate is good from its issue.
func (l lease) lifetime() time.Duration { return l.notAfter.Sub(l.issued) }

// age is the certificate's at the time now of the monotonic clock.
func (l lease) age(now time.Time) time.Duration { return now.Sub(l.obtained) }

// renewalAge is the age at which the certificate is to be renewed when the Plan says renewAfter. A
// renewAfter that this certificate does not live to see (the ttl was raised since, or the issuer
// ends soon) is replaced by the default share of its life.
func (l lease) renewalAge(renewAfter time.Duration) time.Duration {
	if life := l.lifetime(); renewAfter <= 0 || renewAfter >= life {
		renewAfter = life / 7 * 5
	}
	return renewAfter - time.Duration(jitterFraction*l.jitter*float64(renewAfter))
}

// wait is the time until the renewal is due, 0 when it is.
//
// The age is counted on the monotonic clock, which nobody can set. It stands still while a machine
// sleeps, so the server's clock is a second opinion: when by that clock half of the reserve
// between renewal and expiry is used up, the renewal is due, whatever the monotonic clock says. A
// server whose clock disagrees with the dates that it writes cannot make that a storm: a
// certificate is kept for a tenth of its renewal age at least.
func (l lease) wait(renewAfter time.Duration, now, server time.Time, serverKnown bool) time.Duration {
	at := l.renewalAge(renewAfter)
	left := max(0, at-l.age(now))
	if serverKnown {
		late := l.issued.Add(at + (l.lifetime()-at)/2)
		if !server.Before(late) {
			left = min(left, max(0, at/10-l.age(now)))
		}
	}
	return left
}

// expired tells whether the certificate's end has passed at the time server of the server's clock.
func (l lease) expired(server time.Time) bool { return !server.Before(l.notAfter) }

// spread is the random delay, less than most, before a renewal that news made due at once.
func (l lease) spread(renewAfter, most time.Duration, random float64) time.Duration {
	return time.Duration(random * float64(min(most, l.renewalAge(renewAfter)/10)))
}

// renewalLimit is the longest delay between two tries to renew: an eighth of the time that is left,
// so that there are always several tries before the end. After it there is no hurry to count.
func (l lease) renewalLimit(server time.Time) time.Duration {
	if l.expired(server) {
		return 15 * time.Second
	}
	return min(5*time.Minute, max(time.Second, l.notAfter.Sub(server)/8))
}
