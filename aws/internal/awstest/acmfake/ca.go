package acmfake

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"time"
)

// CA is a private CA of two levels for tests that are not about AWS Private CA: it is an [Issuer], and answers the two
// operations of AWS Private CA by which somebody who uses ACM finds out whom to trust. It is safe for concurrent use.
type CA struct {
	// ARN is whom it issues for, ShortLived its usage mode, Status that of the CA.
	ARN        string
	ShortLived bool
	Status     string

	mu           sync.Mutex
	root, issuer *x509.Certificate
	key          crypto.Signer
	issued       int
	spoil        func(*x509.Certificate)
}

// NewCA makes a CA that is valid for ten years from a time on, of which leaves are signed by a subordinate.
func NewCA(arn string, now time.Time) (*CA, error) {
	ca := &CA{ARN: arn, Status: "ACTIVE"}
	rootKey, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if ca.key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader); err != nil {
		return nil, err
	}
	template := func(name string, serial int64) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0),
		}
	}
	root := template("Payments root", 1)
	if ca.root, err = create(root, root, rootKey.Public(), rootKey); err != nil {
		return nil, err
	}
	ca.issuer, err = create(template("Payments issuing", 2), ca.root, ca.key.Public(), rootKey)
	return ca, err
}

func create(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// Spoil changes what is about to be signed from now on; nil ends it.
func (ca *CA) Spoil(with func(*x509.Certificate)) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.spoil = with
}

// Issued is how many leaves there are.
func (ca *CA) Issued() int {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return ca.issued
}

// Root is the root, PEM.
func (ca *CA) Root() []byte { return encode(ca.root) }

func encode(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

// shortLived is what a CA in short-lived mode issues at most.
const shortLived = 7 * 24 * time.Hour

// Issue implements [Issuer].
func (ca *CA) Issue(arn string, csr []byte, notAfter time.Time) (leaf, chain []byte, err error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	block, _ := pem.Decode(csr)
	if block == nil {
		return nil, nil, &Failure{Reason: "PCA_INVALID_ARGS"}
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, nil, &Failure{Reason: "PCA_INVALID_ARGS"}
	}
	notBefore := notAfter.Add(-validity)
	switch {
	case arn != ca.ARN:
		return nil, nil, &Failure{Reason: "PCA_RESOURCE_NOT_FOUND"}
	case ca.Status != "ACTIVE":
		return nil, nil, &Failure{Reason: "PCA_INVALID_STATE"}
	case ca.ShortLived && notAfter.Sub(notBefore) > shortLived, notAfter.After(ca.issuer.NotAfter):
		return nil, nil, &Failure{Reason: "PCA_INVALID_DURATION"}
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: request.Subject, DNSNames: request.DNSNames, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		// AWS Private CA dates a certificate an hour back.
		NotBefore: notBefore.Add(-time.Hour), NotAfter: notAfter,
	}
	if ca.spoil != nil {
		ca.spoil(template)
	}
	cert, err := create(template, ca.issuer, request.PublicKey, ca.key)
	if err != nil {
		return nil, nil, err
	}
	ca.issued++
	return encode(cert), append(encode(ca.issuer), encode(ca.root)...), nil
}

// ServeHTTP answers DescribeCertificateAuthority and GetCertificateAuthorityCertificate.
func (ca *CA) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	var in struct{ CertificateAuthorityArn string }
	body, err := io.ReadAll(io.LimitReader(r.Body, maxRequest))
	if err == nil {
		err = json.Unmarshal(body, &in)
	}
	switch operation, _ := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "ACMPrivateCA."); {
	case err != nil:
		respond(w, nil, refuse("SerializationException", "no JSON"))
	case in.CertificateAuthorityArn != ca.ARN:
		respond(w, nil, refuse("ResourceNotFoundException", "Could not find certificate authority %s.", in.CertificateAuthorityArn))
	case operation == "DescribeCertificateAuthority":
		mode := "GENERAL_PURPOSE"
		if ca.ShortLived {
			mode = "SHORT_LIVED_CERTIFICATE"
		}
		respond(w, map[string]any{"CertificateAuthority": map[string]any{
			"Arn": ca.ARN, "Status": ca.Status, "UsageMode": mode, "Type": "SUBORDINATE",
			"CertificateAuthorityConfiguration": map[string]any{"KeyAlgorithm": "EC_secp384r1", "SigningAlgorithm": "SHA384WITHECDSA"},
		}}, nil)
	case operation == "GetCertificateAuthorityCertificate":
		respond(w, map[string]any{"Certificate": string(encode(ca.issuer)), "CertificateChain": string(encode(ca.root))}, nil)
	default:
		respond(w, nil, refuse("UnknownOperationException", "this CA does not know %s", operation))
	}
}
