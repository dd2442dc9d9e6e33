// Package h2 knows one HTTP/2 connection (RFC 9113), from either end: frames, header compression,
// flow control, the life of streams, and the limits that keep a peer from making us work for nothing.
// It does no input or output and has no clock of its own: bytes go in, events and bytes come out.
//
// Header blocks are read by golang.org/x/net's hpack, and frames by its Framer, from whole frames only; but
// for HEADERS and CONTINUATION, for which the Framer would allocate, and for DATA, which is passed on as it
// arrives, in pieces if need be, without a copy.
//
// A [Conn] and its streams belong to one event loop and are not safe for concurrent use.
package h2

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"countersign.dev/proxy/internal/message"
)

// Code is an error code of RFC 9113 section 7.
type Code = http2.ErrCode

// Config says how a connection behaves. The zero value is a server with small windows.
type Config struct {
	// Client is set at the end that opens streams.
	Client bool
	// MaxStreams is how many streams the peer may have open at once; 100 when it is 0.
	MaxStreams int
	// StreamWindow is the number of bytes that one stream may hold of what its reader has not
	// consumed; 64 KiB when it is 0.
	StreamWindow int
	// Budget bounds the same for the whole connection; 16 stream windows when it is 0.
	Budget int
	// MaxFrame is the largest frame that the peer may send; 16 KiB, the protocol's own default, when it
	// is 0. Content moves with less work in larger ones.
	MaxFrame int
	// ExtendedConnect lets clients bootstrap WebSockets (RFC 8441).
	ExtendedConnect bool
	// Intern is the loop's table of strings.
	Intern *message.Interner
	// Events takes what happens, during calls of Feed and of the methods that send. It may call back
	// into the Conn.
	Events func(*Event)
	// Ready, when it is not nil, is called once, when the peer's first SETTINGS came: how many streams it
	// takes and whether extended CONNECT is known from then on.
	Ready func()
	// Dirty is called when output begins to wait in [Conn.Output].
	Dirty func()
	// Bulk, when it is not nil, writes what waits in Output followed by p, now and without keeping p.
	Bulk func(p []byte)
}

// Kind says what an [Event] tells.
type Kind byte

// The kinds of events.
const (
	// Headers: a head came. A client gets any number of 1xx before the final one.
	Headers Kind = iota
	// Data: content came; the reader calls [Stream.Consumed] when it has passed it on.
	Data
	// Trailers: fields came after the content; they end it.
	Trailers
	// Reset: the stream ended early, by Code. Nothing follows.
	Reset
	// Writable: what was queued on the stream has gone out.
	Writable
	// GoingAway: the peer takes no further streams.
	GoingAway
)

// Event is something that happened. It and what it points to are valid during the call only.
type Event struct {
	Kind   Kind
	Stream *Stream
	Head   *message.Head
	Data   []byte
	Fields []message.Field
	End    bool // no content follows
	Code   Code
	// Unprocessed is set on a Reset when the peer has surely not acted on the stream, so that the
	// request may be sent again elsewhere (RFC 9113 section 8.7).
	Unprocessed bool
}

// Error is a violation that ends the connection; a GOAWAY with its code is in the output.
type Error struct {
	Code   Code
	Reason string
}

// Error implements the error interface.
func (e *Error) Error() string { return fmt.Sprintf("HTTP/2 %v: %s", e.Code, e.Reason) }

// ErrClosed says that the connection has ended and takes no more calls.
var ErrClosed = errors.New("the HTTP/2 connection has ended")

const (
	frameHeader  = 9
	maxWindow    = 1<<31 - 1
	initWindow   = 65535   // RFC 9113 section 6.9.2
	initFrame    = 1 << 14 // section 4.2
	writeFrame   = 256 << 10
	tableSize    = 4096
	maxTableSize = 64 << 10 // of the encoder, whatever the peer offers
)

