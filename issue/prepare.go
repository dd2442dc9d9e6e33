package issue

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"sync/atomic"
	"time"
)

// Issuer signs leaves with one issuing certificate under one profile. It is safe for concurrent use.
type Issuer struct {
	cert    *x509.Certificate
	key     crypto.Signer
	profile *Profile
	now     func() time.Time

	// rehearsal signs what is only to be looked at. Its key has the type of the real one, so that
	// the bytes to be signed, which name the algorithm, are the same; nobody trusts it.
	rehearsal       crypto.Signer
	rehearsalParent *x509.Certificate
}

// NewIssuer makes an Issuer of an issuing certificate, its key and a profile. The clock may be nil for
// time.Now. Errors are [ErrIssuer].
func NewIssuer(cert *x509.Certificate, key crypto.Signer, profile *Profile, now func() time.Time) (*Issuer, error) {
	if now == nil {
		now = time.Now
	}
	switch {
	case profile == nil:
		return nil, fmt.Errorf("%w: it has no profile", ErrIssuer)
	case !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, fmt.Errorf("%w: %q is not the certificate of a CA", ErrIssuer, cert.Subject)
	case len(cert.SubjectKeyId) == 0:
		return nil, fmt.Errorf("%w: %q has no subject key identifier", ErrIssuer, cert.Subject)
	case !samePublicKey(cert.PublicKey, key.Public()):
		return nil, fmt.Errorf("%w: the key does not belong to %q", ErrIssuer, cert.Subject)
	}
	if err := checkPublicKey(cert.PublicKey); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIssuer, err)
	}
	rehearsal, err := rehearsalKey(cert.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIssuer, err)
	}
	parent := *cert // only read from here on
	parent.PublicKey = rehearsal.Public()
	return &Issuer{cert: cert, key: key, profile: profile, now: now, rehearsal: rehearsal, rehearsalParent: &parent}, nil
}

// Prepared is a certificate that was decided and checked but not signed. [Issuer.Issue] redeems it,
// once.
type Prepared struct {
	issuer   *Issuer
	template *x509.Certificate
	facts    Facts
	tbs      []byte
	redeemed atomic.Bool
}

// Facts are what is to be recorded before the certificate is issued. The caller does not change its
// slices.
func (p *Prepared) Facts() Facts { return p.facts }

// Prepare decides every byte of a leaf and checks them. Errors are [ErrRequest] when the request is at
// fault (with [ErrWeakKey] for its key), [ErrIssuer] when the issuing certificate is not valid now,
// and [ErrLint].
//
// A certificate never outlives its issuer: the time to live is cut short, without an error, because a
// workload is better off with a shorter certificate than with none. The caller sees it in the facts.
func (i *Issuer) Prepare(req Request) (*Prepared, error) {
	names, err := i.profile.check(req)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if samePublicKey(i.cert.PublicKey, req.PublicKey) {
		return nil, fmt.Errorf("%w: its key is the CA's own", ErrRequest)
	}
	now := i.now()
	switch {
	case !now.Before(i.cert.NotAfter):
		return nil, fmt.Errorf("%w: its certificate (serial %s) expired on %s", ErrIssuer, hexSerial(i.cert), i.cert.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(i.cert.NotBefore):
		return nil, fmt.Errorf("%w: its certificate (serial %s) is valid only from %s on; is this machine's clock right?", ErrIssuer, hexSerial(i.cert), i.cert.NotBefore.UTC().Format(time.RFC3339))
	}
	template, err := i.template(req, names, now)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.rehearsalParent, req.PublicKey, i.rehearsal)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLint, err)
	}
	rehearsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLint, err)
	}
	if err := i.lint(rehearsed, req, names, now); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLint, err)
	}
	return &Prepared{issuer: i, template: template, tbs: rehearsed.RawTBSCertificate, facts: i.facts(rehearsed, req)}, nil
}

