package issue

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"time"
)

// AuthorityConfig says what a CA's certificate is like.
type AuthorityConfig struct {
	// TrustDomain becomes the O of the subject; empty when it is not known yet.
	TrustDomain string
	// Now and Life say when the certificate is valid: from Now minus [ClockAllowance] to Now plus Life.
	Now  time.Time
	Life time.Duration
}

// NewRoot makes the self-signed certificate of a root CA: path length 1, for issuing CAs below it. It
// may sign certificates and CRLs, nothing else.
//
// There are no name constraints. Every verifier of this program compares the trust domain anyway, for
// each root; and a constraint on URIs has to be critical, which rustls (it refuses URI constraints)
// and mbed TLS (it does not know the extension) answer by refusing every certificate of the mesh.
func NewRoot(key crypto.Signer, cfg AuthorityConfig) (*x509.Certificate, error) {
	template, err := authorityTemplate("Root", key.Public(), cfg)
	if err != nil {
		return nil, fmt.Errorf("making a root certificate: %w", err)
	}
	template.MaxPathLen = 1
	root, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making a root certificate: %w", err)
	}
	return root, nil
}

// NewIssuing makes the certificate of an issuing CA below a root: path length 0. It may sign
// certificates and CRLs, nothing else, and never outlives its root.
func NewIssuing(public crypto.PublicKey, root *x509.Certificate, rootKey crypto.Signer, cfg AuthorityConfig) (*x509.Certificate, error) {
	template, err := authorityTemplate("Issuer", public, cfg)
	if err != nil {
		return nil, fmt.Errorf("making an issuing certificate: %w", err)
	}
	template.MaxPathLenZero = true
	template.AuthorityKeyId = root.SubjectKeyId
	if template.NotAfter.After(root.NotAfter) {
		template.NotAfter = root.NotAfter
	}
	if !template.NotBefore.Before(template.NotAfter) {
		return nil, fmt.Errorf("making an issuing certificate: %w: the root expired on %s", ErrIssuer, root.NotAfter.UTC().Format(time.RFC3339))
	}
	issuing, err := sign(template, root, public, rootKey)
	if err != nil {
		return nil, fmt.Errorf("making an issuing certificate: %w", err)
	}
	return issuing, nil
}

func authorityTemplate(role string, public crypto.PublicKey, cfg AuthorityConfig) (*x509.Certificate, error) {
	if err := checkPublicKey(public); err != nil {
		return nil, err
	}
	if cfg.Life < time.Second {
		return nil, fmt.Errorf("a life of %s is too short for a CA", cfg.Life)
	}
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	subjectKeyID, err := keyID(spki)
	if err != nil {
		return nil, err
	}
	// Part of the key's identifier stands in the name: two CAs of one name and different keys make
	// verifiers try the wrong one.
	subject := pkix.Name{CommonName: "Countersign " + role + " " + hex.EncodeToString(subjectKeyID[:4])}
	if cfg.TrustDomain != "" {
		subject.Organization = []string{cfg.TrustDomain}
	}
	return &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               subject,
		NotBefore:             cfg.Now.Add(-ClockAllowance).UTC().Truncate(time.Second),
		NotAfter:              cfg.Now.Add(cfg.Life).UTC().Truncate(time.Second),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		SubjectKeyId:          subjectKeyID,
	}, nil
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	if parent == template {
		parent = cert
	}
	if err := cert.CheckSignatureFrom(parent); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLint, err)
	}
	return cert, nil
}
