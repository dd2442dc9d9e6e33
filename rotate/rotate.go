// Package rotate knows how a workload whose proxy reads its certificate from a secret store gets the next one: when
// it is due, in which steps, and what is done when a step fails or the process dies in the middle.
//
// The steps of one rotation, in this order:
//
//	request   a key and a certificate request are stored as the version ID-req; nothing is asked before
//	issue     the authority is asked under the request id ID; asked again, it gives the same certificate
//	stage     the whole credential is stored as the version ID, pending
//	verify    it is read back and checked as `countersign init` checks it
//	promote   it is made current; what was current is previous
//	deploy    instances are restarted one after the other, or all are replaced, where nobody reloads them
//	observe   every endpoint is looked at until it serves the new serial
//
// Whatever fails from promote on is undone: previous becomes current again, is deployed and observed, and the new
// key is removed. Before that nothing current was touched. A process may be killed at any point: the next one finds in
// the store how far it came and goes on from there, with the same request, so that at most one more certificate is
// issued. A lease in the store keeps two from working on one secret; who loses it stops at once. A process that stood
// still for longer than its lease, and knows nothing of it, is fenced off: a version is made current in place of the one
// that was current when the rotation looked, and of no other, and so is the record of the rotation.
//
// What is kept is a secret beside the workload's, NAME.rotation (see [Record]): which version is being brought in, and
// how the last rotation ended. It holds no key. Names that end in .rotation are therefore not for credentials.
package rotate

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"countersign.dev/mesh"
	"countersign.dev/secret"
)

// Store is what holds the credentials; errors are those of package secret. Like all that a rotation works with, it is
// used by several goroutines at a time where several targets are rolled out.
type Store interface {
	// Read gives the value of a version: an id, a stage, or empty for the current one.
	Read(ctx context.Context, name, version string) (value []byte, versionID string, err error)
	// Stage writes a version as the pending one; writing the same again changes nothing.
	Stage(ctx context.Context, name, id string, value []byte) (versionID string, err error)
	// Replace makes a version current in one step, and what was current previous, when that is the version with the id
	// replaces (empty: there is none) or the version itself. Else nothing changes: [secret.ErrReplaced].
	Replace(ctx context.Context, name, version, replaces string) error
	// Versions describes the versions, the newest first.
	Versions(ctx context.Context, name string) ([]secret.Version, error)
}

// Keeper is the rest of a store: exclusive work, and removing.
type Keeper interface {
	// Remove removes a version that is not current; one that is not there is no error.
	Remove(ctx context.Context, name, version string) error
	// Lease is [secret.HeldError] when somebody else has it.
	Lease(ctx context.Context, name, holder string, ttl time.Duration) (Lease, error)
	// EndLease ends the lease of a holder that is known to be dead. When somebody else has it by now, or nobody, nothing
	// changes.
	EndLease(ctx context.Context, name, holder string) error
	// Holder is who has the lease; empty when nobody has.
	Holder(ctx context.Context, name string) (holder string, until time.Time, err error)
}

// Lease is exclusive work on a name until it runs out; see Renew and Release of filestore.Lease.
type Lease interface {
	Renew(ctx context.Context) error
	Release(ctx context.Context) error
	Until() time.Time
}

// Authority issues certificates.
type Authority interface {
	// Issue certifies the key of a request. The same id with the same key gives the same certificate.
	Issue(ctx context.Context, request Request) (chain []byte, err error)
	// Trust is what the mesh believes now.
	Trust(ctx context.Context) (Trust, error)
}

// Exporter is an [Authority] that makes keys itself: it is asked for a whole credential, and never to Issue.
type Exporter interface {
	// Export gives a credential: its certificate, the certificates between it and the root, and the key, encrypted with the
	// passphrase. The same id gives the same certificate.
	Export(ctx context.Context, request Request) (*secret.Material, error)
	// Newest is what the authority has now for a workload; an empty serial when it has none, because it was revoked or
	// deleted there. What the store holds is due unless it is that one.
	Newest(ctx context.Context, workload mesh.Workload) (serial string, notAfter time.Time, err error)
}

// Request is what an [Authority] is asked for. The names are the workload's, and the authority's to know.
type Request struct {
	ID       string
	Workload mesh.Workload
	DNSNames []string
	// CSR is PEM. An [Exporter] gets none, but Key and Replaces: the kind of key it is to make, empty for any, and the serial of
	// the certificate that is to be replaced by another one, empty when any will do.
	CSR      []byte
	Key      mesh.KeyType
	Replaces string
	// TTL is how long the certificate is to be valid.
	TTL time.Duration
	// Receipt is what the authority gave to Keep at an earlier try of this ID; empty when there was none.
	Receipt string
	// Keep stores a receipt with the request, before the authority goes on: by it a later try finds the certificate that this
	// one has paid for. Another one replaces it. It is never nil, and called by one goroutine at a time before the authority
	// answers; its error is the authority's to return. It takes at most [MaxReceipt] bytes.
	Keep func(ctx context.Context, receipt string) error
}

