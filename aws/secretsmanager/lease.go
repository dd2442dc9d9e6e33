package secretsmanager

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"slices"
	"sync"
	"time"

	"countersign.dev/aws/secretsmanager/internal/held"
	"countersign.dev/durable"
	"countersign.dev/rotate"
	"countersign.dev/secret"
)

// A lease lies in the secret NAME.rotation, where rotations keep their record, on two versions that hold no value of
// anybody's, the board and the other one. The label COUNTERSIGN-LEASE is always on one of them. Who wants the lease
//
//  1. looks that nobody's name stands on the board that has not run out,
//  2. writes its own name there: a label with the holder, the end and a random word,
//  3. moves COUNTERSIGN-LEASE to where it is not, naming where it was. Of several AWS lets one do that; the others take
//     their names away again,
//  4. looks again. Only when no other name stands there has it the lease.
//
// The last look alone makes it exclusive: of two who have both written before they look, one at least sees the other. The
// label that moves decides who of them may stay. Renewing writes another end and takes the former away. No version is
// written for any of it, of which AWS keeps only a hundred. AWS keeps a name that a dead one has left, which counts until its end.

// Labels of a lease.
const (
	leaseLabel = "COUNTERSIGN-LEASE"
	boardLabel = "COUNTERSIGN-CARRIER-1"
	otherLabel = "COUNTERSIGN-CARRIER-2"
	wordLength = 13 // of rand.Text: 65 bits
)

// noLease is the value of the versions that carry the label.
const noLease = "countersign: the staging labels of this version are a lease"

// leaseSuffix makes of a name that of the secret that its lease lies in.
const leaseSuffix = ".rotation"

// Limits of leases.
const (
	minLease = time.Second
	maxLease = 24 * time.Hour
	// clockSkew is how far the clocks of two holders may be apart.
	clockSkew = 2 * time.Second
	// withdraw is how long those who were not chosen are given to take their names away.
	withdraw = 3 * time.Second
	// farAway is how much later than an own lease another one may end before a clock is doubted.
	farAway = 10 * time.Minute
	// attempts is how often a lease that nobody holds is tried for.
	attempts = 20
)

// Lease is exclusive work on something, as a lease of package secret/filestore is. Its label is renewed at most by
// one goroutine at a time; it is safe for concurrent use.
type Lease struct {
	store        *Store
	name, holder string
	ttl          time.Duration
	word         string

	mu    sync.Mutex // held while AWS is asked
	label string
	state sync.Mutex // guards until
	until time.Time
}

func (l *Lease) labelUntil(until time.Time) string {
	return held.Name{Holder: l.holder, Word: l.word, Until: until}.Label()
}

// board are the names that count at a time: their clocks may be behind ours.
func (d described) board(now time.Time) []held.Name {
	var all []held.Name
	for _, label := range d[boardID] {
		if h, ok := held.Parse(label); ok && now.Before(h.Until.Add(clockSkew)) {
			all = append(all, h)
		}
	}
	slices.SortFunc(all, func(a, b held.Name) int { return b.Until.Compare(a.Until) })
	return all
}

// Keeper is the store with leases as package rotate declares them.
func (s *Store) Keeper() rotate.Keeper { return keeper{s} }

type keeper struct{ *Store }

// Lease is [Store.Lease].
func (k keeper) Lease(ctx context.Context, name, holder string, ttl time.Duration) (rotate.Lease, error) {
	lease, err := k.Store.Lease(ctx, name, holder, ttl)
	if err != nil {
		return nil, err // not a nil *Lease in an interface
	}
	return lease, nil
}

// Lease takes the lease of a name, usually a secret's, for a time between a second and a day; holder says to others who has it.
// When somebody else has it, the error is a [*secret.HeldError] that says who and until when. One that ran out is taken
// over, two seconds later: the machines that share a store are to agree on the time that far.
func (s *Store) Lease(ctx context.Context, name, holder string, ttl time.Duration) (*Lease, error) {
	l := &Lease{store: s, name: name, holder: holder, ttl: ttl, word: rand.Text()[:wordLength]}
	err := CheckName(name)
	switch {
	case err != nil:
	case Region(name) != "":
		err = fmt.Errorf("%w name of a lease: %s is an ARN; write the secret's name", secret.ErrInvalid, name)
	case ttl < minLease || ttl > maxLease:
		err = fmt.Errorf("%w time of a lease: %s is not between %s and %s", secret.ErrInvalid, ttl, minLease, maxLease)
	case !held.Name{Holder: holder, Word: l.word, Until: time.Now()}.Check():
		err = fmt.Errorf("%w holder of a lease: write 1 to %d bytes of printable text, mostly letters and digits", secret.ErrInvalid, held.MaxHolder)
	default:
		err = l.take(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("taking a lease on %s: %w", name, err)
	}
	return l, nil
}

func (l *Lease) secret() string { return l.name + leaseSuffix }

func (l *Lease) take(ctx context.Context) error {
	now, err := l.store.carriers(ctx, l.secret())
	for range attempts {
		if err != nil {
			return err
		}
		taken := l.tryTake(ctx, now)
		if taken == nil || !errors.Is(taken, errContended) {
			return taken
		}
		if err := pause(ctx); err != nil {
			return err
		}
		now, err = l.store.describe(ctx, l.secret())
	}
	return errContended
}

// errContended says that others want the lease at this moment, and that trying again is right.
var errContended error = contendedError{}

// contendedError is a [secret.ErrHeld]: who is going to have the lease is not known yet.
type contendedError struct{}

func (contendedError) Error() string {
	return "others want the lease at this moment, and nobody has it; try again"
}

// Is lets errors.Is find [secret.ErrHeld].
func (contendedError) Is(target error) bool { return target == secret.ErrHeld }

// pause waits for a time by chance.
func pause(ctx context.Context) error {
	const least, most = 20 * time.Millisecond, 120 * time.Millisecond
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(least + mathrand.N(most-least)): //nolint:gosec // chance is no secret
		return nil
	}
}

