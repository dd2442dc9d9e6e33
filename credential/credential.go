// Package credential knows what has to be true of a certificate, its private key and the roots beside
// them before a proxy may have them, when they come from somewhere else: a secret store, an environment,
// an export. [Parse] repairs what a transport does to such texts and names everything else that is wrong
// with them, [Credential.Check] asks whether they belong together and will do, and [Credential.Write]
// makes them files, all in one step.
//
// What comes in is foreign: it is bounded, it is never quoted in an error, and what goes out is written
// anew from what was understood.
package credential

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"fmt"

	"countersign.dev/mtls"
)

// Value is one text of a secret. Its name and field are for people; see [Fault].
type Value struct {
	// Name is what the one who put the value there calls it: CERT_PEM.
	Name string
	// Field is the value's field in the JSON object that a secret often is: cert_pem. When Data turns out to
	// be the whole object, this field is taken.
	Field string
	Data  []byte
}

// Input is what a source had. Chain and Passphrase may be empty.
type Input struct {
	// Certificate is the leaf, then the certificates of its issuers, each followed by the one that issued it.
	Certificate Value
	// Chain continues Certificate, for sources that keep them apart.
	Chain Value
	Key   Value
	// Passphrase opens a Key that is encrypted. A line's end at its end is no part of it.
	Passphrase Value
	// Bundle is the roots that are believed.
	Bundle Value
}

// Credential is a certificate with what belongs to it, read and not yet checked. It is not changed after
// [Parse]; one goroutine at a time may use it.
type Credential struct {
	// Chain is the leaf and the certificates above it as they came, without what Notes mentions.
	Chain []*x509.Certificate
	// Roots is the trust bundle.
	Roots []*x509.Certificate
	// Notes says what was repaired and what was left out.
	Notes []Note

	key   crypto.Signer
	names Input // without data: what to call things in errors
}

// Note is something that was repaired or left out.
type Note struct {
	// Text is one sentence for people, with the value's name and nothing of the value.
	Text string
	// Usual is set for what nearly every value needs: a shell's $(...) takes the last line end.
	Usual bool
}

// Leaf is the workload's own certificate.
func (c *Credential) Leaf() *x509.Certificate { return c.Chain[0] }

// Fault is what is wrong with a value. It holds no part of a private key, a passphrase or a text that may be one.
// Of certificates it names serial, subject, issuer and times.
type Fault struct {
	// Name is the value's [Value.Name].
	Name string
	// What is wrong, and how to mend it.
	What, Fix string
}

// Error is one line.
func (f *Fault) Error() string {
	if f.Fix == "" {
		return f.Name + ": " + f.What
	}
	return f.Name + ": " + f.What + "; " + f.Fix
}

// fault makes a Fault of a value.
func (v Value) fault(fix, format string, args ...any) error {
	return &Fault{Name: v.Name, What: fmt.Sprintf(format, args...), Fix: fix}
}

// nameless is the value without its data.
func (v Value) nameless() Value { return Value{Name: v.Name, Field: v.Field} }

// nameOf is what an error calls a certificate.
func nameOf(cert *x509.Certificate) string {
	if len(cert.RawSubject) <= 2 { // an empty sequence
		return fmt.Sprintf("the certificate %s", mtls.Serial(cert))
	}
	return fmt.Sprintf("the certificate %s of %.200q", mtls.Serial(cert), cert.Subject.String())
}

// TLS is the credential as crypto/tls presents it.
func (c *Credential) TLS() *tls.Certificate {
	pair := &tls.Certificate{PrivateKey: c.key, Leaf: c.Leaf()}
	for _, cert := range c.Chain {
		pair.Certificate = append(pair.Certificate, cert.Raw)
	}
	return pair
}
