package relay

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign.dev/proxy/internal/loop"
)

// wire is a proxy that passes bytes on.
type wire struct {
	t      *testing.T
	target *Target
	addr   netip.AddrPort
	loop   *loop.Loop

	early atomic.Int64
	mu    sync.Mutex
	done  map[*Bytes]int
	last  Outcome
	all   []*Bytes
}

func newWire(t *testing.T, portable bool, limits Limits, first string, endpoints ...*Endpoint) *wire {
	t.Helper()
	g, err := loop.NewGroup(1, loop.Config{Portable: portable})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Stop)
	w := &wire{t: t, target: &Target{Endpoints: endpoints}, done: map[*Bytes]int{}, loop: g.Loops()[0]}
	worker := NewWorker(w.loop, limits)
	w.addr = listen(t, g, func(c *loop.Conn) {
		b := worker.ServeBytes(c, w.target, []byte(first), func(b *Bytes, o *Outcome) {
			w.mu.Lock()
			w.done[b]++
			w.last = *o
			w.mu.Unlock()
		})
		b.Early = func() { w.early.Add(1) }
		w.mu.Lock()
		w.all = append(w.all, b)
		w.mu.Unlock()
	})
	return w
}

// outcome waits for the end of the n-th connection.
func (w *wire) outcome(n int) Outcome {
	w.t.Helper()
	eventually(w.t, "the connection is done", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.done) == n
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, times := range w.done {
		if times != 1 {
			w.t.Errorf("a connection was done %d times", times)
		}
	}
	for _, e := range w.target.Endpoints {
		if a := e.active.Load(); a != 0 {
			w.t.Errorf("%d connections are still counted", a)
		}
	}
	return w.last
}

func (w *wire) dial() *net.TCPConn {
	w.t.Helper()
	c, err := net.Dial("tcp", w.addr.String())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c.(*net.TCPConn)
}

// TestBytesHalfClose ends one direction after the other, either first.
func TestBytesHalfClose(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		const size = 3 << 20
		var mode atomic.Value
		got := make(chan int64, 1)
		addr := server(t, func(c net.Conn, _ int) {
			if mode.Load() == "server first" {
				_, _ = c.Write(make([]byte, size))
				_ = c.(*net.TCPConn).CloseWrite()
				n, _ := io.Copy(io.Discard, c)
				got <- n
				return
			}
			n, _ := io.Copy(io.Discard, c)
			_, _ = fmt.Fprintf(c, "%d", n)
		})
		w := newWire(t, portable, DefaultLimits(), "first", &Endpoint{Address: addr})
		mode.Store("client first")
		c := w.dial()
		_, _ = c.Write(make([]byte, size))
		_ = c.CloseWrite()
		if got, err := io.ReadAll(c); string(got) != fmt.Sprint(size+5) || err != nil {
			t.Errorf("%q %v", got, err)
		}
		if o := w.outcome(1); o.Flag != "" || o.BytesIn != size+5 || o.BytesOut != int64(len(fmt.Sprint(size+5))) {
			t.Errorf("%+v", o)
		}
		mode.Store("server first")
		c = w.dial()
		if n, err := io.Copy(io.Discard, c); n != size || err != nil {
			t.Errorf("%d bytes %v", n, err)
		}
		_, _ = c.Write(make([]byte, size))
		_ = c.CloseWrite()
		if n := <-got; n != size+5 {
			t.Errorf("the server got %d bytes", n)
		}
		if o := w.outcome(2); o.Flag != "" || o.BytesIn != size+5 || o.BytesOut != size {
			t.Errorf("%+v", o)
		}
		if w.early.Load() != 0 {
			t.Error("an end is taken for a refusal")
		}
	})
}

// TestBytesEarlyClose is how a peer refuses bytes: it closes before it has said any.
func TestBytesEarlyClose(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		for _, reset := range []bool{false, true} {
			addr := server(t, func(c net.Conn, _ int) {
				_, _ = io.ReadFull(c, make([]byte, 1))
				if reset {
					_ = c.(*net.TCPConn).SetLinger(0)
				}
			})
			w := newWire(t, portable, DefaultLimits(), "", &Endpoint{Address: addr})
			c := w.dial()
			_, _ = io.WriteString(c, "x")
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
			if o := w.outcome(1); o.Flag != FlagPeerClosed || w.early.Load() != 1 {
				t.Errorf("reset %t: %+v, told %d times", reset, o, w.early.Load())
			}
		}
	})
}

// TestBytesBreak passes a break on as a break, either way.
func TestBytesBreak(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		ended := make(chan error, 1)
		var breaks atomic.Bool
		addr := server(t, func(c net.Conn, _ int) {
			_, _ = io.WriteString(c, "hello")
			if breaks.Load() {
				_, _ = io.ReadFull(c, make([]byte, 5))
				_ = c.(*net.TCPConn).SetLinger(0)
				return
			}
			_, err := io.Copy(io.Discard, c)
			ended <- err
		})
		w := newWire(t, portable, DefaultLimits(), "", &Endpoint{Address: addr})
		c := w.dial()
		_, _ = io.ReadFull(c, make([]byte, 5))
		_ = c.SetLinger(0)
		_ = c.Close()
		if err := <-ended; err == nil {
			t.Error("the server takes the client's break for an end")
		}
		if o := w.outcome(1); o.Flag != FlagCut {
			t.Errorf("%+v", o)
		}
		breaks.Store(true)
		c = w.dial()
		_, _ = io.WriteString(c, "hello")
		if _, err := io.Copy(io.Discard, c); err == nil {
			t.Error("the client takes the server's break for an end")
		}
		if o := w.outcome(2); o.Flag != FlagCut || o.BytesIn != 5 || o.BytesOut != 5 {
			t.Errorf("%+v", o)
		}
		breaks.Store(false)
		c = w.dial()
		_, _ = io.ReadFull(c, make([]byte, 5))
		w.mu.Lock()
		b := w.all[2]
		w.mu.Unlock()
		w.loop.Post(b.Cut)
		if _, err := io.Copy(io.Discard, c); err == nil {
			t.Error("the client takes a cut for an end")
		}
		if err := <-ended; err == nil {
			t.Error("the server takes a cut for an end")
		}
		w.outcome(3)
	})
}

