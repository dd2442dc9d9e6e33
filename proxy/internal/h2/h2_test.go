package h2

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"countersign.dev/proxy/internal/loop"
	"countersign.dev/proxy/internal/message"
)

// pair is a client and a server that are joined by hand.
type pair struct {
	t              *testing.T
	client, server *Conn
	events         []string
	onServer       func(*Event)
	onClient       func(*Event)
}

func newPair(t *testing.T, serverCfg Config) *pair {
	p := &pair{t: t}
	in := &message.Interner{}
	serverCfg.Intern = in
	serverCfg.Events = func(e *Event) { p.record("server", e); p.onServer(e) }
	p.onServer, p.onClient = func(*Event) {}, func(*Event) {}
	p.server = New(serverCfg)
	p.client = New(Config{Client: true, Intern: in, Events: func(e *Event) { p.record("client", e); p.onClient(e) }})
	return p
}

func (p *pair) record(who string, e *Event) {
	if e.Stream == nil {
		p.events = append(p.events, who+" going away")
		return
	}
	text := fmt.Sprintf("%s %d", who, e.Stream.ID())
	switch e.Kind {
	case Headers:
		text += fmt.Sprintf(" headers %s%s %d", e.Head.Method, e.Head.Target, e.Head.Status)
	case Data:
		text += fmt.Sprintf(" data %q", e.Data)
	case Trailers:
		text += fmt.Sprintf(" trailers %v", e.Fields)
	case Reset:
		text += fmt.Sprintf(" reset %v %t", e.Code, e.Unprocessed)
	case Writable, GoingAway:
		text += fmt.Sprintf(" kind %d", e.Kind)
	}
	if e.End {
		text += " end"
	}
	p.events = append(p.events, text)
}

// move passes output in pieces until nobody has any.
func (p *pair) move(piece int) {
	p.t.Helper()
	for len(p.client.Output()) > 0 || len(p.server.Output()) > 0 {
		for _, way := range [][2]*Conn{{p.client, p.server}, {p.server, p.client}} {
			out := bytes.Clone(way[0].Output())
			way[0].Sent()
			for len(out) > 0 {
				n := min(piece, len(out))
				if err := way[1].Feed(out[:n]); err != nil {
					p.events = append(p.events, "error "+err.Error())
				}
				out = out[n:]
			}
		}
	}
}

func get(target string) *message.Head {
	return &message.Head{Method: "GET", Scheme: "http", Authority: "a.test", Target: target, ContentLength: message.Unknown, Fields: []message.Field{{Name: "x-a", Value: "b"}, {Name: "cookie", Value: "c=d"}}}
}

