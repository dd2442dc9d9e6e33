package loop

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// drivers runs a test on epoll and on goroutines.
func drivers(t *testing.T, test func(t *testing.T, g *Group)) {
	for _, portable := range []bool{false, true} {
		name := "native"
		if portable {
			name = "portable"
		}
		t.Run(name, func(t *testing.T) {
			g, err := NewGroup(2, Config{Portable: portable})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(g.Stop)
			test(t, g)
		})
	}
}

func listen(t *testing.T, g *Group, take func(*Conn)) netip.AddrPort {
	t.Helper()
	ln, err := g.Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"), take, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ln.Close)
	return ln.Addr()
}

func dial(t *testing.T, addr netip.AddrPort) *net.TCPConn {
	t.Helper()
	var d net.Dialer
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

// echo writes back what it gets, and stops reading while its output waits.
type echo struct {
	c      *Conn
	closed func(error)
	max    atomic.Int64 // the most that ever waited
}

func (e *echo) Data(p []byte) {
	e.c.Write(p)
	if n := int64(e.c.Queued()); n > 0 {
		e.max.Store(max(e.max.Load(), n))
		if n > 64<<10 {
			e.c.Pause()
		}
	}
}
func (e *echo) End()     { e.c.CloseWrite() }
func (e *echo) Drained() { e.c.Resume() }
func (e *echo) Closed(err error) {
	if e.closed != nil {
		e.closed(err)
	}
}

func TestEcho(t *testing.T) {
	drivers(t, func(t *testing.T, g *Group) {
		addr := listen(t, g, func(c *Conn) { c.Handle(&echo{c: c}) })
		c := dial(t, addr)
		for _, text := range []string{"a", "hello", string(bytes.Repeat([]byte("x"), 100<<10))} {
			go func() { _, _ = io.WriteString(c, text) }()
			got := make([]byte, len(text))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != text {
				t.Fatalf("got %d bytes, %v", len(got), err)
			}
		}
		_ = c.CloseWrite()
		if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
			t.Fatalf("after our end: %q, %v", rest, err)
		}
	})
}

// TestSlowReader sends much to a peer that does not read for a while: nothing is lost, and what waits
// is bounded.
func TestSlowReader(t *testing.T) {
	drivers(t, func(t *testing.T, g *Group) {
		var most atomic.Pointer[echo]
		addr := listen(t, g, func(c *Conn) { e := &echo{c: c}; most.Store(e); c.Handle(e) })
		c := dial(t, addr)
		_ = c.SetReadBuffer(16 << 10)
		const size = 32 << 20
		sent := sha256.New()
		go func() {
			block := make([]byte, 64<<10)
			for range size / len(block) {
				_, _ = rand.Read(block)
				sent.Write(block)
				if _, err := c.Write(block); err != nil {
					return
				}
			}
			_ = c.CloseWrite()
		}()
		got := sha256.New()
		n, err := io.Copy(got, c)
		if err != nil || n != size || !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
			t.Fatalf("got %d of %d bytes, %v", n, size, err)
		}
		if waited := most.Load().max.Load(); waited > 1<<20 {
			t.Errorf("%d bytes waited", waited)
		}
	})
}

func TestDialRefused(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().(*net.TCPAddr).AddrPort()
	_ = ln.Close()
	drivers(t, func(t *testing.T, g *Group) {
		l, failed := g.Loops()[0], make(chan error, 1)
		l.Post(func() { l.Dial(addr, func(_ *Conn, err error) { failed <- err }) })
		if err := <-failed; err == nil {
			t.Fatal("connected to a closed port")
		}
	})
}

// TestClose closes connections in every way and looks that Closed is called once and that nothing is
// left open.
func TestClose(t *testing.T) {
	drivers(t, func(t *testing.T, g *Group) {
		closed := make(chan error, 100)
		addr := listen(t, g, func(c *Conn) {
			e := &echo{c: c, closed: func(err error) { closed <- err }}
			c.Handle(e)
			c.Write([]byte("bye"))
			c.CloseAfterFlush()
		})
		for range 20 {
			c := dial(t, addr)
			if got, err := io.ReadAll(c); err != nil || string(got) != "bye" {
				t.Fatalf("%q, %v", got, err)
			}
			if err := <-closed; err != nil {
				t.Fatal(err)
			}
		}
		for _, l := range g.Loops() {
			if n := l.Open(); n != 0 {
				t.Errorf("%d connections are open", n)
			}
		}
	})
}

