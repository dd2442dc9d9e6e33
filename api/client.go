package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"countersign.dev/mesh"
)

// ErrNoServer says that nothing answers on the administrator's socket.
var ErrNoServer = errors.New("no server answers")

// maxAnswer bounds what [Admin] reads into memory: the documents of a large mesh, and then some.
const maxAnswer = 64 << 20

// patience is for how long a server may say nothing.
const patience = 15 * time.Second

// silence is the error of a server that holds its socket and says nothing: it was stopped, or has too much to do.
// It is an [ErrNoServer].
type silence struct {
	socket   string
	patience time.Duration
}

func (s *silence) Error() string {
	return fmt.Sprintf("the server does not answer within %s (socket %s); is it stopped or overloaded?", s.patience, s.socket)
}

func (s *silence) Unwrap() error { return ErrNoServer }

// Admin speaks to a server over the administrator's UNIX socket. It may be used by many goroutines.
// An answer of the server that is not a success is returned as an [*Error]. A server that says nothing for 15 s is
// not waited for: the error is an [ErrNoServer] then. What rightly takes longer is waited for as long as the server
// answers another question meanwhile.
type Admin struct {
	socket   string
	client   *http.Client
	patience time.Duration
}

// NewAdmin makes a client for the socket at that path. It does not connect yet.
func NewAdmin(socket string) *Admin {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		// An administrator asks a question now and then; a kept connection would only hold up the
		// server's end.
		DisableKeepAlives: true,
	}
	return &Admin{socket: socket, client: &http.Client{Transport: transport}, patience: patience}
}

// Status lists the instances, and the declared workloads that have none (with an empty Instance).
func (a *Admin) Status(ctx context.Context) ([]Status, error) {
	return call[[]Status](ctx, a, http.MethodGet, PathStatus, nil)
}

// Mesh gives the running specification.
func (a *Admin) Mesh(ctx context.Context) (*MeshResponse, error) {
	return call[*MeshResponse](ctx, a, http.MethodGet, PathMesh, nil)
}

// Apply replaces the running specification, or says with DryRun what that would change.
func (a *Admin) Apply(ctx context.Context, request ApplyRequest) (*ApplyResponse, error) {
	return call[*ApplyResponse](ctx, a, http.MethodPost, PathApply, request)
}

// Confirmed waits until every connected instance has a revision in force, at most for timeout, and
// says who has and who has not.
func (a *Admin) Confirmed(ctx context.Context, revision uint64, timeout time.Duration) (*Confirmation, error) {
	query := url.Values{"revision": {strconv.FormatUint(revision, 10)}, "timeout": {timeout.String()}}
	return call[*Confirmation](ctx, a, http.MethodGet, PathConfirmed+"?"+query.Encode(), nil)
}

// CreateToken makes a join token for a workload.
func (a *Admin) CreateToken(ctx context.Context, request TokenRequest) (*TokenResponse, error) {
	return call[*TokenResponse](ctx, a, http.MethodPost, PathTokens, request)
}

// Probe obtains a certificate of spiffe://TRUST-DOMAIN/probe/verify for a PEM certificate request.
// A ttl of 0 is the server's default.
func (a *Admin) Probe(ctx context.Context, csr string, ttl time.Duration) (*Credentials, error) {
	return call[*Credentials](ctx, a, http.MethodPost, PathProbe, ProbeRequest{CSR: csr, TTL: mesh.Duration(ttl)})
}

// Endpoints lists the live instances with what they listen on.
func (a *Admin) Endpoints(ctx context.Context) ([]Instance, error) {
	return call[[]Instance](ctx, a, http.MethodGet, PathEndpoints, nil)
}

// CA describes the certificate authority.
func (a *Admin) CA(ctx context.Context) (*CAResponse, error) {
	return call[*CAResponse](ctx, a, http.MethodGet, PathCA, nil)
}

// Rotation says how far the change of the CA's root has come; with check, who stands in the way of the
// next step, which takes connections to every endpoint.
func (a *Admin) Rotation(ctx context.Context, check bool) (*Rotation, error) {
	return call[*Rotation](ctx, a, http.MethodGet, PathRotation+"?check="+strconv.FormatBool(check), nil)
}

// Rotate takes one step in the change of the CA's root.
func (a *Admin) Rotate(ctx context.Context, request RotationRequest) (*Rotation, error) {
	return call[*Rotation](ctx, a, http.MethodPost, PathRotation, request)
}

// Issue obtains a workload's certificate by the administrator's word.
func (a *Admin) Issue(ctx context.Context, request IssueRequest) (*Credentials, error) {
	return call[*Credentials](ctx, a, http.MethodPost, PathIssue, request)
}

