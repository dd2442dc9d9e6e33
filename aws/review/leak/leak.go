// Package leak finds keys, certificates and passphrases in texts where they do not belong.
package leak

import (
	"encoding/base64"
	"net/url"
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

// identity is how a key of age begins (https://age-encryption.org/v1).
const identity = "AGE-SECRET-KEY-1"

// Find finds the worst that stands in a text: as PEM, as PEM or DER in base64, or as a key of age. What line breaks were made of, how
// it is escaped for a URL and what stands before it do not matter.
func Find(text string) Kind {
	if strings.Contains(strings.ToUpper(text), identity) {
		return Key
	}
	found := find(text, depth)
	if plain, err := url.PathUnescape(strings.ReplaceAll(text, "+", " ")); err == nil && plain != text {
		found = max(found, find(plain, depth))
	}
	return found
}

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
		decoded := decode(plain)
		if der(decoded) {
			return Key
		}
		worst = max(worst, find(string(decoded), left-1))
		// What stands before it may look like the beginning of it: four letters of base64 are three bytes.
		for skip := 1; skip < 4; skip++ {
			worst = max(worst, find(string(decode(plain[skip:])), 0))
		}
	}
	return worst
}

// decode decodes base64, without what is too much at its end.
func decode(text string) []byte {
	if len(text)%4 == 1 {
		text = text[:len(text)-1]
	}
	decoded, _ := base64.RawStdEncoding.DecodeString(text) // as far as it goes
	return decoded
}

// The object identifiers by which a PKCS#8 key says what it is: an elliptic curve, RSA, Ed25519; and how an encrypted one begins
// (PBES2).
var (
	identifiers = []string{"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01", "\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01", "\x06\x03\x2b\x65\x70"}
	encrypted   = "\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05\x0d"
)

// der tells whether bytes begin as a key does: in the form of PKCS#8 (RFC 5208), encrypted or not, of SEC 1 (RFC 5915) or of
// PKCS#1 (RFC 8017).
func der(b []byte) bool {
	rest, ok := sequence(b)
	if !ok {
		return false
	}
	if algorithm, ok := sequence(rest); ok {
		return strings.HasPrefix(string(algorithm), encrypted)
	}
	if len(rest) < 5 || rest[0] != 2 || rest[1] != 1 || rest[2] > 1 {
		return false
	}
	version, rest := rest[2], rest[3:]
	const octets, integer, long = 4, 2, 0x82
	switch {
	// A private key of 32, 48 or 66 bytes.
	case version == 1 && rest[0] == octets && (rest[1] == 32 || rest[1] == 48 || rest[1] == 66):
		return true
	// A modulus of 1024 bits or more.
	case version == 0 && rest[0] == integer && (rest[1] == long || rest[1] == long-1):
		return true
	}
	algorithm, ok := sequence(rest)
	if !ok {
		return false
	}
	for _, identifier := range identifiers {
		if strings.HasPrefix(string(algorithm), identifier) {
			return true
		}
	}
	return false
}

// sequence gives what is in a sequence, and what follows it.
func sequence(b []byte) ([]byte, bool) {
	if len(b) < 2 || b[0] != 0x30 {
		return nil, false
	}
	const long = 0x80
	rest := b[2:]
	if b[1] > long {
		if len(rest) <= int(b[1]-long) {
			return nil, false
		}
		rest = rest[b[1]-long:]
	}
	return rest, true
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

// AccessKey tells whether a variable holds the secret access key of an AWS account.
func AccessKey(name, value string) bool {
	const length = 40 // https://docs.aws.amazon.com/IAM/latest/UserGuide/id_credentials_access-keys.html
	return strings.HasSuffix(strings.ToUpper(name), "AWS_SECRET_ACCESS_KEY") && len(value) >= length && !strings.HasPrefix(value, "arn:")
}

// Option tells whether one of a command's options is a passphrase: as --NAME VALUE or --NAME=VALUE, or as an assignment of a shell.
func Option(words []string) bool {
	for i, word := range words {
		for _, part := range strings.Fields(word) {
			name, value, assigned := strings.Cut(strings.TrimLeft(part, "-"), "=")
			if assigned && Passphrase(variable(name), strings.Trim(value, `"'`)) && !strings.HasPrefix(strings.Trim(value, `"'`), "$") {
				return true
			}
		}
		if strings.HasPrefix(word, "-") && !strings.Contains(word, "=") && i+1 < len(words) && !strings.HasPrefix(words[i+1], "-") &&
			Passphrase(variable(strings.TrimLeft(word, "-")), words[i+1]) && !strings.HasPrefix(words[i+1], "$") {
			return true
		}
	}
	return false
}

// variable is how an option would be called as a variable.
func variable(option string) string { return strings.ReplaceAll(option, "-", "_") }

// credential is what options of logs with a credential are called, such as splunk-token.
var credential = regexp.MustCompile(`(?i)(^|[-_.])(token|password|secret|api_?-?key|access_?-?key)$`)

// Credential tells whether an option of a log holds a credential.
func Credential(option, value string) bool {
	return value != "" && credential.MatchString(option) && !strings.HasPrefix(value, "arn:")
}
