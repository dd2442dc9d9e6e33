package rotate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/user"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode"

	"countersign.dev/secret"
)

// maxHolderName bounds each name in a holder, in bytes; stores take 200 in all.
const maxHolderName = 64

// holderForm is what [Holder] writes, and alive reads.
const holderForm = "countersign rotate on %s pid %d, user %s place %s"

// Holder says who this process is, for the leases that it takes: "countersign rotate on HOST, pid N, user U, place P". The
// place is short for everything that makes the process id mean this process; see [place].
func Holder() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	name := fmt.Sprint(os.Getuid())
	if u, err := user.Current(); err == nil && u.Username != "" {
		name = u.Username
	}
	return fmt.Sprintf(holderForm, plainName(host)+",", os.Getpid(), plainName(name)+",", place())
}

// plainName is a name without what would make a holder unreadable.
func plainName(name string) string {
	name = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == ',' || r == ' ' || r > unicode.MaxASCII {
			return '?'
		}
		return r
	}, name)
	return name[:min(len(name), maxHolderName)]
}

// nowhere is the place of a process that cannot say where it is.
const nowhere = "unknown"

// place tells the machine, its last start and the namespace of process ids from all others: containers may have the
// name of their host, and every one of them has a process 1. In Lambda and on ECS it tells the environment, too.
func place() string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nowhere
	}
	namespace, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return nowhere
	}
	// Virtual machines that were started from one image of memory have both in common: AWS gives each a name of its own.
	sum := sha256.Sum256(fmt.Append(boot, namespace, "\x00", os.Getenv("AWS_LAMBDA_LOG_STREAM_NAME"), "\x00", os.Getenv("ECS_CONTAINER_METADATA_URI_V4")))
	return hex.EncodeToString(sum[:6])
}

// life is what is known of a holder.
type life int

const (
	unknownLife life = iota // it is elsewhere: its lease is watched instead
	lives
	isDead
)

// lifeOf tells whether the process lives that calls itself so.
func lifeOf(holder string) life {
	var host, name, where string
	var pid int
	if n, err := fmt.Sscanf(holder, holderForm, &host, &pid, &name, &where); err != nil || n != 4 || pid <= 0 {
		return unknownLife
	}
	if where == nowhere || where != place() {
		return unknownLife
	}
	if pid == os.Getpid() {
		return lives // another rotation of this process
	}
	process, err := os.FindProcess(pid)
	if err != nil {
		return unknownLife
	}
	defer process.Release() //nolint:errcheck // nothing is held but a number
	switch err := process.Signal(syscall.Signal(0)); {
	case err == nil, errors.Is(err, os.ErrPermission):
		return lives
	case errors.Is(err, os.ErrProcessDone):
		return isDead
	default:
		return unknownLife
	}
}

// held is a lease that is renewed in the background.
type held struct {
	lease  Lease
	cancel context.CancelCauseFunc
	forget context.CancelFunc // the time at which steps are cut
	done   chan struct{}
	stop   chan struct{}
}

// take takes the lease of a name. One that a dead process of this machine has left is ended; one of which that is not
// known is waited for: it runs out. One whose holder lives, or that is renewed meanwhile, is waited for as long as patience
// says, and an error then: [secret.ErrHeld]. Waiting is told once for each, dead or not. The context that it gives ends with the
// lease, and not with the given one: steps are not cut in the middle, but by [WithEnds].
func (r *Rotator) take(ctx context.Context, keeper Keeper, name string, ttl, patience time.Duration, waiting func(held error, dead bool)) (context.Context, *held, error) {
	var seen *secret.HeldError // as it was seen last
	living := ""               // a holder who has renewed it
	told := make(map[bool]bool)
	tell := func(err error, dead bool) {
		if !told[dead] {
			told[dead] = true
			waiting(err, dead)
		}
	}
	giveUp, pause := time.Now().Add(patience), r.config.poll
	for {
		lease, err := keeper.Lease(ctx, name, r.config.Holder, ttl)
		if err == nil {
			return r.keep(ctx, lease, ttl)
		}
		other, known := errors.AsType[*secret.HeldError](err)
		if !known && !errors.Is(err, secret.ErrHeld) {
			return nil, nil, err
		}
		wait := min(200*time.Millisecond, ttl/10)
		switch {
		case known && lifeOf(other.Holder) == isDead:
			if err := keeper.EndLease(ctx, name, other.Holder); err != nil {
				return nil, nil, err
			}
			continue
		case known && other.Holder != living && seemsDead(other, seen, ttl):
			tell(err, true)
		case time.Now().Before(giveUp):
			tell(err, false)
			if known {
				living = other.Holder
			}
			pause = min(pause*2, maxPause)                            // the store is asked by everybody who waits
			wait = min(pause/2+rand.N(pause/2+1), time.Until(giveUp)) //nolint:gosec // to keep many from asking at one moment
		default:
			return nil, nil, err
		}
		seen = other
		select {
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("%w: %w", ErrStopped, err)
		case <-time.After(wait):
		}
	}
}

