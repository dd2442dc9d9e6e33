package relay

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"countersign.dev/proxy/internal/loop"
)

// echo1 answers each HTTP/1.1 request on a connection with its own content.
func echo1(c net.Conn) {
	eachRequest(c, func(_ *http.Request, body string) bool {
		_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		return true
	})
}

// TestIdleReuse keeps an HTTP/1.1 connection for the next request, and closes it when there is none.
func TestIdleReuse(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		var conns atomic.Int64
		addr := server(t, func(c net.Conn, _ int) { conns.Add(1); echo1(c) })
		e := &Endpoint{Address: addr, Idle: idleHere}
		links := counted(e)
		r := newRig(t, portable, DefaultLimits(), e)
		c := r.client(false)
		for range 10 {
			if status, got, err := r.send(c, "POST", "/", strings.NewReader("content")); status != 200 || got != "content" || err != nil {
				t.Fatalf("%d %q %v", status, got, err)
			}
		}
		if conns.Load() != 1 {
			t.Errorf("%d connections for ten requests in a row", conns.Load())
		}
		r.on(func() {
			e.Idle = 10 * time.Millisecond
			for _, k := range r.w.pools[e].idle {
				k.timer.Reset(e.Idle)
			}
		})
		eventually(t, "the idle connection is closed", func() bool { return links.Load() == 0 })
		if status, _, err := r.send(c, "GET", "/", nil); status != 200 || err != nil || conns.Load() != 2 {
			t.Errorf("%d %v with %d connections", status, err, conns.Load())
		}
	})
}

// TestIdleConnectionCloses has a server close connections when their second request comes: it goes out
// once more on a new one when that does no harm.
func TestIdleConnectionCloses(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		for _, k := range []struct {
			method, body string
			begins       bool // an answer, before it closes
			again        bool
		}{
			{"GET", "", false, true},
			{"PUT", "content", false, true},
			{"PUT", strings.Repeat("x", maxKept*16), false, false},
			{"GET", "", true, false},
			{"POST", "content", false, false},
			{"PATCH", "", false, false},
		} {
			t.Run(fmt.Sprintf("%s %d %t", k.method, len(k.body), k.begins), func(t *testing.T) {
				var conns atomic.Int64
				addr := server(t, func(c net.Conn, n int) {
					conns.Add(1)
					served := 0
					eachRequest(c, func(req *http.Request, body string) bool {
						if served++; n == 1 && served == 2 {
							if k.begins {
								_, _ = io.WriteString(c, "HTTP/1.1 103 Early Hints\r\n\r\n")
							}
							return false
						}
						_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
						return true
					})
				})
				r := newRig(t, portable, DefaultLimits(), &Endpoint{Address: addr, Idle: idleHere})
				c := r.client(true)
				if status, _, err := r.send(c, "GET", "/", nil); status != 200 || err != nil {
					t.Fatalf("%d %v", status, err)
				}
				status, got, err := r.send(c, k.method, "/", strings.NewReader(k.body))
				want, n := 502, int64(1)
				if k.again {
					want, n = 200, 2
				}
				if status != want || err != nil || conns.Load() != n || k.again && got != k.body {
					t.Errorf("%d, %d bytes, %v, after %d connections; want %d after %d", status, len(got), err, conns.Load(), want, n)
				}
			})
		}
	})
}

// TestUnaskedAnswer has a server say something on idle connections: no request may meet it.
func TestUnaskedAnswer(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		addr := server(t, func(c net.Conn, _ int) {
			eachRequest(c, func(req *http.Request, body string) bool {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue")
				if req.URL.Path == "/later" {
					time.AfterFunc(time.Millisecond, func() { _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfalse") })
				} else {
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfalse")
				}
				return true
			})
		})
		e := &Endpoint{Address: addr, Idle: idleHere}
		links := counted(e)
		r := newRig(t, portable, DefaultLimits(), e)
		c := r.client(false)
		for i := range 20 {
			path := "/now"
			if i%2 == 1 {
				path = "/later"
			}
			if status, got, err := r.send(c, "GET", path, nil); status != 200 || got != "true" || err != nil {
				t.Fatalf("%d: %d %q %v", i, status, got, err)
			}
			eventually(t, "the connection is closed", func() bool { return links.Load() == 0 })
		}
	})
}

