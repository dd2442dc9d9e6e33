package acmpca

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"

	"countersign.dev/aws/internal/awstest/pcafake"
	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/rotate"
)

// world is a private CA, and a rotation that asks it.
type world struct {
	t *testing.T
	// mu is for what the service looks at while a test, or a process that it has started, changes it.
	mu       sync.Mutex
	fake     *pcafake.Fake
	server   *httptest.Server
	spoil    func(w http.ResponseWriter, r *http.Request) bool // answers in the service's place when it says true
	arn      string
	now      time.Time
	meter    *meter
	kept     []string
	keepFail error
	lose     int // so many answers to IssueCertificate
	notes    []string
}

// meter counts ids.
type meter struct {
	mu  sync.Mutex
	ids map[string]bool
	err error
}

func (m *meter) Spend(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	m.ids[id] = true
	return nil
}

// newWorld starts a service with one CA, and a subordinate one below it when that is wanted.
func newWorld(t *testing.T, o pcafake.Options, ca pcafake.CA) *world {
	t.Helper()
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "of a test", "AWS_SESSION_TOKEN": "", "AWS_REGION": "eu-central-1",
		"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_PROFILE": "", "AWS_ENDPOINT_URL": "",
	} {
		t.Setenv(name, value)
	}
	w := &world{t: t, now: time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC), meter: &meter{ids: make(map[string]bool)}}
	o.Now = func() time.Time {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.now
	}
	o.Lose = func(action string) bool {
		if action == "IssueCertificate" && w.lose > 0 {
			w.lose--
			return true
		}
		return false
	}
	w.fake = pcafake.New(o)
	w.server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		spoil := w.spoil
		w.mu.Unlock()
		if spoil == nil || !spoil(rw, r) {
			w.fake.ServeHTTP(rw, r)
		}
	}))
	t.Cleanup(w.server.Close)
	if ca.CRL == "self" {
		ca.CRL = strings.TrimPrefix(w.server.URL, "http://")
	}
	w.arn = w.add(ca)
	return w
}

// set changes what the service looks at.
func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func (w *world) add(ca pcafake.CA) string {
	w.t.Helper()
	arn, err := w.fake.Add(ca)
	if err != nil {
		w.t.Fatal(err)
	}
	return arn
}

// open makes an authority that loses no time.
func (w *world) open(change ...func(*Config)) *Authority {
	w.t.Helper()
	c := Config{
		ARN: w.arn, Endpoint: w.server.URL, Meter: w.meter, Now: func() time.Time { return w.now },
		Note: func(text string) { w.notes = append(w.notes, text) },
	}
	for _, f := range change {
		f(&c)
	}
	a, err := Open(w.t.Context(), c)
	if err != nil {
		w.t.Fatal(err)
	}
	a.client = fast(a.client)
	a.poll, a.bucket.tokens = time.Millisecond, 1000
	return a
}

// The retryer of a session can be watched.
var _ aws.RetryerV2 = (*retry.AdaptiveMode)(nil)

// fast is a client that tries as often, and waits for nothing.
func fast(client *acmpca.Client) *acmpca.Client {
	return acmpca.New(client.Options(), func(o *acmpca.Options) {
		o.Retryer = retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts, o.MaxBackoff = 5, time.Millisecond
		})
	})
}

// request is what a rotation asks for checkout; its receipt is the last one that was kept.
func (w *world) request(name string) rotate.Request {
	w.t.Helper()
	identity, err := id.Parse("spiffe://payments.internal/service/checkout")
	if err != nil {
		w.t.Fatal(err)
	}
	key, err := mtls.GenerateKey(mesh.ECDSAP256)
	if err != nil {
		w.t.Fatal(err)
	}
	names := []string{"checkout", "checkout.payments.internal"}
	csr, err := mtls.NewNamedCSR(key, identity, names)
	if err != nil {
		w.t.Fatal(err)
	}
	w.kept = nil
	return rotate.Request{
		ID: name, Workload: mesh.Workload{Name: "checkout", Kind: id.Service, Identity: identity}, DNSNames: names, CSR: csr, TTL: 90 * time.Hour,
		Keep: func(_ context.Context, receipt string) error {
			if w.keepFail != nil {
				return w.keepFail
			}
			w.kept = append(w.kept, receipt)
			return nil
		},
	}
}

// again is the request as a later try has it.
func (w *world) again(r rotate.Request) rotate.Request {
	if len(w.kept) > 0 {
		r.Receipt = w.kept[len(w.kept)-1]
	}
	return r
}

// issued expects how many certificates were issued and counted.
func (w *world) issued(issued, counted int) {
	w.t.Helper()
	if w.fake.Issued() != issued || len(w.meter.ids) != counted {
		w.t.Errorf("%d certificates were issued and %d counted; want %d and %d", w.fake.Issued(), len(w.meter.ids), issued, counted)
	}
}

// says expects parts of an error.
func says(t *testing.T, err, is error, parts ...string) {
	t.Helper()
	if err == nil || is != nil && !errors.Is(err, is) {
		t.Errorf("the error is %v, want %v", err, is)
		return
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not say %q: %v", part, err)
		}
	}
}

// refuse answers an action with an error of AWS.
func refuse(action string, status int, code, message string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("X-Amz-Target") != "ACMPrivateCA."+action {
			return false
		}
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(`{"__type":"` + code + `","message":"` + message + `"}`))
		return true
	}
}

// onGet calls a function before each GetCertificate.
func (w *world) onGet(f func()) func(http.ResponseWriter, *http.Request) bool {
	return func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".GetCertificate") {
			f()
		}
		return false
	}
}
