package rotate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign.dev/mtls"
	"countersign.dev/secret"
)

// bundle is what the shared bundle holds, in the order of the names: its own is that of the roots' DER, which begins with
// lengths that chance decides.
func (w *world) bundle() []string {
	w.t.Helper()
	value, _, err := w.files.Read(w.t.Context(), w.target.Bundle, "")
	if err != nil {
		w.t.Fatal(err)
	}
	roots, err := mtls.ParseCertificates(value)
	if err != nil {
		w.t.Fatal(err)
	}
	var names []string
	for _, root := range roots {
		names = append(names, root.Subject.CommonName)
	}
	slices.Sort(names)
	return names
}

// TestNewRoot changes the root in the order that never breaks trust, and refuses every other one.
func TestNewRoot(t *testing.T) {
	w := newWorld(t, secret.LayoutExported)
	first := w.first()
	if got := fmt.Sprint(w.bundle()); got != "[first root]" {
		t.Error(got)
	}
	older, newer := w.authority.signer, newHierarchy(t, "second")

	// Too early: the leaf leads to the old root.
	w.authority.bundle = []*hierarchy{newer}
	bundle := SharedBundles([]Target{w.target})[0]
	result := w.rotator().RotateBundle(t.Context(), bundle, Options{})
	if !errors.Is(result.Err, ErrInUse) {
		t.Errorf("%v, want ErrInUse", result.Err)
	}
	says(t, result.Error, "orders (serial "+first.Serial, `issued under "first root"`)
	if got := fmt.Sprint(w.bundle()); got != "[first root]" {
		t.Error(got)
	}

	w.authority.bundle = []*hierarchy{older, newer}
	if again := w.must(Options{}, Nothing); again.Serial != first.Serial {
		t.Error("a new root alone has rotated the leaf")
	}
	if got := fmt.Sprint(w.bundle()); got != "[first root second root]" {
		t.Error(got)
	}
	w.authority.signer = newer
	says(t, w.must(Options{}, Rotated).Reason, "another key")
	w.check()
	w.authority.bundle = []*hierarchy{newer}
	w.must(Options{}, Nothing)
	if got := fmt.Sprint(w.bundle()); got != "[second root]" {
		t.Error(got)
	}
	w.check()
}

func TestBundleRefusals(t *testing.T) {
	w := newWorld(t, secret.LayoutExported)
	bundle := SharedBundles([]Target{w.target, w.target})
	if len(bundle) != 1 || len(bundle[0].Users) != 2 {
		t.Fatalf("%+v", bundle)
	}
	rotateIt := func(o Options) Result { return w.rotator().RotateBundle(t.Context(), bundle[0], o) }
	w.authority.down = errors.New("the server is away")
	says(t, rotateIt(Options{}).Error, "at the step look", "the server is away")
	w.authority.down, w.authority.bundle = nil, nil
	if result := rotateIt(Options{}); !errors.Is(result.Err, ErrUnfit) {
		t.Errorf("no root at all: %v, want ErrUnfit", result.Err)
	}
	w.authority.bundle = []*hierarchy{w.authority.signer}
	if result := rotateIt(Options{DryRun: true}); result.Outcome != WouldRotate {
		t.Errorf("%+v", result)
	}
	if result := rotateIt(Options{NoDeploy: true}); result.Outcome != Promoted {
		t.Errorf("%+v", result)
	}
	if result := rotateIt(Options{}); result.Outcome != Nothing {
		t.Errorf("%+v", result)
	}
	if _, err := w.files.Lease(t.Context(), w.target.Bundle, "maintenance", time.Hour); err != nil {
		t.Fatal(err)
	}
	if result := rotateIt(Options{}); result.Outcome != Nothing {
		t.Errorf("somebody is at it, and nothing is due: %+v", result)
	}
	w.authority.bundle = append(w.authority.bundle, newHierarchy(t, "second"))
	if result := rotateIt(Options{}); !errors.Is(result.Err, secret.ErrHeld) {
		t.Errorf("%v, want ErrHeld", result.Err)
	}
	bundle[0].Name = "not/a name"
	if result := rotateIt(Options{}); !errors.Is(result.Err, secret.ErrInvalid) {
		t.Errorf("%v, want ErrInvalid", result.Err)
	}
}

