package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"countersign.dev/durable"
	"countersign.dev/issue"
	"countersign.dev/journal"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// Sentinel errors of a change of root or issuing CA.
var (
	// ErrRotating says that the root is being changed already.
	ErrRotating = errors.New("the root is being changed already")
	// ErrNotRotating says that no change of the root has come as far as a step needs it.
	ErrNotRotating = errors.New("the root is not being changed")
	// ErrShortRoot says that a root ends too soon for another issuing CA below it.
	ErrShortRoot = errors.New("the root ends too soon for another issuing CA")
	// ErrLife says that a new root was to live shorter than its issuing CA.
	ErrLife = errors.New("the lives do not fit together")
)

// bundleFile are the roots to trust, derived from what ca.json says.
const bundleFile = "bundle.pem"

// BundleFile is the file with the roots to trust, for those who read the state. A server keeps it as the
// hierarchies are; a CA that was made by an earlier version has it when a server has run.
func (a *Authority) BundleFile() string { return filepath.Join(a.state, caDir, bundleFile) }

// RootConfig says what root to make. What is zero is as it is in the active hierarchy: an issuing CA is not made to live
// shorter because the root is.
type RootConfig struct {
	KeyType              mesh.KeyType
	RootLife, IssuerLife time.Duration
}

// Step is what is done to the hierarchies, as the journal records it.
type Step string

// The steps of a change.
const (
	StepStart    Step = "start"    // a next root is made and comes into the bundle
	StepCancel   Step = "cancel"   // the next root is given up
	StepActivate Step = "activate" // the next root signs, the one before retires
	StepFinish   Step = "finish"   // the root that retires is removed
	StepIssuer   Step = "issuer"   // the same root has another issuing CA
	StepDrop     Step = "drop"     // an issuing CA of the same root has no leaves any more
)

// Note is what the journal keeps of why a step was taken.
type Note struct {
	// Forced is the word by which somebody went over what stood in the way, and Blockers what that was.
	Forced   string   `json:"forced,omitempty"`
	Blockers []string `json:"blockers,omitempty"`
	// By is who took it: "administrator" or "server".
	By string `json:"by,omitempty"`
}

// Change is the data of a [journal.CARotate] entry. It is written before the change takes effect, so
// that after a crash it may stand there twice.
type Change struct {
	Step Step `json:"step"`
	// Hierarchy, Pin and Subject are of what the step is about.
	Hierarchy string `json:"hierarchy"`
	Pin       string `json:"pin"`
	Subject   string `json:"subject"`
	// Replaces is the hierarchy that it takes the place of.
	Replaces string `json:"replaces,omitempty"`
	// Root and Issuer are the certificates of a new hierarchy, PEM.
	Root   string `json:"root,omitempty"`
	Issuer string `json:"issuer,omitempty"`
	Note
}

// StartRoot makes a root and an issuing CA below it that are to sign next, and puts the root into the
// bundle. Nothing is signed by it but what [CA.IssueNext] is asked for. It is [ErrRotating] while the
// root is being changed already, and [ErrLife] when the root would end before the issuing CA.
//
// Everything is on the disk, and in the journal, before ca.json names it, in one step.
func (c *CA) StartRoot(ctx context.Context, log Appender, cfg RootConfig, note Note) (Hierarchy, error) {
	c.changing.Lock()
	defer c.changing.Unlock()
	all := c.Hierarchies()
	active := all[0]
	for _, h := range all {
		if !h.SameRoot(active) {
			return Hierarchy{}, fmt.Errorf("starting another root: %w: %s is %s", ErrRotating, h.Root.Subject, h.State)
		}
	}
	init := InitConfig{
		TrustDomain: c.TrustDomain(), Seal: c.seal, KeyType: cfg.KeyType,
		RootLife: cfg.RootLife, IssuerLife: cfg.IssuerLife, Now: c.now,
	}
	if init.KeyType == "" {
		init.KeyType = keyTypeOf(active.Root.PublicKey)
	}
	if init.IssuerLife == 0 {
		init.IssuerLife = lifeOf(active.Issuer)
		if init.RootLife == 0 {
			init.IssuerLife = min(init.IssuerLife, lifeOf(active.Root))
		}
	}
	if init.RootLife == 0 {
		init.RootLife = lifeOf(active.Root)
	}
	if init.IssuerLife > init.RootLife {
		return Hierarchy{}, fmt.Errorf("starting another root: %w: the issuing CA would live %s, longer than the root (%s); say how long each is to live with --root-life and --issuer-life",
			ErrLife, init.IssuerLife, init.RootLife)
	}
	if err := init.complete(); err != nil {
		return Hierarchy{}, fmt.Errorf("starting another root: %w", err)
	}
	made, err := c.add(func(dir string) error {
		_, _, err := hierarchy(dir, init)
		return err
	})
	if err != nil {
		return Hierarchy{}, fmt.Errorf("starting another root: %w", err)
	}
	made.State, made.Since = Next, c.now().UTC().Truncate(time.Second)
	all = slices.Insert(all, 1, made)
	if err := c.change(ctx, log, all, newChange(StepStart, made, active, note, true)); err != nil {
		return Hierarchy{}, fmt.Errorf("starting another root: %w", err)
	}
	return made, nil
}

