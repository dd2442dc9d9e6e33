package integration

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// recorder is an application that keeps every byte that it gets, and reads them as strictly as the
// specification can be read. It answers each request with what it understood.
type recorder struct {
	mu   sync.Mutex
	taps []*tap
	all  []told // in the order in which they were complete
}

// tap is one connection.
type tap struct {
	mu       sync.Mutex
	raw      []byte
	requests []told
	fault    error // why it could not be read on; nil when it ended between two requests
}

// told is one request as a reader understood it.
type told struct{ method, target, body string }

func (r *recorder) serve(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return // the test is over
		}
		t := &tap{}
		r.mu.Lock()
		r.taps = append(r.taps, t)
		r.mu.Unlock()
		go t.serve(conn, r)
	}
}

// serve reads one request after the other and answers each when it is complete.
func (t *tap) serve(conn net.Conn, r *recorder) {
	defer conn.Close()
	in := bufio.NewReader(io.TeeReader(conn, t))
	for {
		request, header, err := readStrictly(in, func() { _, _ = io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n") })
		t.mu.Lock()
		switch {
		case errors.Is(err, io.EOF) && request == told{}:
		case err != nil:
			t.fault = err
		default:
			t.requests = append(t.requests, request)
		}
		t.mu.Unlock()
		if err != nil {
			return
		}
		r.mu.Lock()
		r.all = append(r.all, request)
		r.mu.Unlock()
		body := request.method + " " + request.target + " " + strconv.Itoa(len(request.body)) + "\n"
		answer := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\nContent-Type: text/plain\r\n\r\n", len(body))
		if request.method != http.MethodHead {
			answer += body
		}
		if _, err := io.WriteString(conn, answer); err != nil || strings.EqualFold(header.Get("Connection"), "close") {
			return
		}
	}
}

// Write implements io.Writer: it keeps what is read.
func (t *tap) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.raw = append(t.raw, b...)
	return len(b), nil
}

// readStrictly reads a request that no two readers can read differently, and refuses every other. At
// the end between two requests it gives io.EOF and nothing.
func readStrictly(in *bufio.Reader, goOn func()) (told, textproto.MIMEHeader, error) {
	line, err := strictLine(in)
	if err != nil {
		return told{}, nil, err
	}
	parts := strings.Split(line, " ")
	if len(parts) != 3 || parts[2] != "HTTP/1.1" || !isToken(parts[0]) || parts[1] == "" || parts[1][0] != '/' && parts[1] != "*" {
		return told{"?", line, ""}, nil, fmt.Errorf("the request line is %q", line)
	}
	for _, c := range []byte(parts[1]) {
		if c <= ' ' || c >= 0x7f || c == '#' {
			return told{"?", line, ""}, nil, fmt.Errorf("the target has the byte %#x", c)
		}
	}
	request := told{method: parts[0], target: parts[1]}
	header, err := strictFields(in)
	if err != nil {
		return request, nil, unexpected(err)
	}
	if len(header["Host"]) != 1 {
		return request, nil, fmt.Errorf("the Host fields are %q", header["Host"])
	}
	lengths, encodings := header["Content-Length"], header["Transfer-Encoding"]
	switch {
	case len(lengths)+len(encodings) > 1:
		return request, nil, fmt.Errorf("lengths %q and encodings %q", lengths, encodings)
	case len(lengths)+len(encodings) == 0:
		return request, header, nil
	}
	if strings.EqualFold(header.Get("Expect"), "100-continue") {
		goOn()
	}
	if len(encodings) == 1 {
		if encodings[0] != "chunked" {
			return request, nil, fmt.Errorf("the encoding is %q", encodings[0])
		}
		request.body, err = strictChunks(in)
		return request, header, unexpected(err)
	}
	n, err := strictNumber(lengths[0], 10)
	if err != nil {
		return request, nil, err
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(in, body); err != nil {
		return request, nil, unexpected(err)
	}
	request.body = string(body)
	return request, header, nil
}

// strictChunks reads a chunked body with its trailers.
func strictChunks(in *bufio.Reader) (string, error) {
	var body strings.Builder
	for {
		line, err := strictLine(in)
		if err != nil {
			return "", err
		}
		n, err := strictNumber(line, 16)
		if err != nil {
			return "", err
		}
		if n == 0 {
			trailers, err := strictFields(in)
			for _, name := range []string{"Content-Length", "Transfer-Encoding", "Host", "Connection"} {
				if len(trailers[name]) > 0 {
					err = errors.Join(err, fmt.Errorf("a trailer is %s", name))
				}
			}
			return body.String(), err
		}
		if _, err := io.CopyN(&body, in, int64(n)); err != nil {
			return "", err
		}
		if end, err := strictLine(in); err != nil || end != "" {
			return "", errors.Join(err, fmt.Errorf("a chunk of %d bytes is followed by %q", n, end))
		}
	}
}

// strictFields reads fields up to the empty line.
func strictFields(in *bufio.Reader) (textproto.MIMEHeader, error) {
	header := textproto.MIMEHeader{}
	for {
		line, err := strictLine(in)
		if err != nil || line == "" {
			return header, err
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || !isToken(name) {
			return header, fmt.Errorf("a field is %.100q", line)
		}
		header.Add(name, strings.Trim(value, " \t"))
	}
}

// strictLine reads up to CRLF. No other control character but the tab is allowed.
func strictLine(in *bufio.Reader) (string, error) {
	line, err := in.ReadString('\n')
	if err != nil {
		if line != "" {
			err = unexpected(err)
		}
		return "", err
	}
	text, ok := strings.CutSuffix(line, "\r\n")
	if !ok || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return "", fmt.Errorf("a line is %.100q", line)
	}
	return text, nil
}

// strictNumber reads digits and nothing else.
func strictNumber(text string, base int) (uint64, error) {
	if strings.Trim(strings.ToLower(text), "0123456789abcdef") != "" || len(text) > 8 {
		return 0, fmt.Errorf("a number is %.100q", text)
	}
	return strconv.ParseUint(text, base, 32)
}

func isToken(name string) bool {
	const others = "!#$%&'*+-.^_`|~"
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || strings.ContainsRune(others, r))
	})
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// differences are where net/http reads the bytes of a connection otherwise than the recorder did, and
// what the recorder could not read although it did not just end.
func (r *recorder) differences() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []string
	for _, t := range r.taps {
		t.mu.Lock()
		if t.fault != nil && !isCut(t.fault) {
			found = append(found, fmt.Sprintf("the recorder cannot read what came: %v; the end of it is %q", t.fault, t.raw[max(0, len(t.raw)-400):]))
		}
		if other := readByNetHTTP(t.raw); !slices.Equal(other, t.requests) {
			found = append(found, fmt.Sprintf("the recorder read %.500q, net/http %.500q, in %.2000q", t.requests, other, t.raw))
		}
		t.mu.Unlock()
	}
	return found
}