// TestBundleRestarts has those restarted that take a bundle in no other way, also when the first try died.
func TestBundleRestarts(t *testing.T) {
	w := newWorld(t, secret.LayoutExported)
	w.target.Restart, w.fleet.reload = true, false
	w.first()
	w.fleet.restarts = nil
	w.authority.bundle = append(w.authority.bundle, newHierarchy(t, "second"))
	w.fleet.broken = map[string]error{"orders-2": errors.New("it does not start")}
	for range 2 {
		result := w.rotator().RotateBundle(t.Context(), SharedBundles([]Target{w.target})[0], Options{})
		says(t, result.Error, "at the step deploy", "restarting orders-2: it does not start")
	}
	w.fleet.broken = nil
	w.must(Options{}, Nothing)
	if got := fmt.Sprint(w.fleet.restarts); got != "[orders-1 orders-2 orders-2 orders-2]" {
		t.Error(got)
	}
	w.fleet.restarts = nil
	for _, c := range []struct {
		broken error
		want   string
	}{{errors.New("it does not start"), "[orders-1 orders-2]"}, {nil, "[orders-1 orders-2 orders-1 orders-2]"}} {
		w.fleet.broken = map[string]error{"orders-2": c.broken}
		w.authority.bundle = append(w.authority.bundle, newHierarchy(t, "another"))
		_ = w.rotator().RotateBundle(t.Context(), SharedBundles([]Target{w.target})[0], Options{})
		if got := fmt.Sprint(w.fleet.restarts); got != c.want {
			t.Errorf("restarted %s for other bundles, want %s", got, c.want)
		}
	}
	w.fleet.restarts = nil
	w.must(Options{}, Nothing)
	if len(w.fleet.restarts) > 0 {
		t.Errorf("restarted %q for nothing", w.fleet.restarts)
	}
}

// TestOneService rotates one service alone: the others that use its bundle count all the same.
func TestOneService(t *testing.T) {
	w := newWorld(t, secret.LayoutExported)
	w.target.Restart, w.fleet.reload = true, false
	w.first()
	w.fleet.restarts = nil
	older, newer := w.authority.signer, newHierarchy(t, "second")
	carts := w.target
	carts.Workload.Name, carts.Secret, carts.Restart = "carts", "shop/carts", false
	all := []Target{w.target, carts}

	w.authority.bundle, w.authority.signer = []*hierarchy{newer}, newer // too early for orders
	results := w.rotator().RotateAll(t.Context(), all, Options{Service: "carts"})
	if len(results) != 2 || results[1].Service != "carts" || !errors.Is(results[0].Err, ErrInUse) {
		t.Fatalf("%+v, want ErrInUse and the result of carts", results)
	}
	w.checkCurrent()

	w.authority.bundle, w.authority.signer = []*hierarchy{older, newer}, older
	results = w.rotator().RotateAll(t.Context(), all, Options{Service: "carts", NoDeploy: true})
	if len(results) != 2 || results[0].Outcome != Promoted || len(w.fleet.restarts) > 0 {
		t.Fatalf("%+v; restarted %q", results, w.fleet.restarts)
	}
	results = w.rotator().RotateAll(t.Context(), all, Options{Service: "carts", NoDeploy: true})
	if results[0].Outcome != Nothing || results[1].Outcome != Nothing {
		t.Errorf("%+v; nothing was to be done without restarts", results)
	}
	results = w.rotator().RotateAll(t.Context(), all, Options{Service: "carts"})
	if got := fmt.Sprint(w.fleet.restarts); results[0].Outcome != Rotated || got != "[orders-1 orders-2]" {
		t.Errorf("%+v; restarted %s for the bundle", results, got)
	}
	if issued := w.authority.issued(); issued != 2 {
		t.Errorf("%d were issued, want the first one of orders and one of carts", issued)
	}
	if results = w.rotator().RotateAll(t.Context(), all, Options{}); len(results) != 3 {
		t.Errorf("%+v, want one of the bundle and two of services", results)
	}
}

