package mtls

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"countersign.dev/id"
)

// Bounds of what is taken from outside.
const (
	// MaxBundle is the greatest size of a PEM bundle in bytes.
	MaxBundle = 1 << 20
	// maxChain is the greatest number of certificates that a peer may present: a leaf, three issuers
	// and a root are more than any hierarchy here has. Verification tries combinations of them.
	maxChain = 5
	// maxCertificate is the greatest size of one of them in bytes: a hundred long names fit in. What it
	// holds is repeated in errors, and strangers choose it.
	maxCertificate = 32 << 10
)

// ErrBundle says that something is not a trust bundle.
var ErrBundle = errors.New("invalid trust bundle")

// Bundle is the set of root certificates by which the members of one trust domain are recognized. It
// is immutable and safe for concurrent use.
type Bundle struct {
	trustDomain string
	roots       []*x509.Certificate
	pool        *x509.CertPool
	digest      string
	known       *chains // what handshakes verified by these roots
}

// NewBundle makes a bundle of roots, of which there is at least one and each is a CA. The order and
// repetitions do not matter. Its errors are [ErrBundle].
func NewBundle(trustDomain string, roots []*x509.Certificate) (*Bundle, error) {
	if err := id.CheckTrustDomain(trustDomain); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBundle, err)
	}
	if len(roots) == 0 {
		return nil, fmt.Errorf("%w: it has no certificate", ErrBundle)
	}
	sorted := slices.Clone(roots)
	slices.SortFunc(sorted, func(a, b *x509.Certificate) int { return bytes.Compare(a.Raw, b.Raw) })
	sorted = slices.CompactFunc(sorted, func(a, b *x509.Certificate) bool { return bytes.Equal(a.Raw, b.Raw) })
	b := &Bundle{trustDomain: trustDomain, roots: sorted, pool: x509.NewCertPool(), known: &chains{}}
	hash := sha256.New()
	hash.Write([]byte(trustDomain))
	for _, root := range sorted {
		if !root.BasicConstraintsValid || !root.IsCA {
			return nil, fmt.Errorf("%w: %q is not the certificate of a CA", ErrBundle, root.Subject)
		}
		b.pool.AddCert(root)
		fingerprint := sha256.Sum256(root.Raw)
		hash.Write(fingerprint[:])
	}
	b.digest = hex.EncodeToString(hash.Sum(nil))
	return b, nil
}

// ParseBundle reads a bundle from PEM: only blocks of the type CERTIFICATE, at most [MaxBundle]
// bytes. Its errors are [ErrBundle].
func ParseBundle(trustDomain string, data []byte) (*Bundle, error) {
	roots, err := ParseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBundle, err)
	}
	return NewBundle(trustDomain, roots)
}

// ParseCertificates reads PEM blocks of the type CERTIFICATE, of which there is at least one and
// nothing else beside them but text between the blocks. The input is at most [MaxBundle] bytes.
func ParseCertificates(data []byte) ([]*x509.Certificate, error) {
	if len(data) > MaxBundle {
		return nil, fmt.Errorf("the PEM text has %d bytes, and at most %d are read", len(data), MaxBundle)
	}
	// pem.Decode passes over a block that it cannot read; a root must not disappear that way.
	begun := bytes.Count(data, []byte("-----BEGIN "))
	var certs []*x509.Certificate
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		data = rest
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("the PEM text has a block of type %q; only CERTIFICATE is wanted", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the PEM text: %w", len(certs)+1, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, errors.New("the PEM text has no certificate")
	}
	if begun != len(certs) {
		return nil, fmt.Errorf("the PEM text is damaged: %d blocks begin, and %d certificates can be read; fetch it again", begun, len(certs))
	}
	return certs, nil
}

// TrustDomain is the trust domain whose members the roots vouch for.
func (b *Bundle) TrustDomain() string { return b.trustDomain }

// Roots are the certificates in a fixed order. The slice is a copy.
func (b *Bundle) Roots() []*x509.Certificate { return slices.Clone(b.roots) }

// Digest identifies the contents: hex SHA-256 over trust domain and roots.
func (b *Bundle) Digest() string { return b.digest }

// PEM is the bundle as [ParseBundle] reads it.
func (b *Bundle) PEM() []byte {
	var out []byte
	for _, root := range b.roots {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})...)
	}
	return out
}