// tryTake is one attempt, after a look. Whatever fails, the own name is taken away again.
func (l *Lease) tryTake(ctx context.Context, now described) (err error) {
	if others := now.board(time.Now()); len(others) > 0 {
		return l.heldBy(others[0])
	}
	until := time.Now().Add(l.ttl).Round(0).UTC().Truncate(time.Millisecond)
	label := l.labelUntil(until)
	if err := l.store.move(ctx, l.secret(), label, boardID, ""); err != nil {
		if errors.Is(err, secret.ErrFull) { // AWS allows twenty labels on all versions together
			return fmt.Errorf("%w (%w)", errContended, err)
		}
		return err
	}
	durable.Step("secretsmanager.lease.named")
	defer func() {
		if err != nil {
			away, cancel := rotate.Detached(ctx, releaseTimeout)
			defer cancel()
			// What cannot be taken away runs out.
			_ = l.store.detach(away, l.secret(), label, boardID)
		}
	}()
	from := now.with(leaseLabel)
	to := otherID
	if from == otherID {
		to = boardID
	}
	if err := l.store.move(ctx, l.secret(), leaseLabel, to, from); err != nil {
		if elsewhere(err) {
			return fmt.Errorf("%w (%w)", errContended, err)
		}
		return err
	}
	durable.Step("secretsmanager.lease.moved")
	if err := l.alone(ctx, until); err != nil {
		return err
	}
	l.label = label
	l.setUntil(until)
	return nil
}

// releaseTimeout is how long taking a name away may last when nobody waits for it.
const releaseTimeout = 5 * time.Second

