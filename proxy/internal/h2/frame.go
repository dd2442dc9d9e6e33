package h2

import (
	"errors"

	"golang.org/x/net/http2"
)

// frame reads one whole frame that is not DATA.
func (c *Conn) frame(p []byte) error {
	kind := http2.FrameType(p[3])
	if !c.gotFirst && kind != http2.FrameSettings {
		return c.fail(http2.ErrCodeProtocol, "the first frame is not SETTINGS")
	}
	if c.block.stream != 0 && kind != http2.FrameContinuation {
		return c.fail(http2.ErrCodeProtocol, "a header block is interrupted")
	}
	if kind == http2.FrameHeaders {
		return c.headersFrame(p)
	}
	if kind == http2.FrameContinuation {
		return c.continuationFrame(p)
	}
	c.rd.Reset(p)
	f, err := c.fr.ReadFrame()
	if err != nil {
		return c.badFrame(err)
	}
	switch f := f.(type) {
	case *http2.SettingsFrame:
		return c.settingsFrame(f)
	case *http2.WindowUpdateFrame:
		return c.windowFrame(f)
	case *http2.RSTStreamFrame:
		return c.resetFrame(f)
	case *http2.PingFrame:
		return c.pingFrame(f)
	case *http2.GoAwayFrame:
		return c.goAwayFrame(f)
	case *http2.PushPromiseFrame:
		return c.fail(http2.ErrCodeProtocol, "PUSH_PROMISE came, which was not allowed")
	case *http2.PriorityFrame:
		if f.StreamDep == f.StreamID { // RFC 7540 section 5.3.1; deprecated, but still malformed
			if s := c.streams[f.StreamID]; s != nil {
				return c.blame(s, http2.ErrCodeProtocol)
			}
			return c.fail(http2.ErrCodeProtocol, "a stream depends on itself")
		}
		return c.spend(1, "PRIORITY frames")
	default: // unknown types are ignored: RFC 9113 section 4.1
		return c.spend(1, "unknown frames")
	}
}

// badFrame maps the Framer's errors.
func (c *Conn) badFrame(err error) error {
	var connection http2.ConnectionError
	var stream http2.StreamError
	switch {
	case errors.As(err, &stream):
		if c.idle(stream.StreamID) {
			return c.fail(stream.Code, "a frame is malformed, on a stream that nobody opened")
		}
		if s := c.streams[stream.StreamID]; s != nil {
			return c.blame(s, stream.Code)
		}
		c.write(c.fr.WriteRSTStream(stream.StreamID, stream.Code))
		return c.spend(1, "malformed frames")
	case errors.As(err, &connection):
		return c.fail(Code(connection), "a frame is malformed")
	case errors.Is(err, http2.ErrFrameTooLarge):
		return c.fail(http2.ErrCodeFrameSize, "a frame is larger than announced")
	default:
		return c.fail(http2.ErrCodeProtocol, "a frame is malformed")
	}
}

func (c *Conn) settingsFrame(f *http2.SettingsFrame) error {
	if !c.gotFirst && f.IsAck() {
		return c.fail(http2.ErrCodeProtocol, "the first frame is not SETTINGS but its acknowledgement")
	}
	first := !c.gotFirst
	c.gotFirst = true
	if f.IsAck() {
		return c.spend(1, "acknowledgements of SETTINGS")
	}
	if f.NumSettings() > 64 {
		return c.fail(http2.ErrCodeEnhanceYourCalm, "too many settings")
	}
	var failed error
	_ = f.ForeachSetting(func(s http2.Setting) error {
		failed = c.setting(s)
		return failed
	})
	if failed != nil {
		return failed
	}
	c.write(c.fr.WriteSettingsAck())
	if first && c.cfg.Ready != nil {
		c.cfg.Ready()
	}
	c.pump()
	return c.spend(1, "SETTINGS frames")
}

func (c *Conn) setting(s http2.Setting) error {
	if err := s.Valid(); err != nil {
		var connection http2.ConnectionError
		if errors.As(err, &connection) {
			return c.fail(Code(connection), "a setting is out of range")
		}
		return c.fail(http2.ErrCodeProtocol, "a setting is out of range")
	}
	switch s.ID {
	case http2.SettingHeaderTableSize:
		c.enc.SetMaxDynamicTableSizeLimit(min(s.Val, maxTableSize))
		c.enc.SetMaxDynamicTableSize(min(s.Val, tableSize))
	case http2.SettingMaxConcurrentStreams:
		c.maxPeer = s.Val
	case http2.SettingInitialWindowSize:
		change := int(s.Val) - c.initial
		c.initial = int(s.Val)
		for _, stream := range c.streams {
			if stream.window += change; stream.window > maxWindow {
				return c.fail(http2.ErrCodeFlowControl, "a window overflows by a change of SETTINGS_INITIAL_WINDOW_SIZE")
			}
		}
	case http2.SettingMaxFrameSize:
		c.frameSize = min(int(s.Val), writeFrame)
	case http2.SettingEnableConnectProtocol:
		if c.extended && s.Val == 0 { // RFC 8441 section 3
			return c.fail(http2.ErrCodeProtocol, "a server took back that it takes extended CONNECT")
		}
		c.extended = s.Val == 1
	case http2.SettingEnablePush:
		if c.cfg.Client && s.Val == 1 {
			return c.fail(http2.ErrCodeProtocol, "a server announced that it takes pushes")
		}
	case http2.SettingMaxHeaderListSize, http2.SettingNoRFC7540Priorities:
	}
	return nil
}