// Verify checks what a peer presented, leaf first, and gives its identity: the chain leads to a root
// of the bundle, every certificate in it is valid at now, the leaf may be used for usage, is no CA,
// and is an X509-SVID of the trust domain (X509-SVID section 4). DNS names play no part. Errors are
// [ErrUntrusted], those about the leaf's end [ErrExpired] as well; an empty chain is
// [ErrNoCertificate]. It looks at no revocation list; [Identity.Verify] does.
func (b *Bundle) Verify(chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) (id.ID, error) {
	return b.verify(nil, nil, "", chain, usage, now)
}

// VerifyNamed is [Bundle.Verify] for a peer without SPIFFE ID: its leaf has to be of somebody who is known by a DNS name,
// as [Named] says. Errors are the same.
func (b *Bundle) VerifyNamed(name string, chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) error {
	return b.verifyNamed(nil, name, chain, usage, now)
}

func (b *Bundle) verifyNamed(rev *Revocation, name string, chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) error {
	if len(chain) == 0 {
		return ErrNoCertificate
	}
	err := b.verifyChain(nil, rev, "", chain, usage, now)
	if err == nil {
		err = errors.Join(leafOnly(chain[0]), Named(chain[0], name))
	}
	if err != nil {
		return fmt.Errorf("%w (%s): %w", ErrUntrusted, describe(chain[0]), err)
	}
	return nil
}

// Named tells whether a certificate is of somebody who is known by a DNS name and not by a SPIFFE ID: the name is all of
// its subject, as the common name, and one of its alternative names, of which none is a URI. The certificate itself is not
// verified.
func Named(leaf *x509.Certificate, name string) error {
	switch {
	case name == "":
		return errors.New("no name is expected of it")
	case len(leaf.URIs) > 0:
		return fmt.Errorf("it has the URI %q, and is to be known by the DNS name %s alone", shortened(leaf.URIs[0].String()), name)
	case leaf.Subject.CommonName != name || len(leaf.Subject.Names) != 1:
		return fmt.Errorf("its subject is %q, and CN=%s is expected", shortened(leaf.Subject.String()), name)
	case !slices.Contains(leaf.DNSNames, name):
		return fmt.Errorf("it is not for the DNS name %s", name)
	}
	return nil
}

// verifyAgain is Verify for handshakes: the signatures of a chain that was presented before in the same
// epoch are not verified anew.
func (b *Bundle) verifyAgain(epoch string, chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) (id.ID, error) {
	return b.verify(b.known, nil, epoch, chain, usage, now)
}

func (b *Bundle) verify(known *chains, rev *Revocation, epoch string, chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) (id.ID, error) {
	if len(chain) == 0 {
		return id.ID{}, ErrNoCertificate
	}
	leaf := chain[0]
	err := b.verifyChain(known, rev, epoch, chain, usage, now)
	if err == nil {
		var peer id.ID
		if peer, err = b.member(leaf); err == nil {
			return peer, nil
		}
	}
	return id.ID{}, fmt.Errorf("%w (%s): %w", ErrUntrusted, describe(leaf), err)
}