// CancelRoot removes the root that was to sign next, and its keys. It is [ErrNotRotating] when there is
// none, and [ErrRotating] when it signs already.
func (c *CA) CancelRoot(ctx context.Context, log Appender, note Note) error {
	c.changing.Lock()
	defer c.changing.Unlock()
	all := c.Hierarchies()
	switch {
	case slices.ContainsFunc(all, func(h Hierarchy) bool { return h.State == Retiring && !h.SameRoot(all[0]) }):
		return fmt.Errorf("giving up the next root: %w, and what was the next one signs, which nothing takes back: "+
			"`countersign ca rotate finish` ends the change, and another one may follow", ErrRotating)
	case len(all) < 2 || all[1].State != Next:
		return fmt.Errorf("giving up the next root: %w", ErrNotRotating)
	}
	next := all[1]
	if err := c.change(ctx, log, slices.Delete(all, 1, 2), newChange(StepCancel, next, Hierarchy{}, note, false)); err != nil {
		return fmt.Errorf("giving up the next root: %w", err)
	}
	return nil
}

// Activate lets the next root sign; the one that has signed retires. It is [ErrNotRotating] when there
// is no next one. Whether everybody knows it is for the caller to have found out.
func (c *CA) Activate(ctx context.Context, log Appender, note Note) error {
	c.changing.Lock()
	defer c.changing.Unlock()
	all := c.Hierarchies()
	if len(all) < 2 || all[1].State != Next {
		return fmt.Errorf("letting the next root sign: %w", ErrNotRotating)
	}
	now := c.now().UTC().Truncate(time.Second)
	before := all[0]
	all[0], all[1] = all[1], all[0]
	all[0].State, all[1].State = Active, Retiring
	all[0].Since, all[1].Since = now, now
	if err := c.change(ctx, log, all, newChange(StepActivate, all[0], before, note, false)); err != nil {
		return fmt.Errorf("letting the next root sign: %w", err)
	}
	return nil
}

// FinishRoot removes every hierarchy of another root than the active one, with its keys: nobody trusts
// it from then on. It is [ErrNotRotating] when none retires. Whether somebody still needs it is for the
// caller to have found out.
func (c *CA) FinishRoot(ctx context.Context, log Appender, note Note) error {
	c.changing.Lock()
	defer c.changing.Unlock()
	all := c.Hierarchies()
	old := slices.IndexFunc(all, func(h Hierarchy) bool { return h.State == Retiring && !h.SameRoot(all[0]) })
	if old < 0 {
		return fmt.Errorf("removing the root of before: %w", ErrNotRotating)
	}
	retired, active := all[old], all[0]
	all = slices.DeleteFunc(all, func(h Hierarchy) bool { return h.State == Retiring && !h.SameRoot(active) })
	if err := c.change(ctx, log, all, newChange(StepFinish, retired, Hierarchy{}, note, false)); err != nil {
		return fmt.Errorf("removing the root of before: %w", err)
	}
	return nil
}

