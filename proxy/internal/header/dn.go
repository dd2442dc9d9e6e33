package header

import (
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
)

// attribute and relativeName are the parts of a distinguished name (RFC 5280 section 4.1.2.4).
// encoding/asn1 takes a type whose name ends in SET for a SET OF.
type (
	attribute struct {
		Type  asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	relativeNameSET []attribute
)

// shortNames are those that OpenSSL prints.
var shortNames = map[string]string{
	"2.5.4.3": "CN", "2.5.4.4": "SN", "2.5.4.5": "serialNumber", "2.5.4.6": "C", "2.5.4.7": "L", "2.5.4.8": "ST",
	"2.5.4.9": "street", "2.5.4.10": "O", "2.5.4.11": "OU", "2.5.4.12": "title", "2.5.4.13": "description",
	"2.5.4.15": "businessCategory", "2.5.4.17": "postalCode", "2.5.4.42": "GN", "2.5.4.43": "initials",
	"2.5.4.44": "generationQualifier", "2.5.4.46": "dnQualifier", "2.5.4.97": "organizationIdentifier",
	"0.9.2342.19200300.100.1.1": "UID", "0.9.2342.19200300.100.1.25": "DC", "1.2.840.113549.1.9.1": "emailAddress",
}

// DN prints a DER distinguished name as NGINX does in $ssl_client_s_dn: by RFC 2253, the last part
// first, with OpenSSL's short names, and everything but printable ASCII escaped. What is no
// distinguished name is printed as "#" and its hex digits.
func DN(raw []byte) string {
	var names []relativeNameSET
	if rest, err := asn1.Unmarshal(raw, &names); err != nil || len(rest) > 0 {
		return "#" + hex.EncodeToString(raw)
	}
	var parts []string
	for _, name := range slices.Backward(names) {
		var attributes []string
		for _, a := range slices.Backward(name) {
			attributes = append(attributes, a.String())
		}
		parts = append(parts, strings.Join(attributes, "+"))
	}
	return strings.Join(parts, ",")
}

// String is TYPE=VALUE.
func (a attribute) String() string {
	oid := a.Type.String()
	name, known := shortNames[oid]
	text, isText := decodeText(a.Value)
	switch {
	case !known:
		return oid + "=#" + strings.ToUpper(hex.EncodeToString(a.Value.FullBytes))
	case !isText:
		return name + "=#" + strings.ToUpper(hex.EncodeToString(a.Value.FullBytes))
	}
	return name + "=" + escape(text)
}

// decodeText gives the text of the string types that names are made of.
func decodeText(v asn1.RawValue) (string, bool) {
	if v.Class != asn1.ClassUniversal {
		return "", false
	}
	switch v.Tag {
	case asn1.TagUTF8String:
		return string(v.Bytes), true
	case asn1.TagPrintableString, asn1.TagIA5String, asn1.TagT61String, asn1.TagNumericString, 26: // VisibleString
		runes := make([]rune, len(v.Bytes)) // Latin-1, as OpenSSL takes them
		for i, b := range v.Bytes {
			runes[i] = rune(b)
		}
		return string(runes), true
	case asn1.TagBMPString:
		if len(v.Bytes)%2 != 0 {
			return "", false
		}
		units := make([]uint16, len(v.Bytes)/2)
		for i := range units {
			units[i] = uint16(v.Bytes[2*i])<<8 | uint16(v.Bytes[2*i+1])
		}
		return string(utf16.Decode(units)), true
	}
	return "", false
}

// escape follows RFC 2253 section 2.4, and escapes control characters and bytes beyond ASCII, too.
func escape(text string) string {
	var b strings.Builder
	for i := range len(text) {
		c := text[i]
		switch {
		case c < 0x20 || c >= 0x7f:
			fmt.Fprintf(&b, `\%02X`, c)
		case strings.IndexByte(`,+"\<>;`, c) >= 0,
			c == ' ' && (i == 0 || i == len(text)-1),
			c == '#' && i == 0:
			b.WriteByte('\\')
			b.WriteByte(c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
