package h2

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"countersign.dev/proxy/internal/message"
)

// raw speaks to a server frame by frame.
type raw struct {
	*http2.Framer
	out bytes.Buffer
	enc *hpack.Encoder
	blk bytes.Buffer
}

func newRaw() *raw {
	r := &raw{}
	r.Framer = http2.NewFramer(&r.out, nil)
	r.AllowIllegalWrites = true
	r.enc = hpack.NewEncoder(&r.blk)
	r.out.WriteString(http2.ClientPreface)
	_ = r.WriteSettings()
	return r
}

func (r *raw) block(fields ...string) []byte {
	r.blk.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = r.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(r.blk.Bytes())
}

var plain = []string{":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/"}

func (r *raw) get(id uint32, end bool, more ...string) {
	_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: r.block(append(append([]string{}, plain...), more...)...), EndStream: end, EndHeaders: true})
}

func TestFloods(t *testing.T) {
	for name, flood := range map[string]func(*raw){
		"rapid reset": func(r *raw) {
			for i := range uint32(2000) {
				r.get(2*i+1, true)
				_ = r.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
			}
		},
		"ping": func(r *raw) {
			for range 5000 {
				_ = r.WritePing(false, [8]byte{})
			}
		},
		"settings": func(r *raw) {
			for range 5000 {
				_ = r.WriteSettings()
			}
		},
		"empty data": func(r *raw) {
			r.get(1, false)
			for range 5000 {
				_ = r.WriteData(1, false, nil)
			}
		},
		"padding only": func(r *raw) {
			r.get(1, false)
			for range 5000 {
				_ = r.WriteDataPadded(1, false, nil, make([]byte, 8))
			}
		},
		"window updates": func(r *raw) {
			for range 5000 {
				_ = r.WriteWindowUpdate(0, 1)
			}
		},
		"priority": func(r *raw) {
			for range 5000 {
				_ = r.WritePriority(1, http2.PriorityParam{StreamDep: 3})
			}
		},
		"unknown frames": func(r *raw) {
			for range 5000 {
				_ = r.WriteRawFrame(0x99, 0, 0, nil)
			}
		},
		"continuation": func(r *raw) {
			_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.block(plain...)})
			for range 5000 {
				_ = r.WriteContinuation(1, false, nil)
			}
		},
		"large header block": func(r *raw) {
			_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.block(plain...)})
			for range 10 {
				_ = r.WriteContinuation(1, false, bytes.Repeat([]byte{0}, 16<<10))
			}
		},
		"streams beyond the limit": func(r *raw) {
			for i := range uint32(5000) {
				r.get(2*i+1, false)
			}
		},
		"rapid reset after a byte of content": func(r *raw) {
			for i := range uint32(2000) {
				r.get(2*i+1, false)
				_ = r.WriteData(2*i+1, false, []byte("a"))
				_ = r.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
			}
		},
		"made reset, by a window": func(r *raw) {
			for i := range uint32(2000) {
				r.get(2*i+1, true)
				_ = r.WriteWindowUpdate(2*i+1, maxWindow)
			}
		},
		"made reset, by an increment of 0": func(r *raw) {
			for i := range uint32(2000) {
				r.get(2*i+1, true)
				_ = r.WriteWindowUpdate(2*i+1, 0)
			}
		},
		"made reset, by a length": func(r *raw) {
			for i := range uint32(2000) {
				r.get(2*i+1, false, "content-length", "1")
				_ = r.WriteData(2*i+1, true, []byte("ab"))
			}
		},
		"made reset, by a priority": func(r *raw) {
			for i := range uint32(2000) {
				r.get(2*i+1, true)
				_ = r.WritePriority(2*i+1, http2.PriorityParam{StreamDep: 2*i + 1})
			}
		},
		"made reset, by content after the end": func(r *raw) {
			for i := range uint32(2000) {
				r.get(2*i+1, true)
				_ = r.WriteData(2*i+1, true, []byte("a"))
			}
		},
		"made reset, by trailers": func(r *raw) {
			for i := range uint32(2000) {
				r.get(2*i+1, false)
				r.head(2*i+1, true, ":path", "/")
			}
		},
		"acknowledgements": func(r *raw) {
			for range 5000 {
				_ = r.WriteSettingsAck()
			}
		},
		"answers to PING": func(r *raw) {
			for range 5000 {
				_ = r.WritePing(true, [8]byte{})
			}
		},
		"goaway": func(r *raw) {
			for range 5000 {
				_ = r.WriteGoAway(0, http2.ErrCodeNo, nil)
			}
		},
		"resets of closed streams": func(r *raw) {
			r.get(1, true)
			for range 5000 {
				_ = r.WriteRSTStream(1, http2.ErrCodeCancel)
			}
		},
		"header blocks on a stream that was reset": func(r *raw) {
			r.get(1, false, "connection", "close")
			for range 5000 {
				r.head(1, true, "x", "y")
			}
		},
		"window updates on closed streams": func(r *raw) {
			r.get(1, true)
			_ = r.WriteRSTStream(1, http2.ErrCodeCancel)
			for range 5000 {
				_ = r.WriteWindowUpdate(1, 1)
			}
		},
		"settings that open and close windows": func(r *raw) {
			for i := range uint32(2000) {
				_ = r.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: i % 2})
			}
		},
		"one frame of many settings": func(r *raw) {
			var many []http2.Setting
			for range 1000 {
				many = append(many, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
			}
			_ = r.WriteSettings(many...)
		},
		"malformed requests": func(r *raw) {
			for i := range uint32(5000) {
				r.get(2*i+1, true, "connection", "close")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRaw()
			flood(r)
			requests := 0
			c := New(Config{Intern: &message.Interner{}, Events: func(e *Event) {
				if e.Kind == Headers {
					requests++
				}
			}})
			err := c.Feed(r.out.Bytes())
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("survived: %v", err)
			}
			if len(c.Output()) > 64<<10 {
				t.Errorf("%d bytes of output", len(c.Output()))
			}
			t.Logf("%v after %d requests", err, requests)
		})
	}
}

