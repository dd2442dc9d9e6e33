// Package ca knows the certificate authority of a mesh as it stands on a disk: a root, an issuing CA
// below it, and the key that signs the journal, each private key sealed.
//
// In the state directory:
//
//	ca/ca.json      version, trust domain, how the keys are sealed
//	ca/root.pem     the root's certificate, what everybody pins
//	ca/root.key     its key: nothing opens it but the making of another issuing CA or of the root's
//	                CRL, and it may be moved to a safer place as soon as the CA is made
//	ca/issuer.pem   the issuing CA's certificate
//	ca/issuer.key   its key
//	ca/root.crl     the root's list of revoked issuing CAs, and
//	ca/issuer.crl   the issuing CA's list of revoked members, both the newest; what they say is in the
//	                journal, which is what counts
//	ca/journal.key  the key that signs the journal's checkpoints
//	ca/bundle.pem   the roots to trust at this moment, the one that signs first
//	journal/        the journal, see package journal
//
// A CA whose root or issuing CA was changed has several hierarchies, see [Hierarchy]; ca.json lists
// them, and those after the first have ca/hierarchies/ID with the same four files in it.
//
// The directories have mode 0700, all files 0600; a key that others than its owner can get at is not read. A sealed key is an age file in its ASCII armor, so
// that `age --decrypt` opens it when this program is not at hand; what is inside is PKCS #8 in PEM,
// or a signer key of the note format.
package ca

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"countersign.dev/durable"
	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/journal"
	"countersign.dev/mtls"
)

// Sentinel errors.
var (
	// ErrNoCA says that a state directory holds no CA.
	ErrNoCA = errors.New("there is no CA")
	// ErrExists says that a state directory holds a CA already.
	ErrExists = errors.New("there is a CA already")
	// ErrSealed says that the keys are stored in another way than the caller said.
	ErrSealed = errors.New("the keys are stored in another way")
	// ErrWrongKey says that a key file or a passphrase does not open the keys.
	ErrWrongKey = errors.New("the keys cannot be opened with it")
	// ErrCorrupt says that a file of the CA is damaged; the error names it.
	ErrCorrupt = errors.New("the file is damaged")
	// ErrExposed says that the mode of a private key's file lets others than its owner at it.
	ErrExposed = errors.New("the private key is not kept private")
	// ErrOtherTrustDomain says that the CA belongs to another trust domain.
	ErrOtherTrustDomain = errors.New("the CA belongs to another trust domain")
	// ErrNoTrustDomain says that the CA does not belong to a trust domain yet.
	ErrNoTrustDomain = errors.New("the CA has no trust domain yet")
)

// MaxTTL is the longest time to live of a leaf.
const MaxTTL = 10 * 365 * 24 * time.Hour

// Names in the state directory.
const (
	caDir       = "ca"
	stagingDir  = ".ca-init"
	lockFile    = "ca.lock"
	journalDir  = "journal"
	configFile  = "ca.json"
	rootCert    = "root.pem"
	rootKey     = "root.key"
	issuerCert  = "issuer.pem"
	issuerKey   = "issuer.key"
	journalKey  = "journal.key"
	maxFile     = 1 << 20
	maxConfig   = 64 << 10
	stateFormat = 1 // one hierarchy, in the directory of the CA
	listFormat  = 2 // ca.json lists the hierarchies
)

// config is ca.json.
type config struct {
	Version     int       `json:"version"`
	TrustDomain string    `json:"trustDomain"`
	Seal        string    `json:"seal"` // Sealer.Method
	Created     time.Time `json:"created"`
	Pin         string    `json:"pin"` // of the active hierarchy's root
	// Hierarchies are all there are; none means that there is one, in the directory of the CA.
	Hierarchies []entry `json:"hierarchies,omitempty"`
}

// Authority is the public side of a CA: what can be known without any key. It is safe for concurrent
// use.
type Authority struct {
	state string

	mu          sync.Mutex
	config      config      // guarded by mu
	hierarchies []Hierarchy // guarded by mu; the active one first, never changed in place
}

// Read reads the public side of the CA in a state directory. Errors are [ErrNoCA] or [ErrCorrupt].
func Read(state string) (*Authority, error) {
	dir := filepath.Join(state, caDir)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, noCA(state)
	}
	a := &Authority{state: state}
	var err error
	if a.config, err = readConfig(filepath.Join(dir, configFile)); err != nil {
		return nil, err
	}
	if a.hierarchies, err = readHierarchies(dir, a.config); err != nil {
		return nil, err
	}
	return a, nil
}

