package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"countersign.dev/api"
)

const (
	// requestTimeout bounds everything but the watch, whose end is the heartbeat's absence.
	requestTimeout = 20 * time.Second
	// maxAnswer and maxError bound what is read of an answer in bytes.
	maxAnswer = 1 << 20
	maxError  = 64 << 10
)

// dialFunc makes a connection as net.Dialer.DialContext does.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// client speaks the workload's half of package api. It may be used by many goroutines.
type client struct {
	base *url.URL
	dial dialFunc
	// trust, certificate and now are asked at each handshake.
	trust       func() trust
	certificate func() (*tls.Certificate, error)
	now         func() time.Time
	// observe is told the server's time by the Date of its answers, refusals included.
	observe func(time.Time)

	mu     sync.Mutex
	member *http.Client          // shows the certificate; one connection until renew is called
	conns  map[net.Conn]struct{} // what is open
}

// close ends every connection. net/http would keep one that it thinks busy for a while.
func (c *client) close() {
	c.renew()
	c.mu.Lock()
	open := slices.Collect(maps.Keys(c.conns))
	c.mu.Unlock()
	for _, conn := range open {
		conn.Close()
	}
}

// connect dials and keeps account of what is open.
func (c *client) connect(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := c.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conns == nil {
		c.conns = make(map[net.Conn]struct{})
	}
	kept := &keptConn{Conn: conn, client: c}
	c.conns[kept] = struct{}{}
	return kept, nil
}

// keptConn is a connection that its client knows of until it is closed.
type keptConn struct {
	net.Conn
	client *client
}

func (k *keptConn) Close() error {
	k.client.mu.Lock()
	delete(k.client.conns, k)
	k.client.mu.Unlock()
	return k.Conn.Close()
}

// stranger makes a client that shows no certificate, for enrolment: an expired one would only be in
// the way. It is for one request.
func (c *client) stranger() *http.Client {
	return c.newClient(func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return new(tls.Certificate), nil })
}

// asMember is the client that shows the certificate.
func (c *client) asMember() *http.Client {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.member == nil {
		c.member = c.newClient(func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.certificate() })
	}
	return c.member
}

// renew lets the next request make a new connection, with the certificate and the roots of then.
// What runs on the old connection is not disturbed.
func (c *client) renew() {
	c.mu.Lock()
	old := c.member
	c.member = nil
	c.mu.Unlock()
	if old != nil {
		old.CloseIdleConnections() // not under mu: closing a connection takes it
	}
}

func (c *client) newClient(certificate func(*tls.CertificateRequestInfo) (*tls.Certificate, error)) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true) // and nothing else: requests share the watch's connection
	return &http.Client{
		Transport: &http.Transport{
			Proxy:       nil, // a proxy from the environment is for the application
			DialContext: c.connect,
			Protocols:   protocols,
			TLSClientConfig: &tls.Config{
				MinVersion: tls.VersionTLS13,
				// crypto/tls would look for the host's name and the system's roots. The server is
				// known by its identity under the mesh's own root instead, which VerifyConnection
				// checks; no session is ever resumed here, so that it checks a full handshake.
				InsecureSkipVerify: true, //nolint:gosec // VerifyConnection verifies
				VerifyConnection: func(cs tls.ConnectionState) error {
					return c.trust().verify(cs, c.now())
				},
				GetClientCertificate: certificate,
			},
			TLSHandshakeTimeout:    requestTimeout,
			IdleConnTimeout:        10 * time.Second, // of a connection before the watch's
			DisableCompression:     true,             // a small answer never becomes a large one
			MaxResponseHeaderBytes: 64 << 10,
			// A server that vanished without a word (its host lost power) is noticed by pings.
			HTTP2: &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 10 * time.Second},
		},
		// A token is for the server that was named, wherever that would send us.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// enroll asks for a first certificate.
func (c *client) enroll(ctx context.Context, request api.EnrollRequest) (*api.Credentials, []*x509.Certificate, error) {
	client := c.stranger()
	defer client.CloseIdleConnections()
	var answer api.Credentials
	chain, err := c.exchange(ctx, client, api.PathEnroll, request, &answer)
	return &answer, chain, err
}

