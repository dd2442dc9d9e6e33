package relay

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// versions runs a test with callers and applications of either version.
func versions(t *testing.T, h http.HandlerFunc, test func(t *testing.T, r *rig, c *http.Client)) {
	t.Helper()
	drivers(t, func(t *testing.T, portable bool) {
		app := application(t, h)
		for _, client2 := range []bool{false, true} {
			for _, app2 := range []bool{false, true} {
				t.Run(fmt.Sprintf("client2=%t/app2=%t", client2, app2), func(t *testing.T) {
					r := newRig(t, portable, DefaultLimits(), &Endpoint{Address: app, HTTP2: app2, Idle: idleHere})
					test(t, r, r.client(client2))
				})
			}
		}
	})
}

// TestInformational passes every 1xx on, in order and before the answer.
func TestInformational(t *testing.T) {
	versions(t, func(w http.ResponseWriter, _ *http.Request) {
		for i := range 3 {
			w.Header().Set("Link", fmt.Sprintf("</%d>", i))
			w.WriteHeader(http.StatusEarlyHints)
		}
		w.Header().Del("Link")
		w.WriteHeader(http.StatusProcessing)
		_, _ = io.WriteString(w, "done")
	}, func(t *testing.T, r *rig, c *http.Client) {
		var got []string
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			got = append(got, fmt.Sprint(code, h.Get("Link")))
			return nil
		}})
		for range 2 {
			got = nil
			req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+r.addr.String(), nil)
			res, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if want := []string{"103</0>", "103</1>", "103</2>", "102"}; !slices.Equal(got, want) || string(body) != "done" || err != nil || res.Header.Get("Link") != "" {
				t.Errorf("%v, then %q %v", got, body, err)
			}
		}
	})
}

// TestTrailers passes fields that end a message, announced or not where the version allows it.
func TestTrailers(t *testing.T) {
	versions(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		w.Header().Set("Trailer", "X-Announced")
		w.Header().Set("X-Count", fmt.Sprint(n, r.Trailer["X-Sum"]))
		_, _ = io.WriteString(w, "content")
		w.Header().Set("X-Announced", "yes")
		w.Header().Set(http.TrailerPrefix+"X-Sudden", "too")
	}, func(t *testing.T, r *rig, c *http.Client) {
		for _, content := range []string{"", "content", strings.Repeat("x", 300<<10)} {
			req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://"+r.addr.String(), struct{ io.Reader }{strings.NewReader(content)})
			req.Trailer = http.Header{"X-Sum": {"sum"}}
			res, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if got, want := res.Header.Get("X-Count"), fmt.Sprint(len(content), []string{"sum"}); got != want || string(body) != "content" || err != nil {
				t.Errorf("the application got %s, want %s; %q %v", got, want, body, err)
			}
			if res.Trailer.Get("X-Announced") != "yes" || res.Trailer.Get("X-Sudden") != "too" {
				t.Errorf("trailers %v", res.Trailer)
			}
		}
	})
}

// TestExpect has callers wait for leave to send content: the application's leave reaches them, and so does
// its refusal.
func TestExpect(t *testing.T) {
	versions(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = io.Copy(w, r.Body)
	}, func(t *testing.T, r *rig, c *http.Client) {
		c.Transport.(*http.Transport).ExpectContinueTimeout = 1 << 40 // it never goes on without leave
		for _, path := range []string{"/yes", "/no", "/yes"} {
			var continued atomic.Int64
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { continued.Add(1) }})
			var sent atomic.Int64
			req, _ := http.NewRequestWithContext(ctx, "POST", "http://"+r.addr.String()+path, &counting{strings.NewReader("content"), &sent})
			req.Header.Set("Expect", "100-continue")
			req.ContentLength = 7
			res, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if path == "/yes" && (res.StatusCode != 200 || string(body) != "content" || continued.Load() != 1) || err != nil {
				t.Errorf("%d %q %v, %d times 100", res.StatusCode, body, err, continued.Load())
			}
			if path == "/no" && (res.StatusCode != 403 || continued.Load() != 0 || sent.Load() != 0) {
				t.Errorf("%d, %d times 100, %d bytes were sent", res.StatusCode, continued.Load(), sent.Load())
			}
		}
	})
}

