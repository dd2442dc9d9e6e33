package rotate

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"countersign.dev/credential"
	"countersign.dev/durable"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/secret"
)

// run is one rotation. It belongs to one goroutine.
type run struct {
	r      *Rotator
	t      Target
	o      Options
	outer  context.Context // ends when the process is told to end
	ctx    context.Context // ends with the lease
	lease  *held
	step   Step
	trust  Trust
	crls   *mtls.CRLs
	bundle []byte // what the credential is checked against: the roots that the proxy will have
	notes
	current current
	// now is which version is current in each secret of the credential, as far as this rotation knows: what it makes current
	// takes the place of that one. A secret that is not there has none.
	now     map[string]string
	version string // being brought in
	// abandoned was being brought in when somebody made another version current.
	abandoned string
	// touched are the instances that were told to restart, whether they have come back or not.
	touched []string
	// denied is what peers saw, by instance, that speaks against its word.
	denied map[string]denial
	result *Result
	// waited is set when another rotation was waited for, and before is when one had come to its end until this one began; nil
	// when that is not known.
	waited bool
	before *time.Time
}

// denial is when peers saw an instance present something else than it says, and when that was news here.
type denial struct{ at, news time.Time }

// current is what the store holds as current.
type current struct {
	version string // empty when there is none
	leaf    *x509.Certificate
	bundle  []byte // that lies with it
	problem error  // why it will not do
}

// Rotate brings a workload's credential up to date: it goes on with what was begun, rotates what is due, and does
// nothing else. What went wrong stands in the result.
func (r *Rotator) Rotate(ctx context.Context, t Target, o Options) Result {
	result := Result{Service: t.Workload.Name, Secret: t.Secret, Store: t.StoreName, Outcome: Nothing}
	n := &run{r: r, t: t, o: o, outer: ctx, ctx: ctx, step: StepLease, result: &result}
	if err := r.check(t); err != nil {
		result.fail(StepLook, err)
		return result
	}
	if o.DryRun {
		if err := n.look(); err != nil { //nolint:contextcheck // the context of the run ends with its lease
			result.fail(n.step, err)
		} else if result.Reason != "" {
			result.Outcome = WouldRotate
		}
		return result
	}
	if o.Patient && !o.Force {
		if later, waits := r.waits(ctx, t, o); waits {
			return later
		}
	}
	r.leased(ctx, n, (*run).rotate)
	return result
}

// leased does a work with the lease of the run's secret, and puts into the result what went wrong.
func (r *Rotator) leased(ctx context.Context, n *run, work func(*run) error) {
	if n.o.Force || n.o.Early {
		if record, err := readRecord(ctx, n.t.Store, n.t.Secret); err == nil {
			n.before = &record.LastSuccess
		}
	}
	within, lease, err := r.take(ctx, n.t.Keeper, n.t.Secret, r.leaseFor(n.t), r.config.Wait, func(held error, dead bool) {
		n.waited = true // of a process elsewhere it is not known whether it is dead, and it may come to its end meanwhile
		if !dead {
			n.say(StepLease, "waiting, for %s at most: %v", r.config.Wait, underWay(ctx, held, n.t.Store, n.t.Secret))
			return
		}
		if other, ok := errors.AsType[*secret.HeldError](held); ok {
			n.say(StepLease, "the lease of %s seems to be a dead one's; waiting until it ends at %s", other.Holder, other.Until.UTC().Format(time.RFC3339))
		}
	})
	if err != nil {
		n.result.fail(StepLease, underWay(ctx, err, n.t.Store, n.t.Secret))
		return
	}
	n.ctx, n.lease = within, lease
	n.spared()
	if err := work(n); err != nil {
		n.failed(err) //nolint:contextcheck // the context of the run ends with its lease
	}
	if err := lease.release(within); err != nil {
		n.result.Notes = append(n.result.Notes, "the lease was not given back, and runs out by itself: "+err.Error())
	}
}

// spared does not do once more, although it was asked for, what somebody else did while he was waited for.
func (n *run) spared() {
	if !n.waited || n.before == nil {
		return
	}
	if record, err := readRecord(n.ctx, n.t.Store, n.t.Secret); err == nil && !record.LastSuccess.Equal(*n.before) {
		n.o.Force, n.o.Early = false, false
		n.result.Notes = append(n.result.Notes, "the rotation that was waited for has come to its end: what it brought was not replaced once more")
	}
}

// say tells people what is done.
func (n *run) say(step Step, format string, args ...any) {
	n.r.config.Progress(n.t.Workload.Name, step, fmt.Sprintf(format, args...))
}

