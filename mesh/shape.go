package mesh

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// kind is what a shape's values are in YAML.
type kind int

const (
	mappingKind    kind = iota // known keys, each with a shape of its own
	dictionaryKind             // names that the author chooses, all of one shape
	listKind
	oneOrListKind // a list, whose brackets may be left out when it has one entry
	textKind
	writtenKind // a text, or a number or boolean that is taken as it is written
	integerKind
	durationKind
)

// shape is what a value of the specification has to be like. The table of fields is made of shapes;
// the decoder, the JSON Schema and the reference are all derived from it, so that they cannot
// disagree.
type shape struct {
	kind kind
	// name says in the reference what the value is: "DNS label". The name of a mapping is also its
	// section and its definition in the schema.
	name string
	// doc explains a mapping in the reference.
	doc string

	fields    []field   // of a mapping
	exclusive [2]string // two fields of a mapping that may not stand together

	elem     *shape // of a dictionary's and a list's values
	keys     *shape // of a dictionary's names: a text
	nonEmpty bool   // a list that has to have an entry
	ranked   bool   // a list whose entries stand in the order of elem.words, none twice

	words     []string          // the only texts that are possible
	spellings map[string]string // what is written for some of words elsewhere
	reserved  []string          // texts that are not possible because they mean something
	pattern   string            // a regular expression for texts, as far as one can say it; Go and ECMA-262 read it alike
	maxLen    int               // of a text, in code points
	// check finds what words, pattern and maxLen cannot say, or says better what they can.
	check func(string) (wrong, right string)

	min, max          int64         // of an integer
	shortest, longest time.Duration // of a duration
}

// field is one key of a mapping.
type field struct {
	name     string
	shape    *shape
	required bool
	// preset is the default as the schema states it, nil when there is none or it depends on others.
	preset any
	// otherwise says the default in words when it depends on others.
	otherwise string
	doc       string
	// missing says what to write when a required field is not there.
	missing string
}

// field finds a field by name.
func (s *shape) field(name string) *field {
	for i := range s.fields {
		if s.fields[i].name == name {
			return &s.fields[i]
		}
	}
	return nil
}

func (s *shape) fieldNames() []string {
	names := make([]string, len(s.fields))
	for i, f := range s.fields {
		names[i] = f.name
	}
	return names
}

// article says what a value of the shape is, in an error about one that is something else.
func (s *shape) article() string {
	switch s.kind {
	case mappingKind, dictionaryKind:
		return "a mapping"
	case listKind:
		return "a list"
	case oneOrListKind:
		return "a text or a list of texts"
	case integerKind:
		return fmt.Sprintf("a number from %d to %d", s.min, s.max)
	case durationKind:
		return "a duration such as 90s, 15m or 168h"
	case textKind, writtenKind:
		if s.words != nil {
			return "one of " + strings.Join(s.words, ", ")
		}
	}
	return "a text"
}

// inOrder are the words of a ranked list that stand in some entries, as they should.
func (s *shape) inOrder(entries []*value) []string {
	var words []string
	for _, w := range s.elem.words {
		if slices.ContainsFunc(entries, func(v *value) bool { return v.text == w }) {
			words = append(words, w)
		}
	}
	return words
}

// checkText finds out whether s is a text of the shape, apart from words.
func (s *shape) checkText(text string) (wrong, right string) {
	if slices.Contains(s.reserved, text) {
		return fmt.Sprintf("%q is a word of allow.from", text), "choose another name"
	}
	if s.check != nil {
		if wrong, right = s.check(text); wrong != "" {
			return wrong, right
		}
	}
	if s.maxLen > 0 && len([]rune(text)) > s.maxLen {
		return fmt.Sprintf("%s has more than %d characters", quote(text), s.maxLen), "shorten it"
	}
	if s.pattern != "" && !compiled(s.pattern).MatchString(text) {
		return fmt.Sprintf("%s is not a %s", quote(text), s.name), "write " + s.article()
	}
	return "", ""
}

// compiledPatterns holds the table's patterns; it is filled when the package is initialised and only
// read afterwards.
var compiledPatterns = map[string]*regexp.Regexp{}

func compiled(pattern string) *regexp.Regexp { return compiledPatterns[pattern] }

// checkInteger reads a whole number as it is written.
func (s *shape) checkInteger(text string) (n int64, wrong, right string) {
	write := "write " + s.article()
	digits := strings.TrimLeft(text, "+-")
	if strings.Trim(digits, "0123456789") != "" || len(digits) > 1 && digits[0] == '0' || text[0] == '+' {
		return 0, quote(text) + " is not a whole number in plain decimal digits", write
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < s.min || n > s.max {
		return 0, text[:min(len(text), 25)] + " is out of range", write
	}
	return n, "", ""
}

// checkDuration reads a duration as Go writes it.
func (s *shape) checkDuration(text string) (d time.Duration, wrong, right string) {
	d, err := time.ParseDuration(text)
	if err != nil || !compiled(durationPattern).MatchString(text) {
		right = "write " + s.article()
		if number, unit := strings.TrimRight(text, "dwyDWYHMS"), strings.TrimLeft(text, "0123456789"); number+unit == text {
			if n, err := strconv.ParseInt(number, 10, 32); err == nil {
				switch unit {
				case "d":
					right = fmt.Sprintf("the greatest unit is the hour: write %dh", n*24)
				case "w":
					right = fmt.Sprintf("the greatest unit is the hour: write %dh", n*24*7)
				case "":
					right = fmt.Sprintf("give the unit: %ds, %dm or %dh", n, n, n)
				}
			}
		}
		return 0, quote(text) + " is not a duration", right
	}
	if d < s.shortest || d > s.longest {
		return 0, quote(text) + " is out of range", fmt.Sprintf("write a duration from %s to %s", brief(s.shortest), brief(s.longest))
	}
	return d, "", ""
}

// brief is a duration without its zero parts: 168h, not 168h0m0s.
func brief(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

// quote repeats a text of the document in an error, shortened, and with nothing that a terminal
// would obey.
func quote(text string) string {
	const most = 60
	if runes := []rune(text); len(runes) > most {
		text = string(runes[:most]) + "…"
	}
	return strconv.Quote(text)
}
