package secret

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
)

// IsPublic tells whether a value may be shown to anybody: it is certificates and revocation lists (RFC 5280)
// that parse, in PEM (RFC 7468) with nothing but white space around them, or one of them in DER. There are
// too many ways to write a key down to look for one, so that everything else counts as secret: also a text
// without a key in it, and a certificate with a comment.
func IsPublic(value []byte) bool {
	if isPublicDER("CERTIFICATE", value) || isPublicDER("X509 CRL", value) {
		return true
	}
	blocks := 0
	for rest := bytes.TrimSpace(value); len(rest) > 0; blocks++ {
		block, after := pem.Decode(rest)
		if block == nil || !isPublicDER(block.Type, block.Bytes) {
			return false
		}
		// Decode passes over what it does not understand: text, headers, blocks that are not whole. What it has
		// taken is to be this block and nothing else.
		plain := pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})
		if !bytes.Equal(withoutSpace(rest[:len(rest)-len(after)]), withoutSpace(plain)) {
			return false
		}
		rest = bytes.TrimSpace(after)
	}
	return blocks > 0
}

// isPublicDER tells whether something is, as a whole, what the type of a PEM block says, and public. A
// certificate request is not: it may hold a password (RFC 2985, challengePassword).
func isPublicDER(kind string, der []byte) bool {
	var err error
	switch kind {
	case "CERTIFICATE":
		_, err = x509.ParseCertificate(der)
	case "X509 CRL":
		_, err = x509.ParseRevocationList(der)
	default:
		return false
	}
	return err == nil
}

func withoutSpace(text []byte) []byte { return bytes.Join(bytes.Fields(text), nil) }