// begin begins a step: not when the process is to end, and only with the lease.
func (n *run) begin(step Step, format string, args ...any) error {
	if n.outer.Err() != nil {
		return ErrStopped
	}
	return n.enter(step, format, args...)
}

// enter is begin for the way back, which is gone to its end.
func (n *run) enter(step Step, format string, args ...any) error {
	n.step = step
	if err := n.lease.sure(n.ctx); err != nil {
		return err
	}
	durable.Step("rotate." + string(step))
	n.say(step, format, args...)
	return nil
}

// failed notes in the store and in the result that the rotation failed.
func (n *run) failed(err error) {
	if errors.Is(err, secret.ErrReplaced) {
		n.lost(err)
		return
	}
	if cause := context.Cause(n.ctx); n.ctx.Err() != nil && cause != nil && !errors.Is(err, secret.ErrLeaseLost) {
		err = cause
	}
	n.result.fail(n.step, err)
	if errors.Is(err, ErrStopped) || errors.Is(err, secret.ErrLeaseLost) || errors.Is(err, ErrForeign) {
		return // that somebody else may not replace it is no failure of those who use it
	}
	if !n.read {
		return // it may hold a rotation in progress, and the way back
	}
	repeats := n.repeats(n.t.Store, n.step, err, n.r.now())
	if !repeats {
		n.record.failed(n.step, err, n.r.now())
	}
	if n.record.Step == "" {
		n.result.Next = n.record.nextTry(n.result.NotAfter, n.result.unfit)
	}
	if repeats {
		return
	}
	if err := n.write(n.ctx, n.t.Store, n.t.Secret); err != nil {
		n.result.Notes = append(n.result.Notes, "that it failed could not be stored: "+err.Error())
	}
}

// lost notes in the result, and nowhere else, that somebody else was faster: what the store holds is his by now.
func (n *run) lost(err error) {
	ctx, cancel := Detached(n.ctx, askTimeout)
	defer cancel()
	n.result.fail(n.step, overtaken(ctx, err, n.t.Keeper, n.t.Secret, n.r.config.Holder))
	n.result.Version, n.result.Serial, n.result.NotAfter, n.result.Due, n.result.Seen = "", "", time.Time{}, time.Time{}, nil
	if s := ReadStatus(ctx, n.t); s.Version != "" {
		n.result.Version, n.result.Serial, n.result.NotAfter, n.result.Due = s.Version, s.Serial, s.NotAfter, s.Due
	}
}

// overtaken says of a swap that was lost who it may have been.
func overtaken(ctx context.Context, err error, keeper Keeper, name, self string) error {
	switch holder, _, unknown := keeper.Holder(ctx, name); {
	case unknown != nil:
		return err
	case holder == self:
		return fmt.Errorf("%w; the lease is still held by this one, so that it was done by hand, and not by a rotation", err)
	case holder != "":
		return fmt.Errorf("%w; this one has lost its lease, and %s has it now", err, holder)
	default:
		return fmt.Errorf("%w; this one has lost its lease, and nobody has it now: the next rotation looks again", err)
	}
}

// rotate does all that a rotation with the lease is.
func (n *run) rotate() error {
	if err := n.look(); err != nil {
		return err
	}
	if n.abandoned != "" {
		if err := n.write(n.ctx, n.t.Store, n.t.Secret); err != nil {
			return err
		}
		if err := n.discard(n.abandoned); err != nil {
			return err
		}
	}
	switch {
	case n.record.Step == StepRollback:
		return n.finishBack()
	case n.record.Step != "":
		n.version = n.record.Version
		return n.bring()
	case n.result.Reason == "":
		if err := n.clean(); err != nil {
			return err
		}
		return n.clearFailure()
	}
	if err := n.reachable(); err != nil {
		return err
	}
	if err := n.obtain(); err != nil {
		return err
	}
	return n.bring()
}

// clearFailure forgets in the store what failed before: all is as it should be. A look that finds nothing to forget writes
// nothing.
func (n *run) clearFailure() error {
	if !n.record.clearFailure() {
		return nil
	}
	n.result.failing = false
	return n.write(n.ctx, n.t.Store, n.t.Secret)
}

// finishBack ends a way back that was begun. Where nobody is looked at, what is due is due all the same: a mesh that starts
// is to have its certificates.
func (n *run) finishBack() error {
	err := n.back(errors.New(n.record.Problem))
	if !n.o.NoDeploy || n.result.Outcome != RolledBack {
		return err
	}
	n.record.failed(n.step, err, n.r.now())
	if err := n.write(n.ctx, n.t.Store, n.t.Secret); err != nil {
		return err
	}
	n.result.Notes = append(n.result.Notes, "the rotation before had failed: "+err.Error())
	n.result.Outcome = Nothing
	if err := n.look(); err != nil || n.result.Reason == "" {
		return err
	}
	if err := n.obtain(); err != nil {
		return err
	}
	return n.bring()
}

