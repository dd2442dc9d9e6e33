// Package supervise knows how a foreign data plane, NGINX or HAProxy, is kept in force beside its agent: it
// starts the program, gives it each new certificate and Plan as files in memory, sees by handshakes that they are
// served, and goes back to what was good when they are not.
//
// # Generations
//
// Everything that the program reads is one generation: its configuration, which names the files of the same
// generation and no other, and the certificates. A generation is written whole, tested with the program's own
// command, and put in force by the swap of one link; only then is the program told. So that nobody who reads ever
// meets a mixture, and the way back is the same swap.
//
// Each start of the program gets a directory of its own below one of this process ([Config.RunDir]): NGINX does
// not bind a socket that a killed process has left.
//
// # Private keys
//
// They stand in files of a memory file system, in directories that are this user's alone. A memfd would not even
// have a name there, but a program that runs cannot be given a new one, and /proc/PID/fd of this process, which
// lets nobody trace it, is closed to the program's own user; a file is what both programs read at each reload.
//
// # Whose is what
//
// change is held while something is put in force, so that one thing happens at a time; mu guards what readers
// look at, and is never held while anything is waited for.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"countersign.dev/accesslog"
	"countersign.dev/api"
	"countersign.dev/engine"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/stat"
)

// Errors of a [Supervisor].
var (
	// ErrClosed says that it was shut down.
	ErrClosed = errors.New("the supervisor is shut down")
	// ErrNotInForce says that a generation was not taken, and that the one before serves on.
	ErrNotInForce = errors.New("not in force")
)

// How long is waited. Nothing depends on the exact values.
const (
	testTimeout   = 30 * time.Second // for the program's own test of a configuration
	servePatience = 20 * time.Second // for a generation to be seen served
	noIdentity    = 5 * time.Second  // for a certificate, where a Plan came first
	stopPatience  = 2 * time.Second  // between being asked to end at once and being ended
	sampling      = 2 * time.Second  // between two looks at the program's own counters
)

// Config says what a [Supervisor] runs, and for whom.
type Config struct {
	// Binary is the program, as [Find] found it.
	Binary *Binary
	// Render makes the program's configuration of a Plan.
	Render func(*mesh.Plan, engine.Options) (*engine.Config, error)
	// Source is the workload's identity. Its key has to be one that can be encoded.
	Source mtls.Source
	// RunDir holds a directory of this process with keys and sockets; it is made by [NewRunDir].
	RunDir *RunDir
	// Address, AppAddress and Binds are as of the built-in proxy.
	Address, AppAddress netip.Addr
	Binds               map[string]netip.AddrPort
	// Drain is how long old connections live on after a reload.
	Drain time.Duration
	// AccessLog gets the program's access log, whole lines; nil means that it is only counted.
	AccessLog io.Writer
	Log       *slog.Logger
	// Gauges gives further values for /stats and /metrics; it may be nil.
	Gauges func() map[string]int64
	// Changed is called when what Report gives has got news. It neither blocks nor calls the Supervisor.
	Changed func()
	// Now is the clock that certificates are compared with, time.Now when it is nil.
	Now func() time.Time
}

// Supervisor keeps one program in force. Its methods may be called concurrently.
type Supervisor struct {
	cfg   Config
	log   *slog.Logger
	admin http.Handler

	work   context.Context // ends when it is shut down: nothing new is put in force any more
	halt   context.CancelFunc
	tasks  sync.WaitGroup
	wake   chan struct{}  // there is another identity
	hurry  chan struct{}  // the same, for whoever waits with change held
	reads  sync.WaitGroup // of what the program writes
	lines  *accesslog.Lines
	counts *counts

	sampling sync.Mutex // held while the program's own counters are read
	sampler  sampler    // guarded by sampling; nil, and never changed, where there are none

	change  chan struct{} // a lock that can be waited for with a context; see lock
	reloads []time.Time   // guarded by change: the last ones
	starts  int           // guarded by change
	made    int           // guarded by change: generations

	mu       sync.Mutex
	running  *process    // guarded by mu: nil when there is none
	good     *generation // guarded by mu: what was last seen in force
	seen     *sighting   // guarded by mu: what handshakes showed; nil while nothing is served
	unsure   bool        // guarded by mu: the program may have something else in force than good
	drained  bool        // guarded by mu: inbound listeners stay closed
	retired  *process    // guarded by mu: it was told to end, and is not started again
	closed   bool        // guarded by mu
	problems [problemCount]string
	refused  string // guarded by mu: why the newest Plan is not in force

	patience time.Duration // servePatience, but in tests

	force atomic.Bool // the program is told again, though nothing is new
}

