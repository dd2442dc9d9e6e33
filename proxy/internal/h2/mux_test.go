package h2

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"countersign.dev/proxy/internal/message"
)

// world is a client and a server driven against each other by a script, with an account of what was
// sent on each stream and of the windows that each end has been given.
type world struct {
	t      *testing.T
	script []byte
	eager  bool // consume and write inside callbacks
	ends   [2]*end
	ids    []uint32
	calm   bool // an end was ended for a flood: nothing more is to be expected
	gone   bool // the server leaves
}

// end is one of the two.
type end struct {
	w         *world
	c         *Conn
	peer      *end
	wire      []byte // from the peer, not delivered yet
	in        []byte // delivered, and not a whole frame yet
	streams   map[uint32]*flow
	window    int // of the connection, as the peer has granted it
	initial   int
	windows   map[uint32]int
	congested bool
}

// flow is one stream at one end.
type flow struct {
	s        *Stream
	head     bool // a final head came (server: the request)
	answered bool
	written  int
	ended    bool
	got      int
	held     int
	over     bool // the peer's end came
	reset    bool
	waiting  bool // Writable is due
}

func pattern(id uint32, client bool, at int) byte {
	b := byte(at>>8)*31 + byte(at)*7 + byte(id)*13
	if client {
		b++
	}
	return b
}

func newWorld(t *testing.T, script []byte) *world {
	w := &world{t: t, script: script}
	cfg := w.byte()
	w.eager = cfg&1 != 0
	window := []int{500, 5000, 64 << 10, 200 << 10}[cfg>>1&3]
	budget := []int{70_000, 64 << 10, 300 << 10}[int(cfg>>3&3)%3]
	for i := range w.ends {
		e := &end{w: w, streams: map[uint32]*flow{}, windows: map[uint32]int{}, window: initWindow, initial: initWindow}
		w.ends[i] = e
		e.c = New(Config{
			Client: i == 0, MaxStreams: 1 + int(cfg>>5), StreamWindow: window, Budget: budget, MaxFrame: initFrame << (cfg >> 6),
			Intern: &message.Interner{}, Events: e.event,
		})
	}
	w.ends[0].peer, w.ends[1].peer = w.ends[1], w.ends[0]
	for _, e := range w.ends {
		e.take() // prefaces come first, whatever a script injects
	}
	return w
}

func (w *world) byte() byte {
	if len(w.script) == 0 {
		return 0
	}
	b := w.script[0]
	w.script = w.script[1:]
	return b
}

func (e *end) client() bool { return e == e.w.ends[0] }

func (e *end) event(ev *Event) {
	t := e.w.t
	if ev.Kind == GoingAway {
		return
	}
	f := e.streams[ev.Stream.ID()]
	if f == nil {
		if e.client() || ev.Kind != Headers {
			t.Fatalf("event %d on stream %d, which is not known", ev.Kind, ev.Stream.ID())
		}
		f = &flow{s: ev.Stream}
		e.streams[ev.Stream.ID()] = f
		e.w.ids = append(e.w.ids, ev.Stream.ID())
	}
	if f.reset || f.over && ev.Kind != Reset && ev.Kind != Writable {
		t.Fatalf("event %d on stream %d after its end (reset %t)", ev.Kind, ev.Stream.ID(), f.reset)
	}
	switch ev.Kind {
	case Headers:
		f.head = true
	case Data:
		if !f.head {
			t.Fatal("content before the head")
		}
		for _, b := range ev.Data {
			if want := pattern(ev.Stream.ID(), !e.client(), f.got); b != want {
				t.Fatalf("stream %d: byte %d is %d, want %d", ev.Stream.ID(), f.got, b, want)
			}
			f.got++
		}
		f.held += len(ev.Data)
		if f.held > e.c.cfg.StreamWindow {
			t.Fatalf("stream %d holds %d bytes", ev.Stream.ID(), f.held)
		}
	case Reset:
		f.reset, f.waiting = true, false
	case Writable:
		if !f.waiting {
			t.Fatalf("stream %d: Writable, and nobody waits", ev.Stream.ID())
		}
		f.waiting = false
	case Trailers:
		if len(ev.Fields) != 1 || ev.Fields[0] != (message.Field{Name: "x-t", Value: "v"}) {
			t.Fatalf("trailers %v", ev.Fields)
		}
	case GoingAway:
	}
	f.over = f.over || ev.End
	if e.w.eager {
		e.consume(f, f.held)
		if (ev.Kind == Headers || ev.Kind == Writable) && len(e.w.script) > 0 {
			e.write(f, 777, false)
		}
	}
}

func (e *end) usable(f *flow) bool { return f != nil && !f.reset && !f.ended && !f.s.Gone() }

// answer sends the head of a response before anything else.
func (e *end) answer(f *flow) {
	if !e.client() && !f.answered {
		f.answered = true
		f.s.Respond(&message.Head{Status: 200, ContentLength: message.Unknown}, false)
	}
}

