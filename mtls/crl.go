package mtls

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

// Bounds of revocation lists from outside.
const (
	// MaxCRLs is the greatest size of a PEM text with lists in bytes: about 200,000 revoked certificates.
	MaxCRLs = 12 << 20
	// maxLists is how many of them are taken: two for each root, and as many while roots are changed.
	maxLists = 64
)

// Sentinel errors of revocation.
var (
	// ErrCRL says that something is not a set of revocation lists.
	ErrCRL = errors.New("invalid revocation list")
	// ErrOldCRL says that a list is older than the one that is held, or not the one that it says it is.
	ErrOldCRL = errors.New("the revocation list goes back")
	// ErrRevoked says that a certificate of a peer's chain was revoked. Errors that wrap it wrap
	// [ErrUntrusted] as well.
	ErrRevoked = errors.New("it was revoked")
	// ErrNoCRL says that nobody can tell whether a certificate was revoked: the list of its issuer is missing
	// or past its end. Errors of a handshake that wrap it wrap [ErrUntrusted] as well.
	ErrNoCRL = errors.New("it cannot be known whether it was revoked")
)

// CRLs is a set of certificate revocation lists (RFC 5280 section 5), at most one of each CA. It is immutable and safe
// for concurrent use. The nil CRLs is empty.
type CRLs struct {
	lists map[string]*crl // by the CA's name and key
}

// crl is one list.
type crl struct {
	*x509.RevocationList
	revoked map[string]bool // by the serial's bytes
	// by is the CA whose key has signed it, as far as that was verified already.
	by atomic.Pointer[x509.Certificate]
}

// nameOf is by what a list and its CA find each other: the name, and the key's identifier (RFC 5280 section 5.2.1).
func nameOf(rawName, keyID []byte) string {
	return string(rawName) + "\x00" + string(keyID)
}

// ParseCRLs reads PEM blocks of the type X509 CRL, and nothing else beside them but text between the blocks; an empty
// text holds none. Of two lists of one CA the one with the higher number counts. Each has to have a number, an end and an
// authority key identifier, and no critical extension: a list for some certificates only, or one of differences, must not
// be read as if it were whole. Signatures are verified when a list is used. Errors are [ErrCRL].
func ParseCRLs(data []byte) (*CRLs, error) {
	if len(data) > MaxCRLs {
		return nil, fmt.Errorf("%w: the PEM text has %d bytes, and at most %d are read", ErrCRL, len(data), MaxCRLs)
	}
	begun := bytes.Count(data, []byte("-----BEGIN "))
	if begun > maxLists {
		return nil, fmt.Errorf("%w: the PEM text has %d blocks, and at most %d are read", ErrCRL, begun, maxLists)
	}
	c := &CRLs{lists: make(map[string]*crl)}
	read := 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "X509 CRL" {
			return nil, fmt.Errorf("%w: the PEM text has a block of type %.40q; only X509 CRL is wanted", ErrCRL, block.Type)
		}
		list, err := parseCRL(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: list %d of the PEM text: %w", ErrCRL, read+1, err)
		}
		name := nameOf(list.RawIssuer, list.AuthorityKeyId)
		if other := c.lists[name]; other == nil || list.Number.Cmp(other.Number) > 0 {
			c.lists[name] = list
		}
		read++
	}
	if begun != read {
		return nil, fmt.Errorf("%w: the PEM text is damaged: %d blocks begin, and %d lists can be read; fetch it again", ErrCRL, begun, read)
	}
	return c, nil
}

func parseCRL(der []byte) (*crl, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	switch {
	case list.Number == nil || list.Number.Sign() < 0:
		return nil, errors.New("it has no number")
	case len(list.AuthorityKeyId) == 0:
		return nil, errors.New("it has no authority key identifier")
	case list.NextUpdate.IsZero():
		return nil, errors.New("it does not say until when it is valid")
	}
	for _, extension := range list.Extensions {
		if extension.Critical {
			return nil, fmt.Errorf("it has the critical extension %v, so that it is not a whole list", extension.Id)
		}
	}
	parsed := &crl{RevocationList: list, revoked: make(map[string]bool, len(list.RevokedCertificateEntries))}
	for _, entry := range list.RevokedCertificateEntries {
		for _, extension := range entry.Extensions {
			if extension.Critical { // whose certificate it is stands there, perhaps
				return nil, fmt.Errorf("an entry has the critical extension %v", extension.Id)
			}
		}
		parsed.revoked[string(entry.SerialNumber.Bytes())] = true
	}
	return parsed, nil
}

// ordered are the lists in a fixed order.
func (c *CRLs) ordered() []*crl {
	if c == nil {
		return nil
	}
	lists := make([]*crl, 0, len(c.lists))
	for _, list := range c.lists {
		lists = append(lists, list)
	}
	slices.SortFunc(lists, func(a, b *crl) int { return bytes.Compare(a.Raw, b.Raw) })
	return lists
}

// PEM is the set as [ParseCRLs] reads it, and as NGINX and HAProxy do; empty when there is none.
func (c *CRLs) PEM() []byte {
	var out []byte
	for _, list := range c.ordered() {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list.Raw})...)
	}
	return out
}

// Digest identifies the contents.
func (c *CRLs) Digest() string {
	hash := sha256.New()
	for _, list := range c.ordered() {
		sum := sha256.Sum256(list.Raw)
		hash.Write(sum[:])
	}
	return hex.EncodeToString(hash.Sum(nil))
}

// Covers tells whether there is a list of a CA, and gives its number's text and its end.
func (c *CRLs) Covers(authority *x509.Certificate) (number string, end time.Time, ok bool) {
	list := c.of(authority)
	if list == nil {
		return "", time.Time{}, false
	}
	return list.Number.String(), list.NextUpdate, true
}