type counting struct {
	io.Reader
	n *atomic.Int64
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// TestBodyless asks for answers that have no content, whatever their fields say, one after the other.
func TestBodyless(t *testing.T) {
	versions(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/204":
			w.WriteHeader(http.StatusNoContent)
		case "/304":
			w.Header().Set("Etag", `"x"`)
			w.WriteHeader(http.StatusNotModified)
		case "/length":
			w.Header().Set("Content-Length", "1000")
			if r.Method != http.MethodHead {
				_, _ = w.Write(make([]byte, 1000))
			}
		case "/flushed":
			_ = http.NewResponseController(w).Flush()
		}
	}, func(t *testing.T, r *rig, c *http.Client) {
		for _, k := range []struct {
			method, path string
			status       int
			length       int64 // as announced; -1: not looked at
			content      int
		}{
			{"GET", "/204", 204, 0, 0},
			{"HEAD", "/204", 204, -1, 0},
			{"GET", "/304", 304, -1, 0},
			{"HEAD", "/304", 304, -1, 0},
			{"HEAD", "/length", 200, 1000, 0},
			{"GET", "/length", 200, 1000, 1000},
			{"HEAD", "/flushed", 200, -1, 0},
			{"GET", "/flushed", 200, -1, 0},
			{"DELETE", "/204", 204, 0, 0},
			{"GET", "/empty", 200, 0, 0},
			{"HEAD", "/length", 200, 1000, 0},
		} {
			req, _ := http.NewRequestWithContext(t.Context(), k.method, "http://"+r.addr.String()+k.path, nil)
			res, err := c.Do(req)
			if err != nil {
				t.Fatalf("%s %s: %v", k.method, k.path, err)
			}
			body, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			if res.StatusCode != k.status || len(body) != k.content || err != nil || k.length >= 0 && res.ContentLength != k.length {
				t.Errorf("%s %s: %d, length %d, %d bytes, %v", k.method, k.path, res.StatusCode, res.ContentLength, len(body), err)
			}
			if k.path == "/304" && res.Header.Get("Etag") == "" {
				t.Errorf("%s %s: %v", k.method, k.path, res.Header)
			}
		}
	})
}

// TestTrailersOnly passes a gRPC answer that is one block of fields, and one whose status comes after the
// content.
func TestTrailersOnly(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		addr := server(t, func(c net.Conn, _ int) {
			p := newFramed(c)
			for head := p.request(); head != nil; head = p.request() {
				if head.PseudoValue("path") == "/only" {
					p.head(head.StreamID, true, ":status", "200", "content-type", "application/grpc", "grpc-status", "12")
					continue
				}
				p.head(head.StreamID, false, ":status", "200", "content-type", "application/grpc")
				_ = p.WriteData(head.StreamID, false, []byte("\x00\x00\x00\x00\x00"))
				p.head(head.StreamID, true, "grpc-status", "0")
			}
		})
		r := newRig(t, portable, DefaultLimits(), &Endpoint{Address: addr, HTTP2: true})
		c, _ := r.dial()
		p := framedCaller(c)
		p.ask(1, "POST", "/only", true, "content-type", "application/grpc", "te", "trailers")
		p.ask(3, "POST", "/both", true, "content-type", "application/grpc", "te", "trailers")
		said := map[uint32]string{}
		for ended := 0; ended < 2; {
			switch f := p.frame().(type) {
			case nil:
				t.Fatal("the connection ended")
			case *http2.MetaHeadersFrame:
				for _, field := range f.Fields {
					if strings.HasPrefix(field.Name, "grpc") || field.IsPseudo() {
						said[f.StreamID] += field.Name + "=" + field.Value + " "
					}
				}
				if f.StreamEnded() {
					said[f.StreamID] += "end"
					ended++
				}
			case *http2.DataFrame:
				said[f.StreamID] += fmt.Sprintf("%d bytes ", len(f.Data()))
			}
		}
		for stream, want := range map[uint32]string{1: ":status=200 grpc-status=12 end", 3: ":status=200 5 bytes grpc-status=0 end"} {
			if said[stream] != want {
				t.Errorf("stream %d: %q, want %q", stream, said[stream], want)
			}
		}
	})
}

// TestDeadline ends exchanges that take too long, before and after their answer has begun.
func TestDeadline(t *testing.T) {
	versions(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/begun" {
			_, _ = io.WriteString(w, "begun")
			_ = http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
	}, func(t *testing.T, r *rig, c *http.Client) {
		r.on(func() { r.timeout = 60 * time.Millisecond })
		if status, _, err := r.send(c, "GET", "/", nil); status != 504 || err != nil || r.last().Flag != FlagTimeout {
			t.Errorf("%d %v %+v", status, err, r.last())
		}
		if status, got, err := r.send(c, "GET", "/begun", nil); status != 200 || got != "begun" || err == nil {
			t.Errorf("%d %q %v", status, got, err)
		}
		if o := r.last(); o.Flag != FlagTimeout || o.Status != 200 {
			t.Errorf("%+v", o)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+r.addr.String(), nil)
		if res, err := c.Do(req); err == nil {
			_ = res.Body.Close()
		}
	})
}