// TestDaemon lets a daemon rotate, fail, and go on.
func TestDaemon(t *testing.T) {
	w := newWorld(t, secret.LayoutExported)
	unknown := errors.New("the server is away")
	var targetsErr error
	d := &Daemon{Rotator: w.rotator(), Log: slog.New(slog.DiscardHandler), Targets: func(context.Context) ([]Target, error) {
		return []Target{w.target}, targetsErr
	}}
	retries := map[string]*retry{}
	targetsErr = unknown
	if wait := d.round(t.Context(), retries); wait != firstRetry {
		t.Errorf("without a server it waits %s", wait)
	}
	if s := d.Statuses(t.Context()); len(s) != 0 {
		t.Errorf("%+v", s)
	}
	targetsErr = nil
	if wait := d.round(t.Context(), retries); wait > maxIdle || w.currentSerial() == "" {
		t.Errorf("it waits %s; %q is current", wait, w.currentSerial())
	}
	if wait := d.round(t.Context(), retries); wait < maxIdle-time.Second || w.authority.issued() != 1 {
		t.Errorf("it waits %s with nothing to do; %d were issued", wait, w.authority.issued())
	}
	serial := w.currentSerial()
	w.authority.down, targetsErr = unknown, unknown // what is known of before is rotated, and its failures are counted
	d.round(t.Context(), retries)
	if r := retries["service orders"]; r == nil || r.failures != 1 || time.Until(r.next) > firstRetry {
		t.Errorf("%+v", r)
	}
	before := ReadStatus(t.Context(), w.target)
	d.round(t.Context(), retries)
	if s := ReadStatus(t.Context(), w.target); s.Failures != 1 || s.Failures != before.Failures || s.Serial != serial {
		t.Errorf("it did not wait: %+v", s)
	}
	for range 10 {
		for _, r := range retries {
			r.next = time.Time{}
		}
		d.round(t.Context(), retries)
	}
	if r := retries["service orders"]; r.failures != 11 || time.Until(r.next) > lastRetry || time.Until(r.next) < time.Minute {
		t.Errorf("%d failures, again in %s", r.failures, time.Until(r.next))
	}
	w.authority.down, targetsErr = nil, nil
	clear(retries)
	d.round(t.Context(), retries)
	if len(retries) != 0 {
		t.Errorf("%+v", retries)
	}
	answer := func(method, path string) *httptest.ResponseRecorder {
		recorder := httptest.NewRecorder()
		d.ServeHTTP(recorder, httptest.NewRequestWithContext(t.Context(), method, path, nil))
		return recorder
	}
	says(t, answer(http.MethodGet, "/metrics").Body.String(), `countersign_rotate_failures_total{service="orders"} 11`)
	for _, refused := range []*httptest.ResponseRecorder{answer(http.MethodPost, "/metrics"), answer(http.MethodGet, "/")} {
		if refused.Code != http.StatusNotFound {
			t.Error(refused.Code)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d.Run(ctx) // it ends
}

// TestDaemonLog says of a bundle nothing that it does not have.
func TestDaemonLog(t *testing.T) {
	w := newWorld(t, secret.LayoutExported)
	var out bytes.Buffer
	d := &Daemon{Rotator: w.rotator(), Log: slog.New(slog.NewTextHandler(&out, nil)), Targets: func(context.Context) ([]Target, error) {
		return []Target{w.target}, nil
	}}
	d.round(t.Context(), map[string]*retry{})
	w.authority.down = errors.New("the server is away")
	d.round(t.Context(), map[string]*retry{})
	says(t, out.String(), "service=orders", "serial="+w.currentSerial(), "secret=shop/bundle", "the rotation failed", "msg=rotated")
	for _, zero := range []string{`=""`, "0001-01-01"} {
		if strings.Contains(out.String(), zero) {
			t.Errorf("%s has a value %s", out.String(), zero)
		}
	}
}

// FuzzRecord reads what may stand in a store under the record's name.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"format":1}`))
	f.Add([]byte(`{"format":1,"step":"promote","version":"20260101T000000Z-0123456789abcdef","previous":"x"}`))
	f.Add([]byte(`{"format":1,"step":"promote"}`))
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte(`{"format":1,"step":"stage","version":"../../x"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		record, err := parseRecord(text)
		if err == nil && record.Step != "" && secret.CheckVersion(record.Version) != nil {
			t.Errorf("%+v", record)
		}
		_, _ = readCRLs(Trust{CRL: text})
		if request, ok := parsePending(text); ok && (request.CSR == "" || request.Key == "") {
			t.Error("a request of nothing")
		}
	})
}
