package deliver

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"countersign.dev/credential"
	"countersign.dev/durable"
	"countersign.dev/mesh"
	"countersign.dev/reload"
)

// mostKept is the greatest size in bytes of a configuration, or of revocation lists, that is read back.
const mostKept = 16 << 20

// errUnserved says that nobody serves what is in force, which nobody can be blamed for: the proxy is not there (yet).
var errUnserved = errors.New("nobody serves it")

// round sees to it that what is wanted is served: what the source has, when it is asked, and else what is in force, with the
// plan. Its error says why it is not.
func (w *Watcher) round(ctx context.Context, plan *mesh.Plan, ask bool) error {
	d := credential.ReadDirectory(w.cfg.Output)
	current, err := d.Current()
	var have Made
	if err == nil {
		have, err = madeOf(d.Path(current))
	}
	if err != nil {
		w.problem(ctx, &w.status.Problem, err, "the directory cannot be read")
		return err
	}
	var offer *Offer
	if ask || current == 0 {
		offer, err = w.cfg.Source.Offer(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		w.asked = time.Now()
		w.problem(ctx, &w.status.SourceProblem, err, "the source cannot be read; what is in force stays")
	}
	if offer == nil {
		if offer, err = ownOffer(d.Path(current), have); err != nil {
			return errors.New("the source cannot be read, and nothing is in force")
		}
	}
	defer offer.clear()
	err = w.follow(ctx, plan, offer, &delivery{d: d, plan: plan, before: current, have: have})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if ask {
		w.newer = nil
		if now, readErr := w.have(); err != nil && readErr == nil && !now.credential().same(offer.credential()) {
			w.newer = err
		}
	}
	w.problem(ctx, &w.status.Problem, both(err, w.newer, ask), "what is wanted is not served")
	return err
}

// both joins what is wrong with what is in force, and why something newer is not, unless one says the other.
func both(err, newer error, said bool) error {
	switch {
	case newer == nil || said:
		return err
	case err == nil:
		return newer
	}
	return fmt.Errorf("%w; and %w", newer, err)
}

// follow brings what is in force to what is wanted.
func (w *Watcher) follow(ctx context.Context, plan *mesh.Plan, offer *Offer, v *delivery) (err error) {
	current := v.d.Path(v.before)
	if err := w.fits(plan); err != nil {
		return err
	}
	cause := w.lists(v, current)
	unlisted := w.unlisted(v)
	w.tell(func(s *Status) { s.Unlisted = unlisted })
	if unlisted {
		if v.before != 0 { // it is served all the same, by whoever put it in force
			w.inForce(v.d, v.before, v.have)
			w.look(ctx, plan, v.have)
		}
		return both(errUnlisted, cause, false)
	}
	if v.configuration, err = w.configuration(plan, current, v.revocation != nil); err != nil {
		return err
	}
	if v.before != 0 && !v.have.credential().same(offer.credential()) {
		// A credential that was not taken must not be in the way of a new Plan.
		if refused := w.remembered(offer.credential()); refused != nil {
			offer.clear()
			if offer, err = ownOffer(current, v.have); err != nil {
				return refused
			}
			cause = both(refused, cause, false)
			defer offer.clear()
		}
	}
	v.offer = offer
	v.want = Made{Version: offer.Version, Bundle: offer.Bundle, Configuration: Digest(v.configuration), Revocation: Digest(v.revocation)}
	switch {
	case v.before != 0 && v.have.same(v.want):
		err = w.settle(ctx, v)
	default:
		if err = w.remembered(v.want); err != nil {
			w.look(ctx, plan, v.have)
			break
		}
		err = w.locked(v, func() error { return w.deliver(ctx, v) })
	}
	return both(err, cause, false)
}

// locked does something while nobody else writes, unless somebody has meanwhile.
func (w *Watcher) locked(v *delivery, do func() error) (err error) {
	d, err := credential.OpenDirectory(w.cfg.Output)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if current, err := d.Current(); err != nil || current != v.before {
		return errors.Join(err, errors.New("somebody else has written to the directory at the same time; it is looked at again"))
	}
	v.d = d
	return do()
}

// credential is the part of it that names the credential.
func (m Made) credential() Made { return Made{Version: m.Version, Bundle: m.Bundle} }

func (o *Offer) credential() Made { return Made{Version: o.Version, Bundle: o.Bundle} }

// same tells whether two are made of the same things. The serial follows from them.
func (m Made) same(other Made) bool {
	m.Serial, other.Serial = "", ""
	return m == other
}

// configuration is the proxy's, nil when somebody else writes it. As long as there is no Plan the one in force stays.
func (w *Watcher) configuration(plan *mesh.Plan, current string, lists bool) ([]byte, error) {
	switch {
	case w.cfg.Render == nil:
		return nil, nil
	case plan != nil:
		return w.cfg.Render(plan, lists)
	}
	text, err := readKept(filepath.Join(current, w.cfg.File))
	if err == nil && text == nil {
		err = errors.New("there is no plan yet, and no configuration of an earlier one")
	}
	return text, err
}

// lists finds the revocation lists of the next generation: those that are given, or those in force.
func (w *Watcher) lists(v *delivery, current string) error {
	var unknown, err error
	if w.cfg.Revocation != nil {
		if v.revocation, unknown = w.cfg.Revocation(v.plan); unknown == nil {
			return nil
		}
	}
	v.revocation, err = readKept(filepath.Join(current, RevocationFile))
	return both(unknown, err, false)
}

// errUnlisted says that callers are to be looked up and cannot be.
var errUnlisted = errors.New("the plan wants revoked callers refused, and there are no revocation lists: nothing is delivered without them")

// unlisted tells whether the next generation would serve callers who are revoked against its Plan's will.
func (w *Watcher) unlisted(v *delivery) bool {
	return w.cfg.Render != nil && v.revocation == nil && !w.cfg.AcceptRevoked &&
		v.plan != nil && v.plan.Revocation.Check && v.plan.Revocation.Stale != mesh.StaleServe
}

// KeptLists are the revocation lists in force in a directory, nil when there are none.
func KeptLists(dir string) ([]byte, error) {
	return readKept(filepath.Join(dir, "current", RevocationFile))
}

// readKept reads a public file of a generation; nothing when there is none.
func readKept(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular() || info.Size() > mostKept:
		return nil, fmt.Errorf("%s is not a file that was written here", path)
	}
	return os.ReadFile(path)
}

