package countersign_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const module = "countersign.dev"

// layer says where each package stands; a package imports only what stands below it. A package that
// is not here fails the test until somebody has decided where it belongs.
var layer = map[string]int{
	// The nouns.
	"id":      0,
	"mesh":    0,
	"durable": 0,
	"secret":  0,
	// What data planes count, by name.
	"stat": 0,
	// The example specifications, embedded.
	"examples": 0,
	// The rules: what may be issued, who may call whom, what is written down.
	"issue":   1,
	"policy":  1,
	"journal": 1,
	"mtls":    1,
	"api":     1,
	// What expires when, and what hides it.
	"expiry": 1,
	// What certificates cost, and how many somebody is willing to pay for.
	"budget": 1,
	// What other proxies get: certificates from elsewhere, checked, and what their configurations share.
	"credential": 1,
	"engine":     1,
	"reload":     1, // how a foreign one is told to take new files
	"admin":      1, // how every data plane answers its administrator
	"accesslog":  1, // how it writes its access log
	// The engines, which never import one another.
	"ca":      2,
	"agent":   2,
	"proxy":   2,
	"observe": 2,
	// What tests share.
	"issue/issuetest":     2,
	"engine/enginetest":   2,
	"durable/durabletest": 2,
	// What keeps another program in force.
	"supervise": 2,
	// Secret stores, and the configurations of other proxies.
	"rotate":           2,
	"secret/filestore": 2,
	"nginx":            2,
	"haproxy":          2,
	"deliver":          2,
	// The edges.
	"server":  3,
	"up":      3,
	"example": 3,
	"iac":     3, // how a mesh is deployed; the templates themselves
	// The program, which wires them, and the tests of the whole.
	"cmd/countersign": 4,
	"integration":     4,
	// What the whole costs, beside its peers.
	"bench":     4,
	"bench/pgo": 4,
	"":          4,
}

// sideways are the imports inside a layer that are meant: IDs are the word that everything is said in.
var sideways = map[string][]string{
	"mesh":       {"id", "secret"},                              // how a credential lies in a store is the store's word
	"engine":     {"policy"},                                    // which paths are plain is the policy's word
	"admin":      {"mtls"},                                      // how a serial is spelled
	"credential": {"mtls"},                                      // whose certificate it is that is known by a DNS name
	"bench/pgo":  {"bench/internal/load", "bench/internal/rig"}, // two programs of one subject
}

// never are imports that a package's own promise excludes.
var never = map[string][]string{
	"id":     {"os", "net", "net/http"},
	"secret": {"os", "net", "net/http"},
	"issue":  {"os", "net/http", "database/sql"}, // a pure core: no disk, no network
	"policy": {"os", "net/http", "database/sql"},
	"expiry": {"os", "net", "net/http", "database/sql"}, // facts in, findings out
	"budget": {"os", "net", "net/http"},
}

// goPackage is the part of `go list -json` that is looked at.
type goPackage struct {
	ImportPath   string
	Standard     bool
	Imports      []string
	TestImports  []string
	XTestImports []string
	Error        *struct{ Err string }
}

// TestLayers asserts the import graph as the toolchain sees it.
func TestLayers(t *testing.T) {
	packages, err := list(t)
	if err != nil {
		t.Fatal(err)
	}
	for _, violation := range violations(packages) {
		t.Error(violation)
	}
}

// list asks the toolchain for this module's packages and all they depend on.
func list(t *testing.T) ([]goPackage, error) {
	t.Helper()
	// go test caches by the files that the test itself looks at, and go list is another process.
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".go" {
			_, err = os.Stat(path)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	command := exec.CommandContext(t.Context(), "go", "list", "-pgo=off", "-deps", "-json=ImportPath,Standard,Imports,TestImports,XTestImports,Error", "./...")
	var stderr bytes.Buffer
	command.Stderr = &stderr
	output, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w\n%s", err, stderr.Bytes())
	}
	var packages []goPackage
	for decoder := json.NewDecoder(bytes.NewReader(output)); ; {
		var p goPackage
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, fmt.Errorf("reading what go list wrote: %w", err)
		}
		if p.Error != nil {
			return nil, fmt.Errorf("go list: %s: %s", p.ImportPath, p.Error.Err)
		}
		packages = append(packages, p)
	}
}

// violations says in words which imports are not allowed.
func violations(packages []goPackage) []string {
	var wrong []string
	for _, p := range packages {
		from, ours := inModule(p.ImportPath)
		if !ours {
			continue
		}
		level, known := layerOf(from)
		if !known {
			wrong = append(wrong, fmt.Sprintf("package %q has no layer: place it in the table of layers_test.go and in ARCHITECTURE.md", from))
			continue
		}
		for _, imported := range p.Imports {
			if slices.Contains(never[owner(from)], imported) {
				wrong = append(wrong, fmt.Sprintf("%s imports %s, which its promise excludes", from, imported))
			}
			to, ours := inModule(imported)
			if !ours {
				continue
			}
			if owner(from) == owner(to) {
				continue
			}
			if strings.Contains(to+"/", "test/") {
				wrong = append(wrong, fmt.Sprintf("%s imports %s, which is for tests", from, to))
			}
			if below, known := layerOf(to); known && below >= level && !slices.Contains(sideways[owner(from)], to) && !amongAWS(from, to) {
				wrong = append(wrong, fmt.Sprintf("%s (layer %d) imports %s (layer %d): imports point down only", from, level, to, below))
			}
		}
		for _, imported := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			if strings.HasPrefix(imported, "github.com/aws/") && from != "aws" && !strings.HasPrefix(from, "aws/") {
				wrong = append(wrong, fmt.Sprintf("%s imports %s: only packages below aws/ import the AWS SDK", from, imported))
			}
		}
	}
	slices.Sort(wrong)
	return slices.Compact(wrong)
}

