package h2

import (
	"iter"
	"maps"
	"slices"

	"golang.org/x/net/http2"

	"countersign.dev/proxy/internal/message"
)

// Stream is one request and its response.
type Stream struct {
	// Owner is the caller's own.
	Owner any

	c            *Conn
	id           uint32
	method       string // of the request, at a client: it says whether the response has content
	final        bool   // client: the final head of the response came
	remoteClosed bool   // the peer has sent all
	localClosed  bool   // we have sent all
	gone         bool   // not among the connection's streams any more
	silent       bool   // its owner let go of it: no more events

	// reading
	left   int64 // bytes of content still to come when a length was declared
	held   int   // bytes that were not consumed
	unsaid int   // bytes of the window to give back

	// sending
	window   int
	queue    []byte // content that waits for a window or for the transport
	at       int    // where in queue the unsent part starts
	queueEnd bool   // the stream ends after queue
	trailers []message.Field
	waiting  bool // in c.blocked
}

// All are the connection's open streams, in no order.
func (c *Conn) All() iter.Seq[*Stream] { return maps.Values(c.streams) }

// Partial tells whether the peer owes the rest of something that it has begun: its preface, a frame that is
// not content, or a header block.
func (c *Conn) Partial() bool { return c.preface > 0 || len(c.part) > 0 || c.block.stream != 0 }

// Crowded tells whether much of the window that all streams share is held by what readers have not taken,
// here or at the peer: another stream might wait for them.
func (c *Conn) Crowded() bool { return c.held > c.cfg.Budget/2 || c.window <= 0 }

// ID is the stream's number on the wire.
func (s *Stream) ID() uint32 { return s.id }

// Gone tells whether the stream has ended.
func (s *Stream) Gone() bool { return s.gone }

// Spent tells whether the stream has ended and the connection refers to it no more.
func (s *Stream) Spent() bool { return s.gone && !s.waiting }

// Release gives a stream that is [Stream.Spent] back, to be used again for another. It is not called from
// within an event, and nobody may touch the stream afterwards.
func (s *Stream) Release() {
	c := s.c
	*s = Stream{gone: true, silent: true}
	if len(c.free) < maxFree {
		c.free = append(c.free, s)
	}
}

// maxFree bounds the streams that a connection keeps for further requests.
const maxFree = 64

// newStream takes one that was released, or makes one.
func (c *Conn) newStream() *Stream {
	n := len(c.free)
	if n == 0 {
		return new(Stream)
	}
	s := c.free[n-1]
	c.free[n-1] = nil
	c.free = c.free[:n-1]
	return s
}

// Queued is the number of bytes that wait to be sent. Whoever feeds the stream stops while it is not
// 0, until [Writable] comes: a stream queues what one call of [Stream.Write] brought, not more.
func (s *Stream) Queued() int { return len(s.queue) - s.at }

// finish forgets the stream when both ends have sent all.
func (s *Stream) finish() {
	if s.remoteClosed && s.localClosed && !s.gone {
		s.c.drop(s)
		s.c.budget.finished()
	}
}

// drop takes a stream from the connection.
func (c *Conn) drop(s *Stream) {
	if s.gone {
		return
	}
	s.gone = true
	delete(c.streams, s.id)
	c.blocked.remove(s)
	c.giveBack(s.held)
	s.held, s.queue, s.at, s.trailers = 0, nil, 0, nil
	if c.data.stream == s {
		c.data.stream = nil
	}
	c.maybeLeft()
}

// Reset ends the stream early, from our side: no event follows. NO_ERROR after a whole response says
// that the rest of the request is not wanted.
func (s *Stream) Reset(code Code) {
	if s.gone {
		return
	}
	s.silent = true
	s.c.resetStream(s, code)
}

// Detach ends the events of a stream whose owner has nothing more to do with it; what is queued is
// still sent.
func (s *Stream) Detach() { s.silent = true }

// resetStream sends RST_STREAM, forgets the stream and tells its owner.
func (c *Conn) resetStream(s *Stream, code Code) {
	if s.gone {
		return
	}
	c.write(c.fr.WriteRSTStream(s.id, code))
	c.remember(s.id)
	c.drop(s)
	c.emit(Event{Kind: Reset, Stream: s, Code: code})
}

// maxRecent is how many streams that we reset are remembered: as many as can be open between members.
const maxRecent = 1024

// remember keeps the numbers of streams that we reset: what the peer sent before it knew is ignored.
func (c *Conn) remember(streamID uint32) {
	if len(c.recent) < maxRecent {
		c.recent = append(c.recent, streamID)
		return
	}
	c.recent[c.nrecent%maxRecent] = streamID
	c.nrecent++
}

// forgotten tells whether a stream that has ended is none of those that we reset lately.
func (c *Conn) forgotten(streamID uint32) bool { return !slices.Contains(c.recent, streamID) }

// strayFrame decides about a frame on a stream that takes none.
func (c *Conn) strayFrame(streamID uint32, s *Stream) error {
	if s != nil { // half-closed (remote): RFC 9113 section 5.1
		return c.blame(s, http2.ErrCodeStreamClosed)
	}
	if c.idle(streamID) {
		return c.fail(http2.ErrCodeProtocol, "a frame came on a stream that nobody opened")
	}
	if !c.forgotten(streamID) {
		return nil
	}
	c.write(c.fr.WriteRSTStream(streamID, http2.ErrCodeStreamClosed))
	return c.spend(1, "frames on closed streams")
}

// idle tells whether a stream has not been opened yet.
func (c *Conn) idle(streamID uint32) bool {
	return streamID%2 == 0 || streamID > c.last
}

// queue is the streams with content that waits, served in turn.
type queue struct {
	streams []*Stream
}

func (q *queue) add(s *Stream) {
	if !s.waiting {
		s.waiting = true
		q.streams = append(q.streams, s)
	}
}

// remove takes out a stream that has ended, so that a peer which never reads cannot make the queue grow.
func (q *queue) remove(s *Stream) {
	if !s.waiting {
		return
	}
	if i := slices.Index(q.streams, s); i >= 0 {
		q.streams = slices.Delete(q.streams, i, i+1)
		s.waiting = false
	}
}
