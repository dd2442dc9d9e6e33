package h2

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"

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
