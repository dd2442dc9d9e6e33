package template_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/aws/internal/awstest/stack/template"
)

const whole = `
AWSTemplateFormatVersion: '2010-09-09'
Description: a test
Parameters:
  Count: {Type: Number, Default: 0, MinValue: 0, MaxValue: 10}
  Kind: {Type: String, Default: X86_64, AllowedValues: [X86_64, ARM64]}
  Subnets: {Type: List<AWS::EC2::Subnet::Id>}
  Name: {Type: String, Default: abc, AllowedPattern: '[a-z]+', MinLength: 1, MaxLength: 5}
Conditions:
  Small: !Not [!Condition Arm]
  Arm: !Equals [!Ref Kind, ARM64]
  Both: !And [!Condition Arm, !Equals [!Ref Count, 0]]
  Either: !Or [!Condition Arm, !Equals [!Ref Count, '0']]
Resources:
  Second:
    Type: T
    DependsOn: Third
    Condition: Small
    DeletionPolicy: Retain
    Properties:
      Date: 2012-10-17
      Number: 5
      Truth: true
      Count: !Ref Count
      Subnets: !Ref Subnets
      First: !Select [0, !Ref Subnets]
      Joined: !Join [',', [a, !Ref Kind, !GetAtt First.Arn]]
      If: !If [Arm, arm64, x86_64]
      Nothing: !If [Arm, x, !Ref AWS::NoValue]
      List: [a, !If [Arm, x, !Ref AWS::NoValue]]
      Sub: !Sub 'arn:${AWS::Partition}:${First.Arn}:${First}:${!Kept}:${Name}'
      Sub2: !Sub ['${A}-${Name}', {A: !Ref First}]
      Split: !Select [1, !Split ['.', a.b.c]]
      Long: {'Fn::Join': ['', [a, {Ref: First}]]}
  First: {Type: T}
  Third: {Type: T, Metadata: {a: b}}
Outputs:
  A: {Value: !Ref First}
`

func values(t *testing.T, parsed *template.Template, given map[string]string) *template.Values {
	t.Helper()
	v, err := parsed.Resolve(given, map[string]string{"AWS::Partition": "aws"})
	if err != nil {
		t.Fatal(err)
	}
	v.Ref = func(id string) (string, error) { return "ref-" + id, nil }
	v.Attribute = func(id, name string) (string, error) {
		if name != "Arn" {
			return "", errors.New("no such attribute")
		}
		return "arn-" + id, nil
	}
	return v
}

