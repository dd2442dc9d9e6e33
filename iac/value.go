package iac

import (
	"fmt"
	"strings"
)

// ref is something that is known only where a template is deployed, and what it is called there.
type ref struct {
	// cfn is a resource or parameter of a CloudFormation template ("CheckoutTask"), or an attribute of one
	// ("CheckoutTask.Arn").
	cfn string
	// tf is an expression of Terraform.
	tf string
	// given is the name by which a person gives it where there is no template around.
	given string
}

// text is a text with refs in it. One of a single ref is that ref's value, which may be a list.
type text []any // string or ref

// say joins strings, refs and texts.
func say(parts ...any) text {
	var t text
	for _, part := range parts {
		switch p := part.(type) {
		case string:
			if n := len(t); n > 0 {
				if last, ok := t[n-1].(string); ok {
					t[n-1] = last + p
					continue
				}
			}
			t = append(t, p)
		case ref:
			t = append(t, p)
		case text:
			t = append(t, p...)
		default:
			panic(fmt.Sprintf("iac: a text is made of %T", part)) // a mistake of this package, which every test finds
		}
	}
	return t
}

// literal is the text, when it has no ref.
func (t text) literal() (string, bool) {
	switch len(t) {
	case 0:
		return "", true
	case 1:
		s, ok := t[0].(string)
		return s, ok
	}
	return "", false
}

// alone is the ref that is all of a text.
func (t text) alone() (ref, bool) {
	if len(t) != 1 {
		return ref{}, false
	}
	r, ok := t[0].(ref)
	return r, ok
}

// field is a member of an object. note is a comment for the reader, written above it.
type field struct {
	key   string
	value any
	note  string
}

// object keeps the order of its members: it is the order in which they are read.
type object []field

// list is a list of values.
type list []any

// noted is an element of a list with a comment above it.
type noted struct {
	note  string
	value any
}

// either is one of two values, by a condition of a CloudFormation template.
type either struct {
	condition, yes, no string
}

// texts make a list.
func texts[T any](items []T) list {
	l := make(list, 0, len(items))
	for _, item := range items {
		l = append(l, item)
	}
	return l
}

// opaque are the members whose own members are data, and not names of the API.
var opaque = map[string]bool{"options": true}

// pascal writes the members of an object as CloudFormation does: the API's readOnly is its ReadOnly.
func pascal(value any) any {
	switch v := value.(type) {
	case object:
		out := make(object, 0, len(v))
		for _, f := range v {
			inner := f.value
			if !opaque[f.key] {
				inner = pascal(inner)
			}
			out = append(out, field{key: strings.ToUpper(f.key[:1]) + f.key[1:], value: inner, note: f.note})
		}
		return out
	case list:
		out := make(list, 0, len(v))
		for _, item := range v {
			out = append(out, pascal(item))
		}
		return out
	case noted:
		return noted{v.note, pascal(v.value)}
	}
	return value
}

// identifier writes a name as an identifier in the manner of CloudFormation: pay-gate is PayGate.
func identifier(name string) string {
	var b strings.Builder
	upper := true
	for _, r := range name {
		switch {
		case r >= 'a' && r <= 'z' && upper:
			b.WriteRune(r - 'a' + 'A')
			upper = false
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			b.WriteRune(r)
			upper = false
		default:
			upper = true
		}
	}
	return b.String()
}

// label writes a name as an identifier of Terraform: pay-gate is pay_gate. One that begins with a digit gets a letter's stand-in before it,
// because no identifier of Terraform does: 3ds is _3ds.
func label(name string) string {
	written := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '_':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '_'
	}, name)
	if written != "" && written[0] >= '0' && written[0] <= '9' {
		return "_" + written
	}
	return written
}

// mostCommonName is how long a common name may be (RFC 5280, appendix A: ub-common-name).
const mostCommonName = 64

// commonName is that of an authority's CA, as much of it as a certificate takes.
func commonName(mesh, authority string) string {
	name := mesh + " " + authority
	return name[:min(len(name), mostCommonName)]
}

// snake writes a name of the API as Terraform does: taskRoleArn is task_role_arn.
func snake(name string) string {
	var b strings.Builder
	for i, r := range name {
		if r >= 'A' && r <= 'Z' {
			if i > 0 {
				b.WriteByte('_')
			}
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}
