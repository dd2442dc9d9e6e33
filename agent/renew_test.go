package agent

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

func stateOf(chain []*x509.Certificate) tls.ConnectionState {
	return tls.ConnectionState{HandshakeComplete: true, PeerCertificates: chain}
}

// shortLived lets certificates be renewed every 4 of 6 minutes.
func (r *rig) shortLived() {
	r.fake.ttl = 6 * time.Minute
	r.fake.plan = testPlan(r.fake.who, 1, 6*time.Minute, 4*time.Minute)
}

// TestRenewsInTime follows ten renewals.
func TestRenewsInTime(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.shortLived()
		r.start()
		defer r.close()
		after(time.Second)
		start := time.Now()
		after(40 * time.Minute)
		renewals := r.fake.renewed()
		if n := len(renewals); n < 10 || n > 11 {
			t.Fatalf("%d renewals in 40 minutes of 4 each", n)
		}
		last := start.Add(-time.Second)
		var keys []string
		var ages []time.Duration
		for _, renewal := range renewals {
			age := renewal.at.Sub(last)
			if age < 3*time.Minute+35*time.Second || age > 4*time.Minute+time.Second {
				t.Errorf("renewed at the age of %s", age)
			}
			ages = append(ages, age)
			keys = append(keys, renewal.key)
			last = renewal.at
		}
		slices.Sort(keys)
		if len(slices.Compact(keys)) != len(renewals) {
			t.Error("a key was used again")
		}
		if slices.Max(ages)-slices.Min(ages) < time.Second {
			t.Errorf("no jitter: %v", ages)
		}
		if n := r.agent.Gauges()["countersign.renewals_total"]; n != int64(len(renewals)) {
			t.Errorf("%d renewals are counted", n)
		}
		if status := r.agent.Status(); status.Problem != "" || !status.Connected {
			t.Errorf("status %+v", status)
		}
		report := r.fake.lastReport()
		if !report.LastRenewal.Equal(last.UTC()) {
			t.Errorf("last renewal %s, want %s", report.LastRenewal, last)
		}
		if n := r.identityChanges(); n != len(renewals)+1 {
			t.Errorf("OnIdentity was called %d times", n)
		}
		stored, err := mtls.LoadIdentity(stateFiles(t, r.dir))
		if err != nil || mtls.Serial(stored.Certificate.Leaf) != report.Serial {
			t.Errorf("on the disk: %v, want serial %s", err, report.Serial)
		}
	})
}

// TestClockSet sets the machine's clock about while certificates are renewed.
func TestClockSet(t *testing.T) {
	for name, jump := range map[string]time.Duration{"a year ahead": 365 * 24 * time.Hour, "a year back": -365 * 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.shortLived()
				r.start()
				defer r.close()
				after(time.Minute)
				r.set(func() { r.wall = jump })
				after(17 * time.Minute)
				if n := len(r.fake.renewed()); n < 4 || n > 5 {
					t.Errorf("%d renewals in 18 minutes of 4 each", n)
				}
				status := r.agent.Status()
				if !strings.Contains(status.Problem, "clock") || !strings.Contains(r.fake.lastReport().Problem, "clock") ||
					time.Duration(r.fake.lastReport().ClockOffset).Round(time.Minute) != jump {
					t.Errorf("status %+v", status)
				}
				if _, err := r.agent.Identity(); err != nil {
					t.Errorf("set by the clock: %v", err)
				}
				r.set(func() { r.wall = 0 })
				after(3 * time.Second)
				if status := r.agent.Status(); status.Problem != "" {
					t.Errorf("status %+v", status)
				}
			})
		})
	}
}

// TestClockSetWhileStopped proves that the machine's clock has no say about a certificate's age once
// the server has told the time.
func TestClockSetWhileStopped(t *testing.T) {
	for name, jump := range map[string]time.Duration{"an hour ahead": time.Hour, "ten hours back": -10 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.start()
				after(time.Minute)
				r.stop()
				r.set(func() { r.wall = jump })
				after(20 * time.Minute)
				r.start()
				defer r.close()
				after(13 * time.Minute) // 34 minutes old
				if n := len(r.fake.renewed()); n != 0 {
					t.Errorf("%d renewals before their time", n)
				}
				after(7 * time.Minute) // 41 minutes old
				if n := len(r.fake.renewed()); n != 1 {
					t.Errorf("%d renewals", n)
				}
			})
		})
	}
}

