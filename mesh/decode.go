package mesh

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// value is a part of the specification as it was read: where it stands and what it says. What could
// not be understood is there too, marked as bad, so that lists keep their indexes and nothing that
// was written counts as missing. A nil *value is something that was not written.
type value struct {
	shape *shape
	at    position // of the value itself
	key   position // of the key that leads to it; in a list that of the list
	path  string
	bad   bool

	text    string   // of texts and enumerations
	number  int64    // of integers, and of durations in nanoseconds
	items   []*value // of lists
	members []member // of mappings and dictionaries, in the order of the text
	index   map[string]*value
	// misspelled are the fields that an unknown key seems to mean.
	misspelled []string
}

// member is a key with its value.
type member struct {
	name  string
	at    position // of the key
	value *value
}

// get finds a member; nil when it was not written.
func (v *value) get(name string) *value {
	if v == nil {
		return nil
	}
	return v.index[name]
}

// isBad tells whether something was written that could not be understood.
func (v *value) isBad() bool { return v != nil && v.bad }

// isGood tells whether something was written and understood.
func (v *value) isGood() bool { return v != nil && !v.bad }

// put adds a member.
func (v *value) put(name string, at position, child *value) {
	if v.index == nil {
		v.index = map[string]*value{}
	}
	v.index[name] = child
	v.members = append(v.members, member{name, at, child})
}

// item is an entry of a list; nil when there is none.
func (v *value) item(i int) *value {
	if v == nil || i >= len(v.items) {
		return nil
	}
	return v.items[i]
}

// list are the entries of a list.
func (v *value) list() []*value {
	if v == nil {
		return nil
	}
	return v.items
}

// str is a text, empty when it was not written or is bad.
func (v *value) str() string {
	if v == nil {
		return ""
	}
	return v.text
}

// int is a number, 0 when it was not written or is bad.
func (v *value) int() int64 {
	if v == nil {
		return 0
	}
	return v.number
}

// texts are the entries of a list of texts; nil when it was not written.
func (v *value) texts() []string {
	if v == nil || v.bad {
		return nil
	}
	texts := make([]string, len(v.items))
	for i, item := range v.items {
		texts[i] = item.text
	}
	return texts
}

// decoder reads the nodes of one document by the table.
type decoder struct {
	*report
	file int
}

// root reads the node of a whole document. Its required fields are looked for later, when all
// documents are joined.
func (d decoder) root(n *yaml.Node) *value {
	v := &value{shape: specShape, at: nodePosition(d.file, n), key: position{d.file, 1, 1}, path: ""}
	if n.Kind != yaml.MappingNode {
		d.wrongType(v, n, "document")
		return v
	}
	d.mapping(v, n)
	return v
}

// decode reads a node that has to have a shape.
func (d decoder) decode(n *yaml.Node, s *shape, path string, key position) *value {
	v := &value{shape: s, at: nodePosition(d.file, n), key: key, path: path}
	if isImplicit(n) {
		v.at = key
	}
	for n.Kind == yaml.AliasNode {
		n = n.Alias
		v.at = nodePosition(d.file, n)
	}
	if d.full() {
		v.bad = true
		return v
	}
	if n.Style&yaml.TaggedStyle != 0 {
		v.bad = true
		d.add(v.at, path, "has the tag "+quote(n.Tag), "leave the tag out; quotes make a text")
		return v
	}
	d.byKind(v, n)
	return v
}

func (d decoder) byKind(v *value, n *yaml.Node) {
	switch v.shape.kind {
	case mappingKind, dictionaryKind:
		if n.Kind != yaml.MappingNode {
			d.wrongType(v, n, v.path)
			return
		}
		if v.shape.kind == mappingKind {
			d.mapping(v, n)
			d.required(v)
		} else {
			d.dictionary(v, n)
		}
	case oneOrListKind:
		if n.Kind == yaml.ScalarNode && !isNull(n) {
			item := d.decode(n, v.shape.elem, v.path, v.key)
			v.items, v.bad = []*value{item}, item.bad
			return
		}
		d.list(v, n)
	case listKind:
		d.list(v, n)
	case textKind, writtenKind, integerKind, durationKind:
		if n.Kind != yaml.ScalarNode {
			d.wrongType(v, n, v.path)
			return
		}
		d.scalar(v, n)
	}
}