func (e *end) write(f *flow, n int, last bool) {
	if !e.usable(f) || f.waiting || f.s.Queued() > 0 {
		return
	}
	e.answer(f)
	p := make([]byte, n)
	for i := range p {
		p[i] = pattern(f.s.ID(), e.client(), f.written+i)
	}
	f.written += n
	f.ended = last
	f.waiting = true // Writable may come inside
	f.s.Write(p, last)
	if f.s.Queued() == 0 && !f.s.waiting {
		f.waiting = false
	}
}

func (e *end) finish(f *flow, trailers bool) {
	if !e.usable(f) {
		return
	}
	e.answer(f)
	f.ended = true
	if trailers {
		f.s.End([]message.Field{{Name: "x-t", Value: "v"}})
		return
	}
	f.s.End(nil)
}

func (e *end) consume(f *flow, n int) {
	if f == nil || f.held == 0 {
		return
	}
	n = min(n, f.held)
	f.held -= n
	f.s.Consumed(n)
}

// take moves output to the peer's wire, and checks that no window was exceeded.
func (e *end) take() {
	out := bytes.Clone(e.c.Output())
	e.c.Sent()
	e.peer.wire = append(e.peer.wire, out...)
	for rest := bytes.TrimPrefix(out, []byte(http2.ClientPreface)); len(rest) > 0; {
		n, kind, id := int(rest[0])<<16|int(rest[1])<<8|int(rest[2]), http2.FrameType(rest[3]), streamOf(rest)
		if n > max(initFrame, e.peer.c.cfg.MaxFrame) {
			e.w.t.Fatalf("a frame of %d bytes", n)
		}
		switch kind {
		case http2.FrameHeaders:
			e.known(id)
		case http2.FrameData:
			e.window -= n
			e.windows[id] -= n
			if n > 0 && (e.window < 0 || e.windows[id] < 0) {
				e.w.t.Fatalf("stream %d: %d bytes leave windows of %d and %d", id, n, e.windows[id], e.window)
			}
		default:
		}
		rest = rest[frameHeader+n:]
	}
}

// deliver feeds up to n bytes of the wire. What they grant counts before, what they take away after.
func (e *end) deliver(n int) {
	n = min(n, len(e.wire))
	p := e.wire[:n]
	e.wire = e.wire[n:]
	e.in = append(e.in, p...)
	if !e.client() {
		e.in = bytes.TrimPrefix(e.in, []byte(http2.ClientPreface))
	}
	less := map[uint32]int{}
	for len(e.in) >= frameHeader && !bytes.HasPrefix([]byte(http2.ClientPreface), e.in[:min(len(e.in), 9)]) {
		size := int(e.in[0])<<16 | int(e.in[1])<<8 | int(e.in[2])
		if len(e.in) < frameHeader+size {
			break
		}
		kind, flags, id, body := http2.FrameType(e.in[3]), e.in[4], streamOf(e.in), e.in[frameHeader:frameHeader+size]
		if id != 0 {
			e.known(id)
		}
		switch {
		case kind == http2.FrameWindowUpdate && id == 0:
			e.window += int(binary.BigEndian.Uint32(body))
		case kind == http2.FrameWindowUpdate:
			e.windows[id] += int(binary.BigEndian.Uint32(body))
		case kind == http2.FrameSettings && flags == 0:
			for ; len(body) >= 6; body = body[6:] {
				if http2.SettingID(binary.BigEndian.Uint16(body)) == http2.SettingInitialWindowSize {
					change := int(binary.BigEndian.Uint32(body[2:])) - e.initial
					e.initial += change
					for id := range e.windows {
						e.windows[id] += max(change, 0)
						less[id] += min(change, 0)
					}
				}
			}
		}
		e.in = e.in[frameHeader+size:]
	}
	if err := e.c.Feed(p); err != nil {
		if !isCalm(err) {
			e.w.t.Fatalf("client %t: %v", e.client(), err)
		}
		e.w.calm = true
	}
	e.take()
	for id, n := range less {
		e.windows[id] += n
	}
}

// known gives a stream its first window.
func (e *end) known(id uint32) {
	if _, ok := e.windows[id]; !ok {
		e.windows[id] = e.initial
	}
}

// inject puts a frame of the test's own onto the wire to e.
func (e *end) inject(write func(fr *http2.Framer)) {
	var b bytes.Buffer
	write(http2.NewFramer(&b, nil))
	e.wire = append(e.wire, b.Bytes()...)
}

