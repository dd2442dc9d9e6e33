// Package budget knows how many certificates were paid for in a month, and refuses the next one before it is asked for
// when that is as many as somebody was willing to pay.
//
// What was spent stands in a secret store, as a secret of its own that holds no key, so that it outlives a process and is
// shared by all that issue from one authority. Each certificate is counted before it is asked for, in place of the count
// that was read (compare and swap): two processes never spend the same one, and what cannot be counted is not issued. A
// process that dies in between has counted one that perhaps was never issued; when it goes on with the same request, that
// is not counted again.
//
// Each count is a version of the secret, and stores do not take any number of them: AWS Secrets Manager has a quota of about
// 100 within 24 hours. When a day brings many, a process counts several certificates at once, and uses them up; what it does
// not use stays counted.
//
// A month is a calendar month in UTC, as AWS bills. A clock that goes back gives nothing back: the count stays in the
// latest month that was ever seen.
package budget

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"countersign.dev/secret"
)

// ErrSpent says that the budget of the month is used up. Its errors name the count, the limit, the month and when the next
// one begins.
var ErrSpent = errors.New("the budget is spent")

// Store is what keeps the count; errors are those of package secret. The methods are those of the stores of credentials.
type Store interface {
	// Read gives the value of the current version for an empty version, and its id.
	Read(ctx context.Context, name, version string) (value []byte, versionID string, err error)
	// Stage writes a version that is not current yet. An empty id stands for one that follows from the value.
	Stage(ctx context.Context, name, id string, value []byte) (versionID string, err error)
	// Replace makes a version current where the one with the id replaces is (empty: none). Else nothing changes, and the
	// error is a [*secret.ReplacedError].
	Replace(ctx context.Context, name, version, replaces string) error
}

const (
	// format is the version of the record's form.
	format = 1
	// remembered is how many requests are known again. A request is repeated within minutes, or by the next rotation of its
	// service: this many later ones are far beyond that, and the record stays well below what a secret may hold.
	remembered = 2000
	// From many and from tooMany writes of a day on, so many are counted at once: 50, then 30 times 10, then 20 times 25
	// keep below the quota of Secrets Manager, and are 850 certificates a day.
	many, manyAtOnce       = 50, 10
	tooMany, tooManyAtOnce = 80, 25
	// tries bounds how often a count is written that others keep changing.
	tries = 100
	// monthForm and dayForm are how a month and a day are written.
	monthForm, dayForm = "2006-01", "2006-01-02"
)

// record is what the store holds, in JSON.
type record struct {
	Format int `json:"format"`
	// Month is the latest month that was seen, Used how many certificates were counted in it.
	Month string `json:"month"`
	Used  int    `json:"used"`
	// Requests are the last ones that were counted, as [digest] spells them, also those of months before.
	Requests []string `json:"requests,omitempty"`
	// Day is when this was written last, and Writes how often on that day.
	Day    string `json:"day,omitempty"`
	Writes int    `json:"writes,omitempty"`
}

// Budget is a limit for each month. It is safe for concurrent use, also by several processes on one store.
type Budget struct {
	store Store
	name  string
	limit int
	now   func() time.Time

	mu sync.Mutex // one spends at a time in this process; the store orders processes
	// ahead is how many are counted of month that nobody has asked for yet, and taken the requests that have used up the
	// others, which do not stand in the record before it is written again.
	ahead int
	month string
	taken []string
}

// New makes a budget of a number of certificates a month, which is counted in the secret of a name. A limit of 0 or less
// allows none. now is the clock; nil is time.Now.
func New(store Store, name string, limit int, now func() time.Time) *Budget {
	if now == nil {
		now = time.Now
	}
	return &Budget{store: store, name: name, limit: max(limit, 0), now: now}
}

// Spend counts one certificate under the id of its request, before it is asked for. The same id counts once; only on a day
// with many, when it was one of several that were counted at once, and its process has ended since, it counts again. When the
// budget of the month is used up it is [ErrSpent]; any other error, too, means that nothing may be issued.
func (b *Budget) Spend(ctx context.Context, id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	placeholder := ""
	var last error
	for try := range tries {
		if try > 0 {
			if err := pause(ctx, try); err != nil {
				return fmt.Errorf("counting a certificate in %s: %w", b.name, errors.Join(err, last))
			}
		}
		done, err := b.try(ctx, id, placeholder)
		if done {
			return err
		}
		if replaced, ok := errors.AsType[*secret.ReplacedError](err); ok {
			placeholder = replaced.Current
		}
		last = err
	}
	return fmt.Errorf("counting a certificate in %s: others changed it %d times in between; try again: %w", b.name, tries, last)
}

