package loop

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// eventually polls until a condition holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

// calls is a handler made of functions; nil ones do nothing.
type calls struct {
	data    func(p []byte)
	end     func()
	drained func()
	closed  func(error)
}

func (h *calls) Data(p []byte) {
	if h.data != nil {
		h.data(p)
	}
}

func (h *calls) End() {
	if h.end != nil {
		h.end()
	}
}

func (h *calls) Drained() {
	if h.drained != nil {
		h.drained()
	}
}

func (h *calls) Closed(err error) {
	if h.closed != nil {
		h.closed(err)
	}
}

// TestStalledHandshakes has more peers stop in the middle of a handshake than may compute at once: the next
// one still gets through.
func TestStalledHandshakes(t *testing.T) {
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, MinVersion: tls.VersionTLS13}
	drivers(t, func(t *testing.T, g *Group) {
		addr := listen(t, g, func(c *Conn) {
			c.Handle(&echo{c: c})
			c.StartTLS(config, false, time.Minute, func(error) {})
		})
		for range 2 * maxShaking {
			_, _ = dial(t, addr).Write([]byte{0x16, 3, 1, 1, 0, 1})
		}
		c := tls.Client(dial(t, addr), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestResetInHandshake breaks connections after each part of a hello.
func TestResetInHandshake(t *testing.T) {
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, MinVersion: tls.VersionTLS13}
	drivers(t, func(t *testing.T, g *Group) {
		var failed, closed atomic.Int64
		addr := listen(t, g, func(c *Conn) {
			c.Handle(&calls{closed: func(error) { closed.Add(1) }})
			c.StartTLS(config, false, time.Minute, func(err error) {
				if err != nil {
					failed.Add(1)
				}
			})
		})
		var hello bytes.Buffer
		_ = tls.Client(&corked{Conn: recorder{&hello}, n: -1}, &tls.Config{InsecureSkipVerify: true}).Handshake()
		const n = 40
		for i := range n {
			c := dial(t, addr)
			_, _ = c.Write(hello.Bytes()[:hello.Len()*i/(n-1)])
			_ = c.SetLinger(0)
			_ = c.Close()
		}
		eventually(t, "a broken handshake did not end", func() bool { return failed.Load() == n && closed.Load() == n })
	})
}

// recorder keeps what is written and answers nothing.
type recorder struct{ b *bytes.Buffer }

func (r recorder) Write(p []byte) (int, error)      { return r.b.Write(p) }
func (r recorder) Read([]byte) (int, error)         { return 0, io.EOF }
func (r recorder) Close() error                     { return nil }
func (r recorder) LocalAddr() net.Addr              { return nil }
func (r recorder) RemoteAddr() net.Addr             { return nil }
func (r recorder) SetDeadline(time.Time) error      { return nil }
func (r recorder) SetReadDeadline(time.Time) error  { return nil }
func (r recorder) SetWriteDeadline(time.Time) error { return nil }

// TestTruncated tells a TLS peer that ended from one that was cut off.
func TestTruncated(t *testing.T) {
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, MinVersion: tls.VersionTLS12}
	drivers(t, func(t *testing.T, g *Group) {
		for _, polite := range []bool{true, false} {
			ended, closed := make(chan bool, 1), make(chan error, 1)
			addr := listen(t, g, func(c *Conn) {
				c.Handle(&calls{end: func() { ended <- true; c.Close() }, closed: func(err error) { closed <- err }})
				c.StartTLS(config, false, time.Minute, func(error) {})
			})
			raw := dial(t, addr)
			c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if polite {
				_ = c.CloseWrite()
			} else {
				_ = raw.CloseWrite()
			}
			err := <-closed
			if polite && (err != nil || len(ended) != 1) || !polite && (!errors.Is(err, io.ErrUnexpectedEOF) || len(ended) != 0) {
				t.Errorf("polite %t: ended %d, %v", polite, len(ended), err)
			}
		}
	})
}

// TestHalfClose ends each direction first, over TLS and without, and sends much in the other.
func TestHalfClose(t *testing.T) {
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, MinVersion: tls.VersionTLS13}
	const size = 4 << 20
	for _, secure := range []bool{false, true} {
		for _, early := range []bool{false, true} { // the loop's side ends first, perhaps before its handshake
			drivers(t, func(t *testing.T, g *Group) {
				var got atomic.Int64
				ended := make(chan bool, 1)
				addr := listen(t, g, func(c *Conn) {
					h := &calls{data: func(p []byte) { got.Add(int64(len(p))) }}
					h.end = func() {
						ended <- true
						if !early {
							c.Write(make([]byte, size))
							c.CloseWrite()
						}
					}
					c.Handle(h)
					if secure {
						c.StartTLS(config, false, time.Minute, func(error) {})
					}
					if early {
						c.CloseWrite()
					}
				})
				raw := dial(t, addr)
				var c interface {
					io.ReadWriter
					CloseWrite() error
				} = raw
				if secure {
					c = tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
					if err := c.(*tls.Conn).Handshake(); err != nil {
						t.Fatal(err)
					}
				}
				want := int64(size)
				if early {
					want = 0
					if n, err := io.Copy(io.Discard, c); n != 0 || err != nil {
						t.Fatalf("its end is not seen: %d, %v", n, err)
					}
					if _, err := c.Write(make([]byte, size)); err != nil {
						t.Fatal(err)
					}
				}
				if err := c.CloseWrite(); err != nil {
					t.Fatal(err)
				}
				<-ended
				if n, err := io.Copy(io.Discard, c); n != want && !early || err != nil || early && got.Load() != size {
					t.Errorf("secure %t, early %t: %d and %d bytes, %v", secure, early, n, got.Load(), err)
				}
			})
		}
	}
}

