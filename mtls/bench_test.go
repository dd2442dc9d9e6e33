package mtls

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"countersign.dev/id"
)

// pipe is one direction of a connection in memory. Unlike net.Pipe's, its writer does not wait for its
// reader: on a resumed connection both ends write at once.
type pipe struct {
	mu      sync.Mutex
	written sync.Cond // with mu
	buffer  bytes.Buffer
	closed  bool
	total   int64
}

func newPipe() *pipe {
	p := &pipe{}
	p.written.L = &p.mu
	return p
}

func (p *pipe) Write(data []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.written.Signal()
	p.total += int64(len(data))
	return p.buffer.Write(data)
}

func (p *pipe) Read(data []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.buffer.Len() == 0 && !p.closed {
		p.written.Wait()
	}
	return p.buffer.Read(data)
}

func (p *pipe) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.written.Signal()
	p.closed = true
	return nil
}

// end is one end of a connection in memory; what crypto/tls does not ask for is missing.
type end struct {
	net.Conn
	io.Reader
	io.Writer
}

func (e end) Read(p []byte) (int, error)  { return e.Reader.Read(p) }
func (e end) Write(p []byte) (int, error) { return e.Writer.Write(p) }

// traffic is what connections have sent so far.
type traffic struct{ client, server int64 }

// connectPipe makes one connection within the process, with a byte from the server at its end, as tickets
// arrive with it; it tells whether the session was resumed.
func connectPipe(b *testing.B, server, client *tls.Config, sum *traffic) bool {
	up, down := newPipe(), newPipe()
	done := make(chan error, 1)
	go func() {
		_, err := tls.Server(end{Reader: up, Writer: down}, server).Write([]byte("x"))
		down.Close()
		done <- err
	}()
	conn := tls.Client(end{Reader: down, Writer: up}, client)
	_, err := io.ReadFull(conn, make([]byte, 1))
	up.Close()
	if err := errors.Join(err, <-done); err != nil {
		b.Fatal(err)
	}
	sum.client += up.total
	sum.server += down.total
	return conn.ConnectionState().DidResume
}

// used is the CPU time that this process has used. On a machine with other things to do it says more
// than the time that passes.
func used(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// BenchmarkHandshake is one mTLS connection, both ends together: by key exchange; with both chains known
// and with neither; resumed. The bytes are those of one connection, by who sends them.
//
//	go test ./mtls -run - -bench Handshake -cpu 1 -count 6
func BenchmarkHandshake(b *testing.B) {
	var never atomic.Int64
	unknown := func() string { return strconv.FormatInt(never.Add(1), 10) }
	cases := []struct {
		name    string
		groups  []tls.CurveID
		unknown bool
		resume  bool
	}{
		{"x25519/known", []tls.CurveID{tls.X25519}, false, false},
		{"x25519/unknown", []tls.CurveID{tls.X25519}, true, false},
		{"X25519MLKEM768/known", nil, false, false},
		{"X25519MLKEM768/unknown", nil, true, false},
		{"secp256r1", []tls.CurveID{tls.CurveP256}, false, false},
		{"secp384r1", []tls.CurveID{tls.CurveP384}, false, false},
		{"SecP256r1MLKEM768", []tls.CurveID{tls.SecP256r1MLKEM768}, false, false},
		{"SecP384r1MLKEM1024", []tls.CurveID{tls.SecP384r1MLKEM1024}, false, false},
		{"secp521r1", []tls.CurveID{tls.CurveP521}, false, false},
		{"x25519/resumed", []tls.CurveID{tls.X25519}, false, true},
		{"X25519MLKEM768/resumed", nil, false, true},
	}
	for _, c := range cases {
		b.Run(c.name, func(b *testing.B) {
			p := newPair(b)
			so, co := ServerOptions{Groups: c.groups}, ClientOptions{Groups: c.groups}
			if c.unknown {
				so.Revocations, co.Revocations = unknown, unknown
			}
			server, client := p.newServer(so).Config(), p.newClient(co)
			var sum traffic
			once := func() bool {
				config := clientConfig(b, client)
				if !c.resume {
					config.ClientSessionCache = nil
				}
				return connectPipe(b, server, config, &sum)
			}
			once()
			sum = traffic{}
			b.ReportAllocs()
			begun := used(b)
			for b.Loop() {
				if once() != c.resume {
					b.Fatal("resumed, and should not be; or the reverse")
				}
			}
			b.ReportMetric(float64(used(b)-begun)/1e3/float64(b.N), "cpu-µs/op")
			b.ReportMetric(float64(sum.client)/float64(b.N), "client-B/op")
			b.ReportMetric(float64(sum.server)/float64(b.N), "server-B/op")
		})
	}
}

// BenchmarkVerify is the verification of one peer, known or not.
//
//	go test ./mtls -run - -bench Verify -cpu 1
func BenchmarkVerify(b *testing.B) {
	p := newPair(b)
	trusted := p.server.identity.Load().Bundle
	chain := []*x509.Certificate{p.client.identity.Load().Certificate.Leaf, p.a.issuing}
	b.Run("known", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := trusted.verifyAgain("", chain, x509.ExtKeyUsageClientAuth, start); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("unknown", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := trusted.Verify(chain, x509.ExtKeyUsageClientAuth, start); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkConfig is what a listener and a dialler add to every handshake by choosing its configuration.
//
//	go test ./mtls -run - -bench Config -cpu 1
func BenchmarkConfig(b *testing.B) {
	p := newPair(b)
	epoch := func() string { return "0123456789abcdef0123456789abcdef" }
	server, client := p.newServer(ServerOptions{Epoch: epoch}), p.newClient(ClientOptions{Epoch: epoch})
	b.Run("server", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := server.current(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("client", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := client.Config(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkPeerID is reading who a verified peer is.
//
//	go test ./mtls -run - -bench PeerID -cpu 1
func BenchmarkPeerID(b *testing.B) {
	a := newAuthority(b, "a")
	leaf := a.certify(b, member(b, id.Service, "colorteller"), testKey(b, "", "leaf"), time.Hour)
	cs := tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{leaf}}
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := PeerID(cs); !ok {
			b.Fatal("nobody")
		}
	}
}
