package integration

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2Attack is a request over HTTP/2 that somebody who writes it down in HTTP/1.1 may write wrongly.
// "{id}" stands for the case, and "/{id}/canary" must not come to life.
type h2Attack struct {
	name string
	// fields replace those of an ordinary POST to /{id}/a, or come after them: "name: value" each. "-name"
	// leaves one out.
	fields   []string
	data     string // the body; "-" ends the stream with the head
	trailers []string
	verdict  string // as in the corpus, lines separated by ";"
}

const (
	canary   = "GET /{id}/canary HTTP/1.1\r\nHost: x\r\n\r\n" // 40 bytes
	injected = "y\r\nHost: x\r\n\r\n" + canary
	hello    = `forward POST /{id}/a "hello"`
)

// orRefuse is for what the specification leaves open.
const orRefuse = hello + ";or refuse"

var h2Attacks = []h2Attack{
	{"an honest request", nil, "hello", nil, hello},
	{"an honest request with a length", []string{"content-length: 5"}, "hello", nil, hello},
	{"an honest request without a body", []string{"-:method", ":method: GET"}, "-", nil, "forward GET /{id}/a"},

	{"H2.CL: the length 0", []string{"content-length: 0"}, canary, nil, `forward POST /{id}/a "";or cut`},
	{"H2.CL: a length that is too short", []string{"content-length: 5"}, "hello" + canary, nil, "cut"},
	{"H2.CL: a length that is too long", []string{"content-length: 50"}, "hello", nil, "cut"},
	{"a length without a body", []string{"content-length: 40"}, "-", nil, "cut"},
	{"two lengths", []string{"content-length: 5", "content-length: 0"}, "hello", nil, "refuse"},
	{"two lengths that agree", []string{"content-length: 5", "content-length: 5"}, "hello", nil, "refuse"},
	{"two lengths in a list", []string{"content-length: 5, 0"}, "hello", nil, "refuse"},
	{"a signed length", []string{"content-length: +5"}, "hello", nil, "refuse"},
	{"a negative length", []string{"content-length: -5"}, "hello", nil, "refuse"},
	{"a hexadecimal length", []string{"content-length: 0x5"}, "hello", nil, "refuse"},
	{"a length beyond 64 bits", []string{"content-length: 18446744073709551621"}, "hello", nil, "refuse"},
	{"an empty length", []string{"content-length: "}, "hello", nil, "refuse"},
	{"a length with an underscore", []string{"content_length: 0"}, "hello", nil, orRefuse},

	{"H2.TE", []string{"transfer-encoding: chunked"}, "0\r\n\r\n" + canary, nil, "refuse"},
	{"H2.TE with a length", []string{"transfer-encoding: chunked", "content-length: 45"}, "0\r\n\r\n" + canary, nil, "refuse"},
	{"H2.TE: identity", []string{"transfer-encoding: identity"}, "hello", nil, "refuse"},
	{"H2.TE: nothing", []string{"transfer-encoding: "}, "hello", nil, "refuse"},
	{"H2.TE in other case", []string{"Transfer-Encoding: chunked"}, "0\r\n\r\n" + canary, nil, "refuse"},
	{"H2.TE with an underscore", []string{"transfer_encoding: chunked"}, "hello", nil, orRefuse},
	{"H2.TE with a space behind the name", []string{"transfer-encoding : chunked"}, "hello", nil, "refuse"},
	{"H2.TE in a value", []string{"x-other: y\r\ntransfer-encoding: chunked"}, "0\r\n\r\n" + canary, nil, "refuse"},
	{"H2.TE in a name", []string{"x-other\r\ntransfer-encoding: chunked"}, "0\r\n\r\n" + canary, nil, "refuse"},
	{"connection", []string{"connection: close"}, "hello", nil, "refuse"},
	{"connection names a field", []string{"connection: content-length"}, "hello", nil, "refuse"},
	{"keep-alive", []string{"keep-alive: timeout=5"}, "hello", nil, "refuse"},
	{"proxy-connection", []string{"proxy-connection: close"}, "hello", nil, "refuse"},
	{"upgrade", []string{"upgrade: h2c"}, "hello", nil, "refuse"},
	{"te: trailers", []string{"te: trailers"}, "hello", nil, hello},
	{"te: gzip", []string{"te: gzip"}, "hello", nil, "refuse"},

	{"a request in a value", []string{"x-other: " + injected}, "hello", nil, "refuse"},
	{"a line feed in a value", []string{"x-other: y\nz"}, "hello", nil, "refuse"},
	{"a return in a value", []string{"x-other: y\rz"}, "hello", nil, "refuse"},
	{"a NUL in a value", []string{"x-other: y\x00z"}, "hello", nil, "refuse"},
	{"a control character in a value", []string{"x-other: y\x01z"}, "hello", nil, orRefuse},
	{"a space before a value", []string{"x-other:  y"}, "hello", nil, orRefuse},
	{"a tab behind a value", []string{"x-other: y\t"}, "hello", nil, orRefuse},
	{"a colon in a name", []string{"x:y: z"}, "hello", nil, "refuse"},
	{"a space in a name", []string{"x y: z"}, "hello", nil, "refuse"},
	{"a request in a name", []string{"x: " + injected + "y"}, "hello", nil, "refuse"},
	{"a NUL in a name", []string{"x\x00y: z"}, "hello", nil, "refuse"},
	{"an empty name", []string{": z"}, "hello", nil, "refuse"},
	{"a name in upper case", []string{"X-Other: z"}, "hello", nil, "refuse"},
	{"a name with bytes above 127", []string{"x-\xc3\xa4: z"}, "hello", nil, "refuse"},
	{"250 fields", strings.Split(strings.Repeat("x-many: y\n", 249)+"x-many: y", "\n"), "hello", nil, "refuse"},
	{"a field of 70 KB", []string{"x-large: " + strings.Repeat("~", 70_000)}, "hello", nil, "refuse"},

	{"a request in the path", []string{"-:path", ":path: /{id}/a HTTP/1.1\r\nHost: x\r\n\r\n" + canary}, "hello", nil, "refuse"},
	{"a space in the path", []string{"-:path", ":path: /{id}/a b"}, "hello", nil, "refuse"},
	{"a version in the path", []string{"-:path", ":path: /{id}/a HTTP/1.0"}, "hello", nil, "refuse"},
	{"a tab in the path", []string{"-:path", ":path: /{id}/a\tb"}, "hello", nil, "refuse"},
	{"a line feed in the path", []string{"-:path", ":path: /{id}/a\nx: y"}, "hello", nil, "refuse"},
	{"a NUL in the path", []string{"-:path", ":path: /{id}/a\x00b"}, "hello", nil, "refuse"},
	{"a fragment in the path", []string{"-:path", ":path: /{id}/a#b"}, "hello", nil, "refuse"},
	{"bytes above 127 in the path", []string{"-:path", ":path: /{id}/\xc3\xa4"}, "hello", nil, "refuse"},
	{"a path without a slash", []string{"-:path", ":path: {id}/a"}, "hello", nil, "refuse"},
	{"an absolute path", []string{"-:path", ":path: http://x/{id}/a"}, "hello", nil, "refuse"},
	{"an asterisk as the path", []string{"-:path", ":path: *"}, "hello", nil, "refuse"},
	{"an empty path", []string{"-:path", ":path: "}, "hello", nil, "refuse"},
	{"no path", []string{"-:path"}, "hello", nil, "refuse"},
	{"two paths", []string{":path: /{id}/canary"}, "hello", nil, "refuse"},

	{"a request in the method", []string{"-:method", ":method: GET /{id}/canary HTTP/1.1\r\nHost: x\r\n\r\nGET"}, "hello", nil, "refuse"},
	{"a target in the method", []string{"-:method", ":method: GET /{id}/canary?"}, "hello", nil, "refuse"},
	{"an empty method", []string{"-:method", ":method: "}, "hello", nil, "refuse"},
	{"no method", []string{"-:method"}, "hello", nil, "refuse"},
	{"two methods", []string{":method: GET"}, "hello", nil, "refuse"},
	{"CONNECT", []string{"-:method", "-:path", "-:scheme", ":method: CONNECT"}, canary, nil, "refuse"},
	{"CONNECT with a path", []string{"-:method", ":method: CONNECT"}, canary, nil, "refuse"},
	{"a protocol without CONNECT", []string{":protocol: websocket"}, "hello", nil, "refuse"},

	{"a URI as the scheme", []string{"-:scheme", ":scheme: http://x/{id}/canary?"}, "hello", nil, orRefuse},
	{"a request in the scheme", []string{"-:scheme", ":scheme: http" + injected}, "hello", nil, "refuse"},
	{"no scheme", []string{"-:scheme"}, "hello", nil, "refuse"},
	{"two schemes", []string{":scheme: https"}, "hello", nil, "refuse"},

	{"a request in the authority", []string{"-:authority", ":authority: " + injected}, "hello", nil, "refuse"},
	{"a path in the authority", []string{"-:authority", ":authority: x/{id}/canary?"}, "hello", nil, "refuse"},
	{"a space in the authority", []string{"-:authority", ":authority: x y"}, "hello", nil, "refuse"},
	{"a user in the authority", []string{"-:authority", ":authority: a@x"}, "hello", nil, "refuse"},
	{"an empty authority", []string{"-:authority", ":authority: "}, "hello", nil, orRefuse},
	{"neither authority nor host", []string{"-:authority"}, "hello", nil, orRefuse},
	{"host instead of the authority", []string{"-:authority", "host: x"}, "hello", nil, hello},
	{"host and authority that agree", []string{"host: x"}, "hello", nil, hello},
	{"host and authority that differ", []string{"host: y"}, "hello", nil, "refuse"},
	{"two hosts", []string{"-:authority", "host: x", "host: y"}, "hello", nil, "refuse"},
	{"a request in host", []string{"-:authority", "host: " + injected}, "hello", nil, "refuse"},
	{"two authorities", []string{":authority: y"}, "hello", nil, "refuse"},

	{"a pseudo-field after a field", []string{"-:path", "x-other: y", ":path: /{id}/a"}, "hello", nil, "refuse"},
	{"an unknown pseudo-field", []string{":other: y"}, "hello", nil, "refuse"},
	{"a status", []string{":status: 200"}, "hello", nil, "refuse"},

	{"crumbs of cookies", []string{"cookie: a=b", "cookie: c=d"}, "hello", nil, hello},
	{"an expectation", []string{"expect: 100-continue"}, "hello", nil, hello},
	{"a GET with a body", []string{"-:method", ":method: GET"}, canary, nil, `forward GET /{id}/a "` + canary + `";or refuse`},
	{"a HEAD with a body", []string{"-:method", ":method: HEAD"}, canary, nil, `forward HEAD /{id}/a "` + canary + `";or refuse`},

	{"a trailer", nil, "hello", []string{"x-sum: 1"}, hello},
	{"a length in the trailer", nil, "hello", []string{"content-length: 0"}, hello + ";or cut"},
	{"an encoding in the trailer", nil, "hello", []string{"transfer-encoding: chunked"}, hello + ";or cut"},
	{"a host in the trailer", nil, "hello", []string{"host: y"}, hello + ";or cut"},
	{"a pseudo-field in the trailer", nil, "hello", []string{":path: /{id}/canary"}, "cut"},
	{"a request in the trailer", nil, "hello", []string{"x-sum: " + injected}, "cut"},
	{"a trailer in upper case", nil, "hello", []string{"X-Sum: 1"}, "cut"},
	{"a length that the trailer finds wrong", []string{"content-length: 10"}, "hello", []string{"x-sum: 1"}, "cut"},
}

