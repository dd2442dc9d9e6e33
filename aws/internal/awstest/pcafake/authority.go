package pcafake

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"strings"
	"time"
)

// configuration is what a CA is made of.
type configuration struct {
	KeyAlgorithm     string
	SigningAlgorithm string
	Subject          subject
}

// subject is ASN1Subject as far as it is used.
type subject struct {
	CommonName         string `json:",omitempty"`
	Country            string `json:",omitempty"`
	Locality           string `json:",omitempty"`
	Organization       string `json:",omitempty"`
	OrganizationalUnit string `json:",omitempty"`
	State              string `json:",omitempty"`
	SerialNumber       string `json:",omitempty"`
}

func (s subject) name() pkix.Name {
	one := func(text string) []string {
		if text == "" {
			return nil
		}
		return []string{text}
	}
	return pkix.Name{
		CommonName: s.CommonName, SerialNumber: s.SerialNumber, Country: one(s.Country), Locality: one(s.Locality),
		Organization: one(s.Organization), OrganizationalUnit: one(s.OrganizationalUnit), Province: one(s.State),
	}
}

// revocation says where a CA tells what it has revoked.
type revocation struct {
	CrlConfiguration  *crlConfiguration  `json:",omitempty"`
	OcspConfiguration *ocspConfiguration `json:",omitempty"`
}

type crlConfiguration struct {
	Enabled          bool
	ExpirationInDays int    `json:",omitempty"`
	CustomCname      string `json:",omitempty"`
	CustomPath       string `json:",omitempty"`
	S3BucketName     string `json:",omitempty"`
	S3ObjectACL      string `json:"S3ObjectAcl,omitempty"`
	CrlType          string `json:",omitempty"`
}

type ocspConfiguration struct {
	Enabled         bool
	OcspCustomCname string `json:",omitempty"`
}

// check refuses what AWS does.
func (r *revocation) check() error {
	if r == nil || r.CrlConfiguration == nil || !r.CrlConfiguration.Enabled {
		return nil
	}
	crl := r.CrlConfiguration
	switch {
	case crl.S3BucketName == "":
		return refuse("InvalidArgsException", "A CRL needs a bucket.")
	case crl.ExpirationInDays < 1 || crl.ExpirationInDays > 5000:
		return invalid("ExpirationInDays is between 1 and 5000.")
	case strings.Contains(crl.CustomCname, "://"):
		return refuse("InvalidArgsException", "The CNAME must not include a protocol prefix.")
	case crl.CrlType != "" && crl.CrlType != "COMPLETE" && crl.CrlType != "PARTITIONED":
		return invalid("CrlType is COMPLETE or PARTITIONED.")
	}
	return nil
}

// generate makes a key of a CA.
func generate(algorithm string) (crypto.Signer, error) {
	switch algorithm {
	case "EC_prime256v1":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "EC_secp384r1":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "EC_secp521r1":
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "RSA_2048":
		return rsa.GenerateKey(rand.Reader, 2048)
	case "RSA_3072":
		return rsa.GenerateKey(rand.Reader, 3072)
	case "RSA_4096":
		return rsa.GenerateKey(rand.Reader, 4096)
	default:
		return nil, invalid("The key algorithm %q is not one of this double.", algorithm)
	}
}

