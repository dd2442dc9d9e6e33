package iac_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"countersign.dev/iac"
)

// TestRights asserts that each role has its policy, with what is known in it and * in the place of what is not.
func TestRights(t *testing.T) {
	spec := load(t, example+"mesh.yaml")
	known := map[string]string{"partition": "aws", "region": "eu-central-1", "account": "123456789012", "payments/checkout": "arn:of:checkout"}
	byTask, err := iac.Rights(spec, iac.Options{}, known)
	if err != nil {
		t.Fatal(err)
	}
	byExecution, err := iac.Rights(spec, iac.Options{Init: iac.InitEnvironment}, known)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"payments-rotation"}
	for _, name := range []string{"checkout", "ledger", "paygate", "terminal"} {
		want = append(want, "payments-"+name+"-task", "payments-"+name+"-execution")
	}
	slices.Sort(want)
	if got := slices.Sorted(maps.Keys(byTask)); !slices.Equal(got, want) {
		t.Errorf("roles %q, want %q", got, want)
	}
	for _, test := range []struct {
		policy string
		words  []string
		not    string
	}{
		{byTask["payments-checkout-task"], []string{`"Resource":["arn:of:checkout","*"]`, `"kms:ViaService":"secretsmanager.eu-central-1.amazonaws.com"`}, "ecr:"},
		{byTask["payments-checkout-execution"], []string{"ecr:BatchGetImage"}, "GetSecretValue"},
		{byExecution["payments-checkout-execution"], []string{"ecr:BatchGetImage", "GetSecretValue"}, "PutSecretValue"},
		{byExecution["payments-checkout-task"], []string{`"Statement":[]`}, "GetSecretValue"},
		{byTask["payments-rotation"], []string{"PutSecretValue", "acm-pca:IssueCertificate", "acm-pca:TemplateArn", "arn:aws:ecs:eu-central-1:123456789012:service/payments/checkout", "NotTheCode"}, "iam:"},
	} {
		for _, word := range test.words {
			if !strings.Contains(test.policy, word) {
				t.Errorf("%q is not in %s", word, test.policy)
			}
		}
		if strings.Contains(test.policy, test.not) {
			t.Errorf("%q is in %s", test.not, test.policy)
		}
	}
	if _, err := iac.Rights(spec, iac.Options{Init: "otherwise"}, nil); !errors.Is(err, iac.ErrRefused) {
		t.Errorf("%v", err)
	}
}