func TestExchange(t *testing.T) {
	for _, piece := range []int{1, 3, 1 << 20} {
		p := newPair(t, Config{})
		p.onServer = func(e *Event) {
			switch e.Kind {
			case Headers:
				e.Stream.Respond(&message.Head{Status: 103, ContentLength: message.Unknown}, false)
				e.Stream.Respond(&message.Head{Status: 200, ContentLength: message.Unknown}, false)
			case Data:
				e.Stream.Write(bytes.ToUpper(e.Data), false)
				e.Stream.Consumed(len(e.Data))
			case Trailers:
				e.Stream.End(e.Fields)
			case Reset, Writable, GoingAway:
			}
		}
		s, err := p.client.Open(get("/x"), false, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.Write([]byte("h"), false)
		s.Write([]byte("i"), false)
		s.End([]message.Field{{Name: "x-t", Value: "v"}})
		p.move(piece)
		want := []string{
			"server 1 headers GET/x 0", `server 1 data "h"`, `server 1 data "i"`, "server 1 trailers [{x-t v}] end",
			"client 1 headers 103", "client 1 headers 200", `client 1 data "H"`, `client 1 data "I"`, "client 1 trailers [{x-t v}] end",
		}
		var got []string
		for _, e := range p.events {
			got = append(got, strings.ReplaceAll(e, "headers  ", "headers "))
		}
		less := func(side string, list []string) (out []string) {
			for _, e := range list {
				if strings.HasPrefix(e, side) {
					out = append(out, e)
				}
			}
			return out
		}
		for _, side := range []string{"client", "server"} {
			if diff := cmp.Diff(less(side, want), less(side, got)); diff != "" {
				t.Errorf("piece %d, %s (-want +got):\n%s", piece, side, diff)
			}
		}
		if p.client.Streams()+p.server.Streams() != 0 {
			t.Error("a stream is left")
		}
	}
}

// TestFlowControl sends more than the windows hold to a reader that consumes late: nothing is lost,
// and no more than the window is ever held.
func TestFlowControl(t *testing.T) {
	p := newPair(t, Config{StreamWindow: 64 << 10})
	var held, got int
	var stream *Stream
	p.onServer = func(e *Event) {
		stream = e.Stream
		if e.Kind == Data {
			held += len(e.Data)
			got += len(e.Data)
		}
	}
	writable := 0
	p.onClient = func(e *Event) {
		if e.Kind == Writable {
			writable++
		}
	}
	s, _ := p.client.Open(get("/"), false, nil)
	p.move(1 << 20)
	const size = 1 << 20
	s.Write(make([]byte, size), true)
	for range 1000 {
		p.move(1 << 20)
		if held > 64<<10 {
			t.Fatalf("%d bytes are held", held)
		}
		if got == size {
			break
		}
		stream.Consumed(held)
		held = 0
		p.server.settle()
	}
	if got != size || writable != 1 || s.Queued() != 0 {
		t.Errorf("got %d of %d, writable %d times", got, size, writable)
	}
}

// TestFairness has a large response wait for a congested transport beside a small one.
func TestFairness(t *testing.T) {
	p := newPair(t, Config{})
	var streams []*Stream
	p.onServer = func(e *Event) {
		if e.Kind == Headers {
			streams = append(streams, e.Stream)
			e.Stream.Respond(&message.Head{Status: 200, ContentLength: message.Unknown}, false)
		}
	}
	_, _ = p.client.Open(get("/large"), true, nil)
	_, _ = p.client.Open(get("/small"), true, nil)
	p.move(1 << 20)
	p.server.SetCongested(true)
	streams[0].Write(make([]byte, 1<<20), true)
	streams[1].Write([]byte("small"), true)
	if len(p.server.Output()) != 0 {
		t.Fatal("a congested connection has output")
	}
	p.server.SetCongested(false)
	out := p.server.Output()
	if at := bytes.Index(out, []byte("small")); at < 0 || at > 2*quantum {
		t.Errorf("the small response is at %d of %d", at, len(out))
	}
}

func TestReset(t *testing.T) {
	p := newPair(t, Config{MaxStreams: 1})
	p.onServer = func(e *Event) {
		if e.Kind == Headers && e.Head.Target == "/reset" {
			e.Stream.Reset(http2.ErrCodeInternal)
		}
	}
	s, _ := p.client.Open(get("/keep"), true, nil)
	_, _ = p.client.Open(get("/refused"), true, nil) // before the SETTINGS came
	p.move(1 << 20)
	if p.client.CanOpen() {
		t.Error("more streams than the server takes")
	}
	s.Reset(http2.ErrCodeCancel)
	p.move(1 << 20)
	_, _ = p.client.Open(get("/reset"), true, nil)
	p.move(1 << 20)
	want := []string{
		"server 1 headers GET/keep 0 end", "client 3 reset REFUSED_STREAM true", "server 1 reset CANCEL false",
		"server 5 headers GET/reset 0 end", "client 5 reset INTERNAL_ERROR false",
	}
	if diff := cmp.Diff(want, p.events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

// TestLeave ends a connection gracefully while a request is on its way.
func TestLeave(t *testing.T) {
	p := newPair(t, Config{})
	p.onServer = func(e *Event) {
		if e.Kind == Headers {
			e.Stream.Respond(&message.Head{Status: 204, ContentLength: message.Unknown}, true)
		}
	}
	p.move(1 << 20)
	_, _ = p.client.Open(get("/crosses"), true, nil)
	p.server.Leave()
	if p.server.Left() {
		t.Error("left before the requests on their way could come")
	}
	p.onClient = func(e *Event) {
		if e.Kind == GoingAway && p.client.CanOpen() {
			t.Error("a stream could be opened after GOAWAY")
		}
	}
	p.move(1 << 20)
	if !p.server.Left() || !p.client.Left() {
		t.Errorf("left: server %t, client %t", p.server.Left(), p.client.Left())
	}
	if len(p.events) < 2 || p.events[0] != "server 1 headers GET/crosses 0 end" || p.server.Err() != nil {
		t.Errorf("events %q, %v", p.events, p.server.Err())
	}
}

func (p *pair) String() string { return strings.Join(p.events, "\n") }

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

// driven runs a Conn on a loop.Conn, as a proxy does.
type driven struct {
	c *loop.Conn
	h *Conn
}

func (d *driven) Data(p []byte) {
	if err := d.h.Feed(p); err != nil {
		d.c.CloseAfterFlush()
	}
	d.flush()
}

func (d *driven) flush() {
	if out := d.h.Output(); len(out) > 0 {
		d.c.Write(out)
		d.h.Sent()
	}
	d.h.SetCongested(d.c.Queued() > 1<<20)
}
func (d *driven) End()           { d.c.Close() }
func (d *driven) Drained()       { d.h.SetCongested(false); d.flush() }
func (d *driven) Closed(_ error) { d.h.Close() }

// echoServer answers with what it gets.
func echoServer(t *testing.T) netip.AddrPort {
	t.Helper()
	g, err := loop.NewGroup(1, loop.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Stop)
	in := &message.Interner{}
	ln, err := g.Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"), func(c *loop.Conn) {
		d := &driven{c: c}
		d.h = New(Config{Intern: in, Events: func(e *Event) {
			switch e.Kind {
			case Headers:
				e.Stream.Respond(&message.Head{Status: 200, ContentLength: message.Unknown, Trailer: "x-t"}, false)
				if e.End {
					e.Stream.End([]message.Field{{Name: "x-t", Value: "v"}})
				}
			case Data:
				e.Stream.Consumed(len(e.Data)) // what is queued is bounded by the test's own size
				e.Stream.Write(e.Data, false)
				if e.End {
					e.Stream.End([]message.Field{{Name: "x-t", Value: "v"}})
				}
			case Trailers, Reset, Writable, GoingAway:
			}
		}, Bulk: func(p []byte) {
			c.Write(d.h.Output())
			d.h.Sent()
			c.Write(p)
		}})
		c.Handle(d)
		d.flush()
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ln.Close)
	return ln.Addr()
}

// TestGoClient is net/http against our server.
func TestGoClient(t *testing.T) {
	addr := echoServer(t)
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	defer tr.CloseIdleConnections()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			body := make([]byte, i*i*1000)
			_, _ = rand.Read(body)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr.String()+"/", bytes.NewReader(body))
			resp, err := tr.RoundTrip(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			got, err := io.ReadAll(resp.Body)
			if err != nil || !bytes.Equal(got, body) || resp.Trailer.Get("X-T") != "v" {
				t.Errorf("%d: got %d of %d bytes, trailers %v, %v", i, len(got), len(body), resp.Trailer, err)
			}
		})
	}
	wg.Wait()
}

