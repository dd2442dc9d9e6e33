package deliver

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"

	"countersign.dev/credential"
)

// Seen is what a listener showed. Leaf and Authorities are empty where no TLS is spoken.
type Seen struct {
	Leaf *x509.Certificate
	// Authorities are the subjects of the roots by which it asks for certificates, as it says itself.
	Authorities [][]byte
}

// errSeen ends a handshake when all is seen, before the listener counts it as done.
var errSeen = errors.New("all is seen")

// Handshakes looks at listeners by full handshakes, never resumed, and sends nothing after them. It is a [Prober].
type Handshakes struct{}

// Probe makes one connection. as is shown to listeners that ask; it may be nil. A listener that refuses it has shown its own
// certificate before.
func (Handshakes) Probe(ctx context.Context, l Listener, as *credential.Credential) (*Seen, error) {
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", l.Address)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	if !l.TLS {
		return &Seen{}, nil
	}
	seen := &Seen{}
	conn := tls.Client(raw, &tls.Config{
		ServerName: l.ServerName, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"},
		InsecureSkipVerify: true, //nolint:gosec // whatever is presented is wanted, to be compared
		GetClientCertificate: func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			seen.Authorities = asked.AcceptableCAs
			if l.Bytes {
				return nil, errSeen
			}
			if as == nil {
				return &tls.Certificate{}, nil
			}
			return as.TLS(), nil
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) > 0 {
				seen.Leaf = state.PeerCertificates[0]
			}
			if l.Bytes && !l.Client {
				return errSeen
			}
			return nil
		},
	})
	err = conn.HandshakeContext(ctx)
	if seen.Leaf == nil {
		if err == nil {
			err = errors.New("it presents no certificate")
		}
		return nil, fmt.Errorf("%s: %w", l.Address, err)
	}
	return seen, nil
}
