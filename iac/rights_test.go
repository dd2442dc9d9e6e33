package iac_test

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"countersign.dev/iac"
	"countersign.dev/mesh"
)

// TestWhoReads asserts that each secret is read by its own workload's role, the one that is meant to, and by the rotation,
// and that both the role's policy and the secret's say so.
func TestWhoReads(t *testing.T) {
	for _, path := range specifications {
		for _, way := range []iac.Init{iac.InitTaskRole, iac.InitEnvironment} {
			t.Run(path+" "+string(way), func(t *testing.T) {
				spec := load(t, path)
				text, err := iac.CloudFormation(spec, iac.Options{Init: way})
				if err != nil {
					t.Fatal(err)
				}
				checkReaders(t, spec, way, readStack(t, text))
			})
		}
	}
}

func checkReaders(t *testing.T, spec *mesh.Spec, way iac.Init, s stack) {
	t.Helper()
	want, byRole, bySecret := map[string]string{}, map[string]string{}, map[string]string{}
	suffix := map[iac.Init]string{iac.InitTaskRole: "-task", iac.InitEnvironment: "-execution"}[way]
	rotation := spec.Mesh + "-rotation"
	names := map[string]string{} // by resource
	for id, properties := range s.of("AWS::SecretsManager::Secret") {
		names[id] = fmt.Sprint(properties["Name"])
		want[rotation] += " " + names[id]
	}
	for _, w := range spec.Workloads() {
		plan, err := spec.Compile(w.Name)
		if err != nil {
			t.Fatal(err)
		}
		shape, err := plan.Delivery.Shape()
		if err != nil {
			t.Fatal(err)
		}
		read := shape.Names(plan.Delivery.Secret)
		if plan.Delivery.Bundle != "" {
			read = append(read, plan.Delivery.Bundle)
		}
		want[spec.Mesh+"-"+w.Name+suffix] = " " + strings.Join(read, " ")
	}
	roles := map[string]string{} // by resource
	for id, properties := range s.of("AWS::IAM::Role") {
		roles[id] = fmt.Sprint(properties["RoleName"])
	}
	for id, properties := range s.policies() {
		role := "whoever has " + id
		if to, ok := properties["Roles"].([]any); ok {
			role = roles[fmt.Sprint(at(to[0], "Ref"))]
		}
		for _, statement := range statements(t, properties["PolicyDocument"]) {
			if !slices.Contains(all(statement["Action"]), any("secretsmanager:GetSecretValue")) {
				continue
			}
			for _, resource := range all(statement["Resource"]) {
				name, ok := names[fmt.Sprint(at(resource, "Ref"))]
				if !ok {
					t.Errorf("%s reads %v", id, resource)
				}
				byRole[role] += " " + name
			}
		}
	}
	for id, properties := range s.of("AWS::SecretsManager::ResourcePolicy") {
		secret := names[fmt.Sprint(at(properties["SecretId"], "Ref"))]
		denied := map[string]string{}
		for _, statement := range statements(t, properties["ResourcePolicy"]) {
			if statement["Effect"] != "Deny" || at(statement["Principal"], "AWS") != "*" || at(statement["Resource"], "Ref") != strings.TrimSuffix(id, "Policy") {
				t.Errorf("%s: %v refuses not everybody this secret", id, statement)
			}
			var except []string
			for _, arn := range all(at(statement["Condition"], "ArnNotEquals", "aws:PrincipalArn")) {
				role := roles[strings.TrimSuffix(fmt.Sprint(at(arn, "Fn::GetAtt")), ".Arn")]
				if except = append(except, role); role == "" {
					t.Errorf("%s leaves out %v, which is no role", id, arn)
				}
			}
			for _, action := range all(statement["Action"]) {
				denied[fmt.Sprint(action)] = strings.Join(except, " ")
			}
		}
		for _, action := range []string{"PutSecretValue", "UpdateSecret", "UpdateSecretVersionStage"} {
			if denied["secretsmanager:"+action] != rotation {
				t.Errorf("%s: %s is left to %q", id, action, denied["secretsmanager:"+action])
			}
		}
		if denied["secretsmanager:GetSecretValue"] != denied["secretsmanager:BatchGetSecretValue"] || len(denied) != 5 {
			t.Errorf("%s refuses %v", id, denied)
		}
		for _, role := range strings.Fields(denied["secretsmanager:GetSecretValue"]) {
			bySecret[role] += " " + secret
		}
	}
	for what, got := range map[string]map[string]string{"roles": byRole, "secrets": bySecret} {
		if !maps.EqualFunc(want, got, func(a, b string) bool { return words(a) == words(b) }) {
			t.Errorf("by the policies of the %s they read\n%v\nwant\n%v", what, got, want)
		}
	}
}

