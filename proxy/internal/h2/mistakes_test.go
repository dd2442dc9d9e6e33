package h2

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/net/http2"

	"countersign.dev/proxy/internal/message"
)

// rawServer speaks to a client frame by frame.
func rawServer(settings ...http2.Setting) *raw {
	r := newRaw()
	r.out.Reset()
	_ = r.WriteSettings(settings...)
	return r
}

func (r *raw) head(id uint32, end bool, fields ...string) {
	_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: r.block(fields...), EndStream: end, EndHeaders: true})
}

// TestResponses are responses that are taken, or reset the stream, at a client.
func TestResponses(t *testing.T) {
	for name, c := range map[string]struct {
		method string
		send   func(r *raw)
		want   string
	}{
		"whole":                   {"GET", func(r *raw) { r.head(1, false, ":status", "200"); _ = r.WriteData(1, true, []byte("a")) }, `200 body; "a" end; `},
		"content before the head": {"GET", func(r *raw) { _ = r.WriteData(1, false, []byte("a")) }, "reset PROTOCOL_ERROR; "},
		"content after a 103":     {"GET", func(r *raw) { r.head(1, false, ":status", "103"); _ = r.WriteData(1, false, []byte("a")) }, "103; reset PROTOCOL_ERROR; "},
		"content of a HEAD":       {"HEAD", func(r *raw) { r.head(1, false, ":status", "200"); _ = r.WriteData(1, true, []byte("a")) }, "200; reset PROTOCOL_ERROR; "},
		"a HEAD that ends later":  {"HEAD", func(r *raw) { r.head(1, false, ":status", "200"); _ = r.WriteData(1, true, nil) }, `200; "" end; `},
		"length of a HEAD":        {"HEAD", func(r *raw) { r.head(1, true, ":status", "200", "content-length", "5") }, "200 length 5 end; "},
		"content of a 204":        {"GET", func(r *raw) { r.head(1, false, ":status", "204"); _ = r.WriteData(1, true, []byte("a")) }, "204; reset PROTOCOL_ERROR; "},
		"length of a 204":         {"GET", func(r *raw) { r.head(1, true, ":status", "204", "content-length", "0") }, "204 end; "},
		"length of a 103":         {"GET", func(r *raw) { r.head(1, false, ":status", "103", "content-length", "7") }, "103; "},
		"content of a 304":        {"GET", func(r *raw) { r.head(1, false, ":status", "304"); _ = r.WriteData(1, true, []byte("a")) }, "304; reset PROTOCOL_ERROR; "},
		"length of a 304":         {"GET", func(r *raw) { r.head(1, true, ":status", "304", "content-length", "5") }, "304 length 5 end; "},
		"too little": {"GET", func(r *raw) {
			r.head(1, false, ":status", "200", "content-length", "2")
			_ = r.WriteData(1, true, []byte("a"))
		}, "200 length 2 body; reset PROTOCOL_ERROR; "},
		"too much": {"GET", func(r *raw) {
			r.head(1, false, ":status", "200", "content-length", "0")
			_ = r.WriteData(1, true, []byte("a"))
		}, "200 length 0 body; reset PROTOCOL_ERROR; "},
		"nothing of a length":        {"GET", func(r *raw) { r.head(1, true, ":status", "200", "content-length", "2") }, "reset PROTOCOL_ERROR; "},
		"too little before trailers": {"GET", func(r *raw) { r.head(1, false, ":status", "200", "content-length", "2"); r.head(1, true, "x", "y") }, "200 length 2 body; reset PROTOCOL_ERROR; "},
		"trailers that do not end":   {"GET", func(r *raw) { r.head(1, false, ":status", "200"); r.head(1, false, "x", "y") }, "200 body; reset PROTOCOL_ERROR; "},
		"a status in trailers":       {"GET", func(r *raw) { r.head(1, false, ":status", "200"); r.head(1, true, ":status", "200") }, "200 body; reset PROTOCOL_ERROR; "},
		"101":                        {"GET", func(r *raw) { r.head(1, false, ":status", "101") }, "reset PROTOCOL_ERROR; "},
		"a 1xx that ends":            {"GET", func(r *raw) { r.head(1, true, ":status", "103") }, "reset PROTOCOL_ERROR; "},
		"no status":                  {"GET", func(r *raw) { r.head(1, true, "x", "y") }, "reset PROTOCOL_ERROR; "},
		"two statuses":               {"GET", func(r *raw) { r.head(1, true, ":status", "200", ":status", "200") }, "reset PROTOCOL_ERROR; "},
		"a method":                   {"GET", func(r *raw) { r.head(1, true, ":status", "200", ":method", "GET") }, "reset PROTOCOL_ERROR; "},
		"a connection field":         {"GET", func(r *raw) { r.head(1, true, ":status", "200", "connection", "close") }, "reset PROTOCOL_ERROR; "},
		"upper case":                 {"GET", func(r *raw) { r.head(1, true, ":status", "200", "X-A", "b") }, "reset PROTOCOL_ERROR; "},
	} {
		t.Run(name, func(t *testing.T) {
			got := ""
			client := New(Config{Client: true, Intern: &message.Interner{}, Events: func(e *Event) {
				switch e.Kind {
				case Headers:
					got += fmt.Sprint(e.Head.Status)
					if e.Head.ContentLength != message.Unknown {
						got += fmt.Sprint(" length ", e.Head.ContentLength)
					}
					if e.Head.Body {
						got += " body"
					}
				case Data:
					got += fmt.Sprintf("%q", e.Data)
				case Trailers:
					got += fmt.Sprint(e.Fields)
				case Reset:
					got += fmt.Sprint("reset ", e.Code)
				case Writable, GoingAway:
				}
				if e.End {
					got += " end"
				}
				got += "; "
			}})
			h := get("/")
			h.Method = c.method
			if _, err := client.Open(h, true, nil); err != nil {
				t.Fatal(err)
			}
			r := rawServer()
			c.send(r)
			if err := client.Feed(r.out.Bytes()); err != nil {
				t.Fatal(err)
			}
			if got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

// TestRequests are the fields that a server takes or does not.
func TestRequests(t *testing.T) {
	connect := []string{":method", "CONNECT", ":authority", "a:1"}
	extended := []string{":method", "CONNECT", ":scheme", "http", ":authority", "a", ":path", "/", ":protocol", "websocket"}
	with := func(fields []string, more ...string) []string { return append(append([]string{}, fields...), more...) }
	without := func(name string) (out []string) {
		for i := 0; i < len(plain); i += 2 {
			if plain[i] != name {
				out = append(out, plain[i], plain[i+1])
			}
		}
		return out
	}
	for name, c := range map[string]struct {
		fields []string
		taken  bool
	}{
		"plain":                   {plain, true},
		"te trailers":             {with(plain, "te", "trailers"), true},
		"te gzip":                 {with(plain, "te", "gzip"), false},
		"te trailers and more":    {with(plain, "te", "trailers, gzip"), false},
		"connection":              {with(plain, "connection", "close"), false},
		"keep-alive":              {with(plain, "keep-alive", "x"), false},
		"proxy-connection":        {with(plain, "proxy-connection", "x"), false},
		"transfer-encoding":       {with(plain, "transfer-encoding", "chunked"), false},
		"upgrade":                 {with(plain, "upgrade", "h2c"), false},
		"upper case":              {with(plain, "X-A", "b"), false},
		"an empty name":           {with(plain, "", "b"), false},
		"a colon":                 {with(plain, "a:b", "b"), false},
		"CR in a value":           {with(plain, "x", "a\rb"), false},
		"LF in a value":           {with(plain, "x", "a\nb"), false},
		"NUL in a value":          {with(plain, "x", "a\x00"), false},
		"a space first":           {with(plain, "x", " a"), false},
		"pseudo after regular":    {append([]string{"x", "y"}, plain...), false},
		"method twice":            {with(plain, ":method", "GET"), false},
		"unknown pseudo":          {with(plain, ":x", "y"), false},
		"status":                  {with(plain, ":status", "200"), false},
		"no method":               {without(":method"), false},
		"no scheme":               {without(":scheme"), false},
		"no path":                 {without(":path"), false},
		"no authority":            {without(":authority"), false},
		"host alone":              {with(without(":authority"), "host", "a"), true},
		"host that agrees":        {with(plain, "host", "A"), true},
		"host that disagrees":     {with(plain, "host", "b"), false},
		"two hosts":               {with(plain, "host", "a", "host", "a"), false},
		"a strange scheme":        {with(without(":scheme"), ":scheme", "ftp"), false},
		"an empty path":           {with(without(":path"), ":path", ""), false},
		"an absolute path":        {with(without(":path"), ":path", "http://a/"), false},
		"an asterisk":             {with(without(":path"), ":path", "*"), false},
		"userinfo":                {with(without(":authority"), ":authority", "u@a"), false},
		"a method with a space":   {with(without(":method"), ":method", "GET /"), false},
		"two lengths":             {with(plain, "content-length", "0", "content-length", "0"), false},
		"a signed length":         {with(plain, "content-length", "+0"), false},
		"a list of lengths":       {with(plain, "content-length", "0, 0"), false},
		"a length without end":    {with(plain, "content-length", "5"), false},
		"a foreign expectation":   {with(plain, "expect", "x"), false},
		"connect":                 {connect, true},
		"connect with a length":   {with(connect, "content-length", "0"), false},
		"connect with a path":     {with(connect, ":path", "/"), false},
		"connect without a port":  {[]string{":method", "CONNECT", ":authority", "a"}, false},
		"extended":                {extended, true},
		"extended with a length":  {with(extended, "content-length", "0"), false},
		"extended to h2c":         {with(extended[:8], ":protocol", "h2c"), false},
		"extended to a list":      {with(extended[:8], ":protocol", "a, b"), false},
		"protocol without method": {with(plain, ":protocol", "websocket"), false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRaw()
			r.head(1, true, c.fields...)
			taken, reset := 0, 0
			server := New(Config{ExtendedConnect: true, Intern: &message.Interner{}, Events: func(e *Event) {
				if e.Kind == Headers {
					taken++
				} else {
					reset++
				}
			}})
			if err := server.Feed(r.out.Bytes()); err != nil {
				t.Fatal(err)
			}
			if taken == 1 != c.taken || reset > 0 {
				t.Errorf("taken %t, want %t", taken == 1, c.taken)
			}
			if !c.taken && !bytes.Contains(server.Output(), []byte{0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 1}) {
				t.Error("the stream was not reset with PROTOCOL_ERROR")
			}
		})
	}
}

// TestCookies joins what HTTP/2 may split, and keeps the names of trailers that can be sent on.
func TestCookies(t *testing.T) {
	r := newRaw()
	r.get(1, false, "cookie", "a=b", "x", "y", "cookie", "", "cookie", "c=d", "cookie", "", "trailer", "x-t, host", "trailer", "x-u")
	var got message.Head
	server := New(Config{Intern: &message.Interner{}, Events: func(e *Event) { got = *e.Head }})
	if err := server.Feed(r.out.Bytes()); err != nil {
		t.Fatal(err)
	}
	if cookie, _ := got.Get("cookie"); cookie != "a=b; c=d" || len(got.Fields) != 2 || got.Trailer != "x-t, x-u" || !got.Body {
		t.Errorf("%+v", got)
	}
}

// TestConsumedLater gives back the connection's window when a reader that was slow catches up, although
// nothing is fed meanwhile: the peer waits for just that.
func TestConsumedLater(t *testing.T) {
	p := newPair(t, Config{StreamWindow: 64 << 10, Budget: 128 << 10})
	var held []*Event
	p.onServer = func(e *Event) {
		if e.Kind == Data {
			held = append(held, &Event{Stream: e.Stream, Data: bytes.Clone(e.Data)})
		}
	}
	var streams []*Stream
	for range 4 {
		s, err := p.client.Open(get("/"), false, nil)
		if err != nil {
			t.Fatal(err)
		}
		streams = append(streams, s)
	}
	p.move(1 << 20)
	for _, s := range streams {
		s.Write(make([]byte, 60<<10), true)
	}
	p.move(1 << 20)
	for len(held) > 0 { // each round: the reader takes what it holds, then what that sets free moves
		taken := held
		held = nil
		for _, e := range taken {
			e.Stream.Consumed(len(e.Data))
		}
		p.move(1 << 20)
	}
	for _, s := range streams {
		if s.Queued() > 0 {
			t.Errorf("stream %d has %d bytes that never go", s.ID(), s.Queued())
		}
	}
}

// TestDetached reads the rest of a stream whose owner has let go of it, so that it holds up nobody.
func TestDetached(t *testing.T) {
	p := newPair(t, Config{StreamWindow: 64 << 10})
	p.onServer = func(e *Event) { e.Stream.Detach() }
	s, _ := p.client.Open(get("/"), false, nil)
	p.move(1 << 20)
	s.Write(make([]byte, 1<<20), true)
	p.move(1 << 20)
	if s.Queued() > 0 || p.server.held != 0 {
		t.Errorf("%d bytes wait, %d are held", s.Queued(), p.server.held)
	}
}

// TestCrowdLeaves has all callers of a busy connection cancel at once, while their uploads and responses
// are on the way: those who stay are not disturbed.
func TestCrowdLeaves(t *testing.T) {
	const crowd = 500
	p := newPair(t, Config{MaxStreams: 1000, StreamWindow: 64 << 10, Budget: 64 << 20})
	p.onServer = func(e *Event) {
		if e.Kind == Headers {
			e.Stream.Respond(&message.Head{Status: 200, ContentLength: message.Unknown}, false)
			e.Stream.Write(make([]byte, 1000), false)
		}
	}
	p.move(1 << 20)
	for range 3 {
		var streams []*Stream
		for range crowd {
			s, err := p.client.Open(get("/"), false, nil)
			if err != nil {
				t.Fatal(err)
			}
			streams = append(streams, s)
		}
		p.move(1 << 20)
		for _, s := range streams {
			for range 20 {
				s.Write([]byte("content on its way"), false)
			}
		}
		for _, s := range streams {
			s.Reset(http2.ErrCodeCancel)
		}
		p.move(1 << 20)
		p.server.Tick()
	}
	if p.server.Err() != nil || p.client.Err() != nil {
		t.Errorf("server: %v, client: %v", p.server.Err(), p.client.Err())
	}
}

// TestServerResets has the server give up many uploads at once: what is on its way is no flood.
func TestServerResets(t *testing.T) {
	p := newPair(t, Config{MaxStreams: 1000, StreamWindow: 64 << 10, Budget: 64 << 20})
	var served []*Stream
	p.onServer = func(e *Event) {
		if e.Kind == Headers {
			served = append(served, e.Stream)
		}
	}
	p.move(1 << 20)
	for range 500 {
		s, err := p.client.Open(get("/"), false, nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			s.Write([]byte("content"), false)
		}
		s.End([]message.Field{{Name: "x", Value: "y"}})
	}
	out := bytes.Clone(p.client.Output())
	p.client.Sent()
	if err := p.server.Feed(out[:len(out)/10]); err != nil {
		t.Fatal(err)
	}
	for _, s := range served {
		s.Reset(http2.ErrCodeInternal)
	}
	if err := p.server.Feed(out[len(out)/10:]); err != nil {
		t.Fatal(err)
	}
	for _, s := range served {
		s.Reset(http2.ErrCodeInternal)
	}
	p.move(1 << 20)
	if p.server.Err() != nil || p.client.Err() != nil {
		t.Errorf("server: %v, client: %v", p.server.Err(), p.client.Err())
	}
}

// TestNoLeakWhileCongested opens and resets streams whose responses wait for a peer that never reads.
func TestNoLeakWhileCongested(t *testing.T) {
	p := newPair(t, Config{MaxStreams: 10})
	p.onServer = func(e *Event) {
		if e.Kind == Headers {
			e.Stream.Write(make([]byte, 100), false)
		}
	}
	p.move(1 << 20)
	p.server.SetCongested(true)
	for range 1000 {
		p.server.Tick()
		s, err := p.client.Open(get("/"), true, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.Reset(http2.ErrCodeCancel)
		out := bytes.Clone(p.client.Output())
		p.client.Sent()
		if err := p.server.Feed(out); err != nil {
			t.Fatal(err)
		}
		if n := len(p.server.blocked.streams); n > 10 {
			t.Fatalf("%d streams are kept", n)
		}
	}
}

// isCalm tells whether a connection was ended for a flood.
func isCalm(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == http2.ErrCodeEnhanceYourCalm
}
