// Package awstest is the cloud that the tests of the AWS packages speak to: the real SDK, unchanged, on one side, doubles of
// AWS on the other (moto and ministack, which others wrote, and fakes of ours for what both get wrong), and between them a
// front that does what AWS does before any service sees a request: it checks the signature, finds out whose role it is,
// evaluates the policies, and refuses in the service's own words.
//
// The doubles are processes in a Python environment that `make peers` installs. They are started once for each test binary, at
// first need, on loopback ports that the system chose, and end with it. What is in them is shared by the tests of a binary:
// each names its secrets and keys for itself. Roles, faults, mounted fakes and the log of calls belong to one Cloud.
package awstest

import (
	"context"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"countersign.dev/aws/internal/awstest/iam"
)

// Where everything in the doubles is. Both doubles take this account unless told otherwise.
const (
	Region  = "eu-central-1"
	Account = "123456789012"
)

// Cloud is one front and what stands behind it. Its methods can be called concurrently.
type Cloud struct {
	URL     string // of the front, which speaks for every service
	Region  string
	Account string

	t      testing.TB
	server *httptest.Server
	admin  Credentials

	mu       sync.Mutex
	handlers map[string]http.Handler  // by the name that requests are signed for
	mounted  map[string]bool          // those that are not the front\'s own
	issued   map[string]*session      // by access key
	roles    map[string]*role         // by name
	managed  map[string]*iam.Document // managed policies by ARN
	fault    Fault
	lost     func(action string) bool
	calls    []Call
}

// Call is one request that the front decided on.
type Call struct {
	Role     string // the caller's role by name; "root" for Admin
	Caller   string // the ARN of its session
	Action   string // as policies write it, such as "secretsmanager:GetSecretValue"
	Resource string // the ARN that was decided on, or "*"
	Allowed  bool
	Why      string // why it was refused

	id      string
	at      time.Time
	roleARN string
	direct  bool   // what the caller itself asked, rather than what a service asks for it
	failed  string // why it was not done although it was allowed: the service was refused what it asked for it
}

// Fault answers a request in place of the service, or returns nil to let it through. It may wait, and sees every request
// whose signature is right, before its policies are looked at. The action is written as policies do. One
// that waits has to end with the request's context: the front waits for it when it closes.
type Fault func(request *http.Request, action string) *http.Response

// Start begins a front, and the doubles when this is the first one of the process. It skips the test where they are not
// installed, and fails it there when CI=true. The front ends with the test.
func Start(t testing.TB) *Cloud {
	t.Helper()
	python(t)
	c := &Cloud{
		Region:   Region,
		Account:  Account,
		t:        t,
		handlers: map[string]http.Handler{},
		mounted:  map[string]bool{},
		issued:   map[string]*session{},
		roles:    map[string]*role{},
		managed:  map[string]*iam.Document{},
	}
	c.admin = newCredentials("AKIA", "")
	c.issued[c.admin.AccessKeyID] = &session{Credentials: c.admin, root: true}
	for _, service := range []string{"sts", "iam", "events", "logs"} {
		c.handlers[service] = double(moto)
	}
	for _, service := range []string{"kms", "monitoring"} {
		c.handlers[service] = double(ministack)
	}
	c.handlers["secretsmanager"] = secretsManager
	c.handlers["cloudtrail"] = c.trail()
	c.server = httptest.NewServer(c)
	c.URL = c.server.URL
	t.Cleanup(func() {
		c.server.Close()
		if t.Failed() {
			logDoubles(t)
		}
	})
	return c
}

// Mount puts h behind the front for the service that requests are signed for ("acm-pca", "acm", "ecs",
// "elasticloadbalancing"), in place of what was there. It sees only requests that policies allow.
func (c *Cloud) Mount(service string, h http.Handler) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.handlers[service], c.mounted[service] = h, true
}

// Moto is the double of that name without a front, for Mount and for comparisons.
func Moto(t testing.TB) http.Handler {
	t.Helper()
	python(t)
	return double(moto)
}

// Ministack is the double of that name without a front, for Mount and for comparisons.
func Ministack(t testing.TB) http.Handler {
	t.Helper()
	python(t)
	return double(ministack)
}

// Fault lets f answer requests from now on; nil ends that.
func (c *Cloud) Fault(f Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = f
}

// Lose lets the service do what is asked, and breaks the connection instead of answering, where lost says so: what a caller
// cannot tell from a request that never arrived. The SDK sends such a request again. Nil ends that.
func (c *Cloud) Lose(lost func(action string) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost = lost
}

// Calls returns what was asked of the front so far, in order of decision.
func (c *Cloud) Calls() []Call {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.calls)
}

// Admin configures an SDK client for the account's root, whom no policy stops.
func (c *Cloud) Admin() aws.Config { return c.config(c.admin) }

// Config configures an SDK client for the role. It tries once: a test that wants retries sets its own Retryer.
func (c *Cloud) Config(role string) aws.Config { return c.config(c.Assume(role)) }

func (c *Cloud) config(credentials Credentials) aws.Config {
	return aws.Config{
		Region:       c.Region,
		BaseEndpoint: aws.String(c.URL),
		Retryer:      func() aws.Retryer { return aws.NopRetryer{} },
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{
				AccessKeyID:     credentials.AccessKeyID,
				SecretAccessKey: credentials.SecretAccessKey,
				SessionToken:    credentials.SessionToken,
				CanExpire:       !credentials.Expires.IsZero(),
				Expires:         credentials.Expires,
			}, nil
		}),
	}
}

// Env returns the variables that make an AWS SDK in another process speak to this cloud as the role; "root" is Admin.
func (c *Cloud) Env(role string) []string {
	credentials := c.admin
	if role != "root" {
		credentials = c.Assume(role)
	}
	variables := map[string]string{ //nolint:gosec // no credentials of anything that exists
		"AWS_ACCESS_KEY_ID":           credentials.AccessKeyID,
		"AWS_SECRET_ACCESS_KEY":       credentials.SecretAccessKey,
		"AWS_SESSION_TOKEN":           credentials.SessionToken,
		"AWS_REGION":                  c.Region,
		"AWS_ENDPOINT_URL":            c.URL,
		"AWS_EC2_METADATA_DISABLED":   "true",
		"AWS_CONFIG_FILE":             "/dev/null",
		"AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
	}
	var env []string
	for _, name := range slices.Sorted(maps.Keys(variables)) {
		env = append(env, name+"="+variables[name])
	}
	return env
}

// Expire ends all credentials that the role has now: requests signed with them are refused as expired.
func (c *Cloud) Expire(role string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.issued {
		if s.role != nil && s.role.name == nameOf(role) {
			s.Expires = time.Now().Add(-time.Second)
		}
	}
}