// trial makes a case of it, as those of the corpus are.
func (a h2Attack) trial(t *testing.T, d door, id string) *trial {
	t.Helper()
	c := &trial{attack: attack{name: a.name}, door: d, id: id}
	for line := range strings.SplitSeq(a.verdict, ";") {
		word, rest, _ := strings.Cut(line, " ")
		switch word {
		case "forward":
			method, rest, _ := strings.Cut(strings.ReplaceAll(rest, "{id}", id), " ")
			target, body, _ := strings.Cut(rest, " ")
			c.forwards = append(c.forwards, told{method, target, strings.Trim(body, `"`)})
		case "cut":
			c.refused, c.partly = true, true
		case "refuse":
			c.refused = true
		case "or":
			c.refused, c.partly = true, rest == "cut" // what ends with its head may be forwarded before it is found wrong
		default:
			t.Fatalf("%s: the verdict is %q", a.name, a.verdict)
		}
	}
	return c
}

// list are the fields of the request, the pseudo-fields first unless the case says otherwise.
func (a h2Attack) list(id string) []hpack.HeaderField {
	ordinary := []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":authority", Value: "x"}, {Name: ":path", Value: "/" + id + "/a"}}
	var more []hpack.HeaderField
	for _, text := range a.fields {
		if name, ok := strings.CutPrefix(text, "-"); ok {
			ordinary = deleteField(ordinary, name)
			continue
		}
		more = append(more, field(strings.ReplaceAll(text, "{id}", id)))
	}
	return append(ordinary, more...)
}

