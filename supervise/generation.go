package supervise

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"countersign.dev/admin"
	"countersign.dev/engine"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/reload"
)

// generation is all that the program reads at one time. It is not changed after it was made.
type generation struct {
	name     string
	run      string // the run directory that it is in
	dir      string
	plan     *mesh.Plan
	identity *mtls.Identity
	options  engine.Options
	lists    bool   // revocation lists are looked at
	files    string // a digest of a gateway's own certificate files
	digest   string // of what it says: the same for a Plan that differs in its revision alone
	core     string // the same but for where instances are
}

// generationsDir holds the generations of a run directory.
const generationsDir = "generations"

// bring puts a Plan and an identity in force: it starts the program when it does not run, and else gives it a new
// generation. When that is not taken, what was good is in force again before bring returns. What was drained stays so,
// whatever the Plan says. The caller holds change.
func (s *Supervisor) bring(ctx context.Context, plan *mesh.Plan, identity *mtls.Identity) (err error) {
	forced := s.force.Swap(false)
	defer func() {
		if forced && err != nil {
			s.force.Store(true) // it is still to be told
		}
	}()
	s.mu.Lock()
	if s.drained {
		plan = withoutInbound(plan)
	}
	s.mu.Unlock()
	lists, err := s.lists(identity)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotInForce, err)
	}
	next := &generation{plan: plan, identity: identity, lists: lists}
	if next.digest, err = fingerprint(plan, identity, lists); err != nil {
		return err
	}
	if next.core, err = fingerprint(withoutEndpoints(plan), identity, lists); err != nil {
		return err
	}
	s.mu.Lock()
	running, good, unsure := s.running, s.good, s.unsure
	if s.retired != nil {
		s.mu.Unlock()
		return nil // nothing is listened for any more, and what is finished needs nothing new
	}
	if !forced && !unsure && running != nil && good != nil && good.digest == next.digest {
		same := *good
		same.plan, same.identity = plan, identity
		s.good = &same
		s.mu.Unlock()
		return nil
	}
	s.mu.Unlock()
	if running == nil {
		return s.start(ctx, next)
	}
	if !s.paced(ctx, good == nil || good.core != next.core) {
		return ctx.Err()
	}
	if err := s.prepare(ctx, running.run, next); err != nil {
		return err
	}
	seen, err := s.try(ctx, running, next)
	if err == nil {
		s.accept(running, next, seen)
		return nil
	}
	_ = os.RemoveAll(next.dir) // nothing names it any more, or the program is gone
	return fmt.Errorf("%w: %w", ErrNotInForce, err)
}

// try tells the running program of one generation, and goes back when it is not seen to be served.
func (s *Supervisor) try(ctx context.Context, p *process, next *generation) (*sighting, error) {
	var seen *sighting
	err := s.tell(ctx, p, next)
	if err == nil {
		seen, err = s.observe(ctx, p, next)
	}
	if err == nil {
		return seen, nil
	}
	s.mu.Lock()
	good := s.good
	s.mu.Unlock()
	if p.isGone() || good == nil {
		return nil, err
	}
	if ctx.Err() != nil {
		s.lose(err)
		return nil, err
	}
	s.log.WarnContext(ctx, "the program does not serve what it was given; going back to what was good", "generation", next.name, "goodGeneration", good.name, "error", err)
	if backErr := s.tell(ctx, p, good); backErr != nil {
		err = errors.Join(err, backErr)
		s.lose(err)
		return nil, err
	}
	if _, backErr := s.observe(ctx, p, good); backErr != nil {
		err = errors.Join(err, fmt.Errorf("and what was good is not seen again: %w", backErr))
		s.lose(err)
	}
	return nil, err
}

// lose notes that nobody knows what the program has in force, so that nothing is said to be served, and lets what was
// good be put in force anew.
func (s *Supervisor) lose(err error) {
	s.mu.Lock()
	s.unsure, s.seen = true, nil
	s.mu.Unlock()
	s.setProblem(problemProcess, fmt.Sprintf("what it has in force is not known: %v", err))
	s.IdentityChanged()
	s.cfg.Changed()
}

// tell swaps the link and says so to the program.
func (s *Supervisor) tell(ctx context.Context, p *process, g *generation) error {
	if err := g.link(s.cfg.Binary.Engine.file); err != nil {
		return fmt.Errorf("putting generation %s in force: %w", g.name, err)
	}
	s.reloads = append(s.reloads, time.Now())
	ctx, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	if err := s.cfg.Binary.Engine.tell(p).Reload(ctx); err != nil {
		return fmt.Errorf("%w; its last words: %s", err, p.lastWords())
	}
	return nil
}

