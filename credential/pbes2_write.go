package credential

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	tags "golang.org/x/crypto/cryptobyte/asn1"
)

// Parameters of keys that are written. The iterations slow down a search for passphrases that people think of; one
// that [NewPassphrase] has made cannot be searched for at all, and every start of a proxy pays for them.
const (
	writtenIterations = 10_000
	writtenKeySize    = 32
	minPassphrase     = 16 // bytes
)

var (
	oidHMACSHA256 = asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 9}
	oidAES256CBC  = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
)

// NewPassphrase makes a passphrase of 130 random bits, of letters and digits.
func NewPassphrase() []byte { return []byte(rand.Text()) }

// EncryptKey writes a private key as encrypted PKCS #8 (RFC 5958) in PEM: PBES2 (RFC 8018) with AES-256-CBC and PBKDF2
// of HMAC-SHA-256, which openssl, NGINX, HAProxy and [Parse] read. The passphrase is to be one of [NewPassphrase] or as
// good; one of less than 16 bytes is refused, for the iterations are few.
func EncryptKey(key crypto.Signer, passphrase []byte) ([]byte, error) {
	if len(passphrase) < minPassphrase {
		return nil, fmt.Errorf("encrypting a private key: the passphrase has %d bytes, and %d are the least", len(passphrase), minPassphrase)
	}
	plain, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, errors.New("encrypting a private key: it is of a kind that PKCS #8 is not written for here")
	}
	pad := aes.BlockSize - len(plain)%aes.BlockSize
	content := make([]byte, len(plain)+pad)
	copy(content, plain)
	clear(plain)
	for i := len(content) - pad; i < len(content); i++ {
		content[i] = byte(pad)
	}
	var salt, iv [16]byte
	_, _ = rand.Read(salt[:]) // crypto/rand ends the process rather than fail
	_, _ = rand.Read(iv[:])
	derived, err := pbkdf2.Key(sha256.New, string(passphrase), salt[:], writtenIterations, writtenKeySize)
	if err != nil {
		clear(content)
		return nil, fmt.Errorf("encrypting a private key: deriving the key from the passphrase: %w", err)
	}
	defer clear(derived)
	block, err := aes.NewCipher(derived)
	if err != nil {
		clear(content)
		return nil, fmt.Errorf("encrypting a private key: %w", err)
	}
	cipher.NewCBCEncrypter(block, iv[:]).CryptBlocks(content, content)
	der, err := seal(salt[:], iv[:], content)
	if err != nil {
		return nil, fmt.Errorf("encrypting a private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: der}), nil
}

// seal is the EncryptedPrivateKeyInfo around what was encrypted.
func seal(salt, iv, content []byte) ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(oidPBES2)
			b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidPBKDF2)
					b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1OctetString(salt)
						b.AddASN1Int64(writtenIterations)
						b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
							b.AddASN1ObjectIdentifier(oidHMACSHA256)
							b.AddASN1NULL()
						})
					})
				})
				b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
					b.AddASN1ObjectIdentifier(oidAES256CBC)
					b.AddASN1OctetString(iv)
				})
			})
		})
		b.AddASN1OctetString(content)
	})
	return b.Bytes()
}
