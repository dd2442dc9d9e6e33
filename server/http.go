package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"time"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/issue"
	"countersign.dev/journal"
	"countersign.dev/mtls"
	"countersign.dev/policy"
)

// Bounds of requests.
const (
	maxBody        = 1 << 20  // on the TLS listener
	maxAdminBody   = 32 << 20 // on the socket: a specification
	requestTimeout = 20 * time.Second
)

// Sentinel errors that a request can end with, beside those of other packages.
var (
	errBadRequest    = errors.New("invalid request")
	errUnauthorized  = errors.New("a client certificate of this mesh is needed")
	errTooLarge      = errors.New("the request is too large")
	errRateLimited   = errors.New("too many refused requests; wait a minute and try again")
	errInvalidSpec   = errors.New("the specification is not valid")
	errFixedTopology = errors.New("the mesh was started by `countersign up`, which cannot change workloads, instances, ports or run; " +
		"stop it and start it with the new specification")
	errOtherKey = errors.New("a certificate was issued for this request id and another key; ask with the key of then, or with another id")
	errShutdown = errors.New("the server is shutting down; try again")
)

// answers maps an error to what a client is told. The first match counts.
var answers = []struct {
	err    error
	status int
	code   string
}{
	{journal.ErrNotRecorded, http.StatusServiceUnavailable, api.CodeNotRecorded},
	{errRevoked, http.StatusForbidden, api.CodeRevoked},
	{ca.ErrCompromised, http.StatusForbidden, api.CodeRevoked},
	{ca.ErrTarget, http.StatusBadRequest, api.CodeBadRequest},
	{ca.ErrUnknownCertificate, http.StatusBadRequest, api.CodeBadRequest},
	{ca.ErrEnded, http.StatusBadRequest, api.CodeBadRequest},
	{ca.ErrIssuingCA, http.StatusBadRequest, api.CodeBadRequest},
	{ErrRootCRL, http.StatusUnprocessableEntity, api.CodeInvalidSpec},
	{errUnknownToken, http.StatusForbidden, api.CodeUnknownToken},
	{errUsedToken, http.StatusForbidden, api.CodeUsedToken},
	{errExpiredToken, http.StatusForbidden, api.CodeExpiredToken},
	{policy.ErrNotDeclared, http.StatusForbidden, api.CodeNotDeclared},
	{policy.ErrNoWorkload, http.StatusForbidden, api.CodeForbidden},
	{issue.ErrWeakKey, http.StatusBadRequest, api.CodeWeakKey},
	{issue.ErrBadCSR, http.StatusBadRequest, api.CodeBadRequest},
	{issue.ErrNameMismatch, http.StatusForbidden, api.CodeNameMismatch},
	{issue.ErrRequest, http.StatusBadRequest, api.CodeBadRequest},
	{mtls.ErrExpired, http.StatusUnauthorized, api.CodeExpiredCert},
	{mtls.ErrUntrusted, http.StatusForbidden, api.CodeForbidden},
	{errUnauthorized, http.StatusUnauthorized, api.CodeUnauthorized},
	{errTooLarge, http.StatusRequestEntityTooLarge, api.CodeTooLarge},
	{errRateLimited, http.StatusTooManyRequests, api.CodeRateLimited},
	{errInvalidSpec, http.StatusUnprocessableEntity, api.CodeInvalidSpec},
	{errFixedTopology, http.StatusUnprocessableEntity, api.CodeFixedTopology},
	{errBadRequest, http.StatusBadRequest, api.CodeBadRequest},
	{errOtherKey, http.StatusConflict, api.CodeConflict},
	{errNotFound, http.StatusNotFound, api.CodeNotFound},
	{errShutdown, http.StatusServiceUnavailable, api.CodeUnavailable},
	{ErrDatabaseLocked, http.StatusServiceUnavailable, api.CodeUnavailable},
	{ErrDatabase, http.StatusServiceUnavailable, api.CodeUnavailable},
	{ca.ErrRotating, http.StatusConflict, api.CodeConflict},
	{ca.ErrNotRotating, http.StatusConflict, api.CodeConflict},
	{ca.ErrShortRoot, http.StatusConflict, api.CodeConflict},
	{ca.ErrWrongKey, http.StatusBadRequest, api.CodeBadRequest},
	{errRootKey, http.StatusBadRequest, api.CodeBadRequest},
	{errBlocked, http.StatusConflict, api.CodeConflict},
	{context.DeadlineExceeded, http.StatusServiceUnavailable, api.CodeUnavailable},
}

// detailed is an error with further lines for the client.
type detailed struct {
	err   error
	lines []string
}

func (d detailed) Error() string { return d.err.Error() }
func (d detailed) Unwrap() error { return d.err }

