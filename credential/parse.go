package credential

import (
	"bytes"
	"crypto/x509"
	"errors"
	"strings"
)

// maxChain is how many certificates a chain may have: each is sent in every handshake.
const maxChain = 10

// Parse reads what a source had. Whatever is wrong with several values is reported together; each error is a
// [Fault].
func Parse(in Input) (*Credential, error) {
	c := &Credential{names: Input{
		Certificate: in.Certificate.nameless(), Chain: in.Chain.nameless(), Key: in.Key.nameless(),
		Passphrase: in.Passphrase.nameless(), Bundle: in.Bundle.nameless(),
	}}
	var faults [4]error
	c.Chain, faults[0] = certificates(in.Certificate, &c.Notes)
	if len(in.Chain.Data) > 0 {
		var further []*x509.Certificate
		further, faults[1] = certificates(in.Chain, &c.Notes)
		c.Chain = append(c.Chain, further...)
	}
	c.key, faults[2] = parseKey(in.Key, in.Passphrase, &c.Notes)
	c.Roots, faults[3] = certificates(in.Bundle, &c.Notes)
	if err := errors.Join(faults[:]...); err != nil {
		return nil, err
	}
	if len(c.Chain) > maxChain {
		return nil, c.names.Certificate.fault("leave the leaf and the certificates between it and the root", "the chain has %d certificates, and at most %d are sent to peers", len(c.Chain), maxChain)
	}
	c.dropRoot()
	if err := c.readRoots(); err != nil {
		return nil, err
	}
	return c, nil
}

// certificates reads a value that holds certificates only.
func certificates(v Value, notes *[]Note) ([]*x509.Certificate, error) {
	text, err := repair(v, notes)
	if err != nil {
		return nil, err
	}
	blocks, err := decode(v, text)
	if err != nil {
		return nil, err
	}
	if err := onlyCertificates(v, blocks); err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for _, b := range blocks {
		cert, err := x509.ParseCertificate(b.der)
		if err != nil {
			return nil, v.notCertificate(b, err)
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

// onlyCertificates looks at the labels.
func onlyCertificates(v Value, blocks []block) error {
	certs := 0
	for _, b := range blocks {
		if b.label == "CERTIFICATE" {
			certs++
		}
	}
	for _, b := range blocks {
		what, known := labels[b.label]
		switch {
		case b.label == "CERTIFICATE":
		case strings.HasSuffix(b.label, "PRIVATE KEY") && certs > 0:
			return v.fault("put it into the value for the key alone", "the block at line %d is %s, beside certificates", b.line, what)
		case strings.HasSuffix(b.label, "PRIVATE KEY"):
			return v.fault("the two values may be swapped", "it holds %s where certificates belong", what)
		case b.label == "TRUSTED CERTIFICATE":
			return v.fault("convert it: openssl x509", "the block at line %d is %s", b.line, what)
		case b.label == "X509 CERTIFICATE":
			return v.fault("write CERTIFICATE in its BEGIN and END lines", "the block at line %d is %s", b.line, what)
		case b.label == "PKCS7" || b.label == "CMS":
			return v.fault("convert it: openssl pkcs7 -print_certs", "the block at line %d is %s, not a certificate", b.line, what)
		case known:
			return v.fault("put certificates there", "the block at line %d is %s, not a certificate", b.line, what)
		default:
			return v.fault("put certificates there", "the block at line %d has a label that is not known here", b.line)
		}
	}
	return nil
}

// notCertificate says why a block is no certificate. What is a private key under a false label is not looked at
// further.
func (v Value) notCertificate(b block, err error) error {
	if isKey(b.der) {
		return v.fault("put a certificate there, and treat the key as seen", "the block at line %d is a private key under the label of a certificate", b.line)
	}
	if _, bad := x509.ParseCertificateRequest(b.der); bad == nil {
		return v.fault("have it signed, and store the certificate", "the block at line %d is a certificate request under the label of a certificate", b.line)
	}
	why := err.Error()
	if strings.ContainsAny(why, "\"'\n") { // it quotes what it has read
		why = "x509: a field is malformed"
	}
	return v.fault("copy the certificate again", "the block at line %d is not a certificate (%s)", b.line, why)
}

// isKey tells whether bytes are a private key in one of its usual forms. What is longer than any key that is read is
// not looked at: the standard library computes on the numbers of an RSA key, and on long ones for seconds.
func isKey(der []byte) bool {
	if len(der) > maxKey {
		return false
	}
	for _, parse := range []func([]byte) error{
		func(der []byte) error { _, err := x509.ParsePKCS8PrivateKey(der); return err },
		func(der []byte) error { _, err := x509.ParsePKCS1PrivateKey(der); return err },
		func(der []byte) error { _, err := x509.ParseECPrivateKey(der); return err },
	} {
		if parse(der) == nil {
			return true
		}
	}
	return false
}

// dropRoot leaves a root of the bundle out of the chain: peers have it, and would not believe it if they had not.
func (c *Credential) dropRoot() {
	last := len(c.Chain) - 1
	for _, root := range c.Roots {
		if last > 0 && c.Chain[last].Equal(root) && bytes.Equal(root.RawIssuer, root.RawSubject) {
			c.Chain = c.Chain[:last]
			c.Notes = append(c.Notes, Note{Text: c.names.Certificate.Name + ": the root at its end was left out; peers have it"})
			return
		}
	}
}

// readRoots looks at what is in the bundle, and leaves out what is there twice.
func (c *Credential) readRoots() error {
	v := c.names.Bundle
	var roots []*x509.Certificate
	for n, cert := range c.Roots {
		switch {
		case contains(roots, cert):
			c.Notes = append(c.Notes, Note{Text: v.Name + ": a root that it holds twice was taken once"})
			continue
		case cert.Equal(c.Leaf()) && !cert.IsCA:
			return v.fault("put the root there that its issuers lead to", "it holds the leaf itself")
		case !cert.BasicConstraintsValid || !cert.IsCA:
			return v.fault("put roots there only", "its certificate %d is not one of an authority: %s", n+1, nameOf(cert))
		case !bytes.Equal(cert.RawIssuer, cert.RawSubject):
			return v.fault("proxies verify up to a root: put it there, and this one behind the leaf", "its certificate %d is not a root but issued by another: %s", n+1, nameOf(cert))
		}
		// First: a monstrous key would make the look at the signature take minutes.
		if err := strength(v, cert.PublicKey, nameOf(cert)); err != nil {
			return err
		}
		if !selfSigned(cert) {
			return v.fault("copy the root again", "its certificate %d names itself as its issuer and has not signed itself: %s", n+1, nameOf(cert))
		}
		roots = append(roots, cert)
	}
	c.Roots = roots
	return nil
}

func contains(certs []*x509.Certificate, wanted *x509.Certificate) bool {
	for _, cert := range certs {
		if cert.Equal(wanted) {
			return true
		}
	}
	return false
}

// selfSigned tells whether a certificate is a root. The signature of an old root may be one of SHA-1: it proves
// nothing, and nobody relies on it.
func selfSigned(cert *x509.Certificate) bool {
	if !bytes.Equal(cert.RawIssuer, cert.RawSubject) {
		return false
	}
	err := cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature)
	var old x509.InsecureAlgorithmError
	return err == nil || errors.As(err, &old)
}
