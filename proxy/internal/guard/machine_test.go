package guard

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
)

// run feeds a stream in pieces and gives what was passed on and how it ended.
func run(m *Machine, stream string, piece int) (out []byte, violation *Violation) {
	in := []byte(stream)
	for len(in) > 0 {
		n, passed, err := m.Next(in[:min(piece, len(in))])
		out = append(out, passed...)
		in = in[n:]
		if err != nil {
			errors.As(err, &violation)
			return out, violation
		}
	}
	return out, nil
}

const get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"

func TestAccepts(t *testing.T) {
	tests := map[string]string{
		"get":                       get,
		"pipelined":                 get + get + get,
		"HTTP/1.0 without Host":     "GET / HTTP/1.0\r\n\r\n",
		"absolute target":           "GET http://a/b?c HTTP/1.1\r\nHost: a\r\n\r\n",
		"asterisk":                  "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
		"length":                    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" + get,
		"length 0":                  "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n" + get,
		"body like a head":          "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n\x00\r\n" + get,
		"chunked":                   "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + get,
		"chunked in capitals":       "POST / HTTP/1.1\r\nHost: a\r\nTRANSFER-ENCODING: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"chunks, upper and zeros":   "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n00A\r\n0123456789\r\n000\r\n\r\n" + get,
		"chunk extension":           "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a=\"b\"\r\nx\r\n0;c\r\n\r\n" + get,
		"trailers":                  "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n0\r\nX: y\r\n\r\n" + get,
		"white space around values": "GET / HTTP/1.1\r\nHost:\t a \t\r\nX:\r\n\r\n",
		"bytes beyond ASCII":        "GET / HTTP/1.1\r\nHost: a\r\nX: caf\xc3\xa9\r\n\r\n",
		"an upgrade to h2c is none": "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n" + get,
		"an upgrade with a body":    "POST / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 1\r\n\r\nx" + get,
	}
	for name, stream := range tests {
		t.Run(name, func(t *testing.T) {
			for _, piece := range []int{1, 2, 3, 7, 1 << 20} {
				var m Machine
				out, v := run(&m, stream, piece)
				if v != nil {
					t.Fatalf("pieces of %d: refused: %s", piece, v.Reason)
				}
				if string(out) != stream {
					t.Fatalf("pieces of %d: passed on %q", piece, out)
				}
				if m.Partial() || m.Opaque() {
					t.Errorf("pieces of %d: partial %v, opaque %v", piece, m.Partial(), m.Opaque())
				}
			}
		})
	}
}

