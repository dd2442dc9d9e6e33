package session_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"countersign.dev/aws/session"
)

// TestLoadRefusesTheEnvironment: what somebody has written, in a variable or a file, is named with its value.
func TestLoadRefusesTheEnvironment(t *testing.T) {
	tests := map[string]struct {
		variables map[string]string
		file      string
		want      string // empty when it is to be taken
	}{
		"a profile":              {map[string]string{"AWS_PROFILE": "nope"}, "", `AWS_PROFILE is "nope", and no shared configuration file has a profile of that name`},
		"no scheme":              {map[string]string{"AWS_ENDPOINT_URL": "127.0.0.1:1"}, "", `AWS_ENDPOINT_URL is "127.0.0.1:1", which is no URL of a service: it begins with neither https:// nor http://; write one such as`},
		"a name alone":           {map[string]string{"AWS_ENDPOINT_URL_SECRETS_MANAGER": "localhost"}, "", `AWS_ENDPOINT_URL_SECRETS_MANAGER is "localhost"`},
		"another scheme":         {map[string]string{"AWS_ENDPOINT_URL_STS": "ftp://localhost"}, "", "it begins with neither https:// nor http://"},
		"no host":                {map[string]string{"AWS_ENDPOINT_URL": "http://:5000"}, "", "it names no host"},
		"no port":                {map[string]string{"AWS_ENDPOINT_URL": "http://localhost:port"}, "", "it cannot be read"},
		"a password":             {map[string]string{"AWS_ENDPOINT_URL": "me:hidden@localhost"}, "", "AWS_ENDPOINT_URL is a text that is not shown"},
		"an endpoint in a file":  {nil, "[default]\nendpoint_url = localhost:5000\n", `endpoint_url of the shared configuration is "localhost:5000"`},
		"a bundle that is away":  {map[string]string{"AWS_CA_BUNDLE": "/nowhere/ca.pem"}, "", "/nowhere/ca.pem: no such file or directory; correct the file or variable that it names"},
		"a path":                 {map[string]string{"AWS_ENDPOINT_URL": "https://localhost/aws"}, "", ""},
		"one that is ignored":    {map[string]string{"AWS_ENDPOINT_URL": "localhost", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, "", ""},
		"a service never asked":  {map[string]string{"AWS_ENDPOINT_URL_S3": "localhost"}, "", ""},
		"a good one in the file": {nil, "[default]\nendpoint_url = http://localhost:5000\n", ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			bare(t)
			for variable, value := range test.variables {
				t.Setenv(variable, value)
			}
			if test.file != "" {
				file := t.TempDir() + "/config"
				if err := os.WriteFile(file, []byte(test.file), 0o600); err != nil {
					t.Fatal(err)
				}
				t.Setenv("AWS_CONFIG_FILE", file)
			}
			_, err := session.Load(t.Context(), session.Config{Region: "eu-central-1"})
			if test.want == "" {
				if err != nil {
					t.Errorf("it is refused: %v", err)
				}
				return
			}
			if !errors.Is(err, session.ErrConfig) || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "hidden") {
				t.Errorf("the error is %v, want one with %q", err, test.want)
			}
			if errors.Is(err, session.ErrNoRegion) {
				t.Error("it is taken for a missing region")
			}
		})
	}
	bare(t)
	if _, err := session.Load(t.Context(), session.Config{}); !errors.Is(err, session.ErrNoRegion) || !errors.Is(err, session.ErrConfig) {
		t.Errorf("without a region the error is %v", err)
	}
}

