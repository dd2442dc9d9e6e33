// Package h1 knows the wire form of HTTP/1.1 (RFC 9112): how a head is read strictly, how bodies are
// framed, and how both are written. It does no input or output of its own: bytes go in, messages
// and bytes come out.
//
// It accepts one reading of each message and refuses the rest, because whoever reads next may read
// otherwise: that difference is what request smuggling lives on. What is written is made anew from
// what was understood, never copied.
package h1

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"countersign.dev/proxy/internal/message"
)

// Error is a refusal. Its status is what a server answers before it closes the connection.
type Error struct {
	Status int
	Reason string
}

// Error implements the error interface.
func (e *Error) Error() string { return e.Reason }

func bad(reason string) error { return &Error{400, reason} }

func badf(format string, args ...any) error { return &Error{400, fmt.Sprintf(format, args...)} }

// ErrTooLarge says that a head exceeds [message.MaxHead] or [message.MaxFields].
var ErrTooLarge = &Error{431, "the head is larger than 64 KiB or has more than 200 fields"}

// StatusOf is the status with which to refuse a request for err: an [Error]'s own, else 400.
func StatusOf(err error) int {
	var e *Error
	if errors.As(err, &e) {
		return e.Status
	}
	return 400
}

// Reader finds and reads heads. It remembers how far it has looked, so that a head that comes byte
// by byte costs no more than one that comes at once. The zero value is ready for a first head.
type Reader struct {
	Intern *message.Interner
	seen   int // bytes that hold no end of the head
	lines  int
}

// Request reads the head of a request at the start of b into h and returns its length, or 0 when b
// ends before the head does: call again with more appended. h holds no part of b.
func (r *Reader) Request(b []byte, h *message.Head) (int, error) {
	return r.head(b, h, true)
}

// Response reads the head of a response to a request with the given method; see [Reader.Request].
func (r *Reader) Response(b []byte, h *message.Head, method string) (int, error) {
	n, err := r.head(b, h, false)
	if n == 0 || err != nil {
		return n, err
	}
	switch {
	case h.Status < 200, h.Status == 204, h.Status == 304, method == "HEAD":
		h.Body = false
	case method == "CONNECT" && h.Status < 300:
		// RFC 9110 section 9.3.6: what follows is the tunnel, whatever the fields say.
		h.Body, h.Chunked, h.ContentLength = false, false, message.Unknown
	default:
		h.Body = true
	}
	return n, nil
}

func (r *Reader) head(b []byte, h *message.Head, request bool) (int, error) {
	skip := 0
	if request && len(b) >= 2 && b[0] == '\r' && b[1] == '\n' {
		skip = 2 // RFC 9112 section 2.2: one empty line before a request is forgiven
	}
	if request && len(b) > skip && b[skip] != '\r' && !message.IsToken(b[skip:skip+1]) {
		return 0, bad("the request line does not start with a method") // at once: it may be no HTTP, and wait for an answer
	}
	end, err := r.end(b, skip)
	if end == 0 || err != nil {
		return 0, err
	}
	*r = Reader{Intern: r.Intern}
	h.Reset()
	p := parser{in: r.Intern, h: h, request: request}
	if err := p.parse(b[skip : end-2]); err != nil {
		return 0, err
	}
	return end, nil
}

// end finds where the head ends. Line ends are checked on the way: a bare LF is refused as soon as
// it is seen, for a sender that uses it may never send what we wait for.
func (r *Reader) end(b []byte, skip int) (int, error) {
	at := max(r.seen, skip)
	for {
		i := bytes.IndexByte(b[at:], '\n')
		if i < 0 {
			break
		}
		i += at
		if i == 0 || b[i-1] != '\r' {
			return 0, bad("a line ends with a bare LF")
		}
		if i+1 > message.MaxHead {
			return 0, ErrTooLarge
		}
		if i-1 == at && at > skip { // an empty line, and not the first
			return i + 1, nil
		}
		if i-1 == at {
			return 0, bad("the start line is empty")
		}
		if r.lines++; r.lines > message.MaxFields+1 {
			return 0, ErrTooLarge
		}
		at = i + 1
		r.seen = at
	}
	if len(b) > message.MaxHead {
		return 0, ErrTooLarge
	}
	return 0, nil
}

// parser reads one whole head.
type parser struct {
	in      *message.Interner
	h       *message.Head
	request bool

	hosts      int
	hostValue  string
	connection string // what Connection says, in lower case
	upgrade    string
	keepAlive  bool
}

// parse reads lines that each end with CRLF.
func (p *parser) parse(b []byte) error {
	line, rest, _ := bytes.Cut(b, crlf)
	var err error
	if p.request {
		err = p.requestLine(line)
	} else {
		err = p.statusLine(line)
	}
	if err != nil {
		return err
	}
	for len(rest) > 0 {
		line, rest, _ = bytes.Cut(rest, crlf)
		if err := p.field(line); err != nil {
			return err
		}
	}
	return p.finish()
}

