package h2

import (
	"encoding/binary"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"countersign.dev/proxy/internal/message"
)

// maxFragments bounds the frames of one header block (CVE-2024-27316): 64 KiB fit in five of the
// default size.
const maxFragments = 16

// block is a header block. Its fragments are decoded as they come; only their sizes are kept while
// CONTINUATION frames are still to come.
type block struct {
	stream    uint32 // 0: there is none
	end       bool   // END_STREAM
	size      int
	fragments int
}

// decoded takes fields from the decoder and bounds them.
type decoded struct {
	fields []hpack.HeaderField
	size   int
}

func (d *decoded) add(f hpack.HeaderField) {
	d.size += int(f.Size())
	if !d.tooLarge() {
		d.fields = append(d.fields, f)
	}
}

// tooLarge tells whether fields were left out. Pseudo-header fields count as fields.
func (d *decoded) tooLarge() bool {
	return d.size > message.MaxHead || len(d.fields) >= message.MaxFields+8
}

func (d *decoded) reset() {
	clear(d.fields)
	d.fields, d.size = d.fields[:0], 0
}

// headersFrame reads a whole HEADERS frame (RFC 9113 section 6.2). Every request has one: the Framer
// would allocate for it.
func (c *Conn) headersFrame(p []byte) error {
	flags, streamID := http2.Flags(p[4]), streamOf(p)
	p = p[frameHeader:]
	switch {
	case streamID == 0:
		return c.fail(http2.ErrCodeProtocol, "a HEADERS frame has no stream")
	case !c.cfg.Client && streamID%2 == 0:
		return c.fail(http2.ErrCodeProtocol, "a client used an even stream number")
	}
	padding, priority := 0, 0
	if flags.Has(http2.FlagHeadersPadded) {
		if len(p) == 0 {
			return c.fail(http2.ErrCodeFrameSize, "a padded frame has no length of padding")
		}
		padding, p = int(p[0]), p[1:]
	}
	if flags.Has(http2.FlagHeadersPriority) {
		priority = 5
	}
	if len(p) < priority+padding {
		return c.fail(http2.ErrCodeProtocol, "the padding is longer than the frame")
	}
	if priority > 0 && binary.BigEndian.Uint32(p)&maxWindow == streamID {
		return c.fail(http2.ErrCodeProtocol, "a stream depends on itself")
	}
	c.decoded.reset()
	c.block = block{stream: streamID, end: flags.Has(http2.FlagHeadersEndStream)}
	return c.fragment(p[priority:len(p)-padding], flags.Has(http2.FlagHeadersEndHeaders))
}

// streamOf is the stream in a frame's header.
func streamOf(p []byte) uint32 { return binary.BigEndian.Uint32(p[5:]) & maxWindow }

func (c *Conn) continuationFrame(p []byte) error {
	if c.block.stream == 0 || c.block.stream != streamOf(p) {
		return c.fail(http2.ErrCodeProtocol, "CONTINUATION came without a header block")
	}
	return c.fragment(p[frameHeader:], http2.Flags(p[4]).Has(http2.FlagContinuationEndHeaders))
}

func (c *Conn) fragment(p []byte, last bool) error {
	b := &c.block
	b.size += len(p)
	b.fragments++
	if b.size > message.MaxHead || b.fragments > maxFragments {
		return c.fail(http2.ErrCodeEnhanceYourCalm, "a header block is too large or in too many frames")
	}
	if _, err := c.dec.Write(p); err != nil {
		return c.fail(http2.ErrCodeCompression, "a header block does not decode")
	}
	if !last {
		return nil
	}
	if err := c.dec.Close(); err != nil {
		return c.fail(http2.ErrCodeCompression, "a header block is truncated")
	}
	whole := *b
	c.block = block{}
	if c.cfg.Client {
		return c.response(whole)
	}
	return c.request(whole)
}

