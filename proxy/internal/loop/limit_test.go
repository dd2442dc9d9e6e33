package loop

import (
	"bytes"
	"crypto/tls"
	"net"
	"testing"
	"time"
)

// sips takes what it is given in small pieces.
type sips struct {
	c    *Conn
	most int
	got  int
	want int
	full func(most int)
}

func (s *sips) Data(p []byte) {
	s.most = max(s.most, len(p))
	if s.got += len(p); s.got == s.want {
		s.full(s.most)
	}
}
func (s *sips) End()         {}
func (s *sips) Drained()     {}
func (s *sips) Closed(error) {}

// TestLimit sends much to who takes little at once: all of it comes, in pieces.
func TestLimit(t *testing.T) {
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, MinVersion: tls.VersionTLS13}
	for _, encrypted := range []bool{false, true} {
		drivers(t, func(t *testing.T, g *Group) {
			const total, limit = 3 << 20, 20 << 10
			most := make(chan int, 1)
			addr := listen(t, g, func(c *Conn) {
				c.Handle(&sips{c: c, want: total, full: func(n int) { most <- n }})
				c.Limit(limit)
				if encrypted {
					c.StartTLS(config, false, time.Minute, func(error) {})
				}
			})
			var peer net.Conn = dial(t, addr)
			if encrypted {
				peer = tls.Client(peer, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
			}
			if _, err := peer.Write(bytes.Repeat([]byte("x"), total)); err != nil {
				t.Fatal(err)
			}
			select {
			case n := <-most:
				if n > 2*limit+maxHello { // a record may have waited for its end, and all for the handshake's
					t.Errorf("%d bytes came at once, want about %d", n, limit)
				}
			case <-time.After(time.Minute):
				t.Fatal("not all came")
			}
		})
	}
}
