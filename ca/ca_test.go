package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/journal"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

const trustDomain = "colorapp.internal"

// lightWork is a work factor of scrypt that tests can afford.
const lightWork = 10

// writeFile makes a file of a test and gives its path.
func writeFile(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func newKeyFile(t testing.TB) Sealer {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.age")
	if err := GenerateKeyFile(path); err != nil {
		t.Fatal(err)
	}
	sealer, err := KeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sealer
}

func newPassphrase(t testing.TB, passphrase string) Sealer {
	t.Helper()
	sealer, err := passphraseFile(writeFile(t, "passphrase", passphrase+"\n"), lightWork)
	if err != nil {
		t.Fatal(err)
	}
	return sealer
}

// sealers are the three ways of storing keys, made anew.
func sealers(t testing.TB) map[string]Sealer {
	return map[string]Sealer{
		MethodKeyFile:    newKeyFile(t),
		MethodPassphrase: newPassphrase(t, "correct horse battery"),
		MethodUnsealed:   Unsealed(),
	}
}

// newState makes a CA and gives its state directory.
func newState(t testing.TB, seal Sealer) string {
	t.Helper()
	state := filepath.Join(t.TempDir(), "state")
	if _, err := Init(state, InitConfig{TrustDomain: trustDomain, Seal: seal}); err != nil {
		t.Fatal(err)
	}
	return state
}

func service(t testing.TB) issue.Request {
	t.Helper()
	key, err := mtls.GenerateKey(mesh.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	who, err := id.New(trustDomain, id.Service, "colorteller")
	if err != nil {
		t.Fatal(err)
	}
	return issue.Request{ID: who, PublicKey: key.Public(), TTL: time.Hour}
}

// issueInto opens everything, issues one certificate and closes the journal.
func issueInto(t testing.TB, state string, seal Sealer) *Issued {
	t.Helper()
	c, err := Open(state, seal)
	if err != nil {
		t.Fatal(err)
	}
	log, err := OpenJournal(state, seal)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := c.Issue(t.Context(), JournalRecorder{Journal: log, Instance: "colorteller-1", By: "a test"}, service(t))
	if err := errors.Join(err, log.Close()); err != nil {
		t.Fatal(err)
	}
	return issued
}

func TestInitAndIssue(t *testing.T) {
	for method, seal := range sealers(t) {
		t.Run(method, func(t *testing.T) {
			state := newState(t, seal)
			authority, err := Read(state)
			if err != nil {
				t.Fatal(err)
			}
			if authority.TrustDomain() != trustDomain || authority.Seal() != method || authority.Pin() != mtls.Pin(authority.Root()) || authority.State() != state {
				t.Errorf("%q, %q, %q, %q", authority.TrustDomain(), authority.Seal(), authority.Pin(), authority.State())
			}
			root, issuing := authority.Root(), authority.Issuer()
			if !root.IsCA || root.MaxPathLen != 1 || !issuing.IsCA || issuing.MaxPathLen != 0 || !issuing.MaxPathLenZero {
				t.Errorf("path lengths %d and %d", root.MaxPathLen, issuing.MaxPathLen)
			}
			for _, cert := range []*x509.Certificate{root, issuing} {
				if cert.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
					t.Errorf("%s may be used for %b", cert.Subject, cert.KeyUsage)
				}
			}
			issued := issueInto(t, state, seal)
			bundle, err := mtls.ParseBundle(trustDomain, authority.BundlePEM())
			if err != nil {
				t.Fatal(err)
			}
			chain, err := mtls.ParseCertificates(issued.ChainPEM)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := bundle.Verify(chain, x509.ExtKeyUsageServerAuth, time.Now()); err != nil || len(chain) != 2 {
				t.Errorf("%d certificates: %v", len(chain), err)
			}
			checkPrivate(t, state, method == MethodUnsealed)
		})
	}
}

// checkPrivate looks at every file and directory that was made.
func checkPrivate(t *testing.T, state string, plain bool) {
	t.Helper()
	keys := 0
	err := filepath.WalkDir(state, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			return fmt.Errorf("%s has the mode %04o", path, info.Mode().Perm())
		}
		if filepath.Ext(path) != ".key" {
			return nil
		}
		keys++
		text, err := os.ReadFile(path)
		if sealed := isSealed(text); err != nil || sealed == plain {
			return fmt.Errorf("%s is sealed: %t, %w", path, sealed, err)
		}
		return nil
	})
	if err != nil || keys != 3 {
		t.Errorf("%d keys, %v", keys, err)
	}
}

