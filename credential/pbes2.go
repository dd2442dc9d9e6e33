package credential

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/sha1" //nolint:gosec // for PBKDF2 with HMAC, which the attacks on SHA-1 do not reach; see prfs
	"crypto/sha256"
	"crypto/sha512"
	"encoding/asn1"
	"encoding/json"
	"hash"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	tags "golang.org/x/crypto/cryptobyte/asn1"
)

// The libraries for encrypted PKCS #8 that there are decrypt whatever they find, DES and a billion iterations
// included, or bring a whole PKI with them. What is accepted here is little, and the cryptography is the standard
// library's.

// maxIterations bounds what a key's author can make us compute: OWASP recommends 600,000 of HMAC-SHA-256.
const maxIterations = 2_000_000

var (
	oidPBES2  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 13}
	oidPBKDF2 = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 5, 12}
)

// ciphers are the encryption schemes of RFC 8018 that are accepted, and the length of their keys in bytes.
var ciphers = map[string]int{
	"2.16.840.1.101.3.4.1.2":  16, // aes128-CBC-PAD
	"2.16.840.1.101.3.4.1.22": 24,
	"2.16.840.1.101.3.4.1.42": 32,
}

// prfs are the pseudo-random functions of PBKDF2 that are accepted. HMAC-SHA-1 is the one that RFC 8018 means when none is
// named, and what AWS Certificate Manager exports keys with; collisions of SHA-1 are of no use against it (RFC 6194, section 3.3).
var prfs = map[string]func() hash.Hash{
	"1.2.840.113549.2.7":  sha1.New,
	"1.2.840.113549.2.8":  sha256.New224,
	"1.2.840.113549.2.9":  sha256.New,
	"1.2.840.113549.2.10": sha512.New384,
	"1.2.840.113549.2.11": sha512.New,
	"1.2.840.113549.2.12": sha512.New512_224,
	"1.2.840.113549.2.13": sha512.New512_256,
}

// refused names what is known and not accepted.
var refused = map[string]string{
	"1.2.840.113549.1.5.1":    "PBES1 with MD2 and DES",
	"1.2.840.113549.1.5.3":    "PBES1 with MD5 and DES",
	"1.2.840.113549.1.5.4":    "PBES1 with MD2 and RC2",
	"1.2.840.113549.1.5.6":    "PBES1 with MD5 and RC2",
	"1.2.840.113549.1.5.10":   "PBES1 with SHA-1 and DES",
	"1.2.840.113549.1.5.11":   "PBES1 with SHA-1 and RC2",
	"1.2.840.113549.1.12.1.1": "PKCS #12 with RC4 of 128 bits",
	"1.2.840.113549.1.12.1.2": "PKCS #12 with RC4 of 40 bits",
	"1.2.840.113549.1.12.1.3": "PKCS #12 with triple DES",
	"1.2.840.113549.1.12.1.4": "PKCS #12 with triple DES of two keys",
	"1.2.840.113549.1.12.1.5": "PKCS #12 with RC2 of 128 bits",
	"1.2.840.113549.1.12.1.6": "PKCS #12 with RC2 of 40 bits",
	"1.2.840.113549.3.2":      "PBES2 with RC2",
	"1.2.840.113549.3.7":      "PBES2 with triple DES",
	"1.3.14.3.2.7":            "PBES2 with DES",
	"1.2.840.113549.2.6":      "PBKDF2 with HMAC-MD5",
	"1.2.840.113549.3.4":      "PBES2 with RC4",
	"1.2.840.113549.3.9":      "PBES2 with RC5",
	"1.2.840.113533.7.66.10":  "PBES2 with CAST5",
	"1.3.6.1.4.1.3029.1.2":    "PBES2 with Blowfish",
	"1.3.6.1.4.1.188.7.1.1.2": "PBES2 with IDEA",
	"1.2.410.200004.1.4":      "PBES2 with SEED",
	"1.3.6.1.4.1.11591.4.11":  "scrypt",
}

// convert is how to mend a key in a scheme that is not accepted.
const convert = "convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256"

// envelope is an EncryptedPrivateKeyInfo (RFC 5958) by PBES2 (RFC 8018).
type envelope struct {
	salt, iv, content []byte
	iterations        int
	keySize           int
	prf               func() hash.Hash
}

