package session_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"countersign.dev/aws/session"
)

// answer is an error as the SDK makes it of what a service answers.
func answer(status int, code, message string) error {
	return &smithy.OperationError{ServiceID: "Secrets Manager", OperationName: "GetSecretValue", Err: &awshttp.ResponseError{
		RequestID: "1", ResponseError: &smithyhttp.ResponseError{
			Response: &smithyhttp.Response{Response: &http.Response{StatusCode: status}},
			Err:      &smithy.GenericAPIError{Code: code, Message: message},
		},
	}}
}

const (
	action   = "secretsmanager:GetSecretValue"
	resource = "arn:aws:secretsmanager:eu-central-1:*:secret:payments/checkout-??????"
	caller   = "arn:aws:sts::123456789012:assumed-role/checkout-task/9f3a"
	key      = "arn:aws:kms:eu-central-1:123456789012:key/1234abcd"
)

func TestExplain(t *testing.T) {
	tests := map[string]struct {
		err  error
		is   error
		want []string
	}{
		"denied": {
			answer(400, "AccessDeniedException", "User: "+caller+" is not authorized to perform: secretsmanager:GetSecretValue on resource: payments/checkout because no identity-based policy allows the secretsmanager:GetSecretValue action"),
			session.ErrDenied,
			[]string{"role of " + caller, `{"Effect":"Allow","Action":"secretsmanager:GetSecretValue","Resource":"arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/checkout-??????"}`},
		},
		"denied, the ARN told": {
			answer(400, "AccessDeniedException", "User: "+caller+" is not authorized to perform: secretsmanager:PutSecretValue on resource: arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/checkout-AbCdEf because no"),
			session.ErrDenied,
			[]string{`"Action":"secretsmanager:PutSecretValue","Resource":"arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/checkout-AbCdEf"`},
		},
		"denied, nothing told": {answer(403, "AccessDenied", "Access denied"), session.ErrDenied, []string{"the caller", `"Resource":"` + resource + `"`}},
		"denied explicitly": {
			answer(400, "AccessDeniedException", "User: "+caller+" is not authorized to perform: secretsmanager:GetSecretValue on resource: x with an explicit deny in a resource-based policy"),
			session.ErrDenied,
			[]string{"explicit deny in a resource-based policy", "no allowing line helps"},
		},
		"a secret that is called kms": {
			answer(400, "AccessDeniedException", "User: "+caller+" is not authorized to perform: secretsmanager:GetSecretValue on resource: payments/kms"),
			session.ErrDenied,
			[]string{"add to the policy"},
		},
		"the key denied": {
			answer(400, "AccessDeniedException", "User: "+caller+" is not authorized to perform: kms:GenerateDataKey on resource: "+key+" because"),
			session.ErrKey,
			[]string{`"Action":"kms:GenerateDataKey","Resource":"` + key + `"`, "the key's own policy"},
		},
		"the key denied, shortly": {answer(400, "AccessDeniedException", "Access to KMS is not allowed"), session.ErrKey, []string{`"Action":"kms:Decrypt","Resource":"KEY-ARN`}},
		"the key disabled": {
			answer(400, "DecryptionFailure", "Secrets Manager can't decrypt the protected secret text using the provided KMS key."),
			session.ErrKey,
			[]string{"aws kms enable-key", "is not lost"},
		},
		"the key disabled, told by KMS": {answer(400, "InvalidRequestException", key+" is disabled."), session.ErrKey, []string{key}},
		"throttled":                     {&retry.MaxAttemptsError{Attempt: 7, Err: answer(400, "ThrottlingException", "Rate exceeded")}, session.ErrThrottled, []string{"tried 7 times", "Rate exceeded"}},
		"throttled by the status":       {answer(429, "Busy", ""), session.ErrThrottled, []string{"try again"}},
		"expired":                       {answer(400, "ExpiredTokenException", "The security token included in the request is expired"), session.ErrCredentials, []string{"renew them"}},
		"unknown":                       {answer(400, "UnrecognizedClientException", "The security token included in the request is invalid."), session.ErrCredentials, []string{"take them out"}},
		"a wrong clock":                 {answer(403, "InvalidSignatureException", "Signature expired: 20260101T000000Z is now earlier than"), session.ErrCredentials, []string{"clock"}},
		"none":                          {&smithy.OperationError{Err: errors.New("get identity: get credentials: failed to refresh cached credentials, no EC2 IMDS role found")}, session.ErrCredentials, []string{"taskRoleArn"}},
		"500":                           {answer(500, "InternalServiceError", "An error occurred"), session.ErrUnavailable, []string{"try again later"}},
		"503 without a code":            {answer(503, "", ""), session.ErrUnavailable, []string{"try again later"}},
		"too slow":                      {&smithy.OperationError{Err: context.DeadlineExceeded}, session.ErrUnavailable, []string{"interface endpoint"}},
		"no connection":                 {&smithy.OperationError{Err: &smithyhttp.RequestSendError{Err: &net.OpError{Op: "dial", Err: errors.New("connection refused")}}}, session.ErrUnavailable, []string{"port 443"}},
		"no name":                       {&smithyhttp.RequestSendError{Err: &net.DNSError{Name: "secretsmanager.eu-centrl-1.amazonaws.com", Err: "no such host"}}, session.ErrUnavailable, []string{"cannot be resolved"}},
		"another certificate":           {&smithyhttp.RequestSendError{Err: &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}}, session.ErrUnavailable, []string{"AWS_CA_BUNDLE"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := session.Explain(test.err, action, resource)
			if !errors.Is(err, test.is) {
				t.Errorf("it is not %v: %v", test.is, err)
			}
			for _, other := range []error{session.ErrDenied, session.ErrThrottled, session.ErrCredentials, session.ErrUnavailable, session.ErrKey} {
				deniedKey := errors.Is(test.is, session.ErrKey) && errors.Is(other, session.ErrDenied)
				if !errors.Is(test.is, other) && errors.Is(err, other) && !deniedKey {
					t.Errorf("it is %v too: %v", other, err)
				}
			}
			if !errors.Is(err, test.err) {
				t.Error("the SDK's error is not reached")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("there is no %q in %v", want, err)
				}
			}
		})
	}
}

