package mesh

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Error is one thing that is wrong in a specification, and where.
type Error struct {
	// File is the document's name, as the user wrote it.
	File string
	// Line and Column count from 1; a column is a Unicode code point. They are 0 where no document is known ([Spec.At]).
	Line, Column int
	// Path says in the specification's own terms where the error is: services.a.ports[0].port. It is
	// "yaml" for a text that is not YAML and "document" for the whole of it.
	Path string
	// Message says what is wrong and, after a semicolon, what would be right.
	Message string
}

// Error is the form FILE:LINE:COLUMN: PATH: MESSAGE, or PATH: MESSAGE where no place is known.
func (e *Error) Error() string {
	if e.Line == 0 {
		return e.Path + ": " + e.Message
	}
	return fmt.Sprintf("%s:%d:%d: %s: %s", e.File, e.Line, e.Column, e.Path, e.Message)
}

// Errors are everything that is wrong in a specification, in the order of the documents, and inside
// a document by position. It is never empty.
type Errors []*Error

// Error has one error a line.
func (e Errors) Error() string { return strings.Join(e.Lines(), "\n") }

// Lines are the errors' texts.
func (e Errors) Lines() []string {
	lines := make([]string, len(e))
	for i, one := range e {
		lines[i] = one.Error()
	}
	return lines
}

// maxErrors bounds how many errors are kept: who sees so many starts with the first.
const maxErrors = 1000

// position is a place in one of the documents.
type position struct {
	file         int // index of the document
	line, column int
}

func (p position) compare(q position) int {
	return cmp.Or(cmp.Compare(p.file, q.file), cmp.Compare(p.line, q.line), cmp.Compare(p.column, q.column))
}

// report collects errors while documents are read and checked.
type report struct {
	names   []string // of the documents
	found   []located
	dropped int
	nearest nearest
}

type located struct {
	at            position
	path, message string
}

// add notes an error: what is wrong, and what would be right.
func (r *report) add(at position, path, wrong, right string) {
	if len(r.found) == maxErrors {
		r.dropped++
		return
	}
	r.found = append(r.found, located{at, path, wrong + "; " + right})
}

// full tells that further errors would not be kept.
func (r *report) full() bool { return r.dropped > 0 }

// place names a position to somebody who reads an error about another one.
func (r *report) place(at position) string {
	return fmt.Sprintf("%s:%d:%d", r.names[at.file], at.line, at.column)
}

// err is what was found as an error, nil when nothing was. The same text at the same place, as an
// alias brings it about, is said once.
func (r *report) err() error {
	if len(r.found) == 0 {
		return nil
	}
	slices.SortStableFunc(r.found, func(a, b located) int {
		return cmp.Or(a.at.compare(b.at), cmp.Compare(a.path, b.path), cmp.Compare(a.message, b.message))
	})
	r.found = slices.Compact(r.found)
	errs := make(Errors, 0, len(r.found)+1)
	for _, f := range r.found {
		errs = append(errs, &Error{r.names[f.at.file], f.at.line, f.at.column, f.path, f.message})
	}
	if r.dropped > 0 {
		last := errs[len(errs)-1]
		errs = append(errs, &Error{
			last.File, last.Line, last.Column, "document",
			fmt.Sprintf("has more than %d errors; mend these to see the others", maxErrors),
		})
	}
	return errs
}