// isEncrypted tells whether bytes have the outer form of an EncryptedPrivateKeyInfo.
func isEncrypted(der []byte) bool {
	_, _, _, ok := outer(der)
	return ok
}

// outer takes an EncryptedPrivateKeyInfo apart.
func outer(der []byte) (scheme asn1.ObjectIdentifier, parameters cryptobyte.String, content []byte, ok bool) {
	input := cryptobyte.String(der)
	var all, algorithm, data cryptobyte.String
	ok = input.ReadASN1(&all, tags.SEQUENCE) && input.Empty() &&
		all.ReadASN1(&algorithm, tags.SEQUENCE) && all.ReadASN1(&data, tags.OCTET_STRING) && all.Empty() &&
		algorithm.ReadASN1ObjectIdentifier(&scheme)
	return scheme, algorithm, data, ok
}

// decrypt opens an encrypted key. All that its author has chosen is looked at before anything is computed.
func decrypt(v, passphrase Value, der []byte, notes *[]Note) ([]byte, error) {
	e, err := open(v, der)
	if err != nil {
		return nil, err
	}
	phrase := withoutLineEnd(passphrase.Data)
	if len(phrase) == 0 {
		return nil, passphrase.fault("store the passphrase beside the key", "the key %s is encrypted, and there is no passphrase", v.Name)
	}
	plain, err := e.open(v, phrase)
	if err != nil {
		return nil, err
	}
	if plain != nil {
		if len(phrase) != len(passphrase.Data) {
			*notes = append(*notes, Note{Text: passphrase.Name + ": the line end behind the passphrase was removed", Usual: true})
		}
		return plain, nil
	}
	// Any text may be a passphrase, what looks like JSON too. So it is taken as it is first, and unwrapped only after that.
	inner, unwrapped, err := passphrase.unwrapped(phrase)
	if err != nil {
		return nil, err
	}
	if len(unwrapped) > 0 {
		if plain, err = e.open(v, withoutLineEnd(inner)); err != nil {
			return nil, err
		}
	}
	if plain == nil {
		return nil, passphrase.refusePassphrase(v, inner)
	}
	*notes = append(*notes, unwrapped...)
	return plain, nil
}

// unwrapped is a passphrase that a transport has put into JSON, or behind a byte order mark, and what was done for it.
func (v Value) unwrapped(phrase []byte) (inner []byte, done []Note, err error) {
	note := func(what string) { done = append(done, Note{Text: v.Name + ": " + what}) }
	inner, marked := bytes.CutPrefix(phrase, utf8Mark)
	if marked {
		note("a byte order mark was removed")
	}
	switch {
	case bytes.HasPrefix(inner, []byte(`"`)) && json.Valid(inner):
	case bytes.HasPrefix(inner, []byte("{")) && json.Valid(inner):
	default:
		return inner, done, nil
	}
	inner, err = unwrap(v, inner, note)
	return inner, done, err
}

// refusePassphrase says what is wrong with a passphrase that does not open a key.
func (v Value) refusePassphrase(key Value, phrase []byte) error {
	text := string(bytes.TrimSpace(phrase))
	switch {
	case text == "":
		return v.refuseEmpty()
	case fillerAlone.MatchString(text):
		return v.fault("put the real passphrase into the secret", "it is a word that stands for a passphrase which is yet to come")
	case template.MatchString(text), strings.HasPrefix(text, "arn:"):
		return v.refuseText(text)
	}
	return v.fault("store the one that the key was exported with", "the passphrase does not open the key %s", key.Name)
}

// open decrypts by a passphrase; nil is what a wrong one gives.
func (e *envelope) open(v Value, phrase []byte) ([]byte, error) {
	key, err := pbkdf2.Key(e.prf, string(phrase), e.salt, e.iterations, e.keySize)
	if err != nil {
		return nil, v.fault(convert, "the key's encryption has parameters that this mode of operation forbids")
	}
	defer clear(key)
	aesCipher, err := aes.NewCipher(key)
	if err != nil {
		return nil, v.fault(convert, "the key's encryption cannot be used here")
	}
	plain := make([]byte, len(e.content))
	cipher.NewCBCDecrypter(aesCipher, e.iv).CryptBlocks(plain, e.content)
	unpadded, ok := unpad(plain)
	if ok { // a wrong passphrase passes the padding once in 256 times, and never as a sequence of this length
		sequence := cryptobyte.String(unpadded)
		var inner cryptobyte.String
		ok = sequence.ReadASN1(&inner, tags.SEQUENCE) && sequence.Empty()
	}
	if !ok {
		clear(plain)
		return nil, nil //nolint:nilnil // said above
	}
	return unpadded, nil
}

