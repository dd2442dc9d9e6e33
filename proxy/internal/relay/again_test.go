package relay

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
)

// TestSentAgain is about requests that fail before an answer: those that the far end has certainly not
// begun with are sent again, content and all, those that it may have begun with are not.
func TestSentAgain(t *testing.T) {
	refuse := func(p *framed, s uint32) { _ = p.WriteRSTStream(s, http2.ErrCodeRefusedStream) }
	tests := []struct {
		name  string
		first func(p *framed, stream uint32)
		size  int // of the content
		read  int // how much of it the far end reads before
		again bool
	}{
		{"GOAWAY before it", func(p *framed, _ uint32) { _ = p.WriteGoAway(0, http2.ErrCodeNo, nil) }, 4, 0, true},
		{"GOAWAY before it, much was read", func(p *framed, _ uint32) { _ = p.WriteGoAway(0, http2.ErrCodeNo, nil) }, maxKept - 1, maxKept - 1, true},
		{"refused without content", refuse, 0, 0, true},
		{"refused", refuse, 4, 0, true},
		{"refused, all was read", refuse, maxKept, maxKept, true},
		{"refused, more was read than is kept", refuse, 16 * maxKept, 15 * maxKept, false},
		{"cancelled", func(p *framed, s uint32) { _ = p.WriteRSTStream(s, http2.ErrCodeCancel) }, 4, 0, false},
		{"broken off", func(p *framed, _ uint32) { _ = p.c.Close() }, 4, 4, false},
		{"GOAWAY after it", func(p *framed, s uint32) { _ = p.WriteGoAway(s, http2.ErrCodeNo, nil); _ = p.c.Close() }, 4, 4, false},
	}
	drivers(t, func(t *testing.T, portable bool) {
		for _, tt := range tests {
			for _, client2 := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/client2=%t", tt.name, client2), func(t *testing.T) {
					sent := make([]byte, tt.size)
					_, _ = rand.Read(sent)
					var calls atomic.Int64
					addr := server(t, func(c net.Conn, _ int) {
						p := newFramed(c)
						if p == nil {
							return
						}
						for head := p.request(); head != nil; head = p.request() {
							if calls.Add(1) == 1 {
								_, _ = p.content(head, tt.read)
								tt.first(p, head.StreamID)
								continue
							}
							got, trailers := p.content(head, 1<<30)
							if got != string(sent) || len(trailers) != 1 {
								t.Errorf("the second time: %d of %d bytes, trailers %v", len(got), len(sent), trailers)
							}
							p.head(head.StreamID, true, ":status", "200")
						}
					})
					r := newRig(t, portable, DefaultLimits(), &Endpoint{Address: addr, HTTP2: true})
					req, _ := http.NewRequestWithContext(t.Context(), "POST", "http://"+r.addr.String(), struct{ io.Reader }{bytes.NewReader(sent)})
					req.Trailer = http.Header{"X-End": {"yes"}}
					res, err := r.client(client2).Do(req)
					if err != nil {
						t.Fatal(err)
					}
					_ = res.Body.Close()
					want, n := 502, int64(1)
					if tt.again {
						want, n = 200, 2
					}
					if res.StatusCode != want || calls.Load() != n {
						t.Errorf("status %d after %d attempts, want %d after %d", res.StatusCode, calls.Load(), want, n)
					}
				})
			}
		}
	})
}

// TestSessionsEnd has a server end each of its HTTP/2 sessions without a word, as NGINX ends those of its workers of
// before: an idempotent request is sent once more, on a new session; others are not, nor is one that
// a session failed which had never answered.
func TestSessionsEnd(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		for _, tt := range []struct {
			name, method string
			first, all   bool // sessions end at their first request; so do new ones
			status       int
			asked        int64
		}{
			{"GET", "GET", false, false, 200, 2},
			{"POST", "POST", false, false, 502, 1},
			{"GET, and again", "GET", false, true, 502, 2},
			{"GET on a new session", "GET", true, true, 502, 1},
		} {
			t.Run(tt.name, func(t *testing.T) {
				var ending atomic.Bool
				var asked, held atomic.Int64
				both := make(chan struct{})
				addr := server(t, func(c net.Conn, _ int) {
					p := newFramed(c, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
					if p == nil {
						return
					}
					older := !ending.Load()
					for head := p.request(); head != nil; head = p.request() {
						if ending.Load() {
							asked.Add(1)
							if older || tt.all {
								return
							}
						} else if head.PseudoValue("path") == "/held" {
							if held.Add(1) == 2 {
								close(both)
							}
							<-both
						}
						p.head(head.StreamID, true, ":status", "200")
					}
				})
				r := newRig(t, portable, DefaultLimits(), &Endpoint{Address: addr, HTTP2: true})
				c := r.client(false)
				if !tt.first {
					if status, _, err := r.send(c, "GET", "/", nil); status != 200 || err != nil { // which tells how many streams a session takes
						t.Fatalf("at first: %d %v", status, err)
					}
					var sent sync.WaitGroup
					for range 2 { // each has to have a session of its own
						sent.Go(func() {
							if status, _, err := r.send(c, "GET", "/held", nil); status != 200 || err != nil {
								t.Errorf("before the end: %d %v", status, err)
							}
						})
					}
					sent.Wait()
				}
				ending.Store(true)
				if status, _, err := r.send(c, tt.method, "/", nil); status != tt.status || asked.Load() != tt.asked || err != nil {
					t.Errorf("status %d after %d requests (%v), want %d after %d", status, asked.Load(), err, tt.status, tt.asked)
				}
			})
		}
	})
}

