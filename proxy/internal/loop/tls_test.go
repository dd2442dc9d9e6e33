package loop

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"
)

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"a.test"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestTLSServer(t *testing.T) {
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, MinVersion: tls.VersionTLS12}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		drivers(t, func(t *testing.T, g *Group) {
			addr := listen(t, g, func(c *Conn) {
				e := &echo{c: c}
				c.Handle(e)
				c.StartTLS(config, false, time.Minute, func(err error) {
					if err == nil && c.TLS() == nil {
						t.Error("no state after the handshake")
					}
				})
			})
			raw := dial(t, addr)
			c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MinVersion: version, MaxVersion: version})
			for _, n := range []int{1, 100, 20 << 10, 3 << 20} {
				text := bytes.Repeat([]byte("abcdefg\n"), n/8+1)
				go func() { _, _ = c.Write(text) }()
				got := make([]byte, len(text))
				if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, text) {
					t.Fatalf("%d bytes: %v", n, err)
				}
			}
			_ = c.CloseWrite()
			if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
				t.Fatalf("after our end: %d bytes, %v", len(rest), err)
			}
		})
	}
}

// TestTLSFirstBytes sends content together with the client's last flight: it must not be forgotten in
// a buffer.
func TestTLSFirstBytes(t *testing.T) {
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, MinVersion: tls.VersionTLS12}
	drivers(t, func(t *testing.T, g *Group) {
		addr := listen(t, g, func(c *Conn) {
			c.Handle(&echo{c: c})
			c.StartTLS(config, false, time.Minute, func(error) {})
		})
		for range 50 {
			raw := dial(t, addr)
			w := &corked{Conn: raw}
			c := tls.Client(w, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
			w.cork = true // the Finished and the content go out in one segment
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			w.flush()
			got := make([]byte, 5)
			if _, err := io.ReadFull(c, got); err != nil {
				t.Fatal(err)
			}
			_ = raw.Close()
		}
	})
}

// corked holds back writes after the ClientHello.
type corked struct {
	net.Conn
	cork bool
	n    int
	held []byte
}

func (c *corked) Write(p []byte) (int, error) {
	if c.n++; c.n == 1 || !c.cork {
		return c.Conn.Write(p)
	}
	c.held = append(c.held, p...)
	return len(p), nil
}

func (c *corked) flush() { _, _ = c.Conn.Write(c.held); c.cork = false }

// client collects what happens to a connection that a test dialed through a loop.
type client struct {
	c      *Conn
	mu     sync.Mutex
	got    []byte
	ended  bool
	closed chan error
}

func (c *client) Data(p []byte) { c.mu.Lock(); c.got = append(c.got, p...); c.mu.Unlock() }
func (c *client) End()          { c.ended = true; c.c.Close() }
func (c *client) Drained()      {}
func (c *client) Closed(err error) {
	c.closed <- err
}

func TestDialTLS(t *testing.T) {
	cert := certificate(t)
	drivers(t, func(t *testing.T, g *Group) {
		ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		go func() {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.CopyN(c, c, 5)
			_ = c.Close()
		}()
		addr := ln.Addr().(*net.TCPAddr).AddrPort()
		cl := &client{closed: make(chan error, 1)}
		l := g.Loops()[0]
		l.Post(func() {
			l.Dial(addr, func(c *Conn, err error) {
				if err != nil {
					cl.closed <- err
					return
				}
				cl.c = c
				c.Handle(cl)
				c.StartTLS(&tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}, true, time.Minute, func(error) {})
				c.Write([]byte("hello")) // waits for the handshake
			})
		})
		select {
		case err := <-cl.closed:
			if err != nil || string(cl.got) != "hello" || !cl.ended {
				t.Fatalf("got %q, end %t, %v", cl.got, cl.ended, err)
			}
		case <-time.After(time.Minute):
			t.Fatal("no answer")
		}
	})
}

func TestHandshakeFails(t *testing.T) {
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, MinVersion: tls.VersionTLS13}
	drivers(t, func(t *testing.T, g *Group) {
		for name, talk := range map[string]func(*net.TCPConn){
			"plaintext": func(c *net.TCPConn) { _, _ = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n") },
			"silence":   func(*net.TCPConn) {},
			"gone":      func(c *net.TCPConn) { _ = c.Close() },
			"half a hello, then gone": func(c *net.TCPConn) {
				_, _ = c.Write([]byte{0x16, 3, 1, 1, 0, 1})
				_ = c.Close()
			},
			"old version": func(c *net.TCPConn) {
				_ = tls.Client(c, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}).Handshake()
			},
		} {
			failed, closed := make(chan error, 1), make(chan error, 1)
			addr := listen(t, g, func(c *Conn) {
				c.Handle(&echo{c: c, closed: func(err error) { closed <- err }})
				c.StartTLS(config, false, 300*time.Millisecond, func(err error) { failed <- err })
			})
			talk(dial(t, addr))
			for _, ch := range []chan error{failed, closed} {
				select {
				case err := <-ch:
					if err == nil {
						t.Errorf("%s: no error", name)
					}
				case <-time.After(time.Minute):
					t.Errorf("%s: nothing happened", name)
				}
			}
		}
	})
}
