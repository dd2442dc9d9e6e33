package ca

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"countersign.dev/durable"
	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/journal"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// Lives of a CA's certificates that are not said otherwise.
const (
	DefaultRootLife   = 10 * 365 * 24 * time.Hour
	DefaultIssuerLife = 3 * 365 * 24 * time.Hour
)

// InitConfig says what CA to make.
type InitConfig struct {
	// TrustDomain may be empty: the first server start then settles it by [Authority.BindTrustDomain].
	TrustDomain string
	// Seal stores the keys. It must be set.
	Seal Sealer
	// KeyType is of both CA keys, [mesh.ECDSAP256] when it is empty.
	KeyType mesh.KeyType
	// RootLife and IssuerLife are the lives of the certificates; 0 means the defaults.
	RootLife, IssuerLife time.Duration
	// Now is the clock, time.Now when it is nil.
	Now func() time.Time
}

// created is the journal's first entry.
type created struct {
	TrustDomain string `json:"trustDomain,omitempty"`
	Pin         string `json:"pin"`
	RootSerial  string `json:"rootSerial"`
	Issuer      string `json:"issuer"` // its serial
	Root        string `json:"root"`   // PEM
	IssuerPEM   string `json:"issuerPEM"`
	Seal        string `json:"seal"`
}

// Init makes a CA and its journal in a state directory, which is made when it is missing. A CA that
// is there already is [ErrExists] and is not touched.
//
// It takes effect in one step, the rename of a directory, when everything else is on the disk: after
// a crash there is either a whole CA with a journal that begins with its creation, or none, and the
// next Init clears away what was left.
func Init(state string, cfg InitConfig) (*Authority, error) {
	if err := cfg.complete(); err != nil {
		return nil, fmt.Errorf("making a CA: %w", err)
	}
	if err := privateDir(state); err != nil {
		return nil, fmt.Errorf("making a CA: %w", err)
	}
	if err := durable.MkdirAll(state, 0o700); err != nil {
		return nil, fmt.Errorf("making a CA: %w", err)
	}
	unlock, err := durable.Lock(filepath.Join(state, lockFile))
	if err != nil {
		return nil, fmt.Errorf("making a CA: %w", err)
	}
	defer func() { _ = unlock() }() // nothing is written through the lock's file
	if err := clearWay(state); err != nil {
		return nil, err
	}
	if err := build(state, cfg); err != nil {
		return nil, fmt.Errorf("making a CA: %w", errors.Join(err, rollBack(state)))
	}
	return Read(state)
}

func (c *InitConfig) complete() error {
	if c.Seal == nil {
		return fmt.Errorf("%w: nothing was said about it", ErrSealed)
	}
	if c.TrustDomain != "" {
		if err := id.CheckTrustDomain(c.TrustDomain); err != nil {
			return err
		}
	}
	if c.RootLife == 0 {
		c.RootLife = DefaultRootLife
	}
	if c.IssuerLife == 0 {
		c.IssuerLife = DefaultIssuerLife
	}
	if c.IssuerLife > c.RootLife {
		return fmt.Errorf("the issuing CA would live %s, longer than the root (%s)", c.IssuerLife, c.RootLife)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return nil
}

// clearWay refuses a state that holds a CA or a journal without one, and removes what an interrupted
// Init has left.
//
// A journal beside a staging directory and without a CA is of the interrupted Init: a new one starts
// only where no journal is, and nothing can have been issued since.
func clearWay(state string) error {
	if exists, err := present(filepath.Join(state, caDir)); err != nil || exists {
		if err != nil {
			return fmt.Errorf("making a CA: %w", err)
		}
		return fmt.Errorf("%w in %s; it is kept. Use it, or give another --state", ErrExists, state)
	}
	interrupted, err := present(filepath.Join(state, stagingDir))
	if err != nil {
		return fmt.Errorf("making a CA: %w", err)
	}
	if interrupted {
		if err := rollBack(state); err != nil {
			return fmt.Errorf("clearing away an interrupted `ca init`: %w", err)
		}
	}
	recorded, err := present(JournalDir(state))
	if err != nil {
		return fmt.Errorf("making a CA: %w", err)
	}
	if recorded {
		return fmt.Errorf("making a CA: %s is the journal of a CA that is not there; restore %s from a backup, or move the journal to its archive",
			JournalDir(state), filepath.Join(state, caDir))
	}
	return nil
}

// rollBack removes what an unfinished Init has made: the journal first, because the staging directory
// is the mark by which the journal is known to be worthless.
func rollBack(state string) error {
	if exists, err := present(filepath.Join(state, caDir)); err != nil || exists {
		return err // it was finished after all: only the last sync has failed
	}
	if err := onlyCreation(state); err != nil {
		return err
	}
	if err := durable.RemoveAll(JournalDir(state)); err != nil {
		return err
	}
	return durable.RemoveAll(filepath.Join(state, stagingDir))
}

// onlyCreation refuses a journal in which more happened than that it was made.
func onlyCreation(state string) error {
	for record, err := range journal.Records(JournalDir(state)) {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, journal.ErrNoJournal) {
			return nil // its own making was interrupted: without key or checkpoint, nothing is in it
		}
		if err != nil {
			return err
		}
		if record.Type != journal.Created && record.Type != journal.CRLIssued {
			return fmt.Errorf("%s holds entries of a CA that is not there; move it to its archive", JournalDir(state))
		}
	}
	return nil
}