// RenewIssuer gives the active root another issuing CA, which signs from then on; the one before retires
// until [CA.DropIssuers] removes it. The root's key is rootKey, or, when that is nil, the one in the
// state; life 0 is as long as the one before. It is [ErrShortRoot] when the new one would not outlive
// the one before, because the root ends: then only another root helps.
func (c *CA) RenewIssuer(ctx context.Context, log Appender, key crypto.Signer, life time.Duration, note Note) (Hierarchy, error) {
	c.changing.Lock()
	defer c.changing.Unlock()
	all := c.Hierarchies()
	active := all[0]
	if key == nil {
		var err error
		if key, err = c.OpenRoot(active); err != nil {
			return Hierarchy{}, fmt.Errorf("renewing the issuing CA: %w", err)
		}
	} else if public, ok := active.Root.PublicKey.(interface{ Equal(x crypto.PublicKey) bool }); !ok || !public.Equal(key.Public()) {
		return Hierarchy{}, fmt.Errorf("renewing the issuing CA: %w: that key is not the one of %s", ErrWrongKey, active.Root.Subject)
	}
	if life == 0 {
		life = lifeOf(active.Issuer)
	}
	if end := c.now().Add(life); !active.Root.NotAfter.After(active.Issuer.NotAfter) || !end.After(active.Issuer.NotAfter) {
		return Hierarchy{}, fmt.Errorf("renewing the issuing CA: %w (%s): it would not outlive the one that signs now (%s); "+
			"`countersign ca rotate run` makes another root", ErrShortRoot, active.Root.NotAfter.UTC().Format(time.RFC3339), active.Issuer.NotAfter.UTC().Format(time.RFC3339))
	}
	made, err := c.add(func(dir string) error { return c.issuerBelow(dir, active, key, life) })
	if err != nil {
		return Hierarchy{}, fmt.Errorf("renewing the issuing CA: %w", err)
	}
	made.State, made.Since = Active, c.now().UTC().Truncate(time.Second)
	change := newChange(StepIssuer, made, active, note, true)
	active.State, active.Since = Retiring, made.Since
	all[0] = made
	all = append(all, active)
	if err := c.change(ctx, log, all, change); err != nil {
		return Hierarchy{}, fmt.Errorf("renewing the issuing CA: %w", err)
	}
	return made, nil
}

// DropIssuers removes the retiring issuing CAs of the active root that nothing needs any more. They are
// trusted no longer than their root is, so that it costs nobody anything; it keeps fewer keys.
func (c *CA) DropIssuers(ctx context.Context, log Appender, needed func(Hierarchy) bool, note Note) error {
	c.changing.Lock()
	defer c.changing.Unlock()
	for {
		all := c.Hierarchies()
		i := slices.IndexFunc(all, func(h Hierarchy) bool { return h.State == Retiring && h.SameRoot(all[0]) && !needed(h) })
		if i < 0 {
			return nil
		}
		old := all[i]
		if err := c.change(ctx, log, slices.Delete(all, i, i+1), newChange(StepDrop, old, Hierarchy{}, note, false)); err != nil {
			return fmt.Errorf("removing an issuing CA that nothing needs: %w", err)
		}
	}
}

// issuerBelow writes a hierarchy with the same root and another issuing CA.
func (c *CA) issuerBelow(dir string, active Hierarchy, key crypto.Signer, life time.Duration) error {
	signer, err := mtls.GenerateKey(keyTypeOf(active.Issuer.PublicKey))
	if err != nil {
		return err
	}
	issuing, err := issue.NewIssuing(signer.Public(), active.Root, key, issue.AuthorityConfig{TrustDomain: c.TrustDomain(), Now: c.now(), Life: life})
	if err != nil {
		return err
	}
	text, err := mtls.MarshalKey(signer)
	if err != nil {
		return err
	}
	if err := writeSealed(filepath.Join(dir, issuerKey), c.seal, text); err != nil {
		return err
	}
	if c.RootKeyAtHand() { // as it is stored: nothing opens it for that
		path := filepath.Join(active.dir, rootKey)
		if err := privateFile(path, c.Seal()); err != nil {
			return err
		}
		sealed, err := readFile(path, maxFile)
		if err != nil {
			return err
		}
		defer clear(sealed)
		if err := durable.WriteFile(filepath.Join(dir, rootKey), sealed, 0o600); err != nil {
			return err
		}
	}
	if err := durable.WriteFile(filepath.Join(dir, rootCert), encodeCertificate(active.Root), 0o600); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, issuerCert), encodeCertificate(issuing), 0o600)
}

