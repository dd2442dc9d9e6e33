package filestore

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"countersign.dev/secret"
)

// TestLease lets time pass for a lease: held, renewed, released, run out, taken over.
func TestLease(t *testing.T) {
	s := newStore(t)
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		first, err := s.Lease(ctx, "a/b", "first on h, pid 1", time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if want := time.Now().Add(time.Minute); !first.Until().Equal(want) {
			t.Errorf("until %s, want %s", first.Until(), want)
		}
		held := func(by *Lease) {
			t.Helper()
			_, err := s.Lease(ctx, "a/b", "second", time.Minute)
			var who *secret.HeldError
			if !errors.As(err, &who) || !errors.Is(err, secret.ErrHeld) {
				t.Fatalf("%v, want a HeldError", err)
			}
			if who.Holder != by.holder || who.Name != "a/b" || !who.Until.Equal(by.Until()) {
				t.Errorf("it says %+v", who)
			}
		}
		held(first)
		if _, err := s.Lease(ctx, "a/c", "second", time.Minute); err != nil {
			t.Errorf("another name: %v", err)
		}
		time.Sleep(59 * time.Second)
		held(first)
		if err := first.Renew(ctx); err != nil {
			t.Fatal(err)
		}
		time.Sleep(59 * time.Second)
		held(first)
		time.Sleep(time.Second)
		second, err := s.Lease(ctx, "a/b", "second", time.Minute)
		if err != nil {
			t.Fatalf("taking over: %v", err)
		}
		if err := first.Renew(ctx); !errors.Is(err, secret.ErrLeaseLost) || !strings.Contains(err.Error(), "second has it now") {
			t.Errorf("renewing what was taken over: %v", err)
		}
		if err := first.Release(ctx); err != nil {
			t.Errorf("releasing what was taken over: %v", err)
		}
		held(second)
		if err := second.Release(ctx); err != nil {
			t.Fatal(err)
		}
		if err := second.Release(ctx); err != nil {
			t.Errorf("twice: %v", err)
		}
		if err := second.Renew(ctx); !errors.Is(err, secret.ErrLeaseLost) {
			t.Errorf("renewing what was released: %v", err)
		}
		third, err := s.Lease(ctx, "a/b", "third", time.Second)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		if err := third.Renew(ctx); !errors.Is(err, secret.ErrLeaseLost) || !strings.Contains(err.Error(), "ran out") {
			t.Errorf("renewing what ran out: %v", err)
		}
	})
}

// TestLeaseRace lets many ask at once: one gets it, and all others hear who has it.
func TestLeaseRace(t *testing.T) {
	s := newStore(t)
	var mu sync.Mutex
	var group sync.WaitGroup
	got, refused := 0, 0
	for range 8 {
		group.Go(func() {
			_, err := s.Lease(t.Context(), "a", "somebody", time.Hour)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				got++
			case errors.Is(err, secret.ErrHeld):
				refused++
			default:
				t.Error(err)
			}
		})
	}
	group.Wait()
	if got != 1 || refused != 7 {
		t.Errorf("%d have the lease and %d do not", got, refused)
	}
}

func TestLeaseRefused(t *testing.T) {
	s := newStore(t)
	for name, c := range map[string]struct {
		name, holder string
		ttl          time.Duration
	}{
		"a path":        {"../a", "me", time.Minute},
		"no holder":     {"a", "", time.Minute},
		"line ends":     {"a", "me\nyou", time.Minute},
		"a long holder": {"a", strings.Repeat("m", maxHolder+1), time.Minute},
		"short":         {"a", "me", time.Millisecond},
		"long":          {"a", "me", 25 * time.Hour},
	} {
		if _, err := s.Lease(t.Context(), c.name, c.holder, c.ttl); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	lease, err := s.Lease(ctx, "a", "me", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := lease.Renew(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("renewing, cancelled: %v", err)
	}
	if err := lease.Release(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("releasing, cancelled: %v", err)
	}
}