// accept notes what was seen in force, and removes generations that nobody reads any more: all but it and the one
// before.
func (s *Supervisor) accept(p *process, g *generation, seen *sighting) {
	s.mu.Lock()
	before := s.good
	s.running, s.good, s.seen, s.unsure = p, g, seen, false
	s.mu.Unlock()
	s.setProblem(problemProcess, "")
	keep := []string{filepath.Base(g.dir)}
	if before != nil && before.run == g.run {
		keep = append(keep, filepath.Base(before.dir))
	}
	entries, _ := os.ReadDir(filepath.Dir(g.dir)) // what cannot be listed goes with the run directory
	for _, entry := range entries {
		if !slices.Contains(keep, entry.Name()) {
			_ = os.RemoveAll(filepath.Join(filepath.Dir(g.dir), entry.Name())) // it goes with the run directory at the latest
		}
	}
	if before != nil && before.run == g.run && reload.Revokes(revocationLists(before.identity), revocationLists(g.identity)) {
		s.endOlder(p)
	}
	s.log.Info("in force", "revision", g.plan.Revision, "serial", mtls.Serial(g.identity.Certificate.Leaf), "notAfter", g.identity.Certificate.Leaf.NotAfter,
		"generation", g.name, "pid", p.pid)
	s.cfg.Changed()
}

// How often the program is told something new: each reload leaves workers behind that finish what they have, and
// endpoints come and go by the second.
const (
	paceStep, paceMost = 250 * time.Millisecond, 5 * time.Second
	paceWindow         = 30 * time.Second
)

// paced waits until the program may be told something again; the more often it was told lately, the longer, unless it is
// urgent: a certificate, a policy, a revocation. What arrives meanwhile waits with the caller, and only the newest of
// it comes next; for another identity, which may have somebody revoked, the waiting is cut short.
func (s *Supervisor) paced(ctx context.Context, urgent bool) bool {
	now := time.Now()
	s.reloads = slices.DeleteFunc(s.reloads, func(t time.Time) bool { return now.Sub(t) > paceWindow })
	if len(s.reloads) == 0 {
		return true
	}
	last := s.reloads[len(s.reloads)-1]
	if !urgent {
		timer := time.NewTimer(last.Add(min(time.Duration(len(s.reloads))*paceStep, paceMost)).Sub(now))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-s.hurry:
		case <-ctx.Done():
			return false
		}
	}
	return pause(ctx, time.Until(last.Add(paceStep)))
}

// prepare renders and writes a generation, and lets the program test it. Nothing points to it yet.
func (s *Supervisor) prepare(ctx context.Context, run string, g *generation) error {
	// No name comes twice: a program that was given up on may still take what it was told.
	s.made++
	name := strconv.Itoa(s.made)
	g.run, g.files = run, filesDigest(g.plan)
	g.name = filepath.Base(run) + "-" + name
	g.dir = filepath.Join(run, generationsDir, name)
	g.options = s.options(run, g.dir, g.name)
	g.options.CRL = g.lists
	config, err := s.cfg.Render(g.plan, g.options)
	if err != nil {
		return err // engine.ErrRefused says everything
	}
	s.counts.declare(g.plan, s.cfg.Binary.Engine)
	if err := g.write(s.cfg.Binary.Engine.file, config.Text); err != nil {
		_ = os.RemoveAll(g.dir)
		return fmt.Errorf("%w: writing generation %s: %w", ErrNotInForce, g.name, err)
	}
	if err := s.cfg.Binary.tested(ctx, filepath.Join(g.dir, s.cfg.Binary.Engine.file), run); err != nil {
		_ = os.RemoveAll(g.dir)
		return err
	}
	for _, note := range config.Notes {
		s.log.DebugContext(ctx, "remark on the configuration", "note", note)
	}
	return nil
}

