package acmfake

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // the pseudorandom function that PBKDF2 has when none is named (RFC 8018)
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"
)

// Issuer is the private CA behind an ACM.
type Issuer interface {
	// Issue signs a request (PEM) for the CA of an ARN: the leaf, and the chain above it up to the root, PEM. The leaf's
	// subject and names are the request's. A [Failure] says why the CA did not want to.
	Issue(ca string, csr []byte, notAfter time.Time) (leaf, chain []byte, err error)
}

// Failure is why a CA issued nothing, as ACM's FailureReason spells it: PCA_ACCESS_DENIED, PCA_INVALID_DURATION and so on.
type Failure struct{ Reason string }

func (f *Failure) Error() string { return f.Reason }

// version is one certificate that was issued, with its key.
type version struct {
	leaf              *x509.Certificate
	leafPEM, chainPEM string
	key               crypto.Signer
	issued            time.Time
}

// serial is as ACM spells it: bytes in hexadecimal with colons.
func (v *version) serial() string {
	text := hex.EncodeToString(v.leaf.SerialNumber.Bytes())
	var parts []string
	for i := 0; i+2 <= len(text); i += 2 {
		parts = append(parts, text[i:i+2])
	}
	return strings.Join(parts, ":")
}

// newVersion makes a key and has it certified: ACM makes a new one at every renewal.
func newVersion(by Issuer, c *certificate, now time.Time) (*version, error) {
	key, err := newKey(c.algorithm)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: c.domain}, DNSNames: c.names}, key)
	if err != nil {
		return nil, err
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	leafPEM, chainPEM, err := by.Issue(c.ca, csr, now.Add(validity))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(leafPEM)
	if block == nil {
		return nil, &Failure{Reason: "PCA_REQUEST_FAILED"}
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	return &version{leaf: leaf, leafPEM: string(leafPEM), chainPEM: string(chainPEM), key: key, issued: now}, nil
}

func newKey(algorithm string) (crypto.Signer, error) {
	switch algorithm {
	case "EC_prime256v1":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "EC_secp384r1":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default:
		const bits = 2048
		return rsa.GenerateKey(rand.Reader, bits)
	}
}

// The structures of encrypted PKCS #8 (RFC 5958, RFC 8018), written here once more: what the product reads is not to be
// what the product itself has written.
type (
	pbkdf2Params struct {
		Salt       []byte
		Iterations int
	}
	algorithmOf[T any] struct {
		Algorithm  asn1.ObjectIdentifier
		Parameters T
	}
	pbes2Params struct {
		Derivation algorithmOf[pbkdf2Params]
		Cipher     algorithmOf[[]byte]
	}
	encryptedKey struct {
		Algorithm algorithmOf[pbes2Params]
		Data      []byte
	}
)

var (
	oidPBES2  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	oidPBKDF2 = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
	oidAES256 = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
)

// encrypt writes a key as ACM exports it, by the example in its user guide ("Export a private certificate"): PBES2 with
// AES-256-CBC, and PBKDF2 with a salt of 20 bytes, 2048 iterations and no pseudorandom function named, which means
// HMAC-SHA-1.
func encrypt(key crypto.Signer, passphrase []byte) (string, error) {
	plain, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	const iterations, size = 2048, 32
	salt, iv := make([]byte, sha1.Size), make([]byte, aes.BlockSize)
	_, _ = rand.Read(salt)
	_, _ = rand.Read(iv)
	derived, err := pbkdf2.Key(sha1.New, string(passphrase), salt, iterations, size)
	if err != nil {
		return "", err
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return "", err
	}
	pad := aes.BlockSize - len(plain)%aes.BlockSize
	plain = append(plain, bytes.Repeat([]byte{byte(pad)}, pad)...)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(plain, plain)
	der, err := asn1.Marshal(encryptedKey{
		Algorithm: algorithmOf[pbes2Params]{oidPBES2, pbes2Params{
			Derivation: algorithmOf[pbkdf2Params]{oidPBKDF2, pbkdf2Params{salt, iterations}},
			Cipher:     algorithmOf[[]byte]{oidAES256, iv},
		}},
		Data: plain,
	})
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: der})), nil
}

// Through is the Issuer that asks an AWS Private CA by its wire protocol, in this process and as ACM itself: no IAM stands
// between them. It has to answer GetCertificate sooner or later.
func Through(privateCA http.Handler) Issuer { return through{privateCA} }

type through struct{ handler http.Handler }

// failures are ACM's names for what a private CA answers.
var failures = map[string]string{
	"AccessDeniedException": "PCA_ACCESS_DENIED", "ValidationException": "PCA_INVALID_DURATION", "InvalidStateException": "PCA_INVALID_STATE",
	"LimitExceededException": "PCA_LIMIT_EXCEEDED", "ResourceNotFoundException": "PCA_RESOURCE_NOT_FOUND", "InvalidArnException": "PCA_INVALID_ARN",
	"InvalidArgsException": "PCA_INVALID_ARGS",
}

func (t through) call(operation string, in map[string]any, out any) (code string) {
	body, err := json.Marshal(in)
	if err != nil {
		return err.Error()
	}
	r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body)) //nolint:noctx // it is a call of a function
	r.Header.Set("X-Amz-Target", "ACMPrivateCA."+operation)
	r.Header.Set("Content-Type", "application/x-amz-json-1.1")
	w := httptest.NewRecorder()
	t.handler.ServeHTTP(w, r)
	if w.Code == http.StatusOK {
		if err := json.Unmarshal(w.Body.Bytes(), out); err != nil {
			return err.Error()
		}
		return ""
	}
	var refused struct {
		Type string `json:"__type"`
	}
	_ = json.Unmarshal(w.Body.Bytes(), &refused)
	return refused.Type[strings.LastIndexByte(refused.Type, '#')+1:]
}

// Issue implements [Issuer].
func (t through) Issue(ca string, csr []byte, notAfter time.Time) (leaf, chain []byte, err error) {
	failed := func(code string) error {
		reason := failures[code]
		if reason == "" {
			reason = "PCA_REQUEST_FAILED"
		}
		return &Failure{Reason: reason}
	}
	var authority struct {
		CertificateAuthority struct {
			CertificateAuthorityConfiguration struct{ SigningAlgorithm string }
		}
	}
	if code := t.call("DescribeCertificateAuthority", map[string]any{"CertificateAuthorityArn": ca}, &authority); code != "" {
		return nil, nil, failed(code)
	}
	var issued struct{ CertificateArn string }
	if code := t.call("IssueCertificate", map[string]any{
		"CertificateAuthorityArn": ca, "Csr": csr, "SigningAlgorithm": authority.CertificateAuthority.CertificateAuthorityConfiguration.SigningAlgorithm,
		"TemplateArn": "arn:aws:acm-pca:::template/EndEntityCertificate/V1",
		"Validity":    map[string]any{"Type": "ABSOLUTE", "Value": notAfter.Unix()}, "IdempotencyToken": newUUID()[:32],
	}, &issued); code != "" {
		return nil, nil, failed(code)
	}
	var got struct{ Certificate, CertificateChain string }
	const tries = 100
	for range tries {
		code := t.call("GetCertificate", map[string]any{"CertificateAuthorityArn": ca, "CertificateArn": issued.CertificateArn}, &got)
		switch code {
		case "":
			return []byte(got.Certificate + "\n"), []byte(got.CertificateChain + "\n"), nil
		case "RequestInProgressException", "ThrottlingException":
		default:
			return nil, nil, failed(code)
		}
	}
	return nil, nil, failed("")
}
