package credential

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
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"net/url"
	"testing"
	"time"
)

// testID is the SPIFFE ID of the world's leaf.
const testID = "spiffe://shop.internal/service/orders"

// world is an authority with an intermediate, and a leaf that is as it should be.
type world struct {
	root, between, leaf          *x509.Certificate
	rootKey, betweenKey, leafKey crypto.Signer
}

func newKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// rsaKey makes a key that may be a weak one.
func rsaKey(t testing.TB, bits int) crypto.Signer {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// certify signs a certificate; change may alter what is usual.
func certify(t testing.TB, name string, public crypto.PublicKey, parent *x509.Certificate, signer crypto.Signer, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		BasicConstraintsValid: true,
	}
	if change != nil {
		change(template)
	}
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func asCA(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }

func asLeaf(c *x509.Certificate) {
	c.KeyUsage = x509.KeyUsageDigitalSignature
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	c.DNSNames = []string{"orders.shop.internal"}
	c.URIs = []*url.URL{{Scheme: "spiffe", Host: "shop.internal", Path: "/service/orders"}}
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{rootKey: newKey(t), betweenKey: newKey(t), leafKey: newKey(t)}
	w.root = certify(t, "Root", w.rootKey.Public(), nil, w.rootKey, asCA)
	w.between = certify(t, "Intermediate", w.betweenKey.Public(), w.root, w.rootKey, asCA)
	w.leaf = w.issue(t, nil)
	return w
}

// issue makes another leaf for the world's key.
func (w *world) issue(t testing.TB, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	return certify(t, "orders", w.leafKey.Public(), w.between, w.betweenKey, func(c *x509.Certificate) {
		asLeaf(c)
		if change != nil {
			change(c)
		}
	})
}

// rootUntil is the world's root once more, valid for so long from now on.
func (w *world) rootUntil(t testing.TB, left time.Duration) *x509.Certificate {
	t.Helper()
	return certify(t, "Root", w.rootKey.Public(), nil, w.rootKey, func(c *x509.Certificate) {
		asCA(c)
		c.NotAfter = time.Now().Add(left)
	})
}

// input is what a good source has.
func (w *world) input(t testing.TB) Input {
	t.Helper()
	return Input{
		Certificate: Value{Name: "CERT_PEM", Field: "cert_pem", Data: pemOf(w.leaf, w.between)},
		Chain:       Value{Name: "CHAIN_PEM", Field: "chain_pem"},
		Key:         Value{Name: "KEY_PEM", Field: "key_pem", Data: keyPEM(t, w.leafKey)},
		Passphrase:  Value{Name: "KEY_PASSPHRASE", Field: "key_passphrase"},
		Bundle:      Value{Name: "CA_BUNDLE", Field: "ca_bundle", Data: pemOf(w.root)},
	}
}

func pemOf(certs ...*x509.Certificate) []byte { return encode(certs) }

func labeled(label string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der})
}

func keyDER(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func keyPEM(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	return labeled("PRIVATE KEY", keyDER(t, key))
}

// longKey is a private key with so much behind it that it is longer than what is read, and still parses.
func longKey(t *testing.T, key crypto.Signer) []byte {
	t.Helper()
	var fields []asn1.RawValue
	if rest, err := asn1.Unmarshal(keyDER(t, key), &fields); err != nil || len(rest) != 0 {
		t.Fatal(err)
	}
	long := must(t, append(fields, must(t, make([]byte, maxKey)))).FullBytes
	if !isPKCS8(long) {
		t.Fatal("it is no key to anybody")
	}
	return long
}

var oidHMACSHA1 = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 7}

// recipe is how a test encrypts a key. Empty identifiers are the good ones.
type recipe struct {
	scheme, function, prf, cipher asn1.ObjectIdentifier
	iterations                    int
	salt                          []byte
	noPRF                         bool
}

type algorithm struct {
	OID        asn1.ObjectIdentifier
	Parameters asn1.RawValue `asn1:"optional"`
}

func must(t testing.TB, value any) asn1.RawValue {
	t.Helper()
	der, err := asn1.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return asn1.RawValue{FullBytes: der}
}

// encrypted is a key by PBES2 with PBKDF2-HMAC-SHA-256 and AES-256-CBC, or what calls itself something else.
func encrypted(t testing.TB, der []byte, passphrase string, r recipe) []byte {
	t.Helper()
	or := func(given, usual asn1.ObjectIdentifier) asn1.ObjectIdentifier {
		if given == nil {
			return usual
		}
		return given
	}
	if r.salt == nil {
		r.salt = bytes.Repeat([]byte{7}, 16)
	}
	if r.iterations == 0 {
		r.iterations = 2048
	}
	computed := min(r.iterations, 2048)
	function := sha256.New
	if r.noPRF || r.prf.Equal(oidHMACSHA1) {
		function = sha1.New
	}
	key, err := pbkdf2.Key(function, passphrase, r.salt, computed, 32)
	if err != nil {
		t.Fatal(err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	iv := bytes.Repeat([]byte{9}, aes.BlockSize)
	pad := aes.BlockSize - len(der)%aes.BlockSize
	content := append(bytes.Clone(der), bytes.Repeat([]byte{byte(pad)}, pad)...)
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(content, content)

	null := asn1.RawValue{FullBytes: []byte{5, 0}}
	var derivation asn1.RawValue
	if r.noPRF {
		derivation = must(t, struct {
			Salt       []byte
			Iterations int
		}{r.salt, r.iterations})
	} else {
		derivation = must(t, struct {
			Salt       []byte
			Iterations int
			PRF        algorithm
		}{r.salt, r.iterations, algorithm{or(r.prf, asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}), null}})
	}
	parameters := must(t, struct{ Derivation, Encryption algorithm }{
		algorithm{or(r.function, oidPBKDF2), derivation},
		algorithm{or(r.cipher, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}), must(t, iv)},
	})
	all := must(t, struct {
		Algorithm algorithm
		Data      []byte
	}{algorithm{or(r.scheme, oidPBES2), parameters}, content})
	return labeled("ENCRYPTED PRIVATE KEY", all.FullBytes)
}
