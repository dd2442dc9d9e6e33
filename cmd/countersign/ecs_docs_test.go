package main

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"countersign.dev/iac"
	"countersign.dev/mesh"
)

// The pages about a mesh on ECS: their commands that need no account of AWS are run, and print what the pages say.

func TestECSPage(t *testing.T) { runPage(t, "ecs.md", 2) }

func TestFargatePage(t *testing.T) { runPage(t, "secrets-manager-to-nginx-on-fargate.md", 3) }

func TestWhoReadsKeysPage(t *testing.T) { runPage(t, "who-reads-keys.md", 3) }

func TestRotationFunctionPage(t *testing.T) { runPage(t, "rotation-function.md", 1) }

// fileInPage is a file that a page writes.
func fileInPage(t *testing.T, page, file string) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/" + page)
	if err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(string(text), "cat >"+file+" <<'END'\n")
	content, _, ended := strings.Cut(after, "\nEND\n")
	if !ok || !ended {
		t.Fatalf("%s writes no %s", page, file)
	}
	return content
}

// parametersOf are the parameters of a template: those that have to be given, and all.
func parametersOf(t *testing.T, template []byte) (required, all []string) {
	t.Helper()
	var read struct {
		Parameters map[string]struct {
			Default any `yaml:"Default"`
		} `yaml:"Parameters"`
	}
	if err := yaml.Unmarshal(template, &read); err != nil {
		t.Fatal(err)
	}
	for name, p := range read.Parameters {
		if all = append(all, name); p.Default == nil {
			required = append(required, name)
		}
	}
	slices.Sort(required)
	slices.Sort(all)
	return required, all
}

// TestParametersFile proves that the file of the page has each parameter of the page's template that has to be given, and nothing
// else, and that the page names the others.
func TestParametersFile(t *testing.T) {
	const page = "secrets-manager-to-nginx-on-fargate.md"
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Content: fileInPage(t, page, "mesh.yaml")}})
	if err != nil {
		t.Fatal(err)
	}
	template, err := iac.CloudFormation(spec, iac.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var parameters []struct{ ParameterKey, ParameterValue string }
	if err := json.Unmarshal([]byte(fileInPage(t, page, "parameters.json")), &parameters); err != nil {
		t.Fatal(err)
	}
	var given []string
	for _, p := range parameters {
		if given = append(given, p.ParameterKey); p.ParameterValue == "" {
			t.Errorf("%s has no value", p.ParameterKey)
		}
	}
	slices.Sort(given)
	required, all := parametersOf(t, template)
	if !slices.Equal(given, required) || len(required) == 0 {
		t.Errorf("parameters.json has %v, and the template asks for %v", given, required)
	}
	text, err := os.ReadFile("../../docs/" + page)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		if !slices.Contains(required, name) && !strings.Contains(string(text), "`"+name+"`") {
			t.Errorf("%s does not name %s", page, name)
		}
	}
}

// TestParametersTable proves that docs/ecs.md names all parameters of the example's template, and those that have to be given as
// such.
func TestParametersTable(t *testing.T) {
	template, err := os.ReadFile("../../examples/payments-ecs/cloudformation.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../../docs/ecs.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "Each of these has to be given:")
	table, rest, ok := strings.Cut(table, "These have a default:")
	if !ok {
		t.Fatal("docs/ecs.md has no list of parameters")
	}
	required, all := parametersOf(t, template)
	service := regexp.MustCompile(`^(Checkout|Ledger|Terminal)(Image|HealthCheck)$`)
	for _, name := range all {
		where := rest
		if slices.Contains(required, name) {
			where = table
		}
		if written := service.ReplaceAllString(name, "SERVICE$2"); !strings.Contains(where, "`"+written+"`") {
			t.Errorf("docs/ecs.md does not name %s at its place", written)
		}
	}
}