// alone waits until no other name is on the board, and takes away those that have run out.
func (l *Lease) alone(ctx context.Context, until time.Time) error {
	deadline := time.Now().Add(withdraw)
	for {
		now, err := l.store.describe(ctx, l.secret())
		if err != nil {
			return err
		}
		at := time.Now()
		board := now.board(at)
		others := slices.DeleteFunc(slices.Clone(board), func(h held.Name) bool { return h.Word == l.word })
		switch {
		case len(others) == len(board) || !at.Before(until):
			return fmt.Errorf("%w: the name of this one is not on the board any more", errContended)
		case len(others) == 0:
			return l.sweep(ctx, now, at)
		case at.After(deadline):
			return l.heldBy(others[0])
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// sweep takes names away that count no more.
func (l *Lease) sweep(ctx context.Context, now described, at time.Time) error {
	for _, label := range now[boardID] {
		if h, ok := held.Parse(label); ok && !at.Before(h.Until.Add(clockSkew)) {
			if err := l.store.detach(ctx, l.secret(), label, boardID); err != nil {
				return err
			}
		}
	}
	return nil
}

// heldBy says who has the lease. One that ends far later than this one would was asked for by a wrong clock, or this one is wrong.
func (l *Lease) heldBy(h held.Name) error {
	err := &secret.HeldError{Name: l.name, Holder: h.Holder, Until: h.Until.Add(clockSkew)}
	if time.Until(h.Until) < l.ttl+farAway {
		return err
	}
	return fmt.Errorf("%w; that is so far away that its clock was wrong, or this machine's is: see that this one is right, and when nobody works on it, take its name away: "+
		"aws secretsmanager update-secret-version-stage --secret-id %s --version-stage '%s' --remove-from-version-id %s", err, l.secret(), h.Label(), boardID)
}

// carriers sees to it that there are the versions that a lease needs, and looks. The one with the label is written last: where
// it is, the others are. Writing one twice is ignored by AWS, wherever its labels are by then.
func (s *Store) carriers(ctx context.Context, name string) (described, error) {
	now, err := s.ensure(ctx, name)
	if err != nil || (len(now[boardID]) > 0 && len(now[otherID]) > 0 && now.with(leaseLabel) != "") {
		return now, err
	}
	for _, carrier := range []struct {
		id     string
		labels []string
	}{{otherID, []string{otherLabel}}, {boardID, []string{boardLabel, leaseLabel}}} {
		if err := s.put(ctx, name, carrier.id, []byte(noLease), carrier.labels); err != nil {
			return nil, err
		}
	}
	if now, err = s.describe(ctx, name); err != nil {
		return nil, err
	}
	// A version that was there before may have lost its labels to somebody's hand.
	mended := false
	for _, label := range []struct{ label, id string }{{otherLabel, otherID}, {boardLabel, boardID}, {leaseLabel, boardID}} {
		if now.with(label.label) == "" {
			mended = true
			if err := s.move(ctx, name, label.label, label.id, ""); err != nil {
				return nil, err
			}
		}
	}
	if mended {
		return s.describe(ctx, name)
	}
	return now, nil
}

// Until is when the lease runs out, unless it is renewed.
func (l *Lease) Until() time.Time {
	l.state.Lock()
	defer l.state.Unlock()
	return l.until
}

func (l *Lease) setUntil(until time.Time) {
	l.state.Lock()
	defer l.state.Unlock()
	l.until = until
}

// Renew makes sure that the lease is still there, and makes it last its whole time again when a third of that is over. When
// it ran out or somebody has ended it, the error is [secret.ErrLeaseLost], and the holder must not go on.
func (l *Lease) Renew(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.renew(ctx); err != nil {
		return fmt.Errorf("renewing the lease on %s: %w", l.name, err)
	}
	return nil
}

func (l *Lease) renew(ctx context.Context) error {
	now, err := l.store.describe(ctx, l.secret())
	if err != nil {
		return err
	}
	if !now.has(boardID, l.label) {
		for _, other := range now.board(time.Now()) {
			return fmt.Errorf("%w: somebody has ended it, and %s has it now", secret.ErrLeaseLost, other.Holder)
		}
		return fmt.Errorf("%w: somebody has ended it", secret.ErrLeaseLost)
	}
	if err := l.expired(); err != nil {
		return err
	}
	if time.Until(l.Until()) > l.ttl-l.ttl/3 {
		return nil
	}
	until := time.Now().Add(l.ttl).Round(0).UTC().Truncate(time.Millisecond)
	label := l.labelUntil(until)
	if label == l.label {
		return nil
	}
	if err := l.store.move(ctx, l.secret(), label, boardID, ""); err != nil {
		return err
	}
	// The new end counts only when it was written before the former one had passed.
	if err := l.expired(); err != nil {
		return errors.Join(err, l.store.detach(ctx, l.secret(), label, boardID))
	}
	former := l.label
	l.label = label
	l.setUntil(until)
	// The former end counts no more, and goes at the latest when the lease is given back.
	_ = l.store.detach(ctx, l.secret(), former, boardID)
	return nil
}

func (l *Lease) expired() error {
	if until := l.Until(); !time.Now().Before(until) {
		return fmt.Errorf("%w: it ran out at %s; take it again and look at what was done", secret.ErrLeaseLost, until.Format(time.RFC3339))
	}
	return nil
}

// Release gives the lease back. One that ran out, or that somebody has ended, is left alone.
func (l *Lease) Release(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.store.end(ctx, l.secret(), func(h held.Name) bool { return h.Word == l.word }); err != nil {
		return fmt.Errorf("releasing the lease on %s: %w", l.name, err)
	}
	return nil
}

// EndLease ends the lease of a holder, by the holder's name, whatever time it has left. It is for those who know that the holder
// is dead. When somebody else has the lease by now, or nobody, nothing changes.
func (s *Store) EndLease(ctx context.Context, name, holder string) error {
	err := CheckName(name)
	if err == nil {
		err = s.end(ctx, name+leaseSuffix, func(h held.Name) bool { return h.Holder == holder })
	}
	if err != nil {
		return fmt.Errorf("ending the lease on %s: %w", name, err)
	}
	return nil
}

// end takes names off a board.
func (s *Store) end(ctx context.Context, name string, which func(held.Name) bool) error {
	now, err := s.describe(ctx, name)
	if errors.Is(err, secret.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, label := range now[boardID] {
		if h, ok := held.Parse(label); ok && which(h) {
			if err := s.detach(ctx, name, label, boardID); err != nil {
				return err
			}
		}
	}
	return nil
}

// Holder says who holds the lease of a name, and until when; the holder is empty when nobody does.
func (s *Store) Holder(ctx context.Context, name string) (holder string, until time.Time, err error) {
	if err = CheckName(name); err == nil {
		var now described
		now, err = s.describe(ctx, name+leaseSuffix)
		if errors.Is(err, secret.ErrNotFound) {
			return "", time.Time{}, nil
		}
		for _, h := range now.board(time.Now()) {
			return h.Holder, h.Until.Add(clockSkew), nil
		}
	}
	if err != nil {
		return "", time.Time{}, fmt.Errorf("reading the lease on %s: %w", name, err)
	}
	return "", time.Time{}, nil
}