// remembered is the error of an earlier try of the same, for as long as it is not due again.
func (w *Watcher) remembered(want Made) error {
	want.Serial = ""
	if r := w.refused[want]; time.Now().Before(r.until) {
		return r.err
	}
	return nil
}

const (
	// mostPause is how many times Retry the longest pause between two tries is.
	mostPause = 8
	// mostRefused is how many refusals are remembered.
	mostRefused = 64
)

// remember notes that what was wanted was not taken, and its credential, if that is what was new.
func (w *Watcher) remember(v *delivery, err error) {
	if len(w.refused) > mostRefused {
		clear(w.refused)
	}
	want := v.want
	want.Serial = ""
	keys := []Made{want}
	if cred := want.credential(); cred != want && !cred.same(v.have.credential()) {
		keys = append(keys, cred)
	}
	for _, key := range keys {
		pause := w.cfg.Retry
		if r, ok := w.refused[key]; ok {
			pause = min(2*r.pause, w.cfg.Retry*mostPause)
		}
		w.refused[key] = refusal{err: err, pause: pause, until: time.Now().Add(pause)}
	}
	w.tell(func(s *Status) { s.Refused++ })
}

// forget forgets that something was refused which is served now.
func (w *Watcher) forget(served Made) {
	served.Serial = ""
	delete(w.refused, served)
	delete(w.refused, served.credential())
}

// delivery is one generation on its way.
type delivery struct {
	d             *credential.Directory
	plan          *mesh.Plan
	offer         *Offer
	want          Made
	configuration []byte
	revocation    []byte
	before        uint64 // what was current
	have          Made   // what that was made of
	n             uint64 // the new one
	cred          *credential.Credential
}