// build makes everything in the staging directory and then moves it into place.
func build(state string, cfg InitConfig) error {
	staging := filepath.Join(state, stagingDir)
	if err := durable.MkdirAll(staging, 0o700); err != nil {
		return err
	}
	root, issuing, err := hierarchy(staging, cfg)
	if err != nil {
		return err
	}
	key, err := journal.GenerateKey(origin(cfg.TrustDomain, root))
	if err != nil {
		return err
	}
	if err := writeSealed(filepath.Join(staging, journalKey), cfg.Seal, key.Secret()); err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(staging, bundleFile), encodeCertificate(root), 0o600); err != nil {
		return err
	}
	c := config{Version: stateFormat, TrustDomain: cfg.TrustDomain, Seal: cfg.Seal.Method(), Created: cfg.Now().UTC().Truncate(time.Second), Pin: mtls.Pin(root)}
	if err := writeConfig(staging, c); err != nil {
		return err
	}
	log, err := journal.Create(JournalDir(state), key, cfg.Now(), created{
		TrustDomain: cfg.TrustDomain,
		Pin:         c.Pin,
		RootSerial:  mtls.Serial(root),
		Issuer:      mtls.Serial(issuing),
		Root:        string(encodeCertificate(root)),
		IssuerPEM:   string(encodeCertificate(issuing)),
		Seal:        c.Seal,
	})
	if err != nil {
		return err
	}
	if err := errors.Join(recordFirstCRLs(staging, log, cfg.Now()), log.Close()); err != nil {
		return err
	}
	durable.Step("ca.init.commit")
	return durable.Rename(staging, filepath.Join(state, caDir))
}

// hierarchy makes keys and certificates and writes them.
func hierarchy(dir string, cfg InitConfig) (root, issuing *x509.Certificate, err error) {
	rootSigner, err := mtls.GenerateKey(cfg.KeyType)
	if err != nil {
		return nil, nil, err
	}
	issuerSigner, err := mtls.GenerateKey(cfg.KeyType)
	if err != nil {
		return nil, nil, err
	}
	now := cfg.Now()
	root, err = issue.NewRoot(rootSigner, issue.AuthorityConfig{TrustDomain: cfg.TrustDomain, Now: now, Life: cfg.RootLife})
	if err != nil {
		return nil, nil, err
	}
	issuing, err = issue.NewIssuing(issuerSigner.Public(), root, rootSigner, issue.AuthorityConfig{TrustDomain: cfg.TrustDomain, Now: now, Life: cfg.IssuerLife})
	if err != nil {
		return nil, nil, err
	}
	for name, key := range map[string]crypto.Signer{rootKey: rootSigner, issuerKey: issuerSigner} {
		text, err := mtls.MarshalKey(key)
		if err != nil {
			return nil, nil, err
		}
		if err := writeSealed(filepath.Join(dir, name), cfg.Seal, text); err != nil {
			return nil, nil, err
		}
	}
	for name, cert := range map[string]*x509.Certificate{rootCert: root, issuerCert: issuing} {
		if err := durable.WriteFile(filepath.Join(dir, name), encodeCertificate(cert), 0o600); err != nil {
			return nil, nil, err
		}
	}
	return root, issuing, firstCRLs(dir, cfg, root, rootSigner, issuing, issuerSigner)
}

// writeSealed seals a secret, overwrites it, and writes what may be stored.
func writeSealed(path string, seal Sealer, secret []byte) error {
	defer clear(secret)
	sealed, err := seal.Seal(secret)
	if err != nil {
		return err
	}
	defer clear(sealed) // with --unsealed it is the secret
	return durable.WriteFile(path, sealed, 0o600)
}

// origin names the journal, for ever: by the trust domain, or by the root when that is not known yet.
func origin(trustDomain string, root *x509.Certificate) string {
	if trustDomain != "" {
		return trustDomain + "/journal"
	}
	return "countersign-" + strings.TrimPrefix(mtls.Pin(root), "sha256:")[:16] + "/journal"
}

func present(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