// words are the words of a text, sorted.
func words(text string) string {
	list := strings.Fields(text)
	slices.Sort(list)
	return strings.Join(list, " ")
}

// TestDecrypts asserts that whoever may decrypt by a key may so for secrets that are named, and for the same that he may read.
func TestDecrypts(t *testing.T) {
	for name, write := range variants(t) {
		t.Run(name, func(t *testing.T) {
			seen := 0
			for id, properties := range readStack(t, write(iac.CloudFormation)).policies() {
				var reads, decrypts []string
				for _, statement := range statements(t, properties["PolicyDocument"]) {
					actions := all(statement["Action"])
					if slices.Contains(actions, any("secretsmanager:GetSecretValue")) {
						for _, resource := range all(statement["Resource"]) {
							reads = append(reads, fmt.Sprint(resource))
						}
					}
					if slices.Contains(actions, any("kms:Decrypt")) || slices.Contains(actions, any("kms:GenerateDataKey")) {
						for _, arn := range all(at(statement["Condition"], "StringEquals", "kms:EncryptionContext:SecretARN")) {
							decrypts = append(decrypts, fmt.Sprint(arn))
						}
						if at(statement["Condition"], "StringEquals", "kms:ViaService") == nil {
							t.Errorf("%s: %v is not only through Secrets Manager", id, statement["Sid"])
						}
					}
				}
				slices.Sort(reads)
				slices.Sort(decrypts)
				if seen += len(reads); !slices.Equal(reads, decrypts) {
					t.Errorf("%s: it reads %v and decrypts %v", id, reads, decrypts)
				}
			}
			if seen == 0 {
				t.Error("nobody reads anything")
			}
		})
	}
}

// TestDivided asserts that what does not fit into a role is attached to it, before the function is made that needs it.
func TestDivided(t *testing.T) {
	for path, want := range map[string]int{example + "mesh.yaml": 0, "testdata/many.yaml": 2} {
		text, err := iac.CloudFormation(load(t, path), iac.Options{})
		if err != nil {
			t.Fatal(err)
		}
		s, attached := readStack(t, text), 0
		for id, properties := range s.of("AWS::IAM::ManagedPolicy") {
			if to, ok := properties["Roles"].([]any); ok && at(to[0], "Ref") == "RotationRole" {
				if attached++; !slices.Contains(all(at(s.Resources["RotationFunction"], "DependsOn")), any(id)) {
					t.Errorf("%s: the function does not wait for %s", path, id)
				}
			}
		}
		if attached != want {
			t.Errorf("%s: %d policies are attached to the rotation's role, want %d", path, attached, want)
		}
		if s.Outputs["AuditorPolicyArn"] == nil {
			t.Errorf("%s: no output names the auditor's policy", path)
		}
	}
}

// TestAuditorOfPage asserts that the auditor's policy has what docs/check-aws.md says that the check needs.
func TestAuditorOfPage(t *testing.T) {
	page, err := os.ReadFile("../docs/check-aws.md")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(page), "```json\n")
	text, _, _ := strings.Cut(after, "```")
	var want []string
	for _, found := range regexp.MustCompile(`"([a-z-]+:[A-Z][A-Za-z]+)"`).FindAllStringSubmatch(text, -1) {
		want = append(want, found[1])
	}
	template, err := iac.CloudFormation(load(t, example+"mesh.yaml"), iac.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, statement := range statements(t, readStack(t, template).of("AWS::IAM::ManagedPolicy")["AuditorPolicy"]["PolicyDocument"]) {
		for _, action := range all(statement["Action"]) {
			got = append(got, fmt.Sprint(action))
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if len(want) < 10 || !slices.Equal(got, want) {
		t.Errorf("the policy allows\n%v\nand the page says\n%v", got, want)
	}
}
