package deliver

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign.dev/credential"
	"countersign.dev/mtls"
	"countersign.dev/reload"
)

// TestHandshakes looks at listeners of every kind.
func TestHandshakes(t *testing.T) {
	ca := newAuthority(t)
	server, client := ca.offer(t, "a"), ca.offer(t, "b")
	pair, err := tls.X509KeyPair(server.Input.Certificate.Data, server.Input.Key.Data)
	ok(t, err)
	as, err := client.Check(newLab(t).cfg.Expect())
	ok(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(ca.Root)
	for name, test := range map[string]struct {
		config *tls.Config // nil: no TLS
		tls    bool
		want   string // an error
		asks   bool
		bytes  bool
	}{
		"bytes":                   {&tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots}, true, "", true, true},
		"bytes, TLS 1.2":          {&tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, MaxVersion: tls.VersionTLS12}, true, "", true, true},
		"bytes, asks for nothing": {&tls.Config{}, true, "", false, true},
		"bytes, nothing, TLS 1.2": {&tls.Config{MaxVersion: tls.VersionTLS12}, true, "", false, true},
		"asks for a certificate":  {&tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots}, true, "", true, false},
		"asks for nothing":        {&tls.Config{}, true, "", false, false},
		"TLS 1.2":                 {&tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots, MaxVersion: tls.VersionTLS12}, true, "", true, false},
		// It refuses everybody, and has shown its certificate by then.
		"refuses":   {&tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: x509.NewCertPool(), MaxVersion: tls.VersionTLS12}, true, "", false, false},
		"no TLS":    {nil, false, "", false, false},
		"plaintext": {nil, true, "first record does not look like a TLS handshake", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			ok(t, err)
			ended := make(chan struct{})
			t.Cleanup(func() { listener.Close(); <-ended })
			var resumed, finished atomic.Bool
			go func() {
				defer close(ended)
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					if test.config == nil {
						_, _ = conn.Write([]byte("hello, who is there?\n"))
					} else {
						test.config.Certificates = []tls.Certificate{pair}
						c := tls.Server(conn, test.config)
						if err := c.HandshakeContext(context.Background()); err == nil && test.bytes {
							finished.Store(true)
						}
						if c.ConnectionState().DidResume {
							resumed.Store(true)
						}
					}
					conn.Close()
				}
			}()
			for range 2 {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				seen, err := Handshakes{}.Probe(ctx, Listener{
					Address: listener.Addr().String(), TLS: test.tls, ServerName: "orders.shop.internal", Bytes: test.bytes, Client: test.asks,
				}, as)
				cancel()
				if test.want != "" {
					if err == nil || !strings.Contains(err.Error(), test.want) {
						t.Errorf("%v", err)
					}
					continue
				}
				ok(t, err)
				if test.config != nil && !seen.Leaf.Equal(pair.Leaf) {
					t.Error("it saw another certificate")
				}
				if test.asks && (len(seen.Authorities) != 1 || !bytes.Equal(seen.Authorities[0], ca.Root.RawSubject)) {
					t.Errorf("it saw %q", seen.Authorities)
				}
			}
			if finished.Load() {
				t.Error("a handshake was brought to its end, and the application would have been connected")
			}
			if resumed.Load() {
				t.Error("a handshake was resumed")
			}
		})
	}
	if _, err := (Handshakes{}).Probe(t.Context(), Listener{Address: "127.0.0.1:1", TLS: true}, nil); err == nil {
		t.Error("nobody is there")
	}
}

// expiring is a context whose time is up, and whose timer has not run yet.
type expiring struct {
	context.Context
	mu       sync.Mutex
	deadline time.Time
}

func (e *expiring) Deadline() (time.Time, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.deadline, true
}

// cutOff is a prober that sees another certificate, and is cut off by the deadline when it looks again.
type cutOff struct {
	leaf  *x509.Certificate
	ctx   *expiring
	end   context.CancelFunc
	looks int
}

func (c *cutOff) Probe(context.Context, Listener, *credential.Credential) (*Seen, error) {
	if c.looks++; c.looks == 1 {
		return &Seen{Leaf: c.leaf}, nil
	}
	c.ctx.mu.Lock()
	c.ctx.deadline = time.Now()
	c.ctx.mu.Unlock()
	time.AfterFunc(pause/10, c.end)
	return nil, os.ErrDeadlineExceeded
}

// TestCutOff waits for a certificate in vain: what is said is what was seen, and not that the last look was cut off.
func TestCutOff(t *testing.T) {
	l := newLab(t)
	parent, end := context.WithCancel(t.Context())
	ctx := &expiring{Context: parent, deadline: time.Now().Add(time.Hour)}
	prober := &cutOff{leaf: certificates(l.proxy.file)[0], ctx: ctx, end: end}
	l.w.cfg.Prober = prober
	err := l.w.served(ctx, nil, Made{Serial: "5e"}, nil)
	expect(t, err, "192.0.2.1:443 shows the serial "+mtls.Serial(prober.leaf)+", and 5e is wanted")
	if !errors.Is(err, reload.ErrNotTaken) || prober.looks != 2 {
		t.Errorf("%v after %d looks", err, prober.looks)
	}
}
