package issue

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"countersign.dev/id"
)

// Object identifiers of the extensions that a leaf has (RFC 5280 section 4.2).
var (
	oidSubjectKeyID     = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidSubjectAltName   = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidAuthorityKeyID   = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidExtKeyUsage      = asn1.ObjectIdentifier{2, 5, 29, 37}
)

// leafExtensions are all that a leaf has, and whether each is critical.
var leafExtensions = []struct {
	oid      asn1.ObjectIdentifier
	critical bool
}{
	{oidSubjectKeyID, false},
	{oidKeyUsage, true},
	{oidSubjectAltName, false}, // critical only with an empty subject (RFC 5280 section 4.2.1.6)
	{oidBasicConstraints, true},
	{oidAuthorityKeyID, false},
	{oidExtKeyUsage, false},
}

// lint looks at a certificate as a stranger would who knows only the request. It shares no code with
// template: a mistake there has to be found here.
func (i *Issuer) lint(cert *x509.Certificate, req Request, names []string, now time.Time) error {
	checks := []func() error{
		func() error { return lintForm(cert) },
		func() error { return i.lintValidity(cert, req, now) },
		func() error { return lintNames(cert, req, names) },
		func() error { return lintUse(cert) },
		func() error { return i.lintKeys(cert, req) },
	}
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func lintForm(cert *x509.Certificate) error {
	switch {
	case cert.Version != 3:
		return fmt.Errorf("its version is %d, not 3", cert.Version)
	case cert.SerialNumber.Sign() <= 0:
		return errors.New("its serial number is not positive")
	case len(cert.SerialNumber.Bytes()) > 19: // one octet more in DER when the top bit is set
		return errors.New("its serial number may exceed 20 octets")
	}
	if len(cert.Extensions) != len(leafExtensions) {
		return fmt.Errorf("it has %d extensions, not %d", len(cert.Extensions), len(leafExtensions))
	}
	for _, want := range leafExtensions {
		n := 0
		for _, have := range cert.Extensions {
			if have.Id.Equal(want.oid) && have.Critical == want.critical {
				n++
			}
		}
		if n != 1 {
			return fmt.Errorf("it does not have the extension %s exactly once and critical=%t", want.oid, want.critical)
		}
	}
	return nil
}

func (i *Issuer) lintValidity(cert *x509.Certificate, req Request, now time.Time) error {
	switch {
	case !cert.NotBefore.Before(cert.NotAfter):
		return errors.New("it ends before it begins")
	case cert.NotBefore.After(now):
		return errors.New("it is not valid yet")
	case now.Sub(cert.NotBefore) > ClockAllowance+time.Second:
		return fmt.Errorf("it begins more than %s ago", ClockAllowance)
	case cert.NotAfter.Sub(now) > req.TTL:
		return errors.New("it lives longer than was asked for")
	case cert.NotAfter.After(i.cert.NotAfter):
		return errors.New("it outlives its issuer")
	}
	return nil
}

func lintNames(cert *x509.Certificate, req Request, names []string) error {
	if len(cert.EmailAddresses) > 0 {
		return errors.New("it has e-mail addresses")
	}
	if len(cert.URIs) != 1 || cert.URIs[0].String() != req.ID.String() {
		return fmt.Errorf("its URI names are not exactly %s", req.ID)
	}
	if parsed, err := id.FromCertificate(cert); err != nil || parsed != req.ID {
		return fmt.Errorf("its identity does not read as %s", req.ID)
	}
	if !slices.Equal(cert.DNSNames, names) {
		return fmt.Errorf("its DNS names are not exactly %q", names)
	}
	if len(cert.IPAddresses) != len(req.IPAddresses) {
		return errors.New("its IP addresses are not those asked for")
	}
	for n, ip := range cert.IPAddresses {
		if !ip.Equal(req.IPAddresses[n]) {
			return errors.New("its IP addresses are not those asked for")
		}
	}
	want := strings.Join([]string{
		"CN=" + req.ID.Name(), "OU=" + string(req.ID.Kind()), "O=" + req.ID.TrustDomain(),
	}, ",")
	if got := cert.Subject.String(); got != want { // RFC 2253
		return fmt.Errorf("its subject is %q, not %q", got, want)
	}
	return nil
}

func lintUse(cert *x509.Certificate) error {
	switch {
	case cert.IsCA || cert.MaxPathLen > 0:
		return errors.New("it would be a CA")
	case !cert.BasicConstraintsValid:
		return errors.New("its basic constraints are missing")
	case cert.KeyUsage != x509.KeyUsageDigitalSignature:
		return errors.New("its key usage is not exactly digitalSignature")
	case !slices.Equal(cert.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}),
		len(cert.UnknownExtKeyUsage) > 0:
		return errors.New("its extended key usage is not exactly serverAuth and clientAuth")
	}
	return nil
}

func (i *Issuer) lintKeys(cert *x509.Certificate, req Request) error {
	switch {
	case !samePublicKey(cert.PublicKey, req.PublicKey):
		return errors.New("its key is not the one asked for")
	case !bytes.Equal(cert.RawIssuer, i.cert.RawSubject):
		return errors.New("its issuer's name is not the issuing CA's")
	case !bytes.Equal(cert.AuthorityKeyId, i.cert.SubjectKeyId):
		return errors.New("its authority key identifier is not the issuing CA's")
	case len(cert.SubjectKeyId) == 0 || bytes.Equal(cert.SubjectKeyId, cert.AuthorityKeyId):
		return errors.New("its subject key identifier is missing or the issuing CA's")
	}
	switch cert.SignatureAlgorithm {
	case x509.SHA256WithRSA, x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.PureEd25519:
		return nil
	default:
		return fmt.Errorf("its signature algorithm %s is not one of the profile", cert.SignatureAlgorithm)
	}
}
