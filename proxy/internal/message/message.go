// Package message knows what an HTTP request and response are, whichever version carried them
// (RFC 9110): a head of end-to-end fields, framing that was understood, and the names that no hop
// may pass on. The codecs of HTTP/1.1 and HTTP/2 read and write it.
//
// Values are owned by one event loop; nothing here is safe for concurrent use.
package message

import "strings"

// Field is one header or trailer field. Name is in lower case.
type Field struct{ Name, Value string }

// Unknown is the ContentLength of a body whose length was not said.
const Unknown int64 = -1

// Limits that both codecs keep.
const (
	// MaxHead is the greatest size of a head in bytes, as it stands on the wire in HTTP/1.1 and
	// decompressed in HTTP/2 (RFC 9113 section 6.5.2 counts 32 bytes more for each field).
	MaxHead = 64 << 10
	// MaxFields is the greatest number of fields in a head or in trailers.
	MaxFields = 200
)

// Head is what precedes a body. Fields holds end-to-end fields only: what frames the message or
// concerns one connection was taken out by the codec and stands in the other members.
type Head struct {
	// Of a request. Target is in origin form ("/a?b"), "*" for OPTIONS, or empty for CONNECT.
	Method    string
	Scheme    string
	Authority string
	Target    string

	// Of a response.
	Status int

	Fields []Field

	// ContentLength is the body's declared length in bytes, [Unknown] when none was declared. The
	// field content-length is not in Fields.
	ContentLength int64
	// Body tells whether a body follows, be it of length 0.
	Body bool
	// Upgrade is the protocol that a request asks to change to, or that a 101 response names;
	// over HTTP/2 it is the :protocol of an extended CONNECT (RFC 8441). Lower case.
	Upgrade string
	// Expect tells that the sender waits for 100 (Continue) before it sends the body.
	Expect bool
	// Trailers tells that the sender understands trailers (TE: trailers).
	Trailers bool
	// Trailer is the value of the Trailer field: the names announced, empty for none.
	Trailer string
	// Chunked tells that the body is framed in chunks; HTTP/1.1 only.
	Chunked bool
	// Close tells that the connection ends after this message; HTTP/1.1 only.
	Close bool
	// Problem says what is wrong with a request whose head could be read and that is to be refused all the
	// same, with 400; HTTP/2 only, where a stream can be answered that HTTP/1.1 would end the connection for.
	Problem string
	// Minor is the minor version of HTTP/1: 0 or 1; HTTP/2 has 1.
	Minor int
}

// Reset empties the head and keeps its storage.
func (h *Head) Reset() {
	clear(h.Fields)
	*h = Head{Fields: h.Fields[:0], ContentLength: Unknown, Minor: 1}
}

// Get returns the first field of a name in lower case.
func (h *Head) Get(name string) (string, bool) {
	for i := range h.Fields {
		if h.Fields[i].Name == name {
			return h.Fields[i].Value, true
		}
	}
	return "", false
}

// Remove takes out every field for which drop holds.
func (h *Head) Remove(drop func(name string) bool) {
	kept := h.Fields[:0]
	for _, f := range h.Fields {
		if !drop(f.Name) {
			kept = append(kept, f)
		}
	}
	clear(h.Fields[len(kept):])
	h.Fields = kept
}

// Add appends a field.
func (h *Head) Add(name, value string) {
	h.Fields = append(h.Fields, Field{name, value})
}

// HopByHop tells whether a field of that name (in lower case) concerns one connection only, so that
// no intermediary forwards it (RFC 9110 section 7.6.1 and what is called Proxy-Connection in the
// field). Names that a message lists in its own Connection field come on top of these.
func HopByHop(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
		"proxy-authenticate", "proxy-authorization", "http2-settings":
		return true
	}
	return false
}

// BadTrailer tells whether a field may not stand in trailers because it frames, routes or
// authenticates a message (RFC 9110 section 6.5.1).
func BadTrailer(name string) bool {
	switch name {
	case "content-length", "host", "content-encoding", "content-type", "content-range",
		"authorization", "cookie", "set-cookie", "cache-control", "expect", "max-forwards", "range", "age",
		"x-forwarded-for":
		return true
	}
	return HopByHop(name)
}

// Announced adds to the names of trailers in before those of a Trailer field that may be sent on: others
// are dropped from the trailers, and some readers refuse a message that announces them.
func Announced(before, value string) string {
	names := []byte(before)
	for name := range strings.SplitSeq(value, ",") {
		name = strings.Trim(name, " \t")
		if !IsToken(name) || BadTrailer(strings.ToLower(name)) {
			continue
		}
		if len(names) > 0 {
			names = append(names, ", "...)
		}
		names = append(names, name...)
	}
	return string(names)
}
