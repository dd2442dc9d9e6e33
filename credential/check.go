package credential

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"slices"
	"strings"
	"time"

	"countersign.dev/mtls"
)

// Expect is what a credential has to fulfil.
type Expect struct {
	// Now is when it has to be valid.
	Now time.Time
	// MinRemaining is how long every certificate of the chain, and a root that it leads to, has to be valid from Now on.
	MinRemaining time.Duration
	// ID is the SPIFFE ID that the leaf has to have; empty for any or none.
	ID string
	// DNSIdentity is the DNS name that the leaf has to have instead of a SPIFFE ID: as the only part of its subject, its
	// common name, and among its alternative names, of which none is a URI. It is empty where a SPIFFE ID counts.
	DNSIdentity string
	// DNSNames are names that the leaf has to be valid for (RFC 6125).
	DNSNames []string
}

// Check tells whether leaf, key, chain and roots belong together and are what is expected: the key's and the
// algorithms' strength, the leaf's purpose, the order of the chain and its way to a root, validity, names. The
// error is the first [Fault].
func (c *Credential) Check(want Expect) error {
	for _, check := range []func() error{
		c.checkKey,
		c.checkLeaf,
		c.checkOrder,
		c.checkTop,
		func() error { return c.checkValidity(want) },
		func() error { return c.checkPath(want.Now) },
		func() error { return c.checkNames(want) },
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// checkKey asks whether the key is the leaf's, and strong.
func (c *Credential) checkKey() error {
	public := c.key.Public()
	if err := strength(c.names.Key, public, "the private key"); err != nil {
		return err
	}
	for n, cert := range c.Chain {
		if equal(cert.PublicKey, public) {
			if n == 0 {
				return nil
			}
			return c.names.Certificate.fault("put the leaf first, then its issuer, and so on", "the leaf is not first: the key belongs to certificate %d", n+1)
		}
	}
	return c.names.Key.fault("store the two that were made together", "the key does not belong to %s in %s", nameOf(c.Leaf()), c.names.Certificate.Name)
}

func equal(a, b crypto.PublicKey) bool {
	public, ok := a.(interface{ Equal(x crypto.PublicKey) bool })
	return ok && public.Equal(b)
}

// checkLeaf asks whether the leaf is one, and one for TLS.
func (c *Credential) checkLeaf() error {
	v, leaf := c.names.Certificate, c.Leaf()
	switch {
	case leaf.IsCA:
		return v.fault("issue a leaf, and keep the authority's key away from here", "the leaf has the CA flag: it could sign for anybody")
	case leaf.KeyUsage&x509.KeyUsageCertSign != 0:
		return v.fault("issue a leaf with the key usage digitalSignature", "the leaf's key usage allows it to sign certificates")
	case leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return v.fault("issue it with digitalSignature", "the leaf's key usage does not allow signatures, which TLS needs")
	case !allows(leaf, x509.ExtKeyUsageServerAuth) && allows(leaf, x509.ExtKeyUsageClientAuth):
		return v.fault("issue it with serverAuth too", "the leaf is for clients only: its extended key usage has no serverAuth, and the proxy's callers would refuse it")
	case !allows(leaf, x509.ExtKeyUsageServerAuth):
		return v.fault("issue it with serverAuth and clientAuth", "the leaf is not for TLS: its extended key usage has neither serverAuth nor clientAuth")
	case bytes.Equal(leaf.RawIssuer, leaf.RawSubject) && selfSigned(leaf):
		return v.fault("have it issued by an authority whose root is in "+c.names.Bundle.Name, "the leaf is self-signed")
	}
	return nil
}

// allows tells whether a certificate may be used so (RFC 5280, section 4.2.1.12): one that says nothing may.
func allows(cert *x509.Certificate, usage x509.ExtKeyUsage) bool {
	return len(cert.ExtKeyUsage)+len(cert.UnknownExtKeyUsage) == 0 ||
		slices.Contains(cert.ExtKeyUsage, usage) || slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// weakSignatures are algorithms that can be forged.
var weakSignatures = []x509.SignatureAlgorithm{
	x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.DSAWithSHA1, x509.DSAWithSHA256,
}

// checkOrder asks whether each certificate was issued by the one behind it.
func (c *Credential) checkOrder() error {
	v := c.names.Certificate
	for n, cert := range c.Chain {
		if slices.Contains(weakSignatures, cert.SignatureAlgorithm) {
			return v.fault("issue it with SHA-256 or better", "the signature of certificate %d is made with %s, which can be forged", n+1, cert.SignatureAlgorithm)
		}
		if contains(c.Chain[:n], cert) {
			return v.fault("leave it once", "certificate %d is there twice: %s", n+1, nameOf(cert))
		}
		if n > 0 && (!cert.BasicConstraintsValid || !cert.IsCA) {
			return v.fault("leave the leaf and its issuers", "certificate %d stands among the issuers and has no CA flag: %s", n+1, nameOf(cert))
		}
		if n > 0 && cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0 {
			return v.fault("issue it with keyCertSign", "certificate %d stands among the issuers and may not sign certificates: %s", n+1, nameOf(cert))
		}
		if n > 0 {
			if err := strength(v, cert.PublicKey, nameOf(cert)); err != nil {
				return err
			}
		}
	}
	for n := range len(c.Chain) - 1 {
		if !issued(c.Chain[n+1], c.Chain[n]) {
			return c.disorder(n)
		}
	}
	return nil
}

// issued tells whether parent has signed child.
func issued(parent, child *x509.Certificate) bool {
	return bytes.Equal(child.RawIssuer, parent.RawSubject) && child.CheckSignatureFrom(parent) == nil
}

// disorder says why the certificate behind number n (from 0) is not its issuer.
func (c *Credential) disorder(n int) error {
	v, child, next := c.names.Certificate, c.Chain[n], c.Chain[n+1]
	if bytes.Equal(child.RawIssuer, next.RawSubject) {
		return v.fault("store the chain that came with the leaf", "certificate %d has the name of the issuer of certificate %d, and has not signed it: another key, or a damaged signature", n+2, n+1)
	}
	for m, cert := range c.Chain {
		if m != n && issued(cert, child) {
			return v.fault("put each issuer behind what it issued", "the chain is in the wrong order: certificate %d was issued by certificate %d, not by the next one", n+1, m+1)
		}
	}
	for _, root := range c.Roots {
		if issued(root, child) {
			return v.fault("remove it", "certificate %d does not belong to the chain, which ends before it: %s", n+2, nameOf(next))
		}
	}
	return v.fault("put it between them", "an intermediate is missing: certificate %d was issued by %.200q, and the next one is %s", n+1, child.Issuer.String(), nameOf(next))
}

// checkTop asks whether a root of the bundle has signed the end of the chain.
func (c *Credential) checkTop() error {
	last := c.Chain[len(c.Chain)-1]
	if len(c.Chain) > 1 && selfSigned(last) {
		return c.names.Bundle.fault("put the root there that the chain leads to", "the root at the end of the chain is not in it: %s", nameOf(last))
	}
	named := false
	for _, root := range c.Roots {
		if issued(root, last) {
			return nil
		}
		named = named || bytes.Equal(root.RawSubject, last.RawIssuer)
	}
	if named {
		return c.names.Bundle.fault("put the root there that the chain leads to, beside the old one", "it has a root %.200q, with another key than the one that signed the chain", last.Issuer.String())
	}
	return c.names.Bundle.fault("put that root there, or the missing intermediate into "+c.names.Certificate.Name, "it has no root %.200q, which issued the last certificate of the chain", last.Issuer.String())
}

// checkValidity looks at the clock, for the chain and for the root that it ends in.
func (c *Credential) checkValidity(want Expect) error {
	for n, cert := range c.Chain {
		v, which := c.names.Certificate, "the leaf"
		if n > 0 {
			which = "the issuer, " + nameOf(cert)
		}
		if err := validity(v, which, cert, want.Now); err != nil {
			return err
		}
		if err := remains(v, "rotate it first", which, cert, want); err != nil {
			return err
		}
	}
	return c.checkRoots(want)
}

// checkRoots asks for one root of the chain that is valid for long enough: peers need no more. Of several that are not,
// the error is about the one that comes closest.
func (c *Credential) checkRoots(want Expect) error {
	last := c.Chain[len(c.Chain)-1]
	var best error
	closest := time.Time{}
	for _, root := range c.Roots {
		if !issued(root, last) {
			continue
		}
		which := "the root, " + nameOf(root)
		err := validity(c.names.Bundle, which, root, want.Now)
		if err == nil {
			err = remains(c.names.Bundle, "put the next root beside it, and have the chain issued below that one", which, root, want)
		}
		if err == nil {
			return nil
		}
		if best == nil || root.NotAfter.After(closest) {
			best, closest = err, root.NotAfter
		}
	}
	return best
}

// remains asks whether a certificate is valid for as long as is expected.
func remains(v Value, fix, which string, cert *x509.Certificate, want Expect) error {
	if left := cert.NotAfter.Sub(want.Now); left < want.MinRemaining {
		return v.fault(fix, "%s is valid for %s more, to %s, and at least %s are asked for", which, left.Round(time.Second), stamp(cert.NotAfter), want.MinRemaining)
	}
	return nil
}

func validity(v Value, which string, cert *x509.Certificate, now time.Time) error {
	switch {
	case now.Before(cert.NotBefore):
		return v.fault("is this machine's clock right?", "%s is not valid yet: it begins at %s, and it is %s", which, stamp(cert.NotBefore), stamp(now))
	case now.After(cert.NotAfter):
		return v.fault("issue another", "%s has expired at %s, and it is %s", which, stamp(cert.NotAfter), stamp(now))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// checkPath asks the standard library, which knows what was not looked at: path lengths, name constraints, what issuers
// may issue for, critical extensions.
func (c *Credential) checkPath(now time.Time) error {
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, root := range c.Roots {
		roots.AddCert(root)
	}
	for _, cert := range c.Chain[1:] {
		between.AddCert(cert)
	}
	_, err := c.Leaf().Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return c.names.Certificate.fault("ask the authority for another chain", "peers would refuse the chain: %.300v", err)
	}
	return nil
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// checkNames compares the leaf's names with the expected ones.
func (c *Credential) checkNames(want Expect) error {
	v, leaf := c.names.Certificate, c.Leaf()
	if want.ID != "" {
		var ids []string
		for _, uri := range leaf.URIs {
			ids = append(ids, uri.String())
		}
		switch {
		case len(ids) == 0:
			return v.fault("issue it with that URI", "the leaf has no SPIFFE ID, and %s is expected", want.ID)
		case len(ids) > 1:
			return v.fault("issue it with one", "the leaf has %d URIs, and a SPIFFE ID stands alone", len(ids))
		case ids[0] != want.ID:
			return v.fault("is it another service's certificate?", "the leaf has the SPIFFE ID %.300q, and %s is expected", ids[0], want.ID)
		}
	}
	if want.DNSIdentity != "" {
		if err := mtls.Named(leaf, want.DNSIdentity); err != nil {
			return v.fault("is it another service's certificate, or of another authority? Proxies know the service by that name, as the whole subject and as an alternative name, and by no URI",
				"the leaf is not that of %s: %v", want.DNSIdentity, err)
		}
	}
	for _, name := range want.DNSNames {
		if leaf.VerifyHostname(name) == nil {
			continue
		}
		if !hasAlternativeNames(leaf) {
			return v.fault("issue it with the name as a subject alternative name; the subject counts for nobody", "the leaf has no subject alternative name, and %s is expected", name)
		}
		return v.fault("is it another service's certificate?", "the leaf is not for %s: it has the DNS names %s", name, quoted(leaf.DNSNames))
	}
	return nil
}

func hasAlternativeNames(cert *x509.Certificate) bool {
	for _, extension := range cert.Extensions {
		if extension.Id.Equal(oidSubjectAltName) {
			return true
		}
	}
	return false
}

// quoted lists names of a certificate for a message: they may hold anything.
func quoted(names []string) string {
	const most = 8
	var list []string
	for _, name := range names[:min(len(names), most)] {
		list = append(list, fmt.Sprintf("%.100q", name))
	}
	if len(names) > most {
		list = append(list, fmt.Sprintf("and %d more", len(names)-most))
	}
	return strings.Join(list, ", ")
}
