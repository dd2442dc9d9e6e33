package credential

import (
	"bytes"
	"encoding/base64"
	"regexp"
	"strings"
)

// maxBlocks is how many PEM blocks a value may have.
const maxBlocks = 1024

// block is one block of PEM, and the line that it begins at, counted from 1.
type block struct {
	label string
	der   []byte
	line  int
}

// labels are the ones that an error may name: what stands in a line may be anything.
var labels = map[string]string{
	"CERTIFICATE":             "a certificate",
	"X509 CERTIFICATE":        "a certificate under an old label",
	"TRUSTED CERTIFICATE":     "a certificate in OpenSSL's own form",
	"CERTIFICATE REQUEST":     "a certificate request",
	"NEW CERTIFICATE REQUEST": "a certificate request",
	"PRIVATE KEY":             "a private key",
	"RSA PRIVATE KEY":         "a private key",
	"EC PRIVATE KEY":          "a private key",
	"ENCRYPTED PRIVATE KEY":   "an encrypted private key",
	"DSA PRIVATE KEY":         "a DSA key",
	"OPENSSH PRIVATE KEY":     "a key in the form of OpenSSH",
	"PUBLIC KEY":              "a public key",
	"RSA PUBLIC KEY":          "a public key",
	"EC PARAMETERS":           "parameters of an elliptic curve",
	"DH PARAMETERS":           "Diffie-Hellman parameters",
	"X509 CRL":                "a revocation list",
	"PKCS7":                   "a PKCS #7 container",
	"CMS":                     "a CMS container",
}

// fillerLine is what a template has where base64 is to come.
var fillerLine = regexp.MustCompile(`(?i)^\s*(placeholder|change[-_ ]?me|replace[-_ ]?me|your\b.*|<.*>|\$\{.*\}|todo|x{8,})\s*$`)

// decode reads all blocks of a text in PEM (RFC 7468), strictly: encoding/pem passes over a block that it does
// not understand, and a chain would lack a certificate without anybody noticing. Lines between blocks may be
// empty or begin with #.
func decode(v Value, text []byte) ([]block, error) {
	var blocks []block
	lines := strings.Split(string(bytes.TrimSuffix(text, []byte("\n"))), "\n")
	for n := 0; n < len(lines); n++ {
		line := lines[n]
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		label, err := begin(v, line, n+1)
		if err != nil {
			return nil, err
		}
		end, err := body(v, lines, n, label)
		if err != nil {
			return nil, err
		}
		der, err := base64.StdEncoding.Strict().DecodeString(strings.Join(lines[n+1:end], ""))
		if err != nil {
			return nil, v.fault("copy the block again; a character was lost", "the block at line %d is not base64: its length or its end is wrong", n+1)
		}
		if len(blocks) == maxBlocks {
			return nil, v.fault("is it the right secret?", "it has more than %d PEM blocks", maxBlocks)
		}
		blocks = append(blocks, block{label: label, der: der, line: n + 1})
		n = end
	}
	if len(blocks) == 0 {
		return nil, v.fault("store the text with its BEGIN and END lines", "it has no PEM block, only comments")
	}
	return blocks, nil
}

// begin reads the line before a block.
func begin(v Value, line string, number int) (string, error) {
	trimmed := strings.TrimSpace(line)
	label, is := strings.CutPrefix(line, "-----BEGIN ")
	switch {
	case is && strings.HasSuffix(label, "-----") && len(label) > len("-----") && !strings.Contains(label[:len(label)-5], "-----"):
		return label[:len(label)-5], nil
	case is && strings.Contains(label, "-----END "):
		return "", v.fault("store it with its line ends; a shell loses them without quotation marks", "the whole block at line %d stands in one line", number)
	case strings.HasPrefix(trimmed, "-----BEGIN ") && trimmed != line:
		return "", v.fault("remove the white space at both ends of its lines", "the BEGIN line %d is indented or has white space behind it", number)
	case strings.HasPrefix(trimmed, "-----END "):
		return "", v.fault("copy the text again from its beginning", "line %d ends a block that has not begun", number)
	case strings.Contains(strings.ToUpper(line), "BEGIN ") && strings.Contains(line, "--"):
		return "", v.fault("write it as -----BEGIN LABEL-----, with five dashes at both ends", "the BEGIN line %d is malformed", number)
	case strings.Contains(line, "Bag Attributes"):
		return "", v.fault("leave only the blocks: openssl x509 or openssl pkey writes them so", "line %d holds attributes of a PKCS #12 file", number)
	}
	return "", v.fault("leave only PEM blocks, empty lines, and comments that begin with #", "line %d is outside of any PEM block", number)
}

