package policy_test

import (
	"fmt"
	"testing"

	"countersign.dev/aws/review/policy"
)

// statements reads some.
func statements(t *testing.T, text string) []policy.Statement {
	t.Helper()
	d, err := policy.Parse(`{"Statement":[` + text + `]}`)
	if err != nil {
		t.Fatal(err)
	}
	return d.Statements
}

// TestBeyond asserts what is taken for more than what is meant.
func TestBeyond(t *testing.T) {
	const meant = `{"Effect":"Allow","Action":["s:Get","s:Put"],"Resource":["arn:a","arn:b"]},
		{"Effect":"Allow","Action":"l:Put","Resource":"arn:log:*"},
		{"Effect":"Allow","Action":"k:Decrypt","Resource":"arn:k","Condition":{"StringEquals":{"k:Via":["s","t"]}}},
		{"Effect":"Allow","Action":"i:Issue","Resource":"arn:ca","Condition":{"StringEqualsIfExists":{"i:Template":"leaf"}}},
		{"Effect":"Allow","Action":"n:Do","Resource":"*","Condition":{"ArnNotEquals":{"n:Who":["a","b"]}}},
		{"Effect":"Deny","Action":"d:Do","Resource":"*"}`
	for text, want := range map[string]string{
		`{"Effect":"Allow","Action":"s:get","Resource":"arn:a"}`:                                                                    "[]",
		`{"Effect":"Allow","Action":["s:Get","s:Put"],"Resource":["arn:a","arn:b"]}`:                                                "[]",
		`{"Effect":"Allow","Action":"s:Get","Resource":["arn:a","arn:c"]}`:                                                          "[{s:Get true}]",
		`{"Effect":"Allow","Action":"s:Get","Resource":"arn:*"}`:                                                                    "[{s:Get true}]",
		`{"Effect":"Allow","Action":"s:*","Resource":"arn:a"}`:                                                                      "[{s:* false}]",
		`{"Effect":"Allow","Action":["s:Get","s:Delete"],"Resource":"arn:a"}`:                                                       "[{s:Delete false}]",
		`{"Effect":"Allow","NotAction":["s:Get"],"Resource":"arn:a"}`:                                                               "[{all actions but s:Get false}]",
		`{"Effect":"Allow","Action":"s:Get","NotResource":"arn:c"}`:                                                                 "[{s:Get true}]",
		`{"Effect":"Allow","Action":"l:Put","Resource":"arn:log:x"}`:                                                                "[]",
		`{"Effect":"Allow","Action":"l:Put","Resource":"arn:log:*"}`:                                                                "[]",
		`{"Effect":"Allow","Action":"l:Put","Resource":"*"}`:                                                                        "[{l:Put true}]",
		`{"Effect":"Allow","Action":"k:Decrypt","Resource":"arn:k"}`:                                                                "[{k:Decrypt true}]",
		`{"Effect":"Allow","Action":"k:Decrypt","Resource":"arn:k","Condition":{"StringEquals":{"K:via":"s"}}}`:                     "[]",
		`{"Effect":"Allow","Action":"k:Decrypt","Resource":"arn:k","Condition":{"StringEquals":{"k:Via":["s","u"]}}}`:               "[{k:Decrypt true}]",
		`{"Effect":"Allow","Action":"k:Decrypt","Resource":"arn:k","Condition":{"StringLike":{"k:Via":"s"}}}`:                       "[{k:Decrypt true}]",
		`{"Effect":"Allow","Action":"k:Decrypt","Resource":"arn:k","Condition":{"StringEqualsIfExists":{"k:Via":"s"}}}`:             "[{k:Decrypt true}]",
		`{"Effect":"Allow","Action":"k:Decrypt","Resource":"arn:k","Condition":{"StringEquals":{"k:Via":"s"},"Bool":{"x":"true"}}}`: "[]",
		`{"Effect":"Allow","Action":"i:Issue","Resource":"arn:ca"}`:                                                                 "[{i:Issue true}]",
		`{"Effect":"Allow","Action":"i:Issue","Resource":"arn:ca","Condition":{"StringEquals":{"i:Template":"leaf"}}}`:              "[]",
		`{"Effect":"Allow","Action":"n:Do","Resource":"*","Condition":{"ArnNotLike":{"n:Who":["a","b","c"]}}}`:                      "[]",
		`{"Effect":"Allow","Action":"n:Do","Resource":"*","Condition":{"ArnNotEquals":{"n:Who":"a"}}}`:                              "[{n:Do true}]",
		`{"Effect":"Allow","Action":"d:Do","Resource":"*"}`:                                                                         "[{d:Do false}]",
		`{"Effect":"Deny","Action":"x:Do","Resource":"*"}`:                                                                          "[]",
	} {
		if got := fmt.Sprint(statements(t, text)[0].Beyond(statements(t, meant))); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

// TestLacks asserts when a refusal is taken for missing.
func TestLacks(t *testing.T) {
	meant := statements(t, `{"Effect":"Deny","Action":["e:A","e:B"],"Resource":"*","Condition":{"ArnEquals":{"l:Source":"f"}}}`)[0]
	for text, want := range map[string]string{
		`{"Effect":"Deny","Action":["e:A","e:B"],"Resource":"*","Condition":{"ArnEquals":{"l:Source":"f"}}}`:                 "[]",
		`{"Effect":"Deny","Action":"e:*","Resource":"*"}`:                                                                    "[]",
		`{"Effect":"Deny","Action":["e:A"],"Resource":"*"}`:                                                                  "[e:B]",
		`{"Effect":"Deny","Action":"e:*","Resource":"arn:x"}`:                                                                "[e:A e:B]",
		`{"Effect":"Deny","Action":"e:*","Resource":"*","Condition":{"ArnEquals":{"l:Source":"f"},"Bool":{"aws:X":"true"}}}`: "[e:A e:B]",
		`{"Effect":"Allow","Action":"e:*","Resource":"*"}`:                                                                   "[e:A e:B]",
	} {
		if got := fmt.Sprint(meant.Lacks(statements(t, text))); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
	if got := statements(t, `{"Effect":"Allow","Action":"e:*","Resource":"*"}`)[0].Lacks(nil); got != nil {
		t.Errorf("what allows refuses %q", got)
	}
}