// TestUnaskedAnswerPipelined has a server say too much while the next request waits behind the first one: it
// must meet neither that request nor one of another caller.
func TestUnaskedAnswerPipelined(t *testing.T) {
	const right = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
	drivers(t, func(t *testing.T, portable bool) {
		hold := make(chan struct{})
		release := sync.OnceFunc(func() { close(hold) })
		defer release()
		addr := server(t, func(c net.Conn, _ int) {
			eachRequest(c, func(req *http.Request, _ string) bool {
				switch req.URL.Path {
				case "/0":
					_, _ = io.WriteString(c, right+"/0"+"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfalse")
					return true
				case "/1":
					<-hold
				}
				_, _ = io.WriteString(c, right+req.URL.Path)
				return true
			})
		})
		r := newRig(t, portable, DefaultLimits(), &Endpoint{Address: addr, Idle: idleHere})
		one, fromOne := r.dial()
		_, _ = io.WriteString(one, "GET /0 HTTP/1.1\r\nHost: a\r\n\r\nGET /1 HTTP/1.1\r\nHost: a\r\n\r\n")
		if h, got := answer(t, fromOne, "GET"); h.StatusCode != 200 || got != "/0" {
			t.Fatalf("/0: %d %q", h.StatusCode, got)
		}
		two, fromTwo := r.dial()
		_, _ = io.WriteString(two, "GET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
		if h, got := answer(t, fromTwo, "GET"); h.StatusCode != 200 || got != "/2" {
			t.Fatalf("/2: %d %q", h.StatusCode, got)
		}
		release()
		if h, got := answer(t, fromOne, "GET"); h.StatusCode != 200 || got != "/1" {
			t.Fatalf("/1: %d %q", h.StatusCode, got)
		}
	})
}

// TestPipelinedCallers sends many requests at once: those before the last are answered in order, whatever
// their kind.
func TestPipelinedCallers(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		for _, h2 := range []bool{false, true} {
			app := application(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				_, _ = fmt.Fprintf(w, "%s %s %d", r.Method, r.URL.Path, len(body))
			}))
			r := newRig(t, portable, DefaultLimits(), &Endpoint{Address: app, HTTP2: h2, Idle: idleHere})
			c, in := r.dial()
			const n = 60
			go func() {
				out := bufio.NewWriter(c)
				for i := range n {
					body := strings.Repeat("b", i*i*20)
					switch i % 3 {
					case 0:
						_, _ = fmt.Fprintf(out, "GET /%d HTTP/1.1\r\nHost: a\r\n\r\n", i)
					case 1:
						_, _ = fmt.Fprintf(out, "POST /%d HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", i, len(body), body)
					default:
						_, _ = fmt.Fprintf(out, "POST /%d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", i, len(body), body)
					}
				}
				_, _ = io.WriteString(out, "HEAD /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
				_ = out.Flush()
			}()
			for i := range n {
				want := fmt.Sprintf("POST /%d %d", i, i*i*20)
				if i%3 == 0 {
					want = fmt.Sprintf("GET /%d 0", i)
				}
				if res, got := answer(t, in, "GET"); res.StatusCode != 200 || got != want {
					t.Fatalf("%d: %d %q, want %q", i, res.StatusCode, got, want)
				}
			}
			if res, _ := answer(t, in, "HEAD"); !res.Close || res.ContentLength != int64(len("HEAD /last 0")) {
				t.Errorf("the last: close %t, length %d", res.Close, res.ContentLength)
			}
			if _, err := in.ReadByte(); err != io.EOF {
				t.Errorf("after the last: %v", err)
			}
		}
	})
}

// TestSilentPeer asks a peer that owes answers whether it is there: one that does not say so is given up,
// one that does may take its time.
func TestSilentPeer(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		for _, mute := range []bool{true, false} {
			t.Run(fmt.Sprintf("mute=%t", mute), func(t *testing.T) {
				var pings atomic.Int64
				addr := server(t, func(c net.Conn, _ int) {
					p := newFramed(c)
					var stream uint32
					for {
						f, err := p.ReadFrame()
						if err != nil {
							return
						}
						switch f := f.(type) {
						case *http2.MetaHeadersFrame:
							stream = f.StreamID
						case *http2.PingFrame:
							if mute {
								pings.Add(1)
								continue
							}
							_ = p.WritePing(true, f.Data)
							if pings.Add(1) == 4 {
								p.head(stream, true, ":status", "200")
							}
						}
					}
				})
				limits := DefaultLimits()
				limits.Silence = 20 * time.Millisecond
				e := &Endpoint{Address: addr, HTTP2: true}
				links := counted(e)
				r := newRig(t, portable, limits, e)
				status, _, err := r.send(r.client(false), "GET", "/", nil)
				if mute && (status != 502 || pings.Load() != 1) || !mute && status != 200 || err != nil {
					t.Errorf("%d %v after %d PINGs", status, err, pings.Load())
				}
				if mute {
					eventually(t, "the connection is closed", func() bool { return links.Load() == 0 })
				}
			})
		}
	})
}

// TestRefusedAfterAnAnswer has a peer answer and then say that it does not take our certificate: it has read
// the request, whatever it says, and nothing of a second answer may follow the first.
func TestRefusedAfterAnAnswer(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		addr := server(t, func(c net.Conn, _ int) {
			in := bufio.NewReader(c)
			if _, err := http.ReadRequest(in); err == nil {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf ")
				_, _ = io.Copy(io.Discard, in)
			}
		})
		e := &Endpoint{Address: addr, Idle: idleHere}
		links := counted(e)
		r := newRig(t, portable, DefaultLimits(), e)
		c, in := r.dial()
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		half := make([]byte, 5)
		if _, err := io.ReadFull(res.Body, half); err != nil || string(half) != "half " {
			t.Fatalf("%q %v", half, err)
		}
		r.on(func() {
			for x := range r.front().Exchanges {
				k := x.back.(*h1Client)
				k.c.Handle(alerted{k})
				k.c.Close()
			}
		})
		rest, err := io.ReadAll(in)
		if len(rest) > 0 || err != nil || r.last().Flag != FlagReset {
			t.Errorf("what follows: %q, %v, flag %q", rest, err, r.last().Flag)
		}
		if links.Load() != 0 {
			t.Error("the request was sent again")
		}
	})
}

// alerted sees its connection end by a peer's alert.
type alerted struct{ loop.Handler }

func (a alerted) Closed(error) {
	a.Handler.Closed(&net.OpError{Op: "remote error", Err: fmt.Errorf("tls: bad certificate")})
}