func (c *Conn) windowFrame(f *http2.WindowUpdateFrame) error {
	n := int(f.Increment)
	if f.StreamID == 0 {
		if c.window += n; c.window > maxWindow {
			return c.fail(http2.ErrCodeFlowControl, "the connection's window overflows")
		}
		c.pump()
		return c.spend(1, "WINDOW_UPDATE frames")
	}
	s := c.streams[f.StreamID]
	if s == nil {
		if c.idle(f.StreamID) {
			return c.fail(http2.ErrCodeProtocol, "WINDOW_UPDATE came on a stream that nobody opened")
		}
		return c.spend(1, "WINDOW_UPDATE frames on closed streams")
	}
	if s.window += n; s.window > maxWindow {
		return c.blame(s, http2.ErrCodeFlowControl)
	}
	c.pump()
	return c.spend(1, "WINDOW_UPDATE frames")
}

func (c *Conn) resetFrame(f *http2.RSTStreamFrame) error {
	s := c.streams[f.StreamID]
	if s == nil {
		if c.idle(f.StreamID) {
			return c.fail(http2.ErrCodeProtocol, "RST_STREAM came on a stream that nobody opened")
		}
		return c.spend(1, "RST_STREAM frames on closed streams")
	}
	c.drop(s)
	// A server that refuses a stream says that it has not looked at it (RFC 9113 section 8.7).
	c.emit(Event{Kind: Reset, Stream: s, Code: f.ErrCode, Unprocessed: c.cfg.Client && f.ErrCode == http2.ErrCodeRefusedStream})
	if c.cfg.Client {
		return nil
	}
	return c.spendReset()
}

// leavePing is the PING that follows the first GOAWAY of a graceful shutdown.
var leavePing = [8]byte{'l', 'e', 'a', 'v', 'i', 'n', 'g'}

func (c *Conn) pingFrame(f *http2.PingFrame) error {
	if !f.IsAck() {
		c.write(c.fr.WritePing(true, f.Data))
	} else if c.leaving == warned && f.Data == leavePing {
		c.Leave()
	}
	return c.spend(1, "PING frames")
}

func (c *Conn) goAwayFrame(f *http2.GoAwayFrame) error {
	first := !c.goneAway
	c.goneAway = true
	if c.cfg.Client {
		for _, s := range c.streams {
			if s.id > f.LastStreamID {
				c.drop(s)
				c.emit(Event{Kind: Reset, Stream: s, Code: http2.ErrCodeRefusedStream, Unprocessed: true})
			}
		}
	}
	if first {
		c.emit(Event{Kind: GoingAway, Code: f.ErrCode})
	}
	return c.spend(1, "GOAWAY frames")
}

// Ping asks the peer for a sign of life.
func (c *Conn) Ping() {
	if c.dead == nil {
		c.write(c.fr.WritePing(false, [8]byte{}))
	}
}

// Leave ends a server's connection gracefully (RFC 9113 section 6.8). The first call warns: requests
// that are on their way are still taken. The second, which the answer to a PING makes too, names the
// last one that is taken. Done when [Conn.Left].
func (c *Conn) Leave() {
	if c.dead != nil || c.leaving == left {
		return
	}
	if c.cfg.Client {
		c.leaving = left
		c.write(c.fr.WriteGoAway(0, http2.ErrCodeNo, nil))
		return
	}
	if c.leaving == staying {
		c.leaving = warned
		c.write(c.fr.WriteGoAway(maxWindow, http2.ErrCodeNo, nil))
		c.write(c.fr.WritePing(false, leavePing))
		return
	}
	c.leaving = left
	c.leaveAfter = c.last
	c.write(c.fr.WriteGoAway(c.last, http2.ErrCodeNo, nil))
	c.maybeLeft()
}

// Leaving tells whether [Conn.Leave] was called.
func (c *Conn) Leaving() bool { return c.leaving != staying }

// Left tells whether nothing more is to be done on a connection that is being left: close it when
// its output is sent.
func (c *Conn) Left() bool {
	return c.dead == nil && len(c.streams) == 0 && (c.leaving == left || c.cfg.Client && c.goneAway)
}