// TestJournal reads what an issuance left in the journal.
func TestJournal(t *testing.T) {
	seal := Unsealed()
	state := newState(t, seal)
	issued := issueInto(t, state, seal)
	var types []journal.Type
	for record, err := range journal.Records(JournalDir(state)) {
		if err != nil {
			t.Fatal(err)
		}
		types = append(types, record.Type)
		if record.Type == journal.IssueIntent && !bytes.Contains(record.Data, []byte(issued.Facts.TBS)) {
			t.Errorf("the intent %s does not hold the digest of what was signed", record.Data)
		}
		if record.Type == journal.Created && !bytes.Contains(record.Data, []byte(`"pin":"sha256:`)) {
			t.Errorf("the creation %s does not hold the pin", record.Data)
		}
	}
	if want := []journal.Type{journal.Created, journal.CRLIssued, journal.CRLIssued, journal.IssueIntent, journal.Issued}; !slices.Equal(types, want) {
		t.Errorf("the journal holds %q, want %q", types, want)
	}
	certificates, err := Certificates(journal.Records(JournalDir(state)))
	if err != nil || len(certificates) != 1 {
		t.Fatalf("%+v, %v", certificates, err)
	}
	if c := certificates[0]; c.Serial != mtls.Serial(issued.Certificate) || c.Identity.Name() != "colorteller" || c.Instance != "colorteller-1" ||
		!c.NotAfter.Equal(issued.Certificate.NotAfter) {
		t.Errorf("%+v", c)
	}
	vkey, err := journal.VerifierKey(JournalDir(state))
	if err != nil || !strings.HasPrefix(vkey, trustDomain+"/journal+") {
		t.Errorf("the journal's key is %q, %v", vkey, err)
	}
	if size, err := journal.Verify(JournalDir(state), vkey); err != nil || size != 5 {
		t.Errorf("size %d, %v", size, err)
	}
}

// TestRootKeyStaysShut takes the root's key away, as its owner should.
func TestRootKeyStaysShut(t *testing.T) {
	seal := newKeyFile(t)
	state := newState(t, seal)
	if err := os.Remove(filepath.Join(state, "ca", "root.key")); err != nil {
		t.Fatal(err)
	}
	issueInto(t, state, seal)
}

func TestExists(t *testing.T) {
	state := newState(t, Unsealed())
	before, err := os.ReadFile(filepath.Join(state, "ca", "issuer.key"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Init(state, InitConfig{TrustDomain: trustDomain, Seal: Unsealed()}); !errors.Is(err, ErrExists) {
		t.Errorf("%v, want ErrExists", err)
	}
	after, err := os.ReadFile(filepath.Join(state, "ca", "issuer.key"))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the CA was touched: %v", err)
	}
}

// TestOneWins lets several make a CA in one place at once.
func TestOneWins(t *testing.T) {
	state := t.TempDir()
	var made atomic.Int32
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if _, err := Init(state, InitConfig{Seal: Unsealed()}); err == nil {
				made.Add(1)
			}
		})
	}
	all.Wait()
	if _, err := Read(state); made.Load() != 1 || err != nil {
		t.Errorf("%d were made: %v", made.Load(), err)
	}
}

