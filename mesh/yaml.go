package mesh

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
	"go.yaml.in/yaml/v4/plugin/loaderlimits"
)

// yamlPath is the path of errors in a text that is not YAML.
const yamlPath = "yaml"

// parseYAML reads the text of one document into nodes. It gives nil without a report when the text
// holds nothing but comments, and nil with a report when it is not the YAML that is read here.
func (r *report) parseYAML(file int, text string) *yaml.Node {
	text = strings.TrimPrefix(text, "\ufeff")
	if !r.checkCharacters(file, text) {
		return nil
	}
	loader, err := yaml.NewLoader(strings.NewReader(yamlDirective(text)), yaml.WithPlugin(loaderlimits.New(
		loaderlimits.DepthFunc(func(depth int, _ *loaderlimits.DepthContext) error {
			if depth > maxDepth {
				return errTooDeep
			}
			return nil
		}),
	)))
	if err != nil {
		r.syntaxError(file, text, err)
		return nil
	}
	var first, second yaml.Node
	if err := loader.Load(&first); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		r.syntaxError(file, text, err)
		return nil
	}
	if err := loader.Load(&second); err == nil {
		r.add(nodePosition(file, &second), yamlPath, "a second document begins here", "write one document to a file")
		return nil
	} else if !errors.Is(err, io.EOF) {
		r.syntaxError(file, text, err)
		return nil
	}
	root := &first
	if root.Kind == yaml.DocumentNode {
		root = root.Content[0]
	}
	if root.Kind == yaml.ScalarNode && isNull(root) {
		return nil
	}
	sizes := sizes{file: file, known: map[*yaml.Node]int{}}
	if at := sizes.exceeded(root); at != nil {
		r.add(nodePosition(file, at), yamlPath,
			fmt.Sprintf("the document has more than %d values, or aliases (*name) that multiply to so many or hold themselves", maxValues),
			"write it without these aliases, or smaller")
		return nil
	}
	return root
}

var errTooDeep = fmt.Errorf("values are nested more than %d levels deep", maxDepth)

// yamlDirective lets a %YAML 1.2 directive pass, which the reader refuses although 1.2 is what it reads.
func yamlDirective(text string) string {
	if rest, ok := strings.CutPrefix(text, "%YAML 1.2"); ok {
		return "%YAML 1.1" + rest
	}
	return text
}

// checkCharacters refuses what is no YAML text, and the line breaks of which editors and YAML think
// differently: with them gone a line number means one thing.
func (r *report) checkCharacters(file int, text string) bool {
	at := position{file, 1, 1}
	for i := 0; i < len(text); {
		c, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case c == '\n':
			at.line, at.column = at.line+1, 0
		case c == '\r' && strings.HasPrefix(text[i+1:], "\n"):
			at.column--
		case c == utf8.RuneError && size == 1:
			r.add(at, yamlPath, fmt.Sprintf("the byte 0x%02x is not UTF-8", text[i]), "save the file in the encoding UTF-8")
			return false
		case c == '\r':
			r.add(at, yamlPath, "a carriage return stands alone", "end lines with a line feed, or with both")
			return false
		case c < ' ' && c != '\t', c >= 0x7f && c < 0xa0, c == '\u2028', c == '\u2029', c == '\ufeff', c == '\ufffe', c == '\uffff':
			r.add(at, yamlPath, fmt.Sprintf("the character %U cannot stand here", c), fmt.Sprintf("remove it, or write it as \"\\u%04x\" in double quotes", c))
			return false
		}
		at.column++
		i += size
	}
	return true
}

