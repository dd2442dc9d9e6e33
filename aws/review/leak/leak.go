// Package leak finds keys, certificates and passphrases in texts where they do not belong.
package leak

import (
	"encoding/base64"
	"regexp"
	"strings"
)

// Kind is what was found.
type Kind int

// The kinds, the worst last.
const (
	Nothing Kind = iota
	PEM          // a certificate, or something else that is not secret by itself
	Key          // a private key, encrypted or not
)

// begin is how PEM begins (RFC 7468), with what it is.
var begin = regexp.MustCompile(`-----\s*BEGIN ([A-Z0-9 ]{1,40})-----`)

// encoded is what base64 could be: nothing shorter holds a key.
var encoded = regexp.MustCompile(`[A-Za-z0-9+/_-]{40,}={0,2}`)

// depth is how often a text may be encoded: a secret in base64 in base64 is still one.
const depth = 3

// Find finds the worst that stands in a text: as PEM, or as PEM or PKCS#8 in base64. What line breaks were made of does not
// matter.
func Find(text string) Kind { return find(text, depth) }

func find(text string, left int) Kind {
	worst := Nothing
	for _, found := range begin.FindAllStringSubmatch(text, -1) {
		worst = max(worst, PEM)
		if strings.HasSuffix(strings.TrimSpace(found[1]), "PRIVATE KEY") {
			return Key
		}
	}
	if left == 0 {
		return worst
	}
	folded := strings.NewReplacer("\n", "", "\r", "", `\n`, "").Replace(text)
	for _, candidate := range encoded.FindAllString(folded, -1) {
		plain := strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(candidate, "="))
		decoded, err := base64.RawStdEncoding.DecodeString(plain)
		if err != nil {
			continue
		}
		if der(decoded) {
			return Key
		}
		worst = max(worst, find(string(decoded), left-1))
	}
	return worst
}

// The object identifiers by which a PKCS#8 key says what it is: an elliptic curve, RSA, Ed25519.
var identifiers = []string{"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01", "\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01", "\x06\x03\x2b\x65\x70"}

// der tells whether bytes begin as a PKCS#8 key does (RFC 5208): a sequence, the version 0 or 1, the algorithm.
func der(b []byte) bool {
	if len(b) < 2 || b[0] != 0x30 {
		return false
	}
	const long = 0x80
	rest := b[2:]
	if b[1] > long && len(rest) > int(b[1]-long) {
		rest = rest[b[1]-long:]
	}
	if len(rest) < 5 || rest[0] != 2 || rest[1] != 1 || rest[2] > 1 || rest[3] != 0x30 {
		return false
	}
	for _, identifier := range identifiers {
		if strings.HasPrefix(string(rest[5:]), identifier) {
			return true
		}
	}
	return false
}

// phrase is what variables with a passphrase are called.
var phrase = regexp.MustCompile(`(?i)(pass_?phrase|key_?pass(word)?$|tls_?password|cert_?password|private_?key_?password)`)

// Passphrase tells whether a variable holds a passphrase, and not where one is.
func Passphrase(name, value string) bool {
	if !phrase.MatchString(name) || value == "" || strings.HasPrefix(value, "arn:") || strings.HasPrefix(value, "/") || strings.HasPrefix(value, "secret:") {
		return false
	}
	for _, end := range []string{"_FILE", "_PATH", "_ARN", "_SECRET", "_FROM"} {
		if strings.HasSuffix(strings.ToUpper(name), end) {
			return false
		}
	}
	return true
}
