// Package agent knows how a workload gets and keeps its identity and its Plan: it enrols with a join
// token, renews the certificate in time, follows the server's stream of Plans, and goes on with what
// it has for as long as the server is away.
//
// It trusts nothing on first use: the server's chain has to hold the root that was pinned, and later
// one of the roots that came over a connection that was verified so. Private keys are made here and
// never leave the state directory.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"countersign.dev/api"
	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// ErrConfig says that a [Config] makes no sense; the message names the field's flag.
var ErrConfig = errors.New("agent settings")

// Config says what an agent is for. Server, Pin, TokenFile, StateDir, Instance, Log and OnPlan must
// be set.
type Config struct {
	Server    *url.URL // https://HOST[:PORT]
	Pin       string   // as mtls.CheckPin accepts it: the root of the mesh
	TokenFile string   // read at each enrolment, so that it may be replaced
	StateDir  string   // made with mode 0700; locked while the agent lives
	Instance  string   // the name of this instance, unique in the workload
	Log       *slog.Logger

	// OnPlan puts a Plan in force and returns when it is. On an error the Plan before stays, and the
	// new one is tried again. It is called by one goroutine.
	OnPlan func(*mesh.Plan) error
	// OnIdentity is told that [Agent.Identity] gives another leaf, bundle or revocation lists. It may be nil, returns
	// quickly and may be called from several goroutines.
	OnIdentity func()
	// Report gives what the data plane serves. The agent fills in what it knows itself: Instance,
	// LastRenewal, Draining, ClockOffset, PID, its own problems, Bundle when it is empty (a data plane that
	// reads files knows better which it has read), Serial and NotAfter when Serial is empty, and Revision
	// when it is 0. It may be nil.
	Report func() api.Report
	// Foreign says that the data plane does not serve with the agent's certificate: Serial, NotAfter and
	// LastRenewal are what Report gives.
	Foreign bool

	dial dialFunc         // a test's network; nil is the real one
	wall func() time.Time // a test's clock; nil is time.Now
}

// Agent is a workload's link to its mesh. It is an [mtls.Source]. All methods may be called by
// several goroutines; [Agent.Run] is called once.
type Agent struct {
	cfg    Config
	log    *slog.Logger
	client *client
	clock  meshClock

	// saving is held while held or the state directory change, so that what is in memory and what is
	// on the disk take the same steps. It is taken before mu.
	saving sync.Mutex
	state  *state

	mu       sync.Mutex // guards the rest
	held     *held      // nil before the enrolment
	damage   error      // why what the state directory held is of no use
	plan     *mesh.Plan // the newest that was received
	planNew  bool       // plan is not in force yet
	inForce  *mesh.Plan // what OnPlan accepted last
	planSave bool       // inForce has to be written to the disk
	watched  uint64     // the revision to resume the watch at: 0 for everything
	// revocation is what the newest Plan says about revocation lists; changed with saving held as well.
	revocation mesh.RevocationPlan
	issuer     string // the key identifier of the issuing CA that signs, hex, as the server told last

	connected  bool
	dropWatch  context.CancelCauseFunc // ends the open watch; nil when there is none
	draining   bool
	problems   map[problem]string
	renewals   int64
	failures   int64
	renewAfter time.Duration // as it was said with the certificate, for as long as there is no Plan
	everValid  bool          // this process has held a certificate that was good
	refusedOld bool          // the server says that the certificate has expired
	soonAt     time.Time     // a Plan made a renewal due: not before then
	retryAt    time.Time     // the last try failed: not before then
	tried      wanted        // what the last renewal asked for

	started time.Time

	// Each holds one token: something changed for the goroutine that waits.
	wakeRenew, wakeApply, wakeReport chan struct{}

	news atomic.Bool // the data plane has news, and a report of it is about to be sent
}

// held is a certificate in use. It is not changed after it was made.
type held struct {
	identity *mtls.Identity // with what the Plan says about crls
	crls     *mtls.CRLs     // the revocation lists, whether they are looked at or not
	lease    lease
	saved    bool // it is on the disk
	orphan   bool // its own root is not trusted any more
}

// New checks the settings, takes the state directory and reads it. The directory stays locked until
// [Agent.Run] returns, or [Agent.Close] is called by somebody who does not run it. Errors are
// [ErrConfig], [ErrState] and [ErrOtherState].
func New(cfg Config) (*Agent, error) {
	if err := checkConfig(cfg); err != nil {
		return nil, err
	}
	if cfg.wall == nil {
		cfg.wall = time.Now
	}
	if cfg.dial == nil {
		cfg.dial = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	}
	state, have, err := openState(cfg.StateDir, cfg.Instance, cfg.Pin, cfg.Log)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		cfg: cfg, log: cfg.Log, state: state, damage: have.damage, started: time.Now(),
		problems:  make(map[problem]string),
		wakeRenew: make(chan struct{}, 1), wakeApply: make(chan struct{}, 1), wakeReport: make(chan struct{}, 1),
	}
	a.clock.wall = cfg.wall
	a.client = &client{
		base: cfg.Server, dial: cfg.dial, trust: a.trust, certificate: a.certificate,
		now:     func() time.Time { now, _ := a.clock.now(); return now },
		observe: a.observeRoughly,
	}
	if have.identity != nil {
		a.restore(have)
	}
	return a, nil
}