func TestEvaluate(t *testing.T) {
	parsed, err := template.Parse([]byte(whole))
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, r := range parsed.Resources {
		order = append(order, r.ID)
	}
	if got := strings.Join(order, " "); got != "First Third Second" {
		t.Errorf("order %s", got)
	}
	v := values(t, parsed, map[string]string{"Subnets": "s-1, s-2"})
	if diff := cmp.Diff(map[string]bool{"Small": true, "Arm": false, "Both": false, "Either": true}, v.Conditions); diff != "" {
		t.Error(diff)
	}
	got, err := v.Evaluate(parsed.Resources[2].Properties)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"Date": "2012-10-17", "Number": json.Number("5"), "Truth": true, "Count": "0", "Subnets": []any{"s-1", "s-2"}, "First": "s-1",
		"Joined": "a,X86_64,arn-First", "If": "x86_64", "List": []any{"a"}, "Sub": "arn:aws:arn-First:ref-First:${Kept}:abc", "Sub2": "ref-First-abc", "Split": "b", "Long": "aref-First",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// The same as JSON means the same.
func TestJSON(t *testing.T) {
	parsed, err := template.Parse([]byte(`{"Resources": {"A": {"Type": "T", "Properties": {"X": {"Fn::GetAtt": ["B", "Arn"]}, "Y": {"Fn::Sub": "${B}"}}}, "B": {"Type": "T"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if parsed.Resources[0].ID != "B" {
		t.Errorf("order %v", parsed.Resources)
	}
	got, err := values(t, parsed, nil).Evaluate(parsed.Resources[1].Properties)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]any{"X": "arn-B", "Y": "ref-B"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"nothing":            {"", "the template is empty"},
		"no YAML":            {"a: [", "read the template"},
		"no map":             {"[]", "the template is no map"},
		"no resources":       {"Description: x", "has no resources"},
		"section":            {"Mappings: {}\nResources: {A: {Type: T}}", "the section Mappings is not understood"},
		"section's form":     {"Resources: []", "the section Resources is no map"},
		"member":             {"Resources: {A: {Type: T, CreationPolicy: {}}}", "the member CreationPolicy of the resource A is not understood"},
		"policy":             {"Resources: {A: {Type: T, DeletionPolicy: Perhaps}}", "not what it should be"},
		"no type":            {"Resources: {A: {}}", "has no type"},
		"short function":     {"Resources: {A: {Type: T, Properties: {X: !Base64 x}}}", "line 1: the function !Base64 is not understood"},
		"reference":          {"Resources: {A: {Type: T, Properties: {X: !Ref B}}}", "refers to B, which is not there"},
		"reference by sub":   {"Resources: {A: {Type: T, Properties: {X: !Sub '${B.Arn}'}}}", "refers to B"},
		"depends":            {"Resources: {A: {Type: T, DependsOn: [B]}}", "refers to B"},
		"circle":             {"Resources: {A: {Type: T, DependsOn: B}, B: {Type: T, Properties: {X: !GetAtt A.Arn}}}", "in a circle"},
		"condition":          {"Resources: {A: {Type: T, Condition: C}}", "the condition C of the resource A is not there"},
		"alias":              {"Resources: {A: &a {Type: T}, B: *a}", "aliases are not understood"},
		"merge":              {"Resources: {A: {Type: T, <<: {Type: T}}}", "a key that is no word"},
		"twice":              {"Resources: {A: {Type: T, Type: U}}", "twice"},
		"null":               {"Resources: {A: {Type: T, Properties: {X: }}}", "null values"},
		"too deep":           {"Resources: {A: {Type: T, Properties: {X: " + strings.Repeat("[", 100) + strings.Repeat("]", 100) + "}}}", "levels"},
		"parameter's form":   {"Parameters: {A: x}\nResources: {A: {Type: T}}", "the parameter A is no map"},
		"document's size":    {strings.Repeat(" ", 1<<20+1), "more than"},
		"properties' form":   {"Resources: {A: {Type: T, Properties: []}}", "the member Properties of the resource A"},
		"resource's form":    {"Resources: {A: x}", "the resource A is no map"},
		"dependency's form":  {"Resources: {A: {Type: T, DependsOn: [[x]]}}", "the member DependsOn"},
		"empty with comment": {"# nothing", "the template is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := template.Parse([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestResolveRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		parameter, condition string
		given                map[string]string
		want                 string
	}{
		"unknown":             {"{Type: String}", "", map[string]string{"B": "x"}, "has no parameter B"},
		"not given":           {"{Type: String}", "", nil, "parameter A: it has no default"},
		"member":              {"{Type: String, Colour: red}", "", nil, "the member Colour is not understood"},
		"type":                {"{Type: 'AWS::SSM::Parameter::Value<String>'}", "", map[string]string{"A": "x"}, "is not understood"},
		"number":              {"{Type: Number}", "", map[string]string{"A": "x"}, `"x" is no number`},
		"too small":           {"{Type: Number, MinValue: 1}", "", map[string]string{"A": "0"}, "is out of MinValue 1"},
		"too large":           {"{Type: Number, MaxValue: 1}", "", map[string]string{"A": "2"}, "is out of MaxValue 1"},
		"too short":           {"{Type: String, MinLength: 2}", "", map[string]string{"A": "x"}, "is out of MinLength 2"},
		"too long":            {"{Type: String, MaxLength: 2}", "", map[string]string{"A": "xxx"}, "is out of MaxLength 2"},
		"not allowed":         {"{Type: String, AllowedValues: [a]}", "", map[string]string{"A": "x"}, `"x" is none of [a]`},
		"pattern":             {"{Type: String, AllowedPattern: '[0-9]'}", "", map[string]string{"A": "x"}, "does not match"},
		"pattern of a list":   {"{Type: CommaDelimitedList, AllowedPattern: '[0-9]'}", "", map[string]string{"A": "1,x"}, "does not match"},
		"a bad pattern":       {"{Type: String, AllowedPattern: '['}", "", map[string]string{"A": "x"}, "the pattern"},
		"condition's form":    {"{Type: String, Default: x}", "x", nil, "condition C: a condition that is no function"},
		"condition's circle":  {"{Type: String, Default: x}", "!Condition C", nil, "refers to itself"},
		"condition's ref":     {"{Type: String, Default: x}", "!Equals [!Ref R, x]", nil, "a condition cannot refer to a resource"},
		"condition's equals":  {"{Type: String, Default: x}", "!Equals [x]", nil, "has not two arguments"},
		"condition's not":     {"{Type: String, Default: x}", "!Not [x, x]", nil, "has not one argument"},
		"condition's unknown": {"{Type: String, Default: x}", "{'Fn::Any': [x]}", nil, "whose function is not understood"},
	} {
		t.Run(name, func(t *testing.T) {
			text := "Parameters: {A: " + c.parameter + "}\nResources: {R: {Type: T}}\n"
			if c.condition != "" {
				text += "Conditions: {C: " + c.condition + "}\n"
			}
			parsed, err := template.Parse([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parsed.Resolve(c.given, nil); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestEvaluateRefuses(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"unknown function": {"{'Fn::Cidr': [x]}", ".X: the function Fn::Cidr is not understood"},
		"beside":           {"{Ref: B, Other: x}", "stands beside other members"},
		"pseudo":           {"!Ref AWS::Moon", "pseudo parameter AWS::Moon"},
		"attribute":        {"!GetAtt B.Colour", "no such attribute"},
		"attribute's form": {"!GetAtt B", "has not a resource and an attribute"},
		"sub's form":       {"!Sub [x]", "a Fn::Sub that has not"},
		"sub of a list":    {"!Sub '${L}'", "where a text has to be"},
		"join's form":      {"!Join [x]", "has not two arguments"},
		"join of a text":   {"!Join [x, y]", "where a list has to be"},
		"no list":          {"!Join x", "is no list"},
		"select's index":   {"!Select [2, [a, b]]", "in a list of 2"},
		"select's form":    {"!Select [2]", "has not two arguments"},
		"split's form":     {"!Split ['', a]", "has not a delimiter"},
		"if's form":        {"!If [C, a]", "has not three arguments"},
		"if's condition":   {"!If [C, a, b]", "the condition C is not there"},
		"ref's form":       {"{Ref: [a]}", "a Ref that is no name"},
		"deep":             {"{Y: [!Ref AWS::Moon]}", ".X.Y[0]: the pseudo parameter"},
	} {
		t.Run(name, func(t *testing.T) {
			parsed, err := template.Parse([]byte("Parameters: {L: {Type: CommaDelimitedList, Default: 'a,b'}}\nResources: {A: {Type: T, Properties: {X: " + c.text + "}}, B: {Type: T}}\n"))
			if err != nil {
				t.Fatal(err)
			}
			properties := parsed.Resources[0].Properties
			if len(properties) == 0 {
				properties = parsed.Resources[1].Properties
			}
			if got, err := values(t, parsed, nil).Evaluate(properties); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, error %v, want %q", got, err, c.want)
			}
		})
	}
}

// FuzzParse sees that no template makes the reader fail other than by an error.
func FuzzParse(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte(`{"Resources": {"A": {"Type": "T", "Properties": {"X": {"Fn::Sub": ["${A}", {"A": 1}]}}}}}`))
	f.Fuzz(func(_ *testing.T, text []byte) {
		parsed, err := template.Parse(text)
		if err != nil {
			return
		}
		v, err := parsed.Resolve(map[string]string{}, map[string]string{})
		if err != nil {
			return
		}
		v.Ref = func(id string) (string, error) { return id, nil }
		v.Attribute = func(id, name string) (string, error) { return id + name, nil }
		for _, r := range parsed.Resources {
			if got, err := v.Evaluate(r.Properties); err == nil {
				_ = fmt.Sprint(got)
			}
		}
	})
}
