package ca

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"countersign.dev/durable"
	"countersign.dev/issue"
	"countersign.dev/journal"
)

// Sentinel errors of CRLs.
var (
	// ErrNoCRL says that a CRL is not there yet: the CA was made by a version without them.
	ErrNoCRL = errors.New("there is no CRL yet")
	// ErrNoRootKey says that the root's key is not in the state: somebody has moved it to a safer place.
	ErrNoRootKey = errors.New("the root's key is not here")
)

const (
	rootCRL   = "root.crl"
	issuerCRL = "issuer.crl"
	crlType   = "X509 CRL" // of a PEM block, RFC 7468 section 7
	maxCRL    = 64 << 20
)

// Times of CRLs.
const (
	// CRLInterval is how often the issuing CA's list is made anew when nothing was revoked.
	CRLInterval = 6 * time.Hour
	// RootCRLWarning is how long before its end the root's list is to be renewed.
	RootCRLWarning = 30 * 24 * time.Hour

	leastCRLLife = 7 * 24 * time.Hour
	crlReserve   = 24 * time.Hour
)

// CRLLife is how long the issuing CA's list is valid where the longest life of a leaf is given. A sidecar that lost its
// server right after it got its certificate has a list that is as old as the schedule allows; it may serve on for as
// long as its certificate lives. So the list outlives the longest certificate by a day, which covers the schedule and
// a server that was away before. Seven days are the least, so that a weekend without a server harms nobody who checks
// the list by hand.
func CRLLife(longest time.Duration) time.Duration { return max(longest, leastCRLLife) + crlReserve }

// issuedCRL is the data of a [journal.CRLIssued] entry. It is recorded before anybody gets the list.
type issuedCRL struct {
	// Issuer is the CA's subject key identifier, hex, and Name its subject for people.
	Issuer     string    `json:"issuer"`
	Name       string    `json:"name"`
	Number     int64     `json:"number"`
	ThisUpdate time.Time `json:"thisUpdate"`
	NextUpdate time.Time `json:"nextUpdate"`
	Revoked    int       `json:"revoked"`
	SHA256     string    `json:"sha256"` // of the DER, hex
}

func issuedOf(list *x509.RevocationList) issuedCRL {
	sum := sha256.Sum256(list.Raw)
	return issuedCRL{
		Issuer: hex.EncodeToString(list.AuthorityKeyId), Name: list.Issuer.String(), Number: list.Number.Int64(),
		ThisUpdate: list.ThisUpdate.UTC(), NextUpdate: list.NextUpdate.UTC(), Revoked: len(list.RevokedCertificateEntries),
		SHA256: hex.EncodeToString(sum[:]),
	}
}

// makeCRL signs a CA's next list and records it. Until it is recorded nobody gets it, and its number is not used again.
func makeCRL(ctx context.Context, to Appender, l *Ledger, authority *x509.Certificate, key crypto.Signer, now, until time.Time) (*x509.RevocationList, error) {
	entries, err := l.entries(authority, now)
	if err != nil {
		return nil, fmt.Errorf("making a CRL: %w", err)
	}
	list, err := issue.NewCRL(authority, key, issue.CRLConfig{Number: l.next(authority), Now: now, NextUpdate: until, Revoked: entries})
	if err != nil {
		return nil, err
	}
	durable.Step("ca.crl.signed")
	if _, err := to.Append(ctx, journal.Entry{Time: now, Type: journal.CRLIssued, Data: issuedOf(list)}); err != nil {
		return nil, fmt.Errorf("making a CRL: recording it: %w", err)
	}
	durable.Step("ca.crl.recorded")
	return list, nil
}

// IssueCRL makes the issuing CA's next CRL with all that the ledger has revoked, and records it. It is valid for life,
// see [CRLLife]. [Authority.StoreCRL] keeps it. Errors are those of [issue.NewCRL] and of the journal, wrapped.
func (c *CA) IssueCRL(ctx context.Context, to Appender, l *Ledger, life time.Duration) (*x509.RevocationList, error) {
	now := c.now()
	return makeCRL(ctx, to, l, c.issuer, c.key, now, now.Add(life))
}

// RenewRootCRL makes the root's next CRL, records it and keeps it. The root's key is read from keyFile, or from the
// state when that is empty; when it is not there, the error is [ErrNoRootKey].
//
// The root signs nothing but issuing CAs, so its list is needed for as long as they live: it is valid until the issuing
// CA's certificate ends. For the next one the root's key has to be at hand anyway.
func (a *Authority) RenewRootCRL(ctx context.Context, to Appender, l *Ledger, seal Sealer, keyFile string, now time.Time) (*x509.RevocationList, error) {
	if keyFile == "" {
		keyFile = filepath.Join(a.state, caDir, rootKey)
	}
	if there, err := present(keyFile); err != nil {
		return nil, fmt.Errorf("making the root's CRL: %w", err)
	} else if !there {
		return nil, fmt.Errorf("making the root's CRL: %w: %s is missing. If it was moved to a safer place, bring it for this one command: "+
			"`countersign ca crl --renew-root --root-key FILE --state %s`", ErrNoRootKey, keyFile, a.state)
	}
	key, err := readKey(keyFile, seal, a.Seal())
	if err != nil {
		return nil, err
	}
	list, err := makeCRL(ctx, to, l, a.root, key, now, a.issuer.NotAfter)
	if err != nil {
		return nil, err
	}
	return list, a.StoreCRL(list)
}

