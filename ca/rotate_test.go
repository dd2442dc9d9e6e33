package ca

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign.dev/issue"
	"countersign.dev/journal"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// opened is a CA with its journal, for as long as a test.
type opened struct {
	*CA
	t   *testing.T
	log *journal.Log
}

func openAll(t *testing.T, state string, seal Sealer, now func() time.Time) *opened {
	t.Helper()
	c, err := OpenExpired(state, seal, now)
	if err != nil {
		t.Fatal(err)
	}
	log, err := OpenJournal(state, seal)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	return &opened{c, t, log}
}

// again closes everything and reads it from the disk.
func (o *opened) again(seal Sealer) *opened {
	o.t.Helper()
	if err := o.log.Close(); err != nil {
		o.t.Fatal(err)
	}
	return openAll(o.t, o.State(), seal, o.now)
}

// must fails the test on an error and settles what follows from a change.
func (o *opened) must(err error) {
	o.t.Helper()
	if err := errors.Join(err, o.Settle()); err != nil {
		o.t.Fatal(err)
	}
}

// leaf issues a certificate and checks its chain against the bundle of this moment.
func (o *opened) leaf() *Issued {
	o.t.Helper()
	issued, err := o.Issue(o.t.Context(), JournalRecorder{Journal: o.log, By: "a test"}, service(o.t))
	if err != nil {
		o.t.Fatal(err)
	}
	if !o.trusts(issued.ChainPEM) {
		o.t.Error("the bundle does not hold the root of a new certificate")
	}
	if !bytes.Equal(issued.ChainPEM, o.ChainPEM(issued.Certificate)) {
		o.t.Error("the chain of a certificate differs from the one that it was issued with")
	}
	return issued
}

// trusts tells whether a chain leads to the bundle.
func (o *opened) trusts(chainPEM []byte) bool {
	o.t.Helper()
	bundle, err := mtls.ParseBundle(trustDomain, o.BundlePEM())
	if err != nil {
		o.t.Fatal(err)
	}
	chain, err := mtls.ParseCertificates(chainPEM)
	if err != nil {
		o.t.Fatal(err)
	}
	_, err = bundle.Verify(chain, x509.ExtKeyUsageServerAuth, o.now())
	return err == nil
}

// states are the hierarchies' states, in their order.
func (o *opened) states() string {
	var states []string
	for _, h := range o.Hierarchies() {
		states = append(states, string(h.State))
	}
	return strings.Join(states, " ")
}

// keys are the private keys below the CA's directory.
func (o *opened) keys() int {
	o.t.Helper()
	n := 0
	err := filepath.WalkDir(filepath.Join(o.State(), caDir), func(path string, entry fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".key" {
			n++
		}
		if info, infoErr := entry.Info(); infoErr != nil || info.Mode().Perm()&0o077 != 0 {
			o.t.Errorf("%s can be read by others", path)
		}
		return err
	})
	if err != nil {
		o.t.Fatal(err)
	}
	return n
}

func TestRotateRoot(t *testing.T) {
	for method, seal := range sealers(t) {
		t.Run(method, func(t *testing.T) {
			c := openAll(t, newState(t, seal), seal, time.Now)
			before, pin := c.leaf(), c.Pin()

			next, err := c.StartRoot(t.Context(), c.log, RootConfig{}, Note{By: "a test"})
			c.must(err)
			c = c.again(seal)
			if c.states() != "active next" || c.Pin() != pin || c.keys() != 5 {
				t.Errorf("after the start: %s, pin %s, %d keys", c.states(), c.Pin(), c.keys())
			}
			if roots, err := mtls.ParseCertificates(c.BundlePEM()); err != nil || len(roots) != 2 || mtls.Pin(roots[0]) != pin {
				t.Errorf("after the start the bundle is %d roots, %v", len(roots), err)
			}
			during := c.leaf()
			if during.Hierarchy.Pin() != pin {
				t.Error("the next root signs before its time")
			}
			probe, err := c.IssueNext(t.Context(), JournalRecorder{Journal: c.log}, service(t))
			if err != nil || probe.Hierarchy.ID != next.ID || !c.trusts(probe.ChainPEM) {
				t.Errorf("a certificate of the next root: %v", err)
			}

			c.must(c.Activate(t.Context(), c.log, Note{}))
			c = c.again(seal)
			if c.states() != "active retiring" || c.Pin() != next.Pin() || !c.trusts(before.ChainPEM) {
				t.Errorf("after the activation: %s, pin %s", c.states(), c.Pin())
			}
			after := c.leaf()
			if after.Hierarchy.ID != next.ID || !bytes.Equal(c.ChainPEM(before.Certificate), before.ChainPEM) {
				t.Error("certificates of the two roots are mixed up")
			}

			c.must(c.FinishRoot(t.Context(), c.log, Note{Forced: "a word", Blockers: []string{"somebody"}}))
			c = c.again(seal)
			if c.states() != "active" || c.Pin() != next.Pin() || c.keys() != 3 || c.trusts(before.ChainPEM) || !c.trusts(after.ChainPEM) {
				t.Errorf("after the end: %s, pin %s, %d keys, trusts the old root %t", c.states(), c.Pin(), c.keys(), c.trusts(before.ChainPEM))
			}
			if onDisk, err := os.ReadFile(c.BundleFile()); err != nil || !bytes.Equal(onDisk, c.BundlePEM()) {
				t.Errorf("the bundle's file differs from the bundle, %v", err)
			}
			c.leaf()
			wantSteps(t, c, StepStart, StepActivate, StepFinish)
		})
	}
}