// deliver makes what is wanted the generation in force, or says why not.
func (w *Watcher) deliver(ctx context.Context, v *delivery) error {
	err := w.stage(ctx, v)
	if err == nil {
		err = v.d.Activate(v.n)
	}
	if err == nil {
		durable.Step("deliver.activated")
		err = w.put(ctx, v)
	}
	switch {
	case err == nil:
		w.delivered(ctx, v)
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, durable.ErrLocked), errors.Is(err, errUnserved):
		return err
	}
	err = versioned(v.want, err)
	w.remember(v, err)
	return err
}

// versioned says which version an error is about.
func versioned(m Made, err error) error {
	if m.Bundle != "" {
		return fmt.Errorf("version %s with the roots %s: %w", m.Version, m.Bundle, err)
	}
	return fmt.Errorf("version %s: %w", m.Version, err)
}

// stage checks, writes and tests; nothing is in force by it.
func (w *Watcher) stage(ctx context.Context, v *delivery) error {
	cred, err := v.offer.check(w.expect(v))
	if err != nil {
		return err
	}
	v.cred = cred
	v.want = v.offer.Made(cred, v.configuration, v.revocation)
	further := []durable.File{v.want.File()}
	if v.configuration != nil {
		further = append(further, durable.File{Name: w.cfg.File, Data: v.configuration, Perm: 0o644})
	}
	if v.revocation != nil {
		further = append(further, durable.File{Name: RevocationFile, Data: v.revocation, Perm: 0o644})
	}
	if v.n, err = v.d.Stage(cred, further...); err != nil {
		return err
	}
	durable.Step("deliver.staged")
	if v.configuration == nil {
		return nil // its paths lead to what is in force, so that it is tested then
	}
	if err := w.testStaged(ctx, v); err != nil {
		return errors.Join(err, v.d.Discard(v.n))
	}
	return nil
}

// expect is what the credential of a generation has to fulfil. One that is in force is not asked how long it remains valid: a
// new Plan, or a revocation, must not wait for the next one.
func (w *Watcher) expect(v *delivery) credential.Expect {
	want := w.cfg.Expect()
	if want.ID == "" && w.cfg.Render != nil {
		if v.plan != nil && v.plan.Certificate.DNSIdentity != "" {
			want.DNSIdentity = v.plan.Certificate.DNSIdentity
		} else {
			want.ID = identity(v.plan)
		}
	}
	if v.before != 0 && v.want.credential().same(v.have.credential()) {
		want.MinRemaining = 0
	}
	return want
}

// identity is whose Plan it is, empty when that is not known.
func identity(plan *mesh.Plan) string {
	if plan == nil {
		return ""
	}
	return plan.Workload.Identity.String()
}

// ErrOtherPlan says that a Plan is another workload's.
var ErrOtherPlan = errors.New("the plan is another workload's")

// CheckPlan refuses the Plan of another workload than the one whose SPIFFE ID is expected. Without a Plan, or when any ID will do,
// there is nothing to refuse.
func CheckPlan(plan *mesh.Plan, expected string) error {
	if whose := identity(plan); whose != "" && expected != "" && whose != expected {
		return fmt.Errorf("%w: it is of %.300s, and %.300s is expected; give the plan of the workload whose certificate is delivered", ErrOtherPlan, whose, expected)
	}
	return nil
}

// fits refuses a Plan that does not belong to what is expected of the credential.
func (w *Watcher) fits(plan *mesh.Plan) error { return CheckPlan(plan, w.cfg.Expect().ID) }

// stagedDir is beside current what a configuration under test takes for the whole directory.
const stagedDir = ".staged"

// testStaged lets the proxy test the new generation before it is in force: by a configuration that differs in the directory
// alone.
func (w *Watcher) testStaged(ctx context.Context, v *delivery) (err error) {
	staged := filepath.Join(w.dir, stagedDir)
	if err := os.RemoveAll(staged); err != nil { // a crash may have left it
		return err
	}
	if err := os.Mkdir(staged, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(staged)) }()
	if err := os.Symlink(v.d.Path(v.n), filepath.Join(staged, "current")); err != nil {
		return err
	}
	file := filepath.Join(staged, w.cfg.File)
	text := bytes.ReplaceAll(v.configuration, []byte(w.dir+"/current/"), []byte(staged+"/current/"))
	if err := writeNew(file, text); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Patience)
	defer cancel()
	return w.cfg.Proxy.Test(ctx, file)
}

