package relay

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// endless is an application that sends without end.
func endless(w http.ResponseWriter, r *http.Request) {
	piece := make([]byte, 64<<10)
	for r.Context().Err() == nil {
		if _, err := w.Write(piece); err != nil {
			return
		}
	}
}

// stalls looks for callers that take nothing until one is found, and cuts it.
func (r *rig) stalls(t *testing.T) {
	t.Helper()
	f := r.front()
	eventually(t, "a caller is found that takes nothing", func() bool {
		n := 0
		r.on(func() {
			for _, x := range r.w.Stalled(f) {
				n++
				x.Cut()
			}
		})
		return n > 0
	})
}

// TestStalledCallers cuts callers that do not read their answers.
func TestStalledCallers(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		app := application(t, http.HandlerFunc(endless))
		for _, app2 := range []bool{false, true} {
			limits := DefaultLimits()
			limits.Stalled = 30 * time.Millisecond
			newStall := func(t *testing.T) *rig {
				e := &Endpoint{Address: app, HTTP2: app2, Idle: idleHere}
				return newRig(t, portable, limits, e)
			}
			t.Run(fmt.Sprintf("h1/app2=%t", app2), func(t *testing.T) {
				r := newStall(t)
				c, _ := r.dial()
				_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				eventually(t, "it came", func() bool { return r.running(t) == 1 })
				r.stalls(t)
				eventually(t, "it is done", func() bool { return r.running(t) == 0 })
				if flag := r.last().Flag; flag != FlagCut {
					t.Errorf("flag %q", flag)
				}
			})
			t.Run(fmt.Sprintf("h2/app2=%t", app2), func(t *testing.T) {
				r := newStall(t)
				c, _ := r.dial()
				p := framedCaller(c)
				p.ask(1, "GET", "/", true)
				eventually(t, "it came", func() bool { return r.running(t) == 1 })
				r.stalls(t)
				for {
					switch f := p.frame().(type) {
					case nil:
						t.Fatal("the connection ended")
					case *http2.RSTStreamFrame:
						if f.ErrCode == http2.ErrCodeNo {
							t.Errorf("%v", f)
						}
						return
					}
				}
			})
		}
	})
}

// TestStalledTail has an HTTP/2 caller never take the rest of an answer that has ended.
func TestStalledTail(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		app := application(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1000)) }))
		limits := DefaultLimits()
		limits.Stalled = 30 * time.Millisecond
		r := newRig(t, portable, limits, &Endpoint{Address: app, Idle: idleHere})
		c, _ := r.dial()
		p := framedCaller(c, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
		p.ask(1, "GET", "/", true)
		eventually(t, "it is over", func() bool { return r.last().Status == 200 })
		f := r.front()
		eventually(t, "the stream is given up", func() bool {
			busy := true
			r.on(func() { r.w.Stalled(f); busy = f.Busy() })
			return !busy
		})
		for {
			switch f := p.frame().(type) {
			case nil:
				t.Fatal("the connection ended")
			case *http2.RSTStreamFrame:
				if f.ErrCode == http2.ErrCodeNo {
					t.Errorf("%v", f)
				}
				return
			}
		}
	})
}

// TestSlowContent refuses a request whose content stops coming, if its length was announced.
func TestSlowContent(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		addr := server(t, func(c net.Conn, _ int) { echo1(c) })
		limits := DefaultLimits()
		limits.Content = 30 * time.Millisecond
		r := newRig(t, portable, limits, &Endpoint{Address: addr, Idle: idleHere})
		c, in := r.dial()
		_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf")
		if res, _ := answer(t, in, "POST"); res.StatusCode != 408 || !res.Close {
			t.Errorf("status %d, close %t", res.StatusCode, res.Close)
		}
		if o := r.last(); o.Flag != FlagGone || o.Status != 408 {
			t.Errorf("%+v", o)
		}
		// Who announces no length may have nothing to say for long.
		c, in = r.dial()
		_, _ = io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
		ticks := 0
		eventually(t, "much more time is over", func() bool {
			r.on(func() { ticks++ })
			time.Sleep(limits.Content / 4)
			return ticks > 20
		})
		_, _ = io.WriteString(c, "0\r\n\r\n")
		if res, got := answer(t, in, "POST"); res.StatusCode != 200 || got != "half" {
			t.Errorf("%d %q", res.StatusCode, got)
		}
	})
}

