package secret

import (
	"bytes"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"strings"
)

// privateFields are the default names of fields whose value is secret whatever it looks like.
var privateFields = []string{"key_pem", "private_key", "passphrase"}

// IsPrivateField tells whether a field, or the last segment of a secret's name, is by its name a private
// key or a passphrase. further are the names of a configured layout, beside the default ones.
func IsPrivateField(name string, further ...string) bool {
	last := name[strings.LastIndexByte(name, '/')+1:]
	for _, field := range append(further, privateFields...) {
		if field != "" && strings.EqualFold(last, field) {
			return true
		}
	}
	return false
}

// HoldsPrivateKey tells whether a value shows a private key, also an encrypted one, to whoever prints it:
// PEM in any spelling (SEC 1, PKCS #1, PKCS #8, OpenSSH), DER (the same, PKCS #12), an age identity, all
// of them also as Base64, as a JSON string at any depth, or as JSON in a JSON string; or a field of an
// object whose name is that of a key ([IsPrivateField]). It is meant to be wrong on the side of true.
func HoldsPrivateKey(value []byte, further ...string) bool {
	return holdsKey(value, further, 0)
}

// deepest is how far encodings inside one another are followed; deeper ones count as a key.
const deepest = 16

func holdsKey(value []byte, further []string, depth int) bool {
	if depth > deepest {
		return true
	}
	// The whole marker and not "-----BEGIN": dashes may be escaped or cut off.
	upper := bytes.ToUpper(value)
	if bytes.Contains(upper, []byte("PRIVATE KEY")) || bytes.Contains(upper, []byte("AGE-SECRET-KEY-")) || isKeyDER(value) {
		return true
	}
	trimmed := bytes.TrimSpace(bytes.TrimPrefix(value, []byte("\xef\xbb\xbf")))
	if len(trimmed) == 0 {
		return false
	}
	if strings.IndexByte(`{["`, trimmed[0]) >= 0 && jsonHoldsKey(trimmed, further, depth+1) {
		return true
	}
	if decoded, ok := decodeBase64(trimmed); ok {
		return holdsKey(decoded, further, depth+1)
	}
	return false
}

// jsonHoldsKey looks at every name and every value of a JSON text, also where a name is there twice, as far
// as the text parses.
func jsonHoldsKey(text []byte, further []string, depth int) bool {
	type level struct{ object, atName bool }
	var levels []level
	private := false // the value that comes next is that of a private field
	decoder := json.NewDecoder(bytes.NewReader(text))
	for {
		token, err := decoder.Token()
		if err != nil {
			return false
		}
		if token == json.Delim('}') || token == json.Delim(']') {
			levels = levels[:len(levels)-1]
			continue
		}
		text, isString := token.(string)
		if isString && holdsKey([]byte(text), further, depth) {
			return true
		}
		if at := len(levels) - 1; at >= 0 && levels[at].object {
			levels[at].atName = !levels[at].atName
			if !levels[at].atName { // it was one
				private = IsPrivateField(text, further...)
				continue
			}
		}
		if private && token != nil && token != "" {
			return true
		}
		private = false
		if delim, opens := token.(json.Delim); opens {
			levels = append(levels, level{object: delim == '{', atName: delim == '{'})
		}
	}
}

// decodeBase64 reads what may be Base64 of a key: the standard or the URL alphabet, with or without line
// ends and padding.
func decodeBase64(text []byte) ([]byte, bool) {
	const shortest = 40 // Ed25519 as PKCS #8 has 48 bytes
	if len(text) < shortest {
		return nil, false
	}
	plain := strings.NewReplacer("\r", "", "\n", "", " ", "", "=", "", `\n`, "", "-", "+", "_", "/").Replace(string(text))
	decoded, err := base64.RawStdEncoding.DecodeString(plain)
	return decoded, err == nil
}

// isKeyDER recognizes the outermost structure of keys in DER, which is all that can be told without a
// passphrase.
func isKeyDER(der []byte) bool {
	var outer asn1.RawValue
	if _, err := asn1.Unmarshal(der, &outer); err != nil || outer.Tag != asn1.TagSequence || outer.Class != asn1.ClassUniversal {
		return false
	}
	var encrypted struct { // RFC 5958, EncryptedPrivateKeyInfo
		Algorithm pkix.AlgorithmIdentifier
		Data      []byte
	}
	if _, err := asn1.Unmarshal(der, &encrypted); err == nil {
		return true
	}
	// PKCS #8 (0 or 1), PKCS #1 (0 or 1), SEC 1 (1), PKCS #12 (3): all begin with a version; certificates
	// (a SEQUENCE first) and certificate requests (the same) do not.
	var version int
	rest, err := asn1.Unmarshal(outer.Bytes, &version)
	if err != nil || len(rest) == 0 {
		return false
	}
	return version == 0 || version == 1 || version == 3
}
