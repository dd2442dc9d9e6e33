package lambda_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/aws/internal/awstest/lambdafake"
	"countersign.dev/aws/lambda"
	"countersign.dev/aws/lambda/event"
	"countersign.dev/rotate"
	"countersign.dev/secret"
)

// asFunction makes a process of this test binary a function: what it does is that of its [work].
const asFunction = "COUNTERSIGN_TEST_FUNCTION"

func TestMain(m *testing.M) {
	if mode := os.Getenv(asFunction); mode != "" {
		if !lambda.Wanted(os.Args[0]) {
			fmt.Fprintln(os.Stderr, "this process is not started as a function")
			os.Exit(2)
		}
		if mode == "refuse" {
			if err := lambda.Refuse(context.Background(), errors.New("mesh.yaml:3:1: it is no specification")); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
			os.Exit(1)
		}
		w := &work{directory: mode}
		lambda.Serve(context.Background(), &lambda.Handler{Work: w, Steps: w})
	}
	os.Exit(m.Run())
}

// work writes into a directory what it was asked, and has there what it has still to do: one file for each service.
type work struct {
	directory string
	asked     []string
	report    lambda.Report
	err       error
	done      bool
	begun     error
}

func (w *work) note(format string, args ...any) error {
	w.asked = append(w.asked, fmt.Sprintf(format, args...))
	return w.err
}

// RotateDue takes a moment for each service, and ends with its context between two.
func (w *work) RotateDue(ctx context.Context, patient bool) (lambda.Report, error) {
	err := w.note("%s", map[bool]string{true: "due", false: "due, by hand"}[patient])
	if w.directory == "" {
		return w.report, err
	}
	files, err := filepath.Glob(filepath.Join(w.directory, "*.due"))
	if err != nil {
		return lambda.Report{}, err
	}
	var names []string
	var results []rotate.Result
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".due")
		names = append(names, name)
		if ctx.Err() != nil {
			continue
		}
		if strings.HasPrefix(name, "crash") {
			_ = os.Remove(file)
			os.Exit(3)
		}
		if strings.HasPrefix(name, "hang") {
			_ = os.Remove(file)
			select {}
		}
		result := rotate.Result{Service: name, Outcome: rotate.Rotated}
		if strings.HasPrefix(name, "slow") {
			<-ctx.Done()
		}
		if strings.HasPrefix(name, "bad") {
			result.Outcome, result.Err, result.Error = rotate.Failed, rotate.ErrUnfit, "at the step verify: unfit"
		}
		if err := os.Remove(file); err != nil {
			return lambda.Report{}, err
		}
		results = append(results, result)
	}
	return lambda.ReportOf(names, results), nil
}

func (w *work) ApproachingExpiration(_ context.Context, certificate string) (lambda.Report, error) {
	return w.report, w.note("approaching %s", certificate)
}

func (w *work) Renewed(_ context.Context, certificate string) (lambda.Report, error) {
	return w.report, w.note("renewed %s", certificate)
}

func (w *work) Begun(context.Context, string, string) (bool, error) { return w.done, w.begun }

func (w *work) Create(_ context.Context, secret, version string) error {
	return w.note("create %s %s", secret, version)
}

func (w *work) Test(_ context.Context, secret, version string) error {
	return w.note("test %s %s", secret, version)
}

func (w *work) Finish(_ context.Context, secret, version string) error {
	return w.note("finish %s %s", secret, version)
}

