package iac

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"go.yaml.in/yaml/v4"
)

// hard are texts that a template could take for something else.
var hard = []string{
	"", "a", "yes", "No", "null", "~", "12", "1e3", "0x1F", "2012-10-17", "12:30:45", "- a", "-", "--from", "a: b", "a:", ": a", "a #b", "#", "'", "it's", `"`, `\`, `a\nb`, "a\nb",
	"${AWS::Region}", "${!x}", "$${x}", "%{if true}", "$", "%", "a$", "$$", "{", "[", "!Ref X", "&a", "*a", "|", ">", "@", "`", "%", " a", "a ", "a\tb", "\u0085", "\u2028", "ä", "a,b", "=", "<<", ".5", "true", "{{resolve:x}}",
}

// FuzzYAMLText asserts that a text comes out of YAML as it went in, alone, in a list and beside a ref.
func FuzzYAMLText(f *testing.F) {
	for _, s := range hard {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r == 0xfffe || r == 0xffff }) {
			t.Skip("a specification holds no such character")
		}
		w := &yamlWriter{}
		w.members(object{{key: "plain", value: s}, {key: "list", value: list{"first", s}}, {key: "object", value: object{{key: "member", value: s}}}}, 0)
		var read struct {
			Plain  string
			List   []string
			Object map[string]string
		}
		if err := yaml.Unmarshal([]byte(w.b.String()), &read); err != nil {
			t.Fatalf("%q makes %q: %v", s, w.b.String(), err)
		}
		if read.Plain != s || len(read.List) != 2 || read.List[1] != s || read.Object["member"] != s {
			t.Errorf("%q is read as %q, %q and %q from\n%s", s, read.Plain, read.List, read.Object["member"], w.b.String())
		}
		var sub string
		if err := yaml.Unmarshal([]byte(strings.TrimPrefix(yamlRef(say(s, region)), "!Sub ")), &sub); err == nil && s != "" {
			if want := strings.ReplaceAll(s, "${", "${!") + "${AWS::Region}"; sub != want {
				t.Errorf("%q beside a ref is read as %q", s, sub)
			}
		}
	})
}

// FuzzHCLQuote asserts that a text comes out of Terraform's language as it went in, and that nothing in it is replaced.
func FuzzHCLQuote(f *testing.F) {
	for _, s := range hard {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
			t.Skip("a specification holds no such character")
		}
		expression, problems := hclsyntax.ParseExpression([]byte(hclQuote(s)), "", hcl.InitialPos)
		if problems.HasErrors() {
			t.Fatalf("%q makes %s: %v", s, hclQuote(s), problems)
		}
		value, problems := expression.Value(nil)
		if problems.HasErrors() {
			t.Fatalf("%q makes %s: %v", s, hclQuote(s), problems)
		}
		beside, problems := hclsyntax.ParseExpression([]byte(hclText(say(s, ref{tf: "x"}))), "", hcl.InitialPos)
		if problems.HasErrors() {
			t.Fatalf("%q beside a ref: %v", s, problems)
		}
		both, problems := beside.Value(&hcl.EvalContext{Variables: map[string]cty.Value{"x": cty.StringVal("X")}})
		if problems.HasErrors() || both.AsString() != s+"X" && !composed(both.AsString(), s+"X") {
			t.Errorf("%q beside a ref is read as %#v: %v", s, both, problems)
		}
		if got := value.AsString(); got != s && !composed(got, s) {
			t.Errorf("%q is read as %q", s, got)
		}
	})
}

// composed tells whether a text is another one in Unicode's composed form, which Terraform gives every text.
func composed(got, s string) bool {
	return utf8.RuneCountInString(got) <= utf8.RuneCountInString(s) && strings.ContainsFunc(s, func(r rune) bool { return r > 0x7f })
}