// request takes a header block at a server: a new stream, or the trailers of an open one.
func (c *Conn) request(b block) error {
	if s := c.streams[b.stream]; s != nil {
		return c.trailersOf(s, b)
	}
	if b.stream <= c.last {
		return c.strayHeaders(b.stream)
	}
	c.last = b.stream
	if c.leaving == left && b.stream > c.leaveAfter {
		c.remember(b.stream)
		return nil // the GOAWAY has told the client that it was not taken
	}
	if len(c.streams) >= c.cfg.MaxStreams {
		c.write(c.fr.WriteRSTStream(b.stream, http2.ErrCodeRefusedStream))
		c.remember(b.stream)
		return c.spend(1, "streams beyond the limit")
	}
	s := c.newStream()
	*s = Stream{c: c, id: b.stream, window: c.initial, left: message.Unknown, remoteClosed: b.end}
	if c.decoded.tooLarge() {
		return c.refuse(s, 431)
	}
	c.head.Reset()
	if !requestHead(c.decoded.fields, &c.head, c.cfg.ExtendedConnect) || b.end && c.head.ContentLength > 0 {
		c.write(c.fr.WriteRSTStream(b.stream, http2.ErrCodeProtocol))
		c.remember(b.stream)
		return c.spend(1, "malformed requests")
	}
	c.streams[b.stream] = s
	c.head.Body = !b.end
	s.left = c.head.ContentLength
	c.emit(Event{Kind: Headers, Stream: s, Head: &c.head, End: b.end})
	return c.dead
}

// strayHeaders decides about a header block on a stream that has ended.
func (c *Conn) strayHeaders(streamID uint32) error {
	if !c.forgotten(streamID) {
		return c.spend(1, "header blocks on streams that were reset")
	}
	return c.fail(http2.ErrCodeStreamClosed, "HEADERS came on a closed stream")
}

// refuse answers a request that is not looked at.
func (c *Conn) refuse(s *Stream, status int) error {
	c.streams[s.id] = s
	s.silent = true
	s.Respond(&message.Head{Status: status, ContentLength: 0}, true)
	s.Reset(http2.ErrCodeNo)
	return c.spend(2, "requests with too large a head") // one of them was earned by the end of the stream
}

// response takes a header block at a client.
func (c *Conn) response(b block) error {
	s := c.streams[b.stream]
	if s == nil {
		if c.idle(b.stream) {
			return c.fail(http2.ErrCodeProtocol, "HEADERS came on a stream that nobody opened")
		}
		if !c.forgotten(b.stream) {
			return nil // each is a response to a request of ours
		}
		return c.spend(1, "responses on closed streams")
	}
	if s.remoteClosed {
		return c.strayFrame(b.stream, s)
	}
	if s.final {
		return c.trailersOf(s, b)
	}
	c.head.Reset()
	if c.decoded.tooLarge() || !responseHead(c.decoded.fields, &c.head) || c.head.Status < 200 && b.end ||
		c.head.Status == 101 {
		return c.blame(s, http2.ErrCodeProtocol)
	}
	h := &c.head
	s.final = h.Status >= 200
	s.remoteClosed = b.end
	none := s.method == "HEAD" || h.Status == 204 || h.Status == 304 // no content, whatever is declared
	if h.Status < 200 || h.Status == 204 {
		h.ContentLength = message.Unknown // RFC 9110 section 8.6: it has none
	}
	if s.final {
		s.left = h.ContentLength
		if none {
			s.left = 0
		}
		if b.end && s.left > 0 {
			s.remoteClosed = false
			return c.blame(s, http2.ErrCodeProtocol)
		}
	}
	h.Body = !b.end && s.final && !none
	c.emit(Event{Kind: Headers, Stream: s, Head: h, End: b.end})
	s.finish()
	return c.dead
}

// trailersOf takes a header block that ends a stream.
func (c *Conn) trailersOf(s *Stream, b block) error {
	if s.remoteClosed {
		return c.strayFrame(s.id, s)
	}
	if !b.end || c.decoded.tooLarge() || s.left > 0 {
		return c.blame(s, http2.ErrCodeProtocol)
	}
	fields := make([]message.Field, 0, len(c.decoded.fields))
	for _, f := range c.decoded.fields {
		if f.IsPseudo() || !validField(f) {
			return c.blame(s, http2.ErrCodeProtocol)
		}
		if !message.BadTrailer(f.Name) {
			fields = append(fields, message.Field{Name: f.Name, Value: f.Value})
		}
	}
	s.remoteClosed = true
	c.budget.worked()
	c.emit(Event{Kind: Trailers, Stream: s, Fields: fields, End: true})
	s.finish()
	return c.dead
}

// validField checks a regular field: RFC 9113 section 8.2.1, more strictly where 8.2.2 says so.
func validField(f hpack.HeaderField) bool {
	if !message.IsToken(f.Name) || !message.IsValue(f.Value) {
		return false
	}
	for i := range len(f.Name) {
		if f.Name[i] >= 'A' && f.Name[i] <= 'Z' {
			return false
		}
	}
	switch f.Name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade":
		return false
	case "te":
		return f.Value == "trailers"
	}
	return true
}

// pseudo are the pseudo-header fields of a message; repeated or misplaced ones make it malformed.
type pseudo struct {
	method, scheme, authority, path, protocol, status string
	seen                                              int // bits
}

