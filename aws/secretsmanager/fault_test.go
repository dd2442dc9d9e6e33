package secretsmanager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"countersign.dev/aws/internal/awstest"
	"countersign.dev/aws/session"
	"countersign.dev/secret"
)

// refuse answers as Secrets Manager does.
func refuse(status int, code, message string) *http.Response {
	return &http.Response{
		StatusCode: status, Header: http.Header{"Content-Type": {"application/x-amz-json-1.1"}},
		Body: io.NopCloser(strings.NewReader(fmt.Sprintf(`{"__type":%q,"message":%q}`, code, message))),
	}
}

// settled is a store with a current version, and one that is pending.
func settled(t *testing.T) (*Store, *awstest.Cloud, string) {
	t.Helper()
	s, cloud, name := start(t)
	stage(t, s, name, id(1), "one")
	replace(t, s, name, id(1), "")
	stage(t, s, name, id(2), "two")
	return s, cloud, name
}

// Of several who stage versions in one secret at a time, nobody fails: AWS refuses to move a label from where it is no more.
func TestStageWhileOthersDo(t *testing.T) {
	s, cloud, name := settled(t)
	stage(t, s, name, id(3), "three")
	others := []string{id(1), id(3)}
	label := sdk.NewFromConfig(cloud.Admin())
	moved := 0
	var within atomic.Bool
	cloud.Fault(func(r *http.Request, action string) *http.Response {
		if action != "secretsmanager:UpdateSecretVersionStage" || moved == 2 || !within.CompareAndSwap(false, true) {
			return nil
		}
		defer within.Store(false)
		answer, err := label.DescribeSecret(r.Context(), &sdk.DescribeSecretInput{SecretId: &name})
		if err != nil {
			t.Error(err)
			return nil
		}
		from, to := described(answer.VersionIdsToStages).with(labelPending), others[moved]
		if _, err := label.UpdateSecretVersionStage(r.Context(), &sdk.UpdateSecretVersionStageInput{
			SecretId: &name, VersionStage: aws.String(labelPending), MoveToVersionId: &to, RemoveFromVersionId: &from,
		}); err != nil {
			t.Error(err)
		}
		moved++
		return nil // of which the label is not where it was when it was looked at
	})
	stage(t, s, name, id(2), "two")
	if labels := staged(t, s, name); labels[id(2)] != string(secret.Pending) || moved != 2 {
		t.Errorf("%v after others were faster %d times", labels, moved)
	}
}

