package relay

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// switching is an application that changes to a protocol of its own and then does as it is told.
func switching(t *testing.T, fields string, then func(c net.Conn, r *bufio.Reader)) *Endpoint {
	t.Helper()
	return &Endpoint{Idle: idleHere, Address: server(t, func(c net.Conn, _ int) {
		r := bufio.NewReader(c)
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if req.Header.Get("Upgrade") != "own" {
			_, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: own\r\n"+fields+"\r\n")
		then(c, r)
	})}
}

const upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: own\r\n\r\n"

// tunnels runs a test over one proxy, and over two that speak either version.
func tunnels(t *testing.T, app *Endpoint, test func(t *testing.T, c *net.TCPConn, r *bufio.Reader)) {
	t.Helper()
	start := func(t *testing.T, addr string) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		test(t, c.(*net.TCPConn), bufio.NewReader(c))
	}
	drivers(t, func(t *testing.T, portable bool) {
		t.Run("one", func(t *testing.T) {
			t.Parallel()
			r := newRig(t, portable, DefaultLimits(), app)
			start(t, r.addr.String())
		})
		for _, proto := range []string{"h2", "http/1.1"} {
			t.Run(strings.ReplaceAll(proto, "/", "_"), func(t *testing.T) {
				t.Parallel()
				c := newChain(t, app.Address, chainOptions{portable: portable, protos: []string{proto}})
				start(t, c.addr.String())
				for _, h := range []*hop{c.out, c.in} {
					eventually(t, "the exchange is done", func() bool { return len(h.outcomes()) == 1 })
				}
			})
		}
	})
}

// outcomes are those of the exchanges that are done.
func (s *hop) outcomes() []Outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Outcome(nil), s.done...)
}

// switched reads the head of the answer that changes the protocol.
func switched(t *testing.T, r *bufio.Reader) {
	t.Helper()
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != 101 || res.Header.Get("Upgrade") != "own" {
		t.Fatalf("status %d, %v", res.StatusCode, res.Header)
	}
}

// TestTunnelBytes passes bytes in both directions, those that came before the answer too, and each end on
// its own.
func TestTunnelBytes(t *testing.T) {
	app := switching(t, "", func(c net.Conn, r *bufio.Reader) {
		all, _ := io.ReadAll(r) // up to the caller's end
		_, _ = fmt.Fprintf(c, "%d bytes, and goodbye", len(all))
	})
	for _, early := range []int{0, 5, 100 << 10} {
		t.Run(fmt.Sprintf("early=%d", early), func(t *testing.T) {
			tunnels(t, app, func(t *testing.T, c *net.TCPConn, r *bufio.Reader) {
				_, _ = io.WriteString(c, upgrade+strings.Repeat("e", early))
				switched(t, r)
				_, _ = io.WriteString(c, strings.Repeat("x", 1000))
				_ = c.CloseWrite()
				got, err := io.ReadAll(r)
				if want := fmt.Sprintf("%d bytes, and goodbye", early+1000); string(got) != want || err != nil {
					t.Errorf("%q %v, want %q", got, err, want)
				}
			})
		})
	}
}

// TestTunnelEarlyOnly sends all that there is to say together with the request.
func TestTunnelEarlyOnly(t *testing.T) {
	app := switching(t, "", func(c net.Conn, r *bufio.Reader) {
		line, _ := r.ReadString('\n')
		_, _ = io.WriteString(c, line)
		_, _ = io.Copy(io.Discard, r)
	})
	tunnels(t, app, func(t *testing.T, c *net.TCPConn, r *bufio.Reader) {
		_, _ = io.WriteString(c, upgrade+"hello\n")
		switched(t, r)
		if line, err := r.ReadString('\n'); line != "hello\n" || err != nil {
			t.Errorf("%q %v", line, err)
		}
		_ = c.Close()
	})
}

// TestTunnelEnds has the application end the tunnel: what it said before arrives, and the caller's
// connection does not stay behind, although the caller does not close it.
func TestTunnelEnds(t *testing.T) {
	app := switching(t, "", func(c net.Conn, _ *bufio.Reader) { _, _ = c.Write(make([]byte, 1<<20)) })
	tunnels(t, app, func(t *testing.T, c *net.TCPConn, r *bufio.Reader) {
		_, _ = io.WriteString(c, upgrade)
		switched(t, r)
		if n, err := io.Copy(io.Discard, r); n != 1<<20 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		if !strings.HasSuffix(t.Name(), "/one") {
			return // it takes a while
		}
		eventually(t, "the connection is closed for writing too", func() bool {
			_, err := io.WriteString(c, "x")
			return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
		})
	})
}

// TestTunnelBreaks has the caller vanish: the application is told.
func TestTunnelBreaks(t *testing.T) {
	ended := make(chan struct{}, 1)
	app := switching(t, "", func(_ net.Conn, r *bufio.Reader) {
		_, _ = io.Copy(io.Discard, r)
		ended <- struct{}{}
	})
	tunnels(t, app, func(t *testing.T, c *net.TCPConn, r *bufio.Reader) {
		_, _ = io.WriteString(c, upgrade)
		switched(t, r)
		_ = c.SetLinger(0)
		_ = c.Close()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Error("the application is never told")
		}
	})
}

