package h2

import (
	"errors"
	"strconv"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"countersign.dev/proxy/internal/message"
)

// bulk is the size from which content is handed to [Config.Bulk] rather than copied.
const bulk = 8 << 10

// quantum is what one stream sends before the next gets its turn while streams compete: a small
// response beside large ones waits for at most this much of each.
const quantum = 64 << 10

// crumbs is what is too little to be sent for its own sake.
const crumbs = 16 << 10

// ErrNoStream says that the peer lets no further stream be opened now.
var ErrNoStream = errors.New("no further HTTP/2 stream can be opened now")

// ErrNoConnectProtocol says that the server takes no extended CONNECT (RFC 8441 section 3), or that what
// is asked for is not the name of one protocol: send the request over an HTTP/1.1 connection.
var ErrNoConnectProtocol = errors.New("the HTTP/2 server takes no extended CONNECT")

// ErrNoSettings says that it is not known yet whether the server takes extended CONNECT: try again when
// [Config.Ready] was called.
var ErrNoSettings = errors.New("the HTTP/2 server's SETTINGS have not come yet")

// CanOpen tells whether a client may open a stream now.
func (c *Conn) CanOpen() bool {
	return c.dead == nil && !c.goneAway && c.leaving == staying && uint64(len(c.streams)) < uint64(c.maxPeer) && c.last < maxWindow-2
}

// MaxStreams is how many streams the peer lets us open at once; a guess before [Conn.Ready].
func (c *Conn) MaxStreams() int { return int(min(c.maxPeer, maxWindow)) }

// ExtendedConnect tells whether the server takes extended CONNECT (RFC 8441). It is false until
// [Conn.Ready].
func (c *Conn) ExtendedConnect() bool { return c.extended }

// Ready tells whether the peer's SETTINGS came.
func (c *Conn) Ready() bool { return c.gotFirst }

// Open sends a request; owner becomes the stream's. Without content to follow, end is set. It fails
// with [ErrNoStream], and a head with an Upgrade, which is sent as an extended CONNECT, with
// [ErrNoConnectProtocol] too, or with [ErrNoSettings] when there is a [Config.Ready] to say when to try
// again. A failure changes nothing.
func (c *Conn) Open(h *message.Head, end bool, owner any) (*Stream, error) {
	switch {
	case !c.CanOpen():
		return nil, ErrNoStream
	case h.Upgrade != "" && !c.gotFirst && c.cfg.Ready != nil:
		return nil, ErrNoSettings
	case h.Upgrade != "" && (c.gotFirst && !c.extended || !message.IsToken(h.Upgrade)):
		return nil, ErrNoConnectProtocol
	}
	if c.last == 0 {
		c.last = 1
	} else {
		c.last += 2
	}
	s := c.newStream()
	*s = Stream{c: c, id: c.last, window: c.initial, left: message.Unknown, Owner: owner, method: h.Method, localClosed: end}
	c.streams[s.id] = s
	c.encoded.Reset()
	if h.Method == "CONNECT" && h.Upgrade == "" {
		c.field(":method", h.Method)
		c.field(":authority", h.Authority)
	} else {
		method := h.Method
		if h.Upgrade != "" {
			method = "CONNECT"
		}
		c.field(":method", method)
		c.field(":scheme", h.Scheme)
		c.field(":authority", h.Authority)
		c.field(":path", h.Target)
		if h.Upgrade != "" {
			c.field(":protocol", h.Upgrade)
		}
	}
	if h.Expect {
		c.field("expect", "100-continue")
	}
	if h.Trailers {
		c.field("te", "trailers")
	}
	c.rest(h)
	c.writeBlock(s.id, end)
	return s, nil
}

// Respond sends the head of a response: any number of 1xx, then the final one.
func (s *Stream) Respond(h *message.Head, end bool) {
	if s.gone || s.localClosed {
		return
	}
	c := s.c
	c.encoded.Reset()
	c.field(":status", statusText(h.Status))
	c.rest(h)
	s.localClosed = end
	c.writeBlock(s.id, end)
	s.finish()
}

