package h2

import (
	"bytes"
	"errors"
	"fmt"
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

// FuzzServer feeds frames: no panic, no unbounded output, and the same events whether they come at
// once or byte by byte.
func FuzzServer(f *testing.F) {
	seeds := []func(*raw){
		func(r *raw) { r.get(1, true) },
		func(r *raw) { r.get(1, false); _ = r.WriteData(1, true, []byte("abc")) },
		func(r *raw) {
			r.get(1, false)
			_ = r.WriteDataPadded(1, false, []byte("abc"), make([]byte, 3))
			_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.block("x", "y"), EndStream: true, EndHeaders: true})
		},
		func(r *raw) {
			r.get(1, false)
			_ = r.WriteRSTStream(1, 8)
			_ = r.WriteWindowUpdate(1, 5)
			_ = r.WriteGoAway(0, 0, nil)
		},
		func(r *raw) {
			_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.block(plain...)})
			_ = r.WriteContinuation(1, true, nil)
		},
	}
	for _, seed := range seeds {
		r := newRaw()
		seed(r)
		f.Add(r.out.Bytes()[len(http2.ClientPreface):])
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		in = append([]byte(http2.ClientPreface), in...)
		run := func(piece int) (events []string, err error) {
			c := New(Config{Intern: &message.Interner{}, Events: func(e *Event) {
				switch e.Kind {
				case Data:
					if n := len(events); n > 0 && len(e.Data) > 0 && strings.HasPrefix(events[n-1], fmt.Sprintf("%d data", e.Stream.ID())) {
						events[n-1] += string(e.Data)
					} else {
						events = append(events, fmt.Sprintf("%d data%s", e.Stream.ID(), e.Data))
					}
					e.Stream.Consumed(len(e.Data))
				case Reset, GoingAway:
				default:
					events = append(events, fmt.Sprintf("%d %d", e.Stream.ID(), e.Kind))
				}
			}})
			for p := in; len(p) > 0 && err == nil; {
				n := min(piece, len(p))
				err = c.Feed(p[:n])
				p = p[n:]
			}
			if len(c.Output()) > 256<<10+10*len(in) {
				t.Fatalf("%d bytes of output for %d of input", len(c.Output()), len(in))
			}
			return events, err
		}
		once, err1 := run(1 << 20)
		bytewise, err2 := run(1)
		if fmt.Sprint(err1) != fmt.Sprint(err2) {
			t.Fatalf("errors differ: %v and %v", err1, err2)
		}
		if len(once) != len(bytewise) && err1 == nil {
			t.Fatalf("events differ: %q and %q", once, bytewise)
		}
	})
}