// answerOf is the status and body for an error. What is not in the table is our own failure, and its
// text stays in the log.
func answerOf(err error) (int, *api.Error) {
	for _, a := range answers {
		if errors.Is(err, a.err) {
			answer := &api.Error{Code: a.code, Message: err.Error()}
			if d, ok := errors.AsType[detailed](err); ok {
				answer.Details = d.lines
			}
			return a.status, answer
		}
	}
	return http.StatusInternalServerError, &api.Error{Code: api.CodeInternal, Message: "the server failed; its log says why"}
}

// endpoint serves one path and method. Everything that all requests have in common happens here:
// the method, the type and size of the body, unknown fields, the deadline, the answer's form, and
// what an error becomes.
func endpoint[Request, Response any](s *Server, method string, limit int64, f func(*http.Request, Request) (Response, error)) http.Handler {
	return s.guard(method, func(w http.ResponseWriter, r *http.Request) error {
		var request Request
		if method == http.MethodPost {
			if err := decode(w, r, limit, &request); err != nil {
				return err
			}
		}
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		response, err := f(r.WithContext(ctx), request)
		if err != nil {
			return err
		}
		return writeJSON(w, http.StatusOK, response)
	})
}

// guard is endpoint for handlers that write their answer by themselves; they return an error only
// when they have written nothing. An empty method takes all of them.
func (s *Server) guard(method string, f func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer s.recovered(w, r)
		if method != "" && r.Method != method {
			w.Header().Set("Allow", method)
			s.refuse(w, r, http.StatusMethodNotAllowed, &api.Error{Code: api.CodeBadRequest, Message: fmt.Sprintf("%s takes %s", r.URL.Path, method)}, nil)
			return
		}
		if err := f(w, r); err != nil {
			status, answer := answerOf(err)
			s.refuse(w, r, status, answer, err)
		}
	})
}

// refuse answers with an error and logs it. Errors hold no secret, by the rules of this package.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, status int, answer *api.Error, cause error) {
	level := slog.LevelInfo
	switch {
	case status >= http.StatusInternalServerError:
		level = slog.LevelError
	case status == http.StatusUnauthorized, status == http.StatusNotFound, status == http.StatusTooManyRequests:
		level = slog.LevelDebug // what anybody can bring about as often as he likes
	}
	s.log.LogAttrs(r.Context(), level, "request refused", slog.String("path", r.URL.Path), slog.String("remote", r.RemoteAddr),
		slog.Int("status", status), slog.String("code", answer.Code), slog.Any("error", cause))
	if err := writeJSON(w, status, answer); err != nil {
		s.log.LogAttrs(r.Context(), slog.LevelDebug, "refusal not delivered", slog.Any("error", err))
	}
}

// recovered answers for a handler that panicked: one mistake must not end the control plane.
func (s *Server) recovered(w http.ResponseWriter, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if p == http.ErrAbortHandler { //nolint:errorlint // a panic's value is compared, not an error chain
		panic(p) // the way to end an answer that has begun
	}
	status, answer := answerOf(fmt.Errorf("panic: %v", p))
	s.refuse(w, r, status, answer, fmt.Errorf("panic in a handler: %v", p))
}

// decode reads a body of one JSON text with no unknown field.
func decode(w http.ResponseWriter, r *http.Request, limit int64, into any) error {
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || mediaType != "application/json" {
		return fmt.Errorf("%w: the content type is %q, and application/json is wanted", errBadRequest, r.Header.Get("Content-Type"))
	}
	// A body that trickles in holds a goroutine no longer than this.
	control := http.NewResponseController(w)
	if err := control.SetReadDeadline(time.Now().Add(requestTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("set a deadline: %w", err)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return fmt.Errorf("%w: at most %d bytes are read", errTooLarge, limit)
	}
	if err != nil {
		return fmt.Errorf("%w: the body cannot be read: %w", errBadRequest, err)
	}
	return decodeJSON(body, into)
}

// decodeJSON reads one JSON text with no unknown field. Its errors never quote the text: it may hold
// a token.
func decodeJSON(text []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return fmt.Errorf("%w: %s", errBadRequest, describeJSON(err))
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: something follows the JSON text", errBadRequest)
	}
	return nil
}

// describeJSON says what is wrong with a JSON text without quoting its values.
func describeJSON(err error) string {
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Sprintf("the body is not JSON (at byte %d)", e.Offset)
	}
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		if e.Field == "" {
			return "the body is not a JSON object"
		}
		return fmt.Sprintf("the field %q has the wrong type: it holds a JSON %s", e.Field, e.Value)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "the body ends too early"
	}
	if text := err.Error(); len(text) < 200 && bytes.HasPrefix([]byte(text), []byte("json: unknown field ")) {
		return text[len("json: "):]
	}
	return "the body does not have the expected form"
}

// writeJSON writes an answer.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	if _, err := w.Write(append(body, '\n')); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	return nil
}
