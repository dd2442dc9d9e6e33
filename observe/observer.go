package observe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"countersign.dev/mesh"
)

// Defaults of [Config].
const (
	DefaultTimeout  = 5 * time.Second
	DefaultParallel = 16
)

// settleStep is the time between two looks at a certificate that deviates.
const settleStep = 200 * time.Millisecond

// quiet is how long a tcp port that lets a caller in may stay silent before it counts as let in.
const quiet = time.Second

// Config says with what an [Observer] goes out.
type Config struct {
	// Roots are the mesh's trust bundle, Chain the certificates that a stranger imitates: the root's
	// and the issuer's.
	Roots []*x509.Certificate
	// Probe is the certificate of spiffe://TRUST-DOMAIN/probe/verify: valid, and in nobody's policy.
	Probe tls.Certificate
	// Expired is a certificate of the same CA that has expired or soon will; the observer waits for
	// it. Nil skips the checks that need it.
	Expired *tls.Certificate
	// Settle is for how long an endpoint is looked at again whose certificate deviates, because it may
	// be about to renew: a sidecar that has just heard what its certificate has to hold first serves
	// the one that it has, and what is served is reported a little later. 0 looks once.
	Settle time.Duration
	// Serial asks, while an endpoint settles, for the serial that an instance reports now. Nil
	// believes the first report.
	Serial func(ctx context.Context, workload, instance string) (string, error)
	// Timeout bounds one connection, Parallel the connections at one time; 0 takes the default.
	Timeout  time.Duration
	Parallel int
	// Progress, when it is not nil, is told from time to time how many probes of how many are done.
	// It is called by several goroutines.
	Progress func(done, of int)
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Observer makes observations. It is safe for concurrent use.
type Observer struct {
	config   Config
	timeout  time.Duration
	parallel int
	now      func() time.Time
	stranger func(t *Target) (tls.Certificate, error)
}

// Report is what was observed, sorted by workload, instance and port.
type Report struct {
	Endpoints []Observation `json:"endpoints"`
	Findings  []Finding     `json:"findings"`
}

// New makes an Observer, and with it a CA that nobody knows.
func New(config Config) (*Observer, error) {
	if len(config.Roots) == 0 {
		return nil, errors.New("the trust bundle is empty: there is nothing to compare certificates with")
	}
	if config.Probe.Leaf == nil {
		return nil, errors.New("the observer has no certificate of its own")
	}
	if config.Expired != nil && config.Expired.Leaf == nil {
		return nil, errors.New("the certificate that is to have expired is not parsed")
	}
	o := &Observer{config: config, timeout: config.Timeout, parallel: config.Parallel, now: config.Now}
	if o.timeout <= 0 {
		o.timeout = DefaultTimeout
	}
	if o.parallel <= 0 {
		o.parallel = DefaultParallel
	}
	if o.now == nil {
		o.now = time.Now
	}
	ca, err := newStrangerCA(config.Roots[0], config.Probe)
	if err != nil {
		return nil, fmt.Errorf("making a CA that nobody knows: %w", err)
	}
	o.stranger = ca.issue
	return o, nil
}

// versions are probed, oldest first.
var versions = [...]uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12, tls.VersionTLS13}

// perVersion holds an outcome for each of versions; nil where none was sought.
type perVersion [len(versions)]*outcome

// facts are what was seen of one target. Each field is written by one goroutine, once.
type facts struct {
	version  perVersion // the handshake with each version
	weak     *outcome   // TLS 1.2 with nothing but weak ciphers
	groups   perVersion // key exchanges that are not declared; nil where there are none
	plain    *outcome
	closed   []*outcome // by Target.Closed
	none     perVersion // clients, by the accepted versions
	stranger perVersion
	expired  perVersion
	probe    perVersion
	serial   string // as reported, asked again when needed
}