// isCut tells whether a connection ended within a request, whether in order or by a reset.
func isCut(err error) bool {
	var op *net.OpError
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &op)
}

// readByNetHTTP reads all complete requests in bytes.
func readByNetHTTP(raw []byte) []told {
	var all []told
	for in := bufio.NewReader(bytes.NewReader(raw)); ; {
		request, err := http.ReadRequest(in)
		if err != nil {
			return all
		}
		body, err := io.ReadAll(request.Body)
		if err != nil {
			return all
		}
		all = append(all, told{request.Method, request.RequestURI, string(body)})
	}
}

// The strict reader refuses what it says it refuses, and differences from it are found: a test that
// cannot fail proves nothing.
func TestRecorderIsStrict(t *testing.T) {
	const host = "Host: x\r\n"
	for _, raw := range []string{
		"GET / HTTP/1.1\n" + host + "\r\n", "GET  / HTTP/1.1\r\n" + host + "\r\n", "GET x HTTP/1.1\r\n" + host + "\r\n", "GET / HTTP/1.0\r\n" + host + "\r\n",
		"GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\n" + host + host + "\r\n", "GET / HTTP/1.1\r\n" + host + "X: a\r\n b\r\n\r\n", "GET / HTTP/1.1\r\n" + host + "X : a\r\n\r\n", "GET / HTTP/1.1\r\n" + host + "X: a\x00\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 1\r\nContent-Length: 1\r\n\r\na", "POST / HTTP/1.1\r\n" + host + "Content-Length: +1\r\n\r\na",
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n1;x\r\na\r\n0\r\n\r\n", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 5\r\n\r\n",
	} {
		request, _, err := readStrictly(bufio.NewReader(strings.NewReader(raw)), func() {})
		if err == nil || isCut(err) {
			t.Errorf("%q is read as %q (%v)", raw, request, err)
		}
		r := &recorder{taps: []*tap{{raw: []byte(raw), fault: err}}}
		if len(r.differences()) == 0 {
			t.Errorf("%q is no difference", raw)
		}
	}
	const good = "POST /a HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
	in := bufio.NewReader(strings.NewReader(good + "GET /b HTTP/1.1\r\n" + host + "\r\n"))
	for _, want := range []told{{"POST", "/a", "abc"}, {"GET", "/b", ""}} {
		if got, _, err := readStrictly(in, func() {}); err != nil || got != want {
			t.Errorf("%q is read as %q (%v)", want, got, err)
		}
	}
	if _, _, err := readStrictly(in, func() {}); !errors.Is(err, io.EOF) {
		t.Errorf("the end is %v", err)
	}
	hiding := &recorder{taps: []*tap{{raw: []byte(good + good), requests: []told{{"POST", "/a", "abc"}}}}}
	if len(hiding.differences()) != 1 {
		t.Errorf("a second request that net/http finds is no difference: %q", hiding.differences())
	}
}
