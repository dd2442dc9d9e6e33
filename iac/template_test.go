package iac_test

import (
	"bytes"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"

	"countersign.dev/iac"
	"countersign.dev/mesh"
)

// stack is a template of CloudFormation as it is read back.
type stack struct {
	text                                       string
	Parameters, Conditions, Resources, Outputs map[string]any
}

// readStack reads a template; functions become {"Ref": NAME}, {"Fn::GetAtt": NAME.ATTRIBUTE} and so on.
func readStack(t *testing.T, text []byte) stack {
	t.Helper()
	var node yaml.Node
	if err := yaml.Unmarshal(text, &node); err != nil {
		t.Fatalf("the template is not YAML: %v", err)
	}
	root, ok := plain(t, node.Content[0]).(map[string]any)
	if !ok {
		t.Fatal("the template is no mapping")
	}
	s := stack{text: string(text)}
	for key, to := range map[string]*map[string]any{"Parameters": &s.Parameters, "Conditions": &s.Conditions, "Resources": &s.Resources, "Outputs": &s.Outputs} {
		if *to, ok = root[key].(map[string]any); !ok {
			t.Fatalf("the template has no %s", key)
		}
	}
	return s
}

// plain makes a value of a node.
func plain(t *testing.T, n *yaml.Node) any {
	t.Helper()
	var value any
	switch n.Kind {
	case yaml.MappingNode:
		m := map[string]any{}
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i].Value
			if _, twice := m[key]; twice {
				t.Errorf("line %d: %s is there twice", n.Line, key)
			}
			m[key] = plain(t, n.Content[i+1])
		}
		value = m
	case yaml.SequenceNode:
		l := []any{}
		for _, item := range n.Content {
			l = append(l, plain(t, item))
		}
		value = l
	default:
		value = n.Value
	}
	switch n.Tag {
	case "!Ref":
		return map[string]any{"Ref": value}
	case "!GetAtt", "!Sub", "!If", "!Equals":
		return map[string]any{"Fn::" + n.Tag[1:]: value}
	}
	return value
}

// walk visits every value, with where it is.
func walk(value any, path string, visit func(path string, value any)) {
	visit(path, value)
	switch v := value.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			walk(v[key], path+"/"+key, visit)
		}
	case []any:
		for i, item := range v {
			walk(item, fmt.Sprintf("%s/%d", path, i), visit)
		}
	}
}

// at follows a path of keys.
func at(value any, keys ...string) any {
	for _, key := range keys {
		m, ok := value.(map[string]any)
		if !ok {
			return nil
		}
		value = m[key]
	}
	return value
}

// of are the resources of a type, by name.
func (s stack) of(kind string) map[string]map[string]any {
	found := map[string]map[string]any{}
	for name, resource := range s.Resources {
		if at(resource, "Type") == kind {
			properties, _ := at(resource, "Properties").(map[string]any)
			found[name] = properties
		}
	}
	return found
}

// policies are those of IAM: in roles, and attached to them.
func (s stack) policies() map[string]map[string]any {
	found := s.of("AWS::IAM::Policy")
	maps.Copy(found, s.of("AWS::IAM::ManagedPolicy"))
	return found
}

// all is a value that may be a list of such.
func all(value any) []any {
	if l, ok := value.([]any); ok {
		return l
	}
	return []any{value}
}

// statements are those of a policy.
func statements(t *testing.T, document any) []map[string]any {
	t.Helper()
	var out []map[string]any
	for _, s := range all(at(document, "Statement")) {
		m, ok := s.(map[string]any)
		if !ok {
			t.Fatalf("a statement is %v", s)
		}
		out = append(out, m)
	}
	return out
}

// specifications have together everything that a template can hold.
var specifications = []string{example + "mesh.yaml", "testdata/parts.yaml", "testdata/acm.yaml", "testdata/many.yaml"}

// generated are templates by what they were made of: they are the same for all tests.
var generated = map[string][]byte{}

// variants are specifications that have everything in them, and ways to deploy them.
func variants(t *testing.T) map[string]func(func(*mesh.Spec, iac.Options) ([]byte, error)) []byte {
	t.Helper()
	out := map[string]func(func(*mesh.Spec, iac.Options) ([]byte, error)) []byte{}
	for _, path := range specifications {
		for _, way := range []iac.Init{iac.InitTaskRole, iac.InitEnvironment} {
			out[path+" "+string(way)] = func(generate func(*mesh.Spec, iac.Options) ([]byte, error)) []byte {
				t.Helper()
				key := fmt.Sprintf("%s %s %p", path, way, generate)
				text, there := generated[key]
				if !there {
					var err error
					if text, err = generate(load(t, path), iac.Options{Init: way}); err != nil {
						t.Fatal(err)
					}
					generated[key] = text
				}
				return text
			}
		}
	}
	return out
}

