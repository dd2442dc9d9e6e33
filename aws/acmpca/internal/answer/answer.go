// Package answer knows whether what a private CA has answered is what it was asked for. It asks nobody: bytes in, a chain or
// a refusal out.
package answer

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"countersign.dev/id"
	"countersign.dev/mtls"
)

// allowance is how far the clocks of AWS and of this machine may be apart, and how far an end may be from the one that was
// asked for.
const allowance = time.Minute

// Authority is a CA: its certificate, what lies between it and its root, and the root.
type Authority struct {
	Issuer  *x509.Certificate
	Between []*x509.Certificate
	Root    *x509.Certificate
}

// ParseAuthority reads a CA's certificate and the chain above it, as the service gives them, and follows the chain to a
// root that is signed by itself.
func ParseAuthority(certificate, chain []byte) (*Authority, error) {
	certs, err := mtls.ParseCertificates(certificate)
	if err != nil {
		return nil, fmt.Errorf("the CA's certificate: %w", err)
	}
	if len(certs) != 1 {
		return nil, fmt.Errorf("the CA's certificate: there are %d of them", len(certs))
	}
	if len(bytes.TrimSpace(chain)) > 0 {
		above, err := mtls.ParseCertificates(chain)
		if err != nil {
			return nil, fmt.Errorf("the chain of the CA's certificate: %w", err)
		}
		certs = append(certs, above...)
	}
	for i, cert := range certs {
		parent := certs[min(i+1, len(certs)-1)]
		if !cert.BasicConstraintsValid || !cert.IsCA {
			return nil, fmt.Errorf("the chain of the CA's certificate: %q is not a CA", cert.Subject)
		}
		if err := cert.CheckSignatureFrom(parent); err != nil {
			return nil, fmt.Errorf("the chain of the CA's certificate does not lead to a root: %q is not signed by %q: %w", cert.Subject, parent.Subject, err)
		}
	}
	last := len(certs) - 1
	return &Authority{Issuer: certs[0], Between: certs[min(1, last):last], Root: certs[last]}, nil
}

// Bundle is the root in PEM.
func (a *Authority) Bundle() []byte { return encode(a.Root) }

// Wanted is what a certificate was asked for.
type Wanted struct {
	Key      crypto.PublicKey // that of the request
	Identity id.ID
	DNSNames []string
	NotAfter time.Time
	Now      time.Time
}

// Chain gives a leaf with the CAs between it and the root, PEM, the root left out, when it is what was wanted, and signed by
// the CA. Nothing of the chain that came with it is used: the CA's own is known.
func (a *Authority) Chain(certificate []byte, want Wanted) ([]byte, error) {
	certs, err := mtls.ParseCertificates(certificate)
	if err != nil {
		return nil, err
	}
	if len(certs) != 1 {
		return nil, fmt.Errorf("there are %d certificates where one was asked for", len(certs))
	}
	leaf := certs[0]
	if err := want.names(leaf); err != nil {
		return nil, err
	}
	if err := want.form(leaf); err != nil {
		return nil, err
	}
	if err := a.signed(leaf, want.Now); err != nil {
		return nil, err
	}
	chain := []*x509.Certificate{leaf}
	if a.Issuer != a.Root {
		chain = append(append(chain, a.Issuer), a.Between...)
	}
	return encode(chain...), nil
}

// names compares whose certificate it is.
func (w Wanted) names(leaf *x509.Certificate) error {
	switch subject := mtls.Subject(w.Identity); {
	case !samePublicKey(leaf.PublicKey, w.Key):
		return errors.New("it is for another key than that of the request")
	case len(leaf.URIs) != 1 || leaf.URIs[0].String() != w.Identity.String():
		return fmt.Errorf("its URIs are %.300q, and %s was asked for", leaf.URIs, w.Identity)
	case !sameNames(leaf.DNSNames, w.DNSNames):
		return fmt.Errorf("its DNS names are %.300q, and %.300q were asked for", leaf.DNSNames, w.DNSNames)
	case len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0:
		return errors.New("it has IP or e-mail addresses, which were not asked for")
	case leaf.Subject.String() != subject.String():
		return fmt.Errorf("its subject is %.300q, and %q was asked for: proxies know callers by it", leaf.Subject, subject)
	}
	return nil
}

// form compares what it is good for, and how long.
func (w Wanted) form(leaf *x509.Certificate) error {
	switch {
	case leaf.IsCA:
		return errors.New("it is a CA's")
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return errors.New("its key may not sign, which TLS needs (key usage)")
	case !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		return errors.New("it is not for servers and clients of TLS both (extended key usage); use the template EndEntityCertificate/V1")
	case leaf.NotAfter.Sub(w.NotAfter).Abs() > allowance:
		return fmt.Errorf("it is valid to %s, and %s was asked for", leaf.NotAfter.UTC().Format(time.RFC3339), w.NotAfter.UTC().Format(time.RFC3339))
	case w.Now.Before(leaf.NotBefore.Add(-allowance)):
		return fmt.Errorf("it is not valid before %s, and by this machine's clock it is %s: see that the clock is right", leaf.NotBefore.UTC().Format(time.RFC3339), w.Now.UTC().Format(time.RFC3339))
	case !w.Now.Before(leaf.NotAfter):
		return fmt.Errorf("it was valid to %s, and by this machine's clock it is %s: see that the clock is right", leaf.NotAfter.UTC().Format(time.RFC3339), w.Now.UTC().Format(time.RFC3339))
	}
	return nil
}

// signed makes sure that the CA, and no other, has signed a leaf.
func (a *Authority) signed(leaf *x509.Certificate, now time.Time) error {
	if err := leaf.CheckSignatureFrom(a.Issuer); err != nil {
		return fmt.Errorf("it is not signed by the CA that was asked, %q: %w", a.Issuer.Subject, err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(a.Root)
	for _, cert := range append([]*x509.Certificate{a.Issuer}, a.Between...) {
		between.AddCert(cert)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: later(now, leaf.NotBefore), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("it does not lead to the CA's root: %w", err)
	}
	return nil
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func samePublicKey(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(x crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

func sameNames(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

func encode(certs ...*x509.Certificate) []byte {
	var text []byte
	for _, cert := range certs {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return text
}

// BelongsTo tells whether a CA's certificate is the answer to its own request, and can be used now.
func (a *Authority) BelongsTo(csr *x509.CertificateRequest, now time.Time) error {
	switch cert := a.Issuer; {
	case !samePublicKey(cert.PublicKey, csr.PublicKey):
		return errors.New("the certificate is for another key than that of the CA's request; give the one that was made for it")
	case cert.Subject.String() != csr.Subject.String(): // which may be encoded in another way
		return fmt.Errorf("the certificate has the subject %q, and the CA's request %q", cert.Subject, csr.Subject)
	case now.Before(cert.NotBefore) || !now.Before(cert.NotAfter):
		return fmt.Errorf("the certificate is valid from %s to %s, which is not now", cert.NotBefore.UTC().Format(time.RFC3339), cert.NotAfter.UTC().Format(time.RFC3339))
	case cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return errors.New("the certificate is not for signing certificates (key usage)")
	case !now.Before(a.Root.NotAfter):
		return fmt.Errorf("the root %q has expired", a.Root.Subject)
	}
	return nil
}