// Conn is one connection.
type Conn struct {
	cfg Config
	out []byte

	streams map[uint32]*Stream
	free    []*Stream // released
	last    uint32    // the highest stream that the peer opened (server) or we opened (client)
	recent  []uint32  // streams that we reset lately
	nrecent int

	// reading
	preface   int    // bytes of the client's preface that are still to come
	part      []byte // a frame that is not whole yet
	data      dataFrame
	block     block // a header block that is not whole yet
	gotFirst  bool  // the peer's SETTINGS came
	fr        *http2.Framer
	rd        bytes.Reader
	dec       *hpack.Decoder
	decoded   decoded
	head      message.Head
	held      int // bytes that readers have not consumed
	unsaid    int // bytes of the connection's window to give back
	enc       *hpack.Encoder
	encoded   bytes.Buffer
	digits    [20]byte // of a Content-Length
	event     Event
	budget    budget
	maxPeer   uint32 // streams that the peer lets us open
	frameSize int    // the greatest frame that we send
	window    int    // bytes that we may send
	initial   int    // window of new streams
	extended  bool   // the peer takes extended CONNECT

	blocked   queue // streams with content that waits
	congested bool
	pumping   bool

	goneAway   bool // the peer takes no further streams
	leaving    leaving
	leaveAfter uint32
	dead       error
}

// leaving says how far a graceful shutdown has come.
type leaving byte

const (
	staying leaving = iota
	warned          // GOAWAY with the highest possible stream was sent, a PING after it
	left            // the real GOAWAY was sent: later streams are refused
)

// New makes a connection and puts its preface into the output.
func New(cfg Config) *Conn {
	if cfg.MaxStreams == 0 {
		cfg.MaxStreams = 100
	}
	if cfg.StreamWindow == 0 {
		cfg.StreamWindow = 64 << 10
	}
	if cfg.Budget == 0 {
		cfg.Budget = 16 * cfg.StreamWindow
	}
	if cfg.MaxFrame == 0 {
		cfg.MaxFrame = initFrame
	}
	c := &Conn{
		cfg: cfg, streams: make(map[uint32]*Stream), maxPeer: 100, frameSize: initFrame,
		window: initWindow, initial: initWindow, budget: newBudget(cfg.MaxStreams),
	}
	c.fr = http2.NewFramer((*output)(c), &c.rd)
	c.fr.SetReuseFrames()
	c.fr.SetMaxReadFrameSize(uint32(cfg.MaxFrame))
	c.enc = hpack.NewEncoder(&c.encoded)
	c.dec = hpack.NewDecoder(tableSize, c.decoded.add)
	c.dec.SetMaxStringLength(message.MaxHead)
	if cfg.Client {
		c.out = append(c.out, http2.ClientPreface...)
	} else {
		c.preface = len(http2.ClientPreface)
	}
	c.sendSettings()
	return c
}

func (c *Conn) sendSettings() {
	settings := []http2.Setting{
		{ID: http2.SettingInitialWindowSize, Val: uint32(c.cfg.StreamWindow)},
		{ID: http2.SettingMaxFrameSize, Val: uint32(c.cfg.MaxFrame)},
		{ID: http2.SettingMaxHeaderListSize, Val: message.MaxHead},
	}
	if c.cfg.Client {
		settings = append(settings, http2.Setting{ID: http2.SettingEnablePush})
	} else {
		settings = append(settings, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: uint32(c.cfg.MaxStreams)})
		if c.cfg.ExtendedConnect {
			settings = append(settings, http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 1})
		}
	}
	c.write(c.fr.WriteSettings(settings...))
	if more := c.cfg.Budget - initWindow; more > 0 {
		c.write(c.fr.WriteWindowUpdate(0, uint32(more)))
	}
}

// output is the Framer's writer.
type output Conn

func (o *output) Write(p []byte) (int, error) {
	c := (*Conn)(o)
	if len(c.out) == 0 && c.cfg.Dirty != nil {
		c.cfg.Dirty()
	}
	c.out = append(c.out, p...)
	return len(p), nil
}

// write takes the error of a Framer's Write: it can only be a mistake in this package, for output
// takes all.
func (c *Conn) write(err error) {
	if err != nil {
		panic("h2: an illegal frame was about to be sent: " + err.Error())
	}
}

// Output is what waits to be sent. The caller sends it and then calls [Conn.Sent].
func (c *Conn) Output() []byte { return c.out }

// Sent says that all of [Conn.Output] was taken over.
func (c *Conn) Sent() {
	if cap(c.out) > 64<<10 {
		c.out = nil // a burst is over: its memory is given back
		return
	}
	c.out = c.out[:0]
}

// Streams is the number of open streams.
func (c *Conn) Streams() int { return len(c.streams) }

// Err is why the connection has ended, nil while it has not.
func (c *Conn) Err() error { return c.dead }