// TestBytesGoneEarly has clients leave while their connection is being made.
func TestBytesGoneEarly(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		e, conns, _ := held(t, nil)
		limits, flag := DefaultLimits(), FlagCut
		if portable { // goroutines do not see that a connection breaks from which nothing is read
			limits.Connect, flag = 500*time.Millisecond, FlagConnect
		}
		w := newWire(t, portable, limits, "first", e)
		c := w.dial()
		eventually(t, "the connection is under way", func() bool { return conns.Load() == 1 })
		_ = c.SetLinger(0)
		_ = c.Close()
		if o := w.outcome(1); o.BytesOut != 0 || o.Flag != flag {
			t.Errorf("%+v", o)
		}
		eventually(t, "nothing is left", func() bool { return w.loop.Open() == 0 })
	})
}

// TestBytesNextEndpoint tries one endpoint after the other.
func TestBytesNextEndpoint(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		good := server(t, func(c net.Conn, _ int) { _, _ = io.Copy(c, c) })
		bad := []*Endpoint{{Address: nowhere(t)}, {Address: nowhere(t)}}
		w := newWire(t, portable, DefaultLimits(), "first ", bad[0], &Endpoint{Address: good}, bad[1])
		for n := 1; n <= 3; n++ {
			for _, e := range bad {
				e.until.Store(0)
			}
			c := w.dial()
			_, _ = io.WriteString(c, "and second")
			_ = c.CloseWrite()
			if got, err := io.ReadAll(c); string(got) != "first and second" || err != nil {
				t.Errorf("%q %v", got, err)
			}
			if o := w.outcome(n); o.Flag != "" {
				t.Errorf("%+v", o)
			}
		}
		if bad[0].failures.Load() == 0 || bad[1].failures.Load() == 0 {
			t.Error("the others were not tried")
		}
		for _, endpoints := range [][]*Endpoint{nil, bad} {
			w := newWire(t, portable, DefaultLimits(), "", endpoints...)
			c := w.dial()
			_, _ = io.Copy(io.Discard, c)
			want := FlagConnect
			if endpoints == nil {
				want = FlagNoEndpoint
			}
			if o := w.outcome(1); o.Flag != want {
				t.Errorf("%d endpoints: %+v", len(endpoints), o)
			}
		}
	})
}

// TestBytesEnded takes over a connection whose client has ended its side already.
func TestBytesEnded(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		addr := server(t, func(c net.Conn, _ int) {
			all, _ := io.ReadAll(c)
			_, _ = io.WriteString(c, strings.ToUpper(string(all)))
		})
		w := newWire(t, portable, DefaultLimits(), "all", &Endpoint{Address: addr})
		c := w.dial()
		w.loop.Post(func() {})
		eventually(t, "it is taken over", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return len(w.all) == 1
		})
		w.loop.Post(func() { w.all[0].Ended() })
		if got, err := io.ReadAll(c); string(got) != "ALL" || err != nil {
			t.Errorf("%q %v", got, err)
		}
		_ = c.Close()
		if o := w.outcome(1); o.Flag != "" {
			t.Errorf("%+v", o)
		}
	})
}

// TestBytesDrainedEarly lets a client read what was written before its bytes had anywhere to go.
func TestBytesDrainedEarly(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		connect := make(chan struct{})
		addr := server(t, func(c net.Conn, _ int) {
			<-connect
			_, _ = io.Copy(c, c)
		})
		g, err := loop.NewGroup(1, loop.Config{Portable: portable})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(g.Stop)
		const size = 16 << 20 // more than the kernel takes
		worker := NewWorker(g.Loops()[0], DefaultLimits())
		// The endpoint says nothing in its handshake: there is no link for as long as the test likes.
		silent := &Endpoint{Address: addr, TLS: func(*Link) (*tls.Config, error) {
			return &tls.Config{MinVersion: tls.VersionTLS13, ServerName: "x"}, nil
		}}
		outcomes := make(chan Outcome, 1)
		front := listen(t, g, func(c *loop.Conn) {
			c.Write(make([]byte, size))
			worker.ServeBytes(c, &Target{Endpoints: []*Endpoint{silent}}, nil, func(_ *Bytes, o *Outcome) { outcomes <- *o })
		})
		c, err := net.Dial("tcp", front.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.CopyN(io.Discard, c, size); err != nil {
			t.Fatal(err)
		}
		close(connect)
		if o := <-outcomes; o.Flag != FlagConnect {
			t.Errorf("it ended as %q, want %q", o.Flag, FlagConnect)
		}
	})
}