// add writes a hierarchy beside the others and opens it. Nothing knows of it yet: what a crash leaves
// there is swept away by the next change.
func (c *CA) add(write func(dir string) error) (Hierarchy, error) {
	dir := filepath.Join(c.state, caDir)
	parent := filepath.Join(dir, hierarchiesDir)
	if err := c.settle(); err != nil {
		return Hierarchy{}, err
	}
	staging := filepath.Join(parent, "new")
	if err := durable.MkdirAll(staging, 0o700); err != nil {
		return Hierarchy{}, err
	}
	if err := write(staging); err != nil {
		return Hierarchy{}, errors.Join(err, os.RemoveAll(staging)) // a full disk gets its space back
	}
	root, err := readCertificate(filepath.Join(staging, rootCert))
	if err != nil {
		return Hierarchy{}, err
	}
	made, err := readHierarchy(staging, mtls.Pin(root))
	if err != nil {
		return Hierarchy{}, err
	}
	made.dir = filepath.Join(parent, made.ID)
	durable.Step("ca.rotate.written")
	return made, durable.Rename(staging, made.dir)
}

// change makes all the hierarchies that there are: first the journal, then ca.json in one step, then
// memory. An error means that nothing has changed, but for a failure in the very last sync: then ca.json
// names the new ones, and so does memory. What follows is for [CA.Settle], which can be repeated.
func (c *CA) change(ctx context.Context, log Appender, all []Hierarchy, what Change) error {
	unlock, err := durable.Lock(filepath.Join(c.state, lockFile))
	if err != nil {
		return err
	}
	defer func() { _ = unlock() }() // nothing is written through the lock's file
	keys := make(map[string]crypto.Signer)
	for _, h := range all {
		if keys[h.ID] = c.IssuerSigner(h); keys[h.ID] != nil {
			continue
		}
		if keys[h.ID], err = readIssuerKey(h, c.seal, c.Seal()); err != nil {
			return err // what was just written cannot be used: better now than at the next start
		}
	}
	if _, err := log.Append(ctx, journal.Entry{Time: c.now(), Type: journal.CARotate, Data: what}); err != nil {
		return fmt.Errorf("recording it: %w", err)
	}
	durable.Step("ca.rotate.recorded")
	dir := filepath.Join(c.state, caDir)
	changed, err := readConfig(filepath.Join(dir, configFile)) // its trust domain may have been settled by another process
	if err != nil {
		return err
	}
	changed.Version, changed.Pin, changed.Hierarchies = listFormat, all[0].Pin(), nil
	for _, h := range all {
		changed.Hierarchies = append(changed.Hierarchies, entry{ID: h.ID, State: h.State, Pin: h.Pin(), Since: h.Since, First: h.dir == dir})
	}
	err = c.writeConfig(dir, changed)
	if err != nil {
		// It may have failed after the rename. What ca.json names is what the next start goes by.
		there, readErr := readConfig(filepath.Join(dir, configFile))
		if readErr != nil || !slices.Equal(names(there), names(changed)) {
			return errors.Join(err, readErr)
		}
		err = fmt.Errorf("it is done, and may be lost when the machine loses its power: %w", err)
	}
	c.unsynced = err != nil
	durable.Step("ca.rotate.changed")
	c.issuerMu.Lock()
	c.keys = keys
	clear(c.signing)
	c.mu.Lock()
	c.config, c.hierarchies = changed, all
	c.mu.Unlock()
	c.issuerMu.Unlock()
	return err
}

