package iac_test

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"countersign.dev/iac"
)

// TestDigits asserts that names that begin with a digit, which DNS and ECS allow, are identifiers of Terraform all the same.
func TestDigits(t *testing.T) {
	text := strings.NewReplacer("mesh: small", "mesh: 5g", "vault", "1st", "authority: pca", "authority: 9ca", "{pca:", "{9ca:", "  one:", "  3ds:", "cluster: c", "cluster: 2nd-Cluster").Replace(good) + `
  7up:
    ports: [{port: 8444, protocol: http, app: 8081}]
    calls: [{service: 3ds}]
    proxy: {engine: haproxy}
    delivery: {type: store, store: 1st, secret: "{service}", bundle: 8/bundle}
    deploy: {type: ecs, cluster: 2nd-Cluster}
`
	out, err := iac.Terraform(parse(t, text), iac.Options{})
	if err != nil {
		t.Fatal(err)
	}
	file, problems := hclsyntax.ParseConfig(out, "main.tf", hcl.InitialPos)
	if problems.HasErrors() {
		t.Fatalf("%v\n%s", problems, out)
	}
	body, ok := file.Body.(*hclsyntax.Body)
	if !ok {
		t.Fatalf("the body is %T", file.Body)
	}
	declared := declarations(t, body)
	problems = hclsyntax.VisitAll(body, func(node hclsyntax.Node) hcl.Diagnostics {
		if expression, ok := node.(*hclsyntax.ScopeTraversalExpr); ok {
			checkTraversal(t, declared, expression.Traversal)
		}
		return nil
	})
	if problems.HasErrors() {
		t.Error(problems)
	}
	for _, b := range body.Blocks {
		for _, label := range b.Labels {
			if !hclsyntax.ValidIdentifier(label) || label[0] >= '0' && label[0] <= '9' {
				t.Errorf("%s %q is no identifier", b.Type, b.Labels)
			}
		}
	}
}

// TestCommonName asserts that the common name of a CA is no longer than certificates take, however long the names are.
func TestCommonName(t *testing.T) {
	mesh, authority := strings.Repeat("m", 40), strings.Repeat("a", 63)
	spec := parse(t, strings.NewReplacer("mesh: small", "mesh: "+mesh, "authority: pca", "authority: "+authority, "{pca:", "{"+authority+":").Replace(good))
	want := (mesh + " " + authority)[:64]
	cloud, err := iac.CloudFormation(spec, iac.Options{})
	if err != nil {
		t.Fatal(err)
	}
	terraform, err := iac.Terraform(spec, iac.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{`CommonName: (.*)`: cloud, `common_name += "(.*)"`: terraform} {
		if found := regexp.MustCompile(name).FindSubmatch(text); found == nil || string(found[1]) != want {
			t.Errorf("%s: %q, want %q", name, found, want)
		}
	}
}

// TestSharedRoots asserts that a workload whose roots stand in a bundle has no secret of its own for them, which nobody would
// ever write to, whatever makes the secrets and whoever reads them.
func TestSharedRoots(t *testing.T) {
	separate := strings.Replace(good, `{service}"}`, `{service}", layout: separate}`, 1)
	for _, shared := range []bool{false, true} {
		text := separate
		if shared {
			text = strings.Replace(separate, "layout: separate", `layout: separate, bundle: "{mesh}/roots"`, 1)
		}
		spec := parse(t, text)
		for _, way := range []iac.Init{iac.InitTaskRole, iac.InitEnvironment} {
			o := iac.Options{Init: way}
			for kind, generate := range map[string]func() ([]byte, error){
				"cloudformation": func() ([]byte, error) { return iac.CloudFormation(spec, o) },
				"terraform":      func() ([]byte, error) { return iac.Terraform(spec, o) },
				"iam":            func() ([]byte, error) { return wanted(iac.IAM(spec, o, iac.Given{})) },
				"task":           func() ([]byte, error) { return wanted(iac.TaskDefinition(spec, "one", o, iac.Given{})) },
			} {
				if kind == "task" && way == iac.InitTaskRole {
					continue // init knows its secrets by their names
				}
				made, err := generate()
				if err != nil {
					t.Fatal(err)
				}
				if own, bundle := bytes.Contains(made, []byte("small/one/ca_bundle")), bytes.Contains(made, []byte("small/roots")); own == shared || bundle != shared {
					t.Errorf("%s, %s, shared %t: a secret of its own %t, a shared one %t", kind, way, shared, own, bundle)
				}
			}
		}
	}
}

// wanted is which ARNs are asked for when none is given.
func wanted(made []byte, err error) ([]byte, error) {
	if made != nil || !errors.Is(err, iac.ErrMissing) {
		return nil, fmt.Errorf("it was made without ARNs: %w", err)
	}
	return []byte(err.Error()), nil
}

// TestRegionOfACM asserts that a CA of another region is refused where ACM is to issue from it, which it cannot, and is as good as any where
// AWS Private CA is asked itself.
func TestRegionOfACM(t *testing.T) {
	const ca = "arn: arn:aws:acm-pca:eu-west-1:999988887777:certificate-authority/11111111-89ab-cdef-0123-456789abcdef"
	text := strings.NewReplacer("{pca: {type: acmpca,", "{pca: {type: TYPE, "+ca+",", "{type: secretsmanager}", "{type: secretsmanager, region: eu-central-1}").Replace(good)
	if _, err := iac.CloudFormation(parse(t, strings.Replace(text, "TYPE", "acmpca", 1)), iac.Options{}); err != nil {
		t.Error(err)
	}
	text = strings.NewReplacer("TYPE", "acm, names: {one: one.example.com}", `{service}"}`, `{service}", bundle: "{mesh}/bundle", layout: exported}`).Replace(text)
	const want = "one stack is in one region, and the authority pca is in eu-west-1, the store vault is in eu-central-1"
	if _, err := iac.CloudFormation(parse(t, text), iac.Options{}); !errors.Is(err, iac.ErrRefused) || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want a refusal with %q", err, want)
	}
}