// MaxReceipt bounds a receipt, in bytes.
const MaxReceipt = 2 << 10

// Trust is what an authority says of itself.
type Trust struct {
	// Bundle is the roots to trust, PEM.
	Bundle []byte
	// Known is further roots that the authority knows of, PEM: next ones and those that it signs with no more.
	Known []byte
	// CRL is the revocation lists (RFC 5280), PEM; empty when there are none. What stands on one is due, and is never made
	// current.
	CRL []byte
	// Issuer is what signs leaves now; nil when that is not known. A leaf of another one is due.
	Issuer *x509.Certificate
}

// Rollout replaces the instances of a workload by new ones, which take what is current when they start.
type Rollout interface {
	// Settle waits, before a roll-out, until the instances that there are serve, as far as that can be known: those of a
	// service that was started or scaled up a moment ago may not yet, and would be replaced at once, with nobody left to serve. It returns
	// when ctx ends, too, and at once when it cannot look or nobody is there to be waited for. Say is told what is waited for.
	Settle(ctx context.Context, target Target, say func(text string))
	// Begin has all instances replaced, and gives the roll-out's id without waiting. An error that is [ErrRolloutFailed] says
	// that there will be none, any other one that it is not known whether it has begun.
	Begin(ctx context.Context, target Target) (id string, err error)
	// Wait waits until a roll-out has ended and no instance of before is left; one that somebody else has begun after it
	// counts as well. Say is told what is waited for, for people. [ErrRolloutFailed] says that it was rolled back, or that
	// instances do not become healthy, also when that is so at the deadline of ctx; any other error that it is not known how
	// it stands.
	Wait(ctx context.Context, target Target, id string, say func(text string)) error
}

// Deployer makes instances take what is current, where nobody watches the store for them.
type Deployer interface {
	// Restart drains an instance, starts it again with what is current, and returns when it is ready.
	Restart(ctx context.Context, workload, instance string) error
}

// Observer looks at the instances of a workload.
type Observer interface {
	// Look gives one sighting for each place where a certificate can be seen, and one for an instance that cannot be
	// looked at. No sighting at all means that no instance is known. An error means that nobody could be asked.
	Look(ctx context.Context, target Target) ([]Sighting, error)
}

// By is how something was seen.
type By string

// How a serial was seen.
const (
	ByHandshake By = "handshake" // with the listener, by us
	ByPeers     By = "peers"     // by those that it connected to
	ByReport    By = "report"    // nobody has seen it: the instance says so
)

// Sighting is what one instance was seen to serve at one place.
type Sighting struct {
	Instance string `json:"instance"`
	Endpoint string `json:"endpoint,omitempty"`
	// Serial is as mtls.Serial spells it; empty when none was seen.
	Serial string `json:"serial"`
	By     By     `json:"by"`
	// Peers is another serial that peers saw it present, and PeersAt when they last did, while the instance itself says
	// that it presents Serial. Both are empty when nobody has seen another one.
	Peers   string    `json:"peers,omitempty"`
	PeersAt time.Time `json:"peersAt,omitzero"`
	// Alone is set where nobody else will ever tell what an instance presents: its word, or what is known of how it was started, counts at
	// once, and not after the time that peers are given to see it.
	Alone bool `json:"-"`
	// Away is set for an instance that the server has lost: it may be back in a moment, or never.
	Away bool `json:"away,omitempty"`
	// Problem says why nothing was seen, or what is wrong with the instance in its own words.
	Problem string `json:"problem,omitempty"`
}

// Target is one workload whose credential lies in a store.
type Target struct {
	Workload    mesh.Workload
	Certificate mesh.CertificatePlan
	// Inbound are its listeners.
	Inbound []mesh.Inbound
	// Secret is the credential's name, in Shape's layout. Bundle names the secret with the trust bundle; when it is empty
	// the bundle lies with the credential.
	Secret, Bundle string
	Shape          secret.Shape
	// Restart is set when instances take a new version only by being restarted.
	Restart bool
	// Rollout is set when instances take a new version by being replaced, all together; nil when they are not.
	Rollout Rollout
	// Authority issues for the workload, and Observer looks at it; nil means those of [Config].
	Authority Authority
	Observer  Observer
	// Calls names the workloads that it calls. [Rotator.RotateAll] gives them their turn first.
	Calls []string
	// Now is set by a rotation before it looks.
	Now Now
	// StoreName is what the specification calls the store.
	StoreName string
	Store     Store
	Keeper    Keeper
}