func deleteField(fields []hpack.HeaderField, name string) []hpack.HeaderField {
	var left []hpack.HeaderField
	for _, f := range fields {
		if f.Name != name {
			left = append(left, f)
		}
	}
	return left
}

// field reads "name: value", where the name may begin with a colon and hold others.
func field(text string) hpack.HeaderField {
	at := max(1+strings.Index(text[1:], ": "), 0)
	if strings.HasPrefix(text, ": ") {
		at = 0
	}
	return hpack.HeaderField{Name: text[:at], Value: text[at+2:]}
}

// run sends the case on a connection of its own and notes how it ends: an answer, or a stream or a
// connection that is given up, which counts as 400.
func (a h2Attack) run(c *trial) {
	conn, err := c.door.dial()
	if err != nil {
		c.hung = err
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	go a.send(framer, conn, c.id)
	for c.hung == nil {
		frame, err := framer.ReadFrame()
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			status := 0
			for _, digit := range []byte(f.PseudoValue("status")) {
				status = 10*status + int(digit-'0')
			}
			if status >= 200 {
				c.statuses, c.closing = append(c.statuses, status), true
			}
			if f.StreamEnded() {
				return
			}
		case *http2.DataFrame:
			c.bodies += string(f.Data())
			if f.StreamEnded() {
				return
			}
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			if len(c.statuses) == 0 {
				c.statuses, c.closing = []int{400}, true
			}
			return
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.hung = err
		} else if err != nil {
			return
		}
	}
}

