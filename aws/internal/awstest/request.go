package awstest

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/aws/smithy-go/encoding/cbor"

	"countersign.dev/aws/internal/awstest/iam"
)

// request is a call of an operation, as its protocol wrote it.
type request struct {
	http      *http.Request
	body      []byte
	protocol  protocol
	service   string // that it is signed for
	operation string
	params    map[string]any // strings, lists and maps; those of the query protocol as it flattens them
	caller    *session
	policy    *iam.Document // that the request puts somewhere, once it has been checked
	noted     string        // the id under which what the caller itself asked is written down
}

// prefixes are the services whose actions begin otherwise than the name that requests are signed for.
var prefixes = map[string]string{"monitoring": "cloudwatch"}

// action is the operation as policies write it.
func (q *request) action() string {
	prefix := prefixes[q.service]
	if prefix == "" {
		prefix = q.service
	}
	return prefix + ":" + q.operation
}

// str is a parameter that is a string, or "".
func (q *request) str(name string) string {
	s, _ := q.params[name].(string)
	return s
}

// list is a parameter that is a list of strings, which the query protocol flattens to NAME.member.1 and so on.
func (q *request) list(name string) []string {
	var found []string
	if q.protocol == queryProtocol {
		for i := 1; ; i++ {
			value := q.str(name + ".member." + strconv.Itoa(i))
			if value == "" {
				return found
			}
			found = append(found, value)
		}
	}
	items, _ := q.params[name].([]any)
	for _, item := range items {
		if s, ok := item.(string); ok {
			found = append(found, s)
		}
	}
	return found
}

// protocolOf tells the protocol from the headers.
func protocolOf(r *http.Request) protocol {
	switch {
	case r.Header.Get("Smithy-Protocol") == "rpc-v2-cbor":
		return cborProtocol
	case r.Header.Get("X-Amz-Target") == "" && strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded"):
		return queryProtocol
	default:
		return jsonProtocol
	}
}

// parseRequest finds operation and parameters.
func parseRequest(r *http.Request, service string, body []byte) (*request, error) {
	q := &request{http: r, protocol: protocolOf(r), service: service, params: map[string]any{}}
	// The SDK compresses PutMetricData.
	if r.Header.Get("Content-Encoding") == "gzip" {
		unzipped, err := gzip.NewReader(bytes.NewReader(body))
		if err == nil {
			body, err = io.ReadAll(io.LimitReader(unzipped, maxBody))
		}
		if err != nil {
			return nil, fmt.Errorf("unpacking the body: %w", err)
		}
	}
	q.body = body
	switch q.protocol {
	case queryProtocol:
		values, err := url.ParseQuery(string(body))
		if err != nil {
			return nil, fmt.Errorf("reading the form: %w", err)
		}
		q.operation = values.Get("Action")
		for name := range values {
			q.params[name] = values.Get(name)
		}
	case cborProtocol:
		_, operation, found := strings.Cut(r.URL.Path, "/operation/")
		if !found {
			return nil, fmt.Errorf("the path %q names no operation", r.URL.Path)
		}
		q.operation = operation
		value, err := cbor.Decode(body)
		if err != nil {
			return nil, fmt.Errorf("reading CBOR: %w", err)
		}
		q.params, _ = plain(value).(map[string]any)
	case jsonProtocol:
		_, q.operation, _ = strings.Cut(r.Header.Get("X-Amz-Target"), ".")
		if len(bytes.TrimSpace(body)) > 0 {
			if err := json.Unmarshal(body, &q.params); err != nil {
				return nil, fmt.Errorf("reading JSON: %w", err)
			}
		}
	}
	if q.operation == "" || strings.ContainsAny(q.operation, "*?:/. ") {
		return nil, fmt.Errorf("no operation in the request: the front knows X-Amz-Target, Action of the query protocol, and the paths of RPC v2 CBOR")
	}
	return q, nil
}

// plain is what encoding/json would have made of it, as far as policies need it.
func plain(value cbor.Value) any {
	switch v := value.(type) {
	case cbor.Map:
		m := map[string]any{}
		for name, item := range v {
			m[name] = plain(item)
		}
		return m
	case cbor.List:
		var items []any
		for _, item := range v {
			items = append(items, plain(item))
		}
		return items
	case cbor.String:
		return string(v)
	case cbor.Bool:
		return bool(v)
	default:
		return nil
	}
}

// xmlText escapes for XML.
func xmlText(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s))
	return b.String()
}