// maxPause is the longest time between two looks at a lease that somebody has.
const maxPause = 3 * time.Second

// seemsDead tells whether it is worth waiting for a lease to run out: nothing is known of its holder, and it was not renewed since it was
// seen before.
func seemsDead(other, before *secret.HeldError, ttl time.Duration) bool {
	if lifeOf(other.Holder) == lives || time.Until(other.Until) > ttl+time.Minute {
		return false
	}
	return before == nil || other.Until.Equal(before.Until) && other.Holder == before.Holder
}

// underWay says of a rotation that another one keeps from a secret since when that is at it, as far as its record tells.
func underWay(ctx context.Context, held error, store Store, name string) error {
	if !errors.Is(held, secret.ErrHeld) || errors.Is(held, ErrStopped) {
		return held
	}
	at := ""
	if record, err := readRecord(ctx, store, name); err == nil && record.Step != "" {
		at = fmt.Sprintf(", at the step %s, begun at %s", record.Step, record.Began.UTC().Format(time.RFC3339))
	}
	return fmt.Errorf("another rotation of it is under way%s: %w", at, held)
}

// leaseFor is how long a dead rotation of some targets keeps others from its secret: longer where a rotation lasts for minutes,
// in a store that is asked over a network and may make everybody wait.
func (r *Rotator) leaseFor(targets ...Target) time.Duration {
	if slices.ContainsFunc(targets, func(t Target) bool { return t.Rollout != nil }) {
		return max(r.config.leaseTTL, rolloutLease)
	}
	return r.config.leaseTTL
}

// keep renews a lease in the background.
func (r *Rotator) keep(ctx context.Context, lease Lease, ttl time.Duration) (context.Context, *held, error) {
	within, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	within, forget := cut(within)
	h := &held{lease: lease, cancel: cancel, forget: forget, done: make(chan struct{}), stop: make(chan struct{})}
	go h.renew(within, ttl/3)
	return within, h, nil
}

// renew renews until the lease is given back or lost.
func (h *held) renew(ctx context.Context, every time.Duration) {
	defer close(h.done)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-h.stop:
			return
		case <-tick.C:
		}
		err := h.lease.Renew(ctx)
		// A store that is full or busy for a moment costs the lease only when that lasts.
		if errors.Is(err, secret.ErrLeaseLost) || (err != nil && !time.Now().Before(h.lease.Until())) {
			h.cancel(fmt.Errorf("%w, and nothing more was done: %w", secret.ErrLeaseLost, err))
			return
		}
	}
}

// errUnsure says that nobody knows whether the lease is held still: it may be, and the step was not begun.
var errUnsure = errors.New("nothing more was done")

// sure renews the lease: before each step. The error is [secret.ErrLeaseLost], or else [errUnsure].
func (h *held) sure(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	switch err := h.lease.Renew(ctx); {
	case errors.Is(err, secret.ErrLeaseLost):
		return fmt.Errorf("nothing more was done: %w", err)
	case err != nil:
		return fmt.Errorf("%w: %w", errUnsure, err)
	}
	return nil
}

// release gives the lease back.
func (h *held) release(ctx context.Context) error {
	close(h.stop)
	<-h.done
	lost := errors.Is(context.Cause(ctx), secret.ErrLeaseLost)
	h.cancel(nil)
	h.forget()
	if lost {
		return nil
	}
	ctx, cancel := Detached(ctx, 10*time.Second)
	defer cancel()
	return h.lease.Release(ctx)
}