// TestSlowHead refuses a head that does not come to its end, be it the first on its connection or not.
func TestSlowHead(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		addr := server(t, func(c net.Conn, _ int) { echo1(c) })
		limits := DefaultLimits()
		limits.Head = 50 * time.Millisecond
		r := newRig(t, portable, limits, &Endpoint{Address: addr, Idle: idleHere})
		const whole, part = "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost"
		for _, before := range []string{"", whole} {
			for _, once := range []bool{true, false} { // with what came before, or later
				c, in := r.dial()
				first := before
				if once {
					first += part
				}
				_, _ = io.WriteString(c, first)
				if before != "" {
					if res, _ := answer(t, in, "GET"); res.StatusCode != 200 {
						t.Fatalf("status %d", res.StatusCode)
					}
				}
				if !once {
					_, _ = io.WriteString(c, part)
				}
				if res, _ := answer(t, in, "GET"); res.StatusCode != 408 {
					t.Errorf("status %d", res.StatusCode)
				}
			}
		}
	})
}

// TestHalfClose has callers of HTTP/1.1 end their side while they wait: a quick answer reaches them, and a
// slow application is told that they may have gone.
func TestHalfClose(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		ended, cancelled, gate := make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{})
		defer close(gate)
		app := application(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				select {
				case <-r.Context().Done():
					cancelled <- struct{}{}
				case <-gate:
				}
				return
			}
			<-ended
			_, _ = io.WriteString(w, "quick")
		}))
		for _, app2 := range []bool{false, true} {
			r := newRig(t, portable, DefaultLimits(), &Endpoint{Address: app, HTTP2: app2, Idle: idleHere})
			c, in := r.dial()
			_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
			_ = c.(*net.TCPConn).CloseWrite()
			eventually(t, "the end has come", func() bool {
				gone := false
				r.on(func() {
					if r.running(t) == 1 {
						gone = r.front().(*h1Server).gone
					}
				})
				return gone
			})
			ended <- struct{}{}
			if res, got := answer(t, in, "GET"); res.StatusCode != 200 || got != "quick" || !res.Close {
				t.Errorf("%d %q, close %t", res.StatusCode, got, res.Close)
			}
			c, _ = r.dial()
			_, _ = io.WriteString(c, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
			_ = c.(*net.TCPConn).CloseWrite()
			select {
			case <-cancelled:
			case <-time.After(time.Minute):
				t.Error("the application is never told")
			}
			eventually(t, "it is done", func() bool { return r.last().Flag == FlagGone })
		}
	})
}

// TestHalfCloseAfter has a caller end its side when its answer is complete and the rest of it waits for the
// caller to read: it arrives.
func TestHalfCloseAfter(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		const size = 16 << 20
		addr := server(t, func(c net.Conn, _ int) { echo1(c) })
		r := newRig(t, portable, DefaultLimits(), &Endpoint{Address: addr, Idle: idleHere})
		c, in := r.dial()
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		answer(t, in, "GET")
		s := r.front().(*h1Server)
		r.on(func() { s.c.Write(make([]byte, size)) }) // stands for the end of the answer: more than the kernel takes
		_ = c.(*net.TCPConn).CloseWrite()
		eventually(t, "the end has come", func() bool {
			ended := false
			r.on(func() { ended = s.closing || s.c.Dead() })
			return ended
		})
		if n, err := io.Copy(io.Discard, in); n != size || err != nil {
			t.Errorf("%d of %d bytes, %v", n, size, err)
		}
	})
}

