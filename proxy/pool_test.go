package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2Peer is the server's side of an HTTP/2 connection that a test speaks frame by frame.
type h2Peer struct {
	*http2.Framer
	t *testing.T
	c net.Conn
}

// pooledConn connects a pool with what serve makes of the other end.
func pooledConn(t *testing.T, serve func(p *h2Peer)) *pool {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	group.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				defer c.Close()
				if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
					return
				}
				p := &h2Peer{Framer: http2.NewFramer(c, c), t: t, c: c}
				if err := p.WriteSettings(); err != nil {
					t.Error(err)
				}
				serve(p)
			})
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	pool := newPool(ctx, func(ctx context.Context, _ func()) (net.Conn, *upconn, error) {
		c, err := dialApp(ctx, l.Addr().String())
		return c, nil, err
	})
	t.Cleanup(func() {
		pool.retire()
		cancel()
		l.Close()
		group.Wait()
	})
	return pool
}

// next gives the stream of the next request.
func (p *h2Peer) next() (uint32, bool) {
	for {
		frame, err := p.ReadFrame()
		if err != nil {
			return 0, false
		}
		if headers, ok := frame.(*http2.HeadersFrame); ok {
			return headers.StreamID, true
		}
	}
}

// answer answers a stream with 200.
func (p *h2Peer) answer(stream uint32) {
	var block strings.Builder
	if err := hpack.NewEncoder(&block).WriteField(hpack.HeaderField{Name: ":status", Value: "200"}); err != nil {
		p.t.Error(err)
	}
	if err := p.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte(block.String()), EndHeaders: true, EndStream: true}); err != nil {
		p.t.Error(err)
	}
	_, _ = p.next() // until the client closes
}

// TestUnprocessed pins what net/http says about requests that the far end has not begun with, and what
// it says about those that it may have.
func TestUnprocessed(t *testing.T) {
	tests := map[string]struct {
		first func(p *h2Peer, stream uint32)
		again bool
	}{
		"GOAWAY before it":  {func(p *h2Peer, _ uint32) { _ = p.WriteGoAway(0, http2.ErrCodeNo, nil); _, _ = p.next() }, true},
		"refused":           {func(p *h2Peer, s uint32) { _ = p.WriteRSTStream(s, http2.ErrCodeRefusedStream) }, true},
		"cancelled":         {func(p *h2Peer, s uint32) { _ = p.WriteRSTStream(s, http2.ErrCodeCancel) }, false},
		"broken off":        {func(p *h2Peer, _ uint32) { p.c.Close() }, false},
		"GOAWAY, processed": {func(p *h2Peer, s uint32) { _ = p.WriteGoAway(s, http2.ErrCodeNo, nil); p.c.Close() }, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			calls := 0
			pool := pooledConn(t, func(p *h2Peer) {
				for {
					stream, ok := p.next()
					if !ok {
						return
					}
					mu.Lock()
					calls++
					first := calls == 1
					mu.Unlock()
					// A first stream on a connection is special to net/http in some of these cases.
					if first && stream == 1 {
						tt.first(p, stream)
						continue
					}
					p.answer(stream)
				}
			})
			x := &exchange{}
			out := newRequest(t, "POST", "http://upstream/", nil)
			x.src = newSource(io.NopCloser(strings.NewReader("body")), func() {})
			defer x.src.stop(func() {})
			out.ContentLength = 4
			res, done, err := pool.send(x, out)
			if err == nil {
				res.Body.Close()
				done()
			}
			mu.Lock()
			defer mu.Unlock()
			if (err == nil) != tt.again || calls > 1 != tt.again {
				t.Errorf("error %v after %d calls; sent again: want %v", err, calls, tt.again)
			}
		})
	}
	closed := pooledConn(t, func(p *h2Peer) { p.c.Close() })
	c, err := closed.get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.release()
	eventually(t, "the connection is closed", func() bool { return c.cc.Err() != nil })
	res, err := c.cc.RoundTrip(newRequest(t, "GET", "http://upstream/", nil))
	if err == nil {
		res.Body.Close()
	}
	if !unprocessed(err) {
		t.Errorf("a connection that was closed before its first request: %v", err)
	}
	if unprocessed(nil) || unprocessed(errors.New("anything")) {
		t.Error("anything is taken for unprocessed")
	}
}

