package issue

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"countersign.dev/id"
)

// MaxCSR is the greatest size of a PEM certificate request in bytes. One for an RSA key of 4096 bits
// has 1.7 KB.
const MaxCSR = 16 << 10

// Bounds of RSA keys. Below minRSA a key can be broken; above maxRSA its owner pays with every
// handshake, and whoever verifies for him, too.
const (
	minRSA      = 2048
	maxRSA      = 4096
	minExponent = 65537
)

// Sentinel errors about certificate requests.
var (
	// ErrBadCSR says that a text is not a certificate request, or one that its key has not signed.
	ErrBadCSR = errors.New("invalid certificate request")
	// ErrWeakKey says that a public key is of a type or a size that is not certified here.
	ErrWeakKey = errors.New("unsuitable key")
	// ErrNameMismatch says that a certificate request asks for names that its sender does not get.
	ErrNameMismatch = errors.New("the certificate request asks for another name")
)

// ParseCSR reads a certificate request in PEM (RFC 2986, RFC 7468): one block, at most [MaxCSR]
// bytes, signed by the key in it, which is thereby shown to be the sender's. Errors are [ErrBadCSR]
// or [ErrWeakKey]. Of what is in it, only the public key may be used; see also [CheckCSRNames].
func ParseCSR(text []byte) (*x509.CertificateRequest, error) {
	if len(text) > MaxCSR {
		return nil, fmt.Errorf("%w: it has %d bytes, and at most %d are read", ErrBadCSR, len(text), MaxCSR)
	}
	block, rest := pem.Decode(text)
	if block == nil || (block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST") {
		return nil, fmt.Errorf("%w: it is not a PEM block of type CERTIFICATE REQUEST", ErrBadCSR)
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%w: something follows its PEM block", ErrBadCSR)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadCSR, err)
	}
	// The key first: verifying with a monstrous one is work that a stranger could order.
	if err := checkPublicKey(csr.PublicKey); err != nil {
		return nil, err
	}
	switch csr.SignatureAlgorithm {
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
		x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.PureEd25519:
	default:
		return nil, fmt.Errorf("%w: its signature algorithm %s is not accepted; sign it with SHA-256 or better", ErrBadCSR, csr.SignatureAlgorithm)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("%w: it is not signed by its own key: %w", ErrBadCSR, err)
	}
	return csr, nil
}

// checkPublicKey tells whether a key is one that is certified: ECDSA on P-256 or P-384, Ed25519, RSA
// of 2048 to 4096 bits. The error is [ErrWeakKey] and names what was found.
func checkPublicKey(key crypto.PublicKey) error {
	const right = "make an ECDSA key on P-256 or P-384, an Ed25519 key, or an RSA key of 2048 to 4096 bits"
	switch public := key.(type) {
	case *ecdsa.PublicKey:
		if public.Curve != elliptic.P256() && public.Curve != elliptic.P384() {
			return fmt.Errorf("%w: ECDSA on %s; %s", ErrWeakKey, public.Curve.Params().Name, right)
		}
		return nil
	case ed25519.PublicKey:
		if len(public) != ed25519.PublicKeySize {
			return fmt.Errorf("%w: Ed25519 of %d bytes; %s", ErrWeakKey, len(public), right)
		}
		return nil
	case *rsa.PublicKey:
		bits := public.N.BitLen()
		switch {
		case bits < minRSA || bits > maxRSA:
			return fmt.Errorf("%w: RSA of %d bits; %s", ErrWeakKey, bits, right)
		case bits%8 != 0 || public.N.Bit(0) == 0:
			return fmt.Errorf("%w: RSA with a malformed modulus of %d bits; %s", ErrWeakKey, bits, right)
		case public.E < minExponent || public.E%2 == 0:
			return fmt.Errorf("%w: RSA with the exponent %d; use 65537", ErrWeakKey, public.E)
		}
		return nil
	default:
		return fmt.Errorf("%w: %T; %s", ErrWeakKey, key, right)
	}
}

// Object identifiers of the attributes of a subject that a certificate here has (X.520).
var (
	oidCommonName   = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidOrganization = asn1.ObjectIdentifier{2, 5, 4, 10}
	oidUnit         = asn1.ObjectIdentifier{2, 5, 4, 11}
)

// CheckCSRNames tells whether a certificate request asks for nothing but what identity may have: its
// SPIFFE ID, its own DNS names and the further dnsNames, its subject. To ask for no name at all is
// right. The error is [ErrNameMismatch].
//
// The names would not be copied into a certificate anyway. They are refused because somebody who asks
// for them expects them, and would find out only when a peer refuses.
func CheckCSRNames(csr *x509.CertificateRequest, identity id.ID, dnsNames []string) error {
	allowed := append([]string{identity.Name(), identity.ServerName()}, dnsNames...)
	slices.Sort(allowed)
	allowed = slices.Compact(allowed)
	for _, uri := range csr.URIs {
		if uri.String() != identity.String() {
			return fmt.Errorf("%w: the URI %q, where only %s is possible", ErrNameMismatch, uri, identity)
		}
	}
	for _, name := range csr.DNSNames {
		if !slices.Contains(allowed, name) {
			return fmt.Errorf("%w: the DNS name %q, where only %q are possible", ErrNameMismatch, name, allowed)
		}
	}
	if len(csr.EmailAddresses) > 0 || len(csr.IPAddresses) > 0 {
		return fmt.Errorf("%w: an e-mail or IP address, which no workload's certificate has", ErrNameMismatch)
	}
	if err := checkOtherNames(csr); err != nil {
		return err
	}
	for _, attribute := range csr.Subject.Names {
		value, _ := attribute.Value.(string)
		var ok bool
		switch {
		case attribute.Type.Equal(oidCommonName):
			ok = slices.Contains(allowed, value)
		case attribute.Type.Equal(oidOrganization):
			ok = value == identity.TrustDomain()
		case attribute.Type.Equal(oidUnit):
			ok = value == string(identity.Kind())
		}
		if !ok {
			return fmt.Errorf("%w: the subject %q, where only CN=%s,OU=%s,O=%s is possible; leave it empty",
				ErrNameMismatch, csr.Subject.String(), identity.Name(), identity.Kind(), identity.TrustDomain())
		}
	}
	return nil
}

// checkOtherNames refuses the kinds of names that crypto/x509 does not even parse (otherName,
// directoryName and so on, RFC 5280 section 4.2.1.6).
func checkOtherNames(csr *x509.CertificateRequest) error {
	for _, extension := range csr.Extensions {
		if !extension.Id.Equal(oidSubjectAltName) {
			continue
		}
		der := cryptobyte.String(extension.Value)
		var names cryptobyte.String
		if !der.ReadASN1(&names, cbasn1.SEQUENCE) || !der.Empty() {
			return fmt.Errorf("%w: its subject alternative names do not parse", ErrNameMismatch)
		}
		for !names.Empty() {
			var name cryptobyte.String
			var tag cbasn1.Tag
			if !names.ReadAnyASN1(&name, &tag) {
				return fmt.Errorf("%w: its subject alternative names do not parse", ErrNameMismatch)
			}
			const dns, uri = 2, 6
			if number := uint8(tag) & 0x1f; number != dns && number != uri {
				return fmt.Errorf("%w: a name of the kind %d, where only DNS names and a URI are possible", ErrNameMismatch, number)
			}
		}
	}
	return nil
}
