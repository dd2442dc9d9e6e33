package h2

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"time"

	"countersign.dev/proxy/internal/loop"
	"countersign.dev/proxy/internal/message"
)

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
	case <-time.After(time.Minute):
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
