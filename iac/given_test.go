package iac_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"countersign.dev/iac"
	"countersign.dev/mesh"
)

// secretARN is an ARN as AWS makes it.
func secretARN(name string) string {
	return "arn:aws:secretsmanager:eu-central-1:123456789012:secret:" + name + "-AbCdEf"
}

// exampleARNs are all that the example's policies need.
func exampleARNs() map[string]string {
	arns := map[string]string{
		"key/vault":              "arn:aws:kms:eu-central-1:123456789012:key/11111111-2222-3333-4444-555555555555",
		"authority/pca":          "arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/11111111-2222-3333-4444-555555555555",
		"repository/countersign": "arn:aws:ecr:eu-central-1:123456789012:repository/countersign",
		"repository/nginx":       "arn:aws:ecr:eu-central-1:123456789012:repository/nginx",
	}
	for _, name := range []string{"bundle", "bundle.rotation", "checkout", "checkout.rotation", "ledger", "ledger.rotation", "paygate", "paygate.rotation", "terminal", "terminal.rotation", "pca.budget"} {
		arns["payments/"+name] = secretARN("payments/" + name)
	}
	return arns
}

// checkoutTask is what the task of checkout needs.
func checkoutTask() iac.Given {
	return iac.Given{
		ARNs:      map[string]string{"payments/checkout": secretARN("payments/checkout"), "payments/bundle": secretARN("payments/bundle")},
		Images:    map[string]string{"countersign": "countersign:1", "nginx": "nginx:1", "checkout": "checkout:1"},
		Endpoints: map[string]string{"ledger:9000": "ledger.internal:9000"},
	}
}

