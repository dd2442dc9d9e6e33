package mesh_test

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"countersign.dev/mesh"
)

// TestGeneratedSchema and TestGeneratedReference prove that what is generated from the table is up to
// date: go test ./mesh -run Generated -update.
func TestGeneratedSchema(t *testing.T) {
	golden(t, "../docs/mesh.schema.json", mesh.Schema())
}

func TestGeneratedReference(t *testing.T) {
	golden(t, "../docs/specification.md", mesh.Reference())
}

// TestReferenceExamples proves that what the reference shows is right.
func TestReferenceExamples(t *testing.T) {
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(mesh.Reference()), -1)
	if len(blocks) < 8 {
		t.Fatalf("the reference has %d examples, want at least 8", len(blocks))
	}
	for _, block := range blocks {
		_, err := mesh.ParseDocuments([]mesh.Document{{Name: "example", Directory: "/spec", Content: block[1]}})
		if err != nil {
			t.Errorf("%v\n%s", err, block[1])
		}
	}
}

// TestReferenceComplete proves that every key of the schema has its line, and every link its heading.
func TestReferenceComplete(t *testing.T) {
	reference := string(mesh.Reference())
	var schema any
	if err := json.Unmarshal(mesh.Schema(), &schema); err != nil {
		t.Fatal(err)
	}
	keys := propertyNames(schema)
	if len(keys) < 40 {
		t.Errorf("the schema has %d keys", len(keys))
	}
	for _, key := range keys {
		if !strings.Contains(reference, "| `"+key+"` |") {
			t.Errorf("the key %q is not in the reference", key)
		}
	}
	headings := map[string]bool{}
	for _, h := range regexp.MustCompile("(?m)^## (.*)$").FindAllStringSubmatch(reference, -1) {
		headings[mesh.Anchor(h[1])] = true
	}
	links := regexp.MustCompile(`\(#([^)]*)\)`).FindAllStringSubmatch(reference, -1)
	if len(links) < 10 {
		t.Errorf("the reference has %d links", len(links))
	}
	for _, link := range links {
		if !headings[link[1]] {
			t.Errorf("the link #%s leads nowhere", link[1])
		}
	}
}

// propertyNames are the keys of all "properties" in a schema.
func propertyNames(schema any) []string {
	var names []string
	switch v := schema.(type) {
	case map[string]any:
		for key, value := range v {
			if properties, ok := value.(map[string]any); ok && key == "properties" {
				for name := range properties {
					names = append(names, name)
				}
			}
			names = append(names, propertyNames(value)...)
		}
	case []any:
		for _, value := range v {
			names = append(names, propertyNames(value)...)
		}
	}
	return names
}
