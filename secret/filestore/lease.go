package filestore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"
	"unicode"

	"countersign.dev/durable"
	"countersign.dev/secret"
)

// Limits of leases.
const (
	minLease  = time.Second
	maxLease  = 24 * time.Hour
	maxHolder = 200 // bytes of a holder's name
)

// Lease is exclusive work on something: nobody else gets a lease of the same name before this one is
// released or has run out. It does not lock the secret of that name against writing: a holder makes sure
// with [Lease.Renew] that it still is one, before each step. It is safe for concurrent use.
type Lease struct {
	store        *Store
	name, holder string
	ttl          time.Duration
	token        string

	mu    sync.Mutex
	until time.Time
}

// Lease takes the lease of a name, usually a secret's, for a time between a second and a day; holder says to
// others who has it (`rotate on HOST, pid N`). When somebody else has it, the error is a
// [*secret.HeldError] that says who and until when. One that ran out is taken over. The machines that
// share a store are to agree on the time.
func (s *Store) Lease(ctx context.Context, name, holder string, ttl time.Duration) (*Lease, error) {
	l := &Lease{store: s, name: name, holder: holder, ttl: ttl, token: rand.Text()}
	err := secret.CheckName(name)
	switch {
	case err != nil:
	case ttl < minLease || ttl > maxLease:
		err = fmt.Errorf("%w time of a lease: %s is not between %s and %s", secret.ErrInvalid, ttl, minLease, maxLease)
	case !printable(holder):
		err = fmt.Errorf("%w holder of a lease: write 1 to %d bytes of printable text", secret.ErrInvalid, maxHolder)
	default:
		err = s.locked(ctx, l.take)
	}
	if err != nil {
		return nil, fmt.Errorf("taking a lease on %s: %w", name, err)
	}
	return l, nil
}

func printable(text string) bool {
	for _, r := range text {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return text != "" && len(text) <= maxHolder
}

func (l *Lease) path() string { return l.store.path(leasesDir, directory(l.name)+".age") }

// held reads the lease as it is; the second result is false when there is none, or none that counts.
func (l *Lease) held() (record, bool, error) {
	now, _, err := l.store.load(l.path(), kindLease, l.name)
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, false, nil
	}
	if errors.Is(err, secret.ErrCorrupt) {
		err = fmt.Errorf("%w. A lease may also be removed: see that nobody works on %s, and remove the file", err, l.name)
	}
	return now, err == nil && time.Now().Before(now.Expires), err
}

func (l *Lease) take() error {
	now, valid, err := l.held()
	if err != nil {
		return err
	}
	if valid {
		return &secret.HeldError{Name: l.name, Holder: now.Holder, Until: now.Expires}
	}
	if err := durable.Sweep(l.store.path(leasesDir)); err != nil {
		return err
	}
	return l.write()
}

// write lets the lease begin anew. The monotonic clock is dropped: others only see the wall's.
func (l *Lease) write() error {
	until := time.Now().Add(l.ttl).Round(0).UTC()
	err := l.store.save(l.path(), record{Kind: kindLease, Name: l.name, Holder: l.holder, Token: l.token, Expires: until}, nil)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = until
	return nil
}

// Until is when the lease runs out, unless it is renewed.
func (l *Lease) Until() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.until
}

// Renew makes the lease last its whole time again, from now. When it ran out or somebody else has taken
// it over, the error is [secret.ErrLeaseLost], and the holder must not go on.
func (l *Lease) Renew(ctx context.Context) error {
	err := l.store.locked(ctx, func() error {
		now, valid, err := l.held()
		switch {
		case err != nil:
			return err
		case !valid:
			return fmt.Errorf("%w: it ran out at %s; take it again and look at what was done", secret.ErrLeaseLost, l.Until().Format(time.RFC3339))
		case now.Token != l.token:
			return fmt.Errorf("%w: it ran out, and %s has it now", secret.ErrLeaseLost, now.Holder)
		}
		return l.write()
	})
	if err != nil {
		return fmt.Errorf("renewing the lease on %s: %w", l.name, err)
	}
	return nil
}

// Release gives the lease back. One that ran out, or that somebody else has by now, is left alone.
func (l *Lease) Release(ctx context.Context) error {
	err := l.store.locked(ctx, func() error {
		now, valid, err := l.held()
		if err != nil || !valid || now.Token != l.token {
			return err
		}
		return durable.Remove(l.path())
	})
	if err != nil {
		return fmt.Errorf("releasing the lease on %s: %w", l.name, err)
	}
	return nil
}
