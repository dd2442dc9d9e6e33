package ca

import (
	"cmp"
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
	list, err := issue.NewCRL(authority, key, issue.CRLConfig{Number: l.next(authority, now), Now: now, NextUpdate: until, Revoked: entries})
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

// IssueCRL makes the next CRL of a hierarchy's issuing CA with all that the ledger has revoked, and records it. It is
// valid for life, see [CRLLife]. [Authority.StoreCRL] keeps it. Errors are those of [issue.NewCRL] and of the journal.
func (c *CA) IssueCRL(ctx context.Context, to Appender, l *Ledger, h Hierarchy, life time.Duration) (*x509.RevocationList, error) {
	key := c.IssuerSigner(h)
	if key == nil {
		return nil, fmt.Errorf("making a CRL: %w: %s is not there any more", issue.ErrIssuer, h.Issuer.Subject)
	}
	if err := l.know(c.readCRL(h, issuerCRL, h.Issuer)); err != nil {
		return nil, err
	}
	now := c.now()
	return makeCRL(ctx, to, l, h.Issuer, key, now, now.Add(life))
}

// RenewRootCRL makes the next CRL of a hierarchy's root, records it and keeps it. The root's key is read from keyFile,
// or from the state when that is empty; when it is not there, the error is [ErrNoRootKey].
//
// The root signs nothing but issuing CAs, so its list is needed for as long as they live: it is valid until the last of
// its issuing CAs ends. For the next one the root's key has to be at hand anyway.
func (c *CA) RenewRootCRL(ctx context.Context, to Appender, l *Ledger, h Hierarchy, keyFile string) (*x509.RevocationList, error) {
	if keyFile == "" {
		keyFile = filepath.Join(h.dir, rootKey)
	}
	if there, err := present(keyFile); err != nil {
		return nil, fmt.Errorf("making the root's CRL: %w", err)
	} else if !there {
		return nil, fmt.Errorf("making the root's CRL: %w: %s is missing. If it was moved to a safer place, bring it for this one command: "+
			"`countersign ca crl --renew-root --root-key FILE --state %s`", ErrNoRootKey, keyFile, c.state)
	}
	key, err := readKeyOf(keyFile, h.Root, rootCert, c.seal, c.Seal())
	if err != nil {
		return nil, err
	}
	if err := l.know(c.RootCRL(h)); err != nil {
		return nil, err
	}
	list, err := makeCRL(ctx, to, l, h.Root, key, c.now(), c.neededUntil(h))
	if err != nil {
		return nil, err
	}
	return list, c.StoreCRL(list)
}

// neededUntil is the end of the last issuing CA below a hierarchy's root.
func (a *Authority) neededUntil(h Hierarchy) time.Time {
	until := h.Issuer.NotAfter
	for _, other := range a.Hierarchies() {
		if other.SameRoot(h) && other.Issuer.NotAfter.After(until) {
			until = other.Issuer.NotAfter
		}
	}
	return until
}

// RefreshCRLs makes the lists of all hierarchies: a new one of each issuing CA, valid for life, and one of each root that
// has none, one that ends before its issuing CAs do, or one that a clock which was ahead has made: NGINX and HAProxy
// refuse everybody by a list that begins in the future. It gives what is to be handed out, the active issuing CA's first.
//
// err says which issuing CA's list could not be made; the one of before is handed out then, where there is one. trouble
// is what to try again does not cure: a root without a list whose key is not there, a list that is made and recorded, and
// could not be kept on the disk.
func (c *CA) RefreshCRLs(ctx context.Context, to Appender, l *Ledger, life time.Duration) (lists []*x509.RevocationList, trouble, err error) {
	var errs, troubles []error
	all := c.Hierarchies()
	for _, h := range all {
		list, err := c.IssueCRL(ctx, to, l, h, life)
		errs = append(errs, err)
		if err == nil {
			troubles = append(troubles, c.StoreCRL(list))
		} else {
			list, _ = c.IssuerCRL(h)
		}
		lists = append(lists, list)
	}
	for i, h := range all {
		if slices.ContainsFunc(all[:i], h.SameRoot) {
			continue
		}
		list, err := c.RootCRL(h)
		if err != nil || list.NextUpdate.Before(c.neededUntil(h).Add(-time.Second)) || list.ThisUpdate.After(c.now()) {
			made, err := c.RenewRootCRL(ctx, to, l, h, "")
			if made != nil {
				list = made
			}
			if list == nil || !errors.Is(err, ErrNoRootKey) { // a list that is shorter than it could be is a list
				troubles = append(troubles, err)
			}
		}
		lists = append(lists, list)
	}
	lists = slices.DeleteFunc(lists, func(list *x509.RevocationList) bool { return list == nil })
	return lists, errors.Join(troubles...), errors.Join(errs...)
}

// StoreCRL keeps a CRL of a root or of an issuing CA in the state, where it replaces the one before.
func (a *Authority) StoreCRL(list *x509.RevocationList) error {
	var errs []error
	for _, h := range a.Hierarchies() {
		for name, authority := range map[string]*x509.Certificate{issuerCRL: h.Issuer, rootCRL: h.Root} {
			if sameKey(list, authority) {
				errs = append(errs, durable.WriteFile(filepath.Join(h.dir, name), EncodeCRL(list), 0o600))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("keeping a CRL: %w", err)
	}
	return nil
}

// RootCRL reads the newest CRL of a hierarchy's root. Errors are [ErrNoCRL] and [ErrCorrupt].
func (a *Authority) RootCRL(h Hierarchy) (*x509.RevocationList, error) {
	newest, err := a.readCRL(h, rootCRL, h.Root)
	for _, other := range a.Hierarchies() {
		if other.ID == h.ID || !other.SameRoot(h) {
			continue
		}
		if list, e := a.readCRL(other, rootCRL, h.Root); e == nil && (newest == nil || list.Number.Cmp(newest.Number) > 0) {
			newest, err = list, nil
		}
	}
	return newest, err
}

// IssuerCRL reads the CRL of a hierarchy's issuing CA. Errors are [ErrNoCRL] and [ErrCorrupt].
func (a *Authority) IssuerCRL(h Hierarchy) (*x509.RevocationList, error) {
	return a.readCRL(h, issuerCRL, h.Issuer)
}

// CRLs reads the CRLs of all hierarchies, those of the issuing CAs first. One that is missing is [ErrNoCRL]: without it
// NGINX and HAProxy refuse everybody. A damaged one is [ErrCorrupt].
func (a *Authority) CRLs() ([]*x509.RevocationList, error) {
	var lists []*x509.RevocationList
	all := a.Hierarchies()
	for _, h := range all {
		list, err := a.IssuerCRL(h)
		if err != nil {
			return nil, err
		}
		lists = append(lists, list)
	}
	for i, h := range all {
		if slices.ContainsFunc(all[:i], h.SameRoot) {
			continue
		}
		list, err := a.RootCRL(h)
		if err != nil {
			return nil, err
		}
		lists = append(lists, list)
	}
	return lists, nil
}

func (a *Authority) readCRL(h Hierarchy, name string, authority *x509.Certificate) (*x509.RevocationList, error) {
	path := filepath.Join(h.dir, name)
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
	if err != nil || list.Number == nil || !list.Number.IsInt64() {
		return nil, fmt.Errorf("%s: %w: %w; remove it, and the next start of the server makes it anew", path, ErrCorrupt, cmp.Or(err, errors.New("it has no number")))
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
