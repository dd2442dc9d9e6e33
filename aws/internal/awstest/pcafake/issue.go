package pcafake

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // RFC 5280 section 4.2.1.2 makes key identifiers of it
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"time"
)

// validity is a period or a point in time.
type validity struct {
	Type  string
	Value int64
}

// at is the time that a validity says.
func (v *validity) at(now time.Time) (time.Time, error) {
	if v == nil || v.Value < 1 {
		return time.Time{}, invalid("1 validation error detected: Value at 'validity.value' failed to satisfy constraint: Member must have value greater than or equal to 1")
	}
	switch v.Type {
	case "DAYS":
		return now.AddDate(0, 0, int(v.Value)), nil
	case "MONTHS":
		return now.AddDate(0, int(v.Value), 0), nil
	case "YEARS":
		return now.AddDate(int(v.Value), 0, 0), nil
	case "ABSOLUTE":
		return time.Unix(v.Value, 0).UTC(), nil
	case "END_DATE":
		text := fmt.Sprint(v.Value)
		form := map[int]string{12: "060102150405", 14: "20060102150405"}[len(text)]
		at, err := time.Parse(form, text)
		if form == "" || err != nil {
			return time.Time{}, invalid("END_DATE is written YYYYMMDDHHMMSS or YYMMDDHHMMSS.")
		}
		return at, nil
	default:
		return time.Time{}, invalid("Validity.Type %q is none.", v.Type)
	}
}

// signatureOf is an algorithm by AWS's name.
func signatureOf(name string) (x509.SignatureAlgorithm, error) {
	algorithm, ok := map[string]x509.SignatureAlgorithm{
		"SHA256WITHECDSA": x509.ECDSAWithSHA256, "SHA384WITHECDSA": x509.ECDSAWithSHA384, "SHA512WITHECDSA": x509.ECDSAWithSHA512,
		"SHA256WITHRSA": x509.SHA256WithRSA, "SHA384WITHRSA": x509.SHA384WithRSA, "SHA512WITHRSA": x509.SHA512WithRSA,
		"SHA256WITHRSA_PSS": x509.SHA256WithRSAPSS, "SHA384WITHRSA_PSS": x509.SHA384WithRSAPSS, "SHA512WITHRSA_PSS": x509.SHA512WithRSAPSS,
	}[name]
	if !ok {
		return 0, invalid("The signing algorithm %q is not one of this double.", name)
	}
	return algorithm, nil
}

// sameFamily refuses an algorithm that a key cannot sign with.
func sameFamily(algorithm x509.SignatureAlgorithm, key crypto.Signer) error {
	_, curve := key.Public().(*ecdsa.PublicKey)
	if curve != strings.HasPrefix(algorithm.String(), "ECDSA") {
		return refuse("InvalidArgsException", "The specified signing algorithm family does not match the algorithm family of the CA's secret key.")
	}
	return nil
}

// parseCSR refuses requests as AWS does.
func parseCSR(text []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(text)
	if block == nil || !strings.HasSuffix(block.Type, "CERTIFICATE REQUEST") {
		return nil, refuse("MalformedCSRException", "The certificate signing request cannot be parsed.")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || csr.CheckSignature() != nil {
		return nil, refuse("MalformedCSRException", "The certificate signing request cannot be parsed, or its signature does not hold.")
	}
	switch csr.PublicKey.(type) {
	case *rsa.PublicKey, *ecdsa.PublicKey:
	default:
		return nil, refuse("MalformedCSRException", "The key of the certificate signing request is neither RSA nor ECDSA.")
	}
	if len(csr.Subject.Names) == 0 {
		for _, extension := range csr.Extensions {
			if extension.Id.Equal(oidSAN) && extension.Critical {
				return csr, nil
			}
		}
		return nil, refuse("MalformedCSRException", "CSR must mark the SAN extension critical when it has an empty subject")
	}
	return csr, nil
}

var oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}

func (f *Fake) issue(in input) (any, error) {
	a, err := f.find(in.CertificateAuthorityArn)
	if err != nil {
		return nil, err
	}
	if len(in.IdempotencyToken) > 36 {
		return nil, invalid("IdempotencyToken has at most 36 characters.")
	}
	now := f.now()
	if made, ok := a.tokens[in.IdempotencyToken]; ok && in.IdempotencyToken != "" && now.Sub(made.at) < idempotent {
		return output{"CertificateArn": made.arn}, nil
	}
	csr, err := parseCSR(in.Csr)
	if err != nil {
		return nil, err
	}
	if in.TemplateArn == "" {
		in.TemplateArn = templateARN + "EndEntityCertificate/V1"
	}
	profile, err := parseTemplate(in.TemplateArn)
	if err != nil {
		return nil, err
	}
	template, err := f.template(a, profile, csr, in)
	if err != nil {
		return nil, err
	}
	arn := a.arn + "/certificate/" + strings.ReplaceAll(randomID(), "-", "")
	made := &certificate{pending: f.o.PendingPolls}
	a.certificates[arn], a.tokens[in.IdempotencyToken] = made, token{arn, now}
	if f.o.Fail != nil && f.o.Fail(csr) {
		return output{"CertificateArn": arn}, nil
	}
	if f.o.Tamper != nil {
		f.o.Tamper(template)
	}
	if made.cert, made.chain, err = a.sign(template, profile); err != nil {
		return nil, err
	}
	if !profile.ca {
		f.issued++
	}
	return output{"CertificateArn": arn}, nil
}

