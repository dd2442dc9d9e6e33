package awstest

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"time"
)

// maxBody is the largest request that the front reads, in bytes; the largest of AWS's own that is used here is 1 MB.
const maxBody = 8 << 20

// ServeHTTP is the front.
func (c *Cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		(&refusal{kind: malformed, message: err.Error()}).write(w, protocolOf(r))
		return
	}
	q, refused := c.authenticate(r, body)
	if refused != nil {
		refused.write(w, protocolOf(r))
		return
	}
	c.mu.Lock()
	fault, handler := c.fault, c.handlers[q.service]
	c.mu.Unlock()
	if fault != nil {
		r.Body = io.NopCloser(bytes.NewReader(body))
		if response := fault(r, q.action()); response != nil { //nolint:bodyclose // copyResponse closes it
			copyResponse(w, response)
			return
		}
	}
	if refused := c.authorize(r.Context(), q); refused != nil {
		refused.write(w, q.protocol)
		return
	}
	if handler == nil {
		(&refusal{kind: unavailable, code: "NothingMounted", message: fmt.Sprintf("nothing is mounted for %s: call Mount(%q, ...)", q.service, q.service)}).write(w, q.protocol)
		return
	}
	// Unpacked, because the doubles do not.
	r.Header.Del("Content-Encoding")
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(q.body)), int64(len(q.body))
	c.serve(w, r, q, handler)
}

// authenticate finds out who asks for what.
func (c *Cloud) authenticate(r *http.Request, body []byte) (*request, *refusal) {
	header := r.Header.Get("Authorization")
	if header == "" {
		return nil, &refusal{kind: noToken, message: "Request is missing Authentication Token"}
	}
	signed, err := parseAuthorization(header)
	if err != nil {
		return nil, &refusal{kind: badSignature, message: err.Error()}
	}
	c.mu.Lock()
	caller := c.issued[signed.accessKey]
	if caller != nil {
		copied := *caller
		caller = &copied
	}
	c.mu.Unlock()
	if caller == nil {
		return nil, &refusal{kind: badToken, message: "The security token included in the request is invalid."}
	}
	if refused := caller.verify(r.Context(), r, signed, body, time.Now()); refused != nil {
		return nil, refused
	}
	q, err := parseRequest(r, signed.service, body)
	if err != nil {
		return nil, &refusal{kind: malformed, message: err.Error()}
	}
	q.caller = caller
	return q, nil
}

// record writes a decision down.
func (c *Cloud) record(q *request, call Call) {
	call.Role, call.Caller, call.id, call.at, call.direct = q.caller.roleName(), q.caller.arn(), rand.Text(), time.Now(), call.Action == q.action()
	if q.caller.role != nil {
		call.roleARN = q.caller.role.arn
	}
	if call.direct {
		q.noted = call.id
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, call)
}

// failed notes of what the caller asked that it was not done, because the service was refused what it needs for it.
func (c *Cloud) failed(q *request, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := len(c.calls) - 1; i >= 0; i-- {
		if c.calls[i].id == q.noted {
			c.calls[i].failed = why
			return
		}
	}
}

// serve lets the service answer, and keeps the books of what changed who may do what: before the caller hears of it.
func (c *Cloud) serve(w http.ResponseWriter, r *http.Request, q *request, handler http.Handler) {
	if refused := c.checkPolicies(q); refused != nil {
		refused.write(w, q.protocol)
		return
	}
	if q.action() == "sts:GetCallerIdentity" && q.caller.root {
		w.Header().Set("Content-Type", "text/xml")
		_, _ = fmt.Fprintf(w, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>`+ //nolint:gosec // constants
			`<Arn>%s</Arn><UserId>%s</UserId><Account>%s</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`, q.caller.arn(), Account, Account)
		return
	}
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, r)
	switch q.service {
	case "secretsmanager", "kms":
		forget(q.operation)
	case "iam":
		c.observe(q, recorder.Code)
	case "sts":
		if q.operation == "AssumeRole" && recorder.Code == http.StatusOK {
			c.bookAnswer(q, recorder.Body.String())
		}
	}
	c.mu.Lock()
	lost := c.lost
	c.mu.Unlock()
	if lost != nil && lost(q.action()) {
		panic(http.ErrAbortHandler) // net/http's way to break off a connection
	}
	maps.Copy(w.Header(), recorder.Header())
	w.WriteHeader(recorder.Code)
	_, _ = w.Write(recorder.Body.Bytes())
}

// bookAnswer remembers the session that a caller got.
func (c *Cloud) bookAnswer(q *request, answer string) {
	c.mu.Lock()
	known := c.roles[nameOf(q.str("RoleArn"))]
	c.mu.Unlock()
	if known == nil {
		return
	}
	if _, err := c.book(known, q.str("RoleSessionName"), answer); err != nil {
		c.t.Error(err)
	}
}

// copyResponse writes what a fault answered.
func copyResponse(w http.ResponseWriter, response *http.Response) {
	maps.Copy(w.Header(), response.Header)
	w.WriteHeader(response.StatusCode)
	if response.Body != nil {
		_, _ = io.Copy(w, response.Body)
		_ = response.Body.Close()
	}
}