var crlf = []byte("\r\n")

func (p *parser) requestLine(line []byte) error {
	method, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok || !message.IsToken(method) {
		return bad("the request line does not start with a method and one space")
	}
	target, version, ok := bytes.Cut(rest, []byte{' '})
	if !ok || len(target) == 0 {
		return bad("the request line is not METHOD TARGET VERSION with single spaces")
	}
	switch string(version) {
	case "HTTP/1.1":
	case "HTTP/1.0":
		p.h.Minor = 0
	default:
		if string(method) == "PRI" {
			return bad("HTTP/2 begins where HTTP/1.1 was agreed on")
		}
		if len(version) == 8 && string(version[:5]) == "HTTP/" {
			return &Error{505, "the version is neither HTTP/1.1 nor HTTP/1.0"}
		}
		return bad("the request line does not end with a version")
	}
	p.h.Method = p.in.String(method)
	return p.target(target)
}

// target reads the four forms of RFC 9112 section 3.2.
func (p *parser) target(t []byte) error {
	h := p.h
	h.Scheme = "http"
	switch {
	case h.Method == "CONNECT":
		if !message.IsHostPort(t) {
			return bad("the target of CONNECT is not HOST:PORT")
		}
		h.Authority = p.in.String(t)
		return nil
	case t[0] == '/':
		if !message.IsTarget(t) {
			return bad("the request target has a character or a percent-encoding that is not allowed")
		}
		h.Target = p.in.String(t)
		return nil
	case len(t) == 1 && t[0] == '*' && h.Method == "OPTIONS":
		h.Target = "*"
		return nil
	}
	scheme, rest, ok := bytes.Cut(t, []byte("://"))
	if !ok || !message.EqualFold(scheme, "http") && !message.EqualFold(scheme, "https") {
		return bad("the request target is neither a path nor an absolute http URI")
	}
	authority, path := rest, []byte("/")
	if i := bytes.IndexAny(rest, "/?"); i >= 0 {
		authority, path = rest[:i], rest[i:]
		if path[0] == '?' {
			path = append([]byte{'/'}, path...)
		}
	}
	if !message.IsAuthority(authority) || !message.IsTarget(path) {
		return bad("the absolute request target has a character that is not allowed")
	}
	h.Scheme = strings.ToLower(string(scheme))
	h.Authority, h.Target = p.in.String(authority), p.in.String(path)
	return nil
}

func (p *parser) statusLine(line []byte) error {
	if len(line) < 12 || string(line[:7]) != "HTTP/1." || line[8] != ' ' {
		return bad("the status line is not HTTP/1.x CODE REASON")
	}
	switch line[7] {
	case '1':
	case '0':
		p.h.Minor = 0
	default:
		return bad("the version is neither HTTP/1.1 nor HTTP/1.0")
	}
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return bad("the status is not three digits")
		}
		p.h.Status = p.h.Status*10 + int(c-'0')
	}
	if p.h.Status < 100 || p.h.Status > 599 {
		return badf("status %d is outside 100 to 599", p.h.Status)
	}
	if len(line) > 12 && line[12] != ' ' {
		return bad("the status is not followed by a space")
	}
	for _, c := range line[12:] {
		if c < ' ' && c != '\t' || c == 0x7f {
			return bad("the reason has a control character")
		}
	}
	return nil
}

func (p *parser) field(line []byte) error {
	raw, value, ok := bytes.Cut(line, []byte{':'})
	if !ok {
		return bad("a header line has no colon")
	}
	if !message.IsToken(raw) { // also refuses obs-fold and white space before the colon
		return bad("a header name is empty, is folded or has a character that is not allowed")
	}
	value = bytes.Trim(value, " \t")
	if !message.IsValue(value) {
		return bad("a header value has a control character")
	}
	name := p.in.Name(raw)
	if taken, err := p.framing(name, value); taken || err != nil {
		return err
	}
	if len(p.h.Fields) == message.MaxFields {
		return ErrTooLarge
	}
	p.h.Add(name, p.in.Value(name, value))
	return nil
}