// TestStandIn: what is asked in place of AWS is named with who names it, when nobody answers there or somebody else does.
func TestStandIn(t *testing.T) {
	var page, code string
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(map[string]int{"200": 200, "404": 404, "502": 502}[code])
		_, _ = w.Write([]byte(page)) // the client has the answer, or says that it has none
	}))
	defer other.Close()
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	tests := map[string]struct {
		variable, url, code, page string
		named                     bool // by the configuration, and by no variable
		want                      string
	}{
		"nobody":              {variable: "AWS_ENDPOINT_URL", url: gone.URL, want: "nothing answers at " + gone.URL + ", which AWS_ENDPOINT_URL names; correct it"},
		"nobody, a service":   {variable: "AWS_ENDPOINT_URL_SECRETS_MANAGER", url: gone.URL, want: ", which AWS_ENDPOINT_URL_SECRETS_MANAGER names"},
		"nobody, configured":  {named: true, url: gone.URL, want: "nothing answers at " + gone.URL + ", which was named in place of AWS's own endpoint"},
		"an empty 404":        {variable: "AWS_ENDPOINT_URL", url: other.URL, code: "404", want: "what answers is not AWS: it is " + other.URL + ", which AWS_ENDPOINT_URL names; correct it"},
		"a page, 404":         {variable: "AWS_ENDPOINT_URL", url: other.URL, code: "404", page: "<html><meta></html>", want: "what answers is not AWS: it is " + other.URL},
		"JSON of others, 404": {variable: "AWS_ENDPOINT_URL", url: other.URL, code: "404", page: `{"error":"no"}`, want: "what answers is not AWS: it is " + other.URL},
		"a page, 200":         {variable: "AWS_ENDPOINT_URL", url: other.URL, code: "200", page: "<html><meta></html>", want: "what answers is not AWS: it is " + other.URL},
		"a page, 502":         {variable: "AWS_ENDPOINT_URL", url: other.URL, code: "502", page: "<html><meta></html>", want: "what answers is not AWS: it is " + other.URL},
		"a double, 502":       {variable: "AWS_ENDPOINT_URL_SECRETS_MANAGER", url: other.URL, code: "502", page: `{"__type":"InternalServiceError"}`, want: "try again later, and see https://health.aws.amazon.com for the region; the answer is of " + other.URL + ", which AWS_ENDPOINT_URL_SECRETS_MANAGER names"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			bare(t)
			t.Setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
			t.Setenv("AWS_SECRET_ACCESS_KEY", "test")
			t.Setenv("AWS_MAX_ATTEMPTS", "1")
			page, code = test.page, test.code
			config := session.Config{Region: "eu-central-1"}
			if test.named {
				config.Endpoint = test.url
			} else {
				t.Setenv(test.variable, test.url)
			}
			loaded, err := session.Load(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			_, err = secretsmanager.NewFromConfig(loaded).DescribeSecret(t.Context(), &secretsmanager.DescribeSecretInput{SecretId: aws.String("x")})
			check := func(action string, err error) {
				t.Helper()
				err = session.Explain(err, action, "*")
				if !errors.Is(err, session.ErrUnavailable) || !session.Everywhere(err) || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "UnknownError") {
					t.Errorf("%s: %v", action, err)
				}
			}
			check("secretsmanager:DescribeSecret", err)
			if test.variable != "AWS_ENDPOINT_URL_SECRETS_MANAGER" { // the same words from a service that speaks XML
				_, err = sts.NewFromConfig(loaded).GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{})
				check("sts:GetCallerIdentity", err)
			}
		})
	}
}

// TestRemedy: each kind of error has a remedy of its own, and only what concerns every call is everywhere.
func TestRemedy(t *testing.T) {
	seen := map[string]bool{}
	for _, kind := range []error{session.ErrDenied, session.ErrThrottled, session.ErrCredentials, session.ErrUnavailable, session.ErrKey, session.ErrConfig} {
		remedy := session.Remedy(kind)
		if remedy == "" || seen[remedy] {
			t.Errorf("%v has the remedy %q", kind, remedy)
		}
		seen[remedy] = true
		if everywhere := errors.Is(kind, session.ErrCredentials) || errors.Is(kind, session.ErrUnavailable); session.Everywhere(kind) != everywhere {
			t.Errorf("%v is everywhere: %t", kind, !everywhere)
		}
	}
	if remedy := session.Remedy(errors.New("no such secret")); remedy != "" || session.Everywhere(nil) {
		t.Errorf("the remedy is %q", remedy)
	}
}
