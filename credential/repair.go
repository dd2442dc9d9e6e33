package credential

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"unicode/utf8"

	"countersign.dev/secret"
)

// maxValue is the greatest size of a value in bytes. A bundle of all the public roots of the world has
// 220 KB; a certificate with its chain rarely has 10.
const maxValue = 1 << 20

// maxWraps is how often a text may be a JSON string in a JSON string.
const maxWraps = 4

// utf8Mark is the byte order mark that some editors write.
var utf8Mark = []byte("\xef\xbb\xbf")

// repair undoes what transports and editors do to a text in PEM, and refuses by name what is not such a text
// at all. notes gets what was done.
func repair(v Value, notes *[]Note) ([]byte, error) {
	note := func(what string) { *notes = append(*notes, Note{Text: v.Name + ": " + what}) }
	if len(v.Data) > maxValue {
		return nil, v.fault("is it the right secret?", "it has %d bytes, and at most %d are read", len(v.Data), maxValue)
	}
	text, marked := bytes.CutPrefix(v.Data, utf8Mark)
	if marked {
		note("a byte order mark was removed")
	}
	text, err := unwrap(v, text, note)
	if err != nil {
		return nil, err
	}
	if err := refuseOther(v, text); err != nil {
		return nil, err
	}
	for _, mend := range []struct {
		old, new, note string
	}{
		{`\r\n`, "\n", `the two characters \n were made line ends`},
		{`\n`, "\n", `the two characters \n were made line ends`},
		{"\r\n", "\n", "line ends of Windows were made ordinary ones"},
		{"\r", "\n", "carriage returns were made line ends"},
	} {
		if bytes.Contains(text, []byte(mend.old)) {
			text = bytes.ReplaceAll(text, []byte(mend.old), []byte(mend.new))
			note(mend.note)
		}
	}
	if text[len(text)-1] != '\n' {
		text = append(bytes.Clone(text), '\n')
		*notes = append(*notes, Note{Text: v.Name + ": the last line was ended", Usual: true})
	}
	return text, nil
}

// unwrap takes a text out of JSON: a string, a string in a string, the object of a whole secret.
func unwrap(v Value, text []byte, note func(string)) ([]byte, error) {
	for range maxWraps {
		trimmed := bytes.TrimSpace(text)
		if len(trimmed) == 0 {
			return text, nil // refuseOther has the word for it
		}
		switch trimmed[0] {
		case '"':
			var inner string
			if err := json.Unmarshal(trimmed, &inner); err != nil {
				return nil, v.fault("store the text itself, without quotation marks", "it begins with a quotation mark and is not a JSON string")
			}
			text = []byte(inner)
			note("it was a JSON string and was taken out of it")
		case '{':
			if template.Match(trimmed) {
				return text, nil // {{NAME}} is no JSON, and refuseOther has the word for it
			}
			inner, err := field(v, trimmed)
			if err != nil {
				return nil, err
			}
			text = inner
			note("it was a JSON object; its field " + v.Field + " was taken")
		case '[':
			return nil, v.fault("store the certificates or the key as one text in PEM", "it is a JSON array")
		default:
			return text, nil
		}
		text = bytes.TrimPrefix(text, utf8Mark)
	}
	return nil, v.fault("store the text itself", "it is wrapped in JSON more than %d times", maxWraps-1)
}

// field reads the one field of a JSON object. What an object may look like is the same as for one in a store: a name
// that is given twice is refused, for two readers could take two values.
func field(v Value, object []byte) ([]byte, error) {
	fields, err := secret.ParseObject(object)
	if err != nil {
		return nil, v.fault("store the text itself, or a JSON object with a field "+v.Field, "it begins with a brace and is not taken as a JSON object: %v", err)
	}
	raw, have := fields[v.Field]
	if !have {
		return nil, v.fault("name the field in the reference to the secret (on ECS: valueFrom ARN:FIELD::)", "it is a JSON object without a field %s", v.Field)
	}
	var text string
	if err := json.Unmarshal(raw, &text); err != nil || raw[0] != '"' { // null would be taken for an empty string
		return nil, v.fault("store the text in PEM there", "it is a JSON object whose field %s is not a string", v.Field)
	}
	return []byte(text), nil
}

// fillers are what people and templates put where a value is to come.
var fillers = regexp.MustCompile(`(?i)^[\s<{\[$"'(%]*(` + fillerWords + `|secret|example)\b[^\n]{0,64}$`)

