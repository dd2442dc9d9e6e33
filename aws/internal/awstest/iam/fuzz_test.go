package iam_test

import (
	"regexp"
	"strings"
	"testing"

	"countersign.dev/aws/internal/awstest/iam"
)

// FuzzParse looks for policies that break the parser or the evaluation, and for one without Allow that allows.
func FuzzParse(f *testing.F) {
	for _, statements := range []string{
		allowAll, denyAll, allowSecret, onlyReader, keyDefault,
		`{"Effect":"Deny","NotPrincipal":{"AWS":["` + reader + `"]},"NotAction":"a:b","NotResource":["*"]}`,
		`{"Effect":"Allow","Action":"*","Resource":"arn:aws:s3:::${aws:PrincipalArn}","Condition":{"ForAllValues:StringLikeIfExists":{"kms:ViaService":["*",true,5]}}}`,
		`{"Effect":"Allow","Principal":{"Service":"ecs-tasks.amazonaws.com"},"Action":"sts:AssumeRole"}`,
	} {
		f.Add([]byte(policy(statements)))
	}
	context := map[string][]string{"aws:PrincipalArn": {reader}, "kms:ViaService": {"a*", "b"}}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, kind := range []iam.Kind{iam.Identity, iam.Resource, iam.Trust} {
			document, err := iam.Parse(kind, text)
			if err != nil {
				continue
			}
			policies := iam.Policies{Resource: document, Decisive: true}
			if kind == iam.Identity {
				policies = iam.Policies{Identity: []*iam.Document{document}}
			}
			allowed := iam.Decide(iam.Request{Caller: caller, Action: get, Resource: secret, Context: context}, policies).Allowed ||
				kind == iam.Trust && iam.Trusts(document, caller, context)
			if allowed && !strings.Contains(string(text), "llow") && !strings.Contains(string(text), `\u`) {
				t.Errorf("a policy that allows nothing allows: %s", text)
			}
		}
	})
}

// FuzzMatch compares the wildcards with regular expressions.
func FuzzMatch(f *testing.F) {
	f.Add("payments/*-??????", "payments/checkout-a1b2c3")
	f.Add("**a*b?", "aabab")
	f.Add("*", "")
	f.Fuzz(func(t *testing.T, pattern, value string) {
		if len(pattern) > 64 || len(value) > 64 || strings.ContainsAny(pattern+value, "\"\\$:") || !printable(pattern+value) {
			return
		}
		document, err := iam.Parse(iam.Identity, []byte(policy(`{"Effect":"Allow","Action":"*","Resource":"arn:a:b:c:d:`+pattern+`"}`)))
		if err != nil {
			t.Fatal(err)
		}
		got := iam.Decide(iam.Request{Caller: caller, Action: get, Resource: "arn:a:b:c:d:" + value}, iam.Policies{Identity: []*iam.Document{document}}).Allowed
		quoted := strings.NewReplacer(`\*`, `.*`, `\?`, `.`).Replace(regexp.QuoteMeta(pattern))
		if want := regexp.MustCompile(`^(?s:` + quoted + `)$`).MatchString(value); got != want {
			t.Errorf("%q on %q: %v, want %v", pattern, value, got, want)
		}
	})
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}