// unpad removes the padding of RFC 8018, section 6.1.1.
func unpad(plain []byte) ([]byte, bool) {
	n := int(plain[len(plain)-1])
	if n == 0 || n > aes.BlockSize {
		return nil, false
	}
	for _, b := range plain[len(plain)-n:] {
		if int(b) != n {
			return nil, false
		}
	}
	return plain[:len(plain)-n], true
}

// open reads how a key is encrypted.
func open(v Value, der []byte) (*envelope, error) {
	malformed := v.fault("copy the key again", "the encrypted key does not parse")
	scheme, rest, content, ok := outer(der)
	if !ok {
		return nil, malformed
	}
	if !scheme.Equal(oidPBES2) {
		return nil, v.scheme(scheme)
	}
	var parameters, derivation, encryption, iv cryptobyte.String
	var function, algorithm asn1.ObjectIdentifier
	if !rest.ReadASN1(&parameters, tags.SEQUENCE) || !parameters.ReadASN1(&derivation, tags.SEQUENCE) ||
		!parameters.ReadASN1(&encryption, tags.SEQUENCE) || !parameters.Empty() ||
		!derivation.ReadASN1ObjectIdentifier(&function) || !encryption.ReadASN1ObjectIdentifier(&algorithm) {
		return nil, malformed
	}
	if !function.Equal(oidPBKDF2) {
		return nil, v.scheme(function)
	}
	e := &envelope{content: content}
	if e.keySize, ok = ciphers[algorithm.String()]; !ok {
		return nil, v.scheme(algorithm)
	}
	if !encryption.ReadASN1(&iv, tags.OCTET_STRING) || !encryption.Empty() || len(iv) != aes.BlockSize ||
		len(content) == 0 || len(content)%aes.BlockSize != 0 {
		return nil, malformed
	}
	e.iv = iv
	return e, e.derivation(v, derivation, malformed)
}

// derivation reads PBKDF2-params (RFC 8018, appendix A.2).
func (e *envelope) derivation(v Value, derivation cryptobyte.String, malformed error) error {
	var parameters, salt, prf cryptobyte.String
	if !derivation.ReadASN1(&parameters, tags.SEQUENCE) || !parameters.ReadASN1(&salt, tags.OCTET_STRING) ||
		!parameters.ReadASN1Integer(&e.iterations) || e.iterations < 1 {
		return malformed
	}
	e.salt = salt
	if parameters.PeekASN1Tag(tags.INTEGER) {
		var size int
		if !parameters.ReadASN1Integer(&size) || size != e.keySize {
			return malformed
		}
	}
	function := asn1.ObjectIdentifier{1, 2, 840, 113549, 2, 7} // what is meant when nothing is said: HMAC-SHA-1
	if !parameters.Empty() && (!parameters.ReadASN1(&prf, tags.SEQUENCE) || !parameters.Empty() || !prf.ReadASN1ObjectIdentifier(&function)) {
		return malformed
	}
	var ok bool
	if e.prf, ok = prfs[function.String()]; !ok {
		return v.scheme(function)
	}
	switch {
	case e.iterations > maxIterations:
		return v.fault("export it with fewer (openssl pkcs8 -iter)", "the key's encryption asks for %d iterations, and at most %d are computed", e.iterations, maxIterations)
	case len(e.salt) < 8:
		return v.fault(convert, "the key's encryption has a salt of %d bytes, and 8 are the least", len(e.salt))
	}
	return nil
}

// scheme refuses an algorithm, by its name when it has one here.
func (v Value) scheme(algorithm asn1.ObjectIdentifier) error {
	if name, known := refused[algorithm.String()]; known {
		return v.fault(convert, "the key is encrypted with %s, which is not accepted", name)
	}
	return v.fault(convert, "the key is encrypted with the algorithm %.80s, which is not known here", algorithm)
}
