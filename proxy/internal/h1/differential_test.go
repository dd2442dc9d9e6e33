package h1

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"countersign.dev/proxy/internal/message"
)

// This file compares the codec with net/http, byte for byte: nothing that we accept may be read
// otherwise by it, and what we write must mean there what was understood here. net/http may refuse
// more: a refusal is no second reading.

// reading is one message as we understand it.
type reading struct {
	head    message.Head
	content []byte
	trailer []message.Field
	end     int // where in the stream the next message begins
	tunnel  bool
}

// readStream reads requests that follow one another, until one is refused or not whole.
func readStream(in []byte) (all []reading) {
	intern := &message.Interner{}
	reader := &Reader{Intern: intern}
	for at := 0; at < len(in); {
		var r reading
		n, err := reader.Request(in[at:], &r.head)
		if n == 0 || err != nil {
			return all
		}
		at += n
		r.tunnel = r.head.Method == "CONNECT"
		if !r.tunnel {
			body := NewBody(&r.head, true, intern)
			used := 0
			if r.content, used, err = readAll(&body, in[at:], 1<<20); err != nil || !body.Done() {
				return all
			}
			r.trailer = body.Trailers()
			at += used
		}
		r.end = at
		r.head.Fields = slices.Clone(r.head.Fields)
		all = append(all, r)
		if r.tunnel || r.head.Upgrade != "" {
			return all
		}
	}
	return all
}

// mayRefuse are net/http's refusals of what we take: of spellings of URLs and hosts that it does not
// like, of lavish chunks, of announcements of trailers that we leave out. All others are findings.
var mayRefuse = []string{
	"parse ", "malformed Host header", "too much non-data", "suspiciously long trailer", "bad trailer key",
	"http: invalid",
}

// counting is a reader of a stream that knows how far its user has come.
type counting struct {
	*bufio.Reader
	under *bytes.Reader
}

func newCounting(in []byte) *counting {
	under := bytes.NewReader(in)
	return &counting{bufio.NewReaderSize(under, 8<<10), under}
}

func (c *counting) at() int { return int(c.under.Size()) - c.under.Len() - c.Buffered() }

// compareRequests reads a stream here and with net/http. It returns what both read alike.
func compareRequests(in []byte) ([]reading, error) {
	all := readStream(in)
	theirs := newCounting(in)
	for i := range all {
		if p, _ := theirs.Peek(2); string(p) == "\r\n" {
			_, _ = theirs.Discard(2) // http.Server skips it too, before it calls ReadRequest
		}
		refused, err := compareRequest(&all[i], theirs)
		if err != nil {
			return nil, fmt.Errorf("message %d: %w", i, err)
		}
		if refused {
			return all[:i], nil
		}
	}
	return all, nil
}

func compareRequest(r *reading, theirs *counting) (refused bool, err error) {
	req, err := http.ReadRequest(theirs.Reader)
	if err != nil {
		return refusal(err)
	}
	h := &r.head
	switch {
	case req.Method != h.Method:
		return false, fmt.Errorf("method %q here, %q there", h.Method, req.Method)
	case req.ProtoMajor != 1 || req.ProtoMinor != h.Minor:
		return false, fmt.Errorf("version 1.%d here, %s there", h.Minor, req.Proto)
	case req.Host != h.Authority:
		return false, fmt.Errorf("authority %q here, %q there", h.Authority, req.Host)
	case !sameTarget(h, req):
		return false, fmt.Errorf("target %q here, %q there", h.Target, req.RequestURI)
	case h.Chunked != slices.Equal(req.TransferEncoding, []string{"chunked"}):
		return false, fmt.Errorf("chunked %t here, %q there", h.Chunked, req.TransferEncoding)
	case !r.tunnel && max(h.ContentLength, 0) != max(req.ContentLength, 0):
		return false, fmt.Errorf("length %d here, %d there", h.ContentLength, req.ContentLength)
	case h.Close != req.Close:
		return false, fmt.Errorf("close %t here, %t there", h.Close, req.Close)
	case h.Expect != (h.Minor == 1 && strings.EqualFold(req.Header.Get("Expect"), "100-continue")):
		return false, fmt.Errorf("expect %t here, %q there", h.Expect, req.Header["Expect"])
	}
	if err := sameFields(h.Fields, req.Header); err != nil {
		return false, err
	}
	if r.tunnel {
		return false, nil
	}
	return compareBody(r, req.Body, &req.Trailer, theirs)
}

// compareBody reads a body; trailer is filled by that.
func compareBody(r *reading, body io.Reader, trailer *http.Header, theirs *counting) (refused bool, err error) {
	content, err := io.ReadAll(body)
	if err != nil {
		return refusal(err)
	}
	if !bytes.Equal(content, r.content) {
		return false, fmt.Errorf("content %q here, %q there", r.content, content)
	}
	if theirs.at() != r.end {
		return false, fmt.Errorf("the next message is at %d here, at %d there", r.end, theirs.at())
	}
	want := maps.Clone(*trailer)
	maps.DeleteFunc(want, func(name string, values []string) bool {
		return len(values) == 0 || message.BadTrailer(strings.ToLower(name)) // announced only; dropped
	})
	if err := sameFields(r.trailer, want); err != nil {
		return false, fmt.Errorf("trailers: %w", err)
	}
	return false, nil
}

func refusal(err error) (bool, error) {
	for _, may := range mayRefuse {
		if strings.Contains(err.Error(), may) {
			return true, nil
		}
	}
	return false, fmt.Errorf("net/http refuses: %w", err)
}