// look finds out what there is, and in the result's Reason why something is to be done.
func (n *run) look() (err error) {
	n.step = StepLook
	if err := n.open(n.ctx, n.t.Store, n.t.Secret, n.o, n.result); err != nil {
		return err
	}
	if err := n.readNow(); err != nil {
		return err
	}
	ask, cancel := context.WithTimeout(n.ctx, askTimeout)
	defer cancel()
	if n.trust, err = n.r.authority(n.t).Trust(ask); err != nil {
		return fmt.Errorf("asking for the trust bundle: %w", err)
	}
	if n.crls, err = readCRLs(n.trust); err != nil {
		return err
	}
	if err := n.readBundle(); err != nil {
		return err
	}
	if err := n.readCurrent(); err != nil {
		return err
	}
	if n.record.Step != "" && n.current.version != n.record.Version && n.current.version != n.record.Previous {
		// Somebody made another version current by hand meanwhile: it is not for us to undo.
		n.result.Notes = append(n.result.Notes, fmt.Sprintf("the version %s was being brought in, and somebody made %s current; it was left so", n.record.Version, n.current.version))
		n.abandoned = n.record.Version
		n.record.ended()
	}
	n.result.Version, n.result.unfit = n.current.version, n.current.problem != nil
	if leaf := n.current.leaf; leaf != nil {
		n.result.Serial, n.result.NotAfter, n.result.Due = mtls.Serial(leaf), leaf.NotAfter.UTC(), n.due(leaf).UTC()
	}
	n.result.Reason, err = n.reason()
	failed := n.record
	n.result.failing = n.result.Reason == "" && failed.clearFailure()
	return err
}

// readBundle finds the roots that the proxy will have.
func (n *run) readBundle() error {
	n.bundle = n.trust.Bundle
	if n.t.Bundle == "" {
		return nil
	}
	value, _, err := n.t.Store.Read(n.ctx, n.t.Bundle, "")
	if errors.Is(err, secret.ErrNotFound) && n.o.DryRun {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the trust bundle that %s shares with others: %w", n.t.Workload.Name, err)
	}
	n.bundle = value
	return nil
}

// readCurrent reads what is current, and what is wrong with it.
func (n *run) readCurrent() error {
	material, err := n.t.Shape.Read(n.ctx, n.t.Store, n.t.Secret, "")
	switch {
	case errors.Is(err, secret.ErrNotFound):
		return nil
	case errors.Is(err, secret.ErrMismatch), errors.Is(err, secret.ErrInvalid):
		// What somebody has put there by hand.
		id, err2 := n.currentID()
		n.current = current{version: id, problem: err}
		return err2
	case errors.Is(err, secret.ErrCorrupt) && n.o.Force:
		if away := moveAway(n.ctx, n.t.Store, n.t.Shape.Names(n.t.Secret)...); away != nil {
			return away
		}
		id, err2 := n.currentID()
		n.current = current{version: id, problem: err}
		return err2
	case errors.Is(err, secret.ErrCorrupt):
		return damaged(n.ctx, err, n.t.Store, n.t.Shape.Names(n.t.Secret)...)
	case err != nil:
		return err
	}
	defer material.Clear()
	n.current = current{version: material.Version, bundle: material.Bundle}
	n.current.leaf, n.current.problem = n.fit(material, n.bundle)
	return n.notForeign(material)
}

// readNow finds out what is current, before anything is decided. What is damaged is complained about when it is needed.
func (n *run) readNow() error {
	n.now = make(map[string]string)
	for _, name := range n.t.Shape.Names(n.t.Secret) {
		id, err := currentVersion(n.ctx, n.t.Store, name)
		if err != nil && !errors.Is(err, secret.ErrCorrupt) {
			return err
		}
		n.now[name] = id
	}
	return nil
}

// currentID is the id of the version that is current in the secret that readers begin with.
func (n *run) currentID() (string, error) {
	return currentVersion(n.ctx, n.t.Store, n.t.Shape.Names(n.t.Secret)[0])
}

// due is when a leaf is to be replaced.
func (n *run) due(leaf *x509.Certificate) time.Time {
	return DueAt(leaf, time.Duration(n.t.Certificate.RenewAfter), n.t.Workload.Name)
}

