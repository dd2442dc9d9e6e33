package awstest

import (
	"bytes"
	"context"
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
		if response := fault(r, q.action()); response != nil {
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

// authorize decides by the policies.
func (c *Cloud) authorize(_ context.Context, q *request) *refusal {
	c.record(Call{Role: q.caller.roleName(), Action: q.action(), Resource: "*", Allowed: true})
	return nil
}

func (c *Cloud) record(call Call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, call)
}

// serve lets the service answer, and keeps the books of what changed who may do what.
func (c *Cloud) serve(w http.ResponseWriter, r *http.Request, q *request, handler http.Handler) {
	if q.service != "iam" && q.service != "sts" {
		handler.ServeHTTP(w, r)
		return
	}
	if q.action() == "sts:GetCallerIdentity" && q.caller.root {
		w.Header().Set("Content-Type", "text/xml")
		_, _ = fmt.Fprintf(w, `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>`+
			`<Arn>%s</Arn><UserId>%s</UserId><Account>%s</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`, q.caller.arn(), Account, Account)
		return
	}
	if err := c.checkPolicies(q); err != nil {
		(&refusal{kind: malformed, code: "MalformedPolicyDocument", message: err.Error()}).write(w, q.protocol)
		return
	}
	recorder := httptest.NewRecorder()
	handler.ServeHTTP(recorder, r)
	if q.service == "iam" {
		c.observe(q, recorder.Code)
	} else if q.operation == "AssumeRole" && recorder.Code == http.StatusOK {
		c.mu.Lock()
		known := c.roles[nameOf(q.str("RoleArn"))]
		c.mu.Unlock()
		if known != nil {
			if _, err := c.book(known, q.str("RoleSessionName"), recorder.Body.String()); err != nil {
				c.t.Error(err)
			}
		}
	}
	maps.Copy(w.Header(), recorder.Header())
	w.WriteHeader(recorder.Code)
	_, _ = w.Write(recorder.Body.Bytes())
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