func (f *Fake) create(in input) (any, error) {
	if in.UsageMode == "" {
		in.UsageMode = generalPurpose
	}
	switch {
	case in.CertificateAuthorityConfiguration == nil:
		return nil, invalid("CertificateAuthorityConfiguration must not be null.")
	case in.CertificateAuthorityType != typeRoot && in.CertificateAuthorityType != typeSub:
		return nil, invalid("CertificateAuthorityType is ROOT or SUBORDINATE.")
	case in.UsageMode != generalPurpose && in.UsageMode != shortLived:
		return nil, invalid("UsageMode is GENERAL_PURPOSE or SHORT_LIVED_CERTIFICATE.")
	case len(in.IdempotencyToken) > 36:
		return nil, invalid("IdempotencyToken has at most 36 characters.")
	}
	if err := in.RevocationConfiguration.check(); err != nil {
		return nil, err
	}
	now := f.now()
	if made, ok := f.tokens[in.IdempotencyToken]; ok && in.IdempotencyToken != "" && now.Sub(made.at) < idempotent {
		return output{"CertificateAuthorityArn": made.arn}, nil
	}
	algorithm, err := signatureOf(in.CertificateAuthorityConfiguration.SigningAlgorithm)
	if err != nil {
		return nil, err
	}
	key, err := generate(in.CertificateAuthorityConfiguration.KeyAlgorithm)
	if err != nil {
		return nil, err
	}
	if err := sameFamily(algorithm, key); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: in.CertificateAuthorityConfiguration.Subject.name(), SignatureAlgorithm: algorithm,
	}, key)
	if err != nil {
		return nil, err
	}
	a := &authority{
		arn:  fmt.Sprintf("arn:aws:acm-pca:%s:%s:certificate-authority/%s", f.o.Region, f.o.Account, randomID()),
		kind: in.CertificateAuthorityType, mode: in.UsageMode, config: *in.CertificateAuthorityConfiguration,
		revocation: in.RevocationConfiguration, key: key, csr: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
		status: creating, pending: f.o.PendingPolls, created: now, changed: now, tags: make(map[string]string),
		tokens: make(map[string]token), certificates: make(map[string]*certificate),
	}
	for _, t := range in.Tags {
		a.tags[t.Key] = t.Value
	}
	f.authorities[a.arn] = a
	f.tokens[in.IdempotencyToken] = token{a.arn, now}
	return output{"CertificateAuthorityArn": a.arn}, nil
}

// look counts a look at a CA that is being made.
func (a *authority) look() {
	if a.status != creating {
		return
	}
	if a.pending > 0 {
		a.pending--
		return
	}
	a.status = waiting
}

func (f *Fake) describe(in input) (any, error) {
	a, err := f.findDeleted(in.CertificateAuthorityArn)
	if err != nil {
		return nil, err
	}
	a.look()
	return output{"CertificateAuthority": f.shown(a)}, nil
}

// shown is a CA as Describe and List show it.
func (f *Fake) shown(a *authority) output {
	account := strings.Split(a.arn, ":")[4]
	shown := output{
		"Arn": a.arn, "OwnerAccount": account, "CreatedAt": seconds(a.created), "LastStateChangeAt": seconds(a.changed),
		"Type": a.kind, "Status": a.status, "UsageMode": a.mode, "CertificateAuthorityConfiguration": a.config,
		"KeyStorageSecurityStandard": "FIPS_140_2_LEVEL_3_OR_HIGHER",
	}
	if a.revocation != nil {
		shown["RevocationConfiguration"] = a.revocation
	}
	if a.cert != nil {
		shown["Serial"], shown["NotBefore"], shown["NotAfter"] = a.cert.SerialNumber.String(), seconds(a.cert.NotBefore), seconds(a.cert.NotAfter)
	}
	if a.status == deleted {
		shown["RestorableUntil"] = seconds(a.changed.AddDate(0, 0, 30))
	}
	return shown
}

func (f *Fake) getCSR(in input) (any, error) {
	a, err := f.find(in.CertificateAuthorityArn)
	if err != nil {
		return nil, err
	}
	a.look()
	if a.status == creating {
		return nil, refuse("RequestInProgressException", "The request to create the certificate authority is still in progress.")
	}
	return output{"Csr": string(a.csr)}, nil
}

func (f *Fake) getAuthorityCertificate(in input) (any, error) {
	a, err := f.find(in.CertificateAuthorityArn)
	if err != nil {
		return nil, err
	}
	if a.cert == nil {
		return nil, refuse("InvalidStateException", "The certificate authority %s is not in a valid state: %s.", a.arn, a.status)
	}
	out := output{"Certificate": encode(a.cert)}
	if len(a.chain) > 0 {
		out["CertificateChain"] = encode(a.chain...)
	}
	return out, nil
}