// TestHeaderBomb refuses a small block that decodes to a large head, with 431, and goes on.
func TestHeaderBomb(t *testing.T) {
	r := newRaw()
	fields := append([]string{}, plain...)
	for range 100 {
		fields = append(fields, "x-bomb", strings.Repeat("a", 3000)) // one entry of the table, repeated
	}
	_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.block(fields...), EndStream: true, EndHeaders: true})
	r.get(3, true)
	var seen []uint32
	c := New(Config{Intern: &message.Interner{}, Events: func(e *Event) { seen = append(seen, e.Stream.ID()) }})
	if err := c.Feed(r.out.Bytes()); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 1 || seen[0] != 3 {
		t.Errorf("requests %v, want only 3", seen)
	}
	status := ""
	dec := hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		if f.Name == ":status" {
			status = f.Value
		}
	})
	fr := http2.NewFramer(io.Discard, bytes.NewReader(c.Output()))
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			break
		}
		if h, ok := f.(*http2.HeadersFrame); ok {
			_, _ = dec.Write(h.HeaderBlockFragment())
		}
	}
	if status != "431" {
		t.Errorf("status %q", status)
	}
}

// TestDribble asks for a large response and opens its window byte by byte (CVE-2019-9511, 9517).
func TestDribble(t *testing.T) {
	r := newRaw()
	_ = r.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	r.get(1, true)
	for range 5000 {
		_ = r.WriteWindowUpdate(1, 1)
	}
	c := New(Config{Intern: &message.Interner{}, Events: func(e *Event) {
		if e.Kind == Headers {
			e.Stream.Respond(&message.Head{Status: 200, ContentLength: message.Unknown}, false)
			e.Stream.Write(make([]byte, 32<<10), true)
		}
	}})
	if err := c.Feed(r.out.Bytes()); !isCalm(err) {
		t.Errorf("survived: %v", err)
	}
}

