package acmfake

import (
	"encoding/json"
	"errors"
	"time"
)

// The times of ACM's own work on a private certificate.
const (
	// validity is what ACM gives a private certificate: 13 months.
	validity = 395 * 24 * time.Hour
	// renewsBefore is when ACM renews an exported one by itself.
	renewsBefore = 60 * 24 * time.Hour
	// warnsBefore is when it begins to say that one approaches its end.
	warnsBefore = 45 * 24 * time.Hour
)

const pendingRenewal = "PENDING_AUTO_RENEWAL"

// settle does what ACM does between two looks: it issues what was requested, and renews.
func (f *Fake) settle(c *certificate) {
	if c.status != "PENDING_VALIDATION" && c.renewal != pendingRenewal {
		return
	}
	if c.pending > 0 {
		c.pending--
		return
	}
	first := c.version == nil
	v, err := f.issue(c)
	var failure *Failure
	switch {
	case err == nil:
	case errors.As(err, &failure):
	default:
		failure = &Failure{Reason: "PCA_REQUEST_FAILED"}
	}
	c.renewed = f.o.Now()
	switch {
	case failure != nil && first:
		c.status, c.failure = "FAILED", failure.Reason
	case failure != nil:
		c.renewal, c.renewalFailure = "FAILED", failure.Reason
	case first:
		c.version, c.status = v, "ISSUED"
		f.available(c, "ISSUANCE")
	default:
		c.version, c.renewal, c.renewalFailure, c.exported = v, "SUCCESS", "", false
		f.available(c, "RENEWAL")
	}
}

// issue has the CA sign a key of ACM's.
func (f *Fake) issue(c *certificate) (*version, error) {
	if c.version != nil && f.denied != "" {
		return nil, &Failure{Reason: f.denied}
	}
	if f.o.Issuer == nil {
		return nil, &Failure{Reason: "PCA_RESOURCE_NOT_FOUND"}
	}
	now := f.o.Now()
	return newVersion(f.o.Issuer, c, now)
}

func (f *Fake) beginRenewal(c *certificate) {
	c.renewal, c.renewalFailure, c.pending, c.renewed = pendingRenewal, "", f.o.PendingPolls, f.o.Now()
}

// Tick does what ACM does every day by the clock: it renews what was exported and ends within 60 days, says of what ends
// within 45 days that it does, and marks what has ended.
func (f *Fake) Tick() {
	f.mu.Lock()
	now := f.o.Now()
	for _, arn := range f.order {
		c := f.certs[arn]
		if c == nil || c.version == nil || c.status != "ISSUED" {
			continue
		}
		left := c.version.leaf.NotAfter.Sub(now)
		if left <= 0 {
			c.status = "EXPIRED"
			continue
		}
		if left <= renewsBefore && c.eligibility() == "ELIGIBLE" {
			if c.renewal != pendingRenewal {
				f.beginRenewal(c)
			}
			c.pending = 0
			f.settle(c)
			left = c.version.leaf.NotAfter.Sub(now)
		}
		if left <= warnsBefore {
			f.approaching(c, left)
		}
	}
	events := f.events
	f.events = nil
	f.mu.Unlock()
	for _, event := range events {
		if f.o.Events != nil {
			f.o.Events(event)
		}
	}
}

// Deny lets renewals fail with a reason such as PCA_ACCESS_DENIED, which is what a CA answers that has not granted ACM the
// permission (CreatePermission); empty ends it.
func (f *Fake) Deny(reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.denied = reason
}

// Revoke marks a certificate as revoked.
func (f *Fake) Revoke(arn string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.certs[arn]; c != nil {
		c.status, c.revoked = "REVOKED", f.o.Now()
	}
}

// ARNs are those of all certificates, as they were made.
func (f *Fake) ARNs() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for _, arn := range f.order {
		if f.certs[arn] != nil {
			all = append(all, arn)
		}
	}
	return all
}

// available is the event "ACM Certificate Available".
func (f *Fake) available(c *certificate, action string) {
	leaf := c.version.leaf
	f.event("ACM Certificate Available", c, map[string]any{
		"Action": action, "CertificateType": "PRIVATE", "CommonName": c.domain, "CertificateCreatedDate": c.created.UTC().Format(time.RFC3339),
		"CertificateExpirationDate": leaf.NotAfter.UTC().Format(time.RFC3339), "DaysToExpiry": int(leaf.NotAfter.Sub(f.o.Now()).Hours() / 24),
		"InUse": false, "Exported": c.exported,
	})
}

// approaching is the event "ACM Certificate Approaching Expiration".
func (f *Fake) approaching(c *certificate, left time.Duration) {
	f.event("ACM Certificate Approaching Expiration", c, map[string]any{"DaysToExpiry": int(left.Hours() / 24), "CommonName": c.domain})
}

// event keeps an event until the lock is let go of.
func (f *Fake) event(kind string, c *certificate, detail map[string]any) {
	text, err := json.Marshal(map[string]any{
		"version": "0", "id": newUUID(), "detail-type": kind, "source": "aws.acm", "account": f.o.Account, "time": f.o.Now().UTC().Format(time.RFC3339),
		"region": f.o.Region, "resources": []string{c.arn}, "detail": detail,
	})
	if err != nil {
		panic("acmfake: an event without JSON: " + err.Error())
	}
	f.events = append(f.events, text)
}