// sameTarget compares the target in our origin form with the one on the wire and with what net/http
// makes of it.
func sameTarget(h *message.Head, req *http.Request) bool {
	raw := req.RequestURI
	if h.Method == "CONNECT" {
		return h.Target == "" && raw == h.Authority
	}
	if h.Target == "*" {
		return raw == "*"
	}
	if raw[0] != '/' {
		scheme, rest, _ := strings.Cut(raw, "://")
		if !strings.EqualFold(scheme, h.Scheme) || len(rest) < len(h.Authority) || rest[:len(h.Authority)] != h.Authority {
			return false
		}
		if raw = rest[len(h.Authority):]; raw == "" || raw[0] == '?' {
			raw = "/" + raw
		}
	}
	path, query, _ := strings.Cut(h.Target, "?")
	decoded, err := url.PathUnescape(path)
	return raw == h.Target && err == nil && decoded == cmp.Or(req.URL.Path, "/") && query == req.URL.RawQuery
}

// sameFields compares end-to-end fields: no name on one side only, the values of a name in one order.
func sameFields(fields []message.Field, theirs http.Header) error {
	ours := http.Header{}
	for _, f := range fields {
		name := http.CanonicalHeaderKey(f.Name)
		ours[name] = append(ours[name], f.Value)
	}
	want := maps.Clone(theirs)
	named := map[string]bool{}
	for _, value := range theirs["Connection"] {
		for name := range strings.SplitSeq(value, ",") {
			named[strings.ToLower(strings.Trim(name, " \t"))] = true
		}
	}
	maps.DeleteFunc(want, func(name string, _ []string) bool {
		lower := strings.ToLower(name)
		return message.HopByHop(lower) || named[lower] || lower == "content-length" || lower == "expect"
	})
	if len(theirs["Pragma"]) > 0 && ours["Cache-Control"] == nil {
		delete(want, "Cache-Control") // net/http adds it
	}
	if diff := gocmp.Diff(map[string][]string(want), map[string][]string(ours)); diff != "" && len(want)+len(ours) > 0 {
		return fmt.Errorf("fields (-there +here):\n%s", diff)
	}
	return nil
}

// write is the wire form of a reading, as a proxy sends it on.
func (r *reading) write(b []byte) []byte {
	b = AppendRequest(b, &r.head)
	if !r.head.Chunked {
		return append(b, r.content...)
	}
	for rest := r.content; len(rest) > 0; {
		n := min(len(rest), 1000)
		b = append(append(AppendChunkSize(b, n), rest[:n]...), "\r\n"...)
		rest = rest[n:]
	}
	return AppendLastChunk(b, r.trailer)
}

// checkRequests is the whole comparison of a stream: as it came, and as it is sent on.
func checkRequests(in []byte) (accepted int, err error) {
	all, err := compareRequests(in)
	if err != nil {
		return 0, err
	}
	var out []byte
	for i := range all {
		out = all[i].write(out)
	}
	again, err := compareRequests(out)
	if err != nil {
		return 0, fmt.Errorf("sent on: %w\n%q", err, out)
	}
	if len(again) != len(all) {
		return 0, fmt.Errorf("of %d messages, %d are read again\n%q", len(all), len(again), out)
	}
	for i := range all {
		want, got := all[i], again[i]
		want.head.Minor, want.head.Scheme, want.end = got.head.Minor, got.head.Scheme, got.end
		if diff := gocmp.Diff(want, got, gocmp.AllowUnexported(reading{}), cmpopts.EquateEmpty()); diff != "" {
			return 0, fmt.Errorf("message %d changed on its way (-before +after):\n%s\n%q", i, diff, out)
		}
	}
	return len(all), nil
}

// checkResponse compares a response to a request with a method. in ends with the connection.
func checkResponse(in []byte, method string) (accepted bool, err error) {
	intern := &message.Interner{}
	var r reading
	h := &r.head
	n, err := (&Reader{Intern: intern}).Response(in, h, method)
	if n == 0 || err != nil {
		return false, nil //nolint:nilerr // what is refused here may be anything there
	}
	body := NewBody(h, false, intern)
	used := 0
	if r.content, used, err = readAll(&body, in[n:], 1<<20); err != nil || !body.Done() && !body.End() {
		return false, nil //nolint:nilerr // as above
	}
	r.trailer, r.end = body.Trailers(), n+used
	theirs := newCounting(in)
	resp, err := http.ReadResponse(theirs.Reader, &http.Request{Method: cmp.Or(method, "GET")})
	if err != nil {
		_, err := refusal(err)
		return false, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode != h.Status:
		return false, fmt.Errorf("status %d here, %d there", h.Status, resp.StatusCode)
	case h.Body && h.Chunked != slices.Equal(resp.TransferEncoding, []string{"chunked"}):
		return false, fmt.Errorf("chunked %t here, %q there", h.Chunked, resp.TransferEncoding)
	}
	header := maps.Clone(resp.Header)
	header.Del("Host") // means nothing in a response, and is dropped here
	if resp.Close {    // net/http takes Connection away then
		lines := textproto.NewReader(bufio.NewReader(bytes.NewReader(in[:n])))
		_, _ = lines.ReadLine()
		raw, _ := lines.ReadMIMEHeader()
		header["Connection"] = raw["Connection"]
	}
	if err := sameFields(slices.DeleteFunc(slices.Clone(h.Fields), func(f message.Field) bool { return f.Name == "expect" }), header); err != nil {
		return false, err
	}
	if method == "CONNECT" && h.Status < 300 || h.Status == 101 {
		return true, nil // a tunnel, which http.ReadResponse does not know
	}
	_, err = compareBody(&r, resp.Body, &resp.Trailer, theirs)
	return true, err
}
