package iac

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// expression is one of Terraform's language, written as it is.
type expression string

// encoded is a value that Terraform has to give as a text of JSON.
type encoded struct{ value any }

// argument is a name with its value, and block what has a body of its own.
type argument struct {
	name  string
	value any
	note  string
}

type block struct {
	kind   string
	labels []string
	note   string
	body   []any // argument or block
}

// hclWriter writes Terraform's language. Its output is to be formatted.
type hclWriter struct{ b strings.Builder }

func (w *hclWriter) comment(note string) {
	for line := range strings.Lines(note) {
		if line = strings.TrimRight(line, "\n"); line != "" {
			line = "# " + line
		}
		w.b.WriteString(line + "\n")
	}
}

func (w *hclWriter) block(b block) {
	w.comment(b.note)
	w.b.WriteString(b.kind)
	for _, l := range b.labels {
		w.b.WriteString(" " + hclQuote(l))
	}
	w.b.WriteString(" {\n")
	for _, item := range b.body {
		switch i := item.(type) {
		case argument:
			w.comment(i.note)
			w.b.WriteString(i.name + " = ")
			w.value(i.value)
			w.b.WriteString("\n")
		case block:
			w.block(i)
		default:
			panic(fmt.Sprintf("iac: a block of Terraform holds %T", item)) // a mistake of this package, which every test finds
		}
	}
	w.b.WriteString("}\n")
}

// value writes an expression.
func (w *hclWriter) value(value any) {
	if scalar, ok := hclScalar(value); ok {
		w.b.WriteString(scalar)
		return
	}
	switch v := value.(type) {
	case encoded:
		w.b.WriteString("jsonencode(")
		w.value(v.value)
		w.b.WriteString(")")
	case noted:
		w.comment(v.note)
		w.value(v.value)
	case list:
		w.list(v)
	case object:
		w.object(v)
	default:
		panic(fmt.Sprintf("iac: %T cannot be written for Terraform", value)) // a mistake of this package, which every test finds
	}
}

func (w *hclWriter) list(v list) {
	if inline, ok := hclInline(v); ok {
		w.b.WriteString(inline)
		return
	}
	w.b.WriteString("[\n")
	width := 0
	for _, item := range v {
		scalar, ok := hclScalar(item)
		if width > 0 && (!ok || width+len(scalar) > wide) {
			w.b.WriteString("\n")
			width = 0
		}
		if !ok {
			w.value(item)
			w.b.WriteString(",\n")
			continue
		}
		if width > 0 {
			w.b.WriteString(" ")
		}
		w.b.WriteString(scalar + ",")
		width += len(scalar) + 2
	}
	if width > 0 {
		w.b.WriteString("\n")
	}
	w.b.WriteString("]")
}

func (w *hclWriter) object(v object) {
	if inline, ok := hclInline(v); ok {
		w.b.WriteString(inline)
		return
	}
	w.b.WriteString("{\n")
	for _, f := range v {
		w.comment(f.note)
		w.b.WriteString(hclKey(f.key) + " = ")
		w.value(f.value)
		w.b.WriteString("\n")
	}
	w.b.WriteString("}")
}

// hclInline is a value that stands in one line: a scalar, or a short list or object of scalars; an object of one
// member may hold another such.
func hclInline(value any) (string, bool) {
	if scalar, ok := hclScalar(value); ok {
		return scalar, true
	}
	var parts []string
	open, end := "[", "]"
	switch v := value.(type) {
	case list:
		for _, item := range v {
			scalar, ok := hclScalar(item)
			if !ok {
				return "", false
			}
			parts = append(parts, scalar)
		}
	case object:
		open, end = "{ ", " }"
		for _, f := range v {
			inner, ok := hclScalar(f.value)
			if !ok && len(v) == 1 {
				inner, ok = hclInline(f.value)
			}
			if !ok || f.note != "" {
				return "", false
			}
			parts = append(parts, hclKey(f.key)+" = "+inner)
		}
	default:
		return "", false
	}
	line := open + strings.Join(parts, ", ") + end
	return line, len(line) <= wide
}

// hclScalar is a value that is no list and no object.
func hclScalar(value any) (string, bool) {
	switch v := value.(type) {
	case expression:
		return string(v), true
	case string:
		return hclQuote(v), true
	case text:
		return hclText(v), true
	case ref:
		return v.tf, true
	case bool:
		return strconv.FormatBool(v), true
	case int:
		return strconv.Itoa(v), true
	case number:
		return string(v), true
	}
	return "", false
}

// hclText writes a text with its refs.
func hclText(t text) string {
	if r, ok := t.alone(); ok {
		return r.tf
	}
	var b strings.Builder
	for i, part := range t {
		switch p := part.(type) {
		case string:
			quoted := hclQuote(p)
			quoted = quoted[1 : len(quoted)-1]
			if plain := strings.TrimRight(quoted, "$%"); i < len(t)-1 && plain != quoted {
				quoted = plain + `${"` + quoted[len(plain):] + `"}` // or what follows would be an escape
			}
			b.WriteString(quoted)
		case ref:
			b.WriteString("${" + p.tf + "}")
		}
	}
	return `"` + b.String() + `"`
}

// hclQuote writes a text as a literal, in which nothing is replaced.
func hclQuote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case (r == '$' || r == '%') && strings.HasPrefix(s[i+1:], "{"):
			b.WriteRune(r)
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

var identifierHCL = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*$`)

// hclKey writes the name of a member.
func hclKey(key string) string {
	if identifierHCL.MatchString(key) {
		return key
	}
	return hclQuote(key)
}