// TestGiven asserts what is written where the ARNs are given.
func TestGiven(t *testing.T) {
	spec := load(t, example+"mesh.yaml")
	policies, err := iac.IAM(spec, iac.Options{}, iac.Given{ARNs: exampleARNs()})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/iam.json", policies)
	for _, way := range []iac.Init{iac.InitTaskRole, iac.InitEnvironment} {
		task, err := iac.TaskDefinition(spec, "checkout", iac.Options{Init: way}, checkoutTask())
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "testdata/task-"+string(way)+".json", task)
	}
	settings := checkoutTask()
	settings.CPU, settings.Memory, settings.Architecture, settings.StreamModule, settings.Health = "256", "512", "ARM64", "/m.so", []string{"CMD", "/healthy"}
	task, err := iac.TaskDefinition(spec, "checkout", iac.Options{}, settings)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"cpu": "256"`, `"memory": "512"`, `"cpuArchitecture": "ARM64"`, `"/m.so"`, `"/healthy"`} {
		if !strings.Contains(string(task), want) {
			t.Errorf("the task definition has no %s", want)
		}
	}
	// The Plan in the environment is the one that the specification compiles to.
	var read struct {
		ContainerDefinitions []struct {
			Environment []struct{ Name, Value string }
		}
	}
	if err := json.Unmarshal(task, &read); err != nil {
		t.Fatal(err)
	}
	plan, err := spec.Compile("checkout")
	if err != nil {
		t.Fatal(err)
	}
	want, err := json.Marshal(plan)
	if err != nil {
		t.Fatal(err)
	}
	if got := read.ContainerDefinitions[0].Environment[0]; got.Name != "COUNTERSIGN_PLAN" || got.Value != string(want) {
		t.Errorf("the Plan is %v", got)
	}
}

// TestMissing asserts that nothing is guessed: all that is missing is listed at once.
func TestMissing(t *testing.T) {
	spec := load(t, example+"mesh.yaml")
	for name, test := range map[string]struct {
		generate func() ([]byte, error)
		want     []string
	}{
		"iam": {
			func() ([]byte, error) { return iac.IAM(spec, iac.Options{}, iac.Given{}) },
			[]string{"--arn payments/checkout=ARN", "--arn payments/pca.budget=ARN", "--arn repository/NAME=ARN", "--arn key/vault=ARN", "--arn authority/pca=ARN"},
		},
		"task definition": {
			func() ([]byte, error) { return iac.TaskDefinition(spec, "checkout", iac.Options{}, iac.Given{}) },
			[]string{"--arn payments/checkout=ARN", "--arn payments/bundle=ARN", "--image countersign=IMAGE", "--image nginx=IMAGE", "--image checkout=IMAGE", "--endpoint ledger:9000=HOST:PORT"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := test.generate()
			if !errors.Is(err, iac.ErrMissing) {
				t.Fatalf("%v", err)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not list %s", err, want)
				}
			}
		})
	}
}

// TestWrongARNs asserts that what is given is what is meant, and has no wildcard.
func TestWrongARNs(t *testing.T) {
	spec := load(t, example+"mesh.yaml")
	for name, test := range map[string]struct{ arn, value, want string }{
		"wildcard at the end":       {"payments/checkout", "arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/checkout-*", "that is not the ARN of the secret"},
		"question marks":            {"payments/checkout", "arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/checkout-??????", "that is not the ARN of the secret"},
		"everything":                {"payments/checkout", "*", "that is not the ARN of the secret"},
		"another secret":            {"payments/checkout", secretARN("payments/ledger"), "that is not the ARN of the secret"},
		"no suffix":                 {"payments/checkout", strings.TrimSuffix(secretARN("payments/checkout"), "-AbCdEf"), "that is not the ARN of the secret"},
		"another region":            {"payments/ledger", strings.Replace(secretARN("payments/ledger"), "central", "west", 1), "its region is"},
		"another account":           {"payments/ledger", strings.Replace(secretARN("payments/ledger"), "123456789012", "111122223333", 1), "its account is"},
		"a key's alias":             {"key/vault", "arn:aws:kms:eu-central-1:123456789012:alias/vault", "that is not one of the kind key"},
		"all keys":                  {"key/vault", "arn:aws:kms:eu-central-1:123456789012:key/*", "that is not one of the kind key, or it has a wildcard"},
		"a key's short id":          {"key/vault", "arn:aws:kms:eu-central-1:123456789012:key/1", "write arn:aws:kms:REGION:ACCOUNT:key/ID"},
		"a key elsewhere":           {"key/vault", strings.Replace(exampleARNs()["key/vault"], "central", "west", 1), "its region is eu-west-1, and that of the secrets is eu-central-1"},
		"a key in China":            {"key/vault", strings.Replace(exampleARNs()["key/vault"], "aws", "aws-cn", 1), "its partition is aws-cn"},
		"an authority in China":     {"authority/pca", strings.Replace(exampleARNs()["authority/pca"], "aws", "aws-cn", 1), "its partition is aws-cn"},
		"an authority's short id":   {"authority/pca", "arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/0", "that is not one of the kind authority"},
		"a line's end":              {"key/vault", exampleARNs()["key/vault"] + "\n", "that is not one of the kind key"},
		"all authorities":           {"authority/pca", "arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/*", "that is not one of the kind authority"},
		"all repositories":          {"repository/all", "arn:aws:ecr:eu-central-1:123456789012:repository/*", "that is not one of the kind repository"},
		"a name that nobody has":    {"payments/chekout", secretARN("payments/chekout"), "nothing of that name is needed"},
		"a key that is nobody's":    {"key/other", exampleARNs()["key/vault"], "nothing of that name is needed"},
		"a repository without name": {"repository/", "nonsense", "that is not one of the kind repository"},
	} {
		t.Run(name, func(t *testing.T) {
			arns := exampleARNs()
			arns[test.arn] = test.value
			_, err := iac.IAM(spec, iac.Options{}, iac.Given{ARNs: arns})
			if !errors.Is(err, iac.ErrGiven) || !strings.Contains(fmt.Sprint(err), test.want) {
				t.Errorf("%v, want a refusal with %q", err, test.want)
			}
		})
	}
}

// TestIdle asserts that what is of no use is refused: it is mistyped.
func TestIdle(t *testing.T) {
	spec := load(t, example+"mesh.yaml")
	for name, change := range map[string]func(*iac.Given){
		"--image ngnix":         func(g *iac.Given) { g.Images["ngnix"] = "x" },
		"--endpoint ledger:900": func(g *iac.Given) { g.Endpoints["ledger:900"] = "x:1" },
	} {
		given := checkoutTask()
		change(&given)
		if _, err := iac.TaskDefinition(spec, "checkout", iac.Options{}, given); !errors.Is(err, iac.ErrGiven) || !strings.Contains(fmt.Sprint(err), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What other outputs need is no mistake: one list does for all.
	given := checkoutTask()
	maps.Copy(given.ARNs, exampleARNs())
	if _, err := iac.TaskDefinition(spec, "checkout", iac.Options{}, given); err != nil {
		t.Error(err)
	}
	if _, err := iac.TaskDefinition(spec, "chekout", iac.Options{}, given); !errors.Is(err, mesh.ErrNoWorkload) {
		t.Errorf("%v", err)
	}
}

// TestDeclaredRegion asserts that a private CA that is made elsewhere is in the region that is declared for it.
func TestDeclaredRegion(t *testing.T) {
	spec := parse(t, strings.Replace(good, "type: acmpca", "type: acmpca, region: eu-west-1", 1))
	arns := map[string]string{"authority/pca": exampleARNs()["authority/pca"]}
	if _, err := iac.IAM(spec, iac.Options{}, iac.Given{ARNs: arns}); !errors.Is(err, iac.ErrGiven) || !strings.Contains(fmt.Sprint(err), "that of the authority in the specification is eu-west-1") {
		t.Errorf("%v", err)
	}
}

// TestTaskSettings asserts that what ECS would refuse later is refused now, each by its flag.
func TestTaskSettings(t *testing.T) {
	spec := load(t, example+"mesh.yaml")
	for want, change := range map[string]func(*iac.Given){
		`--cpu "lots"`:                 func(g *iac.Given) { g.CPU = "lots" },
		`--cpu "500"`:                  func(g *iac.Given) { g.CPU = "500" },
		`--memory "1"`:                 func(g *iac.Given) { g.Memory = "1" },
		`--memory "512MB"`:             func(g *iac.Given) { g.Memory = "512MB" },
		`--memory "+1024"`:             func(g *iac.Given) { g.Memory = "+1024" },
		`--memory "1500"`:              func(g *iac.Given) { g.Memory = "1500" },
		`512, 1024 or 2048`:            func(g *iac.Given) { g.CPU, g.Memory = "256", "1536" },
		`from 4096 to 16384 MiB`:       func(g *iac.Given) { g.CPU, g.Memory = "2048", "17408" },
		`--image checkout="a b"`:       func(g *iac.Given) { g.Images["checkout"] = "a b" },
		`--image nginx="n\n"`:          func(g *iac.Given) { g.Images["nginx"] = "n\n" },
		`--stream-module "m.so"`:       func(g *iac.Given) { g.StreamModule = "m.so" },
		`--stream-module "/m.so;x"`:    func(g *iac.Given) { g.StreamModule = "/m.so;x" },
		`--health-check "curl"`:        func(g *iac.Given) { g.Health = []string{"curl"} },
		`--health-check CMD: `:         func(g *iac.Given) { g.Health = []string{"CMD"} },
		`CMD-SHELL has one command`:    func(g *iac.Given) { g.Health = []string{"CMD-SHELL", "a", "b"} },
		`--health-check CMD-SHELL: th`: func(g *iac.Given) { g.Health = []string{"CMD-SHELL", ""} },
	} {
		given := checkoutTask()
		change(&given)
		if out, err := iac.TaskDefinition(spec, "checkout", iac.Options{}, given); !errors.Is(err, iac.ErrGiven) || !strings.Contains(fmt.Sprint(err), want) || out != nil {
			t.Errorf("%v, want a refusal with %s", err, want)
		}
	}
	for cpu, memory := range map[string]string{"256": "2048", "512": "4096", "1024": "2048", "8192": "20480", "16384": "122880"} {
		given := checkoutTask()
		given.CPU, given.Memory = cpu, memory
		if _, err := iac.TaskDefinition(spec, "checkout", iac.Options{}, given); err != nil {
			t.Errorf("%s and %s: %v", cpu, memory, err)
		}
	}
	if _, err := iac.TaskDefinition(spec, "ledger", iac.Options{}, iac.Given{StreamModule: "/m.so"}); !errors.Is(err, iac.ErrGiven) || !strings.Contains(fmt.Sprint(err), "the proxy of ledger is haproxy") {
		t.Errorf("%v", err)
	}
	if _, err := iac.TaskDefinition(spec, "paygate", iac.Options{}, iac.Given{Health: []string{"CMD", "x"}}); !errors.Is(err, iac.ErrGiven) || !strings.Contains(fmt.Sprint(err), "paygate is a gateway") {
		t.Errorf("%v", err)
	}
}

// TestImageOfTwo asserts that no service gets the image of its proxy, nor the proxy that of the service.
func TestImageOfTwo(t *testing.T) {
	for _, name := range []string{"nginx", "countersign"} {
		spec := parse(t, strings.Replace(good, "  one:", "  "+name+":", 1))
		_, err := iac.TaskDefinition(spec, name, iac.Options{}, iac.Given{})
		refusedAt(t, err, iac.ErrGiven, "8:3: services."+name, "--image "+name+" would be")
		_, err = iac.TaskDefinition(spec, name, iac.Options{}, iac.Given{CPU: "lots"})
		if text := fmt.Sprint(err); !errors.Is(err, iac.ErrGiven) || !strings.Contains(text, "fit:\nmesh.yaml:8:3: services."+name+": --image") || !strings.Contains(text, "\n  - --cpu \"lots\"") {
			t.Errorf("%v, want the place first, and the flag behind it", err)
		}
		_, err = iac.CloudFormation(spec, iac.Options{})
		refusedAt(t, err, iac.ErrRefused, "8:3: services."+name, "one of them a parameter")
	}
}

// TestFunctionFindsItsSpecification asserts that no path is said: a specification of several files lies in a directory of the
// package, which the function finds beside itself.
func TestFunctionFindsItsSpecification(t *testing.T) {
	for name, generate := range map[string]func(*mesh.Spec, iac.Options) ([]byte, error){"cloudformation": iac.CloudFormation, "terraform": iac.Terraform} {
		out, err := generate(parse(t, good), iac.Options{})
		if err != nil || strings.Contains(string(out), "COUNTERSIGN_MESH") || !strings.Contains(string(out), "COUNTERSIGN_AUTHORITY_PCA_ARN") {
			t.Errorf("%s: %v; it says where the specification lies, or not which private CA it is", name, err)
		}
	}
}
