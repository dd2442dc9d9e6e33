// Package deliver knows how a certificate that changes in a store reaches a proxy that runs, and how that is undone when the
// proxy does not take it.
//
// What is new is written beside what is in force, tested by the proxy's own command, put in force, and counts as delivered
// when full handshakes with every listener show it. Otherwise what was proved before is put in force again, and the new
// one is left alone for a while. The disk tells at every moment what is in force and what was proved last
// ([credential.Directory]), so that one who was killed is followed by one who knows where to go on.
package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"countersign.dev/credential"
	"countersign.dev/durable"
	"countersign.dev/mesh"
)

// Source is where credentials come from.
type Source interface {
	// Offer gives what is current, whole and of one version. The caller owns it, and overwrites its secrets.
	Offer(ctx context.Context) (*Offer, error)
}

// Proxy is the proxy that gets them. Errors are those of package reload.
type Proxy interface {
	// Test lets the proxy look at a configuration and the files that it names. configuration is the file to test where the
	// configuration is written here, and else empty.
	Test(ctx context.Context, configuration string) error
	// Reload tells the proxy to take what is in force.
	Reload(ctx context.Context) error
}

// Prober looks at a listener as a client does.
type Prober interface {
	Probe(ctx context.Context, l Listener, as *credential.Credential) (*Seen, error)
}

// Listener is where the proxy serves.
type Listener struct {
	// Port is the listener's port in the Plan, 0 when there is none.
	Port int
	// Address is where it is met, host:port.
	Address string
	// Bytes tells that whatever is connected is passed on to an application: no handshake is brought to its end there.
	Bytes bool
	// TLS tells that it speaks TLS, and Own that it does so with the workload's certificate and not with one of its own.
	TLS, Own bool
	// Client tells that it asks its clients for certificates, by the roots of the generation.
	Client bool
	// ServerName is what is sent as SNI.
	ServerName string
}

// Config is what a [Watcher] works with. All but Plan, Await, Listeners, Render, File, Revocation, AcceptRevoked, Older and Changed must be set.
type Config struct {
	Output credential.Output
	Source Source
	Proxy  Proxy
	Prober Prober
	// Expect is what a credential has to fulfil. Where it asks for no ID, and the configuration is written here, the Plan's workload
	// is asked for; the Plan of another one is refused.
	Expect func() credential.Expect
	// Render makes the proxy's configuration, whose certificates are below Output.Dir, and which looks callers up in
	// RevocationFile when there is one; nil when somebody else writes it.
	Render func(plan *mesh.Plan, lists bool) ([]byte, error)
	// File is the name of that configuration in a generation.
	File string
	// Plan is the one to begin with; it may be nil.
	Plan *mesh.Plan
	// Await is for how long nothing is done at the start without a Plan, when [Watcher.Take] soon brings the first: without one
	// neither the listeners are known, nor whether callers are looked up. 0 does not wait.
	Await time.Duration
	// Listeners are where the proxy serves; plan may be nil.
	Listeners func(plan *mesh.Plan) []Listener
	// Revocation gives the revocation lists that become a file of the generation, PEM; nothing when nobody is looked up. With an
	// error those in force stay, and the error is a problem. It may be nil: then those in force stay.
	Revocation func(plan *mesh.Plan) ([]byte, error)
	// AcceptRevoked lets a configuration come into force that looks nobody up although its Plan wants revoked callers refused.
	AcceptRevoked bool
	// Older takes hold of the proxy's workers of earlier generations, where those would serve further requests of somebody who was
	// revoked since; nil when they take none. What it gives is called once.
	Older func(ctx context.Context) (EndOlder, error)
	// Changed is told that Status gives something else. It may be nil, and returns quickly.
	Changed func()

	// Interval is how often the source is asked for something new.
	Interval time.Duration
	// Look is how often is looked at what the proxy serves; 0 is Interval, or every two seconds when that is longer.
	Look time.Duration
	// Patience is how long the proxy may need for one step: to test, to reload, to serve.
	Patience time.Duration
	// Retry is after how long something that the proxy did not take is tried again; it doubles each time, up to eight times.
	Retry time.Duration
	Log   *slog.Logger
}

// RevocationFile is the revocation lists in a generation.
const RevocationFile = "crl.pem"

// watchLock keeps two watchers of a directory apart. Those who write once need not wait for a watcher.
const watchLock = ".watch.lock"

// Watcher delivers. [Watcher.Run] is called once; all else may be called from any goroutine.
type Watcher struct {
	cfg    Config
	dir    string // absolute
	wake   chan struct{}
	takes  chan take
	ended  chan struct{}
	unlock func() error
	tasks  sync.WaitGroup // what goes on beside Run, which waits for it

	// What follows belongs to the goroutine of Run.
	plan    *mesh.Plan
	refused map[Made]refusal       // by what was wanted, without the serial
	cred    *credential.Credential // what is in force, to show it to listeners that ask; nil when it is not known
	credOf  Made                   // the versions that cred is of
	alone   time.Time              // since when nobody serves what is in force; zero when somebody does
	newer   error                  // why what the source has is not in force
	asked   time.Time              // when the source was asked last

	mu     sync.Mutex
	status Status // guarded by mu
}