// problem is something that can be wrong and stays until it is cured.
type problem int

const (
	problemProcess  problem = iota // the program does not run, or is not seen to serve
	problemIdentity                // the newest certificate is not served
	problemLists                   // the revocation lists cannot be relied on
	problemCount
)

// New makes a Supervisor that runs nothing yet; the first Apply starts the program. Shutdown or Close ends it.
func New(cfg Config) (*Supervisor, error) {
	switch {
	case cfg.Binary == nil || cfg.Render == nil || cfg.Source == nil || cfg.Log == nil || cfg.RunDir == nil:
		return nil, errors.New("making a supervisor: Binary, Render, Source, RunDir and Log have to be set")
	case !cfg.Address.IsValid() || cfg.Address.Unmap().IsUnspecified():
		return nil, fmt.Errorf("making a supervisor: %q is not an address to bind; give the task's own", cfg.Address)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	s := &Supervisor{
		cfg: cfg, log: cfg.Log.With("engine", cfg.Binary.Engine.String()),
		wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1), change: make(chan struct{}, 1),
		counts: newCounts(cfg.Changed), patience: servePatience,
	}
	s.work, s.halt = context.WithCancel(context.Background())
	if cfg.Binary.Engine.sampler != nil {
		s.sampler = cfg.Binary.Engine.sampler(s.counts)
	}
	s.lines = accesslog.New(cfg.AccessLog)
	s.admin = s.newAdmin()
	s.tasks.Go(s.follow)
	s.tasks.Go(s.sample)
	s.tasks.Go(s.lookOn)
	return s, nil
}

// lock takes the right to change what is in force.
func (s *Supervisor) lock(ctx context.Context) error {
	select {
	case s.change <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Supervisor) unlock() { <-s.change }

// Apply puts a Plan in force and returns when handshakes have shown it. On an error, which may be
// [engine.ErrRefused], the Plan before stays in force.
func (s *Supervisor) Apply(plan *mesh.Plan) error {
	identity, err := s.identity(s.work)
	if err != nil {
		return fmt.Errorf("revision %d waits for a certificate: %w", plan.Revision, err)
	}
	if err := s.lock(s.work); err != nil {
		return ErrClosed
	}
	defer s.unlock()
	if newest, err := s.cfg.Source.Identity(); err == nil {
		identity = newest // while this waited, another one may have come into force, with newer revocation lists
	}
	err = s.bring(s.work, plan, identity)
	if s.work.Err() != nil {
		return ErrClosed
	}
	refused := ""
	if err != nil {
		err = fmt.Errorf("revision %d: %w", plan.Revision, err)
		refused = err.Error()
	}
	s.mu.Lock()
	s.refused = refused
	s.mu.Unlock()
	return err
}

// IdentityChanged says that the Source gives another leaf, bundle or list of revocations. It returns at once.
func (s *Supervisor) IdentityChanged() {
	for _, told := range []chan struct{}{s.hurry, s.wake} {
		select {
		case told <- struct{}{}:
		default:
		}
	}
}

// Reload gives the program what it has once more, in a new generation: as SIGHUP asks for. It returns at once.
func (s *Supervisor) Reload() {
	s.force.Store(true)
	s.IdentityChanged()
}

// identity waits a little for one.
func (s *Supervisor) identity(ctx context.Context) (*mtls.Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, noIdentity)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		identity, err := s.cfg.Source.Identity()
		if err == nil {
			return identity, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-tick.C:
		}
	}
}

// fileCheck is how often a gateway's certificate files are looked at.
const fileCheck = 2 * time.Second

// follow puts each new identity in force with the Plan that is, and each change of a gateway's own certificate files,
// which the program reads only when it is told.
func (s *Supervisor) follow() {
	files := time.NewTicker(fileCheck)
	defer files.Stop()
	tries := backoff{first: time.Second, most: 30 * time.Second}
	var again <-chan time.Time
	for {
		select {
		case <-s.work.Done():
			return
		case <-s.wake:
			tries.reset()
		case <-again:
		case <-files.C:
			if again != nil || !s.stale() {
				continue
			}
		}
		again = nil
		if err := s.renew(); err != nil && s.work.Err() == nil {
			s.setProblem(problemIdentity, fmt.Sprintf("the newest certificate or bundle is not in force: %v", err))
			s.log.Error("cannot put a new certificate or bundle in force; what was good serves on, and it is tried again", "error", err)
			again = time.After(tries.next())
		} else if s.work.Err() == nil {
			s.setProblem(problemIdentity, "")
		}
	}
}