func TestInitRefuses(t *testing.T) {
	open := t.TempDir()
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	orphan := newState(t, Unsealed())
	if err := os.RemoveAll(filepath.Join(orphan, "ca")); err != nil {
		t.Fatal(err)
	}
	file := writeFile(t, "file", "x")
	cases := map[string]struct {
		state string
		cfg   InitConfig
		want  string
	}{
		"nothing about the keys": {t.TempDir(), InitConfig{}, "stored in another way"},
		"a bad trust domain":     {t.TempDir(), InitConfig{TrustDomain: "A B", Seal: Unsealed()}, "invalid trust domain"},
		"a bad key type":         {t.TempDir(), InitConfig{Seal: Unsealed(), KeyType: "dsa"}, `"dsa"`},
		"the issuer lives on":    {t.TempDir(), InitConfig{Seal: Unsealed(), RootLife: time.Hour, IssuerLife: 2 * time.Hour}, "longer than the root"},
		"an open directory":      {open, InitConfig{Seal: Unsealed()}, "chmod go-w"},
		"a file in its place":    {file, InitConfig{Seal: Unsealed()}, "not a directory"},
		"another CA's journal":   {orphan, InitConfig{Seal: Unsealed()}, "restore"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			if _, err := Init(c.state, c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want something about %q", err, c.want)
			}
			if c.state == file {
				return
			}
			for _, left := range []string{caDir, stagingDir} {
				if found, err := present(filepath.Join(c.state, left)); found || err != nil {
					t.Errorf("%s is left: %v", left, err)
				}
			}
		})
	}
	if found, err := present(JournalDir(orphan)); !found || err != nil {
		t.Errorf("the other CA's journal is gone: %v", err)
	}
}