// TestGoServer is our client against net/http.
func TestGoServer(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-T")
		_, _ = io.Copy(w, r.Body)
		w.Header().Set("X-T", "v")
	}))
	srv.Config.Protocols = new(http.Protocols)
	srv.Config.Protocols.SetUnencryptedHTTP2(true)
	srv.Start()
	defer srv.Close()
	g, err := loop.NewGroup(1, loop.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Stop()
	const streams, size = 20, 300 << 10
	var mu sync.Mutex
	got, trailers := map[uint32]int{}, 0
	done := make(chan error, 1)
	l := g.Loops()[0]
	l.Post(func() {
		l.Dial(srv.Listener.Addr().(*net.TCPAddr).AddrPort(), func(c *loop.Conn, err error) {
			if err != nil {
				done <- err
				return
			}
			d := &driven{c: c}
			d.h = New(Config{Client: true, Intern: &message.Interner{}, Events: func(e *Event) {
				mu.Lock()
				defer mu.Unlock()
				switch e.Kind {
				case Data:
					got[e.Stream.ID()] += len(e.Data)
					e.Stream.Consumed(len(e.Data))
				case Trailers:
					if trailers++; trailers == streams {
						done <- nil
					}
				case Headers, Writable, GoingAway:
				case Reset:
					done <- fmt.Errorf("stream %d: %v", e.Stream.ID(), e.Code)
				}
			}})
			c.Handle(d)
			for range streams {
				s, err := d.h.Open(&message.Head{Method: "POST", Scheme: "http", Authority: "a", Target: "/", ContentLength: size, Trailers: true}, false, nil)
				if err != nil {
					done <- err
					return
				}
				s.Write(make([]byte, size), true)
			}
			d.flush()
		})
	})
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("no answer")
	}
	mu.Lock()
	defer mu.Unlock()
	for id, n := range got {
		if n != size {
			t.Errorf("stream %d: %d bytes", id, n)
		}
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

func BenchmarkExchange(b *testing.B) {
	in := &message.Interner{}
	client := New(Config{Client: true, Intern: in, Events: func(*Event) {}})
	resp := &message.Head{Status: 200, ContentLength: 5, Fields: []message.Field{{Name: "content-type", Value: "text/plain"}, {Name: "server", Value: "x"}}}
	body := []byte("hello")
	server := New(Config{Intern: in, Events: func(e *Event) {
		if e.Kind == Headers {
			e.Stream.Respond(resp, false)
			e.Stream.Write(body, true)
		}
	}})
	req := get("/api/v1/users?id=1")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.Open(req, true, nil); err != nil {
			b.Fatal(err)
		}
		if err := server.Feed(client.Output()); err != nil {
			b.Fatal(err)
		}
		client.Sent()
		if err := client.Feed(server.Output()); err != nil {
			b.Fatal(err)
		}
		server.Sent()
	}
}