// noCA says what to do about a state without a CA.
func noCA(state string) error {
	if _, err := os.Stat(filepath.Join(state, stagingDir)); err == nil {
		return fmt.Errorf("%w in %s: its making was interrupted; repeat `countersign ca init --state %s`", ErrNoCA, state, state)
	}
	return fmt.Errorf("%w in %s; make one with `countersign ca init --state %s`", ErrNoCA, state, state)
}

// State is the state directory.
func (a *Authority) State() string { return a.state }

// Root is the certificate of the active root.
func (a *Authority) Root() *x509.Certificate { return a.active().Root }

// Issuer is the certificate of the issuing CA that signs.
func (a *Authority) Issuer() *x509.Certificate { return a.active().Issuer }

// Pin is what an agent is given to recognize the active root by: "sha256:" and the hex SHA-256 of its
// DER.
func (a *Authority) Pin() string { return a.active().Pin() }

// TrustDomain is the trust domain that the CA is bound to, empty when it is not bound yet.
func (a *Authority) TrustDomain() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.config.TrustDomain
}

// Seal is how the keys are stored: the [Sealer.Method] of the sealer that made the CA.
func (a *Authority) Seal() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.config.Seal
}

// BundlePEM are the roots to trust, as peers are told them: of all hierarchies, the active one's first.
func (a *Authority) BundlePEM() []byte { return bundleOf(a.Hierarchies()) }

// ChainPEM is a leaf with its issuers, without the root. A leaf of no hierarchy that is there gets the
// active issuing CA, by which nobody will believe it.
func (a *Authority) ChainPEM(leaf *x509.Certificate) []byte {
	issuer := a.Issuer()
	if h, ok := a.HierarchyOf(leaf); ok {
		issuer = h.Issuer
	}
	return slices.Concat(encodeCertificate(leaf), encodeCertificate(issuer))
}

