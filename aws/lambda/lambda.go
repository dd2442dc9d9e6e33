// Package lambda knows how the program is a Lambda function on provided.al2023: which work each event means, when it has to stop so
// that what it has begun is left whole, and what it answers. What it rotates, and how, is told by its caller.
//
// An invocation fails, and counts in Lambda's metric Errors, only when something failed that will not mend itself by being
// left alone: work that the time did not suffice for, or that another run is at, is continued by the next one.
package lambda

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	runtime "github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-lambda-go/lambdacontext"

	"countersign.dev/aws/lambda/event"
	"countersign.dev/rotate"
)

// How much of an invocation's time is left for what must not be cut off: a step in progress, the lease, the answer.
const (
	maxMargin   = 20 * time.Second
	marginShare = 4 // a quarter of a short time
)

// What the margin is for, as hundredths of it that are left at the end of each: nobody is waited for longer, so that the function
// answers by itself, and Lambda does not have to end it ("Task timed out" counts as an error, and so would wake somebody).
const (
	stepsEnd   = 45 // of a step in progress, which the next run goes on with
	allEnd     = 25 // of what is given back
	measureEnd = 10 // of reading what the metrics tell
)

// ErrFailed says that at least one service failed. The answer of the invocation names them.
var ErrFailed = errors.New("the rotation failed")

// ErrNotSet says that a function is told about an event that it was not set up for.
var ErrNotSet = errors.New("the function was not set up for this event")

// Work is what the function is for. Each ends when its context does, with what is left as unfinished, and gives an error only when
// nothing could be begun; what went wrong with a service stands in its report. All may be called again for what was done.
type Work interface {
	// RotateDue rotates all that is due. Patient leaves alone for a while what failed not long ago: nobody is there who has mended it.
	RotateDue(ctx context.Context, patient bool) (Report, error)
	// ApproachingExpiration renews a certificate of ACM, exports and stores it, and lets it be taken.
	ApproachingExpiration(ctx context.Context, certificate string) (Report, error)
	// Renewed exports, stores and deploys a certificate that ACM has renewed by itself.
	Renewed(ctx context.Context, certificate string) (Report, error)
}

// Steps are those of Secrets Manager's own rotation, on a secret by its ARN and for a version by its id. A step that was done is
// no error.
type Steps interface {
	// Begun makes sure, before each step, that the secret's rotation is enabled and that the version is its pending one. done
	// tells that it is current already.
	Begun(ctx context.Context, secret, version string) (done bool, err error)
	// Create obtains a certificate and stages it under the id, pending.
	Create(ctx context.Context, secret, version string) error
	// Test reads the pending version and checks it.
	Test(ctx context.Context, secret, version string) error
	// Finish makes it current in place of what was, and lets it be taken.
	Finish(ctx context.Context, secret, version string) error
}

// Report is what became of each service, by name, and the answer of an invocation.
type Report struct {
	Rotated []string `json:"rotated"`
	Nothing []string `json:"nothing"`
	// Unfinished is what the next invocation goes on with, or another run is at.
	Unfinished []string `json:"unfinished"`
	// Waiting is what failed before and was not tried now.
	Waiting []Failure `json:"waiting"`
	Failed  []Failure `json:"failed"`
}

// Failure is why a service failed.
type Failure struct {
	Service string `json:"service"`
	Error   string `json:"error"`
	// Again is when a schedule's events try it again; zero when the next one does.
	Again time.Time `json:"again,omitzero"`
}

// String is for people.
func (f Failure) String() string {
	if f.Again.IsZero() {
		return f.Service + ": " + f.Error
	}
	return fmt.Sprintf("%s: %s; the schedule tries it again after %s, and an event without an id at once", f.Service, f.Error, f.Again.Format(time.RFC3339))
}

// Handler answers events. Its fields do not change any more when it serves.
type Handler struct {
	Work Work
	// Steps is nil where Secrets Manager's own rotation is not used.
	Steps Steps
	// Measure publishes metrics after each event that was understood, also when the work failed. Nil publishes none. Its
	// error is logged.
	Measure func(ctx context.Context) error
	// Log gets a line for each event and each service that failed; nil is slog's default.
	Log *slog.Logger
}

