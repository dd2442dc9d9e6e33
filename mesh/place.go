package mesh

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// source is what a Spec was read from. Where each part of it stands is found out when somebody asks, which is when
// something is refused: until then there are only the texts. All of it may be used by several goroutines.
type source struct {
	documents []Document
	once      sync.Once
	places    map[string]position // by path, "" the whole
}

// read finds where everything stands. The documents are valid.
func (s *source) read() {
	r := &report{}
	for _, d := range s.documents {
		r.names = append(r.names, d.Name)
	}
	root, _ := r.readAll(s.documents)
	s.places = map[string]position{}
	s.note(root, false)
}

// note keeps where a value stands, and what is in it: of a mapping and a list its key, which names it, of an entry of a
// list, and of a text or number, where it begins.
func (s *source) note(v *value, entry bool) {
	at := v.at
	switch v.shape.kind {
	case mappingKind, dictionaryKind, listKind, oneOrListKind:
		if !entry {
			at = v.key
		}
	case textKind, writtenKind, integerKind, durationKind:
	}
	s.places[v.path] = at
	for _, item := range v.items {
		s.note(item, true)
	}
	for _, m := range v.members {
		s.note(m.value, false)
	}
}

// find is where a path stands, or the nearest one above it that was written; exact tells which.
func (s *source) find(path string) (at position, exact bool) {
	s.once.Do(s.read)
	if at, exact = s.places[path]; exact {
		return at, true
	}
	for _, end := range slices.Backward(joints(path)) {
		if at, ok := s.places[path[:end]]; ok {
			return at, false
		}
	}
	return s.places[""], false
}

// joints are where the parts of a path begin, but for the first.
func joints(path string) []int {
	var at []int
	for i := 0; i < len(path); i++ {
		switch path[i] {
		case '.':
			at = append(at, i)
		case '[':
			at = append(at, i)
			if quoted, err := strconv.QuotedPrefix(path[i+1:]); err == nil && quoted[0] == '"' {
				i += len(quoted) // what is in a quoted key joins nothing
			}
		}
	}
	return at
}

// At tells where a part of the specification stands: the document's name, line and column as in an [Error]. The path is
// one of errors, such as services.a.ports[0].port. A mapping or a list is where its key is, everything else where it
// begins; what was not written, and holds by default, is where the nearest part around it is. All is zero for a Spec
// that was not read from documents. At may be called by several goroutines; the first call reads the documents again.
func (s *Spec) At(path string) (file string, line, column int) {
	if s.source == nil {
		return "", 0, 0
	}
	at, _ := s.source.find(path)
	return s.source.documents[at.file].Name, at.line, at.column
}

// Written tells whether a path stands in the documents: what holds by default does not. It may be called by several
// goroutines.
func (s *Spec) Written(path string) bool {
	if s.source == nil {
		return false
	}
	_, exact := s.source.find(path)
	return exact
}

// Refuse makes the error of somebody who cannot use this valid specification. It is about the first of some paths that
// was written, or else about the last, which is then what is missing; [Spec.At] says where that is. There has to be a
// path. It may be called by several goroutines.
func (s *Spec) Refuse(message string, paths ...string) *Error {
	path := paths[len(paths)-1]
	if i := slices.IndexFunc(paths, s.Written); i >= 0 {
		path = paths[i]
	}
	file, line, column := s.At(path)
	return &Error{file, line, column, path, message}
}

// Path is where a specification says what there is to say about a workload: services.NAME or gateways.NAME.
func (w Workload) Path() string { return join(string(w.Kind)+"s", w.Name) }

// Sorted are the errors by file, position, path and message, as people read them, and each but once. The files of a
// directory come in the order of their names.
func (e Errors) Sorted() Errors {
	sorted := slices.Clone(e)
	slices.SortFunc(sorted, func(a, b *Error) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column),
			strings.Compare(a.Path, b.Path), strings.Compare(a.Message, b.Message))
	})
	return slices.CompactFunc(sorted, func(a, b *Error) bool { return *a == *b })
}
