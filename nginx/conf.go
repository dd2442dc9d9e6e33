package nginx

import (
	"fmt"
	"strings"
)

// word is one word of a configuration as it is written to the file. A constant of this package is one by
// itself; whatever else becomes one only through [quote], so that the compiler finds what is not escaped.
type word string

// quote writes any text as one word. NGINX reads \" and \\ in quotation marks, and everything else but the
// end of the file as it is. Variables are NGINX's only other syntax: where a directive knows them, a text of the
// specification is not put (map's keys, where texts go, have none) or is refused with a $ in it.
func quote(text string) word {
	return word(`"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text) + `"`)
}

// conf is a configuration that is being written.
type conf struct {
	text  strings.Builder
	depth int
	long  []word // what NGINX would not read
}

// mostWord is how long a word may be, with its quotation marks and all that is escaped in it. NGINX reads a
// configuration through a buffer of 4096 bytes, and a word has to fit into it.
const mostWord = 4000

// line writes a directive.
func (c *conf) line(words ...word) { c.write(words, ";") }

// block writes a directive with braces.
func (c *conf) block(content func(), words ...word) {
	c.write(words, " {")
	c.depth++
	content()
	c.depth--
	c.write([]word{"}"}, "")
}

func (c *conf) write(words []word, end string) {
	c.text.WriteString(strings.Repeat("    ", c.depth))
	for i, w := range words {
		if i > 0 {
			c.text.WriteByte(' ')
		}
		if len(w) > mostWord {
			c.long = append(c.long, w)
		}
		c.text.WriteString(string(w))
	}
	c.text.WriteString(end + "\n")
}

// comment writes a remark on a line of its own.
func (c *conf) comment(format string, args ...any) {
	text := strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return '?'
		}
		return r
	}, fmt.Sprintf(format, args...))
	c.text.WriteString(strings.Repeat("    ", c.depth) + "# " + text + "\n")
}

// choice is one line of a map.
type choice struct{ key, value word }

// switchOn writes a map: result becomes the value of the first key that matches source.
func (c *conf) switchOn(source, result word, otherwise word, choices ...choice) {
	c.block(func() {
		c.line("default", otherwise)
		for _, ch := range choices {
			c.line(ch.key, ch.value)
		}
	}, "map", source, result)
}

// matches is a key of a map that is a regular expression.
func matches(expression string) word { return quote("~" + expression) }