func checkConfig(cfg Config) error {
	switch {
	case cfg.Server == nil || cfg.Server.Scheme != "https" || cfg.Server.Hostname() == "":
		return fmt.Errorf("%w: --server has to be https://HOST:PORT", ErrConfig)
	case cfg.Server.User != nil || cfg.Server.RawQuery != "" || cfg.Server.Fragment != "" || (cfg.Server.Path != "" && cfg.Server.Path != "/"):
		return fmt.Errorf("%w: --server has to be https://HOST:PORT and nothing more", ErrConfig)
	case cfg.StateDir == "":
		return fmt.Errorf("%w: --state has to name a directory", ErrConfig)
	case cfg.Log == nil || cfg.OnPlan == nil:
		return fmt.Errorf("%w: Log and OnPlan have to be set", ErrConfig)
	}
	if err := mtls.CheckPin(cfg.Pin); err != nil {
		return fmt.Errorf("%w: --ca-pin: %w", ErrConfig, err)
	}
	if err := CheckInstance(cfg.Instance); err != nil {
		return fmt.Errorf("%w: --instance: %w", ErrConfig, err)
	}
	return nil
}

// CheckInstance tells whether a text may name an instance: as the server has it, a DNS name in either
// case, which is what host names, task ids and the names that `up` gives are.
func CheckInstance(s string) error { return id.CheckDNSName(strings.ToLower(s)) }

// restore takes what the state directory held. How old the certificate is can only be read from the
// machine's clock for now; the first word of the server corrects it.
func (a *Agent) restore(have *stored) {
	leaf := have.identity.Certificate.Leaf
	if have.plan != nil {
		a.revocation = have.plan.Revocation
	}
	a.held = &held{identity: a.checked(have.identity, have.crls), crls: have.crls, lease: leaseOf(leaf, a.cfg.wall(), random()), saved: true}
	a.everValid = !a.held.lease.expired(a.cfg.wall())
	if have.plan != nil {
		a.plan, a.planNew = have.plan, true
		a.wakeApply <- struct{}{}
	}
}

// Run serves until ctx ends, and returns nil then. Before that it returns only when the first
// enrolment is refused for good: the pin or the token is wrong, or the workload is not declared
// ([ErrPin], [ErrToken], [ErrRefused]).
func (a *Agent) Run(ctx context.Context) error {
	defer func() { _ = a.Close() }() // what was written has been synced
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.applyLoop(ctx) })
	group.Go(func() error {
		if _, err := a.current(); err != nil {
			if err := a.enrollFirst(ctx); err != nil {
				return err
			}
		} else if _, err := a.Identity(); err != nil {
			a.log.ErrorContext(ctx, "nothing can be served until the server has given a new certificate", "error", err)
		}
		group.Go(func() error { return a.renewLoop(ctx) })
		group.Go(func() error { return a.watchLoop(ctx) })
		group.Go(func() error { return a.reportLoop(ctx) })
		return nil
	})
	err := group.Wait()
	a.client.close()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// Close frees the state directory. [Agent.Run] does it by itself.
func (a *Agent) Close() error { return a.state.close() }

// Identity implements [mtls.Source]. Before the enrolment the error is [mtls.ErrNoIdentity]; when the
// certificate's end has passed it is [mtls.ErrExpired]: peers would refuse it, and here it can be
// said why.
func (a *Agent) Identity() (*mtls.Identity, error) {
	have, err := a.current()
	if err != nil {
		return nil, err
	}
	if now, _ := a.clock.now(); have.lease.expired(now) {
		return nil, fmt.Errorf("the certificate of %s (serial %s): %w on %s", have.identity.ID,
			mtls.Serial(have.identity.Certificate.Leaf), mtls.ErrExpired, have.lease.notAfter.UTC().Format(time.RFC3339))
	}
	return have.identity, nil
}

// current is what is held, expired or not.
func (a *Agent) current() (*held, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.held == nil {
		return nil, mtls.ErrNoIdentity
	}
	return a.held, nil
}

// ID is the workload's identity, zero before the enrolment.
func (a *Agent) ID() id.ID {
	have, err := a.current()
	if err != nil {
		return id.ID{}
	}
	return have.identity.ID
}

// Now is the time by the server's clock, as far as it is known: setting the machine's clock does not
// move it.
func (a *Agent) Now() time.Time {
	now, _ := a.clock.now()
	return now
}

// observe notes the server's time. The first one corrects the age of a certificate that was read
// from the disk; later ones may show that this machine has slept.
func (a *Agent) observe(server time.Time) {
	_, known := a.clock.now()
	a.clock.observe(server)
	if known {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.held != nil && a.held.lease.wait(a.renewAfterNow(), time.Now(), server, true) == 0 {
			wake(a.wakeRenew)
		}
		return
	}
	a.saving.Lock()
	defer a.saving.Unlock()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.held != nil {
		fresh := *a.held
		fresh.lease = leaseOf(fresh.identity.Certificate.Leaf, server, fresh.lease.jitter)
		a.held = &fresh
		a.everValid = !fresh.lease.expired(server)
	}
	wake(a.wakeRenew)
}

// observeRoughly notes the time of an HTTP Date header, which is good enough when there is no other.
func (a *Agent) observeRoughly(date time.Time) {
	if _, known := a.clock.now(); !known {
		a.observe(date)
	}
}

// wake leaves a token for whoever waits on c, unless one is there.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