func (p *pseudo) take(f hpack.HeaderField) bool {
	names := [...]string{":method", ":scheme", ":authority", ":path", ":protocol", ":status"}
	at := slices.Index(names[:], f.Name)
	if at < 0 || p.seen&(1<<at) != 0 {
		return false
	}
	p.seen |= 1 << at
	*[...]*string{&p.method, &p.scheme, &p.authority, &p.path, &p.protocol, &p.status}[at] = f.Value
	return true
}

func (p *pseudo) has(name int) bool { return p.seen&(1<<name) != 0 }

const (
	hasMethod = iota
	hasScheme
	hasAuthority
	hasPath
	hasProtocol
	hasStatus
)

// requestHead reads the fields of a request; false means malformed.
func requestHead(fields []hpack.HeaderField, h *message.Head, extended bool) bool {
	var p pseudo
	n := 0
	for n < len(fields) && fields[n].IsPseudo() {
		if !p.take(fields[n]) {
			return false
		}
		n++
	}
	if !p.has(hasMethod) || p.has(hasStatus) || !message.IsToken(p.method) {
		return false
	}
	h.Method, h.Scheme, h.Authority, h.Target = p.method, p.scheme, p.authority, p.path
	if !regular(fields[n:], h, true) {
		return false
	}
	if h.Authority != "" && !message.IsAuthority(h.Authority) {
		return false
	}
	if h.Method == "CONNECT" && h.ContentLength != message.Unknown {
		return false // a tunnel has no length, but the next hop might read one
	}
	if h.Method == "CONNECT" && !p.has(hasProtocol) {
		return p.has(hasAuthority) && !p.has(hasScheme) && !p.has(hasPath) && message.IsHostPort(h.Authority)
	}
	if p.has(hasProtocol) {
		if !extended || h.Method != "CONNECT" || !message.IsToken(p.protocol) || !p.has(hasAuthority) {
			return false
		}
		h.Upgrade = strings.ToLower(p.protocol)
		if h.Upgrade == "h2c" { // a tunnel of requests that nobody here would see
			return false
		}
	}
	if p.scheme != "http" && p.scheme != "https" || h.Authority == "" {
		return false
	}
	if p.path == "*" && h.Method == "OPTIONS" {
		return true
	}
	if !message.IsTarget(p.path) {
		h.Problem = "its target has a character that stands in no URL"
	}
	return p.path != "" && p.path[0] == '/'
}

// responseHead reads the fields of a response; false means malformed.
func responseHead(fields []hpack.HeaderField, h *message.Head) bool {
	if len(fields) == 0 || fields[0].Name != ":status" || len(fields[0].Value) != 3 {
		return false
	}
	status, err := strconv.Atoi(fields[0].Value)
	if err != nil || status < 100 || status > 599 {
		return false
	}
	h.Status = status
	return regular(fields[1:], h, false)
}

// regular reads the fields after the pseudo-header fields.
func regular(fields []hpack.HeaderField, h *message.Head, request bool) bool {
	hosts := 0
	var cookies []string
	for _, f := range fields {
		if f.IsPseudo() || !validField(f) {
			return false
		}
		switch f.Name {
		case "host":
			if hosts++; request {
				if hosts > 1 || h.Authority != "" && !message.EqualFold(h.Authority, f.Value) {
					return false
				}
				h.Authority = f.Value
			}
			continue
		case "content-length":
			n, err := strconv.ParseUint(f.Value, 10, 62)
			if err != nil || h.ContentLength != message.Unknown || f.Value[0] == '+' {
				return false
			}
			h.ContentLength = int64(n)
			continue
		case "te":
			h.Trailers = true
			continue
		case "trailer":
			h.Trailer = message.Announced(h.Trailer, f.Value)
			continue
		case "expect":
			if request {
				if !message.EqualFold(f.Value, "100-continue") {
					return false
				}
				h.Expect = true
				continue
			}
		case "cookie": // crumbs: RFC 9113 section 8.2.3
			if f.Value != "" { // joined, an empty one would be white space that the next reader drops
				cookies = append(cookies, f.Value)
			}
			continue
		case "proxy-authorization", "proxy-authenticate", "http2-settings":
			continue
		}
		if len(h.Fields) == message.MaxFields {
			return false
		}
		h.Add(f.Name, f.Value)
	}
	if len(cookies) > 0 {
		if len(h.Fields) == message.MaxFields {
			return false
		}
		h.Add("cookie", strings.Join(cookies, "; "))
	}
	return true
}