// Whatever fails, what is current stays, nothing is shown of a value, and the message says what to do.
func TestFaults(t *testing.T) {
	const denied = "User: arn:aws:sts::123456789012:assumed-role/rotation/x is not authorized to perform: %s on resource: arn:aws:secretsmanager:eu-central-1:123456789012:secret:a-AbCdEf"
	tests := map[string]struct {
		answer func(action string) *http.Response
		is     error
		want   string
	}{
		"throttle": {func(string) *http.Response { return refuse(400, "ThrottlingException", "Rate exceeded") }, session.ErrThrottled, "try again"},
		"denied": {func(action string) *http.Response {
			return refuse(400, "AccessDeniedException", fmt.Sprintf(denied, action))
		}, session.ErrDenied, `{"Effect":"Allow","Action":"secretsmanager:`},
		"denied, or gone": {func(action string) *http.Response {
			return refuse(400, "AccessDeniedException", fmt.Sprintf(denied, action))
		}, session.ErrDenied, "or it does not exist any more, or under another ARN"},
		"500": {func(string) *http.Response {
			return refuse(500, "InternalServiceError", "An error occurred on the server side.")
		}, session.ErrUnavailable, "try again later"},
		"key disabled": {func(string) *http.Response {
			return refuse(400, "DecryptionFailure", "can't decrypt the protected secret text using the provided KMS key.")
		}, session.ErrKey, "aws kms enable-key"},
		"expired": {func(string) *http.Response {
			return refuse(400, "ExpiredTokenException", "The security token included in the request is expired")
		}, session.ErrCredentials, "renew them"},
		"deleted": {func(string) *http.Response {
			return refuse(400, "InvalidRequestException", "You can't perform this operation on the secret because it was marked for deletion.")
		}, ErrDeleted, "restore-secret"},
		"full": {func(string) *http.Response {
			return refuse(400, "LimitExceededException", "The request failed because it would exceed one of the Secrets Manager quotas.")
		}, secret.ErrFull, "unharmed"},
		"invalid": {func(string) *http.Response {
			return refuse(400, "ValidationException", "Value '-----BEGIN PRIVATE KEY-----secret' at 'secretString' failed to satisfy constraint")
		}, secret.ErrInvalid, "is not shown"},
	}
	operations := map[string]func(ctx context.Context, s *Store, name string) error{
		"Read": func(ctx context.Context, s *Store, name string) error { _, _, err := s.Read(ctx, name, ""); return err },
		"Stage": func(ctx context.Context, s *Store, name string) error {
			_, err := s.Stage(ctx, name, id(3), []byte("secret"))
			return err
		},
		"Replace":  func(ctx context.Context, s *Store, name string) error { return s.Replace(ctx, name, id(2), id(1)) },
		"Versions": func(ctx context.Context, s *Store, name string) error { _, err := s.Versions(ctx, name); return err },
		"Remove":   func(ctx context.Context, s *Store, name string) error { return s.Remove(ctx, name, id(2)) },
		"Lease": func(ctx context.Context, s *Store, name string) error {
			_, err := s.Lease(ctx, name, "x", time.Minute)
			return err
		},
		"Holder":   func(ctx context.Context, s *Store, name string) error { _, _, err := s.Holder(ctx, name); return err },
		"EndLease": func(ctx context.Context, s *Store, name string) error { return s.EndLease(ctx, name, "x") },
		"List":     func(ctx context.Context, s *Store, _ string) error { _, err := s.List(ctx); return err },
		"Reader": func(ctx context.Context, s *Store, name string) error {
			_, _, err := s.Reader().Read(ctx, name, "")
			return err
		},
	}
	s, cloud, name := settled(t)
	for fault, test := range tests {
		cloud.Fault(func(_ *http.Request, action string) *http.Response { return test.answer(action) })
		for operation, run := range operations {
			err := run(t.Context(), s, name)
			want := test.want
			if operation == "List" && errors.Is(test.is, session.ErrDenied) {
				want = "add to the policy" // it is about no one secret, that might not exist
			}
			if !errors.Is(err, test.is) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "-----secret") {
				t.Errorf("%s, %s: %v", fault, operation, err)
			}
			if !errors.Is(test.is, secret.ErrNotFound) && errors.Is(err, secret.ErrNotFound) {
				t.Errorf("%s, %s is taken for nothing: %v", fault, operation, err)
			}
		}
		cloud.Fault(nil)
		reads(t, s, name, "", id(1), "one")
	}
}

// An answer that could be anybody's says nothing of a secret, whatever asked for it, and says where it came from.
func TestStrangeAnswers(t *testing.T) {
	s, cloud, name := settled(t)
	for operation, run := range map[string]func() error{
		"Read":     func() error { _, _, err := s.Read(t.Context(), name, ""); return err },
		"Read id":  func() error { _, _, err := s.Read(t.Context(), name, id(2)); return err },
		"Stage":    func() error { _, err := s.Stage(t.Context(), name, id(3), []byte("secret")); return err },
		"Replace":  func() error { return s.Replace(t.Context(), name, id(2), id(1)) },
		"Versions": func() error { _, err := s.Versions(t.Context(), name); return err },
		"Lease":    func() error { _, err := s.Lease(t.Context(), name, "x", time.Minute); return err },
		"Holder":   func() error { _, _, err := s.Holder(t.Context(), name); return err },
		"Reach":    func() error { return s.Reach(t.Context(), name) },
		"Rotates": func() error {
			_, err := s.Rotates(t.Context(), name, "arn:aws:secretsmanager:eu-central-1:123456789012:secret:"+name+"-AbCdEf", id(2))
			return err
		},
	} {
		asks := false
		for _, action := range []string{"secretsmanager:DescribeSecret", "secretsmanager:GetSecretValue"} {
			met := false
			cloud.Fault(func(_ *http.Request, asked string) *http.Response {
				if asked != action {
					return nil
				}
				met = true
				return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader("{}"))}
			})
			err := run()
			cloud.Fault(nil)
			if want := "what answered at " + cloud.URL + " is not Secrets Manager"; met && (!errors.Is(err, session.ErrUnavailable) || !strings.Contains(err.Error(), want) || errors.Is(err, secret.ErrNotFound)) {
				t.Errorf("%s, %s: %v, want %q", operation, action, err, want)
			}
			asks = asks || met
		}
		if !asks {
			t.Errorf("%s asks neither", operation)
		}
	}
	reads(t, s, name, "", id(1), "one")
}