// TestSleepingMachine lets the server's clock run ahead, which is what a machine sees that has slept.
func TestSleepingMachine(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		defer r.close()
		after(5 * time.Minute)
		r.fake.set(func() { r.fake.ahead = 52 * time.Minute })
		r.set(func() { r.wall = 52 * time.Minute })
		after(10 * time.Second)
		if n := len(r.fake.renewed()); n != 1 {
			t.Errorf("%d renewals after the sleep, want one at once", n)
		}
		after(30 * time.Minute)
		if n := len(r.fake.renewed()); n != 1 {
			t.Errorf("%d renewals half an hour later", n)
		}
	})
}

// TestServerClockIsNoStorm gives the server a clock that disagrees with the dates that it writes.
func TestServerClockIsNoStorm(t *testing.T) {
	l := lease{obtained: time.Now(), issued: time.Now().Add(-55 * time.Minute), notAfter: time.Now().Add(5 * time.Minute)}
	now := l.obtained
	if wait := l.wait(40*time.Minute, now, time.Now(), true); wait != 4*time.Minute {
		t.Errorf("a certificate that came late is renewed after %s, want a tenth of its renewal age", wait)
	}
	if wait := l.wait(40*time.Minute, now, time.Now(), false); wait != 40*time.Minute {
		t.Errorf("without the server's clock: %s", wait)
	}
}

func TestLease(t *testing.T) {
	issued := time.Now()
	l := lease{obtained: issued, issued: issued, notAfter: issued.Add(time.Hour)}
	for _, c := range []struct {
		renewAfter time.Duration
		jitter     float64
		want       time.Duration
	}{
		{40 * time.Minute, 0, 40 * time.Minute},
		{40 * time.Minute, 0.5, 38 * time.Minute},
		{40 * time.Minute, 0.999999999, 36 * time.Minute},
		{2 * time.Hour, 0, time.Hour / 7 * 5}, // this certificate does not live to see it
		{0, 0, time.Hour / 7 * 5},
	} {
		l.jitter = c.jitter
		if got := l.renewalAge(c.renewAfter); got.Round(time.Second) != c.want.Round(time.Second) {
			t.Errorf("renewalAge(%s), jitter %g: %s, want %s", c.renewAfter, c.jitter, got, c.want)
		}
		if l.renewalAge(c.renewAfter) >= l.lifetime() {
			t.Error("the renewal comes after the end")
		}
	}
	for left, want := range map[time.Duration]time.Duration{
		time.Hour: 5 * time.Minute, 8 * time.Minute: time.Minute, 2 * time.Second: time.Second, -time.Hour: 15 * time.Second,
	} {
		if got := l.renewalLimit(l.notAfter.Add(-left)); got != want {
			t.Errorf("the longest delay with %s left: %s, want %s", left, got, want)
		}
	}
	for range 100 {
		if s := l.spread(10*time.Second, maxSpread, random()); s < 0 || s > time.Second {
			t.Errorf("spread %s of a renewal after 10s", s)
		}
	}
}

func TestBackoff(t *testing.T) {
	b := newBackoff(100*time.Millisecond, time.Second)
	for round := range 2 {
		for i, full := range []time.Duration{100, 200, 400, 800, 1000, 1000, 1000} {
			full *= time.Millisecond
			if d := b.next(); d < full/2 || d > full {
				t.Errorf("round %d, try %d: %s, want %s to %s", round, i, d, full/2, full)
			}
		}
		b.reset()
	}
	b.failures = 1 << 40 // years later
	if d := b.next(); d > time.Second {
		t.Errorf("after many failures: %s", d)
	}
}

// TestRetriesRenewal lets renewals fail for a while.
func TestRetriesRenewal(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.fake.fail[api.PathRenew] = &api.Error{Code: api.CodeNotRecorded}
		r.start()
		defer r.close()
		after(50 * time.Minute)
		failures := r.agent.Gauges()["countersign.renewal_failures_total"]
		if failures < 8 || failures > 40 {
			t.Errorf("%d failures in ten minutes", failures)
		}
		if p := r.agent.Status().Problem; !strings.Contains(p, "not_recorded") {
			t.Errorf("problem %q", p)
		}
		r.fake.set(func() { delete(r.fake.fail, api.PathRenew) })
		after(9 * time.Minute)
		if n := len(r.fake.renewed()); n != 1 {
			t.Errorf("%d renewals", n)
		}
		if status := r.agent.Status(); status.Problem != "" {
			t.Errorf("status %+v", status)
		}
	})
}