// TestReferences asserts that everything that a template refers to is in it, and that no two resources wait for each other.
func TestReferences(t *testing.T) {
	inText := regexp.MustCompile(`\$\{([^!}][^}]*)\}`)
	for name, write := range variants(t) {
		t.Run(name, func(t *testing.T) {
			s := readStack(t, write(iac.CloudFormation))
			needs := map[string][]string{}
			check := func(who, what string) {
				id, _, _ := strings.Cut(what, ".")
				_, resource := s.Resources[id]
				_, parameter := s.Parameters[id]
				if !resource && !parameter && !slices.Contains([]string{"AWS::Partition", "AWS::Region", "AWS::AccountId"}, what) {
					t.Errorf("%s refers to %s, which is nowhere", who, what)
				}
				if owner := strings.Split(who, "/")[1]; resource {
					needs[owner] = append(needs[owner], id)
				}
			}
			for _, part := range []map[string]any{s.Resources, s.Conditions, s.Outputs} {
				walk(part, "", func(path string, value any) {
					if to, ok := at(value, "Ref").(string); ok {
						check(path, to)
					}
					if to, ok := at(value, "Fn::GetAtt").(string); ok {
						check(path, to)
					}
					if to, ok := at(value, "Fn::Sub").(string); ok {
						for _, match := range inText.FindAllStringSubmatch(to, -1) {
							check(path, match[1])
						}
					}
					if after := at(value, "DependsOn"); after != nil && at(value, "Type") != nil {
						for _, to := range all(after) {
							check(path+"/DependsOn", fmt.Sprint(to))
						}
					}
					if choice, ok := at(value, "Fn::If").([]any); ok && s.Conditions[fmt.Sprint(choice[0])] == nil {
						t.Errorf("%s: there is no condition %v", path, choice[0])
					}
				})
			}
			circles(t, needs)
		})
	}
}

// circles finds resources that need each other.
func circles(t *testing.T, needs map[string][]string) {
	t.Helper()
	state := map[string]int{}
	var visit func(id string, path []string)
	visit = func(id string, path []string) {
		switch state[id] {
		case 1:
			t.Errorf("these need each other: %s", strings.Join(append(path, id), " -> "))
		case 0:
			state[id] = 1
			for _, other := range needs[id] {
				if other != id {
					visit(other, append(slices.Clone(path), id))
				}
			}
			state[id] = 2
		}
	}
	for _, id := range slices.Sorted(maps.Keys(needs)) {
		visit(id, nil)
	}
	if len(needs) == 0 {
		t.Error("no resource needs another")
	}
}

// TestWildcards asserts that a wildcard stands only where its reason does.
func TestWildcards(t *testing.T) {
	for name, write := range variants(t) {
		t.Run(name, func(t *testing.T) {
			s := readStack(t, write(iac.CloudFormation))
			seen := 0
			for id, properties := range s.policies() {
				for _, statement := range statements(t, properties["PolicyDocument"]) {
					sid := fmt.Sprint(statement["Sid"])
					for _, action := range all(statement["Action"]) {
						if strings.Contains(fmt.Sprint(action), "*") {
							t.Errorf("%s %s: the action %v", id, sid, action)
						}
					}
					walk(statement["Resource"], "", func(_ string, value any) {
						text, ok := value.(string)
						if !ok || !strings.Contains(text, "*") {
							return
						}
						seen++
						if strings.Contains(fmt.Sprint(statement["Action"]), "SecretValue") || strings.Contains(fmt.Sprint(statement["Action"]), "kms:") {
							t.Errorf("%s %s: a wildcard for secrets or keys: %s", id, sid, text)
						}
						before, _, _ := strings.Cut(s.text[strings.Index(s.text, "  "+id+":"):], "- Sid: "+sid)
						if lines := strings.Split(strings.TrimRight(before, " \n"), "\n"); !strings.HasPrefix(strings.TrimSpace(lines[len(lines)-1]), "# ") {
							t.Errorf("%s %s: the wildcard %s has no reason", id, sid, text)
						}
					})
				}
			}
			if seen == 0 {
				t.Error("not even the known wildcards were found")
			}
		})
	}
}

// TestTasks asserts the order of containers, what they mount, and that no key stands anywhere.
func TestTasks(t *testing.T) {
	for name, write := range variants(t) {
		t.Run(name, func(t *testing.T) {
			s := readStack(t, write(iac.CloudFormation))
			if strings.Contains(s.text, "BEGIN ") {
				t.Error("there is PEM in the template")
			}
			for id, properties := range s.of("AWS::ECS::TaskDefinition") {
				for _, c := range properties["ContainerDefinitions"].([]any) {
					checkContainer(t, id, c.(map[string]any), strings.HasSuffix(name, string(iac.InitEnvironment)))
				}
				checkOrder(t, id, properties["ContainerDefinitions"].([]any))
			}
		})
	}
}

