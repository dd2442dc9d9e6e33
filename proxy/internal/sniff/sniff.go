// Package sniff knows how to tell by its first bytes whether a connection speaks TLS, for a port that
// takes both TLS and plaintext while callers migrate.
package sniff

import (
	"errors"
	"net"
	"os"
)

// Verdict is what the first bytes say.
type Verdict int

// The verdicts.
const (
	// More says that the bytes so far fit both.
	More Verdict = iota
	// TLS says that a TLS record with a handshake message begins.
	TLS
	// Plaintext says that it is something else.
	Plaintext
)

// Bytes is how many bytes [Classify] looks at, at most.
const Bytes = 3

// Classify judges the first bytes of a connection. TLS begins with a handshake record, whose type is
// 22 and whose legacy version is 3.x (RFC 8446 section 5.1); the minor number is 1 to 4 in practice,
// and anything above is left to grow. It never asks for more than [Bytes].
func Classify(prefix []byte) Verdict {
	want := [Bytes]byte{0x16, 0x03}
	for i, b := range prefix[:min(len(prefix), Bytes)] {
		if i == 2 {
			if b > 0x0f {
				return Plaintext
			}
			return TLS
		}
		if b != want[i] {
			return Plaintext
		}
	}
	return More
}

// Conn reads the first bytes of a connection until they tell what it speaks, and gives a connection
// that reads them again. It consumes at most [Bytes], and blocks as long as the connection's read
// deadline lets it.
//
// When the deadline passes before anything came, the verdict is [More] and the error
// os.ErrDeadlineExceeded; the connection is usable. When it passes in the middle, or the caller has
// closed its side after a byte or two, what came is taken for plaintext: TLS sends its record in one
// piece, as good as always, and fails cleanly on the other side. A connection that ends without a byte
// is io.EOF.
func Conn(c net.Conn) (Verdict, net.Conn, error) {
	var prefix [Bytes]byte
	have := 0
	for {
		n, err := c.Read(prefix[have:])
		have += n
		if verdict := Classify(prefix[:have]); verdict != More {
			return verdict, &replay{Conn: c, prefix: prefix[:have]}, nil
		}
		switch {
		case err == nil:
		case have > 0:
			return Plaintext, &replay{Conn: c, prefix: prefix[:have]}, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return More, c, os.ErrDeadlineExceeded
		default:
			return More, c, err
		}
	}
}

// replay is a connection whose first bytes were read.
type replay struct {
	net.Conn
	prefix []byte
}

// Read implements net.Conn.
func (r *replay) Read(p []byte) (int, error) {
	if len(r.prefix) == 0 {
		return r.Conn.Read(p)
	}
	n := copy(p, r.prefix)
	r.prefix = r.prefix[n:]
	return n, nil
}

// CloseWrite ends the sending direction, where the connection below can.
func (r *replay) CloseWrite() error {
	if half, ok := r.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
