package load

import (
	"bufio"
	"context"
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
	"time"
)

// askTimeout bounds a handshake and a question. It is long: thousands may ask at once.
const askTimeout = 30 * time.Second

// Port is where a sidecar is connected to, and what is said there.
type Port struct {
	Address string
	// Path is asked for by GET over HTTP/1.1; with "" the port is TCP, behind which something echoes.
	Path string
}

// ask is Ask with the patience of a crowd.
func (p Port) ask(conn net.Conn) error { return p.Ask(conn, askTimeout) }

// Ask sends one small request and reads the whole answer, which has to be the application's.
func (p Port) Ask(conn net.Conn, patience time.Duration) error {
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	defer conn.SetDeadline(time.Time{})
	if p.Path == "" {
		return p.echo(conn)
	}
	if _, err := io.WriteString(conn, "GET "+p.Path+" HTTP/1.1\r\nHost: server\r\n\r\n"); err != nil {
		return err
	}
	reader := readers.Get().(*bufio.Reader)
	reader.Reset(conn)
	defer readers.Put(reader)
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%w: %s", ErrRefused, response.Status)
	}
	return nil
}

// ErrRefused says that there was an answer, and that it was not the application's.
var ErrRefused = errors.New("the answer is not the application's")

var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 1024) }}

// echo says 'e', which tells the application to echo, and something that has to come back.
func (p Port) echo(conn net.Conn) error {
	if _, err := conn.Write([]byte("e.")); err != nil {
		return err
	}
	answer := make([]byte, 1)
	for answer[0] != '.' { // an endpoint of the rig's own sends back the 'e' as well
		if _, err := io.ReadFull(conn, answer); err != nil {
			return err
		}
		if answer[0] != 'e' && answer[0] != '.' {
			return fmt.Errorf("%w: %q", ErrRefused, answer)
		}
	}
	return nil
}

// Dial opens a connection to a port, asks once, and gives the connection.
type Dial func(ctx context.Context, p Port) (net.Conn, error)

// Plain is an application: it connects in plaintext.
func Plain(ctx context.Context, p Port) (net.Conn, error) {
	dialer := net.Dialer{Timeout: askTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", p.Address)
	if err != nil {
		return nil, err
	}
	if err := p.ask(conn); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// Member is a peer that connects to receiving sidecars by mutual TLS.
type Member struct{ config *tls.Config }

// NewMember makes a member that proves itself with a certificate (nil: with none), expects a name of
// whom it connects to, and offers the groups, or crypto/tls's own.
func NewMember(certificate *tls.Certificate, roots *x509.CertPool, name string, groups ...tls.CurveID) *Member {
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: name, CurvePreferences: groups, NextProtos: []string{"http/1.1"},
	}
	if certificate != nil {
		config.Certificates = []tls.Certificate{*certificate}
	}
	return &Member{config}
}

// Careless is the same member that does not verify whom it connects to. What it costs the other side is
// the same, and a load generator has less to do.
func (m *Member) Careless() *Member {
	config := m.config.Clone()
	config.InsecureSkipVerify = true
	return &Member{config}
}

// TLS is the member's configuration for others to use; it may be changed.
func (m *Member) TLS() *tls.Config { return m.config.Clone() }

// Dial is a full handshake, and a question.
func (m *Member) Dial(ctx context.Context, p Port) (net.Conn, error) { return m.dial(ctx, p, m.config) }

// Connect is Dial that also tells what the handshake has agreed on.
func (m *Member) Connect(ctx context.Context, p Port) (tls.ConnectionState, error) {
	conn, err := m.Dial(ctx, p)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer conn.Close()
	return conn.(*tls.Conn).ConnectionState(), nil
}

func (m *Member) dial(ctx context.Context, p Port, config *tls.Config) (net.Conn, error) {
	if p.Path == "" {
		config = config.Clone()
		config.NextProtos = nil
	}
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: askTimeout}, Config: config}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := dialer.DialContext(ctx, "tcp", p.Address)
	if err != nil {
		return nil, err
	}
	// In TLS 1.3 the client believes in success before the server has looked at the certificate.
	if err := p.ask(conn); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// errNotResumed says that a handshake was a full one.
var errNotResumed = errors.New("the session is not resumed; every handshake is a full one")

// Resuming is a Dial for one goroutine that resumes the session of the connection before; its first call makes
// two connections.
func (m *Member) Resuming() Dial {
	config := m.config.Clone()
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	first := true
	return func(ctx context.Context, p Port) (net.Conn, error) {
		if first {
			conn, err := m.dial(ctx, p, config)
			if err != nil {
				return nil, err
			}
			conn.Close()
			first = false
		}
		conn, err := m.dial(ctx, p, config)
		if err != nil {
			return nil, err
		}
		if !conn.(*tls.Conn).ConnectionState().DidResume {
			conn.Close()
			return nil, errNotResumed
		}
		return conn, nil
	}
}

// dialers is how many connections Connections opens at once.
const dialers = 8

// Connections opens connections, asks on each once and closes it, for a time, and tells how many there
// were. Each goroutine of it has a Dial of its own.
func Connections(ctx context.Context, p Port, duration time.Duration, dial func() Dial) (int64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	end := time.Now().Add(duration)
	var count atomic.Int64
	failed := make(chan error, dialers)
	for range dialers {
		open := dial()
		go func() {
			for time.Now().Before(end) {
				conn, err := open(ctx, p)
				if err != nil {
					failed <- err
					return
				}
				conn.Close()
				count.Add(1)
			}
			failed <- nil
		}()
	}
	var errs []error
	for range dialers {
		if err := <-failed; err != nil {
			cancel()
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return 0, fmt.Errorf("connections to %s: %w", p.Address, errs[0])
	}
	return count.Load(), nil
}

// String is for errors.
func (p Port) String() string { return strings.TrimSpace(p.Address + " " + p.Path) }