// writeNew makes a file that is not there: the directory may belong to another user, who could let it be one with a file of
// that name that this one may write to.
func writeNew(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

// put sees to it that the proxy serves the generation that was just put in force, and else goes back.
func (w *Watcher) put(ctx context.Context, v *delivery) error {
	if v.configuration == nil {
		test, cancel := context.WithTimeout(ctx, w.cfg.Patience)
		err := w.cfg.Proxy.Test(test, "")
		cancel()
		if err != nil && ctx.Err() == nil {
			return w.back(ctx, v, err, false)
		}
	}
	err := w.told(ctx, v.plan, v.want, v.cred)
	switch {
	case err == nil, ctx.Err() != nil:
		return err
	case errors.Is(err, errUnserved):
		return err // it will take what is in force when it starts, and that was tested
	}
	return w.back(ctx, v, err, true)
}

// told tells the proxy, and waits until it serves what is in force.
func (w *Watcher) told(ctx context.Context, plan *mesh.Plan, want Made, cred *credential.Credential) error {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Patience)
	defer cancel()
	err := w.cfg.Proxy.Reload(ctx)
	if errors.Is(err, reload.ErrNotRunning) {
		// It may have started meanwhile, with the new files.
		if seen := w.see(ctx, plan, cred); w.provable(plan) && seen.all(want, w.rootsOf(cred)) {
			return nil
		}
		return fmt.Errorf("%w: %w", errUnserved, err)
	}
	if err != nil {
		return err
	}
	return w.served(ctx, plan, want, cred)
}

// back puts what was proved last in force again. cause is why, and the error that is returned.
func (w *Watcher) back(ctx context.Context, v *delivery, cause error, told bool) error {
	good, err := v.d.Proved()
	if good == 0 && err == nil && v.before != v.n {
		good = v.before
	}
	switch {
	case err != nil:
		return fmt.Errorf("%w; and it is not known what to go back to: %w", cause, err)
	case good == 0 || good == v.n:
		return fmt.Errorf("%w; there is nothing to go back to", cause)
	}
	have, err := madeOf(v.d.Path(good))
	if err == nil {
		err = v.d.Activate(good)
	}
	if err != nil {
		return fmt.Errorf("%w; and going back failed: %w", cause, err)
	}
	durable.Step("deliver.back")
	w.tell(func(s *Status) { s.Rollbacks++ })
	w.inForce(v.d, good, have)
	if told {
		err = w.told(ctx, cmp.Or(w.plan, v.plan), have, w.cred)
	}
	if err == nil {
		err = v.d.Discard(v.n)
	}
	if err != nil {
		return fmt.Errorf("%w; version %s is in force again, and: %w", cause, have.Version, err)
	}
	return fmt.Errorf("%w; version %s is in force again", cause, have.Version)
}

// delivered notes a success.
func (w *Watcher) delivered(ctx context.Context, v *delivery) {
	w.forget(v.want)
	w.cred, w.credOf, w.alone = v.cred, v.want.credential(), time.Time{}
	w.endOlder(ctx, v.d, v.n)
	if err := v.d.Prove(v.n); err != nil {
		w.cfg.Log.WarnContext(ctx, "the generation is served, and that could not be noted; after a restart it is proved again", "error", err)
	}
	durable.Step("deliver.proved")
	w.inForce(v.d, v.n, v.want)
	w.tell(func(s *Status) { s.Deliveries++ })
	w.cfg.Log.InfoContext(ctx, "delivered", "version", v.want.Version, "bundle", v.want.Bundle, "serial", v.want.Serial, "generation", v.n, "seen", w.proof(v.plan))
}

// proof says how it is known that something is served.
func (w *Watcher) proof(plan *mesh.Plan) string {
	if w.provable(plan) {
		return "by handshakes with every listener"
	}
	return "by the reload alone: no listener speaks TLS with this certificate"
}