// renewCertificate asks for the next one.
func (c *client) renewCertificate(ctx context.Context, request api.RenewRequest) (*api.Credentials, []*x509.Certificate, error) {
	var answer api.Credentials
	chain, err := c.exchange(ctx, c.asMember(), api.PathRenew, request, &answer)
	return &answer, chain, err
}

// report tells what the instance serves.
func (c *client) report(ctx context.Context, report api.Report) (*api.ReportResponse, error) {
	var answer api.ReportResponse
	_, err := c.exchange(ctx, c.asMember(), api.PathReport, report, &answer)
	return &answer, err
}

// askTime lets the server refuse something, for the sake of the Date that its refusal bears.
func (c *client) askTime(ctx context.Context) {
	client := c.stranger()
	defer client.CloseIdleConnections()
	_, _ = c.exchange(ctx, client, api.PathReport, api.Report{}, &api.ReportResponse{}) // observe has the answer
}

// watch opens the stream of events. It lasts until ctx ends or the caller closes the body.
func (c *client) watch(ctx context.Context, request api.WatchRequest) (io.ReadCloser, []*x509.Certificate, error) {
	response, err := c.send(ctx, c.asMember(), api.PathWatch, request)
	if err != nil {
		return nil, nil, err
	}
	return response.Body, response.TLS.PeerCertificates, nil
}

// exchange sends one message and reads one. It returns the chain that the server has shown.
func (c *client) exchange(ctx context.Context, client *http.Client, path string, in, out any) ([]*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	response, err := c.send(ctx, client, path, in)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := readLimited(response.Body, maxAnswer)
	if err != nil {
		return nil, fmt.Errorf("reading the answer to %s: %w", path, err)
	}
	if err := json.Unmarshal(body, out); err != nil {
		return nil, fmt.Errorf("reading the answer to %s: %w", path, err)
	}
	return response.TLS.PeerCertificates, nil
}

// errUnanswered says that the server ended a new connection instead of answering on it. In TLS 1.3 a client
// has done with the handshake before the server looks at its certificate, and net/http may hear of the end before
// it reads the alert that says why.
var errUnanswered = errors.New("the connection was made, and ended without an answer")

// send posts a message; the answer is a success when err is nil, and its body is the caller's to
// close. A refusal of the server is an [*api.Error].
func (c *client) send(ctx context.Context, client *http.Client, path string, in any) (*http.Response, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("writing a message for %s: %w", path, err)
	}
	var connected atomic.Bool // for this request
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		TLSHandshakeDone: func(_ tls.ConnectionState, err error) { connected.Store(err == nil) },
	})
	request, err := http.NewRequestWithContext(traced, http.MethodPost, c.base.JoinPath(path).String(), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("writing a message for %s: %w", path, err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) { // it only repeats the method and the address
			err = wrapped.Err
		}
		if connected.Load() && ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", errUnanswered, err)
		}
		return nil, fmt.Errorf("asking the server at %s: %w", c.base, err)
	}
	if date, err := http.ParseTime(response.Header.Get("Date")); err == nil {
		c.observe(date)
	}
	if response.StatusCode/100 != 2 {
		defer response.Body.Close()
		return nil, refusal(response)
	}
	if response.TLS == nil { // it cannot be: the address is https
		response.Body.Close()
		return nil, fmt.Errorf("the server at %s answered without TLS", c.base)
	}
	return response, nil
}

// refusal reads an answer that is no success.
func refusal(response *http.Response) error {
	body, err := readLimited(response.Body, maxError)
	var told api.Error
	if err == nil && json.Unmarshal(body, &told) == nil && told.Code != "" {
		return &told
	}
	return fmt.Errorf("the server answered %d (%s) and nothing that says why; is --server the address of a Countersign server?",
		response.StatusCode, http.StatusText(response.StatusCode))
}

// errTooLong says that an answer exceeds its limit.
var errTooLong = errors.New("the answer is too long")

// readLimited reads all of r, which may be at most limit bytes.
func readLimited(r io.Reader, limit int64) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(body)) > limit {
		return nil, fmt.Errorf("%w: more than %d bytes", errTooLong, limit)
	}
	return body, nil
}

// code is the code of the server's refusal, empty when err is none.
func code(err error) string {
	var told *api.Error
	if errors.As(err, &told) {
		return told.Code
	}
	return ""
}