// names are the states of the hierarchies that ca.json lists, each with what it is about.
func names(c config) []string {
	var all []string
	for _, e := range c.Hierarchies {
		all = append(all, string(e.State)+" "+e.ID)
	}
	return all
}

// Settle brings the files that follow from ca.json up to date: it writes the bundle's, and removes the
// keys and certificates of hierarchies that have been removed, what an interrupted change has left, and the
// second copy of a root's key that another issuing CA has brought.
// It is to be called after every change and when a server starts.
func (c *CA) Settle() error {
	c.changing.Lock()
	defer c.changing.Unlock()
	if err := c.settle(); err != nil {
		return fmt.Errorf("bringing the CA's files up to date: %w", err)
	}
	return nil
}

func (c *CA) settle() error {
	if c.unsynced { // nothing is removed for a ca.json that may not be there after a crash
		dir := filepath.Join(c.state, caDir)
		there, err := readConfig(filepath.Join(dir, configFile))
		if err != nil {
			return err
		}
		if err := c.writeConfig(dir, there); err != nil {
			return err
		}
		c.unsynced = false
	}
	want := c.BundlePEM()
	if have, err := os.ReadFile(c.BundleFile()); err != nil || string(have) != string(want) {
		if err := durable.WriteFile(c.BundleFile(), want, 0o600); err != nil {
			return err
		}
	}
	if err := c.sweep(); err != nil {
		return err
	}
	return c.dropRootKeys()
}

// sweep removes the files of hierarchies that neither memory nor ca.json names. The two are the same, unless
// a disk has failed.
func (c *CA) sweep() error {
	dir := filepath.Join(c.state, caDir)
	there, err := readConfig(filepath.Join(dir, configFile))
	if err != nil {
		return err
	}
	named := map[string]bool{}
	first := len(there.Hierarchies) == 0
	for _, e := range there.Hierarchies {
		named[e.ID] = true
		first = first || e.First
	}
	for _, h := range c.Hierarchies() {
		named[filepath.Base(h.dir)] = true
		first = first || h.dir == dir
	}
	if !first {
		if err := c.sweepFirst(dir); err != nil {
			return err
		}
	}
	parent := filepath.Join(dir, hierarchiesDir)
	entries, err := os.ReadDir(parent)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !named[e.Name()] {
			if err := durable.RemoveAll(filepath.Join(parent, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// sweepFirst removes the files of the first hierarchy from the CA's directory. Keys first: what can sign is to be gone
// even when the rest cannot be removed. The root's certificate last: it tells whether a root's key there is the one that
// is to go, or one of another root that somebody has put there since.
func (c *CA) sweepFirst(dir string) error {
	remove := []string{issuerKey, issuerCert, issuerCRL, rootCRL, rootCert}
	root, err := readCertificate(filepath.Join(dir, rootCert))
	if err == nil {
		var old bool
		if old, err = c.oldRootKey(filepath.Join(dir, rootKey), root); old {
			remove = slices.Insert(remove, 0, rootKey)
		}
	}
	if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrSealed) && !errors.Is(err, ErrWrongKey) {
		return err // the certificate stays, and it is tried again
	}
	for _, name := range remove {
		path := filepath.Join(dir, name)
		if there, err := present(path); err != nil || !there {
			continue
		}
		if err := durable.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// oldRootKey tells whether a file holds the key of a root that is there no more, or the second copy of one that is.
func (c *CA) oldRootKey(path string, root *x509.Certificate) (bool, error) {
	for _, h := range c.Hierarchies() {
		if h.Root.Equal(root) {
			return sameFile(path, filepath.Join(h.dir, rootKey))
		}
	}
	_, err := readKeyOf(path, root, rootCert, c.seal, c.Seal())
	return err == nil, err
}

// newChange is what the journal says of a step.
func newChange(step Step, h, replaces Hierarchy, note Note, certificates bool) Change {
	change := Change{Step: step, Hierarchy: h.ID, Pin: h.Pin(), Subject: h.Issuer.Subject.String(), Replaces: replaces.ID, Note: note}
	if certificates {
		change.Root, change.Issuer = string(encodeCertificate(h.Root)), string(encodeCertificate(h.Issuer))
	}
	return change
}