// TestRemoteRefusal is about alerts after a handshake: which say that nothing of a request was read.
func TestRemoteRefusal(t *testing.T) {
	for alert, refused := range map[tls.AlertError]bool{
		42: true, 43: true, 44: true, 45: true, 46: true, 48: true, 49: true, 116: true, // about the certificate
		10: false, 20: false, 22: false, 50: false, 80: false, // about what was sent, or about the server
	} {
		err := fmt.Errorf("http2: %w", &net.OpError{Op: "remote error", Err: alert})
		if got := remoteRefusal(err); errors.Is(got, errConnect) != refused || !errors.Is(got, err) {
			t.Errorf("alert %v: %v", alert, got)
		}
	}
	if err := errors.New("anything"); remoteRefusal(err) != err { //nolint:errorlint // it has to be the same
		t.Error("anything is taken for a refusal")
	}
}

// TestOneDialForAll checks that requests that arrive together share a dial and its failure.
func TestOneDialForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		dials := 0
		pool := newPool(t.Context(), func(context.Context, func()) (net.Conn, *upconn, error) {
			dials++
			<-release
			return nil, nil, errConnect
		})
		var group sync.WaitGroup
		for range 20 {
			group.Go(func() {
				if _, err := pool.get(t.Context()); !errors.Is(err, errConnect) {
					t.Errorf("error %v", err)
				}
			})
		}
		given, giveUp := context.WithCancel(t.Context())
		group.Go(func() {
			if _, err := pool.get(given); !errors.Is(err, context.Canceled) {
				t.Errorf("who does not wait: error %v", err)
			}
		})
		synctest.Wait() // all wait for the dial
		giveUp()
		synctest.Wait()
		close(release)
		group.Wait()
		if dials != 1 {
			t.Errorf("%d dials for requests that arrive together", dials)
		}
	})
}

func TestLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var l life
		var retired, cut time.Duration
		l.begin(start.Add(10*time.Second), start.Add(20*time.Second),
			func() { retired = time.Since(start) }, func() { cut = time.Since(start) })
		l.shorten(start.Add(15*time.Second), start.Add(25*time.Second)) // later: no effect
		l.shorten(start.Add(5*time.Second), time.Time{})
		time.Sleep(6 * time.Second)
		l.shorten(start.Add(7*time.Second), time.Time{}) // it has retired: not again
		time.Sleep(time.Minute)
		synctest.Wait()
		if retired != 5*time.Second || cut != 20*time.Second {
			t.Errorf("retired after %s, cut after %s", retired, cut)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		var l life
		never := func() { t.Error("called after the end") }
		l.begin(time.Now().Add(time.Second), time.Now().Add(2*time.Second), never, never)
		l.also(time.Now().Add(time.Second), never)
		l.end()
		l.shorten(time.Now(), time.Now())
		l.also(time.Now(), never)
		time.Sleep(time.Minute)
		var late life
		late.end()
		late.begin(time.Now(), time.Now(), never, never)
		time.Sleep(time.Minute)
	})
}

// slowBody gives its pieces one at a time.
type slowBody struct {
	pieces chan string
	err    error
}

func (s *slowBody) Read(p []byte) (int, error) {
	piece, ok := <-s.pieces
	if !ok {
		return 0, s.err
	}
	return copy(p, piece), nil
}

func (s *slowBody) Close() error { return nil }