// send writes the request. What fails has been refused.
func (a h2Attack) send(framer *http2.Framer, conn io.Writer, id string) {
	_, _ = io.WriteString(conn, http2.ClientPreface)
	_ = framer.WriteSettings()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	head := func(fields []hpack.HeaderField, end bool) {
		block.Reset()
		for _, f := range fields {
			_ = encoder.WriteField(f)
		}
		rest := block.Bytes()
		first := rest[:min(len(rest), 16000)]
		rest = rest[len(first):]
		_ = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first, EndHeaders: len(rest) == 0, EndStream: end})
		for len(rest) > 0 {
			part := rest[:min(len(rest), 16000)]
			rest = rest[len(part):]
			_ = framer.WriteContinuation(1, len(rest) == 0, part)
		}
	}
	head(a.list(id), a.data == "-")
	if a.data == "-" {
		return
	}
	_ = framer.WriteData(1, len(a.trailers) == 0, []byte(strings.ReplaceAll(a.data, "{id}", id)))
	if len(a.trailers) > 0 {
		var fields []hpack.HeaderField
		for _, text := range a.trailers {
			fields = append(fields, field(strings.ReplaceAll(text, "{id}", id)))
		}
		head(fields, true)
	}
}

// A request over HTTP/2 is refused, or an application of HTTP/1.1 behind it sees that request and
// nothing else.
func TestSmugglingHTTP2(t *testing.T) {
	mesh := wire(t)
	number := 90_000 // the ids of the corpus are below
	var all []*trial
	for _, d := range []door{
		{"gateway", mesh.inbound(t, "edge", 8082), ""},
		{"gateway with a certificate", mesh.inbound(t, "edge", 8083), "h2"},
		{"without client certificates", mesh.inbound(t, "bytes", 9083), "h2"},
		{"outbound", mesh.outbound(t, "caller", "bytes", 9080), ""},
	} {
		for _, a := range h2Attacks {
			c := a.trial(t, d, fmt.Sprintf("c%d", number))
			a.run(c)
			all = append(all, c)
			number++
		}
	}
	saw, touched := mesh.recorder.byID(t)
	for _, c := range all {
		t.Run(c.door.name+"/"+c.name, func(t *testing.T) {
			if err := c.judge(saw[c.id], touched[c.id]); err != nil {
				t.Error(c.explain(err))
			}
		})
	}
	for _, difference := range mesh.recorder.differences() {
		t.Error(difference)
	}
}