// Observe looks at all targets and returns what it saw. An endpoint that cannot be reached is a
// finding, not an error; errors are those of ctx and of the observer itself.
func (o *Observer) Observe(ctx context.Context, targets []Target) (Report, error) {
	seen := make([]facts, len(targets))
	progress := o.counter()
	steps := []func(ctx context.Context, t *Target, f *facts, j *jobs){o.hellos, o.clients, o.settle, o.expiries}
	for i, step := range steps {
		j := &jobs{}
		for k := range targets {
			step(ctx, &targets[k], &seen[k], j)
		}
		if i == len(steps)-1 && len(j.list) > 0 {
			if err := o.waitExpired(ctx); err != nil {
				return Report{}, err
			}
		}
		if err := j.run(ctx, o.parallel, progress); err != nil {
			return Report{}, err
		}
	}
	report := Report{Endpoints: []Observation{}, Findings: []Finding{}}
	for i, target := range targets {
		observation := o.judge(&target, &seen[i])
		report.Endpoints = append(report.Endpoints, observation)
		for _, check := range observation.Checks {
			if check.Result == Deviates {
				report.Findings = append(report.Findings, target.finding(check))
			}
		}
	}
	return report, nil
}

// jobs are probes that depend on nothing but what was seen before.
type jobs struct {
	list []func(ctx context.Context) error
}

func (j *jobs) add(f func(ctx context.Context) error) { j.list = append(j.list, f) }