// Each step of writing and promoting fails in its turn; done again, it comes to its end.
func TestFaultAtEachStep(t *testing.T) {
	for _, broken := range []string{"CreateSecret", "DescribeSecret", "PutSecretValue", "GetSecretValue", "UpdateSecretVersionStage"} {
		s, cloud, name := start(t)
		for turn := range 6 {
			var count atomic.Int32
			cloud.Fault(func(_ *http.Request, action string) *http.Response {
				if action == "secretsmanager:"+broken && int(count.Add(1)) == turn%3+1 {
					return refuse(500, "InternalServiceError", "")
				}
				return nil
			})
			value := fmt.Sprint("value ", turn/3)
			before, _, _ := s.Read(t.Context(), name, "")
			_, err := s.Stage(t.Context(), name, id(turn/3), []byte(value))
			if err == nil {
				err = s.Promote(t.Context(), name, id(turn/3))
			}
			cloud.Fault(nil)
			if after, _, _ := s.Read(t.Context(), name, ""); err != nil && !bytes.Equal(after, before) && string(after) != value {
				t.Errorf("%s, turn %d: current is %q, and was %q", broken, turn, after, before)
			}
			stage(t, s, name, id(turn/3), value)
			if err := s.Promote(t.Context(), name, id(turn/3)); err != nil {
				t.Errorf("%s, turn %d: %v", broken, turn, err)
			}
			reads(t, s, name, "", id(turn/3), value)
		}
	}
}

// lossy carries requests out and loses the answers of one operation, as a connection does that breaks.
type lossy struct {
	operation string
	lost      atomic.Int32
}

func (l *lossy) Do(request *http.Request) (*http.Response, error) {
	response, err := http.DefaultTransport.RoundTrip(request)
	if err == nil && strings.HasSuffix(request.Header.Get("X-Amz-Target"), "."+l.operation) {
		l.lost.Add(1)
		response.Body.Close()
		return nil, errors.New("connection reset by peer")
	}
	return response, err
}

func TestAnswersThatAreLost(t *testing.T) {
	s, cloud, name := settled(t)
	config := cloud.Admin()
	broken := &lossy{operation: "UpdateSecretVersionStage"}
	config.HTTPClient = broken
	// AWS has moved the label, and nobody was told: what is current says so.
	if err := newStore(config, "").Replace(t.Context(), name, id(2), id(1)); err != nil || broken.lost.Load() == 0 {
		t.Errorf("after %d answers that were lost: %v", broken.lost.Load(), err)
	}
	reads(t, s, name, "", id(2), "two")
	config = cloud.Admin()
	broken = &lossy{operation: "PutSecretValue"}
	config.HTTPClient = broken
	if _, err := newStore(config, "").Stage(t.Context(), name, id(3), []byte("three")); !errors.Is(err, session.ErrUnavailable) {
		t.Errorf("nobody knows whether it was written: %v", err)
	}
	stage(t, s, name, id(3), "three")
	reads(t, s, name, "pending", id(3), "three")
}

