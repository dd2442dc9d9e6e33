package h2

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"countersign.dev/proxy/internal/h1"
	"countersign.dev/proxy/internal/message"
)

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
					if n := len(events); n > 0 && strings.HasPrefix(events[n-1], fmt.Sprintf("%d data", e.Stream.ID())) {
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

// FuzzClient is the same at the other end, with requests that wait for their responses.
func FuzzClient(f *testing.F) {
	for _, seed := range []func(*raw){
		func(r *raw) { r.head(1, true, ":status", "200") },
		func(r *raw) {
			r.head(1, false, ":status", "103", "link", "x")
			r.head(1, false, ":status", "200", "content-length", "3")
			_ = r.WriteData(1, true, []byte("abc"))
			_ = r.WriteRSTStream(3, http2.ErrCodeRefusedStream)
		},
		func(r *raw) {
			r.head(5, false, ":status", "200")
			_ = r.WriteDataPadded(5, false, []byte("abc"), make([]byte, 3))
			r.head(5, true, "x", "y")
			_ = r.WriteGoAway(1, http2.ErrCodeNo, nil)
			_ = r.WriteWindowUpdate(0, 5)
			_ = r.WritePing(false, [8]byte{})
		},
	} {
		r := rawServer(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 3})
		seed(r)
		f.Add(r.out.Bytes())
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		run := func(piece int) (events []string, err error) {
			over := map[uint32]bool{}
			c := New(Config{Client: true, Intern: &message.Interner{}, Events: func(e *Event) {
				if e.Kind == GoingAway {
					return
				}
				id := e.Stream.ID()
				if over[id] && e.Kind != Reset {
					t.Fatalf("event %d after the end of stream %d", e.Kind, id)
				}
				over[id] = over[id] || e.End
				if e.Kind == Data {
					if e.Stream.Consumed(len(e.Data)); len(e.Data) == 0 {
						return
					}
				}
				if line := fmt.Sprintf("%d %d", id, e.Kind); len(events) == 0 || e.Kind != Data || events[len(events)-1] != line {
					events = append(events, line)
				}
			}})
			for _, method := range []string{"GET", "HEAD", "POST"} {
				h := get("/")
				h.Method = method
				if _, err := c.Open(h, method != "POST", nil); err != nil {
					t.Fatal(err)
				}
			}
			for p := in; len(p) > 0 && err == nil; {
				n := min(piece, len(p))
				err = c.Feed(p[:n])
				p = p[n:]
			}
			if len(c.Output()) > 64<<10+10*len(in) {
				t.Fatalf("%d bytes of output for %d of input", len(c.Output()), len(in))
			}
			slices.Sort(events) // a GOAWAY ends streams in any order
			return events, err
		}
		once, err1 := run(1 << 20)
		bytewise, err2 := run(1)
		if fmt.Sprint(err1) != fmt.Sprint(err2) || err1 == nil && !slices.Equal(once, bytewise) {
			t.Fatalf("%q, %v; byte by byte %q, %v", once, err1, bytewise, err2)
		}
	})
}

// FuzzHead reads fields as a request and as a response. What is accepted and sent on over HTTP/1.1 is read
// there as the same, by a reader that is as strict: nothing in a field can make a second message.
func FuzzHead(f *testing.F) {
	for _, seed := range []string{
		":method|GET|:scheme|http|:authority|a|:path|/x?y|x-a|b|cookie|a=b|cookie|c=d",
		":method|POST|:scheme|https|:path|/|host|a:80|content-length|5|te|trailers|expect|100-continue|trailer|x",
		":method|CONNECT|:authority|a:1", ":method|CONNECT|:scheme|http|:authority|a|:path|/|:protocol|websocket",
		":status|200|content-length|3|x|y", ":status|103|link|x", ":method|OPTIONS|:scheme|http|:authority|a|:path|*",
		":method|GET|:scheme|http|:authority|a|:path|/|x|a\r\nb: c", ":method|GET|:scheme|http|:authority|a|:path|/|transfer-encoding|chunked",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		parts := strings.Split(in, "|")
		var fields []hpack.HeaderField
		for i := 0; i+1 < len(parts); i += 2 {
			fields = append(fields, hpack.HeaderField{Name: parts[i], Value: parts[i+1]})
		}
		var h, again message.Head
		reader := h1.Reader{Intern: &message.Interner{}}
		if h.Reset(); responseHead(fields, &h) {
			wire := h1.AppendResponse(nil, &h)
			n, err := reader.Response(wire, &again, "HEAD")
			if h.Status != 101 && (n != len(wire) || err != nil || again.Status != h.Status) {
				t.Fatalf("%+v is written as %q: %d, %v", h, wire, n, err)
			}
			if diff := cmp.Diff(sentOn(h.Fields), again.Fields, cmpopts.EquateEmpty()); h.Status != 101 && diff != "" {
				t.Fatalf("a response changes on its way:\n%s", diff)
			}
		}
		if h.Reset(); !requestHead(fields, &h, true) || h.Problem != "" {
			return
		}
		if h.Upgrade != "" {
			h.Method = "GET"
		}
		wire := h1.AppendRequest(nil, &h)
		n, err := reader.Request(wire, &again)
		if n != len(wire) || err != nil {
			t.Fatalf("%+v is written as %q: %d, %v", h, wire, n, err)
		}
		h.Scheme, h.Body, h.Trailer, h.Fields = again.Scheme, again.Body, again.Trailer, sentOn(h.Fields)
		if diff := cmp.Diff(h, again, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("a request changes on its way:\n%s", diff)
		}
	})
}

// sentOn is what HTTP/1.1 keeps of fields.
func sentOn(fields []message.Field) []message.Field {
	return slices.DeleteFunc(slices.Clone(fields), func(f message.Field) bool { return message.HopByHop(f.Name) || f.Name == "host" })
}
