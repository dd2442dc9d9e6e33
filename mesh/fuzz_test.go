package mesh_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"countersign.dev/mesh"
)

// FuzzParse proves that no text makes the parser panic, that every error has the form that scripts
// rely on and a place inside the text, and that what is accepted can be compiled, compared and drawn.
func FuzzParse(f *testing.F) {
	for _, kind := range []string{"good", "bad"} {
		for _, a := range corpus(f, kind, 8) {
			f.Add(a.documents[0].Content)
		}
	}
	examples, err := filepath.Glob("../examples/*/*.yaml")
	if err != nil || len(examples) == 0 {
		f.Fatal("no examples", err)
	}
	for _, path := range examples {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
		f.Add(strings.ReplaceAll(string(text), "\n", "\r\n"))
	}
	f.Add("\ufeffmesh: a\r\nservices: {é: \t1}")
	f.Fuzz(func(t *testing.T, text string) {
		spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: "/spec", Content: text}})
		if err != nil {
			checkErrors(t, text, err)
			return
		}
		checkAccepted(t, spec)
		checkPlaces(t, text, spec)
	})
}

// checkPlaces looks for the places of what every specification has, or could have, and of what is no path at all.
func checkPlaces(t *testing.T, text string, spec *mesh.Spec) {
	paths := []string{"", "mesh", "certificates.ttl", text}
	for _, w := range spec.Workloads() {
		for _, below := range []string{"", ".proxy.engine", ".ports[0].app", ".calls", ".listen[0].port", ".routes[7]", `.run.env["`} {
			paths = append(paths, w.Path()+below)
		}
		if !spec.Written(w.Path()) {
			t.Errorf("%s is declared, and written nowhere", w.Path())
		}
	}
	lines := linesOf(text)
	for _, path := range paths {
		e := spec.Refuse("cannot be", path)
		if e.File != "mesh.yaml" || e.Path != path {
			t.Errorf("%q is in %q at %q", path, e.File, e.Path)
		}
		checkPlace(t, lines, e)
	}
}

// linesOf are the lines of a text as errors count them.
func linesOf(text string) []string { return strings.Split(strings.TrimPrefix(text, "\ufeff"), "\n") }

// checkPlace asserts that an error stands in a text of some lines. One place behind the last line, and behind a line's last
// character, is where things are missed.
func checkPlace(t *testing.T, lines []string, e *mesh.Error) {
	t.Helper()
	if e.Line < 1 || e.Line > len(lines)+1 || e.Column < 1 {
		t.Errorf("%v: the text has %d lines", e, len(lines))
		return
	}
	width := 0
	if e.Line <= len(lines) {
		width = utf8.RuneCountInString(lines[e.Line-1])
	}
	if e.Column > width+1 {
		t.Errorf("%v: the line has %d characters", e, width)
	}
}

// checkErrors looks at the form of what was reported about a text.
func checkErrors(t *testing.T, text string, err error) {
	if errors.Is(err, mesh.ErrTooLarge) && len(text) > mesh.MaxBytes {
		return
	}
	var errs mesh.Errors
	if !errors.As(err, &errs) || len(errs) == 0 {
		t.Fatalf("got %v, want mesh.Errors", err)
	}
	lines, before := linesOf(text), &mesh.Error{}
	for _, e := range errs {
		if !errorForm.MatchString(e.Error()) {
			t.Errorf("not of the form: %q", e.Error())
		}
		if strings.ContainsFunc(e.Error(), func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("a control character: %q", e.Error())
		}
		if e.Line < before.Line || e.Line == before.Line && e.Column < before.Column {
			t.Errorf("%v stands behind %v", e, before)
		}
		before = e
		checkPlace(t, lines, e)
	}
}

// checkAccepted does with a specification what is done with them.
func checkAccepted(t *testing.T, spec *mesh.Spec) {
	for _, w := range spec.Workloads() {
		plan, err := spec.Compile(w.Name)
		if err != nil {
			t.Fatal(err)
		}
		if plan.Workload.Identity.IsZero() || plan.Certificate.RenewAfter >= plan.Certificate.TTL || plan.Certificate.RenewAfter <= 0 {
			t.Errorf("a Plan with %+v", plan.Certificate)
		}
		for _, o := range plan.Outbound {
			if u, ok := plan.Upstream(o.Upstream); !ok || u.Identity.IsZero() {
				t.Errorf("%s has no upstream %q", o.Name, o.Upstream)
			}
		}
		text, err := json.Marshal(plan)
		if err != nil || strings.Contains(string(text), ":null") {
			t.Errorf("%s, %v", text, err)
		}
	}
	if d := mesh.Diff(spec, spec); len(d) > 0 {
		t.Errorf("a specification differs from itself: %v", d)
	}
	for _, format := range []mesh.GraphFormat{mesh.Mermaid, mesh.DOT, mesh.Tree} {
		if text, err := spec.Graph(format); err != nil || text == "" {
			t.Errorf("Graph(%s) = %q, %v", format, text, err)
		}
	}
}

// FuzzExpand proves that what Expand gives holds only what was there and what was looked up.
func FuzzExpand(f *testing.F) {
	for _, text := range []string{"", "$", "$$", "${A}", "${", "${}", "$${A}", "a${A}b$c${B}", "$$$"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := mesh.Expand(text, func(name string) (string, bool) { return "", name == "A" })
		if err != nil {
			if !errors.Is(err, mesh.ErrVariable) || !strings.Contains(text, "${") {
				t.Errorf("Expand(%q) = %v", text, err)
			}
			return
		}
		want := strings.ReplaceAll(strings.ReplaceAll(strings.ReplaceAll(text, "$$", "\x00"), "${A}", ""), "\x00", "$")
		if !strings.Contains(text, "\x00") && got != want {
			t.Errorf("Expand(%q) = %q, want %q", text, got, want)
		}
	})
}