func statusText(status int) string {
	switch status {
	case 200:
		return "200"
	case 204:
		return "204"
	case 304:
		return "304"
	case 404:
		return "404"
	}
	return strconv.Itoa(status)
}

// rest encodes what is not a pseudo-header field.
func (c *Conn) rest(h *message.Head) {
	if h.ContentLength != message.Unknown {
		c.field("content-length", c.cfg.Intern.String(strconv.AppendInt(c.digits[:0], h.ContentLength, 10)))
	}
	if h.Trailer != "" {
		c.field("trailer", h.Trailer)
	}
	for i := range h.Fields {
		c.field(h.Fields[i].Name, h.Fields[i].Value)
	}
}

// field encodes one field. Credentials are never put into a table, where compression would let
// somebody who can add fields guess at them (RFC 7541 section 7.1).
func (c *Conn) field(name, value string) {
	f := hpack.HeaderField{Name: name, Value: value}
	switch name {
	case "authorization", "cookie", "set-cookie", "proxy-authorization":
		f.Sensitive = true
	}
	_ = c.enc.WriteField(f) // into a bytes.Buffer: cannot fail
}

// writeBlock sends what was encoded, in as many frames as it takes.
func (c *Conn) writeBlock(streamID uint32, end bool) {
	kind, flags := http2.FrameHeaders, http2.Flags(0)
	if end {
		flags = http2.FlagHeadersEndStream
	}
	for p := c.encoded.Bytes(); ; {
		n := min(len(p), initFrame)
		if n == len(p) {
			flags |= http2.FlagHeadersEndHeaders
		}
		c.frameHeader(kind, flags, streamID, n)
		c.out = append(c.out, p[:n]...)
		if p = p[n:]; len(p) == 0 {
			return
		}
		kind, flags = http2.FrameContinuation, 0
	}
}

// Write sends content, as far as the windows and the transport allow, and queues the rest: see
// [Stream.Queued]. p is not kept.
func (s *Stream) Write(p []byte, end bool) {
	if s.gone || s.localClosed || s.queueEnd {
		return
	}
	// Who waits in blocked while nothing is congested has no window: it is not overtaken.
	if s.Queued() == 0 && !s.c.congested && !s.c.pumping {
		n := s.room(len(p))
		if n == len(p) {
			s.send(p, end)
			return
		}
		if n > 0 {
			s.send(p[:n], false)
			p = p[n:]
		}
	}
	s.queue = append(s.queue, p...)
	s.queueEnd = end
	s.c.blocked.add(s)
	if !s.c.congested {
		s.c.pump()
	}
}

// Room is how much content may be written now without being queued. When that is nothing, [Writable]
// comes as soon as it is something.
func (s *Stream) Room() int {
	n := 0
	if s.Queued() == 0 && !s.c.congested {
		n = s.fair()
	}
	if n == 0 && !s.gone && !s.localClosed {
		s.c.blocked.add(s)
	}
	return n
}

// fair is the room for content, and 0 while it is a small rest of a window: the peer has so much to give
// back that waiting is better than sending crumbs.
func (s *Stream) fair() int {
	if n := s.room(maxWindow); n >= min(crumbs, s.c.initial/8) {
		return n
	}
	return 0
}

// End ends the stream with trailers, if there are any.
func (s *Stream) End(trailers []message.Field) {
	if s.gone || s.localClosed || s.queueEnd {
		return
	}
	if s.Queued() > 0 {
		s.queueEnd = true
		s.trailers = append([]message.Field(nil), trailers...)
		s.c.blocked.add(s)
		return
	}
	s.end(trailers)
}

func (s *Stream) end(trailers []message.Field) {
	c := s.c
	s.localClosed = true
	if len(trailers) == 0 {
		c.write(c.fr.WriteData(s.id, true, nil))
	} else {
		c.encoded.Reset()
		for i := range trailers {
			c.field(trailers[i].Name, trailers[i].Value)
		}
		c.writeBlock(s.id, true)
	}
	s.finish()
}