// fail ends the connection: a GOAWAY goes out, every stream is reset.
func (c *Conn) fail(code Code, reason string) error {
	if c.dead != nil {
		return c.dead
	}
	last := c.last
	if c.cfg.Client {
		last = 0
	}
	c.write(c.fr.WriteGoAway(last, code, []byte(reason)))
	c.end(&Error{code, reason})
	return c.dead
}

// Close says that the transport has ended: every stream is reset.
func (c *Conn) Close() {
	if c.dead == nil {
		c.end(ErrClosed)
	}
}

func (c *Conn) end(err error) {
	c.dead = err
	c.blocked.streams = nil
	for _, s := range c.streams {
		c.drop(s)
		c.emit(Event{Kind: Reset, Stream: s, Code: http2.ErrCodeInternal})
	}
	c.part, c.block = nil, block{}
}

func (c *Conn) emit(e Event) {
	if e.Stream != nil && e.Stream.silent {
		return
	}
	saved := c.event // a callback may cause an event of its own
	c.event = e
	c.cfg.Events(&c.event)
	c.event = saved
}

// Tick replenishes the limits on frames that do no work. Call it about every ten seconds.
func (c *Conn) Tick() { c.budget.tick() }

// Feed takes bytes from the peer. An error ends the connection: send what [Conn.Output] has, then
// close. p is not kept.
func (c *Conn) Feed(p []byte) error {
	for len(p) > 0 && c.dead == nil {
		n, err := c.step(p)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return c.dead
}

// step uses up some of p.
func (c *Conn) step(p []byte) (int, error) {
	switch {
	case c.preface > 0:
		return c.readPreface(p)
	case c.data.left > 0 || c.data.padding > 0:
		return c.readData(p), nil
	case len(c.part) > 0:
		return c.complete(p)
	}
	if len(p) < headerSize(p) {
		c.part = append(c.part, p...)
		return len(p), nil
	}
	if n, taken, err := c.startData(p); taken || err != nil {
		return n, err
	}
	size, err := c.frameLength(p)
	if err != nil {
		return 0, err
	}
	if len(p) < size {
		c.part = append(c.part, p...)
		return len(p), nil
	}
	return size, c.frame(p[:size])
}

// complete appends to a partial frame what it needs, no more.
func (c *Conn) complete(p []byte) (int, error) {
	used := 0
	for len(c.part) < headerSize(c.part) {
		if used == len(p) {
			return used, nil
		}
		c.part = append(c.part, p[used])
		used++
	}
	if _, taken, err := c.startData(c.part); taken || err != nil {
		c.part = c.part[:0]
		return used, err
	}
	size, err := c.frameLength(c.part)
	if err != nil {
		return used, err
	}
	n := min(size-len(c.part), len(p)-used)
	c.part = append(c.part, p[used:used+n]...)
	used += n
	if len(c.part) < size {
		return used, nil
	}
	part := c.part
	c.part = nil // a callback may feed nothing, but keep it simple: the frame owns its bytes
	err = c.frame(part)
	if cap(part) <= 1<<10 {
		c.part = part[:0]
	}
	return used, err
}

// headerSize is how many bytes of a frame are needed to know what to do with the rest: its header,
// and of a padded DATA frame the length of the padding.
func headerSize(p []byte) int {
	if len(p) >= frameHeader && http2.FrameType(p[3]) == http2.FrameData &&
		http2.Flags(p[4]).Has(http2.FlagDataPadded) && p[0]|p[1]|p[2] != 0 {
		return frameHeader + 1
	}
	return frameHeader
}

// frameLength checks the length of a frame that is not DATA. Large frames are for content: nobody
// needs 64 KiB of anything else, and what is not whole yet has to be kept.
func (c *Conn) frameLength(p []byte) (int, error) {
	n := int(p[0])<<16 | int(p[1])<<8 | int(p[2])
	if n > min(message.MaxHead, c.cfg.MaxFrame) {
		return 0, c.fail(http2.ErrCodeFrameSize, "a frame is larger than is taken")
	}
	return frameHeader + n, nil
}

func (c *Conn) readPreface(p []byte) (int, error) {
	at := len(http2.ClientPreface) - c.preface
	n := min(c.preface, len(p))
	if string(p[:n]) != http2.ClientPreface[at:at+n] {
		return 0, c.fail(http2.ErrCodeProtocol, "the connection does not start with the client's preface")
	}
	c.preface -= n
	return n, nil
}