func TestSourceStartsAgain(t *testing.T) {
	body := &slowBody{pieces: make(chan string, 4), err: io.EOF}
	ended := false
	s := newSource(body, func() { ended = true })
	first, err := s.begin()
	if err != nil {
		t.Fatal(err)
	}
	body.pieces <- "one "
	buffer := make([]byte, 100)
	if n, err := first.Read(buffer); string(buffer[:n]) != "one " || err != nil {
		t.Fatalf("%q, %v", buffer[:n], err)
	}
	// The first attempt waits for more, and is given up meanwhile.
	waited := make(chan error, 1)
	go func() {
		_, err := first.Read(make([]byte, 10))
		waited <- err
	}()
	second, err := s.begin()
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	if err := <-waited; !errors.Is(err, errBodyOver) {
		t.Errorf("the attempt that was given up: %v", err)
	}
	body.pieces <- "two"
	close(body.pieces)
	eventually(t, "the body is read to its end", func() bool { _, whole, _ := s.state(); return whole })
	if ended {
		t.Error("trailers are there while an attempt may still name them")
	}
	if all, err := io.ReadAll(second); err != nil || string(all) != "one two" || !ended {
		t.Errorf("%q, %v, trailers %v", all, err, ended)
	}
	s.stop(func() { t.Error("there was nothing to unblock") })
	if n, whole, err := s.state(); n != 7 || !whole || err != nil {
		t.Errorf("read %d, whole %v, %v", n, whole, err)
	}
}

func TestSourceForgetsWhatIsTooMuch(t *testing.T) {
	s := newSource(io.NopCloser(io.LimitReader(zeros{}, 4<<20)), func() {})
	a, err := s.begin()
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, a); n != 4<<20 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := s.begin(); !errors.Is(err, errBodyGone) {
		t.Errorf("error %v", err)
	}
	if cap(s.kept) > 4*bodyKept {
		t.Errorf("%d bytes are kept", cap(s.kept))
	}
	s.stop(func() {})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestSourceStops(t *testing.T) {
	body := &slowBody{pieces: make(chan string), err: errors.New("broken")}
	s := newSource(body, func() {})
	a, err := s.begin()
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := a.Read(make([]byte, 1))
		read <- err
	}()
	eventually(t, "the body is read", s.unfinished)
	s.stop(func() { close(body.pieces) })
	if err := <-read; err == nil {
		t.Error("a read after the end succeeded")
	}
	if s := newSource(body, nil); s.unfinished() {
		t.Error("unfinished before it began")
	} else {
		s.stop(nil)
	}
}

func TestRegistries(t *testing.T) {
	news := 0
	c := newCallers(func() { news++ })
	for i := range maxRemembered + 50 {
		c.spokePlaintext(net.IPv4(10, 0, byte(i>>8), byte(i)).String())
		c.presented("spiffe://a.internal/service/s"+net.IPv4(10, 0, byte(i>>8), byte(i)).String(), "01", time.Unix(int64(i), 0))
	}
	if len(c.plaintext) != maxRemembered+1 || c.plaintext[otherCallers] != 50 || len(c.peers) != maxRemembered {
		t.Errorf("%d addresses, %d others, %d peers", len(c.plaintext), c.plaintext[otherCallers], len(c.peers))
	}
	c.presented("spiffe://a.internal/service/new", "01", time.Unix(1<<20, 0))
	before := news
	c.presented("spiffe://a.internal/service/new", "01", time.Unix(1<<20, 1))
	c.spokePlaintext("10.0.0.1")
	if c.presented("spiffe://a.internal/service/new", "02", time.Unix(1<<20, 2)); news != before+1 {
		t.Errorf("news %d times, want once: for the other serial", news-before)
	}
	if _, ok := c.peers["spiffe://a.internal/service/s10.0.0.0"]; ok {
		t.Error("the oldest is kept")
	}
	synctest.Test(t, func(t *testing.T) {
		l := newLimiter()
		allowed := 0
		for range 100 {
			if _, ok := l.allow("a"); ok {
				allowed++
			}
		}
		time.Sleep(logInterval)
		if n, ok := l.allow("a"); allowed != 1 || !ok || n != 99 {
			t.Errorf("%d allowed, then %v with %d suppressed", allowed, ok, n)
		}
		for i := range 5 * maxRemembered {
			l.allow(string(rune(i)))
		}
		if len(l.keys) > maxRemembered {
			t.Errorf("%d keys", len(l.keys))
		}
	})
}
