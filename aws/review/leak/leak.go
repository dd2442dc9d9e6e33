// Package leak finds keys, certificates and passphrases in texts where they do not belong.
package leak

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/ascii85"
	"encoding/base64"
	"encoding/hex"
	"io"
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

// begin is how PEM begins (RFC 7468), with what it is; and the files of SSH2 (RFC 4716), which have a hyphen less.
var begin = regexp.MustCompile(`-{4,5}\s*BEGIN ([A-Z0-9 ]{1,40})-{4,5}`)

// webKey and private are what a private key as JSON has (RFC 7517, RFC 8037; oct keys are k), in JSON within JSON, too.
var (
	webKey  = regexp.MustCompile(`\\*"kty\\*"\s*:`)
	private = regexp.MustCompile(`\\*"[dk]\\*"\s*:\s*\\*"[A-Za-z0-9_-]{16,}`)
)

// putty is how a key of PuTTY begins: what is public alone has another form.
const putty = "PuTTY-User-Key-File-"

// fives are what ASCII85 could be, with the letters of Adobe and with those of RFC 1924.
var fives = []*regexp.Regexp{regexp.MustCompile("[!-uz]{60,}"), regexp.MustCompile("[0-9A-Za-z!#$%&()*+;<=>?@^_`{|}~-]{60,}")}

// letters are those of RFC 1924, in their order.
const letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"

// digits is what DER could be in hexadecimal digits, with colons or without.
var digits = regexp.MustCompile(`(?:[0-9A-Fa-f]{2}:?){40,}`)

// encoded is what base64 could be: nothing shorter holds a key.
var encoded = regexp.MustCompile(`[A-Za-z0-9+/_-]{40,}={0,2}`)

// depth is how often a text may be encoded: a secret in base64 in base64 is still one.
const depth = 3

// identity is how a key of age begins (https://age-encryption.org/v1).
const identity = "AGE-SECRET-KEY-1"

// mostInflated is how many bytes are inflated for one text, all together: a few bytes may say that they are gigabytes.
const mostInflated = 1 << 20

// search is one look at a text.
type search struct {
	room int64 // how many bytes may still be inflated
}

// Find finds the worst that stands in a text: as PEM, as PEM or DER in base64, in ASCII85 or in hexadecimal digits, compressed before
// that (gzip, zlib) or not, as JSON (JWK), or as a key of age, PuTTY or SSH2. What line breaks were made of, how it is escaped for a URL and what
// stands before it do not matter.
func Find(text string) Kind {
	s := &search{room: mostInflated}
	found := s.find(text, depth)
	if plain, err := url.PathUnescape(strings.ReplaceAll(text, "+", " ")); err == nil && plain != text {
		found = max(found, s.find(plain, depth))
	}
	return found
}

// whole tells whether a key stands in a text that is not PEM.
func whole(text string) bool {
	return strings.Contains(strings.ToUpper(text), identity) || strings.Contains(text, putty) || webKey.MatchString(text) && private.MatchString(text)
}

// inflate gives what was compressed, as far as there is room.
func (s *search) inflate(b []byte) []byte {
	if len(b) < 2 || s.room <= 0 {
		return nil
	}
	var from io.Reader
	var err error
	switch {
	case b[0] == 0x1f && b[1] == 0x8b:
		from, err = gzip.NewReader(bytes.NewReader(b))
	case b[0] == 0x78:
		from, err = zlib.NewReader(bytes.NewReader(b))
	default:
		return nil
	}
	if err != nil {
		return nil
	}
	plain, _ := io.ReadAll(io.LimitReader(from, s.room)) // as far as it goes
	s.room -= int64(len(plain))
	return plain
}

// within finds what stands in bytes that were encoded.
func (s *search) within(b []byte, left int) Kind {
	if der(b) {
		return Key
	}
	worst := Nothing
	if plain := s.inflate(b); len(plain) > 0 {
		if der(plain) {
			return Key
		}
		worst = s.find(string(plain), left-1)
	}
	return max(worst, s.find(string(b), left-1))
}