// inModule gives the path of a package below the module's root.
func inModule(path string) (string, bool) {
	if path == module {
		return "", true
	}
	return strings.CutPrefix(path, module+"/")
}

// owner is the package that a package is a part of: proxy/internal/header is a part of proxy, and the
// toolchain sees to it that nobody else imports it.
func owner(path string) string {
	before, _, _ := strings.Cut(path, "/internal/")
	return before
}

// amongAWS tells whether an import below aws/ is meant: all of them become clients of AWS in one way, and a package may
// have parts of its own below it.
func amongAWS(from, to string) bool {
	return strings.HasPrefix(from, "aws/") && (to == "aws/session" || strings.HasPrefix(to, from+"/"))
}

// layerOf finds a package's layer. What stands below aws/ are edges, and a package below integration/
// belongs to the tests of the whole.
func layerOf(path string) (int, bool) {
	path = owner(path)
	if level, ok := layer[path]; ok {
		return level, true
	}
	switch {
	case path == "aws", strings.HasPrefix(path, "aws/"):
		return 3, true
	case strings.HasPrefix(path, "integration/"):
		return layer["integration"], true
	}
	return 0, false
}

// TestViolations shows that the assertion above can fail.
func TestViolations(t *testing.T) {
	imports := func(path string, imports ...string) goPackage {
		return goPackage{ImportPath: path, Imports: imports}
	}
	tests := map[string]struct {
		p    goPackage
		want []string
	}{
		"down":           {imports("countersign.dev/server", "countersign.dev/ca", "net/http"), nil},
		"up":             {imports("countersign.dev/issue", "countersign.dev/ca"), []string{"issue (layer 1) imports ca (layer 2): imports point down only"}},
		"sideways":       {imports("countersign.dev/proxy", "countersign.dev/agent"), []string{"proxy (layer 2) imports agent (layer 2): imports point down only"}},
		"meant sideways": {imports("countersign.dev/mesh", "countersign.dev/id"), nil},
		"a part":         {imports("countersign.dev/proxy", "countersign.dev/proxy/internal/header"), nil},
		"a part, up":     {imports("countersign.dev/proxy/internal/header", "countersign.dev/server"), []string{"proxy/internal/header (layer 2) imports server (layer 3): imports point down only"}},
		"a tests' part":  {imports("countersign.dev/server", "countersign.dev/issue/issuetest"), []string{"server imports issue/issuetest, which is for tests"}},
		"unknown":        {imports("countersign.dev/util"), []string{`package "util" has no layer: place it in the table of layers_test.go and in ARCHITECTURE.md`}},
		"promise":        {imports("countersign.dev/issue", "os"), []string{"issue imports os, which its promise excludes"}},
		"AWS":            {imports("countersign.dev/ca", "github.com/aws/aws-sdk-go-v2/service/kms"), []string{"ca imports github.com/aws/aws-sdk-go-v2/service/kms: only packages below aws/ import the AWS SDK"}},
		"AWS in a test": {
			goPackage{ImportPath: "countersign.dev/server", XTestImports: []string{"github.com/aws/smithy-go"}},
			[]string{"server imports github.com/aws/smithy-go: only packages below aws/ import the AWS SDK"},
		},
		"AWS where it belongs": {imports("countersign.dev/aws/kms", "github.com/aws/aws-sdk-go-v2/service/kms"), nil},
		"AWS, by a session":    {imports("countersign.dev/aws/ecs", "countersign.dev/aws/session"), nil},
		"AWS, sideways":        {imports("countersign.dev/aws/ecs", "countersign.dev/aws/acm"), []string{"aws/ecs (layer 3) imports aws/acm (layer 3): imports point down only"}},
		"AWS, its doubles":     {imports("countersign.dev/aws/internal/awstest", "countersign.dev/aws/internal/awstest/iam"), nil},
		"AWS, a double in use": {imports("countersign.dev/aws/ecs", "countersign.dev/aws/internal/awstest/iam"), []string{"aws/ecs (layer 3) imports aws/internal/awstest/iam (layer 3): imports point down only", "aws/ecs imports aws/internal/awstest/iam, which is for tests"}},
		"not ours":             {imports("github.com/other/module", "countersign.dev/ca"), nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, violations([]goPackage{test.p})); diff != "" {
				t.Errorf("violations (-want +got):\n%s", diff)
			}
		})
	}
}
