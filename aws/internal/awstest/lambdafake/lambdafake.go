// Package lambdafake is the Runtime API of AWS Lambda for tests, as its documentation describes it (version 2018-06-01): a function that
// is started as a process asks it for events and answers them. It does with a function what Lambda does: one event at a
// time, an end to the process when the time is over, and another process for the next event.
package lambdafake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const prefix = "/2018-06-01/runtime/"

// maxPayload is the most that an event or an answer has, in bytes.
const maxPayload = 6 << 20

// functionARN is who is invoked.
const functionARN = "arn:aws:lambda:eu-central-1:123456789012:function:countersign-rotation"

// Errors of an invocation, as Lambda reports them.
var (
	// ErrTimedOut says that the function's time was over, and that its process was killed.
	ErrTimedOut = errors.New("task timed out")
	// ErrExited says that the process ended before it had answered.
	ErrExited = errors.New("runtime exited without providing a reason")
)

// FunctionError is what a function gave as its error.
type FunctionError struct {
	Message string `json:"errorMessage"`
	Type    string `json:"errorType"`
}

// Error is the message with its type.
func (e *FunctionError) Error() string { return e.Type + ": " + e.Message }

// Function is one function: a program that is started when an event comes, and serves until it ends. Invoke may be called by
// several goroutines, which wait for one another.
type Function struct {
	t       testing.TB
	server  *httptest.Server
	command func(ctx context.Context) *exec.Cmd
	pending chan invocation // what the process is given when it asks; one at most

	turn sync.Mutex // held by the one who invokes
	seq  int

	mu      sync.Mutex
	current *invocation // what it has, and did not answer yet
	running *exec.Cmd
	exited  chan struct{}
	starts  int
}

type invocation struct {
	id       string
	event    []byte
	deadline time.Time
	answer   chan answer
}

type answer struct {
	payload []byte
	err     error
}

// New makes a function. command makes the process, without starting it: its environment is completed by what Lambda gives to a function, and
// the first of its arguments is to end in bootstrap. All ends with the test.
func New(t testing.TB, command func(ctx context.Context) *exec.Cmd) *Function {
	t.Helper()
	f := &Function{t: t, command: command, pending: make(chan invocation, 1)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+prefix+"invocation/next", f.next)
	mux.HandleFunc("POST "+prefix+"invocation/{id}/response", f.response)
	mux.HandleFunc("POST "+prefix+"invocation/{id}/error", f.failure)
	mux.HandleFunc("POST "+prefix+"init/error", f.initError)
	f.server = httptest.NewServer(mux)
	t.Cleanup(func() {
		f.kill()
		f.server.CloseClientConnections()
		f.server.Close()
	})
	return f
}

// Starts is how many processes there were.
func (f *Function) Starts() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.starts
}

// Invoke lets the function answer an event within a time. The error is a [*FunctionError], [ErrTimedOut] or [ErrExited].
func (f *Function) Invoke(event []byte, timeout time.Duration) ([]byte, error) {
	f.t.Helper()
	f.turn.Lock()
	defer f.turn.Unlock()
	f.seq++
	given := invocation{
		id: fmt.Sprintf("%08d-0000-4000-8000-000000000000", f.seq), event: event, deadline: time.Now().Add(timeout), answer: make(chan answer, 1),
	}
	exited, err := f.start()
	if err != nil {
		return nil, err
	}
	f.pending <- given
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case got := <-given.answer:
		return got.payload, got.err
	case <-exited:
		f.drop()
		select {
		case got := <-given.answer: // it has answered, and ended then
			return got.payload, got.err
		default:
			return nil, ErrExited
		}
	case <-timer.C:
		f.kill()
		f.drop()
		return nil, fmt.Errorf("%w after %s", ErrTimedOut, timeout)
	}
}

// drop forgets what the process was given.
func (f *Function) drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current = nil
	select {
	case <-f.pending:
	default:
	}
}