// Now is what a rotation knows when it has its [Observer] look; it is empty outside of one.
type Now struct {
	// Serial is of what is current in the store; empty when that does not matter.
	Serial string
	// Rollout is the id of the roll-out that brought it to the instances; empty when there was none.
	Rollout string
	// Roots are what an instance's certificate leads to, PEM: also those of the version before.
	Roots []byte
}

// Config is what a [Rotator] works with. Authority, Deployer and Observer may be nil when no target needs them.
type Config struct {
	Authority Authority
	Deployer  Deployer
	Observer  Observer
	// Holder says to others who holds a lease: [Holder].
	Holder string
	// Timeout is how long all endpoints may take to serve a new serial, for each service, and for each instance that is
	// restarted; 0 is [DefaultTimeout].
	Timeout time.Duration
	// RolloutTimeout is how long a roll-out may take; 0 is [DefaultRolloutTimeout].
	RolloutTimeout time.Duration
	// Wait is how long another rotation of the same secret is waited for, which lives; 0 gives up at once. For a trust bundle that
	// services share it is a minute at least.
	Wait time.Duration
	// Progress is told about each step, for people; nil tells nobody. It is called by one goroutine at a time.
	Progress func(workload string, step Step, text string)
	// Now is the clock; nil is time.Now.
	Now func() time.Time

	// Times that tests shorten; 0 is the default.
	leaseTTL, poll, unseen, away, bundleWait time.Duration
}

// DefaultTimeout is for a watcher that looks at the store every ten seconds and a proxy that reloads slowly.
const DefaultTimeout = 2 * time.Minute

// DefaultRolloutTimeout is for images that are pulled slowly, and tasks that drain for minutes.
const DefaultRolloutTimeout = 30 * time.Minute

// Times of a rotation.
const (
	// leaseTTL is how long a dead rotation keeps others from its secret.
	leaseTTL = 15 * time.Second
	// rolloutLease is leaseTTL for those that are rolled out.
	rolloutLease = time.Minute
	// bundleWait is how long a rotation waits that another one keeps from a bundle which services share.
	bundleWait = time.Minute
	// poll is the time between two looks at the endpoints.
	poll = 500 * time.Millisecond
	// unseen is how long a workload without a TLS listener is given to be seen by its peers, before its own word counts.
	unseen = 20 * time.Second
	// away is how long an instance is waited for that the server has lost. One that comes back later takes what is current.
	away = 30 * time.Second
	// settleTimeout bounds how long a roll-out waits for the instances of before it. Some services are never quite well.
	settleTimeout = 2 * time.Minute
	// askTimeout bounds one question to the authority.
	askTimeout = 30 * time.Second
	// issueTimeout bounds one request to an authority that is slow to issue, or makes everybody wait that asks too often.
	issueTimeout = 3 * time.Minute
)

// Step is a step of a rotation.
type Step string

// The steps, in their order, and the way back.
const (
	StepLease    Step = "lease"
	StepLook     Step = "look" // at what there is
	StepRequest  Step = "request"
	StepIssue    Step = "issue"
	StepStage    Step = "stage"
	StepVerify   Step = "verify"
	StepPromote  Step = "promote"
	StepDeploy   Step = "deploy"
	StepObserve  Step = "observe"
	StepRollback Step = "rollback"
)

// Errors of a rotation, beside those of package secret.
var (
	// ErrStopped says that the rotation was told to end. The next one goes on where it was.
	ErrStopped = errors.New("stopped; the next rotation goes on from here")
	// ErrRequest says that an authority will never answer a request of this id.
	ErrRequest = errors.New("the request cannot be answered")
	// ErrUnfit says that a credential does not pass the checks, and was not made current.
	ErrUnfit = errors.New("the credential is not fit to be used")
	// ErrNotServed says that the endpoints did not all serve the new certificate in time.
	ErrNotServed = errors.New("not every endpoint serves the new certificate")
	// ErrNotObserved says that nobody could look. Nothing is known to be wrong, and nothing was undone.
	ErrNotObserved = errors.New("the endpoints could not be observed; the new version stays current, and the next rotation looks again")
	// ErrRolloutFailed says that a roll-out was refused or rolled back, or that its instances never became healthy.
	ErrRolloutFailed = errors.New("the roll-out of new instances failed")
	// ErrUnreachable says that no instance can be looked at from here. Nothing was changed.
	ErrUnreachable = errors.New("no instance can be reached from here")
	// ErrForeign says that a current version is of another authority, and in use as far as can be seen. It is not replaced
	// unless somebody wants it.
	ErrForeign = errors.New("what is current is of an authority that this one knows nothing of")
	// ErrInUse says that a trust bundle still needs a root that is to be removed.
	ErrInUse = errors.New("somebody still needs a root that the new trust bundle does not have")
)

// Rotator rotates. It is safe for concurrent use; the lease orders those who work on one secret.
type Rotator struct {
	config Config
	now    func() time.Time
}