// TestCloseInData closes a connection from its own callback, and another whose bytes came in the same
// round: nothing is called after Closed.
func TestCloseInData(t *testing.T) {
	for _, secure := range []bool{false, true} {
		config := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, MinVersion: tls.VersionTLS13}
		drivers(t, func(t *testing.T, g *Group) {
			var taken, over atomic.Int64
			last := map[*Loop]*Conn{}
			var mu sync.Mutex
			addr := listen(t, g, func(c *Conn) {
				mu.Lock()
				other := last[c.Loop()]
				last[c.Loop()] = c
				mu.Unlock()
				closed := false
				check := func() {
					if closed {
						t.Error("a callback came after Closed")
					}
				}
				c.Handle(&calls{
					data: func([]byte) {
						check()
						if other != nil {
							other.Close()
						}
						c.Write([]byte("nobody reads this"))
						c.Pause()
						c.Resume()
						c.Close()
						c.Close()
						c.Write([]byte("or this"))
						c.CloseWrite()
						c.CloseAfterFlush()
					},
					end: check, drained: check,
					closed: func(error) { check(); closed = true; over.Add(1) },
				})
				if secure {
					c.StartTLS(config, false, time.Minute, func(error) {})
				}
				taken.Add(1)
			})
			const n = 60
			for range n {
				raw := dial(t, addr)
				go func() {
					var c net.Conn = raw
					if secure {
						c = tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
					}
					_, _ = c.Write(make([]byte, 100))
					_, _ = io.Copy(io.Discard, c)
					_ = raw.Close()
				}()
			}
			eventually(t, "a connection was not closed", func() bool { return taken.Load() == n && over.Load() == n })
			for _, l := range g.Loops() {
				eventually(t, "a connection is open", func() bool { return l.Open() == 0 })
			}
		})
	}
}

// TestPauseInData pauses in every callback and resumes later: nothing is lost, and nothing comes meanwhile.
func TestPauseInData(t *testing.T) {
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, MinVersion: tls.VersionTLS13}
	for _, secure := range []bool{false, true} {
		drivers(t, func(t *testing.T, g *Group) {
			got, done := sha256.New(), make(chan bool)
			addr := listen(t, g, func(c *Conn) {
				paused, turns := false, 0
				check := func() {
					if paused {
						t.Error("a paused connection was told of something")
					}
				}
				c.Handle(&calls{
					data: func(p []byte) {
						check()
						got.Write(p)
						c.Pause()
						paused = true
						resume := func() { paused = false; c.Resume() }
						if turns++; turns%3 == 0 {
							c.Loop().After(time.Millisecond, resume)
						} else {
							c.Loop().Post(resume)
						}
					},
					end: func() { check(); close(done); c.Close() },
				})
				if secure {
					c.StartTLS(config, false, time.Minute, func(error) {})
				}
			})
			raw := dial(t, addr)
			var c interface {
				io.Writer
				CloseWrite() error
			} = raw
			if secure {
				c = tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
			}
			sent := sha256.New()
			for i := range 200 {
				p := bytes.Repeat([]byte{byte(i)}, 1+i*97)
				sent.Write(p)
				if _, err := c.Write(p); err != nil {
					t.Fatal(err)
				}
			}
			_ = c.CloseWrite()
			<-done
			if !bytes.Equal(got.Sum(nil), sent.Sum(nil)) {
				t.Error("other bytes came")
			}
		})
	}
}

