package mtls

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

// maxKey is the greatest size of a PEM key in bytes: RSA of 4096 bits needs 3.3 KB.
const maxKey = 64 << 10

// ErrKey says that a text is not a private key that is understood here. Its errors hold no part of
// the text.
var ErrKey = errors.New("invalid private key")

// GenerateKey makes a new private key.
func GenerateKey(kind mesh.KeyType) (crypto.Signer, error) {
	var key crypto.Signer
	var err error
	switch kind {
	case mesh.ECDSAP256, "":
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case mesh.ECDSAP384:
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case mesh.RSA2048:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case mesh.RSA3072:
		key, err = rsa.GenerateKey(rand.Reader, 3072)
	case mesh.RSA4096:
		key, err = rsa.GenerateKey(rand.Reader, 4096)
	case mesh.Ed25519:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		return nil, fmt.Errorf("making a key: the type %q is none of ecdsa-p256, ecdsa-p384, rsa-2048, rsa-3072, rsa-4096, ed25519", kind)
	}
	if err != nil {
		return nil, fmt.Errorf("making a key of type %s: %w", kind, err)
	}
	return key, nil
}

// MarshalKey writes a private key as PKCS #8 in PEM. Whoever asks for it keeps it secret.
func MarshalKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding a private key: %w", err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	clear(der)
	return text, nil
}

// ParseKey reads what [MarshalKey] wrote: one PEM block with PKCS #8. Its errors are [ErrKey].
func ParseKey(text []byte) (crypto.Signer, error) {
	if len(text) > maxKey {
		return nil, fmt.Errorf("%w: it has %d bytes, and at most %d are read", ErrKey, len(text), maxKey)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("%w: it is not a PEM block of type PRIVATE KEY (PKCS #8)", ErrKey)
	}
	defer clear(block.Bytes)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: it does not parse as PKCS #8", ErrKey)
	}
	switch key := parsed.(type) {
	case *ecdsa.PrivateKey:
		return key, nil
	case *rsa.PrivateKey:
		return key, nil
	case ed25519.PrivateKey:
		return key, nil
	default:
		return nil, fmt.Errorf("%w: a %T cannot sign", ErrKey, parsed)
	}
}

// NewCSR makes a certificate request for a key, in PEM (RFC 2986). It asks for no name: the names are
// decided by whoever signs, from what it knows about the workload.
func NewCSR(key crypto.Signer) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// LoadIdentity makes an identity of three PEM texts: leaf and issuers, the leaf's key, the roots. The
// key has to be the leaf's, and the chain has to lead to the roots; whether the leaf is still valid is
// not looked at, because a process that wakes up with an expired one has to be able to say so.
func LoadIdentity(certPEM, keyPEM, bundlePEM []byte) (*Identity, error) {
	chain, err := ParseCertificates(certPEM)
	if err != nil {
		return nil, fmt.Errorf("loading an identity: %w", err)
	}
	key, err := ParseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("loading an identity: %w", err)
	}
	return NewIdentity(chain, key, bundlePEM)
}

// NewIdentity is [LoadIdentity] for a key that is in memory or in a device.
func NewIdentity(chain []*x509.Certificate, key crypto.Signer, bundlePEM []byte) (*Identity, error) {
	if len(chain) == 0 {
		return nil, fmt.Errorf("loading an identity: %w", ErrNoCertificate)
	}
	leaf := chain[0]
	public, ok := leaf.PublicKey.(interface{ Equal(x crypto.PublicKey) bool })
	if !ok || !public.Equal(key.Public()) {
		return nil, fmt.Errorf("loading an identity: %w: it does not belong to the certificate (%s)", ErrKey, describe(leaf))
	}
	own, err := id.FromCertificate(leaf)
	if err != nil {
		return nil, fmt.Errorf("loading an identity: %w", err)
	}
	bundle, err := ParseBundle(own.TrustDomain(), bundlePEM)
	if err != nil {
		return nil, fmt.Errorf("loading an identity: %w", err)
	}
	// A leaf never outlives its issuer, so that at its end the whole chain is valid.
	if _, err := bundle.Verify(chain, x509.ExtKeyUsageServerAuth, leaf.NotAfter); err != nil {
		return nil, fmt.Errorf("loading an identity: %w", err)
	}
	identity := &Identity{ID: own, Bundle: bundle, Certificate: tls.Certificate{PrivateKey: key, Leaf: leaf}}
	for _, cert := range chain {
		identity.Certificate.Certificate = append(identity.Certificate.Certificate, cert.Raw)
	}
	return identity, nil
}
