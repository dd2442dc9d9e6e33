package session_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"countersign.dev/aws/session"
)

// bare takes everything out of the environment that the default chain would find.
func bare(t *testing.T) {
	t.Helper()
	for _, name := range []string{
		"AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
		"AWS_SESSION_TOKEN", "AWS_SDK_UA_APP_ID", "AWS_USE_FIPS_ENDPOINT", "AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE",
	} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", t.TempDir()+"/none")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", t.TempDir()+"/none")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
}

func TestLoad(t *testing.T) {
	bare(t)
	t.Setenv("AWS_REGION", "eu-west-1")
	loaded, err := session.Load(t.Context(), session.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if loaded.Region != "eu-west-1" || loaded.BaseEndpoint != nil || loaded.AppID != "countersign" {
		t.Errorf("region %q, endpoint %v, application %q", loaded.Region, loaded.BaseEndpoint, loaded.AppID)
	}
	if tries := loaded.Retryer().MaxAttempts(); tries != 5 {
		t.Errorf("a call is tried %d times, want 5", tries)
	}
	if kind, ok := loaded.Retryer().(*retry.AdaptiveMode); !ok {
		t.Errorf("the retryer is a %T", kind)
	}
	loaded, err = session.Load(t.Context(), session.Config{Region: "eu-central-1", Endpoint: "http://127.0.0.1:5000"})
	if err != nil || loaded.Region != "eu-central-1" || *loaded.BaseEndpoint != "http://127.0.0.1:5000" {
		t.Errorf("region %q, endpoint %v, %v", loaded.Region, loaded.BaseEndpoint, err)
	}
}

// TestTries counts how often a service that is out of order is asked.
func TestTries(t *testing.T) {
	var asked atomic.Int32
	broken := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer broken.Close()
	for name, test := range map[string]struct {
		attempts, mode, file string
		want                 int32
		standard             bool
	}{
		"the environment":       {attempts: "2", want: 2},
		"no retries":            {attempts: "1", want: 1},
		"the file":              {file: "[default]\nmax_attempts = 3\n", want: 3},
		"both":                  {attempts: "2", file: "[default]\nmax_attempts = 3\n", want: 2},
		"0, which says nothing": {attempts: "0", want: 5},
		"the mode":              {attempts: "1", mode: "standard", want: 1, standard: true},
		"the mode of the file":  {attempts: "1", file: "[default]\nretry_mode = standard\n", want: 1, standard: true},
	} {
		t.Run(name, func(t *testing.T) {
			bare(t)
			t.Setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
			t.Setenv("AWS_SECRET_ACCESS_KEY", "test")
			t.Setenv("AWS_MAX_ATTEMPTS", test.attempts)
			t.Setenv("AWS_RETRY_MODE", test.mode)
			file := t.TempDir() + "/config"
			if err := os.WriteFile(file, []byte(test.file), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("AWS_CONFIG_FILE", file)
			loaded, err := session.Load(t.Context(), session.Config{Region: "eu-central-1", Endpoint: broken.URL})
			if err != nil {
				t.Fatal(err)
			}
			if _, standard := loaded.Retryer().(*retry.Standard); standard != test.standard || loaded.Retryer().MaxAttempts() != int(test.want) {
				t.Errorf("the retryer is a %T of %d attempts", loaded.Retryer(), loaded.Retryer().MaxAttempts())
			}
			if test.want > 3 { // it would only take its time
				return
			}
			asked.Store(0)
			client := sts.NewFromConfig(loaded)
			if _, err := client.GetCallerIdentity(t.Context(), &sts.GetCallerIdentityInput{}); err == nil || asked.Load() != test.want {
				t.Errorf("it was asked %d times, want %d: %v", asked.Load(), test.want, err)
			}
		})
	}
	for _, line := range []string{"max_attempts = -1", "max_attempts = 21", "max_attempts = many", "retry_mode = often"} {
		t.Run(line, func(t *testing.T) {
			bare(t)
			file := t.TempDir() + "/config"
			if err := os.WriteFile(file, []byte("[default]\n"+line+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("AWS_CONFIG_FILE", file)
			_, value, _ := strings.Cut(line, " = ")
			if _, err := session.Load(t.Context(), session.Config{Region: "eu-central-1"}); err == nil || !strings.Contains(err.Error(), value) {
				t.Errorf("the error is %v", err)
			}
		})
	}
	for variable, values := range map[string][]string{"AWS_MAX_ATTEMPTS": {"many", "-1", "21", "1.5"}, "AWS_RETRY_MODE": {"often"}} {
		for _, value := range values {
			t.Run(variable+"="+value, func(t *testing.T) {
				bare(t)
				t.Setenv(variable, value)
				if _, err := session.Load(t.Context(), session.Config{Region: "eu-central-1"}); !errors.Is(err, session.ErrConfig) || !strings.Contains(err.Error(), value) {
					t.Errorf("the error is %v", err)
				}
			})
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	tests := map[string]struct {
		config session.Config
		want   string
	}{
		"no region":             {session.Config{}, "no region is named; set AWS_REGION"},
		"a host for a region":   {session.Config{Region: "x.example.com/"}, "is no region"},
		"a long region":         {session.Config{Region: "eu" + strings.Repeat("-a", 30)}, "is no region"},
		"plain, elsewhere":      {session.Config{Region: "eu-central-1", Endpoint: "http://10.0.0.1:5000"}, "not https"},
		"plain, by name":        {session.Config{Region: "eu-central-1", Endpoint: "http://localhost.example.com"}, "not https"},
		"no URL":                {session.Config{Region: "eu-central-1", Endpoint: "secretsmanager"}, "neither https:// nor http://"},
		"no host":               {session.Config{Region: "eu-central-1", Endpoint: "https://:443"}, "no host"},
		"a password":            {session.Config{Region: "eu-central-1", Endpoint: "https://a:b@example.com"}, "user name"},
		"a query":               {session.Config{Region: "eu-central-1", Endpoint: "https://example.com/?x"}, "a query"},
		"an empty query":        {session.Config{Region: "eu-central-1", Endpoint: "https://example.com?"}, "a query"},
		"a fragment":            {session.Config{Region: "eu-central-1", Endpoint: "https://example.com#"}, "something stands behind"},
		"a path":                {session.Config{Region: "eu-central-1", Endpoint: "https://example.com/x"}, "a path"},
		"a port too high":       {session.Config{Region: "eu-central-1", Endpoint: "https://example.com:65536"}, "its port"},
		"the port 0":            {session.Config{Region: "eu-central-1", Endpoint: "http://[::1]:0"}, "its port"},
		"a port of letters":     {session.Config{Region: "eu-central-1", Endpoint: "https://example.com:https"}, "its port"},
		"a port too low":        {session.Config{Region: "eu-central-1", Endpoint: "https://a:b@example.com:-1"}, "its port"},
		"no port":               {session.Config{Region: "eu-central-1", Endpoint: "https://example.com:"}, "its port"},
		"another scheme":        {session.Config{Region: "eu-central-1", Endpoint: "ftp://example.com"}, "neither https:// nor http://"},
		"what is no URL at all": {session.Config{Region: "eu-central-1", Endpoint: "http://[::1"}, "cannot be read"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			bare(t)
			_, err := session.Load(t.Context(), test.config)
			if !errors.Is(err, session.ErrConfig) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("the error is %v, want one with %q", err, test.want)
			}
			if err != nil && strings.Contains(err.Error(), "a:b") {
				t.Errorf("the error shows a password: %v", err)
			}
		})
	}
}

func TestLoadTakesPlainEndpoints(t *testing.T) {
	for _, endpoint := range []string{"http://127.0.0.1:1", "http://[::1]:1", "http://LOCALHOST:1/", "https://vpce-1.example.com"} {
		bare(t)
		if _, err := session.Load(t.Context(), session.Config{Region: "eu-central-1", Endpoint: endpoint}); err != nil {
			t.Errorf("%s: %v", endpoint, err)
		}
	}
	bare(t)
	t.Setenv("AWS_ENDPOINT_URL", "http://10.0.0.1:5000/")
	if _, err := session.Load(t.Context(), session.Config{Region: "eu-central-1", Endpoint: "http://10.0.0.1:5000"}); err != nil {
		t.Errorf("the endpoint of the environment: %v", err)
	}
}

func TestLoadKeepsTheApplicationOfTheEnvironment(t *testing.T) {
	bare(t)
	t.Setenv("AWS_SDK_UA_APP_ID", "payments")
	loaded, err := session.Load(t.Context(), session.Config{Region: "eu-central-1"})
	if err != nil || loaded.AppID != "payments" {
		t.Errorf("the application is %q, %v", loaded.AppID, err)
	}
}