func checkContainer(t *testing.T, task string, c map[string]any, injected bool) {
	t.Helper()
	name := fmt.Sprint(c["Name"])
	if c["ReadonlyRootFilesystem"] != "true" || strings.HasPrefix(fmt.Sprint(c["User"]), "0") || c["Privileged"] != nil || fmt.Sprint(at(c, "LinuxParameters", "Capabilities", "Drop")) != "[ALL]" {
		t.Errorf("%s: the container %s has more rights than it needs: %v", task, name, c)
	}
	if (c["Secrets"] != nil) != (injected && name == "init") {
		t.Errorf("%s: the container %s has the secrets %v", task, name, c["Secrets"])
	}
	ends := name == "init" || name == "ready"
	if ends == (c["HealthCheck"] != nil) || ends == (c["StopTimeout"] != nil) || ends == (c["Essential"] == "true") {
		t.Errorf("%s: the container %s lacks a health check or is not essential: %v", task, name, c)
	}
	for _, m := range all(c["MountPoints"]) {
		if at(m, "SourceVolume") == "certificates" && (name == "app" || name == "ready" || (name == "proxy") != (at(m, "ReadOnly") == "true")) {
			t.Errorf("%s: the container %s has the certificates as %v", task, name, m)
		}
	}
}

// checkOrder asserts who waits for whom: who calls others has its proxy for longer than itself, and who calls nobody outlives it. Peers leave
// both before they are stopped, because their connections become too old.
func checkOrder(t *testing.T, task string, containers []any) {
	t.Helper()
	calls, got := false, map[string]string{}
	for _, c := range containers {
		definition := c.(map[string]any)
		name := fmt.Sprint(definition["Name"])
		got[name] = fmt.Sprint(definition["DependsOn"])
		if command := fmt.Sprint(definition["Command"]); name == "init" {
			calls = strings.Contains(command, "--endpoint ")
			if !strings.Contains(command, "--connection-age 30s") {
				t.Errorf("%s: connections become as old as the task: %s", task, command)
			}
		}
	}
	want := map[string]string{"init": "<nil>", "proxy": "[map[Condition:SUCCESS ContainerName:init]]", "app": "[map[Condition:HEALTHY ContainerName:proxy]]"}
	switch {
	case len(containers) == 2:
		delete(want, "app")
	case calls: // its proxy, which the balancer looks at, is there before it
		want["ready"] = "[map[Condition:HEALTHY ContainerName:app]]"
	default:
		want["proxy"], want["app"] = "[map[Condition:SUCCESS ContainerName:init] map[Condition:HEALTHY ContainerName:app]]", "<nil>"
	}
	if !maps.Equal(got, want) {
		t.Errorf("%s: the containers wait for %v, want %v", task, got, want)
	}
}

// TestFunction asserts that what failed is not tried again at once, and that the function itself finds its specification, which
// is one file or several.
func TestFunction(t *testing.T) {
	for name, write := range variants(t) {
		t.Run(name, func(t *testing.T) {
			text := write(iac.CloudFormation)
			s := readStack(t, text)
			for id, properties := range s.of("AWS::Lambda::EventInvokeConfig") {
				if fmt.Sprint(properties["MaximumRetryAttempts"]) != "0" || at(properties["FunctionName"], "Ref") != "RotationFunction" {
					t.Errorf("%s: %v", id, properties)
				}
			}
			if len(s.of("AWS::Lambda::EventInvokeConfig")) != 1 || bytes.Contains(text, []byte("COUNTERSIGN_MESH")) {
				t.Error("Lambda tries again, or the function is told where its specification is")
			}
		})
	}
}

// TestAlarms asserts that missing data is an alarm, for each workload and each budget.
func TestAlarms(t *testing.T) {
	for name, write := range variants(t) {
		t.Run(name, func(t *testing.T) {
			s := readStack(t, write(iac.CloudFormation))
			metrics := map[string]int{}
			for id, properties := range s.of("AWS::CloudWatch::Alarm") {
				metrics[fmt.Sprint(properties["MetricName"])]++
				if properties["TreatMissingData"] != "breaching" || at(properties["AlarmActions"].([]any)[0], "Ref") != "AlarmTopic" {
					t.Errorf("%s: %v", id, properties)
				}
			}
			services := len(s.of("AWS::ECS::Service"))
			for metric, want := range map[string]int{"DaysToExpiry": services, "HoursSinceSuccess": services, "Failures": services, "Errors": 1} {
				if metrics[metric] != want {
					t.Errorf("%d alarms on %s, want %d", metrics[metric], metric, want)
				}
			}
			if metrics["BudgetSpent"] == 0 {
				t.Error("no alarm on a budget")
			}
			for id, properties := range s.of("AWS::Events::Rule") {
				if properties["State"] != "ENABLED" {
					t.Errorf("the rule %s is not enabled", id)
				}
			}
		})
	}
}