func TestTimers(t *testing.T) {
	drivers(t, func(t *testing.T, g *Group) {
		l := g.Loops()[0]
		order := make(chan int, 10)
		l.Post(func() {
			var later *Timer
			l.After(60*time.Millisecond, func() { order <- 3 })
			l.After(20*time.Millisecond, func() { order <- 1; later.Reset(80 * time.Millisecond) })
			later = l.After(40*time.Millisecond, func() { order <- 4 })
			l.After(30*time.Millisecond, func() { order <- 9 }).Stop()
			moved := l.After(time.Hour, func() { order <- 2 })
			moved.Reset(40 * time.Millisecond)
		})
		for want := 1; want <= 4; want++ {
			select {
			case got := <-order:
				if got != want {
					t.Fatalf("timer %d ran, want %d", got, want)
				}
			case <-time.After(time.Minute):
				t.Fatalf("timer %d did not run", want)
			}
		}
	})
}

// TestNoGoroutines holds connections that say nothing: on epoll they cost no goroutine, in a handshake
// neither.
func TestNoGoroutines(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("goroutines drive the sockets of this system")
	}
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, MinVersion: tls.VersionTLS13}
	g, err := NewGroup(1, Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Stop)
	var taken atomic.Int64
	addr := listen(t, g, func(c *Conn) {
		c.Handle(&echo{c: c})
		c.StartTLS(config, false, time.Minute, func(error) {})
		taken.Add(1)
	})
	before := runtime.NumGoroutine()
	const n = 200
	for range n {
		dial(t, addr)
	}
	for deadline := time.Now().Add(10 * time.Second); taken.Load() < n && time.Now().Before(deadline); {
		runtime.Gosched()
	}
	if after := runtime.NumGoroutine(); after > before+5 {
		t.Errorf("%d goroutines for %d silent connections", after-before, n)
	}
}

// TestStorm has many clients connect, speak and leave at once.
func TestStorm(t *testing.T) {
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, MinVersion: tls.VersionTLS13}
	drivers(t, func(t *testing.T, g *Group) {
		addr := listen(t, g, func(c *Conn) {
			c.Handle(&echo{c: c})
			c.StartTLS(config, false, time.Minute, func(error) {})
		})
		var wg sync.WaitGroup
		errs := make(chan error, 100)
		for range 100 {
			wg.Go(func() {
				var d net.Dialer
				raw, err := d.DialContext(t.Context(), "tcp", addr.String())
				if err != nil {
					errs <- err
					return
				}
				defer raw.Close()
				c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
				for range 20 {
					if _, err := c.Write([]byte("hello")); err != nil {
						errs <- err
						return
					}
					got := make([]byte, 5)
					if _, err := io.ReadFull(c, got); err != nil {
						errs <- err
						return
					}
				}
			})
		}
		wg.Wait()
		close(errs)
		for err := range errs {
			t.Fatal(err)
		}
	})
}

func TestStop(t *testing.T) {
	drivers(t, func(t *testing.T, g *Group) {
		l, err := New(Config{Portable: g.loops[0].cfg.Portable})
		if err != nil {
			t.Fatal(err)
		}
		l.Stop()
		if l.Post(func() {}) {
			t.Error("a stopped loop took a callback")
		}
	})
}

// TestDataAndEnd checks that the peer's end is seen when it came together with its last bytes: one
// event tells of both.
func TestDataAndEnd(t *testing.T) {
	drivers(t, func(t *testing.T, g *Group) {
		for range 50 {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			cl := &client{closed: make(chan error, 1)}
			l := g.Loops()[0]
			l.Post(func() {
				l.Dial(ln.Addr().(*net.TCPAddr).AddrPort(), func(c *Conn, err error) {
					if err != nil {
						cl.closed <- err
						return
					}
					cl.c = c
					c.Handle(cl)
				})
			})
			peer, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(peer, "bye")
			_ = peer.Close()
			_ = ln.Close()
			select {
			case err := <-cl.closed:
				if err != nil || string(cl.got) != "bye" {
					t.Fatalf("%q, %v", cl.got, err)
				}
			case <-time.After(time.Minute):
				t.Fatal("the end was not seen")
			}
		}
	})
}
