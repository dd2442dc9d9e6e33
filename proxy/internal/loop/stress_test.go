package loop

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// steady echoes, and reads no more while the socket takes nothing.
type steady struct{ c *Conn }

func (s *steady) Data(p []byte) {
	s.c.Write(p)
	if s.c.Congested() {
		s.c.Pause()
	}
}
func (s *steady) End()         { s.c.CloseWrite() }
func (s *steady) Drained()     { s.c.Resume() }
func (s *steady) Closed(error) {}

// TestStress echoes much over many connections whose peers write and read in fits, with and without TLS:
// every byte comes back in order, no wake-up is lost. Several of these at once on one processor bring
// races out: taskset -c 0 go test -run TestStress -count 50 ./proxy/internal/loop.
func TestStress(t *testing.T) {
	cert := certificate(t)
	for _, secure := range []bool{false, true} {
		drivers(t, func(t *testing.T, g *Group) {
			addr := listen(t, g, func(c *Conn) {
				c.Handle(&steady{c: c})
				if secure {
					c.StartTLS(&tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}, false, time.Minute, func(error) {})
				}
			})
			var wg sync.WaitGroup
			for i := range 12 {
				raw := dial(t, addr)
				_ = raw.SetReadBuffer(32 << 10)
				_ = raw.SetWriteBuffer(32 << 10)
				wg.Go(func() { fits(t, raw, secure, uint64(i), 400<<10) })
			}
			wg.Wait()
		})
	}
}

// fits sends and receives size bytes, with pauses.
func fits(t *testing.T, raw *net.TCPConn, secure bool, seed uint64, size int) {
	var c interface {
		io.ReadWriter
		CloseWrite() error
	} = raw
	if secure {
		c = tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
	}
	sent, got := sha256.New(), sha256.New()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := rand.New(rand.NewPCG(seed, 1))
		for left := size; left > 0; {
			p := make([]byte, min(left, 1+r.IntN(40<<10)))
			for i := range p {
				p[i] = byte(r.Uint32())
			}
			sent.Write(p)
			if _, err := c.Write(p); err != nil {
				t.Error(err)
				return
			}
			left -= len(p)
			if r.IntN(4) == 0 {
				time.Sleep(time.Duration(r.IntN(500)) * time.Microsecond) // a pause of the peer's, nothing is waited for
			}
		}
		_ = c.CloseWrite()
	}()
	r, n := rand.New(rand.NewPCG(seed, 2)), 0
	for buf := make([]byte, 64<<10); ; {
		k, err := c.Read(buf[:1+r.IntN(len(buf))])
		got.Write(buf[:k])
		n += k
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Errorf("after %d of %d bytes: %v", n, size, err)
			break
		}
		if r.IntN(8) == 0 {
			time.Sleep(time.Duration(r.IntN(2000)) * time.Microsecond) // as above
		}
	}
	<-done
	if n != size || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Errorf("%d of %d bytes came back, or others", n, size)
	}
}
