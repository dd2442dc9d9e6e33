// Package guard knows what an HTTP/1.1 request stream looks like that everybody reads in the same
// way, and keeps every other one away from the server behind it.
//
// net/http forgives: it takes Transfer-Encoding together with Content-Length, bare line feeds and
// repeated lengths, and the application behind a proxy may draw other conclusions from the same bytes
// (request smuggling). [Machine] reads the stream as RFC 9112 wants it written and nothing else. It
// does no input or output; [Conn] puts it below an http.Server.
package guard

import (
	"bytes"
	"fmt"
	"math"
	"net/http"
)

// Bounds of a request.
const (
	// MaxHead is the greatest size of a request's head in bytes, and of its trailers.
	MaxHead = 64 << 10
	// MaxFields is the greatest number of header fields, and of trailer fields.
	MaxFields = 200
	// maxExtension bounds the extensions of one chunk: they are ignored by everybody, and were used to
	// hide requests and to keep parsers busy.
	maxExtension = 256
	// keepHeld is how much memory a connection keeps from one head to the next.
	keepHeld = 2 << 10
	// maxSizeDigits keeps a chunk's size within 60 bits.
	maxSizeDigits = 15
)

// preface is how an HTTP/2 connection begins (RFC 9113 section 3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// prefaceLine is its first line without the line's end.
const prefaceLine = "PRI * HTTP/2.0"

// Violation is why a stream is refused.
type Violation struct {
	// Status is what to answer: 400 or 431.
	Status int
	// Reason is for people; it holds nothing that the caller sent.
	Reason string
}

// Error implements the error interface.
func (v *Violation) Error() string { return "refused request: " + v.Reason }