// write writes the files. They are this user's alone from the first moment.
func (g *generation) write(name, text string) error {
	signer, ok := g.identity.Certificate.PrivateKey.(crypto.Signer)
	if !ok {
		return errors.New("the private key cannot be written")
	}
	key, err := mtls.MarshalKey(signer)
	if err != nil {
		return err
	}
	defer clear(key)
	current := filepath.Join(g.dir, "current")
	if err := os.MkdirAll(current, 0o700); err != nil {
		return err
	}
	chain := encode(admin.Parse(g.identity.Certificate.Certificate))
	both := slices.Concat(chain, key)
	defer clear(both)
	type file struct {
		path string
		data []byte
	}
	files := []file{
		{filepath.Join(current, "cert.pem"), chain},
		{filepath.Join(current, "key.pem"), key},
		{filepath.Join(current, "ca.pem"), g.identity.Bundle.PEM()},
		{filepath.Join(current, "cert-and-key.pem"), both},
		{filepath.Join(g.dir, name), []byte(text)},
	}
	if g.lists {
		files = append(files, file{filepath.Join(current, "crl.pem"), g.identity.Revocation.CRLs.PEM()})
	}
	for _, file := range files {
		if err := writeNew(file.path, file.data); err != nil {
			return err
		}
	}
	return nil
}

// writeNew makes a file of this user's alone. There is nothing to sync: it is in memory.
func writeNew(path string, data []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	return errors.Join(err, file.Close())
}

// link lets the configuration's one name mean this generation, in one step.
func (g *generation) link(name string) error {
	target := filepath.Join(generationsDir, filepath.Base(g.dir), name)
	temp := filepath.Join(g.run, "."+name+".new")
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, temp); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(g.run, name))
}

func encode(certs []*x509.Certificate) []byte {
	var text strings.Builder
	for _, cert := range certs {
		_ = pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}) // a builder takes everything
	}
	return []byte(text.String())
}

// withoutEndpoints is a Plan that does not say where instances are.
func withoutEndpoints(plan *mesh.Plan) *mesh.Plan {
	bare := *plan
	bare.Upstreams = slices.Clone(plan.Upstreams)
	for i := range bare.Upstreams {
		bare.Upstreams[i].Endpoints = nil
	}
	return &bare
}

// fingerprint names what the program would be told.
func fingerprint(plan *mesh.Plan, identity *mtls.Identity, lists bool) (string, error) {
	said := *plan
	said.Revision = 0
	text, err := json.Marshal(said)
	if err != nil {
		return "", fmt.Errorf("reading the plan: %w", err)
	}
	sum := sha256.New()
	sum.Write(text)
	for _, der := range identity.Certificate.Certificate {
		sum.Write(der)
	}
	sum.Write([]byte(identity.Bundle.Digest()))
	sum.Write([]byte(filesDigest(plan)))
	if lists {
		sum.Write([]byte(identity.Revocation.CRLs.Digest()))
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// hasFiles tells whether a listener has a certificate of its own in files.
func hasFiles(plan *mesh.Plan) bool {
	return slices.ContainsFunc(plan.Inbound, func(in mesh.Inbound) bool { return in.Certificate != nil })
}

// filesDigest names what is in the certificate files of a Plan, readable or not.
func filesDigest(plan *mesh.Plan) string {
	sum := sha256.New()
	for _, in := range plan.Inbound {
		if in.Certificate == nil {
			continue
		}
		for _, path := range []string{in.Certificate.Cert, in.Certificate.Key} {
			data, err := os.ReadFile(path)
			fmt.Fprintf(sum, "%s %v %x\n", path, err, sha256.Sum256(data))
			clear(data)
		}
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// lists tells whether the program looks certificates up in revocation lists. Both programs refuse everybody when one is
// missing or past its end, which is what [mesh.StaleRefuse] asks for; with [mesh.StaleServe] they are not given any then,
// and the problem is told.
func (s *Supervisor) lists(identity *mtls.Identity) (bool, error) {
	if identity.Revocation == nil {
		s.setProblem(problemLists, "")
		return false, nil
	}
	authorities := append(admin.Parse(identity.Certificate.Certificate)[1:], identity.Bundle.Roots()...)
	err := identity.Revocation.Problem(authorities, s.cfg.Now())
	if err == nil {
		s.setProblem(problemLists, "")
		return true, nil
	}
	if identity.Revocation.Stale == mesh.StaleServe {
		s.setProblem(problemLists, fmt.Sprintf("revoked certificates are accepted (staleCRL: serve): %v", err))
		return false, nil
	}
	for _, authority := range authorities {
		if _, _, ok := identity.Revocation.CRLs.Covers(authority); !ok {
			return false, err // the program would not even start
		}
	}
	s.setProblem(problemLists, fmt.Sprintf("everybody is refused (staleCRL: refuse): %v", err))
	return true, nil
}