// take is a Plan that is to be put in force.
type take struct {
	plan *mesh.Plan
	done chan error
}

// refusal says why something was not taken, and until when it is left alone.
type refusal struct {
	err   error
	until time.Time
	pause time.Duration
}

// ErrWatched says that another watcher works on the directory.
var ErrWatched = errors.New("another watcher works there")

// New takes a directory. It is the caller's to call Run or Close then.
func New(cfg Config) (*Watcher, error) {
	dir, err := filepath.Abs(cfg.Output.Dir)
	if err != nil {
		return nil, err
	}
	cfg.Output.Dir, cfg.Output.Beside = dir, []string{watchLock, stagedDir}
	if cfg.Look == 0 {
		cfg.Look = min(cfg.Interval, 2*time.Second)
	}
	w := &Watcher{
		cfg: cfg, dir: dir,
		wake: make(chan struct{}, 1), takes: make(chan take), ended: make(chan struct{}),
		refused: make(map[Made]refusal), plan: cfg.Plan, status: Status{Plan: cfg.Plan},
	}
	if w.cfg.Listeners == nil {
		w.cfg.Listeners = func(*mesh.Plan) []Listener { return nil }
	}
	directory, err := credential.OpenDirectory(cfg.Output) // makes it, and says what is wrong with it
	if errors.Is(err, durable.ErrLocked) {
		err = nil // somebody is writing there right now, so that it is there
	} else if err == nil {
		err = directory.Close()
	}
	if err != nil {
		return nil, err
	}
	w.unlock, err = durable.Lock(filepath.Join(dir, watchLock))
	if errors.Is(err, durable.ErrLocked) {
		return nil, fmt.Errorf("watching %s: %w; end it first", dir, ErrWatched)
	}
	if err != nil {
		return nil, fmt.Errorf("watching %s: %w", dir, err)
	}
	return w, nil
}

// Close frees the directory of a Watcher that does not run.
func (w *Watcher) Close() error { return w.unlock() }

// Run delivers until the context ends, and returns nil then. A delivery that is under way is left as it is: whoever runs
// next goes on with it.
func (w *Watcher) Run(ctx context.Context) error {
	defer close(w.ended)
	defer w.unlock() //nolint:errcheck // nothing was written to it
	defer w.tasks.Wait()
	w.awaitPlan(ctx)
	ticker := time.NewTicker(w.cfg.Look)
	defer ticker.Stop()
	for {
		_ = w.round(ctx, w.plan, time.Since(w.asked) >= w.cfg.Interval) // it has said what is wrong
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-w.wake:
		case t := <-w.takes:
			t.done <- w.takePlan(ctx, t.plan)
		}
	}
}

// awaitPlan waits for the first Plan, where one is on its way.
func (w *Watcher) awaitPlan(ctx context.Context) {
	if w.plan != nil || w.cfg.Await <= 0 {
		return
	}
	timer := time.NewTimer(w.cfg.Await)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case t := <-w.takes:
		t.done <- w.takePlan(ctx, t.plan)
	}
}

// Wake lets it look at once at the proxy and at what is wanted of it, but for the source.
func (w *Watcher) Wake() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Take puts a Plan in force and returns when it is. On an error the one before stays.
func (w *Watcher) Take(plan *mesh.Plan) error {
	t := take{plan, make(chan error, 1)}
	select {
	case w.takes <- t:
	case <-w.ended:
		return errors.New("the watcher has ended")
	}
	select {
	case err := <-t.done:
		return err
	case <-w.ended:
		return errors.New("the watcher has ended")
	}
}

// takePlan puts a Plan in force. It is when the configuration is that was made of it, whatever else is wrong.
func (w *Watcher) takePlan(ctx context.Context, plan *mesh.Plan) error {
	if err := w.fits(plan); err != nil {
		return err
	}
	if w.cfg.Render != nil {
		failed := w.round(ctx, plan, false) // with the certificate in force: a newer one comes in its own time
		have, err := w.have()
		var text []byte
		if err == nil {
			text, err = w.cfg.Render(plan, have.Revocation != "")
		}
		if err == nil && have.Configuration != Digest(text) {
			err = failed
		}
		if err != nil {
			return err
		}
		if w.plan = plan; errors.Is(failed, errUnserved) {
			return failed // the agent asks again
		}
	}
	w.plan = plan
	w.tell(func(s *Status) { s.Plan = plan })
	return nil
}

// have is what the generation in force was made of.
func (w *Watcher) have() (Made, error) {
	d := credential.ReadDirectory(w.cfg.Output)
	current, err := d.Current()
	if err != nil || current == 0 {
		return Made{}, err
	}
	return madeOf(d.Path(current))
}
