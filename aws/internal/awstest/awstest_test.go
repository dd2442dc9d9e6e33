package awstest_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch"
	"github.com/aws/aws-sdk-go-v2/service/cloudwatch/types"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"countersign.dev/aws/internal/awstest"
)

// code is the error code that a service answered with, or "".
func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

type ctx = context.Context

const allowAll = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}`

// TestIdentity shows that callers are who their credentials say, in every protocol.
func TestIdentity(t *testing.T) {
	t.Parallel()
	cloud := awstest.Start(t)
	cloud.PutRole("identity", []byte(allowAll))
	got, err := sts.NewFromConfig(cloud.Config("identity")).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	if err != nil || aws.ToString(got.Arn) != "arn:aws:sts::123456789012:assumed-role/identity/test" {
		t.Fatalf("GetCallerIdentity: %v, %v", got, err)
	}
	root, err := sts.NewFromConfig(cloud.Admin()).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
	if err != nil || aws.ToString(root.Arn) != "arn:aws:iam::123456789012:root" {
		t.Fatalf("GetCallerIdentity as root: %v, %v", root, err)
	}
	_, err = cloudwatch.NewFromConfig(cloud.Config("identity")).PutMetricData(t.Context(), &cloudwatch.PutMetricDataInput{
		Namespace: aws.String("Identity"), MetricData: []types.MetricDatum{{MetricName: aws.String("M"), Value: aws.Float64(1)}},
	})
	if err != nil {
		t.Errorf("CBOR: %v", err)
	}
	if _, err = secretsmanager.NewFromConfig(cloud.Config("identity")).ListSecrets(t.Context(), &secretsmanager.ListSecretsInput{}); err != nil {
		t.Errorf("JSON: %v", err)
	}
}

// TestCredentials refuses what is not signed by whom it names.
func TestCredentials(t *testing.T) {
	t.Parallel()
	cloud := awstest.Start(t)
	cloud.PutRole("credentials", []byte(allowAll))
	other := cloud.Assume("credentials")
	tests := []struct {
		name    string
		change  func(*aws.Credentials)
		json    string
		queries string
	}{
		{"the wrong secret", func(c *aws.Credentials) { c.SecretAccessKey = other.SecretAccessKey }, "InvalidSignatureException", "SignatureDoesNotMatch"},
		{"an unknown key", func(c *aws.Credentials) { c.AccessKeyID = "ASIAUNKNOWN" }, "UnrecognizedClientException", "InvalidClientTokenId"},
		{"no session token", func(c *aws.Credentials) { c.SessionToken = "" }, "UnrecognizedClientException", "InvalidClientTokenId"},
		{"another's token", func(c *aws.Credentials) { c.SessionToken = other.SessionToken }, "UnrecognizedClientException", "InvalidClientTokenId"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			config := cloud.Config("credentials")
			credentials, err := config.Credentials.Retrieve(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			test.change(&credentials)
			config.Credentials = aws.CredentialsProviderFunc(func(ctx) (aws.Credentials, error) { return credentials, nil })
			if _, err := secretsmanager.NewFromConfig(config).ListSecrets(t.Context(), &secretsmanager.ListSecretsInput{}); code(err) != test.json {
				t.Errorf("JSON: %v, want %s", err, test.json)
			}
			if _, err := sts.NewFromConfig(config).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{}); code(err) != test.queries {
				t.Errorf("query: %v, want %s", err, test.queries)
			}
		})
	}
	client := secretsmanager.NewFromConfig(cloud.Config("credentials"))
	if _, err := client.ListSecrets(t.Context(), &secretsmanager.ListSecretsInput{}); err != nil {
		t.Errorf("before they expire: %v", err)
	}
	cloud.Expire("credentials")
	if _, err := client.ListSecrets(t.Context(), &secretsmanager.ListSecretsInput{}); code(err) != "ExpiredTokenException" {
		t.Errorf("after they expired: %v", err)
	}
}

// TestUnsigned refuses what the SDK never sends.
func TestUnsigned(t *testing.T) {
	t.Parallel()
	cloud := awstest.Start(t)
	for _, test := range []struct{ header, want string }{
		{"", "MissingAuthenticationTokenException"},
		{"Basic eA==", "InvalidSignatureException"},
		{"AWS4-HMAC-SHA256 Credential=a/b/c, SignedHeaders=host, Signature=0", "InvalidSignatureException"},
	} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, cloud.URL, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("X-Amz-Target", "secretsmanager.ListSecrets")
		if test.header != "" {
			request.Header.Set("Authorization", test.header)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		if got := response.Header.Get("X-Amzn-Errortype"); response.StatusCode != http.StatusBadRequest || got != test.want {
			t.Errorf("%q: %d %s, want %s", test.header, response.StatusCode, got, test.want)
		}
	}
}