// TestTimerSetsItself has a timer that sets itself again at once: the loop goes on.
func TestTimerSetsItself(t *testing.T) {
	drivers(t, func(t *testing.T, g *Group) {
		l, ran := g.Loops()[0], make(chan bool)
		l.Post(func() {
			n := 0
			var again *Timer
			again = l.NewTimer(func() {
				if n++; n == 5 {
					close(ran)
					return
				}
				again.Reset(0)
			})
			again.Reset(0)
		})
		<-ran
	})
}

// TestTimersBusy sets, moves and stops many timers at random: those that are set in the end run once, the
// others do not.
func TestTimersBusy(t *testing.T) {
	drivers(t, func(t *testing.T, g *Group) {
		l := g.Loops()[0]
		const n = 500
		var ran [n]int
		timers := make([]*Timer, n)
		want := make([]bool, n)
		shuffled := make(chan bool)
		l.Post(func() {
			for i := range timers {
				timers[i] = l.NewTimer(func() { ran[i]++ })
			}
			for range 100_000 {
				i := rand.IntN(n)
				if want[i] = rand.IntN(3) > 0; want[i] {
					timers[i].Reset(20*time.Millisecond + time.Duration(rand.IntN(100))*time.Millisecond)
				} else {
					timers[i].Stop()
				}
			}
			close(shuffled)
		})
		<-shuffled
		eventually(t, "timers did not run", func() bool {
			over := make(chan bool)
			l.Post(func() {
				all := true
				for i := range timers {
					all = all && (ran[i] > 0) == want[i]
				}
				over <- all
			})
			return <-over
		})
		l.Post(func() {
			for i := range timers {
				if ran[i] > 1 {
					t.Errorf("timer %d ran %d times", i, ran[i])
				}
			}
			if len(l.timers.heap) > 2*minSweep {
				t.Errorf("%d timers are kept", len(l.timers.heap))
			}
		})
	})
}

// TestPostWhileStopping posts from many goroutines while the loop stops: what was taken runs.
func TestPostWhileStopping(t *testing.T) {
	drivers(t, func(t *testing.T, g *Group) {
		for range 50 {
			l, err := New(Config{Portable: g.loops[0].cfg.Portable})
			if err != nil {
				t.Fatal(err)
			}
			var taken, ran atomic.Int64
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for l.Post(func() { ran.Add(1) }) {
						taken.Add(1)
					}
				})
			}
			l.Stop()
			wg.Wait()
			if taken.Load() != ran.Load() {
				t.Fatalf("%d were taken, %d ran", taken.Load(), ran.Load())
			}
		}
	})
}

// TestStopLeavesNothing stops loops with connections in every state: peers see their end, no goroutine
// and no descriptor is left.
func TestStopLeavesNothing(t *testing.T) {
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, MinVersion: tls.VersionTLS13}
	for _, portable := range []bool{false, true} {
		before := goleak.IgnoreCurrent()
		g, err := NewGroup(2, Config{Portable: portable})
		if err != nil {
			t.Fatal(err)
		}
		var taken atomic.Int64
		ln, err := g.Listen(context.Background(), netip.MustParseAddrPort("127.0.0.1:0"), func(c *Conn) {
			c.Handle(&echo{c: c})
			if taken.Add(1)%2 == 0 {
				c.StartTLS(config, false, time.Hour, func(error) {})
			}
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var peers []*net.TCPConn
		for range 20 {
			c := dial(t, ln.Addr())
			_, _ = c.Write([]byte{0x16, 3, 1, 1, 0, 1}) // half a hello to every other
			peers = append(peers, c)
		}
		eventually(t, "connections were not taken", func() bool { return taken.Load() == 20 })
		l := g.Loops()[0]
		l.Post(func() {
			l.After(time.Hour, func() {})
			l.Dial(ln.Addr(), func(*Conn, error) {})
		})
		ln.Close()
		g.Stop()
		ln.Close()
		for _, c := range peers {
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
		for _, l := range g.Loops() {
			if n := l.Open(); n != 0 {
				t.Errorf("portable %t: %d connections are open", portable, n)
			}
		}
		goleak.VerifyNone(t, before)
	}
}
