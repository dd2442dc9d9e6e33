// Package issue knows how a certificate is made: what stands in it, that what is signed was checked
// before it was signed, and that it is signed once. It reads no disk, no network and no configuration.
//
// A leaf is made in two steps, so that what will be signed can be recorded before it exists:
//
//	prepared, err := issuer.Prepare(request)   // decides and checks every byte, signs nothing
//	record(prepared.Facts())                   // the caller's journal
//	leaf, err := issuer.Issue(prepared)        // signs exactly these bytes, once
//
// Nothing of a certificate request but its public key ever gets into a certificate.
package issue

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"countersign.dev/id"
)

// ClockAllowance is how far a peer's clock may be behind: NotBefore is set back by it. It is not part
// of the time to live.
const ClockAllowance = 5 * time.Minute

// MaxProbeTTL is the longest life of a probe's certificate.
const MaxProbeTTL = 5 * time.Minute

// maxNames bounds the subject alternative names of one certificate.
const maxNames = 100

// Sentinel errors.
var (
	// ErrRequest says that a certificate of this kind is not made: the identity, the names or the time
	// to live are outside the profile.
	ErrRequest = errors.New("the certificate cannot be issued")
	// ErrIssuer says that the issuing certificate or its key is not fit to sign.
	ErrIssuer = errors.New("the issuing CA cannot sign")
	// ErrLint says that what was about to be signed is not what it has to be. It is a mistake of this
	// program, and nothing was signed.
	ErrLint = errors.New("the certificate would be wrong")
	// ErrRedeemed says that a [Prepared] was already given to Issue, or to another issuer.
	ErrRedeemed = errors.New("the prepared certificate cannot be issued again")
)

// ProfileConfig is what a [Profile] is made of.
type ProfileConfig struct {
	// TrustDomain is the only one that certificates are made for.
	TrustDomain string
	// MaxTTL is the longest time to live; a second is the shortest.
	MaxTTL time.Duration
}

// Profile says which certificates an issuer makes. It is made by [NewProfile] and does not change.
type Profile struct {
	trustDomain string
	maxTTL      time.Duration
}

// NewProfile checks a configuration and makes a Profile of it.
func NewProfile(cfg ProfileConfig) (*Profile, error) {
	if err := id.CheckTrustDomain(cfg.TrustDomain); err != nil {
		return nil, fmt.Errorf("making a profile: %w", err)
	}
	if cfg.MaxTTL < time.Second {
		return nil, fmt.Errorf("making a profile: the longest time to live is %s, and at least 1s is wanted", cfg.MaxTTL)
	}
	return &Profile{trustDomain: cfg.TrustDomain, maxTTL: cfg.MaxTTL}, nil
}

// Request asks for a leaf.
type Request struct {
	ID id.ID
	// DNSNames are further names: NAME and NAME.TRUST-DOMAIN are always there, and need not be but
	// may be repeated here.
	DNSNames []string
	// IPAddresses are for the control plane's own certificate only.
	IPAddresses []net.IP
	PublicKey   crypto.PublicKey
	// TTL is counted from now. The certificate ends earlier when its issuer does.
	TTL time.Duration
}

// Facts are what a journal records about a certificate before it is signed.
type Facts struct {
	// Serial is lower-case hex with an even number of digits.
	Serial      string    `json:"serial"`
	Identity    id.ID     `json:"identity"`
	DNSNames    []string  `json:"dnsNames"`
	IPAddresses []string  `json:"ipAddresses,omitempty"`
	NotBefore   time.Time `json:"notBefore"`
	NotAfter    time.Time `json:"notAfter"`
	// PublicKey is the hex SHA-256 of the SubjectPublicKeyInfo.
	PublicKey string `json:"publicKey"`
	// Issuer is the serial of the issuing certificate.
	Issuer string `json:"issuer"`
	// TBS is the hex SHA-256 of the TBSCertificate: of the exact bytes that will be signed.
	TBS string `json:"tbs"`
}

// check tells whether the profile allows a request, and gives its DNS names in full.
func (p *Profile) check(req Request) ([]string, error) {
	switch {
	case req.ID.IsZero():
		return nil, errors.New("it has no identity")
	case req.ID.TrustDomain() != p.trustDomain:
		return nil, fmt.Errorf("%s is not of the trust domain %s", req.ID, p.trustDomain)
	case req.TTL < time.Second || req.TTL > p.maxTTL:
		return nil, fmt.Errorf("a time to live of %s is not between 1s and %s", req.TTL, p.maxTTL)
	case req.ID.Kind() == id.Probe && req.TTL > MaxProbeTTL:
		return nil, fmt.Errorf("a probe's time to live is at most %s, not %s", MaxProbeTTL, req.TTL)
	case req.ID.Kind() != id.Server && len(req.IPAddresses) > 0:
		return nil, fmt.Errorf("only the server has IP addresses in its certificate, not a %s", req.ID.Kind())
	}
	for _, ip := range req.IPAddresses {
		if ip.To16() == nil || ip.IsUnspecified() || ip.IsMulticast() {
			return nil, fmt.Errorf("%q is not an address that somebody can be reached at", ip)
		}
	}
	if err := checkPublicKey(req.PublicKey); err != nil {
		return nil, err
	}
	return fullNames(req)
}

// fullNames are NAME and NAME.TRUST-DOMAIN and then the others, each once.
func fullNames(req Request) ([]string, error) {
	var names []string
	for _, name := range append([]string{req.ID.Name(), req.ID.ServerName()}, req.DNSNames...) {
		if err := id.CheckDNSName(name); err != nil {
			return nil, err
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if n := len(names) + len(req.IPAddresses); n > maxNames {
		return nil, fmt.Errorf("it would have %d names, and at most %d are possible", n, maxNames)
	}
	return names, nil
}

// keyID is the SubjectKeyIdentifier of a key: the leftmost 160 bits of the SHA-256 of the
// SubjectPublicKey (RFC 7093 section 2, method 1).
func keyID(spki []byte) ([]byte, error) {
	bits, err := subjectPublicKey(spki)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(bits)
	return sum[:20], nil
}

func hexSHA256(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// hexSerial writes a serial number as everything in this program does.
func hexSerial(cert *x509.Certificate) string {
	raw := cert.SerialNumber.Bytes()
	if len(raw) == 0 {
		raw = []byte{0}
	}
	return hex.EncodeToString(raw)
}