// framing takes the fields that concern the connection or frame the message.
func (p *parser) framing(name string, value []byte) (bool, error) {
	h := p.h
	switch name {
	case "host":
		if p.hosts++; p.hosts > 1 {
			return true, bad("there are several Host fields")
		}
		p.hostValue = p.in.String(value)
		return p.request, nil
	case "content-length":
		if h.ContentLength != message.Unknown {
			return true, bad("there are several Content-Length fields")
		}
		n, err := length(value)
		h.ContentLength = n
		return true, err
	case "transfer-encoding":
		if h.Chunked || !message.EqualFold(value, "chunked") {
			return true, &Error{501, "the Transfer-Encoding is not exactly chunked"}
		}
		h.Chunked = true
	case "connection":
		if option := p.in.Name(value); p.connection == "" {
			p.connection = option
		} else {
			p.connection += "," + option
		}
	case "upgrade":
		if p.upgrade != "" {
			return true, bad("there are several Upgrade fields")
		}
		p.upgrade = p.in.Name(value)
	case "te":
		h.Trailers = h.Trailers || hasToken(strings.ToLower(string(value)), "trailers")
	case "trailer":
		h.Trailer = message.Announced(h.Trailer, string(value))
	case "expect":
		if p.request {
			if !message.EqualFold(value, "100-continue") {
				return true, &Error{417, "the expectation is not 100-continue"}
			}
			h.Expect = true
			return true, nil
		}
		return false, nil
	case "keep-alive", "proxy-connection", "http2-settings":
	case "proxy-authenticate", "proxy-authorization":
	default:
		return false, nil
	}
	return true, nil
}

// length reads a Content-Length: digits only, at most 18, so that it fits.
func length(b []byte) (int64, error) {
	if len(b) == 0 || len(b) > 18 {
		return 0, bad("the Content-Length is empty or too long")
	}
	var n int64
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, bad("the Content-Length is not a number")
		}
		n = n*10 + int64(c-'0')
	}
	return n, nil
}

func (p *parser) finish() error {
	h := p.h
	if h.Chunked && h.ContentLength != message.Unknown {
		return bad("there is both a Transfer-Encoding and a Content-Length")
	}
	if h.Chunked && h.Minor == 0 {
		return bad("there is a Transfer-Encoding in HTTP/1.0")
	}
	if !h.Chunked {
		h.Trailer = "" // only chunks can be followed by trailers
	}
	if err := p.options(); err != nil {
		return err
	}
	if !p.request {
		if h.Status != 101 {
			h.Upgrade = ""
		}
		if h.Status < 200 || h.Status == 204 {
			// RFC 9110 section 8.6: no such response has a length, and one that claims it
			// would be read differently by different readers.
			if h.Chunked || h.ContentLength > 0 {
				return badf("a %d response has a body", h.Status)
			}
			h.ContentLength = message.Unknown
		}
		return nil
	}
	h.Expect = h.Expect && h.Minor == 1 // RFC 9110 section 10.1.1
	h.Body = h.Chunked || h.ContentLength != message.Unknown
	if hasToken(h.Upgrade, "h2c") || h.Method == "CONNECT" {
		// A tunnel of requests that nobody here would see, or one inside a tunnel: CONNECT with a protocol
		// is HTTP/2's own (RFC 8441). To ignore the field is allowed: RFC 9110 section 7.8.
		h.Upgrade = ""
	}
	if h.Method == "CONNECT" && h.Body {
		return bad("a CONNECT request has a body")
	}
	return p.host()
}

// maxOptions bounds the names in Connection fields: each is looked for among all fields.
const maxOptions = 100

// options reads what Connection says of this connection and of other fields.
func (p *parser) options() error {
	h := p.h
	upgrade, options := false, 0
	for rest, token := p.connection, ""; rest != ""; {
		token, rest, _ = strings.Cut(rest, ",")
		switch token = strings.Trim(token, " \t"); token {
		case "close":
			h.Close = true
		case "keep-alive":
			p.keepAlive = true
		case "upgrade":
			upgrade = true
		case "":
		default:
			h.Remove(func(name string) bool { return name == token })
		}
		if options++; options > maxOptions {
			return bad("the Connection fields name too many others")
		}
	}
	if h.Minor == 0 && !p.keepAlive {
		h.Close = true
	}
	if upgrade && h.Minor == 1 {
		h.Upgrade = p.upgrade
	}
	return nil
}

// host checks the Host field against the target (RFC 9112 sections 3.2 and 3.3).
func (p *parser) host() error {
	h := p.h
	if p.hosts == 0 {
		if h.Minor == 1 {
			return bad("there is no Host field")
		}
		return nil
	}
	if p.hostValue != "" && !message.IsAuthority(p.hostValue) {
		return bad("the Host field has a character that is not allowed")
	}
	if h.Authority == "" {
		h.Authority = p.hostValue
		return nil
	}
	if !message.EqualFold(h.Authority, p.hostValue) {
		return bad("the Host field disagrees with the request target")
	}
	return nil
}

func hasToken(list, token string) bool {
	for t := range strings.SplitSeq(list, ",") {
		if strings.Trim(t, " \t") == token {
			return true
		}
	}
	return false
}
