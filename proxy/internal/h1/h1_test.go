package h1

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/proxy/internal/message"
)

func newReader() *Reader { return &Reader{Intern: &message.Interner{}} }

// crlfed writes LF as CRLF, so that test texts are legible.
func crlfed(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }

func TestRequest(t *testing.T) {
	const tail = "\nHost: a.test\n\n"
	for _, c := range []struct {
		name, in string
		want     message.Head
	}{
		{"origin form", "GET /a?b=%20 HTTP/1.1" + tail, message.Head{Method: "GET", Scheme: "http", Authority: "a.test", Target: "/a?b=%20"}},
		{"leading empty line", "\nGET / HTTP/1.1" + tail, message.Head{Method: "GET", Scheme: "http", Authority: "a.test", Target: "/"}},
		{"absolute form", "GET http://a.test/x HTTP/1.1" + tail, message.Head{Method: "GET", Scheme: "http", Authority: "a.test", Target: "/x"}},
		{"absolute form without path", "GET HTTP://A.test?x HTTP/1.1" + tail, message.Head{Method: "GET", Scheme: "http", Authority: "A.test", Target: "/?x"}},
		{"asterisk", "OPTIONS * HTTP/1.1" + tail, message.Head{Method: "OPTIONS", Scheme: "http", Authority: "a.test", Target: "*"}},
		{"connect", "CONNECT a.test:80 HTTP/1.1\nHost: a.test:80\n\n", message.Head{Method: "CONNECT", Scheme: "http", Authority: "a.test:80"}},
		{"http 1.0", "GET / HTTP/1.0\n\n", message.Head{Method: "GET", Scheme: "http", Target: "/", Close: true}},
		{"keep-alive in 1.0", "GET / HTTP/1.0\nConnection: Keep-Alive\n\n", message.Head{Method: "GET", Scheme: "http", Target: "/"}},
		{"length", "POST / HTTP/1.1\nContent-Length: 3" + tail, message.Head{Method: "POST", Scheme: "http", Authority: "a.test", Target: "/", ContentLength: 3, Body: true}},
		{"chunked", "POST / HTTP/1.1\nTransfer-Encoding: Chunked\nTE: trailers\nTrailer: X" + tail, message.Head{Method: "POST", Scheme: "http", Authority: "a.test", Target: "/", Chunked: true, Body: true, Trailers: true, Trailer: "X"}},
		{"upgrade", "GET / HTTP/1.1\nConnection: keep-alive, Upgrade\nUpgrade: WebSocket" + tail, message.Head{Method: "GET", Scheme: "http", Authority: "a.test", Target: "/", Upgrade: "websocket"}},
		{"upgrade without connection", "GET / HTTP/1.1\nUpgrade: websocket" + tail, message.Head{Method: "GET", Scheme: "http", Authority: "a.test", Target: "/"}},
		{"several trailer fields", "POST / HTTP/1.1\nTransfer-Encoding: chunked\nTrailer: X, Host,\nTrailer: b d, Y" + tail, message.Head{Method: "POST", Scheme: "http", Authority: "a.test", Target: "/", Chunked: true, Body: true, Trailer: "X, Y"}},
		{"h2c is no upgrade", "GET / HTTP/1.1\nConnection: Upgrade, HTTP2-Settings\nUpgrade: websocket, H2C\nHTTP2-Settings: AAMAAABk" + tail, message.Head{Method: "GET", Scheme: "http", Authority: "a.test", Target: "/"}},
		{"expect in 1.0", "PUT / HTTP/1.0\nExpect: 100-continue\nContent-Length: 1" + tail, message.Head{Method: "PUT", Scheme: "http", Authority: "a.test", Target: "/", Close: true, ContentLength: 1, Body: true}},
		{"expect", "PUT / HTTP/1.1\nExpect: 100-Continue\nContent-Length: 1" + tail, message.Head{Method: "PUT", Scheme: "http", Authority: "a.test", Target: "/", Expect: true, ContentLength: 1, Body: true}},
		{
			"fields", "GET / HTTP/1.1\nX-A:  b c\t\nx-b:\nX-A: d" + tail,
			message.Head{Method: "GET", Scheme: "http", Authority: "a.test", Target: "/", Fields: []message.Field{{Name: "x-a", Value: "b c"}, {Name: "x-b"}, {Name: "x-a", Value: "d"}}},
		},
		{
			"named by connection, before and after", "GET / HTTP/1.1\nX-A: 1\nConnection: X-A, close ,x-b\nX-B: 2\nX-C: 3" + tail,
			message.Head{Method: "GET", Scheme: "http", Authority: "a.test", Target: "/", Close: true, Fields: []message.Field{{Name: "x-c", Value: "3"}}},
		},
		{"hop by hop", "GET / HTTP/1.1\nKeep-Alive: x\nProxy-Connection: x\nProxy-Authorization: x\nTE: gzip" + tail, message.Head{Method: "GET", Scheme: "http", Authority: "a.test", Target: "/"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !c.want.Body {
				c.want.ContentLength = message.Unknown
			}
			if c.want.Chunked {
				c.want.ContentLength = message.Unknown
			}
			if !strings.Contains(c.in, "HTTP/1.0") {
				c.want.Minor = 1
			}
			in := crlfed(c.in)
			r := newReader()
			var h message.Head
			for i := range len(in) { // byte by byte: no head before its end
				n, err := r.Request([]byte(in[:i]), &h)
				if n != 0 || err != nil {
					t.Fatalf("after %d of %d bytes: %d, %v", i, len(in), n, err)
				}
			}
			n, err := r.Request([]byte(in+"more"), &h)
			if err != nil || n != len(in) {
				t.Fatalf("Request = %d, %v, want %d", n, err, len(in))
			}
			if len(h.Fields) == 0 {
				h.Fields = nil
			}
			if diff := cmp.Diff(c.want, h); diff != "" {
				t.Errorf("head (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRequestRefused(t *testing.T) {
	get := func(fields string) string { return crlfed("GET / HTTP/1.1\nHost: a\n" + fields + "\n\n") }
	line := func(line string) string { return crlfed(line + "\nHost: a\n\n") }
	for name, c := range map[string]struct {
		in     string
		status int
	}{
		"bare LF in the request line": {"GET / HTTP/1.1\nHost: a\r\n\r\n", 400},
		"bare LF in a field":          {"GET / HTTP/1.1\r\nHost: a\n\r\n", 400},
		"bare LF at the end":          {"GET / HTTP/1.1\r\nHost: a\r\n\n", 400},
		"bare CR":                     {get("X: a\rb"), 400},
		"obs-fold":                    {get("X: a\n b"), 400},
		"space before the colon":      {get("X : a"), 400},
		"no colon":                    {get("X"), 400},
		"empty name":                  {get(": a"), 400},
		"NUL in a value":              {get("X: a\x00b"), 400},
		"DEL in a value":              {get("X: a\x7fb"), 400},
		"two lengths":                 {get("Content-Length: 1\nContent-Length: 1"), 400},
		"a list of lengths":           {get("Content-Length: 1, 1"), 400},
		"a signed length":             {get("Content-Length: +1"), 400},
		"a hexadecimal length":        {get("Content-Length: 0x1"), 400},
		"an empty length":             {get("Content-Length:"), 400},
		"an enormous length":          {get("Content-Length: 9999999999999999999"), 400},
		"length and chunked":          {get("Content-Length: 1\nTransfer-Encoding: chunked"), 400},
		"chunked and length":          {get("Transfer-Encoding: chunked\nContent-Length: 1"), 400},
		"gzip, chunked":               {get("Transfer-Encoding: gzip, chunked"), 501},
		"chunked twice":               {get("Transfer-Encoding: chunked\nTransfer-Encoding: chunked"), 501},
		"chunked, identity":           {get("Transfer-Encoding: chunked, identity"), 501},
		"xchunked":                    {get("Transfer-Encoding: xchunked"), 501},
		"chunked with VT":             {get("Transfer-Encoding: \x0bchunked"), 400},
		"an empty encoding":           {get("Transfer-Encoding:"), 501},
		"chunked in 1.0":              {crlfed("GET / HTTP/1.0\nTransfer-Encoding: chunked\n\n"), 400},
		"no host":                     {crlfed("GET / HTTP/1.1\n\n"), 400},
		"two hosts":                   {get("Host: a"), 400},
		"host with userinfo":          {crlfed("GET / HTTP/1.1\nHost: u@a\n\n"), 400},
		"host with a path":            {crlfed("GET / HTTP/1.1\nHost: a/b\n\n"), 400},
		"host disagrees":              {line("GET http://b/ HTTP/1.1"), 400},
		"absolute with userinfo":      {line("GET http://u@a/ HTTP/1.1"), 400},
		"a foreign scheme":            {line("GET ftp://a/ HTTP/1.1"), 400},
		"a relative target":           {line("GET a HTTP/1.1"), 400},
		"a fragment":                  {line("GET /a#b HTTP/1.1"), 400},
		"a backslash":                 {line(`GET /a\b HTTP/1.1`), 400},
		"half a percent-encoding":     {line("GET /%2 HTTP/1.1"), 400},
		"a wrong percent-encoding":    {line("GET /%zz HTTP/1.1"), 400},
		"raw UTF-8 in the target":     {line("GET /ä HTTP/1.1"), 400},
		"two spaces":                  {line("GET  / HTTP/1.1"), 400},
		"a tab":                       {line("GET\t/ HTTP/1.1"), 400},
		"a space at the end":          {line("GET / HTTP/1.1 "), 400},
		"HTTP/0.9":                    {line("GET /"), 400},
		"HTTP/2.0":                    {line("GET / HTTP/2.0"), 505},
		"HTTP/1.2":                    {line("GET / HTTP/1.2"), 505},
		"lower-case version":          {line("GET / http/1.1"), 400},
		"method with a colon":         {line("GE:T / HTTP/1.1"), 400},
		"asterisk with GET":           {line("GET * HTTP/1.1"), 400},
		"CONNECT without a port":      {line("CONNECT a HTTP/1.1"), 400},
		"CONNECT with an empty port":  {line("CONNECT a: HTTP/1.1"), 400},
		"CONNECT to [::1]":            {line("CONNECT [::1] HTTP/1.1"), 400},
		"host with two ports":         {crlfed("GET / HTTP/1.1\nHost: a:1:2\n\n"), 400},
		"too many options":            {get("Connection: " + strings.Repeat("a,", 101)), 400},
		"CONNECT with a body":         {crlfed("CONNECT a:1 HTTP/1.1\nHost: a:1\nContent-Length: 0\n\n"), 400},
		"two upgrades":                {get("Upgrade: a\nUpgrade: b"), 400},
		"a foreign expectation":       {get("Expect: 200-ok"), 417},
		"two empty lines first":       {crlfed("\n\nGET / HTTP/1.1\nHost: a\n\n"), 400},
		"a head of 65 KiB":            {get("X: " + strings.Repeat("a", message.MaxHead)), 431},
		"a head without an end":       {"GET /" + strings.Repeat("a", message.MaxHead+1), 431},
		"201 fields":                  {get(strings.TrimSuffix(strings.Repeat("X: a\n", 201), "\n")), 431},
	} {
		t.Run(name, func(t *testing.T) {
			var h message.Head
			n, err := newReader().Request([]byte(c.in), &h)
			if err == nil {
				t.Fatalf("accepted (%d bytes): %+v", n, h)
			}
			if got := StatusOf(err); got != c.status {
				t.Errorf("status %d (%v), want %d", got, err, c.status)
			}
		})
	}
}

func TestResponse(t *testing.T) {
	for _, c := range []struct {
		name, method, in string
		want             message.Head
		refused          bool
	}{
		{name: "length", in: "HTTP/1.1 200 OK\nContent-Length: 2\n\n", want: message.Head{Status: 200, ContentLength: 2, Body: true, Minor: 1}},
		{name: "no reason", in: "HTTP/1.1 200\n\n", want: message.Head{Status: 200, ContentLength: -1, Body: true, Minor: 1}},
		{name: "until close", in: "HTTP/1.0 200 OK\n\n", want: message.Head{Status: 200, ContentLength: -1, Body: true, Close: true}},
		{name: "HEAD keeps the length", method: "HEAD", in: "HTTP/1.1 200 OK\nContent-Length: 2\n\n", want: message.Head{Status: 200, ContentLength: 2, Minor: 1}},
		{name: "204", in: "HTTP/1.1 204 No Content\n\n", want: message.Head{Status: 204, ContentLength: -1, Minor: 1}},
		{name: "304 keeps the length", in: "HTTP/1.1 304 Not Modified\nContent-Length: 9\n\n", want: message.Head{Status: 304, ContentLength: 9, Minor: 1}},
		{name: "101", in: "HTTP/1.1 101 Switching Protocols\nConnection: upgrade\nUpgrade: websocket\n\n", want: message.Head{Status: 101, ContentLength: -1, Upgrade: "websocket", Minor: 1}},
		{name: "connect", method: "CONNECT", in: "HTTP/1.1 200 OK\n\n", want: message.Head{Status: 200, ContentLength: -1, Minor: 1}},
		{name: "connect with a length", method: "CONNECT", in: "HTTP/1.1 200 OK\nContent-Length: 5\n\n", want: message.Head{Status: 200, ContentLength: -1, Minor: 1}},
		{name: "100 with a body", in: "HTTP/1.1 100 Continue\nContent-Length: 5\n\n", refused: true},
		{name: "204 with a body", in: "HTTP/1.1 204 No Content\nTransfer-Encoding: chunked\n\n", refused: true},
		{name: "two digits", in: "HTTP/1.1 20 OK\n\n", refused: true},
		{name: "status 99", in: "HTTP/1.1 099 X\n\n", refused: true},
		{name: "status 600", in: "HTTP/1.1 600 X\n\n", refused: true},
		{name: "no space", in: "HTTP/1.1 2000\n\n", refused: true},
		{name: "HTTP/2", in: "HTTP/2.0 200 OK\n\n", refused: true},
		{name: "control character", in: "HTTP/1.1 200 O\x01K\n\n", refused: true},
		{name: "two lengths", in: "HTTP/1.1 200 OK\nContent-Length: 2\nContent-Length: 3\n\n", refused: true},
		{name: "an empty line first", in: "\nHTTP/1.1 200 OK\n\n", refused: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h message.Head
			in := crlfed(c.in)
			n, err := newReader().Response([]byte(in), &h, c.method)
			if c.refused {
				if err == nil {
					t.Fatalf("accepted: %+v", h)
				}
				return
			}
			if err != nil || n != len(in) {
				t.Fatalf("Response = %d, %v", n, err)
			}
			h.Fields = nil
			if diff := cmp.Diff(c.want, h); diff != "" {
				t.Errorf("head (-want +got):\n%s", diff)
			}
		})
	}
}

// readAll feeds a body in pieces of a given size.
func readAll(b *Body, in []byte, piece int) (content []byte, used int, err error) {
	for used < len(in) && !b.Done() {
		p := in[used:min(len(in), used+piece)]
		for len(p) > 0 && !b.Done() {
			got, n, err := b.Next(p)
			content = append(content, got...)
			used += n
			if err != nil {
				return content, used, err
			}
			p = p[n:]
		}
	}
	return content, used, nil
}

func TestChunked(t *testing.T) {
	head := &message.Head{Body: true, Chunked: true, ContentLength: message.Unknown}
	for _, c := range []struct {
		name, in, content string
		trailers          []message.Field
		open, refused     bool
	}{
		{name: "empty", in: "0\n\n"},
		{name: "two chunks", in: "3\nabc\nA;x=y\n0123456789\n0\n\n", content: "abc0123456789"},
		{name: "leading zeros", in: "003\nabc\n00\n\n", content: "abc"},
		{name: "trailers", in: "1\na\n0\nX-A: b\nX-C:d\n\n", content: "a", trailers: []message.Field{{Name: "x-a", Value: "b"}, {Name: "x-c", Value: "d"}}},
		{name: "forbidden trailers are dropped", in: "0\nContent-Length: 5\nHost: x\nConnection: y\nX: z\n\n", trailers: []message.Field{{Name: "x", Value: "z"}}},
		{name: "unfinished", in: "3\nab", content: "ab", open: true},
		{name: "no size", in: "\nabc", refused: true},
		{name: "negative", in: "-1\nabc", refused: true},
		{name: "prefix 0x", in: "0x3\nabc", refused: true},
		{name: "space before the size", in: " 3\nabc\n", refused: true},
		{name: "space after the size", in: "3 \nabc\n", refused: true},
		{name: "sixteen digits", in: "0000000000000003\nabc\n", refused: true},
		{name: "no CRLF after the data", in: "3\nabcd", refused: true},
		{name: "a long extension", in: "3;" + strings.Repeat("x", 300) + "\nabc\n", refused: true},
		{name: "a control character in an extension", in: "3;\x00\nabc\n", refused: true},
		{name: "a folded trailer", in: "0\nX: a\n b\n\n", refused: true},
		{name: "a trailer without a colon", in: "0\nX\n\n", refused: true},
	} {
		for _, piece := range []int{1, 2, 7, 1 << 20} {
			t.Run(fmt.Sprintf("%s/%d", c.name, piece), func(t *testing.T) {
				b := NewBody(head, true, &message.Interner{})
				in := crlfed(c.in)
				next := ""
				if !c.open && !c.refused {
					next = "GET /next"
				}
				content, used, err := readAll(&b, []byte(in+next), piece)
				if c.refused {
					if err == nil || b.Done() {
						t.Fatalf("%q gives %q, done %t, %v: a body that is refused is never done, so that its connection ends", in, content, b.Done(), err)
					}
					return
				}
				if err != nil || string(content) != c.content || used != len(in) || b.Done() == c.open {
					t.Fatalf("content %q, used %d of %d, done %t, %v", content, used, len(in), b.Done(), err)
				}
				if !slices.Equal(b.Trailers(), c.trailers) {
					t.Errorf("trailers %v, want %v", b.Trailers(), c.trailers)
				}
			})
		}
	}
	t.Run("bare LF", func(t *testing.T) {
		for _, in := range []string{"3\nabc", "3\r\nabc\n", "0\r\nX: a\n\r\n", "0\r\n\n"} {
			b := NewBody(head, true, &message.Interner{})
			if content, _, err := readAll(&b, []byte(in), 1); err == nil {
				t.Errorf("%q accepted as %q", in, content)
			}
		}
	})
}

func TestWrite(t *testing.T) {
	req := message.Head{
		Method: "POST", Authority: "a.test", Target: "/x", Chunked: true, ContentLength: message.Unknown, Trailers: true, Trailer: "X-T",
		Fields: []message.Field{{Name: "x-request-id", Value: "1"}},
	}
	want := "POST /x HTTP/1.1\nHost: a.test\nTE: trailers\nConnection: TE\nTransfer-Encoding: chunked\nTrailer: X-T\nX-Request-Id: 1\n\n"
	if got := string(AppendRequest(nil, &req)); got != crlfed(want) {
		t.Errorf("request:\n%q\nwant\n%q", got, crlfed(want))
	}
	resp := message.Head{Status: 101, ContentLength: message.Unknown, Upgrade: "websocket"}
	want = "HTTP/1.1 101 Switching Protocols\nUpgrade: websocket\nConnection: Upgrade\n\n"
	if got := string(AppendResponse(nil, &resp)); got != crlfed(want) {
		t.Errorf("response: %q, want %q", got, crlfed(want))
	}
	resp = message.Head{Status: 200, ContentLength: 0, Close: true}
	want = "HTTP/1.1 200 OK\nConnection: close\nContent-Length: 0\n\n"
	if got := string(AppendResponse(nil, &resp)); got != crlfed(want) {
		t.Errorf("response: %q, want %q", got, crlfed(want))
	}
	for _, status := range []int{103, 204} {
		resp = message.Head{Status: status, ContentLength: 5, Chunked: true}
		if got := string(AppendResponse(nil, &resp)); !strings.HasSuffix(got, "\r\n\r\n") || strings.Contains(got, ":") {
			t.Errorf("%d is framed: %q", status, got)
		}
	}
	body := AppendLastChunk(append(AppendChunkSize(nil, 26), "abcdefghijklmnopqrstuvwxyz\r\n"...), []message.Field{{Name: "x-t", Value: "v"}})
	if want := crlfed("1a\nabcdefghijklmnopqrstuvwxyz\n0\nX-T: v\n\n"); string(body) != want {
		t.Errorf("chunks %q, want %q", body, want)
	}
}

func BenchmarkRequest(b *testing.B) {
	in := []byte(crlfed("GET /api/v1/users?id=1 HTTP/1.1\nHost: localhost:8080\nUser-Agent: bench/1.0\nAccept: */*\nAccept-Encoding: gzip\nX-Request-Id: 0123456789abcdef\n\n"))
	r := newReader()
	var h message.Head
	var out []byte
	b.ReportAllocs()
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		if n, err := r.Request(in, &h); n == 0 || err != nil {
			b.Fatal(n, err)
		}
		out = AppendRequest(out[:0], &h)
	}
}
