package h1

import (
	"bytes"

	"countersign.dev/proxy/internal/message"
)

// maxChunkLine bounds a chunk's size line with its extensions, which nobody needs and which cost a
// reader time: RFC 9112 section 7.1.1 asks for such a limit.
const maxChunkLine = 256

// Body takes a message's body out of its framing (RFC 9112 section 6). Make it with [NewBody].
type Body struct {
	kind bodyKind
	step chunkStep
	left int64 // bytes of the body or of the chunk that are still to come
	line int   // bytes of the size line so far
	done bool

	reader  Reader // of the trailers
	trailer []byte // trailer section read so far
	fields  []message.Field
}

type bodyKind byte

const (
	none bodyKind = iota
	counted
	chunked
	untilClose
)

// chunkStep is where in the chunked framing the reader stands.
type chunkStep byte

const (
	sizeFirst chunkStep = iota // before the first digit of a size
	size
	extension
	sizeLF
	data
	dataCR
	dataLF
	trailers
)

// NewBody is the body that follows a head. That of a request is never framed by the connection's end.
func NewBody(h *message.Head, request bool, in *message.Interner) Body {
	switch {
	case !h.Body:
		return Body{done: true}
	case h.Chunked:
		return Body{kind: chunked, reader: Reader{Intern: in}}
	case h.ContentLength != message.Unknown:
		return Body{kind: counted, left: h.ContentLength, done: h.ContentLength == 0}
	case request:
		return Body{done: true}
	default:
		return Body{kind: untilClose}
	}
}

// Done tells whether the body and its trailers have been read whole.
func (b *Body) Done() bool { return b.done }

// UntilClose tells whether the connection's end is the body's end.
func (b *Body) UntilClose() bool { return b.kind == untilClose }

// End says that the connection has ended; it tells whether the body may end there.
func (b *Body) End() bool {
	if b.kind == untilClose {
		b.done = true
	}
	return b.done
}

// Trailers are the fields after a chunked body, once it is done.
func (b *Body) Trailers() []message.Field { return b.fields }

// Next takes one run of content from the start of p: it returns it (a part of p, perhaps empty) and
// how many bytes of p were used up. Call it until p is used up or the body is done; it always
// advances when p is not empty.
func (b *Body) Next(p []byte) (content []byte, used int, err error) {
	switch {
	case b.done || len(p) == 0:
		return nil, 0, nil
	case b.kind == untilClose:
		return p, len(p), nil
	case b.kind == counted:
		n := int(min(int64(len(p)), b.left))
		b.left -= int64(n)
		b.done = b.left == 0
		return p[:n], n, nil
	}
	for used < len(p) && !b.done {
		if b.step == data {
			n := int(min(int64(len(p)-used), b.left))
			if b.left -= int64(n); b.left == 0 {
				b.step = dataCR
			}
			return p[used : used+n], used + n, nil
		}
		if b.step == trailers {
			n, err := b.readTrailers(p[used:])
			return nil, used + n, err
		}
		if err := b.control(p[used]); err != nil {
			return nil, used, err
		}
		used++
	}
	return nil, used, nil
}

// control reads one byte of the framing between chunks.
func (b *Body) control(c byte) error {
	switch b.step {
	case sizeFirst, size:
		return b.sizeByte(c)
	case extension:
		if c == '\r' {
			b.step = sizeLF
		} else if c < ' ' && c != '\t' || c == 0x7f {
			return bad("a chunk extension has a control character")
		}
		if b.line++; b.line > maxChunkLine {
			return bad("a chunk's size line is too long")
		}
	case sizeLF:
		if c != '\n' {
			return bad("a chunk's size line does not end with CRLF")
		}
		if b.step = data; b.left == 0 {
			b.step = trailers
		}
	case dataCR, dataLF:
		if b.step == dataCR && c == '\r' {
			b.step = dataLF
		} else if b.step == dataLF && c == '\n' {
			b.step, b.left, b.line = sizeFirst, 0, 0
		} else {
			return bad("a chunk does not end with CRLF")
		}
	case data, trailers: // Next reads these
	}
	return nil
}

func (b *Body) sizeByte(c byte) error {
	digit := int64(-1)
	switch {
	case c >= '0' && c <= '9':
		digit = int64(c - '0')
	case c >= 'a' && c <= 'f':
		digit = int64(c-'a') + 10
	case c >= 'A' && c <= 'F':
		digit = int64(c-'A') + 10
	case b.step == size && c == '\r':
		b.step = sizeLF
		return nil
	case b.step == size && c == ';':
		b.step = extension
		return nil
	}
	// 15 digits are 2^60 at most: no sum overflows, and leading zeros have an end.
	if b.line++; digit < 0 || b.line > 15 {
		return bad("a chunk's size is not a hexadecimal number of at most 15 digits")
	}
	b.left, b.step = b.left<<4|digit, size
	return nil
}

// readTrailers collects the trailer section and reads it when it is whole.
func (b *Body) readTrailers(p []byte) (int, error) {
	if len(b.trailer) == 0 && len(p) >= 2 && p[0] == '\r' && p[1] == '\n' {
		b.done = true // the usual case: there are none
		return 2, nil
	}
	// The section is read as if it stood behind a start line, so that the same reader finds its end.
	if len(b.trailer) == 0 {
		b.trailer = append(b.trailer, trailerStart...)
	}
	before := len(b.trailer)
	b.trailer = append(b.trailer, p...)
	if rest := b.trailer[len(trailerStart):]; len(rest) >= 2 && rest[0] == '\r' && rest[1] == '\n' {
		b.done, b.trailer = true, nil
		return len(trailerStart) + 2 - before, nil
	}
	end, err := b.reader.end(b.trailer, 0)
	if err != nil {
		return 0, err
	}
	if end == 0 {
		return len(p), nil
	}
	if err := b.parseTrailers(b.trailer[len(trailerStart) : end-2]); err != nil {
		return 0, err
	}
	b.trailer, b.done = nil, true
	return end - before, nil
}

var trailerStart = []byte("T\r\n")

func (b *Body) parseTrailers(section []byte) error {
	in := b.reader.Intern
	for len(section) > 0 {
		var line []byte
		line, section, _ = bytes.Cut(section, crlf)
		raw, value, ok := bytes.Cut(line, []byte{':'})
		value = bytes.Trim(value, " \t")
		if !ok || !message.IsToken(raw) || !message.IsValue(value) {
			return bad("a trailer field is malformed")
		}
		name := in.Name(raw)
		if message.BadTrailer(name) {
			continue // RFC 9110 section 6.5.1: dropped, never merged
		}
		b.fields = append(b.fields, message.Field{Name: name, Value: in.Value(name, value)})
	}
	return nil
}
