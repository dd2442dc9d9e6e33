package secretsmanager

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign.dev/secret"
)

func take(t *testing.T, s *Store, name, holder string, ttl time.Duration) *Lease {
	t.Helper()
	lease, err := s.Lease(t.Context(), name, holder, ttl)
	if err != nil {
		t.Fatal(err)
	}
	return lease
}

const holder = "countersign rotate on ip-10-0-0-1.ec2.internal, pid 7, user nobody, place 0123456789ab"

func TestLease(t *testing.T) {
	s, _, name := start(t)
	if who, _, err := s.Holder(t.Context(), name); who != "" || err != nil {
		t.Errorf("held by %q, %v", who, err)
	}
	first := take(t, s, name, holder, time.Minute)
	_, err := s.Lease(t.Context(), name, "another", time.Minute)
	other, ok := errors.AsType[*secret.HeldError](err)
	if !ok || other.Holder != holder || other.Name != name || !other.Until.Equal(first.Until().Add(clockSkew)) {
		t.Fatalf("a lease that is held: %v", err)
	}
	if who, until, err := s.Holder(t.Context(), name); who != holder || !until.Equal(other.Until) || err != nil {
		t.Errorf("held by %q until %s, %v", who, until, err)
	}
	if _, err := s.Lease(t.Context(), name+"x", "another", time.Minute); err != nil {
		t.Errorf("a lease of another name: %v", err)
	}
	if err := first.Renew(t.Context()); err != nil {
		t.Error(err)
	}
	if err := first.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := first.Renew(t.Context()); !errors.Is(err, secret.ErrLeaseLost) {
		t.Errorf("renewing what was given back: %v", err)
	}
	if err := first.Release(t.Context()); err != nil {
		t.Errorf("giving it back twice: %v", err)
	}
	for range 3 { // the label goes to and fro
		if err := take(t, s, name, "another", time.Minute).Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// It lies beside the secret, and nobody who reads sees anything of it.
	if _, err := s.Versions(t.Context(), name); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("the lease has made the secret itself: %v", err)
	}
	for id := range staged(t, s, name+leaseSuffix) {
		if id != placeholderID {
			t.Errorf("a carrier of the lease is listed: %s", id)
		}
	}
	if _, _, err := s.Read(t.Context(), name+leaseSuffix, ""); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("something is current in it: %v", err)
	}
}

func TestEndLease(t *testing.T) {
	s, _, name := start(t)
	if err := s.EndLease(t.Context(), name, holder); err != nil {
		t.Errorf("of what is not there: %v", err)
	}
	lease := take(t, s, name, holder, time.Hour)
	if err := s.EndLease(t.Context(), name, "another"); err != nil {
		t.Fatal(err)
	}
	if err := lease.Renew(t.Context()); err != nil {
		t.Fatalf("somebody else's end has ended it: %v", err)
	}
	if err := s.EndLease(t.Context(), name, holder); err != nil {
		t.Fatal(err)
	}
	next := take(t, s, name, "another", time.Hour)
	if err := lease.Renew(t.Context()); !errors.Is(err, secret.ErrLeaseLost) || !strings.Contains(err.Error(), "another has it now") {
		t.Errorf("renewing what was ended: %v", err)
	}
	if err := lease.Release(t.Context()); err != nil {
		t.Error(err)
	}
	if err := next.Renew(t.Context()); err != nil {
		t.Errorf("what one gave back that has it no more has hurt the next: %v", err)
	}
}

// renewed takes a lease and renews it until it is longer. A machine that stood still for longer than a lease is given another one.
func renewed(t *testing.T, s *Store, name string) (lease *Lease, first time.Time) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		if lease == nil {
			lease = take(t, s, name, "one", 3*time.Second)
			first = lease.Until()
		}
		err := lease.Renew(t.Context())
		switch {
		case errors.Is(err, secret.ErrLeaseLost):
			if err := lease.Release(t.Context()); err != nil {
				t.Fatal(err)
			}
			lease = nil
		case err != nil:
			t.Fatal(err)
		case lease.Until().After(first):
			return lease, first
		}
		if err := pause(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("a lease cannot be renewed within a minute")
	return nil, first
}