// template writes down what is to be signed, and refuses what AWS would not sign.
func (f *Fake) template(a *authority, profile profile, csr *x509.CertificateRequest, in input) (*x509.Certificate, error) {
	now := f.now()
	own := profile.root
	switch {
	case own && (a.kind != typeRoot || !samePublicKey(csr.PublicKey, a.key.Public())):
		return nil, refuse("InvalidArgsException", "A root CA's certificate is issued for its own request only.")
	case own && a.status != waiting && a.status != active, !own && a.status != active:
		return nil, refuse("InvalidStateException", "The certificate authority %s is in the state %s.", a.arn, a.status)
	}
	algorithm, err := signatureOf(in.SigningAlgorithm)
	if err != nil {
		return nil, err
	}
	if err := sameFamily(algorithm, a.key); err != nil {
		return nil, err
	}
	end, err := in.Validity.at(now)
	if err != nil {
		return nil, err
	}
	begin := now.Add(-time.Hour)
	if in.ValidityNotBefore != nil {
		if begin, err = in.ValidityNotBefore.at(now); err != nil {
			return nil, err
		}
	}
	switch {
	case !end.After(now) || !end.After(begin):
		return nil, invalid("The certificate validity specified ends before it begins.")
	case !own && end.After(a.cert.NotAfter):
		return nil, invalid("The certificate validity specified exceeds the certificate authority validity.")
	case !own && a.mode == shortLived && end.Sub(now) > 7*24*time.Hour:
		return nil, invalid("The certificate validity specified exceeds the maximum of 7 days of a certificate authority with the usage mode SHORT_LIVED_CERTIFICATE.")
	}
	template := &x509.Certificate{
		SerialNumber: serial(), RawSubject: csr.RawSubject, NotBefore: begin, NotAfter: end, PublicKey: csr.PublicKey,
		SignatureAlgorithm: algorithm, SubjectKeyId: keyID(csr),
	}
	profile.apply(template, csr, in.APIPassthrough)
	if url := a.crlURL(f.o.Region); url != "" && !own {
		template.CRLDistributionPoints = []string{url}
	}
	return template, nil
}

// sign makes the certificate and its chain up to the root.
func (a *authority) sign(template *x509.Certificate, profile profile) (*x509.Certificate, []*x509.Certificate, error) {
	parent := a.cert
	var chain []*x509.Certificate
	if profile.root {
		parent = template
	} else {
		chain = append([]*x509.Certificate{a.cert}, a.chain...)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, template.PublicKey, a.key)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return cert, chain, err
}

func (f *Fake) getCertificate(in input) (any, error) {
	a, err := f.find(in.CertificateAuthorityArn)
	if err != nil {
		return nil, err
	}
	parts := certificateARN.FindStringSubmatch(in.CertificateArn)
	if parts == nil {
		return nil, refuse("InvalidArnException", "The ARN %q is not a certificate's.", in.CertificateArn)
	}
	made := a.certificates[in.CertificateArn]
	if made == nil || parts[1] != a.arn {
		return nil, refuse("ResourceNotFoundException", "Could not find the certificate %s.", in.CertificateArn)
	}
	if made.pending > 0 {
		made.pending--
		return nil, refuse("RequestInProgressException", "The request for certificate %s is still in progress.", in.CertificateArn)
	}
	if made.cert == nil {
		return nil, refuse("RequestFailedException", "Certificate %s is in a failed state.", in.CertificateArn)
	}
	out := output{"Certificate": encode(made.cert)}
	if len(made.chain) > 0 {
		out["CertificateChain"] = encode(made.chain...)
	}
	return out, nil
}

// serial is 128 random bits.
func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // crypto/rand ends the process rather than fail
	b[0] |= 1
	return new(big.Int).SetBytes(b[:])
}

// keyID derives a key identifier from the key of a request (RFC 5280 section 4.2.1.2, method 1).
func keyID(csr *x509.CertificateRequest) []byte {
	var info struct {
		Algorithm asn1.RawValue
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(csr.RawSubjectPublicKeyInfo, &info); err != nil {
		return nil
	}
	sum := sha1.Sum(info.Key.Bytes) //nolint:gosec // an identifier
	return sum[:]
}

// parseSerial reads a serial number as RevokeCertificate takes it: hex, with colons or without.
func parseSerial(text string) (*big.Int, error) {
	raw, err := hex.DecodeString(strings.ReplaceAll(text, ":", ""))
	if err != nil || len(raw) == 0 {
		return nil, invalid("The serial number %q is not one.", text)
	}
	return new(big.Int).SetBytes(raw), nil
}