// TestRenewsWhenTheServerReturns does not wait out a back-off of minutes.
func TestRenewsWhenTheServerReturns(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.fake.ttl = 168 * time.Hour
		r.fake.plan = testPlan(r.fake.who, 1, 168*time.Hour, 2*time.Hour)
		r.start()
		defer r.close()
		after(90 * time.Minute)
		r.net.setDown(true)
		after(2 * time.Hour)
		r.net.setDown(false)
		after(reconnectLimit + time.Second)
		if n := len(r.fake.renewed()); n != 1 {
			t.Errorf("%d renewals", n)
		}
	})
}

// TestPlanChangesTheSchedule shortens and lengthens renewAfter under a certificate.
func TestPlanChangesTheSchedule(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		defer r.close()
		after(10 * time.Minute)
		r.fake.push(func() { r.fake.plan = testPlan(r.fake.who, 2, time.Hour, 20*time.Minute) })
		after(time.Second)
		if n := len(r.fake.renewed()); n != 0 {
			t.Fatalf("%d renewals before 20 minutes", n)
		}
		after(10 * time.Minute)
		if n := len(r.fake.renewed()); n != 1 {
			t.Fatalf("%d renewals after 20 minutes", n)
		}
		// Beyond the life of the certificate in hand.
		r.fake.push(func() { r.fake.plan = testPlan(r.fake.who, 3, 168*time.Hour, 120*time.Hour) })
		after(50 * time.Minute)
		if n := len(r.fake.renewed()); n != 2 {
			t.Fatalf("%d renewals: the old certificate would have ended", n)
		}
		// What is due at once is done within the spread, and once.
		r.fake.push(func() { r.fake.plan = testPlan(r.fake.who, 4, time.Hour, time.Minute) })
		after(maxSpread + time.Second)
		if n := len(r.fake.renewed()); n != 3 {
			t.Fatalf("%d renewals", n)
		}
		after(30 * time.Second)
		if n := len(r.fake.renewed()); n != 3 {
			t.Fatalf("%d renewals", n)
		}
	})
}

// TestPlansEverySecond does not push a renewal that is due ahead of itself.
func TestPlansEverySecond(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.fake.ttl = time.Minute
		r.fake.plan = testPlan(r.fake.who, 1, time.Minute, 20*time.Second)
		r.start()
		defer r.close()
		for i := range 60 {
			after(time.Second)
			r.fake.push(func() { r.fake.plan = testPlan(r.fake.who, uint64(2+i), time.Minute, 20*time.Second) })
		}
		after(time.Second)
		if n := len(r.fake.renewed()); n != 3 {
			t.Errorf("%d renewals in a minute of 20 seconds each", n)
		}
		if got := r.inForce(); got[len(got)-1] != 61 {
			t.Errorf("in force: %v", got)
		}
	})
}

// TestPlanWantsAnotherCertificate changes names and key type.
func TestPlanWantsAnotherCertificate(t *testing.T) {
	for _, key := range []mesh.KeyType{mesh.ECDSAP384, mesh.Ed25519, mesh.RSA2048} {
		t.Run(string(key), func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.fake.plan.Certificate.Key = key
				r.start()
				defer r.close()
				after(time.Second)
				if n := len(r.fake.renewed()); n != 1 {
					t.Fatalf("%d renewals after a first Plan that wants another key", n)
				}
				identity, err := r.agent.Identity()
				if err != nil || keyTypeOf(identity.Certificate.Leaf.PublicKey) != key {
					t.Errorf("key type %s, %v", keyTypeOf(identity.Certificate.Leaf.PublicKey), err)
				}
				r.fake.push(func() {
					plan := testPlan(r.fake.who, 2, time.Hour, 40*time.Minute)
					plan.Certificate.Key = key
					plan.Certificate.DNSNames = append(plan.Certificate.DNSNames, "more.example.com")
					r.fake.plan = plan
				})
				after(maxSpread)
				identity, err = r.agent.Identity()
				if err != nil || !slices.Contains(identity.Certificate.Leaf.DNSNames, "more.example.com") {
					t.Errorf("names %v, %v", identity.Certificate.Leaf.DNSNames, err)
				}
				if n := len(r.fake.renewed()); n != 2 {
					t.Errorf("%d renewals", n)
				}
			})
		})
	}
}

// TestCertificateThatNeverFits is asked for once, not for ever.
func TestCertificateThatNeverFits(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.fake.names = []string{"colorteller"}
		r.start()
		defer r.close()
		after(30 * time.Minute)
		if n := len(r.fake.renewed()); n > 1 {
			t.Errorf("%d renewals in half an hour", n)
		}
		if p := r.fake.lastReport().Problem; !strings.Contains(p, "other names or another kind of key") {
			t.Errorf("problem %q", p)
		}
		after(15 * time.Minute)
		if n := len(r.fake.renewed()); n < 1 || n > 2 {
			t.Errorf("%d renewals: the usual one did not come", n)
		}
	})
}

