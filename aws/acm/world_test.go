package acm

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign.dev/aws/internal/awstest/acmfake"
	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/rotate"
)

const (
	caARN       = "arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012"
	checkoutDNS = "checkout.payments.internal"
)

// world is an ACM with its CA behind one URL, and an Authority that asks it.
type world struct {
	t         *testing.T
	ca        *acmfake.CA
	fake      *acmfake.Fake
	authority *Authority
	meter     *meter
	kept      string // the last receipt

	mu     sync.Mutex
	now    time.Time
	events []string
	// refuse answers an operation instead, with an error's code and message; nil is for nobody.
	refuse func(operation string) (code, message string)
	// password is what Secrets Manager makes.
	password string
}

// meter counts as a budget does.
type meter struct {
	mu    sync.Mutex
	ids   map[string]bool
	limit int
}

var errSpent = errors.New("the budget is spent")

func (m *meter) Spend(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.ids[id] && len(m.ids) >= m.limit {
		return errSpent
	}
	m.ids[id] = true
	return nil
}

func (m *meter) spent() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.ids)
}

func newWorld(t *testing.T, options acmfake.Options) *world {
	t.Helper()
	w := &world{t: t, meter: &meter{ids: map[string]bool{}, limit: 100}, now: time.Now(), password: strings.Repeat("aB3d", passphraseLength/4)}
	ca, err := acmfake.NewCA(caARN, w.now)
	if err != nil {
		t.Fatal(err)
	}
	w.ca = ca
	options.Issuer, options.Now = ca, w.clock
	options.Events = func(document []byte) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.events = append(w.events, string(document))
	}
	w.fake = acmfake.New(options)
	server := httptest.NewServer(w)
	t.Cleanup(server.Close)
	for key, value := range map[string]string{"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"} {
		t.Setenv(key, value)
	}
	w.authority, err = Open(t.Context(), Config{
		Authority: caARN, Endpoint: server.URL, Names: map[string]string{"checkout": checkoutDNS, "ledger": "ledger.payments.internal"},
		Meter: w.meter, Now: w.clock, poll: time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) advance(days int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.AddDate(0, 0, days)
}

// ServeHTTP is all of AWS that is asked.
func (w *world) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	service, operation, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	w.mu.Lock()
	refuse := w.refuse
	w.mu.Unlock()
	if refuse != nil {
		if code, message := refuse(operation); code != "" {
			out.Header().Set("Content-Type", "application/x-amz-json-1.1")
			out.WriteHeader(http.StatusBadRequest)
			_ = json.NewEncoder(out).Encode(map[string]string{"__type": code, "message": message})
			return
		}
	}
	switch service {
	case "CertificateManager":
		w.fake.ServeHTTP(out, r)
	case "ACMPrivateCA":
		w.ca.ServeHTTP(out, r)
	default:
		out.Header().Set("Content-Type", "application/x-amz-json-1.1")
		_ = json.NewEncoder(out).Encode(map[string]string{"RandomPassword": w.password})
	}
}

func (w *world) refuses(operation, code, message string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.refuse = func(called string) (string, string) {
		if called == operation {
			return code, message
		}
		return "", ""
	}
}

// request is one for checkout.
func (w *world) request(id, replaces string) rotate.Request {
	return rotate.Request{
		ID: id, Workload: workload(w.t, "checkout"), DNSNames: []string{checkoutDNS}, Key: mesh.ECDSAP256, Replaces: replaces, Receipt: w.kept,
		Keep: func(_ context.Context, receipt string) error { w.kept = receipt; return nil },
	}
}

func workload(t *testing.T, name string) mesh.Workload {
	t.Helper()
	who, err := id.New("payments.internal", id.Service, name)
	if err != nil {
		t.Fatal(err)
	}
	return mesh.Workload{Name: name, Kind: id.Service, Identity: who}
}

// serial is the newest of checkout's.
func (w *world) serial() string {
	w.t.Helper()
	serial, _, err := w.authority.Newest(w.t.Context(), workload(w.t, "checkout"))
	if err != nil {
		w.t.Fatal(err)
	}
	return serial
}

// exported exports and gives the serial of what ACM has then.
func (w *world) exported(id, replaces string) string {
	w.t.Helper()
	material, err := w.authority.Export(w.t.Context(), w.request(id, replaces))
	if err != nil {
		w.t.Fatal(err)
	}
	material.Clear()
	return w.serial()
}

// says expects a text to hold others.
func says(t *testing.T, err error, wanted ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one that says %q", wanted)
	}
	for _, want := range wanted {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}

// has expects one of the events to hold some texts.
func (w *world) has(texts ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.ContainsFunc(w.events, func(event string) bool {
		return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(event, text) })
	}) {
		w.t.Errorf("no event has %q: %q", texts, w.events)
	}
}
