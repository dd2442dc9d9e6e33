package mesh_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v4"

	"countersign.dev/mesh"
)

var update = flag.Bool("update", false, "rewrite golden files")

// golden compares with a file, or writes it.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s is stale; go test -update rewrites it (-want +got):\n%s", path, diff)
	}
}

// archive is a corpus entry: what it is about, its documents, and in a bad one the errors.
type archive struct {
	path      string
	parsed    *txtar.Archive
	documents []mesh.Document
	want      string
	silent    bool // the schema accepts it, for the reason that the comment gives
}

// corpus reads the entries below testdata.
func corpus(t testing.TB, kind string, least int) map[string]archive {
	t.Helper()
	paths, err := filepath.Glob("testdata/" + kind + "/*.txtar")
	if err != nil || len(paths) < least {
		t.Fatalf("the corpus has %d %s entries, want at least %d (%v)", len(paths), kind, least, err)
	}
	all := map[string]archive{}
	for _, path := range paths {
		parsed, err := txtar.ParseFile(path)
		if err != nil {
			t.Fatal(err)
		}
		a := archive{path: path, parsed: parsed, silent: strings.Contains(string(parsed.Comment), "\nschema: silent, ")}
		for _, f := range parsed.Files {
			if f.Name == "want" {
				a.want = string(f.Data)
				continue
			}
			a.documents = append(a.documents, mesh.Document{Name: f.Name, Directory: "/spec", Content: string(f.Data)})
		}
		all[strings.TrimSuffix(filepath.Base(path), ".txtar")] = a
	}
	return all
}

// errorForm is what a script relies on: PATH:LINE:COLUMN: WHERE: WRONG; RIGHT.
var errorForm = regexp.MustCompile(`^[^:]+:[1-9][0-9]*:[1-9][0-9]*: ([\w.-]|\[[0-9]+\]|\["(\\.|[^"\\])*"\])+: .+; .+$`)

// TestBad proves that every bad document is refused with exactly the errors that it states.
func TestBad(t *testing.T) {
	for name, a := range corpus(t, "bad", 80) {
		t.Run(name, func(t *testing.T) {
			_, err := mesh.ParseDocuments(a.documents)
			var errs mesh.Errors
			if !errors.As(err, &errs) {
				t.Fatalf("got %v, want mesh.Errors", err)
			}
			for _, line := range errs.Lines() {
				if !errorForm.MatchString(line) {
					t.Errorf("not of the form PATH:LINE:COLUMN: WHERE: WRONG; RIGHT: %s", line)
				}
			}
			got := errs.Error() + "\n"
			if *update {
				for i := range a.parsed.Files {
					if a.parsed.Files[i].Name == "want" {
						a.parsed.Files[i].Data = []byte(got)
					}
				}
				if err := os.WriteFile(a.path, txtar.Format(a.parsed), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(a.want, got); diff != "" {
				t.Errorf("errors (-want +got):\n%s", diff)
			}
		})
	}
}

// TestGood proves that every good document is accepted and compiles to the Plans beside it.
func TestGood(t *testing.T) {
	for name, a := range corpus(t, "good", 8) {
		t.Run(name, func(t *testing.T) {
			spec, err := mesh.ParseDocuments(a.documents)
			if err != nil {
				t.Fatal(err)
			}
			plans := []*mesh.Plan{}
			for _, w := range spec.Workloads() {
				plan, err := spec.Compile(w.Name)
				if err != nil {
					t.Fatal(err)
				}
				plans = append(plans, plan)
			}
			got, err := json.MarshalIndent(plans, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "testdata/plans/"+name+".json", append(got, '\n'))
		})
	}
}

// TestSchemaAgrees proves that schema and validator judge alike, where a schema can judge.
func TestSchemaAgrees(t *testing.T) {
	parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(mesh.Schema()))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	if err := compiler.AddResource("mesh.schema.json", parsed); err != nil {
		t.Fatal(err)
	}
	schema, err := compiler.Compile("mesh.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	// A schema sees one document; what a directory's files are together it cannot judge.
	for name, a := range corpus(t, "good", 8) {
		if len(a.documents) == 1 {
			if err := schema.Validate(generic(t, a.documents[0])); err != nil {
				t.Errorf("good/%s: the validator accepts it and the schema does not: %v", name, err)
			}
		}
	}
	judged := 0
	for name, a := range corpus(t, "bad", 80) {
		if len(a.documents) > 1 || strings.Contains(string(a.parsed.Comment), "schema: silent, it is no YAML") {
			continue
		}
		err := schema.Validate(generic(t, a.documents[0]))
		if a.silent && err != nil {
			t.Errorf("bad/%s: it says that the schema is silent, and the schema refuses it: %v", name, err)
		}
		if !a.silent && err == nil {
			t.Errorf("bad/%s: the validator refuses it and the schema does not", name)
		}
		if !a.silent {
			judged++
		}
	}
	if judged < 40 {
		t.Errorf("the schema judged only %d bad documents", judged)
	}
}

// generic reads a document as programs that know nothing of this package do.
func generic(t *testing.T, d mesh.Document) any {
	t.Helper()
	var v any
	if err := yaml.Load([]byte(strings.Replace(d.Content, "%YAML 1.2\n", "", 1)), &v, yaml.WithUniqueKeys(false)); err != nil {
		t.Fatalf("%s: %v", d.Name, err)
	}
	text, err := json.Marshal(jsonable(v))
	if err != nil {
		t.Fatal(err)
	}
	v, err = jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// jsonable gives mappings the keys that JSON has.
func jsonable(v any) any {
	switch v := v.(type) {
	case map[any]any:
		m := map[string]any{}
		for key, value := range v {
			text, ok := key.(string)
			if !ok {
				encoded, _ := json.Marshal(key)
				text = string(encoded)
			}
			m[text] = jsonable(value)
		}
		return m
	case map[string]any:
		for key, value := range v {
			v[key] = jsonable(value)
		}
	case []any:
		for i := range v {
			v[i] = jsonable(v[i])
		}
	}
	return v
}