// room is how much of n bytes may be sent now.
func (s *Stream) room(n int) int {
	return max(0, min(n, s.window, s.c.window))
}

// send frames content that fits the windows.
func (s *Stream) send(p []byte, end bool) {
	c := s.c
	s.window -= len(p)
	c.window -= len(p)
	c.budget.sent(len(p), s.window <= 0 || c.window <= 0)
	for {
		n := min(len(p), c.frameSize)
		last := n == len(p)
		c.frameData(s.id, p[:n], end && last)
		if p = p[n:]; last {
			break
		}
	}
	if end {
		s.localClosed = true
		s.finish()
	}
}

// frameHeader writes the header of a frame of n bytes, which follow.
func (c *Conn) frameHeader(kind http2.FrameType, flags http2.Flags, streamID uint32, n int) {
	header := [frameHeader]byte{
		byte(n >> 16), byte(n >> 8), byte(n), byte(kind), byte(flags),
		byte(streamID >> 24), byte(streamID >> 16), byte(streamID >> 8), byte(streamID),
	}
	_, _ = (*output)(c).Write(header[:])
}

// frameData writes one DATA frame; a large one without a copy.
func (c *Conn) frameData(streamID uint32, p []byte, end bool) {
	flags := http2.Flags(0)
	if end {
		flags = http2.FlagDataEndStream
	}
	c.frameHeader(http2.FrameData, flags, streamID, len(p))
	if len(p) >= bulk && c.cfg.Bulk != nil {
		c.cfg.Bulk(p)
		return
	}
	c.out = append(c.out, p...)
}

// SetCongested says whether the transport takes no more for now. While it does not, content queues.
func (c *Conn) SetCongested(congested bool) {
	c.congested = congested
	if !congested {
		c.pump()
	}
}

// pump sends what waits, stream by stream in turn, a quantum each.
func (c *Conn) pump() {
	if c.pumping || c.congested || c.dead != nil || len(c.blocked.streams) == 0 {
		return
	}
	c.pumping = true
	defer func() { c.pumping = false }()
	stuck := 0 // streams in a row that could not send
	for len(c.blocked.streams) > 0 && stuck < len(c.blocked.streams) && !c.congested && c.dead == nil {
		s := c.blocked.streams[0]
		c.blocked.streams = c.blocked.streams[1:]
		if s.gone {
			s.waiting = false
			continue
		}
		most := quantum
		if len(c.blocked.streams) == 0 {
			most = s.Queued() // nobody competes
		}
		sent, done := s.sendQueued(most)
		if !done {
			c.blocked.streams = append(c.blocked.streams, s)
			if stuck++; sent > 0 {
				stuck = 0
			}
			continue
		}
		stuck = 0
		s.waiting = false
		if !s.gone {
			c.emit(Event{Kind: Writable, Stream: s})
		}
	}
	if len(c.blocked.streams) == 0 {
		c.blocked.streams = nil
	}
}

// sendQueued sends what waits, but not more than most; done means that nothing waits any more, and
// that more may come.
func (s *Stream) sendQueued(most int) (sent int, done bool) {
	if s.Queued() == 0 && !s.queueEnd {
		return 0, s.localClosed || s.fair() > 0
	}
	n := s.room(min(s.Queued(), most))
	whole := n == s.Queued()
	if n > 0 || whole && s.queueEnd && s.trailers == nil {
		p := s.queue[s.at : s.at+n]
		s.at += n
		end := whole && s.queueEnd && s.trailers == nil
		s.send(p, end)
	}
	if !whole || s.gone {
		return n, s.gone
	}
	s.queue, s.at = nil, 0
	if s.queueEnd && !s.localClosed {
		s.end(s.trailers)
	}
	return n, true
}

// maybeLeft is called when a stream has ended or a shutdown has begun.
func (c *Conn) maybeLeft() {
	if c.Left() && c.cfg.Dirty != nil && len(c.out) == 0 {
		c.cfg.Dirty() // the owner looks at Left when it has sent what waits
	}
}
