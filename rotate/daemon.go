package rotate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"countersign.dev/secret"
)

// Times of a daemon.
const (
	// maxIdle is the longest time between two looks: a specification may change, and somebody may have asked for a new root.
	maxIdle = time.Minute
	minIdle = time.Second
	// firstRetry and lastRetry are the times between tries of what fails; each is twice the one before.
	firstRetry = 10 * time.Second
	lastRetry  = 10 * time.Minute
	// firstDear and lastDear are the same where each try has a certificate issued that is paid for, and then is not used.
	firstDear = 5 * time.Minute
	lastDear  = 3 * time.Hour
)

// Daemon rotates what is due, for as long as it runs.
type Daemon struct {
	Rotator *Rotator
	// Targets are asked for before each round: the specification may have changed.
	Targets func(ctx context.Context) ([]Target, error)
	Log     *slog.Logger

	mu      sync.Mutex
	known   []Target // of the last round that could ask
	lost    bool     // the last round could not
	unasked int64    // how many could not
}

// retry is when something that failed is tried again.
type retry struct {
	failures int
	next     time.Time
}

// Run runs until ctx ends, which is between two steps. What fails is tried again, later each time.
func (d *Daemon) Run(ctx context.Context) {
	retries := make(map[string]*retry)
	for {
		wait := d.round(ctx, retries)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// round does what is due, and says when to look again.
func (d *Daemon) round(ctx context.Context, retries map[string]*retry) time.Duration {
	targets, err := d.Targets(ctx)
	if ctx.Err() != nil {
		return minIdle
	}
	targets, back := d.learn(targets, err)
	if back {
		// What failed meanwhile failed for that, and has waited long enough.
		d.Log.InfoContext(ctx, "the specification can be asked for again")
		clear(retries)
	}
	if err != nil {
		d.Log.WarnContext(ctx, "the specification could not be asked for", "error", err, "known", len(targets))
		if len(targets) == 0 {
			return firstRetry
		}
	}
	next, asked := time.Now().Add(maxIdle), err == nil
	for _, bundle := range SharedBundles(targets) {
		next = earlier(next, d.turn(ctx, retries, "bundle "+bundle.StoreName+" "+bundle.Name, asked, false, func(o Options) Result { return d.Rotator.RotateBundle(ctx, bundle, o) }))
	}
	turns := make([]time.Time, len(targets))
	inWaves(targets, func(i int) {
		turns[i] = d.turn(ctx, retries, "service "+targets[i].Workload.Name, asked, targets[i].Authority != nil, func(o Options) Result { return d.Rotator.Rotate(ctx, targets[i], o) })
	})
	for _, at := range turns {
		next = earlier(next, at)
	}
	return max(minIdle, time.Until(next))
}

// learn notes whether the specification could be asked for. It gives what is known of it, and whether the round before
// could not ask and this one could.
func (d *Daemon) learn(targets []Target, err error) (known []Target, back bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	back = d.lost && err == nil
	d.lost = err != nil
	if err != nil {
		d.unasked++
	} else {
		d.known = targets
	}
	return d.known, back
}

func earlier(a, b time.Time) time.Time {
	if !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// turn gives one secret its turn, and says when it is to have the next one. A look without a lease comes first: most
// of the time there is nothing to do. When the server could not be asked in this round, that look would only fail, perhaps
// after a while, and would count for nothing. Paid is set where the authority is somebody's who wants money for certificates.
func (d *Daemon) turn(ctx context.Context, retries map[string]*retry, name string, asked, paid bool, rotate func(Options) Result) time.Time {
	again := d.again(retries, name)
	if again != nil && time.Now().Before(again.next) {
		return again.next
	}
	if ctx.Err() != nil {
		return time.Time{}
	}
	var result Result
	if asked {
		result = rotate(Options{DryRun: true})
	}
	if result.Outcome != Nothing || result.failing {
		result = rotate(Options{})
	}
	log := d.Log.With("secret", result.Secret)
	if result.Service != "" { // a trust bundle has none
		log = log.With("service", result.Service)
	}
	switch {
	case result.Err == nil:
		d.mu.Lock()
		delete(retries, name)
		d.mu.Unlock()
		if result.Outcome != Nothing {
			log.With(result.leaf()...).InfoContext(ctx, "rotated", "outcome", string(result.Outcome), "reason", result.Reason, "version", result.Version)
		}
		return result.Due
	case errors.Is(result.Err, ErrStopped):
		log.InfoContext(ctx, "the rotation was stopped; the next start goes on from here", "step", string(result.Step))
		return time.Time{}
	case errors.Is(result.Err, secret.ErrReplaced):
		log.WarnContext(ctx, "somebody else was faster, and what he has made current was left so", "step", string(result.Step), "error", result.Error)
		return time.Now().Add(firstRetry)
	case errors.Is(result.Err, secret.ErrHeld):
		log.InfoContext(ctx, "somebody else rotates it", "error", result.Error)
		return time.Now().Add(firstRetry)
	}
	return d.later(ctx, log, retries, name, again, &result, paid && (result.Outcome == RolledBack || errors.Is(result.Err, ErrUnfit)))
}

// later notes that a rotation has failed, and says when it is tried again; dear, when what it had issued was of no use.
func (d *Daemon) later(ctx context.Context, log *slog.Logger, retries map[string]*retry, name string, again *retry, result *Result, dear bool) time.Time {
	if again == nil {
		again = &retry{}
		d.mu.Lock()
		retries[name] = again
		d.mu.Unlock()
	}
	first, last := firstRetry, lastRetry
	if dear {
		first, last = firstDear, lastDear
	}
	pause := min(last, first<<min(again.failures, 10))
	if left := time.Until(result.NotAfter); left > 0 {
		pause = min(pause, max(firstRetry, left/8)) // several tries before the end
	}
	again.failures++
	again.next = time.Now().Add(pause)
	log.With(result.leaf()...).ErrorContext(ctx, "the rotation failed", "step", string(result.Step), "outcome", string(result.Outcome), "error", result.Error,
		"again", pause.String())
	return again.next
}

// again is when a secret is to be tried again whose rotation failed; nil when it did not.
func (d *Daemon) again(retries map[string]*retry, name string) *retry {
	d.mu.Lock()
	defer d.mu.Unlock()
	return retries[name]
}

// leaf is what a log says of the certificate that is current; nothing when there is none, as for a trust bundle.
func (r *Result) leaf() []any {
	if r.Serial == "" {
		return nil
	}
	return []any{"serial", r.Serial, "notAfter", r.NotAfter}
}

// Known are the targets of the last round that could ask for them; nil before.
func (d *Daemon) Known() []Target {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.known
}

// Statuses are those of the workloads that the daemon knows.
func (d *Daemon) Statuses(ctx context.Context) []Status {
	statuses := []Status{}
	for _, target := range d.Known() {
		statuses = append(statuses, ReadStatus(ctx, target))
	}
	return statuses
}

// ServeHTTP answers GET /metrics. Before the first look is over it says that the server is up.
func (d *Daemon) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/metrics" || (r.Method != http.MethodGet && r.Method != http.MethodHead) {
		http.Error(w, "there is nothing but GET /metrics", http.StatusNotFound)
		return
	}
	var out strings.Builder
	d.mu.Lock()
	lost, unasked := d.lost, d.unasked
	d.mu.Unlock()
	fmt.Fprintf(&out, "# HELP %[1]s Whether the last look could ask the server what is to be rotated.\n# TYPE %[1]s gauge\n%[1]s %[2]d\n",
		"countersign_rotate_server_up", map[bool]int{false: 1}[lost])
	fmt.Fprintf(&out, "# HELP %[1]s Looks that could not ask the server what is to be rotated.\n# TYPE %[1]s counter\n%[1]s %[2]d\n",
		"countersign_rotate_server_failures_total", unasked)
	if err := WriteMetrics(&out, d.Statuses(r.Context()), time.Now()); err != nil {
		http.Error(w, "the metrics could not be written", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, _ = w.Write([]byte(out.String())) // the client has gone
}
