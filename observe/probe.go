package observe

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"countersign.dev/mesh"
)

// ending says how a connection ended.
type ending int

const (
	unreachable ending = iota // no TCP connection came about
	refused                   // an alert, a close or a reset came, and not one byte of an answer
	answered                  // bytes of an answer came, be they the application's or a proxy's refusal
	silent                    // the connection stood, and nothing came until the time was up
)

// outcome is what one connection showed.
type outcome struct {
	ending ending
	// how is for people: "alert: certificate required", "HTTP 403", "closed".
	how string
	// agreed is set once the server has chosen a version and a cipher and presented its certificate.
	agreed *tls.ConnectionState
	// done is set when the handshake was completed as the client sees it.
	done bool
	// accepted is set when a handshake was completed in which the server had the last word: up to
	// TLS 1.2 it has judged the client's certificate by then, whatever it does next.
	accepted bool
	// asked is set when the server asked for a client certificate.
	asked bool
	// alert is set when the refusal was an alert of TLS, which an application cannot have sent.
	alert bool
	// denied is set when an answer came and said 403 or gRPC status 7 (PERMISSION_DENIED).
	denied bool
	// left is set when the server went away before it had looked at the request.
	left bool
}

// hello is what a TLS probe offers.
type hello struct {
	version uint16        // no other
	lowest  uint16        // but from this one on, when it is not 0
	suites  []uint16      // up to TLS 1.2
	groups  []tls.CurveID // nil: all that crypto/tls has
	// certificate is sent when the server asks for one; nil sends none.
	certificate *tls.Certificate
	// request is told what the server asks of the client's certificate; it may be nil.
	request func(*tls.CertificateRequestInfo)
	// speak goes on after the handshake: in TLS 1.3 the client sees it succeed before the server has
	// refused the client's certificate, so only an answer, or its refusal, tells.
	speak bool
	// wait bounds the wait for an answer on a tcp port, where there may never be one.
	wait time.Duration
}

// maxLeft is how many connections are made on which the server goes away before it has looked at the request, as one
// does that is reloaded; what it says on the last of them counts.
const maxLeft = 5

// patiently makes another connection where the server left.
func patiently(connect func() outcome) (out outcome) {
	for range maxLeft {
		if out = connect(); !out.left {
			break
		}
	}
	return out
}

// dialTLS makes one TLS connection. The server's certificate is not verified here: it is looked at.
func (o *Observer) dialTLS(ctx context.Context, t *Target, h hello) outcome {
	return patiently(func() outcome { return o.dialTLSOnce(ctx, t, h) })
}

func (o *Observer) dialTLSOnce(ctx context.Context, t *Target, h hello) outcome {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	raw, out := dial(ctx, t.Address)
	if raw == nil {
		return out
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	conn := tls.Client(raw, &tls.Config{
		ServerName:         t.Workload.Identity.ServerName(),
		MinVersion:         cmp.Or(h.lowest, h.version),
		MaxVersion:         h.version,
		CipherSuites:       h.suites,
		CurvePreferences:   h.groups,
		NextProtos:         protocols(t.Inbound.Protocol),
		InsecureSkipVerify: true, //nolint:gosec // whatever is presented is wanted, to be judged afterwards
		GetClientCertificate: func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if h.request != nil {
				h.request(info)
			}
			// Given by a function, because crypto/tls leaves a certificate out of its list when the
			// server does not name its issuer.
			out.asked = true
			if h.certificate == nil {
				return &tls.Certificate{}, nil
			}
			return h.certificate, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			out.agreed = &cs
			return nil
		},
	})
	err := conn.HandshakeContext(ctx)
	if out.agreed != nil {
		out.agreed.CurveID = conn.ConnectionState().CurveID // in TLS 1.2 it comes after the certificate
	}
	if err != nil {
		out.fail(ctx, err)
		return out
	}
	out.done = true
	out.accepted = h.version <= tls.VersionTLS12
	if !h.speak {
		out.ending, out.how = answered, "handshake done"
		return out
	}
	protocol := t.Inbound.Protocol
	if conn.ConnectionState().NegotiatedProtocol == "h2" {
		protocol = h2Protocol(protocol)
	} else if protocol == mesh.HTTP2 && conn.ConnectionState().NegotiatedProtocol == "http/1.1" {
		protocol = mesh.HTTP
	}
	if protocol == mesh.TCP {
		_ = raw.SetReadDeadline(time.Now().Add(h.wait))
	}
	ask(ctx, conn, protocol, conn.ConnectionState().ServerName, &out)
	return out
}

