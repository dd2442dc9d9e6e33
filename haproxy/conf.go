package haproxy

import (
	"fmt"
	"strings"
)

// word is one word of a configuration as it is written to the file. A constant of this package is one by
// itself; whatever else becomes one only through [quote] or [format], so that the compiler finds what is not
// escaped.
type word string

// quote writes a text without control characters as one word. In single quotation marks HAProxy knows no
// syntax at all, so that the mark itself stands outside of them.
func quote(text string) word {
	return word("'" + strings.ReplaceAll(text, "'", `'\''`) + "'")
}

// format makes of a text what a log-format takes for that text: a header's value, for instance.
func format(text string) string { return strings.ReplaceAll(text, "%", "%%") }

// conf is a configuration that is being written.
type conf struct{ text strings.Builder }

// section begins a section.
func (c *conf) section(words ...word) {
	c.text.WriteByte('\n')
	c.write(words)
}

// line writes a line of a section.
func (c *conf) line(words ...word) {
	c.text.WriteString("    ")
	c.write(words)
}

func (c *conf) write(words []word) {
	for i, w := range words {
		if i > 0 {
			c.text.WriteByte(' ')
		}
		c.text.WriteString(string(w))
	}
	c.text.WriteByte('\n')
}

// comment writes a remark on a line of its own.
func (c *conf) comment(text string, args ...any) {
	text = strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f {
			return '?'
		}
		return r
	}, fmt.Sprintf(text, args...))
	c.text.WriteString("# " + text + "\n")
}