// New makes a Rotator.
func New(config Config) (*Rotator, error) {
	if config.Holder == "" {
		return nil, errors.New("a rotation needs a name for its lease")
	}
	if config.Timeout <= 0 {
		config.Timeout = DefaultTimeout
	}
	if config.RolloutTimeout <= 0 {
		config.RolloutTimeout = DefaultRolloutTimeout
	}
	config.Progress = inTurn(config.Progress)
	if config.leaseTTL == 0 {
		config.leaseTTL = leaseTTL
	}
	if config.bundleWait == 0 {
		config.bundleWait = bundleWait
	}
	if config.poll == 0 {
		config.poll = poll
	}
	if config.unseen == 0 {
		config.unseen = unseen
	}
	if config.away == 0 {
		config.away = min(away, config.Timeout/2)
	}
	r := &Rotator{config: config, now: config.Now}
	if r.now == nil {
		r.now = time.Now
	}
	return r, nil
}

// inTurn lets one goroutine at a time tell of its progress.
func inTurn(progress func(string, Step, string)) func(string, Step, string) {
	if progress == nil {
		return func(string, Step, string) {}
	}
	var mu sync.Mutex
	return func(workload string, step Step, text string) {
		mu.Lock()
		defer mu.Unlock()
		progress(workload, step, text)
	}
}

// Options say how far a rotation goes.
type Options struct {
	// Force rotates although nothing is due, replaces a current version that is damaged, and lets another authority take the place
	// of the one of before.
	Force bool
	// Early rotates although nothing is due, and no more than that: what is damaged, or nobody's here, is refused as ever.
	Early bool
	// NoDeploy makes the new version current and goes no further: nothing is restarted and nobody is looked at. A trust
	// bundle that somebody takes only by being restarted is deployed by the next rotation without it.
	NoDeploy bool
	// Service, for RotateAll, names the one workload whose credential is rotated, after the bundle that it uses; empty is all.
	Service string
	// DryRun says what would be done. It takes no lease and writes nothing.
	DryRun bool
	// Patient leaves alone for a while what failed after it had cost something: an hour, then twice as long each time, at most a
	// day, shorter the sooner what is current ends, and never longer than an hour when that will not do. It is for whoever comes by a schedule and remembers nothing: the record in the
	// store does. What was begun and has not ended is gone on with at once.
	Patient bool
}

// Outcome is how a rotation ended.
type Outcome string

// The outcomes.
const (
	Nothing     Outcome = "nothing"      // it is not due
	WouldRotate Outcome = "would rotate" // with DryRun
	Rotated     Outcome = "rotated"      // every endpoint was seen with the new certificate
	Promoted    Outcome = "promoted"     // with NoDeploy: it is current, and nobody was looked at
	Staged      Outcome = "staged"       // of Obtain: it is pending, and was checked
	RolledBack  Outcome = "rolled back"  // it failed, and the version of before is current again
	Lost        Outcome = "lost"         // somebody else was faster, and what he has made current was left so
	Failed      Outcome = "failed"
	Waiting     Outcome = "waiting" // with Patient: it failed not long ago
)

// Result is what became of one service or one bundle.
type Result struct {
	Service string  `json:"service,omitempty"`
	Secret  string  `json:"secret"`
	Store   string  `json:"store,omitempty"`
	Outcome Outcome `json:"outcome"`
	// Reason says why it was due.
	Reason string `json:"reason,omitempty"`
	// Version, Serial and NotAfter are of what is current at the end; Due is when that is to be replaced.
	Version  string    `json:"version,omitempty"`
	Serial   string    `json:"serial,omitempty"`
	NotAfter time.Time `json:"notAfter,omitzero"`
	Due      time.Time `json:"due,omitzero"`
	// Seen is where the certificate was seen at the end.
	Seen []Sighting `json:"seen,omitempty"`
	// Step and Error say where and why it failed.
	Step  Step   `json:"step,omitempty"`
	Error string `json:"error,omitempty"`
	// Notes are what else people should know.
	Notes []string `json:"notes,omitempty"`
	// Err is the error itself.
	Err error `json:"-"`
	// Next is when a rotation with Patient tries again what failed; zero when the next one does. LastError says of what
	// is waiting how it failed.
	Next      time.Time `json:"-"`
	LastError string    `json:"-"`

	failing bool // nothing is due, and the record still says that the last rotation failed
	unfit   bool // what is current will not do: nobody may be served with it
}

// fail puts an error into a result.
func (r *Result) fail(step Step, err error) {
	switch {
	case errors.Is(err, secret.ErrReplaced):
		r.Outcome = Lost
	case r.Outcome != RolledBack:
		r.Outcome = Failed
	}
	r.Step, r.Err = step, err
	r.Error = fmt.Sprintf("at the step %s: %v", step, err)
}