func (s *search) find(text string, left int) Kind {
	if whole(text) {
		return Key
	}
	worst := Nothing
	for _, found := range begin.FindAllStringSubmatch(text, -1) {
		worst = max(worst, PEM)
		if strings.Contains(found[1], "PRIVATE KEY") {
			return Key
		}
	}
	if left == 0 {
		return worst
	}
	folded := strings.NewReplacer("\n", "", "\r", "", `\n`, "").Replace(text)
	for _, candidate := range encoded.FindAllString(folded, -1) {
		plain := strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(candidate, "="))
		worst = max(worst, s.within(decode(plain), left))
		// What stands before it may look like the beginning of it: four letters of base64 are three bytes.
		for skip := 1; skip < 4; skip++ {
			worst = max(worst, s.find(string(decode(plain[skip:])), 0))
		}
	}
	for _, candidate := range digits.FindAllString(folded, -1) {
		decoded, _ := hex.DecodeString(strings.ReplaceAll(candidate, ":", "")) // as far as it goes
		worst = max(worst, s.within(decoded, left))
	}
	if left == depth {
		worst = max(worst, s.inFives(folded))
	}
	return worst
}

// inFives finds PEM and DER in ASCII85, whatever stands before PEM. What is encoded more than once is not looked for.
func (s *search) inFives(text string) Kind {
	worst := Nothing
	for i, pattern := range fives {
		for _, candidate := range pattern.FindAllString(text, -1) {
			src := []byte(candidate)
			for at := range src {
				if i > 0 {
					src[at] = '!' + byte(strings.IndexByte(letters, src[at]))
				}
			}
			for skip := range 5 {
				plain := make([]byte, 4*len(src))                  // z is four bytes
				n, _, _ := ascii85.Decode(plain, src[skip:], true) // as far as it goes
				if der(plain[:n]) {
					return Key
				}
				worst = max(worst, s.find(string(plain[:n]), 0))
			}
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

// account is how the secret access key of an AWS account stands in JSON, in a file of credentials or in a command.
var account = regexp.MustCompile(`(?i)secret[-_]?access[-_]?key[\\"']*[\s:=]+[\\"']*[A-Za-z0-9/+]{40}(?:[^A-Za-z0-9/+]|$)`)

// Account tells whether the secret access key of an AWS account stands in a text beside its name, plainly or in base64.
func Account(text string) bool {
	if account.MatchString(text) {
		return true
	}
	for _, candidate := range encoded.FindAllString(text, -1) {
		if account.Match(decode(strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(candidate, "=")))) {
			return true
		}
	}
	return false
}

// Option tells whether one of a command's options is a passphrase: as --NAME VALUE or --NAME=VALUE, or as an assignment of a shell.
func Option(words []string) bool {
	for i, word := range words {
		parts := strings.Fields(word)
		for j, part := range parts {
			name, value, assigned := strings.Cut(part, "=")
			if assigned && phrased(name, value) || j+1 < len(parts) && option(part) && follows(parts[j+1]) && phrased(part, parts[j+1]) {
				return true
			}
		}
		if i+1 < len(words) && option(word) && !strings.HasPrefix(words[i+1], "-") && phrased(word, words[i+1]) {
			return true
		}
	}
	return false
}

// option tells whether a word names an option whose value is the next word.
func option(word string) bool {
	return strings.HasPrefix(word, "-") && !strings.ContainsAny(word, "=;")
}

// follows tells whether a word of a shell's line may be a value: it is no other option, and ends no command.
func follows(word string) bool { return !strings.ContainsAny(word[:1], "-&|;<>()#") }

// phrased tells whether an option, or an assignment, gives a passphrase, and not the variable of a shell that has it.
func phrased(name, value string) bool {
	value = strings.Trim(value, `"'`)
	return Passphrase(variable(strings.TrimLeft(name, "-")), value) && !strings.HasPrefix(value, "$")
}

// variable is how an option would be called as a variable.
func variable(option string) string { return strings.ReplaceAll(option, "-", "_") }

// credential is what options of logs with a credential are called, such as splunk-token.
var credential = regexp.MustCompile(`(?i)(^|[-_.])(token|password|secret|api_?-?key|access_?-?key)$`)

// Credential tells whether an option of a log holds a credential.
func Credential(option, value string) bool {
	return value != "" && credential.MatchString(option) && !strings.HasPrefix(value, "arn:")
}
