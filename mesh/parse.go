package mesh

import (
	"fmt"
	"slices"
)

// ParseDocuments checks and joins the documents of a specification and fills in its defaults. An
// error is an [Errors] with everything that is wrong, or an [ErrTooLarge]. The documents' order
// decides which of two duplicates is the second, and nothing else.
func ParseDocuments(documents []Document) (*Spec, error) {
	total := 0
	for _, d := range documents {
		total += len(d.Content)
	}
	switch {
	case total > MaxBytes:
		return nil, fmt.Errorf("%w: it has more than %d bytes", ErrTooLarge, MaxBytes)
	case len(documents) > MaxDocuments:
		return nil, fmt.Errorf("%w: it has more than %d documents", ErrTooLarge, MaxDocuments)
	case len(documents) == 0:
		documents = []Document{{Name: "specification"}}
	}
	r := &report{}
	for _, d := range documents {
		r.names = append(r.names, d.Name)
	}
	root, readable := r.readAll(documents)
	if !readable {
		// What a document that cannot be read declares is unknown, and everything that refers to it
		// would be reported for nothing.
		return nil, r.err()
	}
	if !root.bad {
		decoder{report: r}.required(root)
	}
	b := builder{report: r, documents: documents}
	spec := b.spec(root)
	newChecker(r, spec, root).check()
	if err := r.err(); err != nil {
		return nil, err
	}
	spec.source = &source{documents: slices.Clone(documents)}
	return spec, nil
}

// readAll decodes every document and joins them. It is false when one of them is not YAML.
func (r *report) readAll(documents []Document) (root *value, readable bool) {
	root = &value{shape: specShape, at: position{0, 1, 1}, key: position{0, 1, 1}}
	readable = true
	for i, document := range documents {
		before := len(r.found)
		node := r.parseYAML(i, document.Content)
		if node == nil {
			readable = readable && len(r.found) == before
			continue
		}
		r.join(root, decoder{report: r, file: i}.root(node))
	}
	return root, readable
}

// join adds what another document says to root. Services, gateways, stores and authorities of all
// documents are put together; everything else stands in one of them.
func (r *report) join(root, other *value) {
	root.bad = root.bad || other.bad
	root.misspelled = append(root.misspelled, other.misspelled...)
	for _, m := range other.members {
		have := root.get(m.name)
		switch {
		case have == nil:
			root.put(m.name, m.at, m.value)
		case have.shape.kind != dictionaryKind:
			r.add(m.at, m.name, "is given twice, first at "+r.place(have.key), "remove one of the two")
		default:
			have.bad = have.bad || m.value.bad
			r.joinDictionary(have, m.value)
		}
	}
}

func (r *report) joinDictionary(have, other *value) {
	for _, m := range other.members {
		if first := have.get(m.name); first != nil {
			r.add(m.at, m.value.path, "is given twice, first at "+r.place(first.key), "remove one of the two, or rename it")
			continue
		}
		have.put(m.name, m.at, m.value)
	}
}