func (d decoder) list(v *value, n *yaml.Node) {
	if n.Kind != yaml.SequenceNode {
		d.wrongType(v, n, v.path)
		return
	}
	for i, c := range n.Content {
		key := v.key
		if isImplicit(c) {
			key = position{d.file, c.Line, max(c.Column-1, 1)} // the dash
		}
		item := d.decode(c, v.shape.elem, v.path+"["+strconv.Itoa(i)+"]", key)
		v.items = append(v.items, item)
	}
	if v.shape.nonEmpty && len(v.items) == 0 {
		v.bad = true
		d.add(v.at, v.path, "is an empty list", "give at least one entry, or leave the key out where it is not required")
	}
	if v.shape.ranked {
		d.ranked(v)
	}
}

// ranked checks the entries of a list against the order that they have to stand in. One that is wrong
// makes the list wrong.
func (d decoder) ranked(v *value) {
	first := map[string]int{} // by entry, where it stands
	last := -1                // which of the words came last
	for i, item := range v.items {
		if item.bad {
			v.bad = true
			continue
		}
		rank := slices.Index(v.shape.elem.words, item.text)
		switch j, again := first[item.text]; {
		case again:
			d.add(item.at, item.path, fmt.Sprintf("%q stands at [%d] already", item.text, j), "remove one of the two")
		case rank < last:
			d.add(item.at, item.path, fmt.Sprintf("%q stands behind %q, and is preferred to it wherever it stands", item.text, v.shape.elem.words[last]),
				"write "+strings.Join(v.shape.inOrder(v.items), ", "))
		default:
			first[item.text], last = i, rank
			continue
		}
		v.bad = true
	}
}

// mapping reads the members of a mapping; every key has to be in the table.
func (d decoder) mapping(v *value, n *yaml.Node) {
	d.members(v, n, func(key string, at position, node *yaml.Node) *value {
		path := join(v.path, key)
		f := v.shape.field(key)
		if f == nil {
			d.add(at, path, "is not a known key", d.nearest.right(key, v.shape.fieldNames(), ""))
			if meant, ok := d.nearest.find(key, v.shape.fieldNames()); ok {
				v.misspelled = append(v.misspelled, meant)
			}
			return nil
		}
		return d.decode(node, f.shape, path, at)
	})
	a, b := v.get(v.shape.exclusive[0]), v.get(v.shape.exclusive[1])
	if a != nil && b != nil {
		first, second := v.shape.exclusive[0], v.shape.exclusive[1]
		if a.key.compare(b.key) > 0 {
			a, b, first, second = b, a, second, first
		}
		d.add(b.at, b.path, fmt.Sprintf("stands together with %q", first), fmt.Sprintf("give either %q or %q", first, second))
	}
}

// dictionary reads the members of a mapping whose keys the author chooses.
func (d decoder) dictionary(v *value, n *yaml.Node) {
	d.members(v, n, func(key string, at position, node *yaml.Node) *value {
		path := join(v.path, key)
		if wrong, right := v.shape.keys.checkText(key); wrong != "" {
			d.add(at, path, "the name "+wrong, right)
		}
		return d.decode(node, v.shape.elem, path, at)
	})
}

// members goes through the keys of a node, those that a merge key (<<) brings in after its own.
func (d decoder) members(v *value, n *yaml.Node, each func(key string, at position, node *yaml.Node) *value) {
	var merged []*yaml.Node
	seen := map[string]position{}
	for i := 0; i+1 < len(n.Content) && !d.full(); i += 2 {
		at := nodePosition(d.file, n.Content[i])
		key, ok := keyText(n.Content[i])
		switch first, again := seen[key]; {
		case !ok:
			d.add(at, pathOr(v.path), "has a key that is not a text", "write plain keys")
		case isMerge(n.Content[i]):
			merged = append(merged, n.Content[i+1])
		case again:
			d.add(at, join(v.path, key), "is given twice, first at "+d.place(first), "remove one of the two")
		default:
			seen[key] = at
			if got := each(key, at, n.Content[i+1]); got != nil {
				v.put(key, at, got)
			}
		}
	}
	for len(merged) > 0 && !d.full() {
		merged = append(d.merge(v, merged[0], seen, each), merged[1:]...)
	}
}

