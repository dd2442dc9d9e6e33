package iac

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// yamlWriter writes values as the YAML of a CloudFormation template, with the short forms of its functions.
type yamlWriter struct{ b strings.Builder }

// wide is how long a list may be that stands in one line.
const wide = 110

// comment writes a remark above what follows.
func (w *yamlWriter) comment(note string, indent int) {
	for line := range strings.Lines(note) {
		if line = strings.TrimRight(line, "\n"); line != "" {
			line = strings.Repeat(" ", indent) + "# " + line
		}
		w.b.WriteString(line + "\n")
	}
}

// members writes an object's members, each on lines of its own.
func (w *yamlWriter) members(o object, indent int) {
	for _, f := range o {
		w.comment(f.note, indent)
		w.b.WriteString(strings.Repeat(" ", indent) + yamlText(f.key) + ":")
		w.value(f.value, indent+2)
	}
}

// value writes a value after a colon, and ends the line.
func (w *yamlWriter) value(value any, indent int) {
	if inline, ok := yamlInline(value); ok {
		w.b.WriteString(" " + inline + "\n")
		return
	}
	if lines, ok := yamlLines(value, indent+2); ok {
		w.b.WriteString(" " + lines + "\n")
		return
	}
	w.b.WriteString("\n")
	switch v := value.(type) {
	case object:
		w.members(v, indent)
	case list:
		for _, item := range v {
			w.item(item, indent)
		}
	default:
		panic(fmt.Sprintf("iac: %T cannot be written as YAML", value)) // a mistake of this package, which every test finds
	}
}

// item writes an element of a list.
func (w *yamlWriter) item(item any, indent int) {
	if n, ok := item.(noted); ok {
		w.comment(n.note, indent)
		item = n.value
	}
	if inline, ok := yamlInline(item); ok {
		w.b.WriteString(strings.Repeat(" ", indent) + "- " + inline + "\n")
		return
	}
	inner := &yamlWriter{}
	inner.value(item, indent+2)
	body := strings.TrimPrefix(inner.b.String(), "\n")
	if comment, _, _ := strings.Cut(body, "\n"); strings.HasPrefix(strings.TrimSpace(comment), "#") {
		w.b.WriteString(strings.Repeat(" ", indent) + "-\n" + body) // the first member has a remark
		return
	}
	w.b.WriteString(strings.Repeat(" ", indent) + "- " + strings.TrimPrefix(body, strings.Repeat(" ", indent+2)))
}

// yamlLines is a list of short scalars over several lines.
func yamlLines(value any, indent int) (string, bool) {
	items, ok := value.(list)
	if !ok {
		return "", false
	}
	var b strings.Builder
	width := 0
	for i, item := range items {
		scalar, ok := yamlScalar(item)
		if !ok || yamlFlowless(scalar) || len(scalar) > wide/2 {
			return "", false
		}
		switch {
		case i == 0:
			b.WriteByte('[')
		case width+len(scalar) > wide-indent:
			b.WriteString(",\n" + strings.Repeat(" ", indent))
			width = 0
		default:
			b.WriteString(", ")
		}
		b.WriteString(scalar)
		width += len(scalar) + 2
	}
	return b.String() + "]", len(items) > 0
}

// yamlInline is a value that stands in one line: a scalar, or a short list or object of scalars.
func yamlInline(value any) (string, bool) {
	if scalar, ok := yamlScalar(value); ok {
		return scalar, true
	}
	var parts []string
	brackets := "[]"
	switch v := value.(type) {
	case list:
		for _, item := range v {
			scalar, ok := yamlScalar(item)
			if o, isObject := item.(object); isObject && len(o) <= 3 && len(v) <= 3 {
				scalar, ok = yamlInline(o)
			}
			if !ok || yamlFlowless(scalar) {
				return "", false
			}
			parts = append(parts, scalar)
		}
	case object:
		brackets = "{}"
		for _, f := range v {
			scalar, ok := yamlScalar(f.value)
			if len(v) == 1 && !ok {
				if scalar, ok = yamlInline(f.value); ok && f.note == "" {
					parts = append(parts, yamlText(f.key)+": "+scalar)
					continue
				}
			}
			if !ok || f.note != "" || yamlFlowless(scalar) || len(v) > 6 {
				return "", false
			}
			parts = append(parts, yamlText(f.key)+": "+scalar)
		}
	default:
		return "", false
	}
	line := brackets[:1] + strings.Join(parts, ", ") + brackets[1:]
	return line, len(line) <= wide
}

// yamlFlowless tells whether a scalar cannot stand in a list of one line.
func yamlFlowless(scalar string) bool {
	return !strings.HasPrefix(scalar, "'") && !strings.HasPrefix(scalar, "!Sub '") && !strings.HasPrefix(scalar, "{") && strings.ContainsAny(scalar, ",[]{}")
}

// yamlScalar is a value that is no list and no object.
func yamlScalar(value any) (string, bool) {
	switch v := value.(type) {
	case string:
		return yamlText(v), true
	case text:
		return yamlRef(v), true
	case ref:
		return yamlRef(text{v}), true
	case bool:
		return strconv.FormatBool(v), true
	case int:
		return strconv.Itoa(v), true
	case number:
		return string(v), true
	case equals:
		return fmt.Sprintf("!Equals [!Ref %s, %s]", v[0], yamlText(v[1])), true
	case either:
		return fmt.Sprintf("!If [%s, %s, %s]", v.condition, yamlText(v.yes), yamlText(v.no)), true
	}
	return "", false
}

// yamlRef writes a text with its refs.
func yamlRef(t text) string {
	if literal, ok := t.literal(); ok {
		return yamlText(literal)
	}
	if r, ok := t.alone(); ok {
		if strings.Contains(r.cfn, ".") {
			return "!GetAtt " + r.cfn
		}
		return "!Ref " + r.cfn
	}
	var b strings.Builder
	for _, part := range t {
		switch p := part.(type) {
		case string:
			b.WriteString(strings.ReplaceAll(p, "${", "${!"))
		case ref:
			b.WriteString("${" + p.cfn + "}")
		}
	}
	return "!Sub " + quotedYAML(b.String())
}

var (
	plainYAML = regexp.MustCompile(`^(-{1,2}[a-z]|[A-Za-z/])[A-Za-z0-9_./+=@:-]*( [A-Za-z0-9_./+=@()-]+)*$`)
	// wordsYAML are those that some reader takes for something else than a text.
	wordsYAML = regexp.MustCompile(`(?i)^(y|n|yes|no|on|off|true|false|null)$`)
)

// yamlText writes a text so that every version of YAML reads it as one.
func yamlText(s string) string {
	if plainYAML.MatchString(s) && !wordsYAML.MatchString(s) && !strings.Contains(s+" ", ": ") {
		return s
	}
	return quotedYAML(s)
}

// quotedYAML writes a text in quotation marks.
func quotedYAML(s string) string {
	if !strings.ContainsFunc(s, hiddenYAML) {
		return singleQuoted(s)
	}
	quoted, _ := json.Marshal(s) // of a text it does not fail; YAML reads what JSON writes
	var b strings.Builder
	for _, r := range string(quoted) {
		if hiddenYAML(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// hiddenYAML are characters that a reader of YAML takes for the end of a line, or refuses.
func hiddenYAML(r rune) bool {
	return r < 0x20 || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 || r == 0xfeff
}

func singleQuoted(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
