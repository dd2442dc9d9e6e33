package h2

import (
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"countersign.dev/proxy/internal/message"
)

// Run with: go test -bench . -run '^$' ./proxy/internal/h2

// BenchmarkData moves a large response from one end to the other.
func BenchmarkData(b *testing.B) {
	in := &message.Interner{}
	got := 0
	big := Config{StreamWindow: 512 << 10, Budget: 64 << 20, MaxFrame: 1 << 20, Intern: in}
	cfg := big
	cfg.Client = true
	cfg.Events = func(e *Event) { got += len(e.Data); e.Stream.Consumed(len(e.Data)) }
	client := New(cfg)
	cfg = big
	var s *Stream
	cfg.Events = func(e *Event) {
		if e.Kind == Headers {
			s = e.Stream
		}
	}
	server := New(cfg)
	move := func() {
		for len(client.Output())+len(server.Output()) > 0 {
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
	move()
	if _, err := client.Open(get("/"), true, nil); err != nil {
		b.Fatal(err)
	}
	move()
	s.Respond(&message.Head{Status: 200, ContentLength: message.Unknown}, false)
	content := make([]byte, 64<<10)
	b.ReportAllocs()
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		s.Write(content, false)
		move()
	}
	if got == 0 || s.Queued() > 0 {
		b.Errorf("%d bytes arrived, %d wait", got, s.Queued())
	}
}

// BenchmarkHead makes a request of decoded fields.
func BenchmarkHead(b *testing.B) {
	fields := []hpack.HeaderField{
		{Name: ":method", Value: "GET"},
		{Name: ":scheme", Value: "https"},
		{Name: ":authority", Value: "a.test"},
		{Name: ":path", Value: "/api/v1/users?id=1"},
		{Name: "user-agent", Value: "bench/1.0"},
		{Name: "accept", Value: "*/*"},
		{Name: "x-request-id", Value: "0123456789abcdef"},
		{Name: "cookie", Value: "a=b"},
	}
	var h message.Head
	b.ReportAllocs()
	for b.Loop() {
		h.Reset()
		if !requestHead(fields, &h, false) {
			b.Fatal("refused")
		}
	}
}

// BenchmarkCancel opens requests and withdraws them.
func BenchmarkCancel(b *testing.B) {
	in := &message.Interner{}
	client := New(Config{Client: true, Intern: in, Events: func(*Event) {}})
	server := New(Config{Intern: in, Events: func(*Event) {}})
	req := get("/")
	b.ReportAllocs()
	for b.Loop() {
		s, err := client.Open(req, true, nil)
		if err != nil {
			b.Fatal(err)
		}
		s.Reset(http2.ErrCodeCancel)
		server.Tick()
		if err := server.Feed(client.Output()); err != nil {
			b.Fatal(err)
		}
		client.Sent()
		server.Sent()
	}
}
