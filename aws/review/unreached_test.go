package review_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"countersign.dev/aws/review"
	"countersign.dev/mesh"
)

// small is a mesh of which there is nothing on AWS.
const small = `
mesh: small
certificates: {authority: pca, ttl: 24h}
revocation: none
stores: {vault: {type: secretsmanager, region: eu-central-1}}
authorities: {pca: {type: acmpca, create: root, mode: short-lived}}
services:
  one:
    ports: [{port: 8443, protocol: http, app: 8080}]
    proxy: {engine: nginx}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}"}
    deploy: {type: ecs, cluster: c}
`

// looked is what is found where every call has the same answer, what was asked, and what was said.
func looked(ctx context.Context, t *testing.T, answer func(http.ResponseWriter, string)) (*review.Report, []string, []string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(path, []byte(small), 0o600); err != nil {
		t.Fatal(err)
	}
	spec, err := mesh.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var asked, said []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm() // what has none has a header
		action := r.Header.Get("X-Amz-Target") + r.Form.Get("Action")
		mu.Lock()
		asked = append(asked, action)
		mu.Unlock()
		answer(w, action)
	}))
	defer server.Close()
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "test")
	t.Setenv("AWS_MAX_ATTEMPTS", "1")
	report, err := review.Run(ctx, review.Config{Spec: spec, Endpoint: server.URL, Say: func(what string) { said = append(said, what) }})
	if err != nil {
		t.Fatal(err)
	}
	if !report.Bad() {
		t.Error("the report is good")
	}
	return report, asked, said
}

// TestNobodyKnown: when AWS cannot be asked who this is, that is all that is asked, and what to do fits the cause.
func TestNobodyKnown(t *testing.T) {
	for name, test := range map[string]struct {
		status       int
		body         string
		says, action string
	}{
		"no credentials": {403, `<ErrorResponse><Error><Code>InvalidClientTokenId</Code><Message>The security token is invalid</Message></Error></ErrorResponse>`, "the AWS credentials do not hold", "give this program credentials that hold"},
		"no AWS":         {404, `<html><meta></html>`, "what answers is not AWS", "see that AWS can be reached from here"},
		"out of work":    {503, ``, "AWS does not answer as it should", "see that AWS can be reached from here"},
	} {
		t.Run(name, func(t *testing.T) {
			report, asked, said := looked(t.Context(), t, func(w http.ResponseWriter, _ string) {
				w.WriteHeader(test.status)
				_, _ = w.Write([]byte(test.body)) // the client has the answer, or says that it has none
			})
			if len(report.Findings) != 1 || len(asked) != 1 || asked[0] != "GetCallerIdentity" || len(said) != 1 {
				t.Fatalf("%d findings, asked %q, said %q", len(report.Findings), asked, said)
			}
			f := report.Findings[0]
			if f.Severity != review.Unknown || f.Code != review.Unreadable || f.Subject != "account" || !strings.Contains(f.Message, test.says) ||
				!strings.Contains(f.Message, "nothing else was asked") || !strings.HasPrefix(f.Action, test.action) {
				t.Errorf("%+v", f)
			}
		})
	}
}

// TestRemedies: after the account is known, each thing that cannot be read is a finding, whose remedy fits its cause.
func TestRemedies(t *testing.T) {
	const who = `<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>arn:aws:iam::123456789012:user/u</Arn><Account>123456789012</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`
	for name, test := range map[string]struct{ body, action string }{
		"denied":    {`{"__type":"AccessDeniedException","message":"no"}`, "let the caller do this (docs/check-aws.md has the whole policy), and check again"},
		"throttled": {`{"__type":"ThrottlingException","message":"no"}`, "wait until AWS is asked less"},
		"other":     {`{"__type":"SomethingException","message":"no"}`, "see what AWS refuses about it (the message says how), and check again"},
	} {
		t.Run(name, func(t *testing.T) {
			report, _, said := looked(t.Context(), t, func(w http.ResponseWriter, action string) {
				if action == "GetCallerIdentity" {
					_, _ = w.Write([]byte(who)) // the client has the answer, or says that it has none
					return
				}
				w.WriteHeader(http.StatusBadRequest)
				_, _ = w.Write([]byte(test.body))
			})
			found := false
			for _, f := range report.Findings {
				if f.Subject == "small/one" {
					found = strings.HasPrefix(f.Action, test.action)
				}
			}
			if !found || report.Account != "123456789012" || len(said) < 5 {
				t.Errorf("said %q, found %+v", said, report.Findings)
			}
		})
	}
}

// TestInterrupted: what was not read any more is one finding, with the reason.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	report, _, _ := looked(ctx, t, func(http.ResponseWriter, string) { cancel(errors.New("somebody wants to go")) })
	if len(report.Findings) != 1 {
		t.Fatalf("%+v", report.Findings)
	}
	if f := report.Findings[0]; f.Code != review.Unreadable || f.Subject != "what was left" || !strings.Contains(f.Message, "somebody wants to go") || !strings.Contains(f.Message, "the account, and all that is in it") {
		t.Errorf("%+v", f)
	}
}