// StoreCRL keeps a CRL of the root or of the issuing CA in the state, where it replaces the one before.
func (a *Authority) StoreCRL(list *x509.RevocationList) error {
	name := issuerCRL
	if sameKey(list, a.root) {
		name = rootCRL
	}
	if err := durable.WriteFile(filepath.Join(a.state, caDir, name), EncodeCRL(list), 0o600); err != nil {
		return fmt.Errorf("keeping a CRL: %w", err)
	}
	return nil
}

// RootCRL reads the root's CRL. Errors are [ErrNoCRL] and [ErrCorrupt].
func (a *Authority) RootCRL() (*x509.RevocationList, error) { return a.readCRL(rootCRL, a.root) }

// IssuerCRL reads the issuing CA's CRL. Errors are [ErrNoCRL] and [ErrCorrupt].
func (a *Authority) IssuerCRL() (*x509.RevocationList, error) { return a.readCRL(issuerCRL, a.issuer) }

// CRLs reads the CRLs that are there, the issuing CA's first. The error is [ErrCorrupt] or one of the disk.
func (a *Authority) CRLs() ([]*x509.RevocationList, error) {
	var lists []*x509.RevocationList
	for _, read := range []func() (*x509.RevocationList, error){a.IssuerCRL, a.RootCRL} {
		list, err := read()
		if errors.Is(err, ErrNoCRL) {
			continue
		}
		if err != nil {
			return nil, err
		}
		lists = append(lists, list)
	}
	return lists, nil
}

func (a *Authority) readCRL(name string, authority *x509.Certificate) (*x509.RevocationList, error) {
	path := filepath.Join(a.state, caDir, name)
	if there, err := present(path); err != nil {
		return nil, fmt.Errorf("reading a CRL: %w", err)
	} else if !there {
		return nil, fmt.Errorf("%w: %s is missing; the next start of the server makes it", ErrNoCRL, path)
	}
	data, err := readFile(path, maxCRL)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != crlType || len(rest) > 0 {
		return nil, fmt.Errorf("%s: %w: it does not hold exactly one CRL in PEM; remove it, and the next start of the server makes it anew", path, ErrCorrupt)
	}
	list, err := x509.ParseRevocationList(block.Bytes)
	if err == nil {
		err = list.CheckSignatureFrom(authority)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w; remove it, and the next start of the server makes it anew", path, ErrCorrupt, err)
	}
	return list, nil
}

// EncodeCRL writes a CRL in PEM.
func EncodeCRL(list *x509.RevocationList) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: crlType, Bytes: list.Raw})
}

// EncodeCRLs writes several one after the other, as NGINX and HAProxy read them.
func EncodeCRLs(lists []*x509.RevocationList) []byte {
	var texts [][]byte
	for _, list := range lists {
		texts = append(texts, EncodeCRL(list))
	}
	return slices.Concat(texts...)
}

// firstCRLs makes the first, empty lists of a CA that is being made, and writes them into its directory.
func firstCRLs(dir string, cfg InitConfig, root *x509.Certificate, rootSigner crypto.Signer, issuing *x509.Certificate, issuerSigner crypto.Signer) error {
	now := cfg.Now()
	for _, one := range []struct {
		name      string
		authority *x509.Certificate
		key       crypto.Signer
		until     time.Time
	}{
		{rootCRL, root, rootSigner, issuing.NotAfter},
		{issuerCRL, issuing, issuerSigner, now.Add(CRLLife(0))},
	} {
		list, err := issue.NewCRL(one.authority, one.key, issue.CRLConfig{Number: 1, Now: now, NextUpdate: one.until})
		if err != nil {
			return err
		}
		if err := durable.WriteFile(filepath.Join(dir, one.name), EncodeCRL(list), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// recordFirstCRLs puts the first lists into the new journal, before the CA takes effect.
func recordFirstCRLs(dir string, to Appender, now time.Time) error {
	for _, name := range []string{rootCRL, issuerCRL} {
		data, err := readFile(filepath.Join(dir, name), maxCRL)
		if err != nil {
			return err
		}
		block, _ := pem.Decode(data)
		if block == nil {
			return fs.ErrInvalid // we have just written it
		}
		list, err := x509.ParseRevocationList(block.Bytes)
		if err != nil {
			return err
		}
		if _, err := to.Append(context.Background(), journal.Entry{Time: now, Type: journal.CRLIssued, Data: issuedOf(list)}); err != nil {
			return err
		}
	}
	return nil
}