// of is the list of a CA, with a signature that holds; nil when there is none.
func (c *CRLs) of(authority *x509.Certificate) *crl {
	if c == nil || len(authority.SubjectKeyId) == 0 {
		return nil
	}
	list := c.lists[nameOf(authority.RawSubject, authority.SubjectKeyId)]
	if list == nil {
		return nil
	}
	if by := list.by.Load(); by != nil && by.Equal(authority) {
		return list
	}
	if list.CheckSignatureFrom(authority) != nil {
		return nil
	}
	list.by.Store(authority)
	return list
}

// CheckSignatures refuses a set with a list in the name of one of these CAs that it has not signed ([ErrCRL]). Lists of
// other CAs are passed over: they are verified when they are used.
func (c *CRLs) CheckSignatures(authorities []*x509.Certificate) error {
	for _, authority := range authorities {
		if c == nil || c.lists[nameOf(authority.RawSubject, authority.SubjectKeyId)] == nil {
			continue
		}
		if c.of(authority) == nil {
			return fmt.Errorf("%w: it is in the name of %q, which has not signed it", ErrCRL, authority.Subject)
		}
	}
	return nil
}

// Update gives the set that is to be held after another one has come. Of each CA the list with the higher number counts:
// one with a lower number, or with the same number and other contents, is not taken, and the error, which wraps
// [ErrOldCRL], says so beside a set that can be used. What did not come again is kept until its end.
func (c *CRLs) Update(come *CRLs, now time.Time) (*CRLs, error) {
	next := &CRLs{lists: make(map[string]*crl)}
	var errs []error
	if come != nil {
		for name, list := range come.lists {
			next.lists[name] = list
		}
	}
	for _, held := range c.ordered() {
		name := nameOf(held.RawIssuer, held.AuthorityKeyId)
		list := next.lists[name]
		if list == nil {
			if now.Before(held.NextUpdate) && len(next.lists) < maxLists {
				next.lists[name] = held
			}
			continue
		}
		switch order := list.Number.Cmp(held.Number); {
		case order > 0:
		case order == 0 && bytes.Equal(list.Raw, held.Raw):
			next.lists[name] = held // what was verified of it need not be verified again
		default:
			next.lists[name] = held
			errs = append(errs, fmt.Errorf("%w: that of %q has the number %v, and the one that is held has %v", ErrOldCRL, held.Issuer, list.Number, held.Number))
		}
	}
	return next, errors.Join(errs...)
}

// Revocation is how an [Identity] learns that a certificate was revoked. It is not changed after it was made.
type Revocation struct {
	// CRLs are the lists; nil is none.
	CRLs *CRLs
	// Stale says what becomes of a peer when the list of one of its issuers is missing or past its end: with
	// [mesh.StaleServe] it is accepted, unless an old list has it; with anything else it is refused.
	Stale mesh.StaleCRL
}

// check looks up each certificate of a verified path, leaf first and root last, in its issuer's list. The root itself is
// on no list: whoever holds it in a bundle trusts it. That a certificate was revoked counts before everything else.
func (r *Revocation) check(path []*x509.Certificate, now time.Time) error {
	if r == nil {
		return nil
	}
	var unknown error
	for i, cert := range path[:max(len(path)-1, 0)] {
		list := r.CRLs.of(path[i+1])
		if list != nil && list.revoked[string(serialBytes(cert))] {
			if i == 0 {
				return ErrRevoked
			}
			return fmt.Errorf("%w: the certificate of its issuer %q", ErrRevoked, shortened(cert.Subject.String()))
		}
		if unknown == nil {
			unknown = r.problemOf(list, path[i+1], now)
		}
	}
	if r.Stale == mesh.StaleServe {
		return nil
	}
	return unknown
}

// problemOf says why a list cannot be relied on; nil when it can.
func (r *Revocation) problemOf(list *crl, authority *x509.Certificate, now time.Time) error {
	if list == nil {
		return fmt.Errorf("%w: there is no list of %q", ErrNoCRL, shortened(authority.Subject.String()))
	}
	if now.After(list.NextUpdate) {
		return fmt.Errorf("%w: the list of %q was valid to %s", ErrNoCRL, shortened(authority.Subject.String()), list.NextUpdate.UTC().Format(time.RFC3339))
	}
	return nil
}

// Problem says why the lists cannot be relied on for the members that some CAs vouch for, whatever Stale says; nil when
// they can. It wraps [ErrNoCRL].
func (r *Revocation) Problem(authorities []*x509.Certificate, now time.Time) error {
	if r == nil {
		return nil
	}
	for _, authority := range authorities {
		if err := r.problemOf(r.CRLs.of(authority), authority, now); err != nil {
			return err
		}
	}
	return nil
}

// Verify is [Bundle.Verify] with the identity's revocation lists: a peer with which a handshake would fail now is refused.
// It is for connections that were made before. Errors wrap [ErrRevoked] or [ErrNoCRL] where that is the reason.
func (i *Identity) Verify(chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) (id.ID, error) {
	return i.Bundle.verify(i.Bundle.known, i.Revocation, "", chain, usage, now)
}

// VerifyNamed is [Bundle.VerifyNamed] with the identity's revocation lists.
func (i *Identity) VerifyNamed(name string, chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) error {
	return i.Bundle.verifyNamed(i.Revocation, name, chain, usage, now)
}

// verifyAgain is Verify for handshakes, in the caller's epoch.
func (i *Identity) verifyAgain(epoch string, chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) (id.ID, error) {
	return i.Bundle.verify(i.Bundle.known, i.Revocation, epoch, chain, usage, now)
}