// Certificates lists what the CA has issued, newest first.
func (a *Admin) Certificates(ctx context.Context) ([]CertificateRecord, error) {
	return call[[]CertificateRecord](ctx, a, http.MethodGet, PathCertificates, nil)
}

// Journal writes the journal to w, in the form that journal.Extract reads.
func (a *Admin) Journal(ctx context.Context, w io.Writer) error {
	response, err := a.do(ctx, http.MethodGet, PathJournal, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(w, response.Body); err != nil {
		return fmt.Errorf("receive the journal: %w", err)
	}
	return nil
}

// call does one exchange of JSON.
func call[T any](ctx context.Context, a *Admin, method, path string, body any) (T, error) {
	var answer T
	response, err := a.do(ctx, method, path, body)
	if err != nil {
		return answer, err
	}
	defer response.Body.Close()
	if err := json.NewDecoder(io.LimitReader(response.Body, maxAnswer)).Decode(&answer); err != nil {
		return answer, fmt.Errorf("read the server's answer to %s %s: %w", method, path, err)
	}
	return answer, nil
}

// lasting tells whether an answer may rightly take longer than a server is to be silent: what changes something, what
// waits for others or looks at them, and what is as long as the server is old.
func lasting(method, path string) bool {
	return method != http.MethodGet || strings.HasPrefix(path, PathConfirmed) || strings.HasPrefix(path, PathRotation+"?check=true") ||
		path == PathJournal || path == PathCertificates
}

// bounded gives the context of a question, which ends when the server is silent, and what to call in the end.
func (a *Admin) bounded(ctx context.Context, lasting bool) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	if lasting {
		go a.watch(ctx, cancel)
		return ctx, func() { cancel(nil) }
	}
	timer := time.AfterFunc(a.patience, func() { cancel(&silence{a.socket, a.patience}) })
	return ctx, func() {
		timer.Stop()
		cancel(nil)
	}
}

// watch asks the server something small now and then, and gives up what waits for it when that is not answered.
func (a *Admin) watch(ctx context.Context, giveUp context.CancelCauseFunc) {
	for pause := min(time.Second, a.patience); ; pause = a.patience {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		_, err := a.CA(ctx)
		if silent, ok := errors.AsType[*silence](err); ok {
			giveUp(silent)
			return
		}
	}
}

// answer is the body of an answer: reading ends when the server is silent, and closing ends the watch.
type answer struct {
	io.ReadCloser
	ctx  context.Context //nolint:containedctx // that of the one question that this answers
	stop func()
}

func (b *answer) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if silent, ok := errors.AsType[*silence](context.Cause(b.ctx)); ok && err != nil && err != io.EOF {
		return n, silent
	}
	return n, err
}

func (b *answer) Close() error {
	defer b.stop()
	return b.ReadCloser.Close()
}

// do sends a request and turns an answer that is no success into an [*Error].
func (a *Admin) do(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var reader io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("write the request %s %s: %w", method, path, err)
		}
		reader = bytes.NewReader(text)
	}
	ctx, stop := a.bounded(ctx, lasting(method, path))
	request, err := http.NewRequestWithContext(ctx, method, "http://countersign"+path, reader)
	if err != nil {
		stop()
		return nil, fmt.Errorf("make the request %s %s: %w", method, path, err)
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := a.client.Do(request)
	if err != nil {
		defer stop()
		if silent, ok := errors.AsType[*silence](context.Cause(ctx)); ok {
			return nil, silent
		}
		var dial *net.OpError
		if errors.As(err, &dial) && dial.Op == "dial" {
			return nil, fmt.Errorf("%w on %s (%w): is `countersign server` running, and is this its socket?", ErrNoServer, a.socket, dial.Err)
		}
		return nil, fmt.Errorf("ask the server on %s: %w", a.socket, err)
	}
	response.Body = &answer{response.Body, ctx, stop}
	if response.StatusCode/100 != 2 {
		defer response.Body.Close()
		return nil, DecodeError(response)
	}
	return response, nil
}

// DecodeError reads the [*Error] out of an answer that is not 2xx. It does not close the body. An
// answer that holds none, of a machine in between perhaps, becomes an Error of its status.
func DecodeError(response *http.Response) *Error {
	fallback := &Error{Code: CodeInternal, Message: "the server answered " + response.Status}
	if mediaType, _, err := mime.ParseMediaType(response.Header.Get("Content-Type")); err != nil || mediaType != "application/json" {
		return fallback
	}
	var e Error
	if err := json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&e); err != nil || e.Code == "" {
		return fallback
	}
	return &e
}
