package iac_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/iac"
	"countersign.dev/mesh"
)

var update = flag.Bool("update", false, "write the generated files again")

const example = "../examples/payments-ecs/"

// load reads a specification.
func load(t *testing.T, path string) *mesh.Spec {
	t.Helper()
	spec, err := mesh.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

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
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s is stale; run: go test ./iac -update (-want +got)\n%s", path, diff)
	}
}

// TestExample asserts that the templates beside the example are what is generated now.
func TestExample(t *testing.T) {
	spec := load(t, example+"mesh.yaml")
	for file, generate := range map[string]func(*mesh.Spec, iac.Options) ([]byte, error){"cloudformation.yaml": iac.CloudFormation, "terraform/main.tf": iac.Terraform} {
		got, err := generate(spec, iac.Options{})
		if err != nil {
			t.Fatal(err)
		}
		golden(t, example+file, got)
	}
}