// Issue signs what was prepared. It gives an error rather than a certificate that differs in one byte
// from what was checked and recorded, or whose signature does not verify ([ErrLint]); a second
// attempt with the same Prepared, whatever came of the first, is [ErrRedeemed].
func (i *Issuer) Issue(p *Prepared) (*x509.Certificate, error) {
	if p == nil || p.issuer != i || !p.redeemed.CompareAndSwap(false, true) {
		return nil, ErrRedeemed
	}
	der, err := x509.CreateCertificate(rand.Reader, p.template, i.cert, p.template.PublicKey, i.key)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIssuer, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLint, err)
	}
	if !bytes.Equal(leaf.RawTBSCertificate, p.tbs) {
		return nil, fmt.Errorf("%w: it differs from what was prepared", ErrLint)
	}
	if err := leaf.CheckSignatureFrom(i.cert); err != nil { // a fault in a key, a device or a memory
		return nil, fmt.Errorf("%w: %w", ErrLint, err)
	}
	return leaf, nil
}

// template writes down what the profile wants of a leaf.
func (i *Issuer) template(req Request, names []string, now time.Time) (*x509.Certificate, error) {
	spki, err := x509.MarshalPKIXPublicKey(req.PublicKey)
	if err != nil {
		return nil, err
	}
	subjectKeyID, err := keyID(spki)
	if err != nil {
		return nil, err
	}
	notAfter := now.Add(req.TTL).UTC().Truncate(time.Second)
	if notAfter.After(i.cert.NotAfter) {
		notAfter = i.cert.NotAfter
	}
	return &x509.Certificate{
		SerialNumber: newSerial(),
		// The encoding order is O, OU, CN, which RFC 2253 prints backwards: CN=NAME,OU=KIND,O=DOMAIN.
		Subject: pkix.Name{
			CommonName:         req.ID.Name(),
			OrganizationalUnit: []string{string(req.ID.Kind())},
			Organization:       []string{req.ID.TrustDomain()},
		},
		NotBefore:             now.Add(-ClockAllowance).UTC().Truncate(time.Second),
		NotAfter:              notAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, // present, critical, and not a CA
		SubjectKeyId:          subjectKeyID,
		AuthorityKeyId:        i.cert.SubjectKeyId,
		URIs:                  []*url.URL{req.ID.URL()},
		DNSNames:              names,
		IPAddresses:           req.IPAddresses,
		PublicKey:             req.PublicKey,
	}, nil
}

func (i *Issuer) facts(cert *x509.Certificate, req Request) Facts {
	f := Facts{
		Serial:    hexSerial(cert),
		Identity:  req.ID,
		DNSNames:  cert.DNSNames,
		NotBefore: cert.NotBefore.UTC(),
		NotAfter:  cert.NotAfter.UTC(),
		PublicKey: hexSHA256(cert.RawSubjectPublicKeyInfo),
		Issuer:    hexSerial(i.cert),
		TBS:       hexSHA256(cert.RawTBSCertificate),
	}
	for _, ip := range cert.IPAddresses {
		f.IPAddresses = append(f.IPAddresses, ip.String())
	}
	return f
}

// newSerial is 128 random bits: positive, not zero, and at most 17 octets in DER where RFC 5280
// section 4.1.2.2 allows 20.
func newSerial() *big.Int {
	for {
		var b [16]byte
		_, _ = rand.Read(b[:]) // crypto/rand ends the process rather than fail
		if n := new(big.Int).SetBytes(b[:]); n.Sign() > 0 {
			return n
		}
	}
}

// rehearsalKey makes a key with which crypto/x509 chooses the same signature algorithm.
func rehearsalKey(like crypto.PublicKey) (crypto.Signer, error) {
	switch public := like.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.GenerateKey(public.Curve, rand.Reader)
	case *rsa.PublicKey:
		return rsa.GenerateKey(rand.Reader, minRSA)
	case ed25519.PublicKey:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	default:
		return nil, fmt.Errorf("a key of the type %T cannot sign certificates", like)
	}
}

func samePublicKey(a, b crypto.PublicKey) bool {
	public, ok := a.(interface{ Equal(x crypto.PublicKey) bool })
	return ok && public.Equal(b)
}

// subjectPublicKey is the BIT STRING inside a SubjectPublicKeyInfo.
func subjectPublicKey(spki []byte) ([]byte, error) {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		PublicKey asn1.BitString
	}
	if rest, err := asn1.Unmarshal(spki, &info); err != nil || len(rest) > 0 {
		return nil, errors.New("the public key does not encode as a SubjectPublicKeyInfo")
	}
	return info.PublicKey.RightAlign(), nil
}