// runtimeVariable is where Lambda says its Runtime API is.
const runtimeVariable = "AWS_LAMBDA_RUNTIME_API"

// Wanted tells whether this process is started by Lambda as a function: the program is called bootstrap, and the Runtime API is named.
func Wanted(program string) bool {
	return filepath.Base(program) == "bootstrap" && os.Getenv(runtimeVariable) != ""
}

// Serve asks the Runtime API of AWS_LAMBDA_RUNTIME_API for events and answers them, one at a time. It does not return: when the
// Runtime API is gone, the process ends with status 1, which is how Lambda wants it.
func Serve(ctx context.Context, h *Handler) {
	runtime.StartWithOptions(h.Handle, runtime.WithContext(ctx))
}

// initTimeout is how long telling the Runtime API may take.
const initTimeout = 5 * time.Second

// Refuse tells the Runtime API why the function cannot be made, so that whoever invokes it is told, and not only that a
// process has ended. The process is to end then, with a status that is not 0. Of a long reason the beginning is told.
func Refuse(ctx context.Context, why error) error {
	message := why.Error()
	if len(message) > maxError {
		message = strings.ToValidUTF8(message[:maxError], "") + " [...]"
	}
	body, err := json.Marshal(map[string]any{"errorMessage": message, "errorType": "Runtime.ConfigInvalid", "stackTrace": []string{}})
	if err != nil {
		return fmt.Errorf("telling Lambda why the function cannot be made: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, initTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+os.Getenv(runtimeVariable)+"/2018-06-01/runtime/init/error", bytes.NewReader(body)) //nolint:gosec // Lambda says where
	if err != nil {
		return fmt.Errorf("telling Lambda why the function cannot be made: %w", err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Lambda-Runtime-Function-Error-Type", "Runtime.ConfigInvalid")
	// The Runtime API is on this machine, and no proxy leads there.
	response, err := (&http.Client{Transport: &http.Transport{}}).Do(request) //nolint:gosec // as above
	if err != nil {
		return fmt.Errorf("telling Lambda why the function cannot be made: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusAccepted {
		return fmt.Errorf("telling Lambda why the function cannot be made: the Runtime API answers %s", response.Status)
	}
	return nil
}

// Handle answers one event. The error is [ErrFailed], [event.ErrEvent], [ErrNotSet], or why nothing could be begun.
func (h *Handler) Handle(ctx context.Context, data json.RawMessage) (*Report, error) {
	log := h.Log
	if log == nil {
		log = slog.Default()
	}
	if invocation, ok := lambdacontext.FromContext(ctx); ok {
		log = log.With("request", invocation.AwsRequestID)
	}
	e, err := event.Parse(data)
	if err != nil {
		log.ErrorContext(ctx, "event refused", "error", err)
		return nil, err
	}
	log = log.With("event", e.String())
	within, ctx, cancel := until(ctx)
	defer cancel()
	report, err := h.do(within, e)
	report = report.full()
	for _, failure := range report.Failed {
		log.With(failure.again()...).ErrorContext(ctx, "service failed", "service", failure.Service, "error", failure.Error)
	}
	for _, waiting := range report.Waiting {
		log.With(waiting.again()...).WarnContext(ctx, "service failed before, and is left alone for now; an event without an id tries it at once", "service", waiting.Service, "error", waiting.Error)
	}
	switch {
	case err != nil:
		log.ErrorContext(ctx, "event failed", "error", err)
	default:
		log.InfoContext(ctx, "event done", "rotated", report.Rotated, "nothing", report.Nothing, "unfinished", report.Unfinished, "waiting", len(report.Waiting), "failed", len(report.Failed))
	}
	if h.Measure != nil {
		if err := h.Measure(ctx); err != nil {
			log.WarnContext(ctx, "metrics not published", "error", err)
		}
	}
	if err != nil {
		return nil, err
	}
	return &report, report.err()
}

// until gives the context of the work, which ends a margin before the invocation does and tells rotations when they have to be over,
// and that of what comes after it, which ends a little before it, too.
func until(ctx context.Context) (work, rest context.Context, cancel context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		work, cancel = context.WithCancel(ctx)
		return work, ctx, cancel
	}
	margin := min(maxMargin, time.Until(deadline)/marginShare)
	before := func(hundredths time.Duration) time.Time { return deadline.Add(-margin * hundredths / 100) }
	rest, cancelRest := context.WithDeadline(ctx, before(measureEnd))
	work, cancelWork := context.WithDeadline(rotate.WithEnds(rest, before(stepsEnd), before(allEnd)), before(100))
	return work, rest, func() {
		cancelWork()
		cancelRest()
	}
}

// do does what an event means.
func (h *Handler) do(ctx context.Context, e event.Event) (Report, error) {
	switch e.Kind {
	case event.Schedule:
		return h.Work.RotateDue(ctx, e.ID != "") // EventBridge gives each event an id, and people do not
	case event.Approaching:
		return h.Work.ApproachingExpiration(ctx, e.Certificate)
	case event.Renewed:
		return h.Work.Renewed(ctx, e.Certificate)
	case event.Available:
		return Report{Nothing: []string{e.CommonName}}, nil
	case event.Rotation:
		return h.step(ctx, e)
	}
	return Report{}, fmt.Errorf("%w: the kind %q", event.ErrEvent, e.Kind)
}

// step does a step of Secrets Manager's own rotation.
func (h *Handler) step(ctx context.Context, e event.Event) (Report, error) {
	if h.Steps == nil {
		return Report{}, fmt.Errorf("%w: %s; the schedule rotates this secret, so take the rotation of Secrets Manager away (`aws secretsmanager cancel-rotate-secret`)", ErrNotSet, e)
	}
	done, err := h.Steps.Begun(ctx, e.Secret, e.Token)
	if err != nil {
		return Report{}, fmt.Errorf("%s: %w", e, err)
	}
	if done {
		return Report{Nothing: []string{e.Secret}}, nil
	}
	switch e.Step {
	case event.Create:
		err = h.Steps.Create(ctx, e.Secret, e.Token)
	case event.Set:
		// Nobody has to be told a certificate: who trusts its authority believes it.
		return Report{Nothing: []string{e.Secret}}, nil
	case event.Test:
		err = h.Steps.Test(ctx, e.Secret, e.Token)
	case event.Finish:
		err = h.Steps.Finish(ctx, e.Secret, e.Token)
	}
	if err != nil {
		return Report{}, fmt.Errorf("%s: %w", e, err)
	}
	return Report{Rotated: []string{e.Secret}}, nil
}

// again is what a log says of when it is tried again.
func (f Failure) again() []any {
	if f.Again.IsZero() {
		return nil
	}
	return []any{"again", f.Again}
}

// full is a report whose lists are all there: JSON has [] then, and not null.
func (r Report) full() Report {
	for _, list := range []*[]string{&r.Rotated, &r.Nothing, &r.Unfinished} {
		if *list == nil {
			*list = []string{}
		}
	}
	for _, list := range []*[]Failure{&r.Waiting, &r.Failed} {
		if *list == nil {
			*list = []Failure{}
		}
	}
	return r
}

// maxError bounds the error of an invocation, in bytes.
const maxError = 4 << 10

// err is the error of an invocation: Lambda shows it in place of the answer.
func (r Report) err() error {
	if len(r.Failed) == 0 {
		return nil
	}
	var text strings.Builder
	for i, failure := range r.Failed {
		line := failure.String()
		if text.Len()+len(line) > maxError {
			fmt.Fprintf(&text, "; and %d more", len(r.Failed)-i)
			break
		}
		if i > 0 {
			text.WriteString("; ")
		}
		text.WriteString(line)
	}
	return fmt.Errorf("%w: %s (rotated: %d, unfinished: %d)", ErrFailed, text.String(), len(r.Rotated), len(r.Unfinished))
}
