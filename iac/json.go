package iac

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// resolver says what a ref stands for.
type resolver func(ref) string

// longest stands for what is known only where a template is deployed, at its full length.
func longest(r ref) string {
	switch r {
	case partition:
		return "aws-us-gov"
	case region:
		return "ap-southeast-1"
	case account:
		return "123456789012"
	}
	if strings.HasPrefix(r.given, "role/") {
		return "arn:aws-us-gov:iam::123456789012:" + r.given
	}
	secret := "arn:aws-us-gov:secretsmanager:ap-southeast-1:123456789012:secret:" + r.given + "-AbCdEf"
	if strings.HasPrefix(r.given, "authority/") || strings.HasPrefix(r.given, "key/") { // a secret may be called so, too
		const authority = "arn:aws-us-gov:acm-pca:ap-southeast-1:123456789012:certificate-authority/11111111-2222-3333-4444-555555555555"
		return secret + authority[min(len(secret), len(authority)):]
	}
	return secret
}

// resolved is a text without refs.
func (t text) resolved(resolve resolver) string {
	var b strings.Builder
	for _, part := range t {
		switch p := part.(type) {
		case string:
			b.WriteString(p)
		case ref:
			b.WriteString(resolve(p))
		}
	}
	return b.String()
}

// compactJSON writes a value as JSON without spaces, its members in their order.
func compactJSON(value any, resolve resolver) []byte {
	var b bytes.Buffer
	writeJSON(&b, value, resolve)
	return b.Bytes()
}

// indentedJSON writes a value as JSON for people.
func indentedJSON(value any, resolve resolver) []byte {
	var b bytes.Buffer
	if err := json.Indent(&b, compactJSON(value, resolve), "", "  "); err != nil {
		panic(fmt.Sprintf("iac: what was written is not JSON: %v", err)) // a mistake of this package, which every test finds
	}
	b.WriteByte('\n')
	return b.Bytes()
}

func writeJSON(b *bytes.Buffer, value any, resolve resolver) {
	switch v := value.(type) {
	case object:
		b.WriteByte('{')
		for i, f := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			b.Write(quoteJSON(f.key))
			b.WriteByte(':')
			writeJSON(b, f.value, resolve)
		}
		b.WriteByte('}')
	case list:
		b.WriteByte('[')
		for i, item := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			writeJSON(b, item, resolve)
		}
		b.WriteByte(']')
	case noted:
		writeJSON(b, v.value, resolve)
	case text:
		b.Write(quoteJSON(v.resolved(resolve)))
	case ref:
		b.Write(quoteJSON(resolve(v)))
	case string:
		b.Write(quoteJSON(v))
	case int:
		b.WriteString(strconv.Itoa(v))
	case bool:
		b.WriteString(strconv.FormatBool(v))
	default:
		panic(fmt.Sprintf("iac: %T cannot be written as JSON", value)) // a mistake of this package, which every test finds
	}
}

// quoteJSON writes a text without escaping what only matters in HTML.
func quoteJSON(s string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a text does not fail
	return bytes.TrimRight(b.Bytes(), "\n")
}

// wrap breaks a remark into lines.
func wrap(s string) string {
	const width = 110
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(s) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		line = strings.TrimPrefix(line+" "+word, " ")
	}
	return strings.Join(append(lines, line), "\n")
}

func sorted(all []string) []string {
	slices.Sort(all)
	return all
}

// plainTexts are texts without refs.
func plainTexts(all []string) []text {
	out := make([]text, 0, len(all))
	for _, s := range all {
		out = append(out, say(s))
	}
	return out
}