func (f *Fake) importCertificate(in input) (any, error) {
	a, err := f.find(in.CertificateAuthorityArn)
	if err != nil {
		return nil, err
	}
	if a.status != waiting && a.status != active {
		return nil, refuse("InvalidStateException", "The certificate authority is in the state %s.", a.status)
	}
	cert, err := parseOne(in.Certificate)
	if err != nil {
		return nil, refuse("MalformedCertificateException", "The certificate cannot be read: %v", err)
	}
	chain, err := parseAll(in.CertificateChain)
	if err != nil {
		return nil, refuse("MalformedCertificateException", "The chain cannot be read: %v", err)
	}
	if !samePublicKey(cert.PublicKey, a.key.Public()) {
		return nil, refuse("CertificateMismatchException", "The certificate authority certificate you are importing does not comply with the CSR.")
	}
	now := f.now()
	switch {
	case !cert.IsCA || !cert.BasicConstraintsValid:
		return nil, refuse("MalformedCertificateException", "The certificate is not a CA's.")
	case now.After(cert.NotAfter) || now.Before(cert.NotBefore):
		return nil, refuse("MalformedCertificateException", "The certificate is not valid now.")
	case a.kind == typeRoot && len(chain) > 0:
		return nil, refuse("InvalidRequestException", "A root CA's certificate has no chain.")
	case a.kind == typeRoot && cert.CheckSignatureFrom(cert) != nil:
		return nil, refuse("MalformedCertificateException", "A root CA's certificate is signed by itself.")
	case a.kind == typeSub && len(chain) == 0:
		return nil, refuse("InvalidRequestException", "A subordinate CA's certificate needs its chain.")
	}
	child := cert
	for _, parent := range chain {
		if child.CheckSignatureFrom(parent) != nil {
			return nil, refuse("MalformedCertificateException", "The chain does not lead from the certificate to a root.")
		}
		child = parent
	}
	if child.CheckSignatureFrom(child) != nil {
		return nil, refuse("MalformedCertificateException", "The chain does not end in a root.")
	}
	a.cert, a.chain, a.status, a.changed = cert, chain, active, now
	return nil, nil
}

func (f *Fake) update(in input) (any, error) {
	a, err := f.find(in.CertificateAuthorityArn)
	if err != nil {
		return nil, err
	}
	if in.RevocationConfiguration != nil {
		if err := in.RevocationConfiguration.check(); err != nil {
			return nil, err
		}
		a.revocation = in.RevocationConfiguration
	}
	if in.Status == "" {
		return nil, nil
	}
	if in.Status != active && in.Status != disabled {
		return nil, invalid("Status is ACTIVE or DISABLED.")
	}
	if a.status != active && a.status != disabled {
		return nil, refuse("InvalidStateException", "The certificate authority is in the state %s.", a.status)
	}
	a.status, a.changed = in.Status, f.now()
	return nil, nil
}

func (f *Fake) remove(in input) (any, error) {
	a, err := f.find(in.CertificateAuthorityArn)
	if err != nil {
		return nil, err
	}
	if a.status == active {
		return nil, refuse("InvalidStateException", "The certificate authority is ACTIVE; it has to be disabled first.")
	}
	a.status, a.changed = deleted, f.now()
	return nil, nil
}

func (f *Fake) restore(in input) (any, error) {
	a, err := f.findDeleted(in.CertificateAuthorityArn)
	if err != nil {
		return nil, err
	}
	if a.status != deleted {
		return nil, refuse("InvalidStateException", "The certificate authority is in the state %s.", a.status)
	}
	a.status, a.changed = disabled, f.now()
	if a.cert == nil {
		a.status = waiting
	}
	return nil, nil
}

// parseOne reads one certificate in PEM.
func parseOne(text []byte) (*x509.Certificate, error) {
	certs, err := parseAll(text)
	if err == nil && len(certs) != 1 {
		err = fmt.Errorf("it holds %d certificates", len(certs))
	}
	if err != nil {
		return nil, err
	}
	return certs[0], nil
}

func parseAll(text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for len(bytes.TrimSpace(text)) > 0 {
		block, rest := pem.Decode(text)
		if block == nil || block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("it is not certificates in PEM")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs, text = append(certs, cert), rest
	}
	return certs, nil
}

func samePublicKey(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(x crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

// year is how long helpers let a CA live.
const year = 365 * 24 * time.Hour