// stale tells whether something else than a Plan or an identity has made another generation due: a gateway's own
// certificate files have changed, or revocation lists have come to their end.
func (s *Supervisor) stale() bool {
	s.mu.Lock()
	good := s.good
	s.mu.Unlock()
	if good == nil {
		return false
	}
	if lists, err := s.lists(good.identity); err == nil && lists != good.lists {
		return true
	}
	return hasFiles(good.plan) && filesDigest(good.plan) != good.files
}

// renew brings the Plan in force together with the newest identity.
func (s *Supervisor) renew() error {
	if err := s.lock(s.work); err != nil {
		return err
	}
	defer s.unlock()
	// Not before: while this waited, a Plan may have brought a newer one.
	identity, err := s.cfg.Source.Identity()
	if err != nil {
		return nil //nolint:nilerr // the agent says what is wrong with it, and tells when there is another
	}
	s.mu.Lock()
	good := s.good
	s.mu.Unlock()
	if good == nil {
		return nil // the first Plan takes what is newest then
	}
	return s.bring(s.work, good.plan, identity)
}

// setProblem notes what is wrong; an empty text says that it is well again.
func (s *Supervisor) setProblem(about problem, text string) {
	s.mu.Lock()
	was := s.problems[about]
	s.problems[about] = text
	s.mu.Unlock()
	if was != text {
		s.cfg.Changed()
	}
}

// Problem is all that is wrong at this moment, empty when all is well. What is wrong with a Plan is Apply's error.
func (s *Supervisor) Problem() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var texts []string
	for _, text := range s.problems {
		if text != "" {
			texts = append(texts, text)
		}
	}
	return strings.Join(texts, "; ")
}

// PID is the program's master process, 0 when it does not run.
func (s *Supervisor) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running == nil {
		return 0
	}
	return s.running.pid
}

// Admin serves the administrator what the built-in proxy does, as far as the program tells it. It is for a
// loopback address, for it asks nobody who he is.
func (s *Supervisor) Admin() http.Handler { return s.admin }

// Report is what the program was seen to serve.
func (s *Supervisor) Report() api.Report {
	r := s.counts.report()
	r.Listening = []api.Listening{}
	r.Problem = s.Problem()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.good != nil {
		r.Revision = s.good.plan.Revision
	}
	if s.seen == nil || s.closed {
		return r
	}
	r.Listening = append(r.Listening, s.seen.listening...)
	r.Serial, r.NotAfter = mtls.Serial(s.seen.leaf), s.seen.leaf.NotAfter.UTC()
	return r
}

// stats are the values of this Supervisor.
func (s *Supervisor) stats() *stat.Set { return s.counts.set }

// backoff is how long is waited between tries.
type backoff struct{ first, most, now time.Duration }

func (b *backoff) reset() { b.now = 0 }

func (b *backoff) next() time.Duration {
	b.now = min(max(2*b.now, b.first), b.most)
	return b.now
}

// Close ends the program at once and removes what was written for it.
func (s *Supervisor) Close() error {
	s.halt()
	_ = s.lock(context.Background())
	defer s.unlock()
	s.mu.Lock()
	s.closed = true
	running := s.running
	s.mu.Unlock()
	if running != nil {
		running.kill()
		<-running.gone
	}
	s.tasks.Wait()
	s.reads.Wait()
	s.lines.Close()
	return s.cfg.RunDir.Remove()
}

// withoutInbound is a Plan that takes nothing from outside any more, and lets the application finish.
func withoutInbound(plan *mesh.Plan) *mesh.Plan {
	drained := *plan
	drained.Inbound = nil
	return &drained
}

// pause waits, and tells whether it waited to the end.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Environment is all that a proxy inherits: what else stands in ours, such as secrets of the user's, is none of its
// business.
func Environment() []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if zone, ok := os.LookupEnv("TZ"); ok {
		env = append(env, "TZ="+zone)
	}
	return env
}
