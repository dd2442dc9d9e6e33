package agent

import (
	"crypto/x509"
	"encoding/hex"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// changeRoot lets the fake's root change in order: the new one is told, then signs, and the issuing CA is
// told. It returns both.
func (r *rig) changeRoot(t *testing.T) (first, second *authority) {
	first, second = r.fake.ca, newAuthority(t, "second")
	r.fake.push(func() {
		r.fake.roots = []*x509.Certificate{first.root, second.root}
		r.fake.issuer = hex.EncodeToString(first.issuer.SubjectKeyId)
		r.fake.plan = testPlan(r.fake.who, 2, time.Hour, 40*time.Minute)
	})
	after(time.Minute)
	if n := len(r.fake.renewed()); n != 0 {
		t.Errorf("%d renewals while the issuing CA is the same", n)
	}
	r.fake.push(func() {
		r.fake.ca = second
		r.fake.issuer = hex.EncodeToString(second.issuer.SubjectKeyId)
		r.fake.plan = testPlan(r.fake.who, 3, time.Hour, 40*time.Minute)
	})
	return first, second
}

// TestAnotherIssuerSigns renews at once, but not everybody in the same moment, when another issuing CA
// signs; and once.
func TestAnotherIssuerSigns(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		defer r.close()
		after(time.Minute)
		told := time.Now()
		first, second := r.changeRoot(t)
		after(maxIssuerSpread + time.Second)
		identity, err := r.agent.Identity()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := mustBundle(t, second.root).Verify(parsedChain(identity.Certificate), x509.ExtKeyUsageServerAuth, time.Now()); err != nil {
			t.Errorf("the certificate in hand: %v", err)
		}
		renewed := r.fake.renewed()
		if len(renewed) != 1 || renewed[0].at.Sub(told) < time.Minute {
			t.Errorf("renewals %v after %s", renewed, told)
		}
		if got, want := r.fake.lastReport().Bundle, mustBundle(t, first.root, second.root).Digest(); got != want {
			t.Errorf("the report says that the bundle is %s, want %s", got, want)
		}
		after(30 * time.Minute)
		if n := len(r.fake.renewed()); n != 1 {
			t.Errorf("%d renewals", n)
		}
	})
}

// TestIssuerThatNeverSigns is told of an issuing CA that does not sign what it gets: that is no storm.
func TestIssuerThatNeverSigns(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.fake.issuer = "0123"
		r.start()
		defer r.close()
		after(30 * time.Minute)
		if n := len(r.fake.renewed()); n > 1 {
			t.Errorf("%d renewals in half an hour", n)
		}
		if p := r.fake.lastReport().Problem; p != "" {
			t.Errorf("problem %q", p)
		}
	})
}

// TestIssuerOfARefusedPlan renews by another issuing CA also when the Plan that came with it cannot be used:
// once, and not everybody in the same moment.
func TestIssuerOfARefusedPlan(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		defer r.close()
		after(time.Minute)
		r.fake.push(func() {
			r.fake.issuer = "0123"
			r.fake.plan = testPlan(r.fake.who, 2, time.Hour, 40*time.Minute)
			r.fake.plan.Version++
		})
		synctest.Wait()
		r.agent.mu.Lock()
		issuer, soon := r.agent.issuer, r.agent.soonAt
		r.agent.mu.Unlock()
		if issuer != "0123" || !soon.After(time.Now()) {
			t.Errorf("issuer %q, and the renewal is at %s; it is %s", issuer, soon, time.Now())
		}
		if revisions := r.inForce(); !slices.Equal(revisions, []uint64{1}) {
			t.Errorf("Plans in force: %v", revisions)
		}
		after(15 * time.Minute)
		if n := len(r.fake.renewed()); n != 1 {
			t.Errorf("%d renewals", n)
		}
	})
}

// TestRootRemovedOverAnOldConnection hears of the removal over a connection on which the server still has
// shown a certificate of the root that is removed: it asks again over another one.
func TestRootRemovedOverAnOldConnection(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		defer r.close()
		after(time.Minute)
		r.fake.set(func() { r.fake.shows = r.fake.ca })
		first, second := r.changeRoot(t)
		after(time.Minute)
		if n := len(r.fake.renewed()); n != 1 {
			t.Fatalf("%d renewals", n)
		}
		watches := r.fake.watched()
		r.fake.push(func() {
			r.fake.shows = nil
			r.fake.roots = []*x509.Certificate{second.root}
			r.fake.plan = testPlan(r.fake.who, 4, time.Hour, 40*time.Minute)
		})
		after(time.Minute)
		if hasRoot(rootsOf(t, r.agent), first.pin()) {
			t.Error("the first root is still trusted")
		}
		if status := r.agent.Status(); !status.Connected || status.Problem != "" {
			t.Errorf("status %+v", status)
		}
		if n := r.fake.watched() - watches; n < 1 || n > 10 {
			t.Errorf("the watch was opened %d times", n)
		}
	})
}

// TestSpread bounds the delay of a renewal that concerns everybody.
func TestSpread(t *testing.T) {
	now := time.Now()
	l := lease{obtained: now, issued: now, notAfter: now.Add(24 * time.Hour)}
	for _, random := range []float64{0, 0.5, 0.999} {
		if s := l.spread(17*time.Hour, maxIssuerSpread, random); s < 0 || s >= maxIssuerSpread {
			t.Errorf("%s for %v", s, random)
		}
	}
	short := lease{obtained: now, issued: now, notAfter: now.Add(10 * time.Second)}
	if s := short.spread(5*time.Second, maxIssuerSpread, 0.999); s > time.Second {
		t.Errorf("%s for a certificate of seconds", s)
	}
}
