package issue

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"
)

// ErrReason says that a text is no reason to revoke a certificate for.
var ErrReason = errors.New("that is no reason to revoke a certificate for")

// Reason is why a certificate was revoked, in the words of RFC 5280 section 5.3.1.
type Reason string

// The reasons that a certificate of a member is revoked for. What RFC 5280 has beside them is about CAs, or is taken
// back later (certificateHold, removeFromCRL): here a revocation is for ever.
const (
	Unspecified          Reason = "unspecified"
	KeyCompromise        Reason = "keyCompromise"
	AffiliationChanged   Reason = "affiliationChanged"
	Superseded           Reason = "superseded"
	CessationOfOperation Reason = "cessationOfOperation"
	PrivilegeWithdrawn   Reason = "privilegeWithdrawn"
)

// codes are the numbers of the reasons in a CRL.
var codes = map[Reason]int{
	Unspecified: 0, KeyCompromise: 1, AffiliationChanged: 3, Superseded: 4, CessationOfOperation: 5, PrivilegeWithdrawn: 9,
}

// Reasons are all of them, in the order of their numbers.
func Reasons() []Reason {
	return []Reason{Unspecified, KeyCompromise, AffiliationChanged, Superseded, CessationOfOperation, PrivilegeWithdrawn}
}

// ParseReason reads a reason as RFC 5280 spells it, in any case; the empty text is [Unspecified]. The error is
// [ErrReason] and lists what there is.
func ParseReason(text string) (Reason, error) {
	if text == "" {
		return Unspecified, nil
	}
	var names []string
	for _, reason := range Reasons() {
		if strings.EqualFold(text, string(reason)) {
			return reason, nil
		}
		names = append(names, string(reason))
	}
	return "", fmt.Errorf("%w: %.40q is none of %s", ErrReason, text, strings.Join(names, ", "))
}

// ReasonOf is the reason that a number in a CRL stands for; false for one that no CRL of this program holds.
func ReasonOf(code int) (Reason, bool) {
	for reason, number := range codes {
		if number == code {
			return reason, true
		}
	}
	return "", false
}

// Revoked is one line of a CRL.
type Revoked struct {
	Serial *big.Int
	Time   time.Time
	Reason Reason
}

// CRLConfig says what a CRL holds.
type CRLConfig struct {
	// Number is greater than that of every CRL of this CA before; 1 is the first.
	Number int64
	// Now is the time of issue. The CRL is valid from Now minus [ClockAllowance], as a certificate is.
	Now time.Time
	// NextUpdate is until when the CRL may be relied on.
	NextUpdate time.Time
	// Revoked are the certificates, in any order and each once.
	Revoked []Revoked
}

// NewCRL makes the certificate revocation list of a CA (RFC 5280 section 5): version 2, with authority key identifier,
// CRL number, and a reason for each entry but the unspecified ones. Errors are [ErrIssuer] when the CA cannot sign one,
// [ErrRequest] when what is wanted is no CRL, and [ErrLint].
func NewCRL(authority *x509.Certificate, key crypto.Signer, cfg CRLConfig) (*x509.RevocationList, error) {
	switch {
	case !authority.IsCA || authority.KeyUsage&x509.KeyUsageCRLSign == 0 || len(authority.SubjectKeyId) == 0:
		return nil, fmt.Errorf("making a CRL: %w: %q may not sign any", ErrIssuer, authority.Subject)
	case !samePublicKey(authority.PublicKey, key.Public()):
		return nil, fmt.Errorf("making a CRL: %w: the key does not belong to %q", ErrIssuer, authority.Subject)
	case cfg.Number < 1:
		return nil, fmt.Errorf("making a CRL: %w: its number would be %d", ErrRequest, cfg.Number)
	case !cfg.NextUpdate.After(cfg.Now):
		return nil, fmt.Errorf("making a CRL: %w: it would end on %s", ErrRequest, cfg.NextUpdate.UTC().Format(time.RFC3339))
	}
	thisUpdate := cfg.Now.Add(-ClockAllowance).UTC().Truncate(time.Second)
	entries := make([]x509.RevocationListEntry, 0, len(cfg.Revoked))
	for _, revoked := range cfg.Revoked {
		code, ok := codes[revoked.Reason]
		if !ok || revoked.Serial == nil || revoked.Serial.Sign() <= 0 {
			return nil, fmt.Errorf("making a CRL: %w: serial %v, reason %q", ErrRequest, revoked.Serial, revoked.Reason)
		}
		entries = append(entries, x509.RevocationListEntry{SerialNumber: revoked.Serial, RevocationTime: revoked.Time.UTC().Truncate(time.Second), ReasonCode: code})
	}
	slices.SortFunc(entries, func(a, b x509.RevocationListEntry) int { return a.SerialNumber.Cmp(b.SerialNumber) })
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(cfg.Number), ThisUpdate: thisUpdate, NextUpdate: cfg.NextUpdate.UTC().Truncate(time.Second),
		RevokedCertificateEntries: entries,
	}, authority, key)
	if err != nil {
		return nil, fmt.Errorf("making a CRL: %w: %w", ErrIssuer, err)
	}
	return lintCRL(der, authority, cfg, len(entries))
}

// lintCRL reads what was signed and compares it with what was wanted.
func lintCRL(der []byte, authority *x509.Certificate, cfg CRLConfig, entries int) (*x509.RevocationList, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("making a CRL: %w: %w", ErrLint, err)
	}
	if err := list.CheckSignatureFrom(authority); err != nil {
		return nil, fmt.Errorf("making a CRL: %w: %w", ErrLint, err)
	}
	if list.Number == nil || !list.Number.IsInt64() || list.Number.Int64() != cfg.Number || len(list.RevokedCertificateEntries) != entries ||
		string(list.AuthorityKeyId) != string(authority.SubjectKeyId) {
		return nil, fmt.Errorf("making a CRL: %w: it is not what was wanted", ErrLint)
	}
	return list, nil
}
