package load

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// server answers at /good over TLS and in plaintext, and counts handshakes that were resumed.
func server(t *testing.T, encrypted bool) (Port, *x509.CertPool) {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/good" {
			w.WriteHeader(http.StatusForbidden)
		}
		if _, err := io.WriteString(w, "body"); err != nil {
			t.Error(err)
		}
	}))
	pool := x509.NewCertPool()
	if encrypted {
		s.StartTLS()
		pool.AddCert(s.Certificate())
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return Port{Address: s.Listener.Addr().String(), Path: "/good"}, pool
}

func TestMember(t *testing.T) {
	port, pool := server(t, true)
	member := NewMember(nil, pool, "example.com", tls.X25519)
	count, err := Connections(t.Context(), port, 50*time.Millisecond, func() Dial { return member.Dial })
	if err != nil || count == 0 {
		t.Errorf("%d connections, %v", count, err)
	}
	if count, err := Connections(t.Context(), port, 50*time.Millisecond, member.Resuming); err != nil || count == 0 {
		t.Errorf("%d resumed connections, %v", count, err)
	}
	stranger := NewMember(nil, x509.NewCertPool(), "example.com")
	if _, err := stranger.Dial(t.Context(), port); err == nil {
		t.Error("a server of an authority nobody knows is believed")
	}
	if conn, err := stranger.Careless().Dial(t.Context(), port); err != nil {
		t.Errorf("careless: %v", err)
	} else {
		conn.Close()
	}
	port.Path = "/bad"
	if _, err := member.Dial(t.Context(), port); !errors.Is(err, ErrRefused) {
		t.Errorf("a refusal: %v", err)
	}
	if _, err := Connections(t.Context(), port, time.Hour, func() Dial { return member.Dial }); !errors.Is(err, ErrRefused) {
		t.Errorf("a refusal of many: %v", err)
	}
}

func TestResumingNotices(t *testing.T) {
	port, pool := server(t, true)
	// This client refuses tickets, so that nothing is resumed.
	member := NewMember(nil, pool, "example.com")
	member.config.SessionTicketsDisabled = true
	if _, err := Connections(t.Context(), port, time.Hour, member.Resuming); !errors.Is(err, errNotResumed) {
		t.Errorf("full handshakes count as resumed: %v", err)
	}
}

// echoing is an application that tells after how many connections it refuses.
func echoing(t *testing.T, silentOnce bool) Port {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	var served atomic.Int64
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if silentOnce && served.Add(1)%2 == 1 {
				conn.Close()
				continue
			}
			go func() {
				defer conn.Close()
				first := make([]byte, 1)
				if _, err := io.ReadFull(conn, first); err == nil && first[0] == 'e' {
					_, _ = io.Copy(conn, conn)
				}
			}()
		}
	}()
	return Port{Address: listener.Addr().String()}
}

func TestCrowd(t *testing.T) {
	crowd := NewCrowd(echoing(t, false), Plain)
	defer crowd.Release()
	for _, size := range []int{1, 40, 40, 7} {
		if err := crowd.Grow(t.Context(), size); err != nil {
			t.Fatal(err)
		}
	}
	if len(crowd.conns) != 40 {
		t.Errorf("%d are held", len(crowd.conns))
	}
	crowd.conns[0].Close()
	if err := crowd.Alive(); err == nil {
		t.Error("a closed connection is alive")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := crowd.Grow(ctx, 60); err == nil {
		t.Error("it grows after its end")
	}
}

func TestComeBack(t *testing.T) {
	back, err := ComeBack(t.Context(), echoing(t, true), Plain, 20, time.Minute)
	if err != nil || back.Retries == 0 || back.Elapsed <= 0 {
		t.Errorf("%+v, %v", back, err)
	}
	if back, err := ComeBack(t.Context(), Port{Address: "127.0.0.1:1"}, Plain, 2, 10*time.Millisecond); err == nil {
		t.Errorf("they are back where nobody listens: %+v", back)
	}
}

func TestUpload(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	firsts := make(chan byte, 3)
	var received atomic.Int64
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				first := make([]byte, 1)
				if _, err := io.ReadFull(conn, first); err == nil {
					firsts <- first[0]
				}
				n, _ := io.Copy(io.Discard, conn)
				received.Add(n)
			}()
		}
	}()
	if err := Upload(t.Context(), listener.Addr().String(), 3, 50*time.Millisecond, 'c'); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if first := <-firsts; first != 'c' {
			t.Errorf("the first byte is %q", first)
		}
	}
	if err := Upload(t.Context(), "127.0.0.1:1", 1, time.Second, 'c'); err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("where nobody listens: %v", err)
	}
}