func (w *world) step() {
	op, arg := w.byte(), int(w.byte())
	e := w.ends[op>>7]
	var f *flow
	if len(w.ids) > 0 {
		f = e.streams[w.ids[arg%len(w.ids)]]
	}
	switch op & 0x7f % 16 {
	case 0, 1:
		w.open(arg)
	case 2, 3:
		e.write(f, int(w.byte())*int(w.byte()), false)
	case 4:
		e.write(f, int(w.byte()), true)
	case 5:
		e.finish(f, arg&1 != 0)
	case 6:
		if f != nil && !f.reset {
			f.reset = true
			f.waiting = false
			f.s.Reset(http2.ErrCodeCancel)
		}
	case 7, 8:
		e.consume(f, 1+int(w.byte())*64)
	case 9, 10, 11:
		e.deliver(1 + arg*arg)
	case 12:
		e.congested = arg&1 != 0
		e.c.SetCongested(e.congested)
	case 13:
		size := uint32(arg) * uint32(e.peer.c.cfg.StreamWindow) / 255
		e.inject(func(fr *http2.Framer) {
			_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: size})
		})
	case 14:
		e.inject(func(fr *http2.Framer) { _ = fr.WritePing(false, [8]byte{byte(arg)}) })
	case 15:
		if arg == 0 {
			w.gone = true
			w.ends[1].c.Leave()
		}
	}
	for _, e := range w.ends {
		e.c.Tick()
		e.take()
		if e.congested && len(e.c.Output()) > 0 {
			w.t.Fatal("output is left")
		}
	}
}

func (w *world) open(arg int) {
	e := w.ends[0]
	if !e.c.CanOpen() {
		return
	}
	s, err := e.c.Open(get("/"), arg&1 != 0, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	e.streams[s.ID()] = &flow{s: s, ended: arg&1 != 0}
}

// settle moves everything, until nothing moves any more; with finish it ends every stream.
func (w *world) settle(finish bool) {
	for _, e := range w.ends {
		e.congested = false
		e.c.SetCongested(false)
		e.take()
		e.inject(func(fr *http2.Framer) { // windows that a script has closed are opened again
			_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(e.peer.c.cfg.StreamWindow)})
		})
	}
	for moved := true; moved && !w.calm; {
		moved = false
		for _, e := range w.ends {
			e.c.Tick()
			for _, f := range e.streams {
				moved = moved || f.held > 0 || finish && e.usable(f)
				e.consume(f, f.held)
				if finish {
					e.finish(f, f.s.ID()%4 == 1)
				}
			}
			e.take()
			moved = moved || len(e.wire) > 0
			e.deliver(1 << 20)
		}
	}
	for _, e := range w.ends {
		for id, f := range e.streams {
			if f.waiting && !w.calm && e.usable(f) {
				w.t.Fatalf("client %t, stream %d: Writable did not come", e.client(), id)
			}
		}
	}
}

// check is what has to hold in the end.
func (w *world) check() {
	if w.calm {
		return
	}
	for _, e := range w.ends {
		if n := e.c.Streams(); n != 0 {
			w.t.Fatalf("client %t: %d streams are left", e.client(), n)
		}
		if e.c.held != 0 || len(e.c.blocked.streams) != 0 {
			w.t.Fatalf("client %t: %d bytes are held, %d streams wait", e.client(), e.c.held, len(e.c.blocked.streams))
		}
		for id, f := range e.streams {
			if f.s.Queued() != 0 || f.s.queue != nil {
				w.t.Fatalf("stream %d keeps a queue", id)
			}
			if f.reset {
				continue
			}
			other := e.peer.streams[id]
			if other == nil || !other.reset && (f.written != other.got || !other.over) {
				w.t.Fatalf("client %t, stream %d: %d bytes were written, %+v", e.client(), id, f.written, other)
			}
		}
	}
}

func runWorld(t *testing.T, script []byte) *world {
	w := newWorld(t, script)
	for len(w.script) > 0 && !w.calm {
		w.step()
	}
	w.settle(false)
	w.settle(true)
	w.check()
	return w
}

// FuzzMux drives both ends by a script: what was written arrives in order and whole, no window is
// exceeded, every wake-up comes, and nothing is left.
func FuzzMux(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		script := make([]byte, 400)
		for i := range script {
			script[i] = byte(r.Uint32())
		}
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) < 10_000 {
			runWorld(t, script)
		}
	})
}

// TestMux runs random scripts: hundreds of them, and with COUNTERSIGN_SOAK for minutes.
func TestMux(t *testing.T) {
	deadline := time.Now().Add(3 * time.Minute)
	soak := os.Getenv("COUNTERSIGN_SOAK") != ""
	calm, bytes := 0, 0
	for i := 0; i < 500 || soak && time.Now().Before(deadline); i++ {
		script := make([]byte, rand.IntN(3000))
		for i := range script {
			script[i] = byte(rand.Uint32())
		}
		w := runWorld(t, script)
		if t.Failed() {
			t.Fatalf("script %x", script)
		}
		if w.calm {
			calm++
		}
		for _, e := range w.ends {
			for _, f := range e.streams {
				bytes += f.got
			}
		}
	}
	t.Logf("%d bytes arrived; %d runs were ended as floods", bytes, calm)
	if bytes < 1<<20 {
		t.Error("too little arrived: the test says nothing")
	}
}
