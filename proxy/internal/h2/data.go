package h2

import (
	"golang.org/x/net/http2"

	"countersign.dev/proxy/internal/message"
)

// dataFrame is a DATA frame of which a part is still to come.
type dataFrame struct {
	stream  *Stream // nil when the content is of no interest any more
	left    int     // bytes of content
	padding int
	end     bool
}

// startData takes the header of a DATA frame at the start of p, so that its content can be passed on
// as it comes.
func (c *Conn) startData(p []byte) (used int, taken bool, err error) {
	if http2.FrameType(p[3]) != http2.FrameData {
		return 0, false, nil
	}
	n := int(p[0])<<16 | int(p[1])<<8 | int(p[2])
	flags := http2.Flags(p[4])
	streamID := streamOf(p)
	used = frameHeader
	switch {
	case c.block.stream != 0 || !c.gotFirst:
		return 0, true, c.fail(http2.ErrCodeProtocol, "a DATA frame stands where it may not")
	case streamID == 0:
		return 0, true, c.fail(http2.ErrCodeProtocol, "a DATA frame has no stream")
	case n > c.cfg.MaxFrame:
		return 0, true, c.fail(http2.ErrCodeFrameSize, "a DATA frame is larger than announced")
	}
	padding, padBytes := 0, 0
	if flags.Has(http2.FlagDataPadded) {
		if n == 0 {
			return 0, true, c.fail(http2.ErrCodeFrameSize, "a padded frame has no length of padding")
		}
		padding, padBytes = int(p[frameHeader]), 1
		used++
		if padding > n-1 {
			return 0, true, c.fail(http2.ErrCodeProtocol, "the padding is longer than the frame")
		}
	}
	return used, true, c.beginData(streamID, n, n-padBytes-padding, padding, flags.Has(http2.FlagDataEndStream))
}

func (c *Conn) beginData(streamID uint32, whole, content, padding int, end bool) error {
	s := c.streams[streamID]
	c.data = dataFrame{left: content, padding: padding, end: end}
	if c.held += whole; c.held > c.cfg.Budget+initWindow {
		return c.fail(http2.ErrCodeFlowControl, "more content came than the connection's window allows")
	}
	var err error
	if s == nil || s.remoteClosed {
		c.data.end = false
		c.giveBack(whole)
		err = c.strayFrame(streamID, s)
	} else {
		err = s.receive(whole, content, end)
	}
	if err != nil {
		return err
	}
	if content == 0 && !end {
		if err := c.spend(1, "empty DATA frames"); err != nil {
			return err
		}
	}
	if c.data.left == 0 && c.data.padding == 0 {
		c.finishData(nil)
	}
	return nil
}

// receive accounts for a DATA frame that the stream may take.
func (s *Stream) receive(whole, content int, end bool) error {
	c := s.c
	s.held += whole
	switch {
	case s.held > c.cfg.StreamWindow:
		c.data.end = false
		return c.blame(s, http2.ErrCodeFlowControl)
	case c.cfg.Client && !s.final: // content before the head of its response
		c.data.end = false
		return c.blame(s, http2.ErrCodeProtocol)
	case s.left != message.Unknown && (int64(content) > s.left || end && int64(content) < s.left):
		c.data.end = false
		return c.blame(s, http2.ErrCodeProtocol) // RFC 9113 section 8.1.1
	}
	if s.left != message.Unknown {
		s.left -= int64(content)
	}
	c.data.stream = s
	if whole > content { // what pads is consumed at once
		s.Consumed(whole - content)
	}
	return nil
}

// readData passes on what p has of the frame's content.
func (c *Conn) readData(p []byte) int {
	n := min(c.data.left, len(p))
	c.data.left -= n
	used := n
	if c.data.left == 0 {
		skip := min(c.data.padding, len(p)-n)
		c.data.padding -= skip
		used += skip
	}
	if c.data.left > 0 || c.data.padding > 0 {
		if s := c.data.stream; n > 0 && s != nil && !s.gone {
			s.content(p[:n], false)
		}
		return used
	}
	c.finishData(p[:n])
	return used
}

// finishData passes on the last piece of a frame.
func (c *Conn) finishData(p []byte) {
	s, end := c.data.stream, c.data.end
	c.data = dataFrame{}
	if s == nil || s.gone || len(p) == 0 && !end {
		return
	}
	if len(p) > 0 {
		c.budget.worked()
	}
	if end {
		s.remoteClosed = true
	}
	s.content(p, end)
	s.finish()
}

// content passes on content; that of a stream which nobody cares for any more is consumed at once.
func (s *Stream) content(p []byte, end bool) {
	if s.silent {
		s.Consumed(len(p))
		return
	}
	s.c.emit(Event{Kind: Data, Stream: s, Data: p, End: end})
}

// Consumed says that n bytes of the stream's content were passed on, so that the peer may send as
// many again.
func (s *Stream) Consumed(n int) {
	if s.gone {
		return // what it held was given back when it ended
	}
	c := s.c
	c.giveBack(n)
	s.held -= n
	s.unsaid += n
	if s.unsaid >= c.cfg.StreamWindow/2 && !s.remoteClosed {
		c.write(c.fr.WriteWindowUpdate(s.id, uint32(s.unsaid)))
		s.unsaid = 0
	}
}

// giveBack returns n bytes to the connection's window.
func (c *Conn) giveBack(n int) {
	c.held -= n
	c.unsaid += n
	c.settle()
}

// settle tells the peer what the connection's window has got back. It may wait for just that.
func (c *Conn) settle() {
	if c.unsaid >= c.cfg.Budget/4 && c.dead == nil {
		c.write(c.fr.WriteWindowUpdate(0, uint32(c.unsaid)))
		c.unsaid = 0
	}
}
