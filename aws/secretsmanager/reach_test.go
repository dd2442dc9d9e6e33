package secretsmanager

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"countersign.dev/aws/session"
)

// answering is a store at which every call has the same answer, and the number of calls.
func answering(t *testing.T, status int, body string) (*Store, *atomic.Int32) {
	t.Helper()
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body)) // the client has the answer, or says that it has none
	}))
	t.Cleanup(server.Close)
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "test")
	s, err := Open(t.Context(), Config{Region: "eu-central-1", Endpoint: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	return s, &asked
}

// TestReach: an error is only what every other call would meet.
func TestReach(t *testing.T) {
	for name, test := range map[string]struct {
		status int
		body   string
		is     error // nil when the store is reached
		calls  int32
	}{
		"there":       {200, `{"ARN":"arn:aws:secretsmanager:eu-central-1:123456789012:secret:x-AbCdEf","Name":"x"}`, nil, 1},
		"no secrets":  {200, `{}`, session.ErrUnavailable, 1},
		"not there":   {400, `{"__type":"ResourceNotFoundException","message":"no"}`, nil, 1},
		"denied":      {400, `{"__type":"AccessDeniedException","message":"no"}`, nil, 1},
		"nobody":      {400, `{"__type":"UnrecognizedClientException","message":"The security token included in the request is invalid."}`, session.ErrCredentials, 1},
		"expired":     {400, `{"__type":"ExpiredTokenException","message":"no"}`, session.ErrCredentials, 1},
		"out of work": {500, `{"__type":"InternalServiceError","message":"no"}`, session.ErrUnavailable, reachTries},
		"no AWS":      {404, `<html>`, session.ErrUnavailable, 1},
	} {
		t.Run(name, func(t *testing.T) {
			s, asked := answering(t, test.status, test.body)
			if err := s.Reach(t.Context(), "payments/checkout"); !errors.Is(err, test.is) || (err == nil) != (test.is == nil) {
				t.Errorf("the error is %v, want %v", err, test.is)
			}
			if got := asked.Load(); got != test.calls {
				t.Errorf("it was asked %d times, want %d", got, test.calls)
			}
		})
	}
	t.Run("interrupted", func(t *testing.T) {
		s, _ := answering(t, 200, `{}`)
		ctx, cancel := context.WithCancelCause(t.Context())
		reason := errors.New("no time")
		cancel(reason)
		if err := s.Reach(ctx, "x"); !errors.Is(err, reason) {
			t.Errorf("the error is %v", err)
		}
	})
}

// TestListDenied: ListSecrets is an action on all secrets, and no secret is called *.
func TestListDenied(t *testing.T) {
	s, _ := answering(t, 400, `{"__type":"AccessDeniedException","message":"User: arn:aws:sts::123456789012:assumed-role/r/s is not authorized to perform: secretsmanager:ListSecrets because no identity-based policy allows the secretsmanager:ListSecrets action"}`)
	entries, err := s.List(t.Context())
	if entries != nil || !errors.Is(err, session.ErrDenied) || !strings.Contains(err.Error(), `{"Effect":"Allow","Action":"secretsmanager:ListSecrets","Resource":"*"}`) || strings.Contains(err.Error(), "describe-secret") {
		t.Errorf("%v, %v", entries, err)
	}
}

// TestGone: where a secret was deleted for good, the template that has made it makes it again, with its policy; a role that may make secrets
// is the last thing to be thought of.
func TestGone(t *testing.T) {
	const missing, denied = `{"__type":"ResourceNotFoundException","message":"no"}`, `{"__type":"AccessDeniedException","message":"no"}`
	for name, test := range map[string]struct {
		answers map[string]string // by operation; others find what they ask for
		want    string
	}{
		"before":        {map[string]string{"DescribeSecret": missing, "CreateSecret": denied}, "there is no secret of that name; where a template made it, let that make it again"},
		"in the middle": {map[string]string{"PutSecretValue": missing}, "somebody has deleted it, as CloudTrail shows (DeleteSecret): where a template made it, let that make it again"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, operation, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
			w.Header().Set("Content-Type", "application/x-amz-json-1.1")
			answer := test.answers[operation]
			if answer == "" {
				_, _ = w.Write([]byte(`{"ARN":"arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/checkout-AbCdEf","Name":"payments/checkout","VersionIdsToStages":{"20261123T000000Z-0123456789abcdef":["AWSCURRENT"]}}`))
				return
			}
			w.WriteHeader(http.StatusBadRequest)
			_, _ = w.Write([]byte(answer))
		}))
		t.Cleanup(server.Close)
		t.Setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
		t.Setenv("AWS_SECRET_ACCESS_KEY", "test")
		s, err := Open(t.Context(), Config{Region: "eu-central-1", Endpoint: server.URL})
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Stage(t.Context(), "payments/checkout", "20261123T000001Z-0123456789abcdef", []byte("{}"))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}