func fixture(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("event", "testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

const (
	certificate = "arn:aws:acm:eu-central-1:123456789012:certificate/61f50cd4-45b9-4259-b049-d0a53682fa4b"
	onSecret    = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/checkout-AbCdEf c8a55f1e-6c1e-4a3b-9a37-4b8a8a7d9f10"
)

func TestEachEventHasItsWork(t *testing.T) {
	const secretARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:payments/checkout-AbCdEf"
	rotated := lambda.Report{Rotated: []string{secretARN}, Nothing: []string{}, Unfinished: []string{}, Waiting: []lambda.Failure{}, Failed: []lambda.Failure{}}
	nothing := lambda.Report{Rotated: []string{}, Nothing: []string{secretARN}, Unfinished: []string{}, Waiting: []lambda.Failure{}, Failed: []lambda.Failure{}}
	own := lambda.Report{Rotated: []string{"checkout"}, Nothing: []string{}, Unfinished: []string{"ledger"}, Waiting: []lambda.Failure{}, Failed: []lambda.Failure{}}
	tests := map[string]struct {
		asked []string
		want  lambda.Report
	}{
		"schedule":    {[]string{"due"}, own},
		"scheduler":   {[]string{"due"}, own},
		"approaching": {[]string{"approaching " + certificate}, own},
		"renewed":     {[]string{"renewed " + certificate}, own},
		"issued":      {nil, lambda.Report{Rotated: []string{}, Nothing: []string{"*.payments.internal"}, Unfinished: []string{}, Waiting: []lambda.Failure{}, Failed: []lambda.Failure{}}},
		"create":      {[]string{"create " + onSecret}, rotated},
		"set":         {nil, nothing},
		"test":        {[]string{"test " + onSecret}, rotated},
		"finish":      {[]string{"finish " + onSecret}, rotated},
	}
	for name, test := range tests {
		w := &work{report: lambda.Report{Rotated: []string{"checkout"}, Unfinished: []string{"ledger"}}}
		measured := 0
		h := &lambda.Handler{Work: w, Steps: w, Measure: func(context.Context) error { measured++; return nil }}
		got, err := h.Handle(t.Context(), fixture(t, name))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(test.want, *got); diff != "" {
			t.Errorf("%s: the answer (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(test.asked, w.asked); diff != "" {
			t.Errorf("%s: the work (-want +got):\n%s", name, diff)
		}
		if measured != 1 {
			t.Errorf("%s: it was measured %d times", name, measured)
		}
		w.done = true
		if got, err = h.Handle(t.Context(), fixture(t, name)); err != nil || (len(name) < 7 && name != "issued" && len(got.Nothing) != 1) {
			t.Errorf("%s, done before: %+v, %v", name, got, err)
		}
	}
}

func TestInvocationFailsOnlyForFailures(t *testing.T) {
	failed := errors.New("it is not to be")
	var lines bytes.Buffer
	log := slog.New(slog.NewJSONHandler(&lines, nil))
	handle := func(w *work, steps lambda.Steps, data []byte) error {
		_, err := (&lambda.Handler{Work: w, Steps: steps, Log: log, Measure: func(context.Context) error { return failed }}).Handle(t.Context(), data)
		return err
	}
	if err := handle(&work{report: lambda.Report{Unfinished: []string{"checkout"}}}, nil, fixture(t, "schedule")); err != nil {
		t.Errorf("what is unfinished fails it: %v", err)
	}
	if !strings.Contains(lines.String(), "metrics not published") {
		t.Errorf("the log says %s", &lines)
	}
	lines.Reset()
	err := handle(&work{report: lambda.Report{Failed: []lambda.Failure{{Service: "checkout", Error: "unfit"}}}}, nil, fixture(t, "schedule"))
	if !errors.Is(err, lambda.ErrFailed) || !strings.Contains(err.Error(), "checkout: unfit") || !strings.Contains(lines.String(), `"service":"checkout"`) {
		t.Errorf("%v, and the log says %s", err, &lines)
	}
	if err := handle(&work{err: failed}, nil, fixture(t, "renewed")); !errors.Is(err, failed) {
		t.Errorf("what could not be begun: %v", err)
	}
	if err := handle(&work{}, nil, []byte(`{}`)); !errors.Is(err, event.ErrEvent) {
		t.Errorf("no event: %v", err)
	}
	if err := handle(&work{}, nil, fixture(t, "create")); !errors.Is(err, lambda.ErrNotSet) {
		t.Errorf("a step that nobody does: %v", err)
	}
	w := &work{begun: failed}
	if err := handle(w, w, fixture(t, "finish")); !errors.Is(err, failed) || len(w.asked) > 0 {
		t.Errorf("a rotation that was not begun: %v, %v", err, w.asked)
	}
	w = &work{err: failed}
	if err := handle(w, w, fixture(t, "test")); !errors.Is(err, failed) || !strings.Contains(err.Error(), "testSecret of arn:") {
		t.Errorf("a step that fails: %v", err)
	}
	again := time.Date(2027, 3, 1, 4, 0, 0, 0, time.UTC)
	lines.Reset()
	if err := handle(&work{report: lambda.Report{Waiting: []lambda.Failure{{Service: "checkout", Error: "denied", Again: again}}}}, nil, fixture(t, "schedule")); err != nil {
		t.Errorf("what waits fails it: %v", err)
	}
	if !strings.Contains(lines.String(), `"level":"WARN"`) || !strings.Contains(lines.String(), `"again":"2027-03-01T04:00:00Z"`) || !strings.Contains(lines.String(), `"error":"denied"`) {
		t.Errorf("of what waits the log says %s", &lines)
	}
	err = handle(&work{report: lambda.Report{Failed: []lambda.Failure{{Service: "checkout", Error: "denied", Again: again}}}}, nil, fixture(t, "schedule"))
	if err == nil || !strings.Contains(err.Error(), "tries it again after 2027-03-01T04:00:00Z, and an event without an id at once") {
		t.Errorf("what fails and is to wait: %v", err)
	}
	w = &work{}
	if err := handle(w, nil, []byte(`{"source": "aws.events", "detail-type": "Scheduled Event"}`)); err != nil || !slices.Equal(w.asked, []string{"due, by hand"}) {
		t.Errorf("an event that somebody has written: %v, %v", w.asked, err)
	}
	many := lambda.Report{}
	for i := range 200 {
		many.Failed = append(many.Failed, lambda.Failure{Service: fmt.Sprint("service-", i), Error: strings.Repeat("x", 100)})
	}
	if err := handle(&work{report: many}, nil, fixture(t, "schedule")); err == nil || len(err.Error()) > 5000 || !strings.Contains(err.Error(), " more") {
		t.Errorf("%d bytes: %.100v", len(fmt.Sprint(err)), err)
	}
}

func TestReportOf(t *testing.T) {
	result := func(service string, outcome rotate.Outcome, err error) rotate.Result {
		r := rotate.Result{Service: service, Secret: "s/" + service, Outcome: outcome, Err: err}
		if err != nil {
			r.Error = "at the step look: " + err.Error()
		}
		return r
	}
	again := time.Date(2027, 3, 1, 4, 0, 0, 0, time.UTC)
	got := lambda.ReportOf([]string{"w", "x", "a", "b", "c", "d", "e", "f", "g", "h", "i"}, []rotate.Result{
		result("a", rotate.Rotated, nil), result("b", rotate.Promoted, nil), result("c", rotate.Nothing, nil),
		result("d", rotate.Failed, fmt.Errorf("x: %w", rotate.ErrStopped)), result("e", rotate.Failed, &secret.HeldError{Name: "e"}),
		result("f", rotate.Lost, &secret.ReplacedError{}), result("g", rotate.Failed, rotate.ErrUnfit), result("h", rotate.RolledBack, rotate.ErrNotServed),
		{Secret: "bundle", Outcome: rotate.Nothing},
		{Service: "w", Outcome: rotate.Waiting, LastError: "denied", Next: again},
		{Service: "x", Outcome: rotate.Failed, Err: rotate.ErrUnfit, Error: "unfit", Next: again},
	})
	want := lambda.Report{
		Rotated: []string{"a", "b"}, Nothing: []string{"c", "bundle"}, Unfinished: []string{"d", "e", "f", "i"},
		Failed:  []lambda.Failure{{Service: "g", Error: "at the step look: " + rotate.ErrUnfit.Error()}, {Service: "h", Error: "at the step look: " + rotate.ErrNotServed.Error()}, {Service: "x", Error: "unfit", Again: again}},
		Waiting: []lambda.Failure{{Service: "w", Error: "denied", Again: again}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the report (-want +got):\n%s", diff)
	}
}

// function is this test binary as a function with something to do.
func function(t *testing.T, services ...string) *lambdafake.Function {
	t.Helper()
	directory := t.TempDir()
	for _, service := range services {
		if err := os.WriteFile(filepath.Join(directory, service+".due"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return lambdafake.New(t, func(ctx context.Context) *exec.Cmd {
		command := exec.CommandContext(ctx, self)
		command.Args[0] = "/var/task/bootstrap"
		command.Env = append(os.Environ(), asFunction+"="+directory)
		command.Stderr = os.Stderr
		return command
	})
}

func answered(t *testing.T, payload []byte, err error) lambda.Report {
	t.Helper()
	var report lambda.Report
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(payload, &report); err != nil {
		t.Fatalf("%v: %s", err, payload)
	}
	return report
}

func TestFunction(t *testing.T) {
	f := function(t, "a", "b")
	payload, err := f.Invoke(fixture(t, "schedule"), time.Minute)
	if want := `{"rotated":["a","b"],"nothing":[],"unfinished":[],"waiting":[],"failed":[]}`; err != nil || string(payload) != want {
		t.Errorf("%s, %v; want %s", payload, err, want)
	}
	payload, err = f.Invoke(fixture(t, "create"), time.Minute)
	if report := answered(t, payload, err); len(report.Rotated) != 1 {
		t.Errorf("%s", payload)
	}
	_, err = f.Invoke([]byte(`{"detail-type":"EC2 Instance State-change Notification","source":"aws.ec2"}`), time.Minute)
	if told, ok := errors.AsType[*lambdafake.FunctionError](err); !ok || !strings.Contains(told.Message, "narrow the rule") {
		t.Errorf("%v", err)
	}
	if f.Starts() != 1 {
		t.Errorf("%d processes were needed", f.Starts())
	}
}

func TestFailureIsAnErrorOfTheFunction(t *testing.T) {
	f := function(t, "a", "bad")
	_, err := f.Invoke(fixture(t, "schedule"), time.Minute)
	told, ok := errors.AsType[*lambdafake.FunctionError](err)
	if !ok || !strings.Contains(told.Message, "bad: at the step verify: unfit (rotated: 1") {
		t.Errorf("%v", err)
	}
	payload, err := f.Invoke(fixture(t, "schedule"), time.Minute)
	if report := answered(t, payload, err); len(report.Failed) != 0 {
		t.Errorf("%s", payload)
	}
}

// What the time does not suffice for is continued by the next invocation: whether the function stops by itself, or is killed.
func TestDeadline(t *testing.T) {
	f := function(t, "a", "slow", "z")
	payload, err := f.Invoke(fixture(t, "schedule"), 2*time.Second)
	if diff := cmp.Diff(lambda.Report{Rotated: []string{"a", "slow"}, Nothing: []string{}, Unfinished: []string{"z"}, Waiting: []lambda.Failure{}, Failed: []lambda.Failure{}}, answered(t, payload, err)); diff != "" {
		t.Errorf("the first answer (-want +got):\n%s", diff)
	}
	payload, err = f.Invoke(fixture(t, "schedule"), time.Minute)
	if report := answered(t, payload, err); len(report.Rotated) != 1 || report.Rotated[0] != "z" {
		t.Errorf("the second answer: %s", payload)
	}
	f = function(t, "a", "hang", "z")
	if _, err := f.Invoke(fixture(t, "schedule"), time.Second); !errors.Is(err, lambdafake.ErrTimedOut) {
		t.Errorf("a function that hangs: %v", err)
	}
	payload, err = f.Invoke(fixture(t, "schedule"), time.Minute)
	if report := answered(t, payload, err); len(report.Rotated) != 1 || f.Starts() != 2 {
		t.Errorf("the next: %s, by process %d", payload, f.Starts())
	}
	f = function(t, "a", "crash", "z")
	if _, err := f.Invoke(fixture(t, "schedule"), time.Minute); !errors.Is(err, lambdafake.ErrExited) {
		t.Errorf("a function that ends: %v", err)
	}
	payload, err = f.Invoke(fixture(t, "schedule"), time.Minute)
	if report := answered(t, payload, err); len(report.Rotated) != 1 {
		t.Errorf("the next: %s", payload)
	}
}

// A function that cannot be made says why to whoever invokes it.
func TestRefuse(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f := lambdafake.New(t, func(ctx context.Context) *exec.Cmd {
		command := exec.CommandContext(ctx, self)
		command.Args[0] = "/var/task/bootstrap"
		command.Env = append(os.Environ(), asFunction+"=refuse")
		command.Stderr = os.Stderr
		return command
	})
	_, err = f.Invoke(fixture(t, "schedule"), time.Minute)
	if told, ok := errors.AsType[*lambdafake.FunctionError](err); !ok || told.Message != "mesh.yaml:3:1: it is no specification" || told.Type != "Runtime.ConfigInvalid" {
		t.Errorf("%v", err)
	}
	told := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // what is missing is seen below
		told = string(body)
		w.WriteHeader(http.StatusAccepted)
	}))
	defer server.Close()
	t.Setenv("AWS_LAMBDA_RUNTIME_API", strings.TrimPrefix(server.URL, "http://"))
	if err := lambda.Refuse(t.Context(), errors.New("begins "+strings.Repeat("\u00e9", 100_000))); err != nil || len(told) > 5000 || !strings.Contains(told, "begins ") || !utf8.ValidString(told) {
		t.Errorf("of a long reason %d bytes are told, %v", len(told), err)
	}
	t.Setenv("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:1")
	if err := lambda.Refuse(t.Context(), errors.New("x")); err == nil {
		t.Error("nobody was told")
	}
}

func TestWanted(t *testing.T) {
	t.Setenv("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:1")
	if !lambda.Wanted("/var/task/bootstrap") || !lambda.Wanted("bootstrap") || lambda.Wanted("/usr/bin/countersign") {
		t.Error("by the program's name")
	}
	t.Setenv("AWS_LAMBDA_RUNTIME_API", "")
	if lambda.Wanted("/var/task/bootstrap") {
		t.Error("without a Runtime API")
	}
}

// deaf is work that whoever it asks does not answer: a step, then what is given back, then the metrics.
type deaf struct {
	work
	all, metrics time.Time
}

func (d *deaf) RotateDue(ctx context.Context, _ bool) (lambda.Report, error) {
	<-ctx.Done()
	last, cancel := rotate.Detached(ctx, time.Hour)
	defer cancel()
	<-last.Done()
	d.all = time.Now()
	return lambda.ReportOf([]string{"orders"}, []rotate.Result{{Service: "orders", Outcome: rotate.Failed, Err: context.DeadlineExceeded}}), nil
}

// TestDeaf answers by itself before Lambda would end the function, also when nobody answers it until then.
func TestDeaf(t *testing.T) {
	for _, timeout := range []time.Duration{15 * time.Minute, 8 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			d := &deaf{}
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			h := &lambda.Handler{Work: d, Log: slog.New(slog.DiscardHandler), Measure: func(ctx context.Context) error {
				<-ctx.Done()
				d.metrics = time.Now()
				return ctx.Err()
			}}
			report, err := h.Handle(ctx, json.RawMessage(`{"source": "aws.events", "detail-type": "Scheduled Event"}`))
			if err != nil || len(report.Unfinished) != 1 || len(report.Failed) != 0 {
				t.Errorf("%+v, %v", report, err)
			}
			deadline, _ := ctx.Deadline()
			if ctx.Err() != nil || !d.all.Before(d.metrics) || !d.metrics.Before(deadline) {
				t.Errorf("%s: all ended %s, and the metrics %s before the deadline", timeout, deadline.Sub(d.all), deadline.Sub(d.metrics))
			}
		})
	}
}