func TestSlow(t *testing.T) {
	s, cloud, name := settled(t)
	release := make(chan struct{})
	defer close(release)
	cloud.Fault(func(request *http.Request, _ string) *http.Response {
		select {
		case <-request.Context().Done():
		case <-release:
		}
		return refuse(500, "InternalServiceError", "")
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := s.Replace(ctx, name, id(2), id(1))
	if !errors.Is(err, session.ErrUnavailable) || !strings.Contains(err.Error(), "interface endpoint") {
		t.Error(err)
	}
}

func TestDeletedSecret(t *testing.T) {
	s, cloud, name := settled(t)
	if _, err := s.client.DeleteSecret(t.Context(), &sdk.DeleteSecretInput{SecretId: aws.String(name), RecoveryWindowInDays: aws.Int64(7)}); err != nil {
		t.Fatal(err)
	}
	before := len(cloud.Calls())
	if _, err := s.Stage(t.Context(), name, id(3), []byte("three")); !errors.Is(err, ErrDeleted) {
		t.Errorf("writing: %v", err)
	}
	if _, _, err := s.Read(t.Context(), name, ""); !errors.Is(err, ErrDeleted) {
		t.Errorf("reading: %v", err)
	}
	if _, err := s.Versions(t.Context(), name); !errors.Is(err, ErrDeleted) || errors.Is(err, secret.ErrNotFound) {
		t.Errorf("its versions: %v", err)
	}
	for _, call := range cloud.Calls()[before:] {
		if call.Action != "secretsmanager:DescribeSecret" && call.Action != "secretsmanager:GetSecretValue" {
			t.Errorf("%s was asked of a secret that is deleted", call.Action)
		}
	}
}

// Each way of using the store works with the permissions that the package says it needs, and names the line that is missing.
func TestPermissions(t *testing.T) {
	s, cloud, name := settled(t)
	allow := func(role string, actions ...string) *Store {
		var statements []string
		for _, action := range actions {
			statements = append(statements, fmt.Sprintf(`{"Effect":"Allow","Action":"secretsmanager:%s","Resource":"arn:aws:secretsmanager:eu-central-1:123456789012:secret:%s*"}`, action, name))
		}
		cloud.PutRole(role, []byte(`{"Version":"2012-10-17","Statement":[`+strings.Join(statements, ",")+`]}`))
		return newStore(cloud.Config(role), "")
	}
	unique := fmt.Sprint(time.Now().UnixNano())
	reader := allow("reader"+unique, "GetSecretValue")
	reads(t, reader, name, "", id(1), "one")
	_, _, err := reader.Reader().Read(t.Context(), name, "")
	if !errors.Is(err, session.ErrDenied) || !strings.Contains(err.Error(), `"Action":"secretsmanager:DescribeSecret"`) {
		t.Errorf("a watcher that may not look: %v", err)
	}
	watcher := allow("watcher"+unique, "GetSecretValue", "DescribeSecret")
	reads(t, watcher.Reader(), name, "", id(1), "one")
	if _, err := watcher.Stage(t.Context(), name, id(3), []byte("x")); !errors.Is(err, session.ErrDenied) || !strings.Contains(err.Error(), "PutSecretValue") {
		t.Errorf("a watcher that writes: %v", err)
	}
	writer := allow("writer"+unique, "GetSecretValue", "DescribeSecret", "PutSecretValue", "UpdateSecretVersionStage", "ListSecretVersionIds")
	stage(t, writer, name, id(3), "three")
	replace(t, writer, name, id(3), id(1))
	staged(t, writer, name)
	// The secret of the lease is there before: templates make it.
	stage(t, s, name+leaseSuffix, "", "record")
	if err := take(t, writer, name, "writer", time.Minute).Release(t.Context()); err != nil {
		t.Error(err)
	}
	cloud.Expire("writer" + unique)
	if _, _, err := writer.Read(t.Context(), name, ""); !errors.Is(err, session.ErrCredentials) {
		t.Errorf("credentials that have ended: %v", err)
	}
}

// Open gives a store that tries again by itself.
func TestOpen(t *testing.T) {
	_, cloud, name := settled(t)
	for _, variable := range cloud.Env("root") {
		key, value, _ := strings.Cut(variable, "=")
		t.Setenv(key, value)
	}
	var count atomic.Int32
	cloud.Fault(func(_ *http.Request, action string) *http.Response {
		if action == "secretsmanager:GetSecretValue" && count.Add(1) == 1 {
			return refuse(400, "ThrottlingException", "Rate exceeded")
		}
		return nil
	})
	s, err := Open(t.Context(), Config{Endpoint: cloud.URL})
	if err != nil {
		t.Fatal(err)
	}
	reads(t, s, name, "", id(1), "one")
	if count.Load() != 2 {
		t.Errorf("it was asked %d times", count.Load())
	}
	if _, err := Open(t.Context(), Config{Endpoint: "http://192.0.2.1"}); !errors.Is(err, session.ErrConfig) {
		t.Errorf("a plain endpoint elsewhere: %v", err)
	}
}