// try counts once; done is false when somebody else was faster. placeholder is the version that was in the way of the
// last try: what a template has made, which reads as nothing, is replaced by its id.
func (b *Budget) try(ctx context.Context, id, placeholder string) (done bool, err error) {
	state, version, err := b.read(ctx)
	if err != nil {
		return true, err
	}
	if version == "" {
		version = placeholder
	}
	key := digest(id)
	if slices.Contains(state.Requests, key) || slices.Contains(b.taken, key) {
		return true, nil
	}
	if b.ahead > 0 && b.month == state.Month {
		b.ahead--
		b.taken = append(b.taken, key)
		return true, nil
	}
	if state.Used >= b.limit {
		return true, b.spent(state)
	}
	at := min(b.atOnce(&state), b.limit-state.Used)
	state.Used += at
	state.Requests = append(append(state.Requests, b.taken...), key)
	if over := len(state.Requests) - remembered; over > 0 {
		state.Requests = state.Requests[over:]
	}
	text, err := json.Marshal(state)
	if err != nil {
		return true, fmt.Errorf("counting a certificate in %s: %w", b.name, err)
	}
	staged, err := b.store.Stage(ctx, b.name, "", text)
	if err != nil {
		return true, b.uncounted(err)
	}
	switch err := b.store.Replace(ctx, b.name, staged, version); {
	case err == nil:
		b.ahead, b.month, b.taken = at-1, state.Month, nil
		return true, nil
	// A version without a stage may be removed by those who write at the same time.
	case errors.Is(err, secret.ErrReplaced), errors.Is(err, secret.ErrNotFound):
		return false, err
	default:
		return true, b.uncounted(err)
	}
}

// atOnce notes a write, and says how many are counted with it.
func (b *Budget) atOnce(state *record) int {
	if today := b.now().UTC().Format(dayForm); state.Day != today {
		state.Day, state.Writes = today, 0
	}
	state.Writes++
	switch {
	case state.Writes <= many:
		return 1
	case state.Writes <= tooMany:
		return manyAtOnce
	default:
		return tooManyAtOnce
	}
}

func (b *Budget) uncounted(err error) error {
	return fmt.Errorf("counting a certificate in %s, without which none is asked for: %w", b.name, err)
}

// State says how many certificates were counted in the current month, those among them that were counted at once with others, how many it allows, and which month that is (as
// 2006-01, UTC).
func (b *Budget) State(ctx context.Context) (used, limit int, month string, err error) {
	state, _, err := b.read(ctx)
	if err != nil {
		return 0, b.limit, "", err
	}
	return state.Used, b.limit, state.Month, nil
}

// read gives what stands in the store, brought to the current month.
func (b *Budget) read(ctx context.Context) (record, string, error) {
	month := b.now().UTC().Format(monthForm)
	text, version, err := b.store.Read(ctx, b.name, "")
	if errors.Is(err, secret.ErrNotFound) {
		return record{Format: format, Month: month}, "", nil
	}
	if err == nil {
		var state record
		if state, err = parse(text); err == nil {
			if state.Month < month { // months in this form are ordered as texts are
				state.Month, state.Used = month, 0
			}
			return state, version, nil
		}
	}
	if errors.Is(err, secret.ErrCorrupt) {
		return record{}, "", fmt.Errorf("the count of certificates %s cannot be read, and nothing is issued without it: %w; %s", b.name, err, mend(month))
	}
	return record{}, "", fmt.Errorf("reading the count of certificates %s, without which nothing is issued: %w", b.name, err)
}

// parse reads a record. Errors are [secret.ErrCorrupt], or [secret.ErrInvalid] for one of a newer program.
func parse(text []byte) (record, error) {
	var state record
	if err := json.Unmarshal(text, &state); err != nil {
		return record{}, fmt.Errorf("%w: it is not a count of certificates", secret.ErrCorrupt)
	}
	if state.Format > format {
		return record{}, fmt.Errorf("%w: it has the format %d, and this program knows %d; use the newer program", secret.ErrInvalid, state.Format, format)
	}
	at, err := time.Parse(monthForm, state.Month)
	if err != nil || at.Year() < 2000 || state.Format != format || state.Used < 0 || state.Writes < 0 || len(state.Requests) > remembered {
		return record{}, fmt.Errorf("%w: it is not a count of certificates of a month", secret.ErrCorrupt)
	}
	return state, nil
}

// spent is the error of a budget that is used up.
func (b *Budget) spent(state record) error {
	again := "the next month"
	if at, err := time.Parse(monthForm, state.Month); err == nil {
		again = at.AddDate(0, 1, 0).Format(time.RFC3339)
	}
	advice := "find out what issues so many, or raise budget.certificates of the authority in the specification"
	if now := b.now().UTC().Format(monthForm); state.Month > now {
		advice = "it is " + now + " by this machine's clock: if another one was ahead when it counted, " + mend(now)
	}
	return fmt.Errorf("%w: %d of %d certificates of %s (UTC) were counted in %s, and no further one is asked for before %s; %s",
		ErrSpent, state.Used, b.limit, state.Month, b.name, again, advice)
}

// mend says how a count is put right by hand.
func mend(month string) string {
	return fmt.Sprintf("find out how many were issued this month (the bill, or the authority's audit report), and write that down as its value with the tools of the store, "+
		`such as aws secretsmanager put-secret-value: {"format":%d,"month":%q,"used":NUMBER}`, format, month)
}

// digest spells an id in 12 characters: 72 bits, so that two requests are never taken for one.
func digest(id string) string {
	sum := sha256.Sum256([]byte(id))
	return base64.RawURLEncoding.EncodeToString(sum[:9])
}

// pause waits a moment that is different for each of those who wait, and longer with each try.
func pause(ctx context.Context, try int) error {
	wait := time.NewTimer(time.Millisecond + rand.N(min(time.Duration(try)*5*time.Millisecond, 250*time.Millisecond))) //nolint:gosec // jitter is no secret
	defer wait.Stop()
	select {
	case <-wait.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
