package h1

import (
	"net/http"
	"strconv"

	"countersign.dev/proxy/internal/message"
)

// AppendRequest appends a request's head to b. Framing follows h: chunked when h.Chunked, counted
// when a length is known, without a body otherwise.
func AppendRequest(b []byte, h *message.Head) []byte {
	b = append(b, h.Method...)
	b = append(b, ' ')
	if h.Method == "CONNECT" {
		b = append(b, h.Authority...)
	} else {
		b = append(b, h.Target...)
	}
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, h.Authority...)
	b = append(b, '\r', '\n')
	if h.Expect {
		b = append(b, "Expect: 100-continue\r\n"...)
	}
	if h.Trailers {
		b = append(b, "TE: trailers\r\n"...)
	}
	b = appendConnection(b, h, h.Trailers)
	return appendRest(b, h)
}

// AppendResponse appends a response's head to b. Framing follows h, but for 1xx and 204, which have none
// whatever h says (RFC 9112 section 6).
func AppendResponse(b []byte, h *message.Head) []byte {
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(h.Status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(h.Status)...)
	b = append(b, '\r', '\n')
	b = appendConnection(b, h, false)
	if h.Status < 200 || h.Status == 204 {
		return appendFields(b, h)
	}
	return appendRest(b, h)
}

// appendConnection writes the fields that concern this connection.
func appendConnection(b []byte, h *message.Head, te bool) []byte {
	if h.Upgrade != "" {
		b = append(b, "Upgrade: "...)
		b = append(b, h.Upgrade...)
		b = append(b, "\r\n"...)
	}
	if h.Upgrade == "" && !h.Close && !te {
		return b
	}
	b = append(b, "Connection: "...)
	start := len(b)
	for _, option := range [...]struct {
		set  bool
		text string
	}{{h.Upgrade != "", "Upgrade"}, {h.Close, "close"}, {te, "TE"}} {
		if !option.set {
			continue
		}
		if len(b) > start {
			b = append(b, ", "...)
		}
		b = append(b, option.text...)
	}
	return append(b, '\r', '\n')
}

func appendRest(b []byte, h *message.Head) []byte {
	switch {
	case h.Chunked:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	case h.ContentLength != message.Unknown:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, h.ContentLength, 10)
		b = append(b, '\r', '\n')
	}
	if h.Trailer != "" && h.Chunked {
		b = append(b, "Trailer: "...)
		b = append(b, h.Trailer...)
		b = append(b, '\r', '\n')
	}
	return appendFields(b, h)
}

func appendFields(b []byte, h *message.Head) []byte {
	for i := range h.Fields {
		b = appendField(b, h.Fields[i])
	}
	return append(b, '\r', '\n')
}

// appendField writes a name as people are used to see it: programs exist that compare it with case.
func appendField(b []byte, f message.Field) []byte {
	up := true
	for i := range len(f.Name) {
		c := f.Name[i]
		if up && c >= 'a' && c <= 'z' {
			c -= 'a' - 'A'
		}
		up = c == '-'
		b = append(b, c)
	}
	b = append(b, ':', ' ')
	b = append(b, f.Value...)
	return append(b, '\r', '\n')
}

// AppendChunkSize appends what stands before a chunk of n > 0 bytes; CRLF comes after it.
func AppendChunkSize(b []byte, n int) []byte {
	b = strconv.AppendInt(b, int64(n), 16)
	return append(b, '\r', '\n')
}

// AppendLastChunk appends the end of a chunked body with its trailers.
func AppendLastChunk(b []byte, trailers []message.Field) []byte {
	b = append(b, '0', '\r', '\n')
	for i := range trailers {
		b = appendField(b, trailers[i])
	}
	return append(b, '\r', '\n')
}
