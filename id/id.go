// Package id knows the names that a mesh gives to its members: trust domains, SPIFFE IDs and DNS
// names, how they are spelled and how one follows from the other.
//
// It follows the SPIFFE-ID standard (https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md)
// and narrows it: an ID has exactly two path segments, a kind and a name, both of which this package
// knows how to check. Values are immutable and safe for concurrent use.
package id

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// Sentinel errors. Every error of this package wraps one of them.
var (
	// ErrTrustDomain says that a trust domain is not spelled as SPIFFE-ID section 2.1 wants it.
	ErrTrustDomain = errors.New("invalid trust domain")
	// ErrID says that a text is not a SPIFFE ID of this mesh's form.
	ErrID = errors.New("invalid SPIFFE ID")
	// ErrDNSName says that a text is not a DNS name in the preferred syntax of RFC 1034 section 3.5.
	ErrDNSName = errors.New("invalid DNS name")
)

// MaxTrustDomain is the greatest length of a trust domain in characters. It is the upper bound of
// an X.520 organizationName, in which the trust domain is repeated (RFC 5280, ub-organization-name).
const MaxTrustDomain = 64

// maxID is longer than any ID can be: what is not one is repeated in errors, and whoever presents a
// certificate chooses it.
const maxID = 256

// Kind is the first path segment of a SPIFFE ID and the OU of the certificate's subject.
type Kind string

// The kinds of members.
const (
	// Service is a workload with an application.
	Service Kind = "service"
	// Gateway lets traffic from outside into the mesh.
	Gateway Kind = "gateway"
	// Probe is a verifier that looks at what endpoints serve; no policy ever admits it.
	Probe Kind = "probe"
	// Server is the control plane.
	Server Kind = "server"
)

// ID is a SPIFFE ID: spiffe://TRUST-DOMAIN/KIND/NAME. The zero value is no identity; IDs compare
// with ==.
type ID struct {
	trustDomain string
	kind        Kind
	name        string
}

// New makes an ID of its three parts and checks each of them.
func New(trustDomain string, kind Kind, name string) (ID, error) {
	if err := CheckTrustDomain(trustDomain); err != nil {
		return ID{}, err
	}
	switch kind {
	case Service, Gateway, Probe, Server:
	default:
		return ID{}, fmt.Errorf("%w: kind %q is none of service, gateway, probe, server", ErrID, kind)
	}
	if err := CheckLabel(name); err != nil {
		return ID{}, fmt.Errorf("%w: name %q: %w", ErrID, name, err)
	}
	return ID{trustDomain, kind, name}, nil
}

// Parse reads a SPIFFE ID in its URI form. It accepts only the canonical spelling: what it accepts,
// String gives back unchanged.
func Parse(s string) (ID, error) {
	if len(s) > maxID {
		return ID{}, fmt.Errorf("%w: it has %d bytes, and at most %d are possible", ErrID, len(s), maxID)
	}
	rest, ok := strings.CutPrefix(s, "spiffe://")
	if !ok {
		return ID{}, fmt.Errorf("%w: %q does not start with spiffe://", ErrID, s)
	}
	parts := strings.Split(rest, "/")
	if len(parts) != 3 {
		return ID{}, fmt.Errorf("%w: %q is not of the form spiffe://TRUST-DOMAIN/KIND/NAME", ErrID, s)
	}
	return New(parts[0], Kind(parts[1]), parts[2])
}

// FromCertificate reads the identity of an X509-SVID: the certificate's one URI SAN
// (X509-SVID section 2). A certificate with none or with several has no identity.
func FromCertificate(cert *x509.Certificate) (ID, error) {
	if len(cert.URIs) != 1 {
		return ID{}, fmt.Errorf("%w: the certificate has %d URI SANs, and an X509-SVID has exactly one", ErrID, len(cert.URIs))
	}
	return Parse(cert.URIs[0].String())
}

// String is the URI form, empty for the zero ID.
func (i ID) String() string {
	if i.IsZero() {
		return ""
	}
	return "spiffe://" + i.trustDomain + "/" + string(i.kind) + "/" + i.name
}

// URL is the URI form as x509.Certificate.URIs wants it.
func (i ID) URL() *url.URL {
	return &url.URL{Scheme: "spiffe", Host: i.trustDomain, Path: "/" + string(i.kind) + "/" + i.name}
}

// IsZero tells whether i is no identity.
func (i ID) IsZero() bool { return i == ID{} }

// TrustDomain is the authority part.
func (i ID) TrustDomain() string { return i.trustDomain }

// Kind is the first path segment.
func (i ID) Kind() Kind { return i.kind }

// Name is the second path segment: a DNS label.
func (i ID) Name() string { return i.name }

// ServerName is the DNS name by which peers address the member in SNI: NAME.TRUST-DOMAIN.
func (i ID) ServerName() string { return i.name + "." + i.trustDomain }

// MarshalText implements encoding.TextMarshaler; the zero ID is the empty text.
func (i ID) MarshalText() ([]byte, error) { return []byte(i.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; the empty text is the zero ID.
func (i *ID) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*i = ID{}
		return nil
	}
	parsed, err := Parse(string(text))
	if err != nil {
		return err
	}
	*i = parsed
	return nil
}

// CheckTrustDomain tells whether s may be a trust domain: a DNS name in lower case of at most
// [MaxTrustDomain] characters. SPIFFE also allows underscores; they are refused because the trust
// domain is a suffix of DNS names here.
func CheckTrustDomain(s string) error {
	if len(s) > MaxTrustDomain {
		return fmt.Errorf("%w: it has %d characters, and at most %d are possible", ErrTrustDomain, len(s), MaxTrustDomain)
	}
	if err := CheckDNSName(s); err != nil {
		return fmt.Errorf("%w: %q: %w", ErrTrustDomain, s, err)
	}
	return nil
}

// CheckDNSName tells whether s is a host name of one or more labels in lower case, without a
// trailing dot, of at most 253 characters (RFC 1034 section 3.5, RFC 1123 section 2.1).
func CheckDNSName(s string) error {
	if s == "" {
		return fmt.Errorf("%w: it is empty", ErrDNSName)
	}
	if len(s) > 253 {
		return fmt.Errorf("%w: it has %d characters, and at most 253 are possible", ErrDNSName, len(s))
	}
	for label := range strings.SplitSeq(s, ".") {
		if err := CheckLabel(label); err != nil {
			return err
		}
	}
	return nil
}

// CheckLabel tells whether s is one DNS label in lower case: 1 to 63 letters, digits and hyphens,
// with no hyphen at either end.
func CheckLabel(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%w: a label is empty", ErrDNSName)
	case len(s) > 63:
		return fmt.Errorf("%w: label %q has %d characters, and at most 63 are possible", ErrDNSName, s, len(s))
	case s[0] == '-' || s[len(s)-1] == '-':
		return fmt.Errorf("%w: label %q starts or ends with a hyphen", ErrDNSName, s)
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return fmt.Errorf("%w: label %q has the character %q; only a-z, 0-9 and - are possible", ErrDNSName, s, r)
		}
	}
	return nil
}