// A lease is renewed with no new version, and a dead one's ends two seconds after its time.
func TestLeaseRunsOutAndIsRenewed(t *testing.T) {
	t.Parallel()
	s, cloud, name := start(t)
	lease, first := renewed(t, s, name)
	if !lease.Until().After(first) {
		t.Fatal("renewing does not make it longer")
	}
	puts := 0
	for _, call := range cloud.Calls() {
		if call.Action == "secretsmanager:PutSecretValue" {
			puts++
		}
	}
	if puts != 2 {
		t.Errorf("%d versions were written, want those of the two carriers", puts)
	}
	now, err := s.describe(t.Context(), name+leaseSuffix)
	if err != nil || len(now[boardID]) > 3 {
		t.Errorf("on the board is %v, %v", now[boardID], err)
	}
	var next *Lease
	for deadline := time.Now().Add(time.Minute); next == nil; {
		var other *secret.HeldError
		next, err = s.Lease(t.Context(), name, "two", time.Minute)
		if err != nil && (!errors.As(err, &other) || time.Now().After(deadline)) {
			t.Fatal(err)
		}
		if err := pause(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if time.Now().Before(lease.Until()) {
		t.Errorf("it was taken before %s", lease.Until())
	}
	if err := lease.Renew(t.Context()); !errors.Is(err, secret.ErrLeaseLost) {
		t.Errorf("renewing what ran out: %v", err)
	}
	if now, err = s.describe(t.Context(), name+leaseSuffix); err != nil || len(now[boardID])+len(now[otherID]) != 4 {
		t.Errorf("labels were left: %v, %v", now, err)
	}
}

// At every moment one at most has it, however many want it.
func TestLeaseIsExclusive(t *testing.T) {
	s, _, name := start(t)
	var inside, taken atomic.Int32
	var group sync.WaitGroup
	deadline := time.Now().Add(20 * time.Second)
	const want, racers = 6, 10
	for i := range racers {
		group.Go(func() {
			for taken.Load() < want && time.Now().Before(deadline) {
				lease, err := s.Lease(t.Context(), name, fmt.Sprint("racer ", i), time.Minute)
				if err != nil {
					if !errors.Is(err, secret.ErrHeld) && !errors.Is(err, errContended) {
						t.Error(err)
					}
					continue
				}
				if inside.Add(1) != 1 {
					t.Error("two have the lease")
				}
				taken.Add(1)
				if err := lease.Renew(t.Context()); err != nil {
					t.Error(err)
				}
				inside.Add(-1)
				if err := lease.Release(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if taken.Load() < want {
		t.Errorf("it was taken %d times only", taken.Load())
	}
}

// One who died in the middle of taking it keeps nobody from it for longer than it asked for.
func TestLeaseOfOneWhoDied(t *testing.T) {
	s, _, name := start(t)
	take(t, s, name, "one", time.Minute).Release(t.Context()) //nolint:errcheck // looked at elsewhere
	dead := &Lease{store: s, name: name, holder: "dead", word: "WORD"}
	// It had written its name, and not moved the label.
	if err := s.move(t.Context(), name+leaseSuffix, dead.labelUntil(time.Now().Add(time.Hour)), boardID, ""); err != nil {
		t.Fatal(err)
	}
	_, err := s.Lease(t.Context(), name, "two", time.Minute)
	if other, ok := errors.AsType[*secret.HeldError](err); !ok || other.Holder != "dead" {
		t.Fatalf("it may be alive: %v", err)
	}
	if text := err.Error(); !strings.Contains(text, "its clock was wrong, or this machine's is") || !strings.Contains(text, "--remove-from-version-id "+boardID) {
		t.Errorf("it does not say what to do about an end that is far away: %v", err)
	}
	if err := s.EndLease(t.Context(), name, "dead"); err != nil {
		t.Fatal(err)
	}
	// Its time has passed, and it had moved the label.
	if err := s.move(t.Context(), name+leaseSuffix, dead.labelUntil(time.Now().Add(-time.Hour)), boardID, ""); err != nil {
		t.Fatal(err)
	}
	now, err := s.describe(t.Context(), name+leaseSuffix)
	if err != nil {
		t.Fatal(err)
	}
	from, to := now.with(leaseLabel), otherID
	if from == otherID {
		to = boardID
	}
	if err := s.move(t.Context(), name+leaseSuffix, leaseLabel, to, from); err != nil {
		t.Fatal(err)
	}
	take(t, s, name, "two", time.Minute)
	if now, err = s.describe(t.Context(), name+leaseSuffix); err != nil || len(now[boardID])+len(now[otherID]) != 4 {
		t.Errorf("what the dead one left is still there: %v, %v", now, err)
	}
}

// One that looked before the label went to and fro has no chance against who has the lease.
func TestLeaseAgainstAnOldLook(t *testing.T) {
	t.Parallel()
	s, _, name := start(t)
	take(t, s, name, "one", time.Minute).Release(t.Context()) //nolint:errcheck // looked at elsewhere
	holds := take(t, s, name, "two", time.Minute)
	late := &Lease{store: s, name: name, holder: "late", ttl: time.Minute, word: "LATE"}
	until := time.Now().Add(time.Minute)
	if err := s.move(t.Context(), name+leaseSuffix, late.labelUntil(until), boardID, ""); err != nil {
		t.Fatal(err)
	}
	err := late.alone(t.Context(), until)
	if other, ok := errors.AsType[*secret.HeldError](err); !ok || other.Holder != "two" {
		t.Errorf("the late one is told %v", err)
	}
	if err := holds.Renew(t.Context()); err != nil {
		t.Errorf("the late one has hurt the holder: %v", err)
	}
}

func TestLabelsTakenAwayByHand(t *testing.T) {
	s, _, name := start(t)
	take(t, s, name, "one", time.Minute).Release(t.Context()) //nolint:errcheck // looked at elsewhere
	now, err := s.describe(t.Context(), name+leaseSuffix)
	if err != nil {
		t.Fatal(err)
	}
	for _, carrier := range []string{boardID, otherID} {
		for _, label := range now[carrier] {
			if err := s.detach(t.Context(), name+leaseSuffix, label, carrier); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := take(t, s, name, "two", time.Minute).Renew(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestKeeper(t *testing.T) {
	s, _, name := start(t)
	keeper := s.Keeper()
	lease, err := keeper.Lease(t.Context(), name, "one", time.Minute)
	if err != nil || lease.Until().IsZero() {
		t.Fatal(err)
	}
	if lease, err = keeper.Lease(t.Context(), name, "two", time.Minute); lease != nil || !errors.Is(err, secret.ErrHeld) {
		t.Errorf("%v, %v", lease, err)
	}
}