// fillerAlone is one that stands for itself: a passphrase may well begin with such a word.
var fillerAlone = regexp.MustCompile(`(?i)^[\s<{\[$"'(%]*(` + fillerWords + `)[\s>}\])"'%]*$`)

const fillerWords = `placeholder|change[-_ ]?me|replace[-_ ]?me|todo|fixme|tbd|dummy|null|none|nil|undefined|empty|x{3,}`

// template is a reference that something should have replaced.
var template = regexp.MustCompile(`^\s*(\$\{[^}\n]*\}|\$\([^)\n]*\)|\{\{[^}\n]*\}\}|\$[A-Za-z_][A-Za-z0-9_]*|%[A-Za-z_][A-Za-z0-9_]*%)\s*$`)

// refuseOther refuses, each by its name, what is found in the place of a text in PEM.
func refuseOther(v Value, text []byte) error {
	trimmed := bytes.TrimSpace(text)
	if len(trimmed) == 0 {
		return v.refuseEmpty()
	}
	switch {
	case bytes.HasPrefix(text, []byte("\xff\xfe")) || bytes.HasPrefix(text, []byte("\xfe\xff")):
		return v.fault("save it as UTF-8", "it is in UTF-16")
	case bytes.HasPrefix(text, []byte("\xfe\xed\xfe\xed")):
		return v.fault("export certificate and key as PEM", "it is a Java key store (JKS)")
	case text[0] == 0x30 && len(text) > 1 && text[1] >= 0x80:
		return v.fault("convert it with openssl to PEM", "it is binary: DER or PKCS #12, not PEM")
	case bytes.HasPrefix(text, []byte("\x1f\x8b")):
		return v.fault("store the text itself", "it is compressed with gzip")
	case bytes.IndexByte(text, 0) >= 0:
		return v.fault("store the text again", "it holds a NUL byte at position %d", bytes.IndexByte(text, 0))
	case !utf8.Valid(text):
		return v.fault("store the text in PEM", "it is not a text: it has bytes that are not UTF-8")
	case bytes.Contains(trimmed, []byte("-----")):
		return nil // it is meant to be PEM
	}
	return v.refuseText(string(trimmed))
}

func (v Value) refuseEmpty() error {
	if len(v.Data) == 0 {
		return v.fault("put the value into it, and see that the reference to the secret is right", "it is empty")
	}
	return v.fault("put the value into it", "it holds nothing that could be read: white space, or an empty JSON string")
}

// refuseText names what a text without any PEM in it looks like.
func (v Value) refuseText(text string) error {
	switch {
	case template.MatchString(text):
		return v.fault("see that whatever fills the template runs, and where", "it is a variable that nothing has replaced")
	case fillers.MatchString(text):
		return v.fault("put the real value into the secret", "it is a PLACEHOLDER")
	case strings.HasPrefix(text, "arn:"):
		return v.fault("inject the secret's value (on ECS: secrets with valueFrom, not environment)", "it is the ARN of a secret, not its value")
	case strings.HasPrefix(text, "LS0t"):
		return v.fault("decode it before it is stored", "it is PEM that was coded in base64 once more")
	case strings.HasPrefix(text, "MII") || strings.HasPrefix(text, "MIG") || strings.HasPrefix(text, "MC4"):
		return v.fault("put them back; PEM is a text with them", "it is base64 without its BEGIN and END lines")
	case strings.HasPrefix(text, "AGE-SECRET-KEY-") || strings.HasPrefix(text, "age-encryption.org/"):
		return v.fault("decrypt it first, or read it through its store", "it is something of age, not PEM")
	case strings.HasPrefix(text, "ssh-") || strings.HasPrefix(text, "ecdsa-sha2-"):
		return v.fault("store the X.509 certificate and its key", "it is a public key of SSH")
	case strings.HasPrefix(text, "<"):
		return v.fault("store the value; somebody stored the page of an error", "it is HTML or XML")
	case !strings.Contains(text, "\n") && (strings.HasPrefix(text, "/") || strings.HasPrefix(text, "./") || strings.HasPrefix(text, "file:") || strings.HasSuffix(text, ".pem")):
		return v.fault("store what the file holds", "it is the name of a file, not its contents")
	}
	return v.fault("store the text that begins with -----BEGIN", "it holds no PEM")
}