// TestCallerGone closes a caller's connection in the middle of its request and of its answer.
func TestCallerGone(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		app := application(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).EnableFullDuplex()
			if r.URL.Path == "/endless" {
				endless(w, r)
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
		}))
		for _, app2 := range []bool{false, true} {
			e := &Endpoint{Address: app, HTTP2: app2, Idle: idleHere}
			r := newRig(t, portable, DefaultLimits(), e)
			for _, request := range []string{
				"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf",
				"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
				"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n",
			} {
				c, in := r.dial()
				_, _ = io.WriteString(c, request)
				eventually(t, "it is under way", func() bool { return e.active.Load() == 1 })
				if strings.Contains(request, "endless") {
					if _, err := in.Peek(1 << 10); err != nil {
						t.Fatal(err)
					}
				}
				_ = c.Close()
				eventually(t, "it is done", func() bool { return r.running(t) == 0 && e.active.Load() == 0 })
				if o := r.last(); o.Flag != FlagGone {
					t.Errorf("%.20q: %+v", request, o)
				}
			}
			c, _ := r.dial()
			p := framedCaller(c)
			p.ask(1, "POST", "/", false)
			_ = p.WriteData(1, false, []byte("half"))
			p.ask(3, "GET", "/endless", true)
			eventually(t, "both are under way", func() bool { return e.active.Load() == 2 })
			_ = p.WriteRSTStream(3, http2.ErrCodeCancel)
			eventually(t, "one is done", func() bool { return r.running(t) == 1 && e.active.Load() == 1 })
			_ = c.Close()
			eventually(t, "both are done", func() bool { return r.running(t) == 0 && e.active.Load() == 0 })
			if o := r.last(); o.Flag != FlagGone || o.Status != 0 {
				t.Errorf("%+v", o)
			}
		}
	})
}

// TestRestNotWanted answers before the whole request was read: an HTTP/2 caller is told that the rest of it is
// not wanted, as soon as it has the whole answer and not before.
func TestRestNotWanted(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		const size = 1000
		app := application(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, size)) }))
		for _, window := range []uint32{10, 1 << 16} {
			r := newRig(t, portable, DefaultLimits(), &Endpoint{Address: app, HTTP2: true})
			c, _ := r.dial()
			p := framedCaller(c, http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
			p.ask(1, "POST", "/", false)
			_ = p.WriteData(1, false, []byte("some"))
			eventually(t, "it is answered", func() bool { return r.last().Status == 200 })
			if window < size {
				_ = p.WriteWindowUpdate(1, size)
			}
			got, ended := 0, false
			for reset := false; !reset; {
				switch f := p.frame().(type) {
				case nil:
					t.Fatal("the connection ended")
				case *http2.DataFrame:
					got += len(f.Data())
					ended = f.StreamEnded()
				case *http2.RSTStreamFrame:
					reset = true
					if f.ErrCode != http2.ErrCodeNo {
						t.Errorf("%v", f)
					}
				}
			}
			if got != size || !ended {
				t.Errorf("%d of %d bytes, ended %t, before the stream was reset", got, size, ended)
			}
		}
	})
}

// TestGoneWithContent has callers leave whose whole request came, and waits for an application that takes
// none of it.
func TestGoneWithContent(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		for _, request := range []string{
			"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n01234567890123456789",
			"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n",
			"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\na\r\n0123456789\r\n0\r\nX-End: yes\r\n\r\n",
		} {
			leaves(t, portable, request)
		}
	})
}

// leaves sends a request, waits until all of it has come, and closes the connection.
func leaves(t *testing.T, portable bool, request string) {
	t.Helper()
	reset := make(chan struct{}, 1)
	addr := server(t, func(c net.Conn, _ int) {
		p := newFramed(c, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
		for {
			switch f := p.frame().(type) {
			case nil:
				return
			case *http2.MetaHeadersFrame:
				if f.PseudoValue("method") == "GET" {
					p.head(f.StreamID, true, ":status", "200")
				}
			case *http2.RSTStreamFrame:
				reset <- struct{}{}
			}
		}
	})
	e := &Endpoint{Address: addr, HTTP2: true}
	r := newRig(t, portable, DefaultLimits(), e)
	if status, _, err := r.send(r.client(true), "GET", "/", nil); status != 200 || err != nil { // so that the window is known
		t.Fatalf("%d %v", status, err)
	}
	c, _ := r.dial()
	_, _ = io.WriteString(c, request)
	eventually(t, "all has come", func() bool {
		all := false
		r.on(func() {
			if e.active.Load() == 1 {
				all = r.front().(*h1Server).body.Done()
			}
		})
		return all
	})
	_ = c.Close()
	select {
	case <-reset:
	case <-time.After(time.Minute):
		t.Fatal("the application is never told")
	}
	eventually(t, "it is done", func() bool { return r.last().Flag == FlagGone })
}