// merge brings in the members of what a merge key names and gives what they merge in their turn. A
// member that is there already stays.
func (d decoder) merge(v *value, n *yaml.Node, seen map[string]position, each func(string, position, *yaml.Node) *value) (further []*yaml.Node) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	switch n.Kind {
	case yaml.SequenceNode:
		return n.Content
	case yaml.MappingNode:
	default:
		d.add(nodePosition(d.file, n), join(v.path, "<<"), "merges what is not a mapping", "write \"<<: *NAME\", where NAME is the anchor of a mapping")
		return nil
	}
	for i := 0; i+1 < len(n.Content) && !d.full(); i += 2 {
		key, ok := keyText(n.Content[i])
		if _, again := seen[key]; !ok || again {
			continue
		}
		if isMerge(n.Content[i]) {
			further = append(further, n.Content[i+1])
			continue
		}
		at := nodePosition(d.file, n.Content[i])
		seen[key] = at
		if got := each(key, at, n.Content[i+1]); got != nil {
			v.put(key, at, got)
		}
	}
	return further
}

// keyText is the text of a key, if it is one.
func keyText(n *yaml.Node) (string, bool) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n.Value, n.Kind == yaml.ScalarNode && n.Style&yaml.TaggedStyle == 0 && !isNull(n)
}

// isMerge tells whether a key is the merge key of YAML 1.1, <<.
func isMerge(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Value == "<<" && n.Style == 0
}

// isImplicit tells whether nothing is written where a value could stand.
func isImplicit(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.Value == "" && n.Anchor == "" && isNull(n)
}

// required reports the fields that a mapping has to have and has not. A field that somebody seems to
// have misspelled is not reported twice.
func (d decoder) required(v *value) {
	for _, f := range v.shape.fields {
		if f.required && v.get(f.name) == nil && !slices.Contains(v.misspelled, f.name) {
			d.add(v.key, join(v.path, f.name), "is missing", f.missing)
		}
	}
}

// scalar reads a text, a number or a duration.
func (d decoder) scalar(v *value, n *yaml.Node) {
	class, s := classify(n), v.shape
	var wrong, right string
	switch {
	case class == nullScalar:
		d.wrongType(v, n, v.path)
		return
	case s.kind == integerKind && class == textScalar && intForm.MatchString(n.Value):
		wrong, right = quote(n.Value)+" is a text", "write the number without quotes"
	case s.kind == integerKind && class != intScalar && class != floatScalar:
		d.wrongType(v, n, v.path)
		return
	case s.kind == integerKind:
		v.number, wrong, right = s.checkInteger(n.Value)
	case s.kind == durationKind && class == boolScalar:
		d.wrongType(v, n, v.path)
		return
	case s.kind == durationKind:
		duration, w, r := s.checkDuration(n.Value)
		v.number, wrong, right = int64(duration), w, r
	case s.kind == textKind && class != textScalar:
		v.bad = true
		what := "a number"
		if class == boolScalar {
			what = "a boolean"
		}
		d.add(v.at, v.path, n.Value+" is "+what+", not a text", fmt.Sprintf("write it in quotes: %q", n.Value))
		return
	default:
		v.text = n.Value
		wrong, right = d.text(s, n.Value)
	}
	if wrong != "" {
		v.bad, v.text, v.number = true, "", 0
		d.add(v.at, v.path, wrong, right)
	}
}

// text checks a text against its shape.
func (d decoder) text(s *shape, text string) (wrong, right string) {
	if s.words == nil {
		return s.checkText(text)
	}
	for _, w := range s.words {
		if w == text {
			return "", ""
		}
	}
	wrong = quote(text) + " is not a " + s.name
	if meant, ok := s.spellings[text]; ok {
		return wrong, fmt.Sprintf("did you mean %q?", meant)
	}
	return wrong, d.nearest.right(text, s.words, "")
}

// wrongType reports a value of another kind than its shape's.
func (d decoder) wrongType(v *value, n *yaml.Node, path string) {
	v.bad = true
	is := "a text"
	switch n.Kind {
	case yaml.MappingNode:
		is = "a mapping"
	case yaml.SequenceNode:
		is = "a list"
	default:
		switch classify(n) {
		case nullScalar:
			is = "empty"
		case boolScalar:
			is = "a boolean"
		case intScalar, floatScalar:
			is = "a number"
		case textScalar:
		}
	}
	right := "write " + v.shape.article()
	if is == "empty" {
		right += ", or remove what is empty"
	}
	d.add(v.at, path, "is "+is, right)
}

// join appends a key to a path; a key that is not a plain word, or longer than names can be, is quoted.
func join(path, key string) string {
	if len(key) > 63 {
		return path + "[" + quote(key) + "]"
	}
	for _, r := range key {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_' {
			return path + "[" + quote(key) + "]"
		}
	}
	switch {
	case key == "":
		return path + `[""]`
	case path == "":
		return key
	}
	return path + "." + key
}

func pathOr(path string) string {
	if path == "" {
		return "document"
	}
	return path
}