// run does the jobs, some at a time, and ends early with ctx.
func (j *jobs) run(ctx context.Context, parallel int, progress func(done, of int)) error {
	progress(0, len(j.list))
	group, within := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for _, job := range j.list {
		group.Go(func() error {
			if err := within.Err(); err != nil {
				return err
			}
			err := job(within)
			progress(1, 0)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// hellos are the probes that need nothing: each version, weak ciphers, plaintext, the way past.
func (o *Observer) hellos(_ context.Context, t *Target, f *facts, j *jobs) {
	for i, v := range versions {
		j.add(func(ctx context.Context) error {
			out := o.dialTLS(ctx, t, hello{version: v, suites: allSuites(), certificate: &o.config.Probe})
			f.version[i] = &out
			return nil
		})
	}
	if t.Inbound.TLS != mesh.Off {
		j.add(func(ctx context.Context) error {
			out := o.dialTLS(ctx, t, hello{version: tls.VersionTLS12, suites: weakSuites(), certificate: &o.config.Probe})
			f.weak = &out
			return nil
		})
		for i, v := range versions {
			if groups := undeclaredGroups(&t.Inbound, v); groups != nil {
				j.add(func(ctx context.Context) error {
					out := o.dialTLS(ctx, t, hello{version: v, groups: groups, certificate: &o.config.Probe})
					f.groups[i] = &out
					return nil
				})
			}
		}
	}
	j.add(func(ctx context.Context) error {
		out := o.dialPlain(ctx, t, o.patience(t.Inbound.TLS != mesh.Strict))
		f.plain = &out
		return nil
	})
	f.closed = make([]*outcome, len(t.Closed))
	for i, closed := range t.Closed {
		j.add(func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, o.timeout)
			defer cancel()
			conn, out := dial(ctx, closed.Address)
			if conn != nil {
				out.ending = answered
				conn.Close()
			}
			f.closed[i] = &out
			return nil
		})
	}
}

// clients are the probes of who is let in, with each version that is accepted.
func (o *Observer) clients(_ context.Context, t *Target, f *facts, j *jobs) {
	auth := t.Inbound.ClientAuth
	o.each(t, f, func(v uint16, i int) {
		j.add(func(ctx context.Context) error {
			out := o.dialTLS(ctx, t, hello{version: v, speak: true, wait: o.patience(auth != mesh.Require)})
			f.none[i] = &out
			return nil
		})
		j.add(func(ctx context.Context) error {
			stranger, err := o.stranger(t)
			if err != nil {
				return fmt.Errorf("making a stranger's certificate: %w", err)
			}
			out := o.dialTLS(ctx, t, hello{version: v, certificate: &stranger, speak: true, wait: o.patience(auth == mesh.None)})
			f.stranger[i] = &out
			return nil
		})
		if auth == mesh.None {
			return
		}
		j.add(func(ctx context.Context) error {
			out := o.dialTLS(ctx, t, hello{version: v, certificate: &o.config.Probe, speak: true, wait: o.timeout})
			f.probe[i] = &out
			return nil
		})
	})
}

// expiries are the probes with the expired certificate.
func (o *Observer) expiries(_ context.Context, t *Target, f *facts, j *jobs) {
	if o.config.Expired == nil {
		return
	}
	o.each(t, f, func(v uint16, i int) {
		j.add(func(ctx context.Context) error {
			out := o.dialTLS(ctx, t, hello{version: v, certificate: o.config.Expired, speak: true, wait: o.patience(t.Inbound.ClientAuth == mesh.None)})
			f.expired[i] = &out
			return nil
		})
	})
}

// each calls probe for the versions of TLS that the target accepts and may accept: that an old one is
// accepted is a finding already. A port that is declared off is left alone: what is sent there goes to
// the application.
func (o *Observer) each(t *Target, f *facts, probe func(v uint16, i int)) {
	if t.Inbound.TLS == mesh.Off {
		return
	}
	for i, v := range versions {
		if v >= tls.VersionTLS12 && f.version[i].agreed != nil {
			probe(v, i)
		}
	}
}

// settle looks again at certificates that deviate, and at the serials that are reported, until they do
// not or the time is up.
func (o *Observer) settle(_ context.Context, t *Target, f *facts, j *jobs) {
	f.serial = t.Serial
	if o.config.Settle <= 0 || t.Inbound.TLS == mesh.Off || t.Inbound.Certificate != nil || !o.unsettled(t, f) {
		return
	}
	j.add(func(ctx context.Context) error {
		deadline := time.NewTimer(o.config.Settle)
		defer deadline.Stop()
		for o.unsettled(t, f) {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-deadline.C:
				return nil
			case <-time.After(settleStep):
			}
			if err := o.lookAgain(ctx, t, f); err != nil {
				return err
			}
		}
		return nil
	})
}

// unsettled tells whether the certificate deviates in what a renewal can mend.
func (o *Observer) unsettled(t *Target, f *facts) bool {
	agreed, _ := f.newest()
	return agreed != nil && slices.ContainsFunc(o.judgeCertificate(t, f, agreed.PeerCertificates), func(c Check) bool { return c.Result == Deviates })
}

// lookAgain repeats the handshake with the newest version, and asks for the reported serial.
func (o *Observer) lookAgain(ctx context.Context, t *Target, f *facts) error {
	if o.config.Serial != nil {
		reported, err := o.config.Serial(ctx, t.Workload.Name, t.Instance)
		if err != nil {
			return fmt.Errorf("asking for the serial that instance %s reports: %w", t.Instance, err)
		}
		f.serial = reported
	}
	_, i := f.newest()
	out := o.dialTLS(ctx, t, hello{version: versions[i], suites: allSuites(), certificate: &o.config.Probe})
	if out.agreed != nil {
		f.version[i] = &out
	}
	return nil
}

// newest is what was agreed on with the newest version that is accepted, and that version's index.
func (f *facts) newest() (*tls.ConnectionState, int) {
	for i := len(versions) - 1; i >= 0; i-- {
		if f.version[i] != nil && f.version[i].agreed != nil {
			return f.version[i].agreed, i
		}
	}
	return nil, -1
}

// patience is how long to wait on a tcp port for what may never come: where a caller is expected to
// be let in the silence proves it soon enough; a refusal is waited for as long as a connection may last.
func (o *Observer) patience(letIn bool) time.Duration {
	if letIn {
		return min(quiet, o.timeout)
	}
	return o.timeout
}

// waitExpired waits until the certificate has expired for everybody whose clock is at most a second off.
func (o *Observer) waitExpired(ctx context.Context) error {
	if o.config.Expired == nil {
		return nil
	}
	timer := time.NewTimer(o.config.Expired.Leaf.NotAfter.Add(time.Second).Sub(o.now()))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// counter adds up what jobs report and passes it on.
func (o *Observer) counter() func(done, of int) {
	if o.config.Progress == nil {
		return func(int, int) {}
	}
	counts := make(chan [2]int, 1)
	counts <- [2]int{}
	return func(done, of int) {
		c := <-counts
		c[0], c[1] = c[0]+done, c[1]+of
		counts <- c
		o.config.Progress(c[0], c[1])
	}
}

// allSuites are all cipher suites that crypto/tls knows: a refusal is then not for want of a common one.
func allSuites() []uint16 {
	var ids []uint16
	for _, s := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
		if s.ID>>8 != 0x13 { // the suites of TLS 1.3 are not chosen
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// weakSuites are those that nobody should take: without authenticated encryption, or without a key
// exchange that keeps its secret when the certificate's key is lost.
func weakSuites() []uint16 {
	strong := map[uint16]bool{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256: true, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256: true,
		tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384: true, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384: true,
		tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256: true, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256: true,
	}
	return slices.DeleteFunc(allSuites(), func(suite uint16) bool { return strong[suite] })
}