func TestNoCA(t *testing.T) {
	for _, state := range []string{t.TempDir(), filepath.Join(t.TempDir(), "missing")} {
		if _, err := Open(state, Unsealed()); !errors.Is(err, ErrNoCA) || !strings.Contains(err.Error(), "ca init") {
			t.Errorf("%v, want ErrNoCA with what to do", err)
		}
		if _, err := OpenJournal(state, Unsealed()); !errors.Is(err, ErrNoCA) {
			t.Errorf("%v, want ErrNoCA", err)
		}
	}
	interrupted := t.TempDir()
	if err := os.Mkdir(filepath.Join(interrupted, stagingDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(interrupted); !errors.Is(err, ErrNoCA) || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("%v, want what was interrupted", err)
	}
}

func TestTrustDomain(t *testing.T) {
	state := t.TempDir()
	if _, err := Init(state, InitConfig{Seal: Unsealed()}); err != nil {
		t.Fatal(err)
	}
	c, err := Open(state, Unsealed())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Issue(t.Context(), &fakeRecorder{}, service(t)); !errors.Is(err, ErrNoTrustDomain) {
		t.Errorf("issuing for nobody: %v", err)
	}
	if err := c.BindTrustDomain("A B"); !errors.Is(err, id.ErrTrustDomain) {
		t.Errorf("binding to nonsense: %v", err)
	}
	for range 2 {
		if err := c.BindTrustDomain(trustDomain); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.BindTrustDomain("other.internal"); !errors.Is(err, ErrOtherTrustDomain) {
		t.Errorf("%v, want ErrOtherTrustDomain", err)
	}
	if _, err := c.Issue(t.Context(), &fakeRecorder{}, service(t)); err != nil {
		t.Error(err)
	}
	again, err := Open(state, Unsealed())
	if err != nil || again.TrustDomain() != trustDomain {
		t.Fatalf("%v, %v", again, err)
	}
	if err := again.BindTrustDomain("other.internal"); !errors.Is(err, ErrOtherTrustDomain) {
		t.Errorf("after a restart: %v, want ErrOtherTrustDomain", err)
	}
}

// fakeRecorder notes what it hears, and fails where it is told to.
type fakeRecorder struct {
	failIntent, failIssued error
	calls                  []string
	facts                  issue.Facts
	der                    []byte
}

func (r *fakeRecorder) Intent(_ context.Context, facts issue.Facts) error {
	r.calls = append(r.calls, "intent")
	r.facts = facts
	return r.failIntent
}

func (r *fakeRecorder) Issued(_ context.Context, der []byte) error {
	r.calls = append(r.calls, "issued")
	r.der = der
	return r.failIssued
}

// TestNotRecordedNotDone fails the recorder at each of its two steps.
func TestNotRecordedNotDone(t *testing.T) {
	c, err := Open(newState(t, Unsealed()), Unsealed())
	if err != nil {
		t.Fatal(err)
	}
	full := fmt.Errorf("%w: no space left on device", journal.ErrNotRecorded)
	for name, rec := range map[string]*fakeRecorder{
		"intent": {failIntent: full}, "issued": {failIssued: full}, "nothing": {},
	} {
		issued, err := c.Issue(t.Context(), rec, service(t))
		if name == "nothing" {
			if err != nil || !slices.Equal(rec.calls, []string{"intent", "issued"}) || !bytes.Equal(rec.der, issued.Certificate.Raw) ||
				rec.facts.Serial != mtls.Serial(issued.Certificate) {
				t.Errorf("%q, %v", rec.calls, err)
			}
			continue
		}
		if !errors.Is(err, journal.ErrNotRecorded) || issued != nil {
			t.Errorf("%s: %v, %v; want ErrNotRecorded and no certificate", name, issued, err)
		}
		if name == "intent" && len(rec.calls) != 1 {
			t.Errorf("it was signed though the intent was not recorded: %q", rec.calls)
		}
	}
	bad := service(t)
	bad.TTL = MaxTTL + time.Second
	rec := &fakeRecorder{}
	if _, err := c.Issue(t.Context(), rec, bad); !errors.Is(err, issue.ErrRequest) || len(rec.calls) != 0 {
		t.Errorf("%v, %q; want ErrRequest before anything is recorded", err, rec.calls)
	}
}

func TestExpiredIssuer(t *testing.T) {
	state := newState(t, Unsealed())
	late := func() time.Time { return time.Now().Add(DefaultIssuerLife + time.Hour) }
	if _, err := OpenClock(state, Unsealed(), late); !errors.Is(err, issue.ErrIssuer) || !strings.Contains(err.Error(), "expired on") {
		t.Errorf("%v, want ErrIssuer", err)
	}
}

func TestKeyTypesOfTheCA(t *testing.T) {
	for _, kind := range []mesh.KeyType{mesh.ECDSAP384, mesh.Ed25519, mesh.RSA2048} {
		state := t.TempDir()
		if _, err := Init(state, InitConfig{TrustDomain: trustDomain, Seal: Unsealed(), KeyType: kind}); err != nil {
			t.Fatal(err)
		}
		issueInto(t, state, Unsealed())
	}
}

// TestInterruptedBinding puts there what a crash in between leaves, and binds again.
func TestInterruptedBinding(t *testing.T) {
	state := t.TempDir()
	if _, err := Init(state, InitConfig{Seal: Unsealed()}); err != nil {
		t.Fatal(err)
	}
	leftover := filepath.Join(state, "ca", ".ca.json.countersign-tmp-00ff")
	if err := os.WriteFile(leftover, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	first, err := Read(state)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Read(state)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.BindTrustDomain(trustDomain); err != nil {
		t.Fatal(err)
	}
	if found, err := present(leftover); found || err != nil {
		t.Errorf("it is left: %v", err)
	}
	if err := second.BindTrustDomain("other.internal"); !errors.Is(err, ErrOtherTrustDomain) {
		t.Errorf("somebody who read before it was bound: %v, want ErrOtherTrustDomain", err)
	}
	if again, err := Read(state); err != nil || again.TrustDomain() != trustDomain {
		t.Errorf("it was bound again: %v", err)
	}
}