// start starts the process when there is none.
func (f *Function) start() (<-chan struct{}, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.running != nil {
		select {
		case <-f.exited:
		default:
			return f.exited, nil
		}
	}
	command := f.command(context.Background())
	command.Env = append(command.Environ(),
		"AWS_LAMBDA_RUNTIME_API="+strings.TrimPrefix(f.server.URL, "http://"),
		"AWS_LAMBDA_FUNCTION_NAME=countersign-rotation", "AWS_LAMBDA_FUNCTION_VERSION=$LATEST", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=256",
		"AWS_LAMBDA_LOG_GROUP_NAME=/aws/lambda/countersign-rotation", "AWS_LAMBDA_LOG_STREAM_NAME=2026/01/01/[$LATEST]0",
		"AWS_LAMBDA_INITIALIZATION_TYPE=on-demand", "AWS_EXECUTION_ENV=AWS_Lambda_provided.al2023", "_HANDLER=bootstrap", "TZ=:UTC",
	)
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("starting the function: %w", err)
	}
	exited := make(chan struct{})
	f.running, f.exited = command, exited
	f.starts++
	go func() {
		_ = command.Wait() // Lambda looks at the answer
		close(exited)
	}()
	return exited, nil
}

// kill ends the process.
func (f *Function) kill() {
	f.mu.Lock()
	command, exited := f.running, f.exited
	f.running = nil
	f.mu.Unlock()
	if command == nil {
		return
	}
	_ = command.Process.Kill() // it may have ended
	<-exited
}

// next gives an event to the process, when there is one.
func (f *Function) next(w http.ResponseWriter, r *http.Request) {
	select {
	case <-r.Context().Done():
	case given := <-f.pending:
		f.mu.Lock()
		f.current = &given
		f.mu.Unlock()
		header := w.Header()
		header.Set("Lambda-Runtime-Aws-Request-Id", given.id)
		header.Set("Lambda-Runtime-Deadline-Ms", strconv.FormatInt(given.deadline.UnixMilli(), 10))
		header.Set("Lambda-Runtime-Invoked-Function-Arn", functionARN)
		header.Set("Lambda-Runtime-Trace-Id", "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=0")
		header.Set("Content-Type", "application/json")
		_, _ = w.Write(given.event) // who has gone asks no more
	}
}

// take ends the invocation with an id.
func (f *Function) take(w http.ResponseWriter, r *http.Request) (*invocation, []byte) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxPayload))
	if err != nil {
		refuse(w, http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", "Exceeded maximum allowed payload size (6291556 bytes).")
		return nil, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	given := f.current
	if given == nil || given.id != r.PathValue("id") {
		refuse(w, http.StatusBadRequest, "InvalidRequestID", "Invalid request ID")
		return nil, nil
	}
	f.current = nil
	return given, body
}

func refuse(w http.ResponseWriter, status int, kind, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(FunctionError{Message: message, Type: kind})
}

func accepted(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusAccepted)
	_, _ = io.WriteString(w, `{"status":"OK"}`+"\n")
}

func (f *Function) response(w http.ResponseWriter, r *http.Request) {
	if given, body := f.take(w, r); given != nil {
		given.answer <- answer{payload: body}
		accepted(w)
	}
}

func (f *Function) failure(w http.ResponseWriter, r *http.Request) {
	if given, body := f.take(w, r); given != nil {
		given.answer <- answer{err: functionError(body)}
		accepted(w)
	}
}

func functionError(body []byte) error {
	told := &FunctionError{}
	if err := json.Unmarshal(body, told); err != nil {
		return fmt.Errorf("the function's error is not what the Runtime API takes: %w", err)
	}
	return told
}

// initError is told when the function could not be set up. Lambda gives the event to nobody then.
func (f *Function) initError(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxPayload))
	if err != nil {
		refuse(w, http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", "")
		return
	}
	// The event that the process was started for may be a moment behind.
	select {
	case <-r.Context().Done():
	case given := <-f.pending:
		given.answer <- answer{err: functionError(body)}
		accepted(w)
	}
}