// verifyChain checks all of a chain that does not depend on whose it is.
func (b *Bundle) verifyChain(known *chains, rev *Revocation, epoch string, chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) error {
	leaf := chain[0]
	if len(chain) > maxChain {
		return fmt.Errorf("it came with %d certificates, and at most %d are looked at", len(chain), maxChain)
	}
	for i, cert := range chain {
		if len(cert.Raw) > maxCertificate {
			return fmt.Errorf("certificate %d of its chain has %d bytes, and at most %d are looked at", i+1, len(cert.Raw), maxCertificate)
		}
	}
	if now.After(leaf.NotAfter) {
		return fmt.Errorf("%w on %s", ErrExpired, leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	if now.Before(leaf.NotBefore) {
		return fmt.Errorf("it is valid only from %s on, and it is %s here; compare the clocks",
			leaf.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	var key chainKey
	if known != nil {
		key = keyOf(chain, usage, epoch)
		// What is remembered holds for ever; what is revoked, for now. A path that is not good any more may have
		// another one beside it, which is looked for below.
		if issuers, ok := known.lookup(key, now); ok && (rev == nil || rev.check(append([]*x509.Certificate{leaf}, issuers...), now) == nil) {
			return nil
		}
	}
	intermediates := x509.NewCertPool()
	for _, cert := range chain[1:] {
		intermediates.AddCert(cert)
	}
	verified, err := leaf.Verify(x509.VerifyOptions{
		Roots:         b.pool,
		Intermediates: intermediates,
		CurrentTime:   now,
		KeyUsages:     []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return err
	}
	revoked := rev.check(verified[0], now)
	good := slices.DeleteFunc(verified, func(path []*x509.Certificate) bool { return rev.check(path, now) != nil })
	if len(good) == 0 {
		return revoked
	}
	known.remember(key, chain, lastingChain(good))
	return nil
}

// member reads the identity of a certificate whose chain was verified, and checks that it is a leaf
// of the trust domain.
func (b *Bundle) member(leaf *x509.Certificate) (id.ID, error) {
	if err := leafOnly(leaf); err != nil {
		return id.ID{}, err
	}
	peer, err := id.FromCertificate(leaf)
	if err != nil && len(leaf.URIs) == 0 {
		return id.ID{}, fmt.Errorf("%w: a port of the built-in proxy knows members by nothing else; who has a certificate of AWS Certificate Manager, which has DNS names only, can call ports of NGINX and HAProxy", err)
	}
	if err != nil {
		return id.ID{}, err
	}
	if peer.TrustDomain() != b.trustDomain {
		return id.ID{}, fmt.Errorf("it is of the trust domain %q, and only members of %q are known here", peer.TrustDomain(), b.trustDomain)
	}
	return peer, nil
}

// leafOnly refuses certificates that are no leaf of a member.
func leafOnly(leaf *x509.Certificate) error {
	switch {
	case leaf.IsCA:
		return errors.New("it is the certificate of a CA, not of a member")
	case leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return errors.New("its key may sign certificates or CRLs, which no member's may")
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return errors.New("its key usage does not include digitalSignature")
	}
	return nil
}

// Pin is the name of a root that a person hands over: "sha256:" and the hex SHA-256 of its DER.
func Pin(root *x509.Certificate) string {
	fingerprint := sha256.Sum256(root.Raw)
	return "sha256:" + hex.EncodeToString(fingerprint[:])
}

// CheckPin tells whether a text has the form of a [Pin], in lower case.
func CheckPin(pin string) error {
	digits, ok := strings.CutPrefix(pin, "sha256:")
	raw, err := hex.DecodeString(digits)
	if !ok || err != nil || len(raw) != sha256.Size || strings.ToLower(pin) != pin {
		return fmt.Errorf("%q is not a pin: write sha256: and 64 hexadecimal digits in lower case, as `countersign ca show` prints them", pin)
	}
	return nil
}

// VerifyPinned is [Bundle.Verify] for somebody who knows only a root's pin: the root has to be in the
// chain, and the leaf says which trust domain it is of. It gives the bundle of that one root.
func VerifyPinned(pin string, chain []*x509.Certificate, usage x509.ExtKeyUsage, now time.Time) (id.ID, *Bundle, error) {
	if err := CheckPin(pin); err != nil {
		return id.ID{}, nil, err
	}
	if len(chain) == 0 {
		return id.ID{}, nil, ErrNoCertificate
	}
	root := slices.IndexFunc(chain, func(cert *x509.Certificate) bool {
		return subtle.ConstantTimeCompare([]byte(Pin(cert)), []byte(pin)) == 1
	})
	if root < 1 {
		return id.ID{}, nil, fmt.Errorf("%w: the root with the pin %s is not in its chain; compare the pin with `countersign ca show` on the server", ErrUntrusted, pin)
	}
	claimed, err := id.FromCertificate(chain[0])
	if err != nil {
		return id.ID{}, nil, fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	bundle, err := NewBundle(claimed.TrustDomain(), chain[root:root+1])
	if err != nil {
		return id.ID{}, nil, fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	peer, err := bundle.Verify(chain, usage, now)
	if err != nil {
		return id.ID{}, nil, err
	}
	return peer, bundle, nil
}

// Serial is how serial numbers are written everywhere: lower-case hex, at least two digits, an even
// number of them, as OpenSSL and NGINX do but for the case.
func Serial(cert *x509.Certificate) string {
	return hex.EncodeToString(serialBytes(cert))
}

func serialBytes(cert *x509.Certificate) []byte {
	if cert.SerialNumber == nil || cert.SerialNumber.Sign() == 0 {
		return []byte{0}
	}
	return cert.SerialNumber.Bytes()
}