func TestRefuses(t *testing.T) {
	post := func(fields, body string) string { return "POST / HTTP/1.1\r\nHost: a\r\n" + fields + "\r\n" + body }
	chunked := func(body string) string { return post("Transfer-Encoding: chunked\r\n", body) }
	tests := map[string]struct {
		stream string
		status int
		passed int // at most so many bytes
	}{
		"both lengths":                  {post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"), 400, 0},
		"both lengths, other order":     {post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), 400, 0},
		"two lengths":                   {post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello"), 400, 0},
		"two equal lengths":             {post("Content-Length: 5\r\ncontent-length: 5\r\n", "hello"), 400, 0},
		"a list of lengths":             {post("Content-Length: 5, 5\r\n", "hello"), 400, 0},
		"a signed length":               {post("Content-Length: +5\r\n", "hello"), 400, 0},
		"a negative length":             {post("Content-Length: -5\r\n", "hello"), 400, 0},
		"a hexadecimal length":          {post("Content-Length: 0x5\r\n", "hello"), 400, 0},
		"an empty length":               {post("Content-Length:\r\n", ""), 400, 0},
		"an enormous length":            {post("Content-Length: 99999999999999999999\r\n", ""), 400, 0},
		"a length with an underscore":   {post("Content_Length: 5\r\n", "hello"), 400, 0},
		"a coding with an underscore":   {post("Transfer_Encoding: chunked\r\n", "0\r\n\r\n"), 400, 0},
		"another coding":                {post("Transfer-Encoding: gzip\r\n", ""), 400, 0},
		"a coding before chunked":       {post("Transfer-Encoding: gzip, chunked\r\n", ""), 400, 0},
		"identity":                      {post("Transfer-Encoding: identity\r\n", ""), 400, 0},
		"chunked twice":                 {post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", ""), 400, 0},
		"chunked with a vertical tab":   {post("Transfer-Encoding: \x0bchunked\r\n", ""), 400, 0},
		"a coding in HTTP/1.0":          {"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, 0},
		"space before the colon":        {post("Content-Length : 5\r\n", "hello"), 400, 0},
		"a continued field":             {post("X: a\r\n b\r\n", ""), 400, 0},
		"a continued first field":       {"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, 0},
		"a line without a colon":        {post("X\r\n", ""), 400, 0},
		"an empty name":                 {post(": x\r\n", ""), 400, 0},
		"a bare line feed in the head":  {"GET / HTTP/1.1\nHost: a\r\n\r\n", 400, 0},
		"a bare line feed at the end":   {"GET / HTTP/1.1\r\nHost: a\r\n\n", 400, 0},
		"a bare carriage return":        {post("X: a\rY: b\r\n", ""), 400, 0},
		"a NUL in a value":              {post("X: a\x00b\r\n", ""), 400, 0},
		"a control character":           {post("X: a\x01b\r\n", ""), 400, 0},
		"DEL":                           {post("X: a\x7fb\r\n", ""), 400, 0},
		"two hosts":                     {post("Host: b\r\n", ""), 400, 0},
		"no host":                       {"GET / HTTP/1.1\r\n\r\n", 400, 0},
		"an empty line first":           {"\r\n" + get, 400, 0},
		"a space first":                 {" " + get, 400, 0},
		"two spaces":                    {"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400, 0},
		"a space in the target":         {"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400, 0},
		"a tab for a space":             {"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, 0},
		"a fragment":                    {"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400, 0},
		"a target beyond ASCII":         {"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", 400, 0},
		"HTTP/0.9":                      {"GET /\r\n\r\n", 400, 0},
		"HTTP/1.2":                      {"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 400, 0},
		"lower-case version":            {"GET / http/1.1\r\nHost: a\r\n\r\n", 400, 0},
		"CONNECT":                       {"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 400, 0},
		"a TLS record":                  {"\x16\x03\x01\x02\x00\x01", 400, 0},
		"HTTP/2 where it is not wanted": {preface, 400, 0},
		"a chunk without size":          {chunked("\r\nhello"), 400, 1 << 20},
		"a chunk size with a sign":      {chunked("+5\r\nhello"), 400, 1 << 20},
		"a chunk size with 0x":          {chunked("0x5\r\nhello"), 400, 1 << 20},
		"a chunk size with a space":     {chunked("5 \r\nhello"), 400, 1 << 20},
		"an enormous chunk":             {chunked("1000000000000000\r\n"), 400, 1 << 20},
		"a bare line feed after a size": {chunked("5\nhello\r\n"), 400, 1 << 20},
		"a chunk that is too long":      {chunked("5\r\nhello!\r\n0\r\n\r\n"), 400, 1 << 20},
		"a chunk ended by a line feed":  {chunked("5\r\nhello\n0\r\n\r\n"), 400, 1 << 20},
		"a line feed in an extension":   {chunked("5;a\nb\r\nhello\r\n"), 400, 1 << 20},
		"a long extension":              {chunked("5;" + strings.Repeat("a", 300) + "\r\n"), 400, 1 << 20},
		"a length in the trailers":      {chunked("0\r\nContent-Length: 5\r\n\r\n"), 400, 1 << 20},
		"a bad trailer":                 {chunked("0\r\nX : y\r\n\r\n"), 400, 1 << 20},
		"a bare line feed in trailers":  {chunked("0\r\nX: y\n\r\n"), 400, 1 << 20},
		"a head of 64 KiB":              {post("X: "+strings.Repeat("a", MaxHead)+"\r\n", ""), 431, 0},
		"a head without end":            {"GET /" + strings.Repeat("a", 2*MaxHead), 431, 0},
		"too many fields":               {post(strings.Repeat("X: y\r\n", MaxFields), ""), 431, 0},
		"too many trailers":             {chunked("0\r\n" + strings.Repeat("X: y\r\n", MaxFields+1) + "\r\n"), 431, 1 << 20},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for _, piece := range []int{1, 2, 5, 1 << 20} {
				var m Machine
				out, v := run(&m, tt.stream, piece)
				if v == nil {
					t.Fatalf("pieces of %d: accepted, passed on %q", piece, out)
				}
				if v.Status != tt.status {
					t.Errorf("pieces of %d: status %d (%s), want %d", piece, v.Status, v.Reason, tt.status)
				}
				if len(out) > tt.passed {
					t.Errorf("pieces of %d: passed on %q", piece, out)
				}
				if n, more, err := m.Next([]byte(get)); n != 0 || len(more) > 0 || err == nil {
					t.Errorf("goes on after the refusal: %d, %q, %v", n, more, err)
				}
			}
		})
	}
}

func TestAllTheRestIsFineBeforeTheRefusal(t *testing.T) {
	var m Machine
	out, v := run(&m, get+"GET / HTTP/1.1\r\nHost: a\r\nbad line\r\n\r\n", 1<<20)
	if v == nil || string(out) != get {
		t.Errorf("violation %v, passed on %q", v, out)
	}
}

func TestHTTP2Preface(t *testing.T) {
	m := Machine{HTTP2: true}
	stream := preface + "\x00\x00\x00\x04\x00anything"
	if out, v := run(&m, stream, 3); v != nil || string(out) != stream || !m.Opaque() || m.Upgrade() != 0 {
		t.Errorf("violation %v, passed on %q", v, out)
	}
	for _, bad := range []string{"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", "PRI * HTTP/2.0\r\nHost: a\r\n\r\n", "PRI / HTTP/2.0\r\n\r\nSM\r\n\r\n", get + preface} {
		m := Machine{HTTP2: true}
		if out, v := run(&m, bad, 4); v == nil {
			t.Errorf("%q is accepted: %q", bad, out)
		}
	}
}

func TestUpgrade(t *testing.T) {
	head := "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n"
	for _, piece := range []int{1, 1 << 20} {
		var m Machine
		stream := get + head + "\x81\x00\nanything"
		out, v := run(&m, stream, piece)
		if v != nil || string(out) != stream || !m.Opaque() || m.Upgrade() != 2 {
			t.Errorf("violation %v, passed on %q, upgrade %d", v, out, m.Upgrade())
		}
	}
	var m Machine
	n, out, err := m.Next([]byte(head + "early"))
	if err != nil || n != len(head) || string(out) != head {
		t.Errorf("the first call gives %d, %q, %v: it has to end at the head", n, out, err)
	}
}

// FuzzMachine compares with net/http: what is accepted here, net/http takes apart at the same places,
// and it does not matter in which pieces it arrives.
func FuzzMachine(f *testing.F) {
	for _, seed := range []string{
		get, get + get, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" + get,
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nX: y\r\n\r\n" + get,
		"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", preface,
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x00",
	} {
		f.Add(seed, 3)
	}
	f.Fuzz(func(t *testing.T, stream string, piece int) {
		piece = max(1, piece&63)
		var whole, parts Machine
		out, v := run(&whole, stream, len(stream)+1)
		again, v2 := run(&parts, stream, piece)
		// Which of several things is found first may depend on the pieces.
		if (v == nil) != (v2 == nil) || !bytes.Equal(out, again) {
			t.Fatalf("%q in one piece: %q, %v; in pieces of %d: %q, %v", stream, out, v, piece, again, v2)
		}
		if !strings.HasPrefix(stream, string(out)) {
			t.Fatalf("%q becomes %q", stream, out)
		}
		if v != nil || whole.Opaque() || whole.state != inHead || len(whole.held) > 0 {
			return
		}
		count := 0
		reader := bufio.NewReader(bytes.NewReader(out))
		for {
			request, err := http.ReadRequest(reader)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return // net/http is stricter in some things (URLs, Host), and then closes
			}
			if _, err := io.Copy(io.Discard, request.Body); err != nil {
				t.Fatalf("request %d of %q: net/http cannot read the body: %v", count+1, stream, err)
			}
			count++
		}
		if count != whole.Requests() {
			t.Fatalf("%q is %d requests here and %d to net/http", stream, whole.Requests(), count)
		}
	})
}