// wantSteps checks what the journal says of the hierarchies.
func wantSteps(t *testing.T, c *opened, want ...Step) {
	t.Helper()
	var got []Step
	for record, err := range c.log.Records() {
		if err != nil {
			t.Fatal(err)
		}
		if record.Type != journal.CARotate {
			continue
		}
		var change Change
		if err := json.Unmarshal(record.Data, &change); err != nil {
			t.Fatal(err)
		}
		got = append(got, change.Step)
		if named := change.Step == StepStart || change.Step == StepIssuer; named != (change.Root != "") || change.Pin == "" {
			t.Errorf("the entry of %s: %+v", change.Step, change)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("the journal has %v, want %v", got, want)
	}
}

// TestBundleFile is there from the start, and comes back where an earlier version has made none.
func TestBundleFile(t *testing.T) {
	c := openAll(t, newState(t, Unsealed()), Unsealed(), time.Now)
	for range 2 {
		if onDisk, err := os.ReadFile(c.BundleFile()); err != nil || !bytes.Equal(onDisk, c.BundlePEM()) {
			t.Errorf("the bundle's file differs from the bundle, %v", err)
		}
		if err := os.Remove(c.BundleFile()); err != nil {
			t.Fatal(err)
		}
		c.must(nil)
	}
}

func TestRotateRefusals(t *testing.T) {
	c := openAll(t, newState(t, Unsealed()), Unsealed(), time.Now)
	ctx := t.Context()
	for what, err := range map[string]error{
		"activate": c.Activate(ctx, c.log, Note{}), "finish": c.FinishRoot(ctx, c.log, Note{}), "cancel": c.CancelRoot(ctx, c.log, Note{}),
	} {
		if !errors.Is(err, ErrNotRotating) {
			t.Errorf("%s without a start: %v", what, err)
		}
	}
	if _, err := c.IssueNext(ctx, JournalRecorder{Journal: c.log}, service(t)); !errors.Is(err, ErrNotRotating) {
		t.Errorf("a certificate of no root: %v", err)
	}
	for name, cfg := range map[string]RootConfig{
		"both are said":     {RootLife: time.Hour, IssuerLife: 2 * time.Hour},
		"the root's is":     {RootLife: DefaultIssuerLife - time.Hour},
		"the issuing CA is": {IssuerLife: DefaultRootLife + time.Hour},
	} {
		if _, err := c.StartRoot(ctx, c.log, cfg, Note{}); !errors.Is(err, ErrLife) || len(c.Hierarchies()) != 1 {
			t.Errorf("an issuing CA that outlives its root, %s: %v", name, err)
		}
	}
	_, err := c.StartRoot(ctx, c.log, RootConfig{KeyType: mesh.ECDSAP384, RootLife: 2 * time.Hour, IssuerLife: time.Hour}, Note{})
	c.must(err)
	if _, err := c.StartRoot(ctx, c.log, RootConfig{}, Note{}); !errors.Is(err, ErrRotating) {
		t.Errorf("a second start: %v", err)
	}
	if err := c.FinishRoot(ctx, c.log, Note{}); !errors.Is(err, ErrNotRotating) {
		t.Errorf("finish before activate: %v", err)
	}
	if h := c.Hierarchies()[1]; keyTypeOf(h.Root.PublicKey) != mesh.ECDSAP384 || lifeOf(h.Root) != 2*time.Hour || lifeOf(h.Issuer) != time.Hour {
		t.Errorf("the next root has a %s key and lives %s, its issuer %s", keyTypeOf(h.Root.PublicKey), lifeOf(h.Root), lifeOf(h.Issuer))
	}
	c.must(c.CancelRoot(ctx, c.log, Note{}))
	if c = c.again(Unsealed()); c.states() != "active" || c.keys() != 3 {
		t.Errorf("after giving up: %s, %d keys", c.states(), c.keys())
	}
	_, err = c.StartRoot(ctx, c.log, RootConfig{}, Note{})
	c.must(err)
	c.must(c.Activate(ctx, c.log, Note{}))
	if _, err := c.StartRoot(ctx, c.log, RootConfig{}, Note{}); !errors.Is(err, ErrRotating) {
		t.Errorf("a start while another root retires: %v", err)
	}
	if err := c.CancelRoot(ctx, c.log, Note{}); !errors.Is(err, ErrRotating) || !strings.Contains(err.Error(), "ca rotate finish") {
		t.Errorf("giving up what signs: %v", err)
	}
	wantSteps(t, c, StepStart, StepCancel, StepStart, StepActivate)
}

// TestNotRecorded expects that what cannot be recorded is not done.
func TestChangeNotRecorded(t *testing.T) {
	c := openAll(t, newState(t, Unsealed()), Unsealed(), time.Now)
	if err := c.log.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.StartRoot(t.Context(), c.log, RootConfig{}, Note{}); err == nil {
		t.Error("a root was started with a closed journal")
	}
	if err := c.Settle(); err != nil {
		t.Fatal(err)
	}
	if c = c.again(Unsealed()); c.states() != "active" || c.keys() != 3 {
		t.Errorf("%s, %d keys", c.states(), c.keys())
	}
}

func TestRenewIssuer(t *testing.T) {
	seal := newKeyFile(t)
	now := time.Now
	c := openAll(t, newState(t, seal), seal, func() time.Time { return now() })
	before, pin := c.leaf(), c.Pin()
	if _, err := c.RenewIssuer(t.Context(), c.log, nil, 24*time.Hour, Note{}); !errors.Is(err, ErrShortRoot) {
		t.Errorf("an issuing CA that ends before the one before: %v", err)
	}
	now = func() time.Time { return time.Now().Add(DefaultIssuerLife + time.Hour) }
	if _, err := OpenClock(c.State(), seal, now); !errors.Is(err, issue.ErrIssuer) || !strings.Contains(err.Error(), "ca rotate issuer") {
		t.Errorf("opening an expired issuing CA: %v", err)
	}
	made, err := c.RenewIssuer(t.Context(), c.log, nil, 0, Note{By: "server"})
	c.must(err)
	c = c.again(seal)
	if c.states() != "active retiring" || c.Pin() != pin || c.Issuer().NotAfter != made.Issuer.NotAfter || c.keys() != 4 {
		t.Errorf("%s, pin %s, %d keys", c.states(), c.Pin(), c.keys())
	}
	wantRootKeys(t, c, filepath.Join(caDir, hierarchiesDir, made.ID, rootKey))
	if roots, err := mtls.ParseCertificates(c.BundlePEM()); err != nil || len(roots) != 1 {
		t.Errorf("the bundle has %d roots, %v: the root is the same", len(roots), err)
	}
	after := c.leaf()
	if after.Hierarchy.ID != made.ID || after.Certificate.NotAfter.After(made.Issuer.NotAfter) {
		t.Error("the new issuing CA does not sign")
	}
	c.must(c.DropIssuers(t.Context(), c.log, func(h Hierarchy) bool { return h.Signed(before.Certificate) }, Note{}))
	if c.states() != "active retiring" {
		t.Error("an issuing CA with leaves was removed")
	}
	c.must(c.DropIssuers(t.Context(), c.log, func(Hierarchy) bool { return false }, Note{}))
	if c = c.again(seal); c.states() != "active" || c.keys() != 3 {
		t.Errorf("%s, %d keys", c.states(), c.keys())
	}
	wantSteps(t, c, StepIssuer, StepDrop)
	if _, err := c.StartRoot(t.Context(), c.log, RootConfig{}, Note{}); err != nil {
		t.Errorf("a root after another issuing CA: %v", err)
	}
}

// wantRootKeys asserts which files of roots' keys there are, below the state.
func wantRootKeys(t *testing.T, c *opened, want ...string) {
	t.Helper()
	files, err := c.RootKeyFiles()
	for i, file := range files {
		if files[i], err = filepath.Rel(c.State(), file); err != nil {
			t.Fatal(err)
		}
	}
	if err != nil || !slices.Equal(files, want) {
		t.Errorf("the roots' keys are %q, %v, want %q", files, err, want)
	}
}

// TestRootKeyOnce leaves a root's key where the hierarchy that signs has it, and there only; what is another file, or the
// only one, stays.
func TestRootKeyOnce(t *testing.T) {
	now := func() time.Time { return time.Now().Add(DefaultIssuerLife) }
	c := openAll(t, newState(t, Unsealed()), Unsealed(), now)
	first := filepath.Join(caDir, rootKey)
	wantRootKeys(t, c, first)
	text, err := os.ReadFile(filepath.Join(c.State(), first))
	if err != nil {
		t.Fatal(err)
	}
	made, err := c.RenewIssuer(t.Context(), c.log, nil, 0, Note{})
	if err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(caDir, hierarchiesDir, made.ID, rootKey)
	wantRootKeys(t, c, kept, first)
	c.must(nil)
	wantRootKeys(t, c, kept)

	if err := os.WriteFile(filepath.Join(c.State(), first), append(text, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	c.must(nil)
	wantRootKeys(t, c, kept, first) // another file: whoever put it there knows why
	if err := errors.Join(os.Remove(filepath.Join(c.State(), kept)), os.Symlink(filepath.Join(c.State(), first), filepath.Join(c.State(), kept))); err != nil {
		t.Fatal(err)
	}
	c.must(nil)
	wantRootKeys(t, c, kept, first) // what a link leads to is the only one
}

// TestForeignRootKey puts the key of the new root where that of the first one was, before and after that one goes: only
// the first one's is removed.
func TestForeignRootKey(t *testing.T) {
	for method, seal := range sealers(t) {
		t.Run(method, func(t *testing.T) {
			c := openAll(t, newState(t, seal), seal, time.Now)
			made, err := c.StartRoot(t.Context(), c.log, RootConfig{}, Note{})
			c.must(err)
			c.must(c.Activate(t.Context(), c.log, Note{}))
			place := filepath.Join(c.State(), caDir, rootKey)
			if err := os.Rename(filepath.Join(made.dir, rootKey), place); err != nil {
				t.Fatal(err)
			}
			c.must(c.FinishRoot(t.Context(), c.log, Note{}))
			c.must(nil)
			wantRootKeys(t, c, filepath.Join(caDir, rootKey))
			if _, err := c.ReadKeyFile(place); err != nil || c.keys() != 3 {
				t.Errorf("%d keys, %v", c.keys(), err)
			}
			if there, err := present(filepath.Join(c.State(), caDir, rootCert)); err != nil || there {
				t.Errorf("the certificate of the root of before is still there: %v", err)
			}
		})
	}
}

// TestRootKeyOutlivesFirstIssuer puts the root's key back where it was at first: it stays when the first issuing CA goes,
// for the root does not.
func TestRootKeyOutlivesFirstIssuer(t *testing.T) {
	now := func() time.Time { return time.Now().Add(DefaultIssuerLife) }
	c := openAll(t, newState(t, Unsealed()), Unsealed(), now)
	made, err := c.RenewIssuer(t.Context(), c.log, nil, 0, Note{})
	c.must(err)
	if err := os.Rename(filepath.Join(made.dir, rootKey), filepath.Join(c.State(), caDir, rootKey)); err != nil {
		t.Fatal(err)
	}
	c.must(c.DropIssuers(t.Context(), c.log, func(Hierarchy) bool { return false }, Note{}))
	wantRootKeys(t, c, filepath.Join(caDir, rootKey))
	if c.states() != "active" || c.keys() != 3 {
		t.Errorf("%s, %d keys", c.states(), c.keys())
	}
}

// TestRenewIssuerWithKey renews with a root's key that was moved away, and refuses another one.
func TestRenewIssuerWithKey(t *testing.T) {
	now := func() time.Time { return time.Now().Add(DefaultIssuerLife) }
	c := openAll(t, newState(t, Unsealed()), Unsealed(), now)
	key, err := c.OpenRoot(c.active())
	if err != nil || !c.RootKeyAtHand() {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(c.State(), caDir, rootKey)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RenewIssuer(t.Context(), c.log, nil, 0, Note{}); !errors.Is(err, ErrCorrupt) || c.RootKeyAtHand() {
		t.Errorf("without the root's key: %v", err)
	}
	if _, err := c.RenewIssuer(t.Context(), c.log, c.IssuerSigner(c.active()), 0, Note{}); !errors.Is(err, ErrWrongKey) {
		t.Errorf("with another key: %v", err)
	}
	_, err = c.RenewIssuer(t.Context(), c.log, key, 0, Note{})
	c.must(err)
	if c.states() != "active retiring" || c.RootKeyAtHand() {
		t.Errorf("%s, and the root's key has come into the state: %t", c.states(), c.RootKeyAtHand())
	}
}

// TestDamagedHierarchies refuses lists that this program has not written.
func TestDamagedHierarchies(t *testing.T) {
	state := newState(t, Unsealed())
	c := openAll(t, state, Unsealed(), time.Now)
	next, err := c.StartRoot(t.Context(), c.log, RootConfig{}, Note{})
	c.must(err)
	path := filepath.Join(state, caDir, configFile)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(state, caDir, hierarchiesDir, next.ID)
	for name, damage := range map[string]func() error{
		"a state that is none": func() error {
			return os.WriteFile(path, bytes.Replace(good, []byte(`"next"`), []byte(`"never"`), 1), 0o600)
		},
		"two that sign": func() error {
			return os.WriteFile(path, bytes.Replace(good, []byte(`"next"`), []byte(`"active"`), 1), 0o600)
		},
		"none that signs": func() error {
			return os.WriteFile(path, bytes.Replace(good, []byte(`"active"`), []byte(`"retiring"`), 1), 0o600)
		},
		"a name that leads elsewhere": func() error {
			return os.WriteFile(path, bytes.ReplaceAll(good, []byte(next.ID), []byte("../"+next.ID)), 0o600)
		},
		"a missing certificate": func() error { return os.Remove(filepath.Join(dir, rootCert)) },
		"another pin": func() error {
			return os.WriteFile(path, bytes.ReplaceAll(good, []byte(next.Pin()), []byte(c.Pin())), 0o600)
		},
	} {
		saved, err := os.ReadFile(filepath.Join(dir, rootCert))
		if err != nil {
			t.Fatal(err)
		}
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(state); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
		if err := errors.Join(os.WriteFile(path, good, 0o600), os.WriteFile(filepath.Join(dir, rootCert), saved, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Read(state); err != nil {
		t.Errorf("the good state: %v", err)
	}
}

// TestRotateSyncFails lets the last sync of ca.json fail, after the rename: the change has taken effect, and its keys are
// not swept away; nothing of before is, either, until ca.json is there for sure.
func TestRotateSyncFails(t *testing.T) {
	errDisk := errors.New("input/output error")
	c := openAll(t, newState(t, Unsealed()), Unsealed(), time.Now)
	renamed := func(dir string, changed config) error { return errors.Join(writeConfig(dir, changed), errDisk) }
	c.writeConfig = renamed
	if _, err := c.StartRoot(t.Context(), c.log, RootConfig{}, Note{}); !errors.Is(err, errDisk) {
		t.Fatalf("the start: %v", err)
	}
	if c.states() != "active next" {
		t.Errorf("after a failure that came too late: %s", c.states())
	}
	if err := c.Settle(); !errors.Is(err, errDisk) {
		t.Errorf("it settles on a disk that fails: %v", err)
	}
	if err := c.Activate(t.Context(), c.log, Note{}); !errors.Is(err, errDisk) {
		t.Errorf("the activation: %v", err)
	}
	if err := c.FinishRoot(t.Context(), c.log, Note{}); !errors.Is(err, errDisk) {
		t.Errorf("the end: %v", err)
	}
	if err := c.Settle(); !errors.Is(err, errDisk) || c.keys() != 5 {
		t.Errorf("%d keys are left where ca.json may be the one of before, %v", c.keys(), err)
	}
	c.writeConfig = func(string, config) error { return errDisk } // before the rename
	if _, err := c.StartRoot(t.Context(), c.log, RootConfig{}, Note{}); !errors.Is(err, errDisk) || c.states() != "active" {
		t.Errorf("%s, %v", c.states(), err)
	}
	c.writeConfig = writeConfig
	c.must(nil)
	if c = c.again(Unsealed()); c.states() != "active" || c.keys() != 3 {
		t.Errorf("the next start: %s, %d keys", c.states(), c.keys())
	}
	c.leaf()
}