// dialPlain speaks without TLS.
func (o *Observer) dialPlain(ctx context.Context, t *Target, wait time.Duration) outcome {
	return patiently(func() outcome { return o.dialPlainOnce(ctx, t, wait) })
}

func (o *Observer) dialPlainOnce(ctx context.Context, t *Target, wait time.Duration) outcome {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	conn, out := dial(ctx, t.Address)
	if conn == nil {
		return out
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if t.Inbound.Protocol == mesh.TCP {
		_ = conn.SetReadDeadline(time.Now().Add(wait))
		// A TLS server decides after the five bytes of a record's header; blank lines are the least
		// that most text protocols can be told.
		if _, err := io.WriteString(conn, "\r\n\r\n\r\n"); err != nil {
			out.fail(ctx, err)
			return out
		}
	}
	ask(ctx, conn, t.Inbound.Protocol, t.Workload.Identity.ServerName(), &out)
	return out
}

// ask speaks the protocol on a connection that stands, and says in out what came of it.
func ask(ctx context.Context, conn io.ReadWriter, protocol mesh.Protocol, host string, out *outcome) {
	var answer answer
	var err error
	switch protocol {
	case mesh.HTTP:
		answer, err = askHTTP1(conn, host)
	case mesh.HTTP2, mesh.GRPC:
		answer, err = askHTTP2(conn, host, protocol == mesh.GRPC)
	default:
		answer, err = listen(conn)
	}
	if err != nil {
		out.fail(ctx, err)
		return
	}
	out.ending, out.how, out.denied = answered, answer.String(), answer.denied()
}

// dial opens a TCP connection; nil means that there is none, and the outcome says why.
func dial(ctx context.Context, address string) (net.Conn, outcome) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, outcome{ending: unreachable, how: plain(err)}
	}
	return conn, outcome{}
}

// fail sorts an error of a connection into refused and silent.
func (out *outcome) fail(ctx context.Context, err error) {
	var remote *net.OpError
	var record tls.RecordHeaderError
	var reset resetError
	switch {
	case ctx.Err() != nil, errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		out.ending, out.how = silent, "no answer and no close"
	case errors.As(err, &remote) && remote.Op == "remote error":
		out.ending, out.alert, out.how = refused, true, "alert: "+strings.TrimPrefix(remote.Err.Error(), "tls: ")
	case errors.Is(err, errAlertRecord):
		out.ending, out.alert, out.how = refused, true, "alert"
	case errors.As(err, &reset):
		out.ending, out.how, out.left = refused, reset.Error(), reset.leaving
	case errors.As(err, &record):
		out.ending, out.how = refused, "answered without TLS"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		out.ending, out.how = refused, "closed"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		out.ending, out.how = refused, "reset"
	default:
		out.ending, out.how = refused, plain(err)
	}
}

// plain is an error's text without the addresses, which differ from run to run.
func plain(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	var call *os.SyscallError
	if errors.As(err, &call) {
		err = call.Err
	}
	return strings.TrimPrefix(err.Error(), "tls: ")
}

// protocols is what ALPN offers for a protocol.
func protocols(p mesh.Protocol) []string {
	switch p {
	case mesh.HTTP, mesh.HTTP2:
		return []string{"h2", "http/1.1"}
	case mesh.GRPC:
		return []string{"h2"}
	default:
		return nil
	}
}

// h2Protocol is what to speak once "h2" was agreed on.
func h2Protocol(p mesh.Protocol) mesh.Protocol {
	if p == mesh.GRPC {
		return mesh.GRPC
	}
	return mesh.HTTP2
}

// versionName is how a TLS version is written in a specification.
func versionName(v uint16) string {
	switch v {
	case tls.VersionTLS10:
		return "1.0"
	case tls.VersionTLS11:
		return "1.1"
	case tls.VersionTLS12:
		return "1.2"
	case tls.VersionTLS13:
		return "1.3"
	default:
		return fmt.Sprintf("%#04x", v)
	}
}