func bad(format string, args ...any) *Violation {
	return &Violation{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

func tooLarge(format string, args ...any) *Violation {
	return &Violation{http.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf(format, args...)}
}

// state is where in the stream the machine is.
type state int

const (
	inHead      state = iota // request line and fields
	inPreface                // after the first line of the HTTP/2 preface
	inBody                   // a body of known length
	inSize                   // the digits of a chunk's size
	inExtension              // from the ";" after them
	inSizeLF                 // the line feed of that line
	inData                   // a chunk's data
	inDataCR                 // the carriage return after it
	inDataLF                 // the line feed after that
	inTrailers               // the fields after the last chunk
	opaque                   // an upgrade or HTTP/2: not ours to read
	violated                 // nothing more is passed on
)

// Machine reads a request stream. The zero value is ready to use for a stream that may not be HTTP/2.
// It is not safe for concurrent use.
type Machine struct {
	// HTTP2 admits the preface of HTTP/2 at the beginning of the stream.
	HTTP2 bool

	state     state
	held      []byte // the part of a head or of trailers that was read
	line      int    // where in held the current line begins
	head      head
	remaining int64 // of a body or of a chunk
	digits    int   // of a chunk's size, or bytes of its extensions
	requests  int
	upgrade   int
}

// Requests is how many heads were passed on.
func (m *Machine) Requests() int { return m.requests }

// Upgrade is the number, counted from 1, of the request that asks for another protocol; 0 when none
// did. What follows that request is passed on unread: whoever answers it with anything but 101 has to
// close the connection.
func (m *Machine) Upgrade() int { return m.upgrade }

// Partial tells whether a head has begun and is not complete.
func (m *Machine) Partial() bool {
	return m.state == inPreface || m.state == inHead && len(m.held) > 0
}

// Opaque tells whether everything is passed on unread from now on.
func (m *Machine) Opaque() bool { return m.state == opaque }

// Next consumes n bytes of in and gives those bytes that may be passed on, which can be fewer (a head
// is held until it is complete) or more (it became complete). They are valid until the next call. At
// most one message's bytes are passed on in one call. With a *Violation the stream is over: out is
// what was good before it.
func (m *Machine) Next(in []byte) (n int, out []byte, err error) {
	switch m.state {
	case opaque:
		return len(in), in, nil
	case inHead, inPreface, inTrailers:
		n, out, v := m.lines(in)
		return n, out, m.fail(v)
	case inBody:
		n = int(min(int64(len(in)), m.remaining))
		if m.remaining -= int64(n); m.remaining == 0 {
			m.state = inHead
		}
		return n, in[:n], nil
	default:
		n, v := m.chunks(in)
		return n, in[:n], m.fail(v)
	}
}

// fail ends the stream when there is a violation.
func (m *Machine) fail(v *Violation) error {
	if v == nil {
		return nil
	}
	m.state, m.held = violated, nil
	return v
}

// lines collects a head or trailers, line by line, until the empty line.
func (m *Machine) lines(in []byte) (n int, out []byte, v *Violation) {
	for n < len(in) {
		end := bytes.IndexByte(in[n:], '\n') + 1
		complete := end > 0
		if !complete {
			end = len(in) - n
		}
		if len(m.held)+end > MaxHead {
			return n, nil, tooLarge("its head or trailers have more than %d bytes", MaxHead)
		}
		if v := controls(in[n : n+end]); v != nil {
			return n, nil, v
		}
		m.held = append(m.held, in[n:n+end]...)
		n += end
		// Seen at once, because what begins like this (a TLS record, for one) may never have a line's end.
		if m.state == inHead && m.line == 0 && !tokenByte[m.held[0]] {
			return n, nil, bad("it does not begin with a method")
		}
		if !complete {
			return n, nil, nil
		}
		line := m.held[m.line:]
		m.line = len(m.held)
		done, v := m.oneLine(line)
		if v != nil {
			return n, nil, v
		}
		if done {
			return n, m.release(), nil
		}
	}
	return n, nil, nil
}

// release hands out what was held. The next message begins with nothing, but keeps the memory when it
// is little: what was handed out is valid only until then.
func (m *Machine) release() []byte {
	out := m.held
	m.held, m.line = nil, 0
	if cap(out) <= keepHeld {
		m.held = out[:0]
	}
	return out
}

// oneLine reads one complete line of a head, of the preface or of trailers.
func (m *Machine) oneLine(line []byte) (done bool, v *Violation) {
	if m.state == inPreface {
		return m.prefaceLine()
	}
	line, ok := bytes.CutSuffix(line, []byte("\r\n"))
	if !ok {
		return false, bad("a line ends without a carriage return")
	}
	if bytes.IndexByte(line, '\r') >= 0 {
		return false, bad("a line has a carriage return in it")
	}
	switch {
	case m.state == inTrailers && len(line) == 0:
		m.state, m.head = inHead, head{}
		return true, nil
	case m.state == inTrailers:
		return false, m.head.trailer(line)
	case m.head.version == 0 && m.HTTP2 && m.requests == 0 && string(line) == prefaceLine:
		m.state = inPreface
		return false, nil
	case m.head.version == 0:
		return false, m.head.requestLine(line)
	case len(line) > 0:
		return false, m.head.field(line)
	}
	return true, m.endOfHead()
}

// prefaceLine compares what is held with the preface and passes everything on when it is complete.
func (m *Machine) prefaceLine() (done bool, v *Violation) {
	if !bytes.HasPrefix([]byte(preface), m.held) {
		return false, bad("it begins like HTTP/2 and is not")
	}
	if len(m.held) < len(preface) {
		return false, nil
	}
	m.state = opaque
	return true, nil
}

// endOfHead decides what follows the head.
func (m *Machine) endOfHead() *Violation {
	length, chunked, v := m.head.framing()
	if v != nil {
		return v
	}
	m.requests++
	switch {
	case chunked:
		m.state = inSize
		m.remaining, m.digits = 0, 0
	case length > 0:
		m.state = inBody
		m.remaining = length
	case m.head.wantsUpgrade():
		m.state = opaque
		m.upgrade = m.requests
	default:
		m.state = inHead
	}
	m.head = head{}
	return nil
}

// chunks reads the chunked coding (RFC 9112 section 7.1) up to the trailers.
func (m *Machine) chunks(in []byte) (n int, v *Violation) {
	for n < len(in) && m.state != inTrailers {
		if m.state == inData {
			step := min(int64(len(in)-n), m.remaining)
			n += int(step)
			if m.remaining -= step; m.remaining == 0 {
				m.state = inDataCR
			}
			continue
		}
		if v := m.chunkByte(in[n]); v != nil {
			return n, v
		}
		n++
	}
	return n, nil
}

// chunkByte reads one byte of what stands around the data of chunks.
func (m *Machine) chunkByte(b byte) *Violation {
	switch m.state {
	case inSize:
		return m.sizeByte(b)
	case inExtension:
		switch m.digits++; {
		case b == '\r':
			m.state = inSizeLF
		case m.digits > maxExtension:
			return bad("a chunk's extensions have more than %d bytes", maxExtension)
		case b < 0x20 && b != '\t' || b >= 0x7f:
			return bad("a chunk's extension has a control character or a byte beyond ASCII")
		}
	case inSizeLF:
		if b != '\n' {
			return bad("the line of a chunk's size does not end with a line feed")
		}
		m.state = inData
		if m.remaining == 0 {
			m.state = inTrailers
		}
	case inDataCR:
		if b != '\r' {
			return bad("a chunk is longer than its size")
		}
		m.state = inDataLF
	case inDataLF:
		if b != '\n' {
			return bad("a chunk's end has no line feed")
		}
		m.state = inSize
		m.remaining, m.digits = 0, 0
	default:
		return bad("nothing may follow a refused request")
	}
	return nil
}

func (m *Machine) sizeByte(b byte) *Violation {
	digit := unhex(b)
	switch {
	case digit >= 0 && m.digits == maxSizeDigits:
		return bad("a chunk's size has more than %d digits", maxSizeDigits)
	case digit >= 0:
		m.remaining = m.remaining<<4 | int64(digit)
		m.digits++
		return nil
	case m.digits == 0:
		return bad("a chunk has no size")
	case b == '\r':
		m.state = inSizeLF
	case b == ';':
		m.state, m.digits = inExtension, 0
	default:
		return bad("a chunk's size is not a hexadecimal number")
	}
	return nil
}

// controls finds bytes that stand in no head, as early as they arrive.
func controls(p []byte) *Violation {
	for _, b := range p {
		if b < 0x20 && b != '\t' && b != '\r' && b != '\n' || b == 0x7f {
			return bad("it has a control character")
		}
	}
	return nil
}

func unhex(b byte) int {
	switch {
	case b >= '0' && b <= '9':
		return int(b - '0')
	case b >= 'a' && b <= 'f':
		return int(b-'a') + 10
	case b >= 'A' && b <= 'F':
		return int(b-'A') + 10
	}
	return -1
}

// parseLength reads a Content-Length: digits only, below 2^63.
func parseLength(value []byte) (int64, bool) {
	if len(value) == 0 {
		return 0, false
	}
	var length int64
	for _, b := range value {
		if b < '0' || b > '9' || length > (math.MaxInt64-9)/10 {
			return 0, false
		}
		length = length*10 + int64(b-'0')
	}
	return length, true
}
