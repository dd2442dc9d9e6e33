package up

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"countersign.dev/api"
	"countersign.dev/durable"
)

// maxWord bounds what is said to `up` in bytes: one short JSON text.
const maxWord = 4 << 10

// listener takes words for `up` on a UNIX socket that only its own user can open.
type listener struct {
	server *http.Server
	cancel context.CancelFunc

	mu     sync.Mutex
	closed bool
	done   sync.WaitGroup // of what was begun before it was closed
}

// begin tells whether something may still be begun; done.Done says that it has ended.
func (l *listener) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.done.Add(1)
	}
	return !l.closed
}

// RestartRequest asks `up` to restart an instance: POST [PathRestart] on the socket that the run document
// calls control. The answer comes when the instance is ready again: an empty object, or an [api.Error].
type RestartRequest struct {
	Instance string `json:"instance"`
}

// PathRestart is where a [RestartRequest] goes.
const PathRestart = "/v1/restart"

// listenForWords begins to take words. Closing the listener ends what they began.
func (r *run) listenForWords(ctx context.Context) (*listener, error) {
	if err := removeSocket(r.state.control); err != nil {
		return nil, fmt.Errorf("the control socket: %w", err)
	}
	socket, err := durable.ListenPrivately(r.state.control)
	if err != nil {
		return nil, fmt.Errorf("the control socket: %w", err)
	}
	// Who asked may go away in the middle: the instance is not left half restarted for it.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l := &listener{cancel: cancel}
	mux := http.NewServeMux()
	mux.HandleFunc(PathRestart, func(w http.ResponseWriter, request *http.Request) {
		if !l.begin() {
			answer(w, &api.Error{Code: api.CodeUnavailable, Message: errStopping.Error()})
			return
		}
		defer l.done.Done()
		answer(w, r.takeRestart(work, request))
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, &api.Error{Code: api.CodeNotFound, Message: "there is only POST " + PathRestart + " here"})
	})
	l.server = &http.Server{Handler: mux, ReadTimeout: 10 * time.Second, MaxHeaderBytes: maxWord}
	go func() { _ = l.server.Serve(socket) }() // it ends when it is closed
	return l, nil
}

// removeSocket removes the socket that a killed run has left. The state is this run's alone by now.
func removeSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("there is something at %s that is not a socket; move it away", path)
	}
	return os.Remove(path)
}

// close ends it, and waits until nothing that it began goes on. A nil listener is closed.
func (l *listener) close() {
	if l == nil {
		return
	}
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.cancel()
	_ = l.server.Close() // the socket's file goes with it
	l.done.Wait()
}

// takeRestart does what a request says; the error is an *api.Error.
func (r *run) takeRestart(ctx context.Context, request *http.Request) *api.Error {
	if request.Method != http.MethodPost {
		return &api.Error{Code: api.CodeBadRequest, Message: "POST is the method here"}
	}
	body, err := io.ReadAll(io.LimitReader(request.Body, maxWord+1))
	if err != nil || len(body) > maxWord {
		return &api.Error{Code: api.CodeTooLarge, Message: fmt.Sprintf("the request cannot be read, or has more than %d bytes", maxWord)}
	}
	var wanted RestartRequest
	if err := json.Unmarshal(body, &wanted); err != nil || wanted.Instance == "" {
		return &api.Error{Code: api.CodeBadRequest, Message: `the request is not of the form {"instance":"NAME-1"}`}
	}
	n := slices.IndexFunc(r.all, func(i *instance) bool { return i.name == wanted.Instance })
	if n < 0 {
		return &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("no instance %.80q runs here; the run document lists those that do", wanted.Instance)}
	}
	switch err := r.restart(ctx, r.all[n]); {
	case err == nil:
		return nil
	case errors.Is(err, errRestarting):
		return &api.Error{Code: api.CodeConflict, Message: err.Error()}
	case ctx.Err() != nil:
		return &api.Error{Code: api.CodeUnavailable, Message: fmt.Sprintf("%v: %v", errStopping, err)}
	default:
		r.console.line("%v", err)
		return &api.Error{Code: api.CodeInternal, Message: err.Error()}
	}
}

// statuses are the HTTP statuses of the codes that are used here.
var statuses = map[string]int{
	api.CodeBadRequest: http.StatusBadRequest, api.CodeTooLarge: http.StatusRequestEntityTooLarge, api.CodeNotFound: http.StatusNotFound,
	api.CodeConflict: http.StatusConflict, api.CodeUnavailable: http.StatusServiceUnavailable, api.CodeInternal: http.StatusInternalServerError,
}

// answer writes an empty object, or an error.
func answer(w http.ResponseWriter, refused *api.Error) {
	w.Header().Set("Content-Type", "application/json")
	var body any = struct{}{}
	if refused != nil {
		w.WriteHeader(statuses[refused.Code])
		body = refused
	}
	_ = json.NewEncoder(w).Encode(body) // who asked may have gone
}