// TestRootRotation adds a root, lets the server change to it, and takes the old one away.
func TestRootRotation(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		after(time.Minute)
		first, second := r.fake.ca, newAuthority(t, "second")
		r.fake.push(func() {
			r.fake.roots = []*x509.Certificate{first.root, second.root}
			r.fake.plan = testPlan(r.fake.who, 2, time.Hour, 40*time.Minute)
		})
		after(time.Second)
		if !hasRoot(rootsOf(t, r.agent), second.pin()) || !hasRoot(rootsOf(t, r.agent), first.pin()) {
			t.Error("the second root is not in the bundle")
		}
		if n := r.identityChanges(); n != 2 {
			t.Errorf("OnIdentity was called %d times", n)
		}
		r.fake.push(func() { r.fake.ca = second }) // issues and serves from now on
		after(41 * time.Minute)
		if n := len(r.fake.renewed()); n != 1 || !r.agent.Status().Connected {
			t.Fatalf("%d renewals by the second root, status %+v", n, r.agent.Status())
		}
		r.fake.push(func() {
			r.fake.roots = []*x509.Certificate{second.root}
			r.fake.plan = testPlan(r.fake.who, 3, time.Hour, 40*time.Minute)
		})
		after(time.Second)
		if hasRoot(rootsOf(t, r.agent), first.pin()) {
			t.Error("the first root is still in the bundle")
		}
		r.stop()

		// The deployment may still hand over the old pin, or the new one.
		r.start()
		after(time.Second)
		if status := r.agent.Status(); !status.Connected || hasRoot(rootsOf(t, r.agent), first.pin()) {
			t.Errorf("status %+v", status)
		}
		r.stop()
		cfg := r.config()
		cfg.Pin = second.pin()
		agent, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		r.run(agent)
		after(time.Second)
		if status := r.agent.Status(); !status.Connected || r.fake.enrolled() != 1 {
			t.Errorf("status %+v", status)
		}
		r.close()
	})
}

// TestOwnRootRemoved takes the root of everybody's certificates away at once.
func TestOwnRootRemoved(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		defer r.close()
		after(time.Minute)
		first, second := r.fake.ca, newAuthority(t, "second")
		r.fake.push(func() {
			r.fake.roots = []*x509.Certificate{first.root, second.root}
			r.fake.plan = testPlan(r.fake.who, 2, time.Hour, 40*time.Minute)
		})
		after(time.Second)
		r.fake.set(func() { r.fake.ca = second })
		r.net.setDown(true)
		r.net.setDown(false)
		after(reconnectLimit)
		r.fake.push(func() {
			r.fake.roots = []*x509.Certificate{second.root}
			r.fake.plan = testPlan(r.fake.who, 3, time.Hour, 40*time.Minute)
			r.fake.tokens["new-token"] = r.fake.who
			r.writeToken("new-token")
		})
		after(time.Minute)
		if hasRoot(rootsOf(t, r.agent), first.pin()) {
			t.Error("the first root is still trusted")
		}
		identity, err := r.agent.Identity()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := mustBundle(t, second.root).Verify(parsedChain(identity.Certificate), x509.ExtKeyUsageServerAuth, time.Now()); err != nil {
			t.Errorf("the certificate in hand: %v", err)
		}
		if status := r.agent.Status(); !status.Connected || status.Problem != "" {
			t.Errorf("status %+v", status)
		}
	})
}

func TestRefusesBundles(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.start()
		defer r.close()
		after(time.Minute)
		r.fake.push(func() {
			r.fake.roots = []*x509.Certificate{newAuthority(t, "second").root} // not the server's own
			r.fake.plan = testPlan(r.fake.who, 2, time.Hour, 40*time.Minute)
		})
		after(time.Second)
		if !hasRoot(rootsOf(t, r.agent), r.fake.ca.pin()) {
			t.Error("the agent took a bundle under which it would not trust the server")
		}
		if p := r.agent.Status().Problem; !strings.Contains(p, "the server itself would not be trusted") {
			t.Errorf("problem %q", p)
		}
	})
}

func rootsOf(t testing.TB, a *Agent) []*x509.Certificate {
	t.Helper()
	identity, err := a.Identity()
	if err != nil {
		t.Error(err)
		return nil
	}
	return identity.Bundle.Roots()
}