// BindTrustDomain says for which trust domain the CA issues. It is settled once: a second call with
// another one is [ErrOtherTrustDomain].
func (a *Authority) BindTrustDomain(trustDomain string) error {
	if err := id.CheckTrustDomain(trustDomain); err != nil {
		return fmt.Errorf("binding the CA: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.config.TrustDomain == trustDomain {
		return nil
	}
	bound, err := bindOnDisk(a.state, trustDomain)
	if err != nil {
		return err
	}
	a.config = bound
	return nil
}

// bindOnDisk writes the trust domain into ca.json, the only file of a CA that decides anything and is
// ever changed. It looks
// again at what is there, with the lock held: another process may have been quicker.
func bindOnDisk(state, trustDomain string) (config, error) {
	unlock, err := durable.Lock(filepath.Join(state, lockFile))
	if err != nil {
		return config{}, fmt.Errorf("binding the CA: %w", err)
	}
	defer func() { _ = unlock() }() // nothing is written through the lock's file
	dir := filepath.Join(state, caDir)
	if err := durable.Sweep(dir); err != nil {
		return config{}, fmt.Errorf("binding the CA: %w", err)
	}
	bound, err := readConfig(filepath.Join(dir, configFile))
	if err != nil {
		return config{}, err
	}
	switch bound.TrustDomain {
	case trustDomain:
		return bound, nil
	case "":
		bound.TrustDomain = trustDomain
		if err := writeConfig(dir, bound); err != nil {
			return config{}, fmt.Errorf("binding the CA: %w", err)
		}
		return bound, nil
	default:
		return config{}, fmt.Errorf("%w: the CA in %s is the one of %q, and %q was asked for; use another --state",
			ErrOtherTrustDomain, state, bound.TrustDomain, trustDomain)
	}
}

// CA is an authority that can issue: the issuing keys are open. It is safe for concurrent use.
type CA struct {
	*Authority
	seal Sealer
	now  func() time.Time

	changing sync.Mutex // held while the hierarchies change; taken before issuerMu
	unsynced bool       // guarded by changing: ca.json names what memory does, and may be lost with the power
	// writeConfig puts ca.json in place; tests have a disk that fails.
	writeConfig func(dir string, c config) error

	issuerMu sync.Mutex
	keys     map[string]crypto.Signer // guarded by issuerMu: of the issuing CAs, by Hierarchy.ID
	signing  map[string]*issue.Issuer // guarded by issuerMu; empty until a trust domain is bound
}

// Open opens the CA in a state directory for issuing. Only the issuing keys are opened, never a
// root's. Errors are [ErrNoCA], [ErrExposed], [ErrSealed], [ErrWrongKey] or [ErrCorrupt], and [issue.ErrIssuer]
// when the certificate of the issuing CA that signs has expired.
func Open(state string, seal Sealer) (*CA, error) {
	return OpenClock(state, seal, time.Now)
}

// OpenClock is [Open] with a clock other than time.Now.
func OpenClock(state string, seal Sealer, now func() time.Time) (*CA, error) {
	c, err := open(state, seal, now)
	if err != nil {
		return nil, err
	}
	if issuer := c.Issuer(); !now().Before(issuer.NotAfter) {
		return nil, fmt.Errorf("opening the CA in %s: %w: its certificate expired on %s; `countersign ca rotate issuer --state %s` makes the next one with the root's key",
			state, issue.ErrIssuer, issuer.NotAfter.UTC().Format(time.RFC3339), state)
	}
	return c, nil
}

// OpenExpired is [OpenClock] for somebody who is about to call [CA.RenewIssuer]: the issuing CA's
// certificate may have expired.
func OpenExpired(state string, seal Sealer, now func() time.Time) (*CA, error) {
	return open(state, seal, now)
}

func open(state string, seal Sealer, now func() time.Time) (*CA, error) {
	authority, err := Read(state)
	if err != nil {
		return nil, err
	}
	c := &CA{
		Authority: authority, seal: seal, now: now, writeConfig: writeConfig,
		keys: make(map[string]crypto.Signer), signing: make(map[string]*issue.Issuer),
	}
	for _, h := range authority.Hierarchies() {
		key, err := readIssuerKey(h, seal, authority.config.Seal)
		if err != nil {
			return nil, err
		}
		c.keys[h.ID] = key
	}
	return c, nil
}

// OpenJournal opens the journal of a state directory for writing, with the CA's key for it. Errors
// are those of [Open] and of [journal.Open].
func OpenJournal(state string, seal Sealer) (*journal.Log, error) {
	authority, err := Read(state)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(state, caDir, journalKey)
	secret, err := readSealed(path, seal, authority.config.Seal)
	if err != nil {
		return nil, err
	}
	defer clear(secret)
	key, err := journal.ParseKey(secret)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", path, ErrCorrupt, err)
	}
	return journal.Open(JournalDir(state), key)
}

// JournalDir is where the journal of a state directory is.
func JournalDir(state string) string { return filepath.Join(state, journalDir) }

func readConfig(path string) (config, error) {
	data, err := readFile(path, maxConfig)
	if err != nil {
		return config{}, err
	}
	var c config
	if err := json.Unmarshal(data, &c); err != nil {
		return config{}, fmt.Errorf("%s: %w: %w; restore it from a backup", path, ErrCorrupt, err)
	}
	if c.Version != stateFormat && c.Version != listFormat {
		return config{}, fmt.Errorf("%s: its version is %d, and this program knows up to %d; use the program that wrote it", path, c.Version, listFormat)
	}
	if c.TrustDomain != "" {
		if err := id.CheckTrustDomain(c.TrustDomain); err != nil {
			return config{}, fmt.Errorf("%s: %w: %w", path, ErrCorrupt, err)
		}
	}
	return c, nil
}

func writeConfig(dir string, c config) error {
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(dir, configFile), append(data, '\n'), 0o600)
}

func readCertificate(path string) (*x509.Certificate, error) {
	data, err := readFile(path, maxFile)
	if err != nil {
		return nil, err
	}
	certs, err := mtls.ParseCertificates(data)
	if err != nil || len(certs) != 1 || !certs[0].IsCA {
		return nil, fmt.Errorf("%s: %w: it does not hold exactly one certificate of a CA; restore it from a backup", path, ErrCorrupt)
	}
	return certs[0], nil
}

// readFile reads a file that has to be there, of at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w: it is missing; restore it from a backup", path, ErrCorrupt)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the CA: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fmt.Errorf("%s: %w: it is not a file of at most %d bytes", path, ErrCorrupt, limit)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the CA: %w", err)
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, fmt.Errorf("%s: %w: it is empty; restore it from a backup", path, ErrCorrupt)
	}
	return data, nil
}

func encodeCertificate(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}