// syntaxHints say what to do about what the reader says is wrong.
var syntaxHints = []struct{ in, hint string }{
	{"nested more than", "nest less deeply"},
	{"mapping values are not allowed", `check the indentation, and put a text that holds ": " in quotes`},
	{"tab character", "indent with spaces"},
	{"cannot start any token", "indent with spaces, and put a text that begins with this character in quotes"},
	{"did not find expected key", "check the indentation of this line and of those above it"},
	{"did not find expected '-'", "check the indentation of this line and of those above it"},
	{"could not find expected ':'", "write a key as \"name: value\""},
	{"expected ',' or", "separate values with commas, and close what was opened"},
	{"unknown anchor", "define it as &name before it is used as *name"},
	{"escape", `write a backslash as \\, or use single quotes; characters beyond U+FFFF are written as they are`},
	{"end of stream", "close the quotes"},
	{"directive", "leave the line that begins with % out"},
	{"incompatible YAML", "leave the %YAML line out"},
}

// syntaxError reports what the YAML reader found.
func (r *report) syntaxError(file int, text string, err error) {
	var load *yaml.LoadError
	if !errors.As(err, &load) {
		r.add(position{file, 1, 1}, yamlPath, oneLine(err.Error()), "write YAML")
		return
	}
	mark, wrong := load.Mark, load.Message
	if strings.Contains(wrong, "end of stream") || mark.Line == 0 {
		mark = load.ContextMark // where it began tells more than where the text ends
	}
	if load.ContextMsg != "" && !strings.Contains(wrong, errTooDeep.Error()) {
		wrong += " " + load.ContextMsg
	}
	right := "check indentation, quotes and brackets"
	for _, h := range syntaxHints {
		if strings.Contains(wrong, h.in) {
			right = h.hint
			break
		}
	}
	at := position{file, max(mark.Line, 1), max(mark.Column, 1)}
	if end := textEnd(file, text); at.compare(end) > 0 {
		at = end
	}
	r.add(at, yamlPath, oneLine(wrong), right)
}

// textEnd is the place behind the last character that is not white space.
func textEnd(file int, text string) position {
	text = strings.TrimRight(text, " \t\r\n")
	last := text[strings.LastIndexByte(text, '\n')+1:]
	return position{file, 1 + strings.Count(text, "\n"), 1 + utf8.RuneCountInString(last)}
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func nodePosition(file int, n *yaml.Node) position {
	return position{file, max(n.Line, 1), max(n.Column, 1)}
}

// sizes counts the values below nodes with every alias followed.
type sizes struct {
	file  int
	known map[*yaml.Node]int // -1 while the node is being counted
}

// exceeded gives a node by which the count passes maxValues, or an alias to what it stands in; nil
// when the document is small enough. It visits every node once.
func (s sizes) exceeded(n *yaml.Node) *yaml.Node {
	_, at := s.count(n)
	return at
}

func (s sizes) count(n *yaml.Node) (int, *yaml.Node) {
	if n.Kind == yaml.AliasNode {
		size, ok := s.known[n.Alias]
		if !ok || size < 0 {
			return 0, n
		}
		return size, nil
	}
	if n.Anchor != "" {
		s.known[n] = -1
	}
	size := 1
	for _, c := range n.Content {
		more, at := s.count(c)
		if at != nil {
			return 0, at
		}
		if size += more; size > maxValues {
			return 0, c
		}
	}
	if n.Anchor != "" {
		s.known[n] = size
	}
	return size, nil
}

// scalarKind is what a scalar is by YAML's core schema (YAML 1.2.2 section 10.3.2).
type scalarKind int

const (
	textScalar scalarKind = iota
	nullScalar
	boolScalar
	intScalar
	floatScalar
)

var (
	intForm   = regexp.MustCompile(`^([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$`)
	floatForm = regexp.MustCompile(`^([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$`)
)

// classify tells what a scalar is.
func classify(n *yaml.Node) scalarKind {
	if n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		return textScalar
	}
	switch n.Value {
	case "", "~", "null", "Null", "NULL":
		return nullScalar
	case "true", "True", "TRUE", "false", "False", "FALSE":
		return boolScalar
	}
	switch {
	case intForm.MatchString(n.Value):
		return intScalar
	case floatForm.MatchString(n.Value):
		return floatScalar
	}
	return textScalar
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && classify(n) == nullScalar }