// reason says why something is to be done; it is empty when nothing is.
func (n *run) reason() (string, error) {
	waiting, err := n.requests()
	leaf := n.current.leaf
	switch {
	case err != nil:
		return "", err
	case n.record.Step != "":
		return "a rotation was begun and has not ended, at the step " + string(n.record.Step), nil
	case len(waiting) > 0:
		return "a rotation was begun and has not ended: a request waits for its certificate", nil
	case n.current.version == "":
		return "there is none yet", nil
	case n.o.Force:
		return "it was asked for", nil
	case n.current.problem != nil:
		return "what is current will not do: " + n.current.problem.Error(), nil
	case n.trust.Issuer != nil && leaf.CheckSignatureFrom(n.trust.Issuer) != nil:
		return "the authority signs with another key than that of its issuer", nil
	case n.t.Bundle == "" && !sameCertificates(n.current.bundle, n.trust.Bundle):
		return "the trust bundle has changed", nil
	case n.o.Early:
		return "it was asked for before it is due", nil
	}
	if newer, err := n.newer(); err != nil || newer != "" {
		return newer, err
	}
	if !n.r.now().Before(n.due(leaf)) {
		return "it was due at " + n.due(leaf).UTC().Format(time.RFC3339), nil
	}
	return "", nil
}

// readCRLs reads the revocation lists of an authority, which are genuine where they are in the name of its issuer.
func readCRLs(trust Trust) (*mtls.CRLs, error) {
	lists, err := mtls.ParseCRLs(trust.CRL)
	if err == nil && trust.Issuer != nil {
		err = lists.CheckSignatures([]*x509.Certificate{trust.Issuer})
	}
	if err == nil && len(bytes.TrimSpace(trust.CRL)) > 0 && len(lists.PEM()) == 0 {
		err = fmt.Errorf("%w: there is none in what it has answered", mtls.ErrCRL)
	}
	if err != nil {
		return nil, fmt.Errorf("the authority's revocation lists: %w", err)
	}
	return lists, nil
}

// unrevoked refuses a credential of which a certificate stands on a list of its issuer, as a peer would. A list that is
// missing, or past its end, says nothing: a rotation is what helps then.
func (n *run) unrevoked(c *credential.Credential) error {
	roots, err := mtls.NewBundle(n.t.Certificate.Identity.TrustDomain(), c.Roots)
	if err != nil {
		return err
	}
	peer := &mtls.Identity{Bundle: roots, Revocation: &mtls.Revocation{CRLs: n.crls, Stale: mesh.StaleServe}}
	if name := n.t.Certificate.DNSIdentity; name != "" {
		err = peer.VerifyNamed(name, c.Chain, x509.ExtKeyUsageAny, n.r.now())
	} else {
		_, err = peer.Verify(c.Chain, x509.ExtKeyUsageAny, n.r.now())
	}
	if errors.Is(err, mtls.ErrRevoked) {
		return fmt.Errorf("the certificate with the serial %s was revoked (%w)", mtls.Serial(c.Leaf()), err)
	}
	return err
}

// sameCertificates tells whether two texts hold the same certificates, in whatever order.
func sameCertificates(a, b []byte) bool {
	x, err := mtls.ParseCertificates(a)
	y, err2 := mtls.ParseCertificates(b)
	if err != nil || err2 != nil {
		return false
	}
	return within(x, y) && within(y, x)
}

// within tells whether all of some certificates are among others.
func within(some, others []*x509.Certificate) bool {
	for _, one := range some {
		found := false
		for _, other := range others {
			found = found || bytes.Equal(one.Raw, other.Raw)
		}
		if !found {
			return false
		}
	}
	return true
}

// fit checks a credential as init would, and that it is of the declared form, and gives the leaf when there is one.
func (n *run) fit(m *secret.Material, bundle []byte) (*x509.Certificate, error) {
	parsed, err := credential.Parse(n.t.input(m, bundle))
	if err != nil {
		return nil, err
	}
	leaf := parsed.Leaf()
	want := n.t.Certificate
	if err := parsed.Check(n.expected()); err != nil {
		return leaf, err
	}
	if len(leaf.DNSNames) != len(want.DNSNames) || len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 {
		return leaf, fmt.Errorf("%s: the leaf has other names than the specification says: %.300q", n.t.Secret, append(leaf.DNSNames, leaf.EmailAddresses...))
	}
	if err := n.unrevoked(parsed); err != nil {
		return leaf, fmt.Errorf("%s: %w", n.t.Secret, err)
	}
	if kind := keyType(leaf.PublicKey); want.Key != "" && kind != want.Key {
		return leaf, fmt.Errorf("%s: the key is of the kind %q, and %s is declared", n.t.Secret, kind, want.Key)
	}
	return leaf, nil
}