// TestForgedUpgradeField checks that nobody can speak with the field that the sidecars have between them.
func TestForgedUpgradeField(t *testing.T) {
	for _, value := range []string{upgradeRefused, upgradeOffered, "anything"} {
		t.Run("by the application/"+value, func(t *testing.T) {
			app := switching(t, upgradeField+": "+value+"\r\n", func(c net.Conn, r *bufio.Reader) { _, _ = io.Copy(c, r) })
			tunnels(t, app, func(t *testing.T, c *net.TCPConn, r *bufio.Reader) {
				_, _ = io.WriteString(c, upgrade)
				switched(t, r)
				_, _ = io.WriteString(c, "hello\n")
				if line, err := r.ReadString('\n'); line != "hello\n" || err != nil {
					t.Errorf("%q %v", line, err)
				}
				_ = c.CloseWrite()
				_, _ = io.Copy(io.Discard, r)
			})
		})
		t.Run("by a caller/"+value, func(t *testing.T) {
			app := switching(t, "", func(c net.Conn, r *bufio.Reader) { _, _ = io.Copy(c, r) })
			tunnels(t, app, func(t *testing.T, c *net.TCPConn, r *bufio.Reader) {
				_, _ = io.WriteString(c, strings.Replace(upgrade, "Host", upgradeField+": "+value+"\r\nHost", 1))
				switched(t, r)
				_, _ = io.WriteString(c, "hello\n")
				if line, err := r.ReadString('\n'); line != "hello\n" || err != nil {
					t.Errorf("%q %v", line, err)
				}
				_ = c.CloseWrite()
				_, _ = io.Copy(io.Discard, r)
			})
		})
	}
	// An answer of the application's own stays one, whatever it says.
	own := &Endpoint{Idle: idleHere, Address: server(t, func(c net.Conn, _ int) {
		eachRequest(c, func(*http.Request, string) bool {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n"+upgradeField+": forged\r\nContent-Length: 3\r\n\r\nown")
			return true
		})
	})}
	tunnels(t, own, func(t *testing.T, c *net.TCPConn, r *bufio.Reader) {
		_, _ = io.WriteString(c, upgrade)
		if res, got := answer(t, r, "GET"); res.StatusCode != 200 || got != "own" || !res.Close {
			t.Errorf("%d %q, close %t", res.StatusCode, got, res.Close)
		}
	})
}

// TestExtendedConnect has a caller of HTTP/2 ask for another protocol by itself.
func TestExtendedConnect(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		echo := switching(t, "", func(c net.Conn, r *bufio.Reader) { _, _ = io.Copy(c, r) })
		refusing := &Endpoint{Idle: idleHere, Address: server(t, func(c net.Conn, _ int) { echo1(c) })}
		wrong := &Endpoint{Idle: idleHere, Address: server(t, func(c net.Conn, _ int) {
			eachRequest(c, func(*http.Request, string) bool {
				_, _ = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: own\r\n\r\n")
				return true
			})
		})}
		ask := func(t *testing.T, e *Endpoint, extended bool) (*framed, string) {
			r := newRig(t, portable, DefaultLimits(), e)
			c, _ := r.dial()
			p := framedCaller(c)
			if extended {
				p.ask(1, "CONNECT", "/", false, ":protocol", "own")
			} else {
				p.ask(1, "GET", "/", true)
			}
			for {
				switch f := p.frame().(type) {
				case nil:
					t.Fatal("the connection ended")
				case *http2.RSTStreamFrame:
					t.Fatalf("%v", f)
				case *http2.MetaHeadersFrame:
					return p, f.PseudoValue("status")
				}
			}
		}
		p, status := ask(t, echo, true)
		if status != "200" {
			t.Fatalf("status %s", status)
		}
		_ = p.WriteData(1, true, []byte("hello"))
		got := ""
		for end := false; !end; {
			f, ok := p.frame().(*http2.DataFrame)
			if !ok {
				t.Fatal("the tunnel ended")
			}
			got += string(f.Data())
			end = f.StreamEnded()
		}
		if got != "hello" {
			t.Errorf("%q", got)
		}
		if _, status := ask(t, refusing, true); status != "502" {
			t.Errorf("a 200 without a change of protocol: the caller gets %s", status)
		}
		if _, status := ask(t, wrong, false); status != "502" {
			t.Errorf("a change of protocol that nobody asked for: the caller gets %s", status)
		}
	})
}

// TestOfferDropped has a caller offer another protocol where the next hop takes none: what is left is a
// request like any other, with its end.
func TestOfferDropped(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		app := application(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			_, _ = fmt.Fprintf(w, "%s %q %v", r.Method, body, err)
		}))
		for _, app2 := range []bool{false, true} {
			r := newRig(t, portable, DefaultLimits(), &Endpoint{Address: app, HTTP2: app2, Idle: idleHere})
			r.on(func() { r.prepare = func(x *Exchange) { x.Head.Upgrade = "" } })
			for _, k := range []struct{ request, want string }{
				{upgrade, `GET "" <nil>`},
				{strings.Replace(upgrade, "GET", "POST", 1), `POST "" <nil>`},
				{strings.Replace(upgrade, "GET / HTTP/1.1\r\n", "POST / HTTP/1.1\r\nContent-Length: 0\r\n", 1), `POST "" <nil>`},
				{strings.Replace(upgrade, "GET / HTTP/1.1\r\n", "POST / HTTP/1.1\r\nContent-Length: 4\r\n", 1) + "some", `POST "some" <nil>`},
			} {
				c, in := r.dial()
				_, _ = io.WriteString(c, k.request)
				if res, got := answer(t, in, "GET"); res.StatusCode != 200 || got != k.want {
					t.Errorf("%d %s, want %s", res.StatusCode, got, k.want)
				}
			}
		}
	})
}