// TestClosedBeforeSettings has a server close connections before it has said anything, first one and then
// all: nothing of a request was read there.
func TestClosedBeforeSettings(t *testing.T) {
	drivers(t, func(t *testing.T, portable bool) {
		var conns atomic.Int64
		var always atomic.Bool
		addr := server(t, func(c net.Conn, n int) {
			conns.Add(1)
			if n == 1 || always.Load() {
				_, _ = io.ReadFull(c, make([]byte, len(http2.ClientPreface)))
				return
			}
			p := newFramed(c)
			for head := p.request(); head != nil; head = p.request() {
				got, _ := p.content(head, 1<<30)
				p.head(head.StreamID, false, ":status", "200")
				_ = p.WriteData(head.StreamID, true, []byte(got))
				if always.Load() { // what is unread at the end would be a reset, which may overtake the answer
					_ = c.(*net.TCPConn).CloseWrite()
					_, _ = io.Copy(io.Discard, c)
					return
				}
			}
		})
		e := &Endpoint{Address: addr, HTTP2: true}
		r := newRig(t, portable, DefaultLimits(), e)
		c := r.client(false)
		if status, got, err := r.send(c, "POST", "/", strings.NewReader("content")); status != 200 || got != "content" || err != nil {
			t.Errorf("%d %q %v", status, got, err)
		}
		always.Store(true)
		if status, _, err := r.send(c, "POST", "/", strings.NewReader("content")); status != 200 || err != nil {
			t.Errorf("%d %v", status, err)
		}
		eventually(t, "the last good connection has ended", func() bool {
			return r.pool(e, func(p *pool) bool { return len(p.sessions) == 0 })
		})
		before := conns.Load()
		if status, _, err := r.send(c, "POST", "/", strings.NewReader("content")); status != 502 || err != nil {
			t.Errorf("when all are closed: %d %v", status, err)
		}
		if n := conns.Load() - before; n != maxTries {
			t.Errorf("%d attempts, want %d", n, maxTries)
		}
	})
}

// TestRemoteRefusal is about alerts after a handshake: which say that nothing of a request was read.
func TestRemoteRefusal(t *testing.T) {
	for alert, want := range map[tls.AlertError]bool{
		42: true, 43: true, 44: true, 45: true, 46: true, 49: true, 116: true, // about the certificate
		10: false, 20: false, 22: false, 40: false, 50: false, 51: false, 80: false, 112: false, // about what was sent, or about the server
	} {
		err := fmt.Errorf("reading: %w", &net.OpError{Op: "remote error", Err: alert})
		if got := refused(err); got != want {
			t.Errorf("alert %d, %v: %v", alert, alert, got)
		}
		if local := (&net.OpError{Op: "local error", Err: alert}); refused(local) {
			t.Errorf("our own alert %d is taken for the peer's", alert)
		}
	}
	if refused(nil) || refused(errors.New("bad certificate")) {
		t.Error("anything is taken for a refusal")
	}
}

// TestCertificateRefused has the first instance refuse our certificate, which TLS 1.3 servers do after the
// client's handshake is complete, when a request may be on its way: it goes to the second.
func TestCertificateRefused(t *testing.T) {
	cert := identities(t, "server")[0].Certificate
	drivers(t, func(t *testing.T, portable bool) {
		for _, proto := range []string{"h2", "http/1.1"} {
			t.Run(strings.ReplaceAll(proto, "/", "_"), func(t *testing.T) {
				refusing := &tls.Config{
					Certificates: []tls.Certificate{cert}, NextProtos: []string{proto}, ClientAuth: tls.RequireAnyClientCert,
					VerifyPeerCertificate: func([][]byte, [][]*x509.Certificate) error { return errors.New("not you") },
				}
				first := server(t, func(c net.Conn, _ int) {
					_ = tls.Server(c, refusing).HandshakeContext(t.Context())
					_, _ = io.Copy(io.Discard, c) // a reset could overtake the alert
				})
				taking := &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{proto}}
				second := tlsApplication(t, taking, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
				config := func(*Link) (*tls.Config, error) {
					return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{proto}, Certificates: []tls.Certificate{cert}}, nil
				}
				var why atomic.Value
				one := &Endpoint{Address: first, TLS: config, Idle: idleHere, Failed: func(err error) { why.Store(err) }}
				r := newRig(t, portable, DefaultLimits(), one)
				c := r.client(false)
				if status, _, err := r.send(c, "POST", "/", strings.NewReader("content")); status != 503 || err != nil {
					t.Errorf("with one instance: %d %v", status, err)
				}
				if err, _ := why.Load().(error); !errors.Is(err, errRefused) {
					t.Errorf("the endpoint failed because of %v", err)
				}
				one.until.Store(0)
				two := &Endpoint{Address: second, TLS: config, Idle: idleHere}
				two.active.Add(1) // so that the first is tried first
				r.target.Store(&Target{Endpoints: []*Endpoint{one, two}})
				status, got, err := r.send(c, "POST", "/", strings.NewReader("content"))
				if status != 200 || got != "content" || err != nil {
					t.Errorf("with two instances: %d %q %v", status, got, err)
				}
				two.active.Add(-1)
			})
		}
	})
}