// body finds the END line of the block that begins in lines[start], and looks at what is between.
func body(v Value, lines []string, start int, label string) (int, error) {
	for n := start + 1; n < len(lines); n++ {
		line := lines[n]
		switch {
		case strings.HasPrefix(line, "-----END "):
			if line != "-----END "+label+"-----" {
				return 0, v.fault("copy the block again", "the END line %d is not the one of the block that begins at line %d", n+1, start+1)
			}
			if n == start+1 {
				return 0, v.fault("copy the block again", "the block at line %d is empty", start+1)
			}
			return n, nil
		case strings.Contains(line, "-----BEGIN "):
			return 0, v.fault("copy the block again, with its END line", "the block at line %d does not end before the next one begins", start+1)
		case strings.Contains(line, "-----END "):
			return 0, v.fault("put a line end before it and nothing behind it", "the END in line %d does not begin its line", n+1)
		case strings.HasPrefix(line, "Proc-Type:") && strings.Contains(line, "ENCRYPTED"):
			return 0, v.fault("convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256", "the key is encrypted by the old scheme of OpenSSL (Proc-Type: 4,ENCRYPTED), which is weak")
		case strings.Contains(line, ": "):
			return 0, v.fault("remove the header lines", "the block at line %d has PEM headers", start+1)
		}
		if err := bodyLine(v, line, n+1); err != nil {
			return 0, err
		}
	}
	return 0, v.fault("copy the whole text; what carried it may have a limit", "the block at line %d has no END line: it was cut off", start+1)
}

// bodyLine looks at one line of base64.
func bodyLine(v Value, line string, number int) error {
	switch {
	case fillerLine.MatchString(line):
		return v.fault("put the real value into the secret", "line %d is a PLACEHOLDER, between BEGIN and END", number)
	case line == "":
		return v.fault("remove the empty line", "line %d is empty, in the middle of a block", number)
	case strings.TrimSpace(line) != line:
		return v.fault("remove the white space at both ends of its lines", "line %d is indented or has white space behind it, in the middle of a block", number)
	case strings.Contains(line, "*"):
		return v.fault("store the value itself, not what a log or a console shows of it", "line %d was masked with asterisks", number)
	case strings.Contains(line, "..."):
		return v.fault("store the whole value", "line %d was shortened to dots", number)
	case strings.Contains(line, `\`):
		return v.fault("store the text with real line ends", `line %d has a backslash that is not \n`, number)
	case strings.ContainsAny(line, "-_"):
		return v.fault("code it in standard base64, with + and /", "line %d is in the base64 of URLs", number)
	case strings.Contains(strings.TrimRight(line, "="), "="):
		return v.fault("copy the block again; two may have run into one", "line %d has an equals sign before its end", number)
	}
	for _, c := range line {
		switch {
		case 'A' <= c && c <= 'Z', 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '+', c == '/', c == '=':
		case c == ' ' || c == '\t':
			return v.fault("store it with its line ends; a shell loses them without quotation marks", "line %d has white space in it, where line ends may have been", number)
		case c > 127:
			return v.fault("copy the text again, from a source that does not beautify it", "line %d has a character that is not ASCII", number)
		default:
			return v.fault("copy the text again", "line %d has a character that base64 does not have", number)
		}
	}
	return nil
}