// TestExplainAnything says what to do about errors whose names are not known, by their kind, and leaves that to those who know more.
func TestExplainAnything(t *testing.T) {
	for name, test := range map[string]struct {
		err          error
		want, remedy string
	}{
		"a quota":             {answer(400, "LimitExceededException", "too many tasks"), "aws service-quotas", "ask AWS for more"},
		"a quota, newly":      {answer(402, "ServiceQuotaExceededException", ""), "aws service-quotas", "ask AWS for more"},
		"in progress":         {answer(400, "RequestInProgressException", "a rotation is in progress"), "run this again", "wait until"},
		"a conflict":          {answer(409, "ConflictException", ""), "run this again", "wait until"},
		"never heard of":      {answer(400, "BlueMoonException", "not tonight"), "asking again alone does not help", "see what AWS refuses"},
		"never heard of, 500": {answer(500, "BlueMoonException", ""), "health.aws.amazon.com", "see that AWS can be reached"},
		"not there":           {answer(400, "ResourceNotFoundException", "no such thing"), "", ""},
		"there already":       {answer(400, "ResourceExistsException", "there it is"), "", ""},
		"none of AWS":         {errors.New("broken"), "", ""},
	} {
		err := fmt.Errorf("asking: %w", session.Explain(test.err, action, resource))
		if got := session.Remedy(err); (got == "") != (test.remedy == "") || !strings.Contains(got, test.remedy) {
			t.Errorf("%s: the remedy is %q", name, got)
		}
		if !strings.Contains(err.Error(), test.want) || test.want == "" && strings.Contains(err.Error(), "; ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	explained := session.Explain(answer(400, "LimitExceededException", "twenty labels"), action, resource)
	known := session.Known(explained)
	if session.Remedy(known) != "" || strings.Contains(known.Error(), "quota") || !strings.Contains(known.Error(), "twenty labels") || session.Code(known) != "LimitExceededException" {
		t.Errorf("known: %v", known)
	}
	if denied := session.Explain(answer(400, "AccessDeniedException", ""), action, resource); session.Known(denied) != denied || session.Remedy(explained) == "" { //nolint:errorlint // the same one
		t.Error("what is not general has changed, or the error itself has")
	}
}

func TestExplainLeavesAlone(t *testing.T) {
	if err := session.Explain(nil, action, resource); err != nil {
		t.Error(err)
	}
	once := session.Explain(answer(400, "ThrottlingException", ""), action, resource)
	if twice := session.Explain(once, "another", "thing"); twice != once { //nolint:errorlint // it is to be the same one
		t.Errorf("explained twice: %v", twice)
	}
	for name, err := range map[string]error{
		"a quota":          answer(400, "LimitExceededException", "too many versions"),
		"something else":   answer(400, "ResourceNotFoundException", "Secrets Manager can't find the specified secret."),
		"its own end":      &smithy.OperationError{Err: context.Canceled},
		"a broken context": &smithy.OperationError{Err: errors.New("deserialization failed")},
	} {
		explained := session.Explain(err, action, resource)
		for _, sentinel := range []error{session.ErrDenied, session.ErrThrottled, session.ErrCredentials, session.ErrUnavailable, session.ErrKey} {
			if errors.Is(explained, sentinel) {
				t.Errorf("%s is taken for %v", name, sentinel)
			}
		}
		if !errors.Is(explained, err) || !strings.HasPrefix(explained.Error(), action+" on "+resource) {
			t.Errorf("%s: %v", name, explained)
		}
	}
}

func TestExplainNeverShowsAKey(t *testing.T) {
	err := session.Explain(answer(400, "ValidationException", "Value '-----BEGIN PRIVATE KEY-----\nMC4CAQ' at 'secretString' failed to satisfy constraint"), action, resource)
	if strings.Contains(err.Error(), "MC4CAQ") || !strings.Contains(err.Error(), "ValidationException") {
		t.Error(err)
	}
	err = session.Explain(answer(400, "ValidationException", "a\r\nb\x1b[31m"+strings.Repeat("é", 1000)), action, resource)
	if text := err.Error(); strings.ContainsAny(text, "\r\n\x1b") || len(text) > 1000 {
		t.Errorf("%d bytes: %q", len(text), text)
	}
}

func TestErrorNames(t *testing.T) {
	err := session.Explain(answer(400, "AccessDeniedException", "User: "+caller+" is not authorized to perform: secretsmanager:PutSecretValue on resource: x"), action, resource)
	explained, ok := errors.AsType[*session.Error](err)
	if !ok || explained.Caller != caller || explained.Action != "secretsmanager:PutSecretValue" || explained.Code != "AccessDeniedException" {
		t.Errorf("%+v", explained)
	}
	if explained != nil && !strings.Contains(explained.Resource, ":123456789012:") {
		t.Errorf("the account is not filled in: %s", explained.Resource)
	}
	if session.Code(errors.New("none")) != "" || session.Code(err) != "AccessDeniedException" {
		t.Error("codes")
	}
}
