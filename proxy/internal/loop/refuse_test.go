package loop

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"testing"
	"time"
)

// TestPlaintextGetsAlert speaks something else to a TLS server and reads what it says before it hangs
// up.
func TestPlaintextGetsAlert(t *testing.T) {
	config := &tls.Config{Certificates: []tls.Certificate{certificate(t)}, MinVersion: tls.VersionTLS12}
	drivers(t, func(t *testing.T, g *Group) {
		for name, c := range map[string]struct {
			says string
			want []byte
		}{
			"HTTP/1.1": {"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", notTLS},
			"HTTP/2":   {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", notTLS},
			// crypto/tls has its own answer to this one: there must not be a second alert.
			"SSL 2": {"\x80\x2e\x01\x00\x02" + string(make([]byte, 43)), []byte{21, 3, 1, 0, 2, 2, 70}},
		} {
			failed := make(chan error, 1)
			addr := listen(t, g, func(c *Conn) {
				c.Handle(&echo{c: c})
				c.StartTLS(config, false, time.Minute, func(err error) { failed <- err })
			})
			peer := dial(t, addr)
			if _, err := io.WriteString(peer, c.says); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(peer)
			if err != nil || !bytes.Equal(got, c.want) {
				t.Errorf("%s: read %v, %v; want %v", name, got, err, c.want)
			}
			var header tls.RecordHeaderError
			if err := <-failed; !errors.As(err, &header) {
				t.Errorf("%s: the handshake failed with %v", name, err)
			}
		}
	})
}