// TestZeroWindow asks for many responses and opens no window: what waits is bounded by what one Write of
// each stream brought, and goes when the streams do.
func TestZeroWindow(t *testing.T) {
	r := newRaw()
	_ = r.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	for i := range uint32(500) {
		r.get(2*i+1, true)
	}
	waiting := 0
	c := New(Config{MaxStreams: 10, Intern: &message.Interner{}, Events: func(e *Event) {
		switch e.Kind {
		case Headers:
			e.Stream.Respond(&message.Head{Status: 200, ContentLength: message.Unknown}, false)
			e.Stream.Write(make([]byte, 32<<10), true)
			waiting += e.Stream.Queued()
		case Reset:
			waiting -= 32 << 10
		case Data, Trailers, Writable, GoingAway:
		}
	}})
	if err := c.Feed(r.out.Bytes()); err != nil {
		t.Fatal(err)
	}
	if c.Streams() != 10 || waiting != 10*32<<10 {
		t.Errorf("%d streams, %d bytes wait", c.Streams(), waiting)
	}
	if c.Close(); waiting != 0 || len(c.blocked.streams) != 0 {
		t.Errorf("after the end %d bytes wait", waiting)
	}
}

// TestBomb sends blocks of references to one large entry: few bytes of it are kept, and the connection
// ends when it goes on.
func TestBomb(t *testing.T) {
	r := newRaw()
	large := strings.Repeat("a", 3900)
	for i := range uint32(2000) {
		fields := append([]string{}, plain...)
		for range 1000 {
			fields = append(fields, "x-bomb", large)
		}
		_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: r.block(fields...), EndStream: true, EndHeaders: true})
	}
	c := New(Config{Intern: &message.Interner{}, Events: func(*Event) { t.Error("a bomb was taken") }})
	if err := c.Feed(r.out.Bytes()); !isCalm(err) {
		t.Errorf("survived: %v", err)
	}
	if c.decoded.size > 0 && len(c.decoded.fields) > message.MaxFields+8 {
		t.Errorf("%d fields are kept", len(c.decoded.fields))
	}
}

// TestLively are clients that are right and busy: none is taken for a flood.
func TestLively(t *testing.T) {
	respond := func(s *Stream, n int) {
		s.Respond(&message.Head{Status: 200, ContentLength: message.Unknown}, n == 0)
		if n > 0 {
			s.Write(make([]byte, n), true)
		}
	}
	for name, talk := range map[string]func(r *raw){
		"a window update for the stream and the connection after each small response": func(r *raw) {
			for i := range uint32(20_000) {
				r.get(2*i+1, true)
				_ = r.WriteWindowUpdate(2*i+1, 100)
				_ = r.WriteWindowUpdate(0, 100)
			}
		},
		"a ping with every request": func(r *raw) { // grpc-go measures the bandwidth like that
			for i := range uint32(20_000) {
				r.get(2*i+1, true)
				_ = r.WritePing(false, [8]byte{1})
			}
		},
		"every third request is withdrawn": func(r *raw) {
			for i := range uint32(5_000) {
				r.get(6*i+1, true)
				r.get(6*i+3, true)
				r.get(6*i+5, true, "x-slow", "1")
				_ = r.WriteRSTStream(6*i+5, http2.ErrCodeCancel)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRaw()
			_ = r.WriteWindowUpdate(0, 1<<30)
			talk(r)
			n := 0
			c := New(Config{Intern: &message.Interner{}, Events: func(e *Event) {
				if e.Kind != Headers {
					return
				}
				n++
				if _, slow := e.Head.Get("x-slow"); !slow {
					respond(e.Stream, 1+n%2000)
				}
			}})
			for p := r.out.Bytes(); len(p) > 0; {
				k := min(len(p), 10_000)
				_ = c.Feed(p[:k])
				c.Sent()
				p = p[k:]
			}
			if c.Err() != nil {
				t.Errorf("after %d requests: %v", n, c.Err())
			}
		})
	}
}
