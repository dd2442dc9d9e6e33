package iac_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"countersign.dev/iac"
)

// lintAll has all variants looked at, which takes the linters a minute of CPU.
var lintAll = flag.Bool("lint-all", false, "have the linters look at all variants, not the example alone")

// waiver is one finding that is accepted.
type waiver struct{ Tool, Check, Resources, Reason string }

// finding is one of cfn-lint or checkov.
type finding struct{ tool, check, resource, text string }

// TestLinters asserts that cfn-lint and checkov find nothing in the templates but what is waived with a reason, and that no
// waiver is there for nothing.
func TestLinters(t *testing.T) {
	dir := t.TempDir()
	for name, write := range variants(t) {
		if !*lintAll && name != example+"mesh.yaml "+string(iac.InitTaskRole) {
			continue
		}
		name = strings.NewReplacer("/", "_", ".", "_", " ", "_").Replace(name)
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		for file, text := range map[string][]byte{name + ".yaml": write(iac.CloudFormation), filepath.Join(name, "main.tf"): write(iac.Terraform)} {
			if err := os.WriteFile(filepath.Join(dir, file), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	text, err := os.ReadFile("testdata/waivers.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var waivers []waiver
	if err := yaml.Unmarshal(text, &waivers); err != nil {
		t.Fatal(err)
	}
	used := make([]bool, len(waivers))
	for _, f := range append(cfnLint(t, dir), checkov(t, dir)...) {
		waived := false
		for i, w := range waivers {
			if w.Tool == f.tool && w.Check == f.check && matches(w.Resources, f.resource) {
				waived, used[i] = true, true
			}
		}
		if !waived {
			t.Errorf("%s %s: %s: %s", f.tool, f.check, f.resource, f.text)
		}
	}
	for i, w := range waivers {
		if len(strings.Fields(w.Reason)) < 5 {
			t.Errorf("the waiver of %s %s has no reason", w.Tool, w.Check)
		}
		if !used[i] {
			t.Errorf("nothing needs the waiver of %s %s for %s", w.Tool, w.Check, w.Resources)
		}
	}
}

// matches tells whether a resource's name begins as one of a list.
func matches(list, resource string) bool {
	for prefix := range strings.SplitSeq(list, ",") {
		if prefix = strings.TrimSpace(prefix); prefix != "" && strings.HasPrefix(resource, prefix) {
			return true
		}
	}
	return false
}

// linter runs one of the pinned linters and gives what it prints. They end with a status that says whether they found something.
func linter(t *testing.T, program string, args ...string) []byte {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("../tools/bin/lint-venv/bin", program))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not installed, and CI=true wants it: tools/install-peers.sh installs it", program)
		}
		t.Skipf("NOT TESTED: %s is not installed; tools/install-peers.sh installs it", program)
	}
	command := exec.CommandContext(t.Context(), path, args...)
	// checkov gives up a large file after ten seconds, which is not enough where the machine is busy.
	command.Env = append(os.Environ(), "CHECKOV_RUN_SCA_PACKAGE_SCAN=false", "BC_SKIP_MAPPING=TRUE", "HCL_PARSE_TIMEOUT_SEC=120")
	var stderr bytes.Buffer
	command.Stderr = &stderr
	out, err := command.Output()
	if len(out) == 0 {
		t.Fatalf("%s printed nothing: %v\n%s", program, err, stderr.Bytes())
	}
	return out
}

func cfnLint(t *testing.T, dir string) []finding {
	t.Helper()
	templates, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(templates) == 0 {
		t.Fatalf("no templates: %v", err)
	}
	var found []struct {
		Rule     struct{ ID string }
		Message  string
		Location struct{ Path []any }
	}
	if err := json.Unmarshal(linter(t, "cfn-lint", append([]string{"--format", "json", "--"}, templates...)...), &found); err != nil {
		t.Fatal(err)
	}
	var all []finding
	for _, f := range found {
		path := make([]string, 0, len(f.Location.Path))
		for _, step := range f.Location.Path {
			path = append(path, fmt.Sprint(step))
		}
		all = append(all, finding{"cfn-lint", f.Rule.ID, strings.TrimPrefix(strings.Join(path, "/"), "Resources/"), f.Message})
	}
	return all
}

func checkov(t *testing.T, dir string) []finding {
	t.Helper()
	out := linter(t, "checkov", "--directory", dir, "--framework", "cloudformation", "terraform", "secrets", "--compact", "--quiet", "--output", "json", "--skip-download", "--soft-fail")
	var reports []struct {
		CheckType string `json:"check_type"`
		Summary   struct {
			Passed        int `json:"passed"`
			ParsingErrors int `json:"parsing_errors"`
		} `json:"summary"`
		Results struct {
			FailedChecks []struct {
				CheckID   string `json:"check_id"`
				CheckName string `json:"check_name"`
				Resource  string `json:"resource"`
				FilePath  string `json:"file_path"`
				Lines     []int  `json:"file_line_range"`
			} `json:"failed_checks"`
		} `json:"results"`
	}
	if err := json.Unmarshal(out, &reports); err != nil {
		t.Fatalf("checkov: %v\n%.500s", err, out)
	}
	var all []finding
	passed := map[string]int{}
	for _, report := range reports {
		passed[report.CheckType] += report.Summary.Passed
		if report.Summary.ParsingErrors > 0 {
			t.Errorf("checkov could not read %d files of %s", report.Summary.ParsingErrors, report.CheckType)
		}
		for _, f := range report.Results.FailedChecks {
			resource := f.Resource
			if report.CheckType == "secrets" {
				resource = line(t, filepath.Join(dir, f.FilePath), f.Lines[0]) // the name is a digest
			}
			all = append(all, finding{"checkov", f.CheckID, resource, fmt.Sprintf("%s (%s, lines %v)", f.CheckName, f.FilePath, f.Lines)})
		}
	}
	if passed["cloudformation"] == 0 || passed["terraform"] == 0 {
		t.Errorf("checkov checked %v", passed)
	}
	return all
}

// line is one line of a file, without what is around its words.
func line(t *testing.T, path string, number int) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Trim(strings.Split(string(text), "\n")[number-1], ` "`)
}
