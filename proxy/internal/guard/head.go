package guard

import (
	"bytes"
	"strings"
)

// head is what has been read of one request's head.
type head struct {
	version    int // 0: no request line yet, 10 or 11
	fields     int
	trailers   int
	hosts      int
	lengths    int
	length     int64
	encodings  int
	connection bool   // Connection lists "upgrade"
	protocol   string // the value of Upgrade
	upgrades   int
}

// tokenByte are the characters of methods and field names (RFC 9110 section 5.6.2).
var tokenByte = func() (table [256]bool) {
	for _, b := range []byte("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") {
		table[b] = true
	}
	return table
}()

func isToken(s []byte) bool {
	for _, b := range s {
		if !tokenByte[b] {
			return false
		}
	}
	return len(s) > 0
}

// requestLine reads "METHOD TARGET HTTP/1.x", with exactly one space between the parts.
func (h *head) requestLine(line []byte) *Violation {
	method, rest, ok := bytes.Cut(line, []byte(" "))
	target, version, ok2 := bytes.Cut(rest, []byte(" "))
	if !ok || !ok2 || !isToken(method) {
		return bad("the request line is not METHOD TARGET VERSION")
	}
	if string(method) == "CONNECT" {
		return bad("CONNECT asks for a tunnel, which is not served")
	}
	if len(target) == 0 {
		return bad("the request line has no target")
	}
	for _, b := range target {
		// "#" begins a fragment, which belongs in no request; some read it as the end of the path.
		if b <= 0x20 || b >= 0x7f || b == '#' {
			return bad("the target has a character that stands in no URL")
		}
	}
	switch string(version) {
	case "HTTP/1.1":
		h.version = 11
	case "HTTP/1.0":
		h.version = 10
	default:
		return bad("the version is neither HTTP/1.1 nor HTTP/1.0")
	}
	return nil
}

// field reads one line "name: value" of a head.
func (h *head) field(line []byte) *Violation {
	if h.fields++; h.fields > MaxFields {
		return tooLarge("it has more than %d header fields", MaxFields)
	}
	name, value, v := splitField(line)
	if v != nil {
		return v
	}
	switch strings.ToLower(string(name)) {
	case "content-length":
		h.lengths++
		length, ok := parseLength(value)
		if !ok {
			return bad("Content-Length is not a number")
		}
		h.length = length
	case "transfer-encoding":
		if h.encodings++; !strings.EqualFold(string(value), "chunked") {
			return bad("Transfer-Encoding is something else than chunked")
		}
	case "content_length", "transfer_encoding":
		// CGI and its heirs (WSGI, Rack, PHP) make one variable of both spellings.
		return bad("a field's name is read by some as one that says where the body ends")
	case "host":
		h.hosts++
	case "connection":
		h.connection = h.connection || hasElement(value, "upgrade")
	case "upgrade":
		h.upgrades++
		h.protocol = string(value)
	}
	return nil
}

// trailer reads one line of trailers. What decides about the message may not stand there
// (RFC 9110 section 6.5.1).
func (h *head) trailer(line []byte) *Violation {
	if h.trailers++; h.trailers > MaxFields {
		return tooLarge("it has more than %d trailer fields", MaxFields)
	}
	name, _, v := splitField(line)
	if v != nil {
		return v
	}
	switch strings.ReplaceAll(strings.ToLower(string(name)), "_", "-") {
	case "content-length", "transfer-encoding", "host", "connection", "upgrade", "te", "trailer", "authorization", "expect":
		return bad("a field stands in the trailers that has to stand in the head")
	}
	return nil
}

// splitField takes a line apart into a name and a value without the white space around it.
func splitField(line []byte) (name, value []byte, v *Violation) {
	if line[0] == ' ' || line[0] == '\t' {
		return nil, nil, bad("a field is continued on the next line")
	}
	name, value, ok := bytes.Cut(line, []byte(":"))
	if !ok || !isToken(name) {
		return nil, nil, bad("a field's name is not a token followed by a colon")
	}
	return name, bytes.Trim(value, " \t"), nil
}

// framing says where the body of a complete head ends (RFC 9112 section 6.3).
func (h *head) framing() (length int64, chunked bool, v *Violation) {
	switch {
	case h.hosts > 1:
		return 0, false, bad("it has several Host fields")
	case h.hosts == 0 && h.version == 11:
		return 0, false, bad("it has no Host field")
	case h.encodings > 0 && h.lengths > 0:
		return 0, false, bad("it has both Transfer-Encoding and Content-Length")
	case h.encodings > 1:
		return 0, false, bad("it has several Transfer-Encoding fields")
	case h.encodings > 0 && h.version == 10:
		return 0, false, bad("it has Transfer-Encoding in HTTP/1.0")
	case h.lengths > 1:
		return 0, false, bad("it has several Content-Length fields")
	}
	return h.length, h.encodings > 0, nil
}

// wantsUpgrade tells whether a request without a body asks for another protocol. An upgrade to HTTP/2
// is left unanswered, as RFC 9113 section 3.1 has it.
func (h *head) wantsUpgrade() bool {
	return h.version == 11 && h.connection && h.upgrades == 1 && IsUpgrade(h.protocol)
}

// IsUpgrade tells whether the value of an Upgrade field names a protocol to switch to.
func IsUpgrade(value string) bool {
	v := []byte(value)
	return len(bytes.Trim(v, " \t,")) > 0 && !hasElement(v, "h2c") && !hasElement(v, "h2")
}

// hasElement looks for an element of a comma-separated list, without regard to case.
func hasElement(list []byte, want string) bool {
	for element := range bytes.SplitSeq(list, []byte(",")) {
		if strings.EqualFold(string(bytes.Trim(element, " \t")), want) {
			return true
		}
	}
	return false
}
