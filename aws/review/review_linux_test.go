//go:build linux

package review_test

import (
	"errors"
	"strings"
	"testing"

	"countersign.dev/aws/review"
	"countersign.dev/mesh"
)

// unreadable asserts that whoever may read nothing is told so of every part, with the line that a policy lacks.
func (w *world) unreadable() {
	w.cloud.PutRole("nobody")
	w.as("nobody")
	report := w.look(nil)
	text := findings(report)
	for _, f := range report.Findings {
		if f.Severity != review.Unknown || f.Code != review.Unreadable {
			w.Errorf("%s %s %s: %s", f.Severity, f.Code, f.Subject, f.Message)
		}
	}
	for _, want := range []string{
		`"Action":"iam:GetAccountAuthorizationDetails"`, `"Action":"ecs:DescribeServices"`, `"Action":"secretsmanager:DescribeSecret"`,
		`"Action":"events:ListRuleNamesByTarget"`, `"Action":"cloudwatch:DescribeAlarms"`, `"Action":"cloudtrail:LookupEvents"`, "payments/checkout.rotation",
	} {
		if !strings.Contains(text, want) {
			w.Errorf("it does not say %q:\n%s", want, text)
		}
	}
	if !report.Bad() {
		w.Error("what nobody has seen is no finding that counts")
	}
}

// TestNothing asserts that a mesh without AWS is refused, and not clean.
func TestNothing(t *testing.T) {
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Content: "mesh: local\nservices: {a: {ports: [{port: 1024, protocol: http, app: 8080}]}}\n"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := review.Run(t.Context(), review.Config{Spec: spec}); !errors.Is(err, review.ErrNothing) {
		t.Errorf("%v", err)
	}
}
