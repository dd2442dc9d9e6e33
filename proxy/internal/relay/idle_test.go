package relay

import (
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestIdleCallers closes connections on which nothing is asked for, whatever was asked before.
func TestIdleCallers(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		arrived := make(chan struct{}, 1)
		app := application(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			arrived <- struct{}{}
			if r.URL.Path == "/slow" {
				<-r.Context().Done()
			}
		}))
		limits := DefaultLimits()
		limits.Idle, limits.Head = 30*time.Millisecond, 60*time.Millisecond
		r := newRig(t, portable, limits, &Endpoint{Address: app, HTTP2: true})
		closes := func(c net.Conn) {
			_, err := io.Copy(io.Discard, c)
			if err != nil && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the connection does not end: %v", err)
			}
		}
		c, in := r.dial()
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		<-arrived
		answer(t, in, "GET")
		closes(c)
		for _, cancels := range []bool{false, true} {
			c, _ := r.dial()
			p := framedCaller(c)
			if !cancels {
				p.ask(1, "GET", "/", true)
				<-arrived
				closes(c)
				continue
			}
			p.ask(1, "GET", "/slow", true)
			<-arrived
			ticks := 0
			eventually(t, "the idle time is over", func() bool {
				r.on(func() { ticks++ })
				time.Sleep(limits.Idle / 4)
				return ticks > 12
			})
			_ = p.WriteRSTStream(1, http2.ErrCodeCancel)
			closes(c)
		}
	})
}

// TestIdleRace has a request arrive on an HTTP/2 connection that is being closed for being idle: it was
// not known to the caller, and its answer may take its time.
func TestIdleRace(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		gate := make(chan struct{})
		var came atomic.Bool
		app := application(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { came.Store(true); <-gate }))
		limits := DefaultLimits()
		limits.Idle, limits.Head = 20*time.Millisecond, 20*time.Millisecond
		r := newRig(t, portable, limits, &Endpoint{Address: app, HTTP2: true})
		c, _ := r.dial()
		p := framedCaller(c)
		p.mute = true // the PING after the GOAWAY is not answered yet
		for {
			f := p.frame()
			if f == nil {
				t.Fatal("the connection ended")
			}
			if _, ok := f.(*http2.GoAwayFrame); ok {
				break
			}
		}
		p.ask(1, "GET", "/", true)
		eventually(t, "it has come", came.Load)
		ticks := 0
		eventually(t, "much time is over", func() bool {
			r.on(func() { ticks++ })
			time.Sleep(limits.Head / 4)
			return ticks > 20
		})
		close(gate)
		for {
			switch f := p.frame().(type) {
			case nil:
				t.Fatal("the connection ended before the answer")
			case *http2.MetaHeadersFrame:
				if status := f.PseudoValue("status"); status != "200" {
					t.Errorf("status %s", status)
				}
				return
			}
		}
	})
}
