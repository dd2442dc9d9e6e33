package integration

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
)

// on puts down what happens to the requests for a path.
func (a *oddApp) on(path string, do script) { a.scripts.Store(path, do) }

// utters is the script of an application that answers with these bytes, and then closes or waits to be
// asked again.
func utters(answer string, goesOn bool) script {
	return func(conn *net.TCPConn, _ *bufio.Reader, request *http.Request) bool {
		_, _ = io.Copy(io.Discard, request.Body)
		_, _ = io.WriteString(conn, answer)
		return goesOn
	}
}

// oddAnswer is what an application says that breaks the rules, and what its caller may see of it.
type oddAnswer struct {
	name, method string
	says         string
	goesOn       bool // the application keeps the connection; else it closes it
	reset        bool // it closes without order
	status       int  // of the caller's answer
	body         string
	cut          bool // the caller sees that the body is not whole
}

const hidden = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nhidden!"

var oddAnswers = []oddAnswer{
	{name: "an honest answer", says: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", goesOn: true, status: 200, body: "hello"},
	{name: "an honest answer in chunks", says: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", goesOn: true, status: 200, body: "hello"},
	{name: "an answer that ends with the connection", says: "HTTP/1.1 200 OK\r\n\r\nhello", status: 200, body: "hello"},
	{name: "an answer in HTTP/1.0", says: "HTTP/1.0 200 OK\r\n\r\nhello", status: 200, body: "hello"},
	{name: "a 304 that tells a length", says: "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", goesOn: true, status: 304},
	{name: "a body after a 304", says: "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n" + hidden, goesOn: true, status: 304},
	{name: "many answers before the answer", says: strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 50) + "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", goesOn: true, status: 200, body: "hello"},
	{name: "a 100 that nobody waits for", says: "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", goesOn: true, status: 200, body: "hello"},

	{name: "no answer", says: "", status: 502},
	{name: "half a head", says: "HTTP/1.1 200 OK\r\nContent-Le", status: 502},
	{name: "a head without its empty line", says: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", status: 502},
	{name: "a reset", reset: true, status: 502},
	{name: "garbage", says: "\x00\x01\x02 this is no answer\r\n\r\n", status: 502},
	{name: "another protocol", says: "SSH-2.0-OpenSSH_9.2\r\n\r\n", status: 502},
	{name: "TLS", says: "\x15\x03\x01\x00\x02\x02\x0a", status: 502},
	{name: "another version", says: "HTTP/9.9 200 OK\r\nContent-Length: 0\r\n\r\n", status: 502},
	{name: "a status of two digits", says: "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n", status: 502},
	{name: "a status beyond 599", says: "HTTP/1.1 900 OK\r\nContent-Length: 0\r\n\r\n", status: 502},
	{name: "a switch that nobody asked for", says: "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhidden", status: 502},
	{name: "bare line feeds", says: "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello", status: 502},
	{name: "a folded field", says: "HTTP/1.1 200 OK\r\nX-A: y\r\n z\r\nContent-Length: 5\r\n\r\nhello", status: 502},
	{name: "a NUL in a field", says: "HTTP/1.1 200 OK\r\nX-A: y\x00z\r\nContent-Length: 5\r\n\r\nhello", status: 502},
	{name: "a space before the colon", says: "HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello", status: 502},
	{name: "a length and an encoding", says: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden, goesOn: true, status: 502},
	{name: "two lengths", says: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 0\r\n\r\nhello", goesOn: true, status: 502},
	{name: "a signed length", says: "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello", goesOn: true, status: 502},
	{name: "an unknown encoding", says: "HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\nhello", status: 502},
	{name: "a head of 100 KB", says: "HTTP/1.1 200 OK\r\nX-Large: " + strings.Repeat("x", 100_000) + "\r\nContent-Length: 5\r\n\r\nhello", status: 502},

	{name: "less than the length", says: "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello", status: 200, cut: true},
	{name: "less than the length, and a reset", says: "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello", reset: true, status: 200, cut: true},
	{name: "no last chunk", says: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", status: 200, cut: true},
	{name: "half a chunk", says: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhello", status: 200, cut: true},
	{name: "no empty line after the last chunk", says: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", status: 200, cut: true},
	{name: "a chunk that is too long", says: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n", goesOn: true, status: 200, cut: true},
	{name: "a size that is none", says: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n", goesOn: true, status: 200, cut: true},

	{name: "more than the length", says: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello" + hidden, goesOn: true, status: 200, body: "hello"},
	{name: "more than the last chunk", says: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + hidden, goesOn: true, status: 200, body: "hello"},
	{name: "a body after a 204", says: "HTTP/1.1 204 No Content\r\n\r\n" + hidden, goesOn: true, status: 204},
	{name: "a body after HEAD", method: "HEAD", says: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + hidden, goesOn: true, status: 200},
}

// An application that breaks the rules gets its caller a 502, a body that visibly was cut, or the answer
// that was meant; what it says beyond that is never the answer to another request.
func TestOddAnswers(t *testing.T) {
	mesh := wire(t)
	for _, d := range []door{
		{"sidecars", mesh.outbound(t, "caller", "odd", 9380), ""},
		{"gateway", mesh.inbound(t, "edge", 8380), ""},
		{"gateway over HTTP/2", mesh.inbound(t, "edge", 8382), ""},
	} {
		transport := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true}
		if transport.Protocols.SetHTTP1(true); strings.HasSuffix(d.name, "HTTP/2") {
			transport.Protocols.SetHTTP1(false)
			transport.Protocols.SetUnencryptedHTTP2(true)
		}
		c := &http.Client{Transport: transport, Timeout: patience}
		t.Cleanup(transport.CloseIdleConnections)
		for i, odd := range oddAnswers {
			t.Run(d.name+"/"+odd.name, func(t *testing.T) {
				path := fmt.Sprintf("/odd/%d", i)
				mesh.odd.on(path, func(conn *net.TCPConn, in *bufio.Reader, request *http.Request) bool {
					goesOn := utters(odd.says, odd.goesOn)(conn, in, request)
					if odd.reset {
						_ = conn.SetLinger(0)
					}
					return goesOn
				})
				// POST is never sent a second time.
				odd.check(t, c, d.url()+path)
				for range 3 {
					if status, body := post(t, c, http.MethodPost, d.url()+"/plain"); status != 200 || body != "ok\n" {
						t.Errorf("the next request gets %d %q", status, body)
					}
				}
			})
		}
	}
}

// check asks, and compares with what may be seen.
func (o oddAnswer) check(t *testing.T, c *http.Client, url string) {
	t.Helper()
	method := o.method
	if method == "" {
		method = http.MethodPost
	}
	request, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := c.Do(request)
	if err != nil {
		if !o.cut {
			t.Errorf("no answer: %v", err)
		}
		return // cut before the head went on is cut, too
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded):
		t.Errorf("neither an end nor an error of the body: %v", err)
	case o.cut && response.StatusCode == http.StatusBadGateway && err == nil:
		// It was found out in time.
	case o.cut && err == nil:
		t.Errorf("a body that was cut looks whole: %d %q", response.StatusCode, body)
	case response.StatusCode == http.StatusNotModified && response.ProtoMajor == 2:
		// Go's client misses the body that the length of a 304 speaks of; there is none.
	case !o.cut && err != nil:
		t.Errorf("the body: %v", err)
	case response.StatusCode != o.status:
		t.Errorf("status %d %.100q, want %d", response.StatusCode, body, o.status)
	case !o.cut && o.status != http.StatusBadGateway && string(body) != o.body:
		t.Errorf("the body is %q, want %q", body, o.body)
	case strings.Contains(string(body), "hidden"):
		t.Errorf("what is no answer came: %q", body)
	}
}

func post(t *testing.T, c *http.Client, method, url string) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := c.Do(request)
	if err != nil {
		t.Errorf("%s: %v", url, err)
		return 0, ""
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Errorf("%s: %v", url, err)
	}
	return response.StatusCode, string(body)
}

// An application that answers before it has read the request, and never reads it, gets its answer
// through, and the request ends.
func TestAnswerBeforeTheRequest(t *testing.T) {
	mesh := wire(t)
	mesh.odd.on("/early", func(conn *net.TCPConn, in *bufio.Reader, _ *http.Request) bool {
		_, _ = io.WriteString(conn, "HTTP/1.1 413 Too Large\r\nContent-Length: 10\r\nConnection: close\r\n\r\ntoo large\n")
		_ = conn.CloseWrite()
		_, _ = io.Copy(io.Discard, io.LimitReader(in, 1<<20)) // as servers do, so that the answer is not lost
		return false
	})
	for _, d := range []door{
		{"sidecars", mesh.outbound(t, "caller", "odd", 9380), ""},
		{"gateway", mesh.inbound(t, "edge", 8380), ""},
	} {
		early(t, &http.Client{Timeout: patience, Transport: &http.Transport{}}, d)
	}
}
