package guard

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// guarded is a listener whose connections are guarded.
type guarded struct {
	net.Listener
	options Options
}

func (g guarded) Accept() (net.Conn, error) {
	c, err := g.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return NewConn(c, g.options), nil
}

// serve runs an http.Server behind the guard and gives its address.
func serve(t *testing.T, o Options, h http.HandlerFunc) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(o.HTTP2)
	server := &http.Server{Handler: h, Protocols: &protocols, MaxHeaderBytes: MaxHead, ReadHeaderTimeout: time.Minute, IdleTimeout: time.Minute}
	done := make(chan error, 1)
	go func() { done <- server.Serve(guarded{l, o}) }()
	t.Cleanup(func() {
		server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func dial(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

func write(t *testing.T, c io.Writer, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Error(err)
	}
}

// receive reads the head of a response and gives its status.
func receive(t *testing.T, r *bufio.Reader) int {
	t.Helper()
	response, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	return response.StatusCode
}

func TestRefusalComesInItsPlace(t *testing.T) {
	var handled atomic.Int64
	var mu sync.Mutex
	var reasons []string
	address := serve(t, Options{Refused: func(v *Violation) {
		mu.Lock()
		defer mu.Unlock()
		reasons = append(reasons, v.Reason)
	}}, func(w http.ResponseWriter, r *http.Request) {
		handled.Add(1)
		body, _ := io.ReadAll(r.Body)
		w.Write(body)
	})
	tests := map[string]struct {
		refused string
		status  int
	}{
		"smuggling": {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		"too large": {"GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("a", MaxHead), 431},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			handled.Store(0)
			c := dial(t, address)
			write(t, c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nfirst"+get+tt.refused+get)
			reader := bufio.NewReader(c)
			for i, want := range []int{200, 200, tt.status} {
				response, err := http.ReadResponse(reader, nil)
				if err != nil {
					t.Fatalf("response %d: %v", i+1, err)
				}
				body, err := io.ReadAll(response.Body)
				response.Body.Close()
				if err != nil || response.StatusCode != want || i == 0 && string(body) != "first" {
					t.Errorf("response %d: status %d, body %q, %v", i+1, response.StatusCode, body, err)
				}
			}
			if _, err := reader.ReadByte(); err == nil {
				t.Error("something follows the refusal")
			}
			if n := handled.Load(); n != 2 {
				t.Errorf("%d requests reached the handler, want 2", n)
			}
		})
	}
	mu.Lock()
	defer mu.Unlock()
	if len(reasons) != len(tests) {
		t.Errorf("reasons %q", reasons)
	}
}

func TestBadChunkEndsTheBody(t *testing.T) {
	result := make(chan error, 1)
	address := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		result <- err
		http.Error(w, "bad", http.StatusBadRequest)
	})
	for _, body := range []string{"5\r\nhello!\r\n0\r\n\r\n", "5;\nx\r\nhello\r\n0\r\n\r\n", "0\r\nX : y\r\n\r\n", "5\r\nhello\r\n\r\n"} {
		c := dial(t, address)
		write(t, c, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"+body)
		if err := <-result; err == nil {
			t.Errorf("the body %q is read without an error", body)
		}
	}
}

func TestUpgradePassesEverything(t *testing.T) {
	address := serve(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		if c.(*Conn).Upgrade() != 1 {
			t.Errorf("upgrade = %d", c.(*Conn).Upgrade())
		}
		write(t, c, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
		if _, err := io.Copy(c, rw); err != nil {
			t.Error(err)
		}
	})
	c := dial(t, address)
	payload := "\x00\x01\nGET \x16\x03" + strings.Repeat("z", 10000)
	write(t, c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"+payload)
	reader := bufio.NewReader(c)
	if status := receive(t, reader); status != 101 {
		t.Fatalf("status %d", status)
	}
	c.CloseWrite()
	if got, err := io.ReadAll(reader); err != nil || string(got) != payload {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
}

func TestHTTP2PassesThrough(t *testing.T) {
	address := serve(t, Options{HTTP2: true}, func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte(r.Proto))
	})
	for _, h2 := range []bool{false, true} {
		var protocols http.Protocols
		protocols.SetHTTP1(!h2)
		protocols.SetUnencryptedHTTP2(h2)
		transport := &http.Transport{Protocols: &protocols}
		defer transport.CloseIdleConnections()
		request, _ := http.NewRequestWithContext(context.Background(), "GET", "http://"+address, nil)
		response, err := transport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(response.Body)
		response.Body.Close()
		if want := map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"}[h2]; string(body) != want {
			t.Errorf("protocol %q, want %q", body, want)
		}
	}
}

// TestSlowHead checks that a head on a connection that was used before has HeadTimeout, not the
// server's idle timeout (which is none here but the header's minute).
func TestSlowHead(t *testing.T) {
	address := serve(t, Options{HeadTimeout: 50 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {})
	c := dial(t, address)
	write(t, c, get)
	reader := bufio.NewReader(c)
	receive(t, reader)
	write(t, c, "GET / HT")
	if _, err := reader.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("error %v, want the end", err)
	}
}

// TestPipelinedHalfHeadHarmsNobody checks that a head that does not go on leaves the request before it
// alone: net/http sets no deadline while it answers.
func TestPipelinedHalfHeadHarmsNobody(t *testing.T) {
	answer := make(chan struct{})
	address := serve(t, Options{HeadTimeout: time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-answer:
		case <-r.Context().Done():
			t.Error("the request was cancelled")
		}
	})
	c := dial(t, address)
	write(t, c, get+"GET / HT")
	time.AfterFunc(100*time.Millisecond, func() { close(answer) })
	if status := receive(t, bufio.NewReader(c)); status != 200 {
		t.Errorf("status %d", status)
	}
}

func TestDeadlineReachesTheReader(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	c := NewConn(server, Options{})
	if err := c.SetDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("error %v", err)
	}
}
