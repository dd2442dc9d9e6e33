package observe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// Errors of [Served].
var (
	// ErrNotServed says that nobody answered with a certificate.
	ErrNotServed = errors.New("no certificate is served")
	// ErrNotTrusted says that what is served does not lead to the roots, or is another workload's.
	ErrNotTrusted = errors.New("what is served is not to be trusted")
)

// Served is the leaf that an endpoint of a workload serves at this moment, as [Presented] sees it. The leaf has to be the
// identity's and to lead to the roots now. Errors are [ErrNotServed] and [ErrNotTrusted].
func Served(ctx context.Context, address string, identity id.ID, protocol mesh.Protocol, roots []*x509.Certificate) (*x509.Certificate, error) {
	chain, err := Presented(ctx, address, identity, protocol)
	if err != nil {
		return nil, err
	}
	return chain[0], trusted(chain, identity, roots, address)
}

// ServedBy is [Served] by what a Plan says of a workload's certificate: who has no SPIFFE ID is asked for by the DNS name
// that stands for it, and has to prove that name.
func ServedBy(ctx context.Context, address string, workload mesh.CertificatePlan, protocol mesh.Protocol, roots []*x509.Certificate) (*x509.Certificate, error) {
	if workload.DNSIdentity == "" {
		return Served(ctx, address, workload.Identity, protocol, roots)
	}
	chain, err := presented(ctx, address, workload.DNSIdentity, protocol)
	if err != nil {
		return nil, err
	}
	if err := leadsTo(chain, roots, address); err != nil {
		return chain[0], err
	}
	if err := mtls.Named(chain[0], workload.DNSIdentity); err != nil {
		return chain[0], fmt.Errorf("%w: at %s the certificate %s is not of %s: %w", ErrNotTrusted, address, mtls.Serial(chain[0]), workload.DNSIdentity, err)
	}
	return chain[0], nil
}

// Presented is the chain that an endpoint presents at this moment to who asks for an identity, the leaf first, by one full
// handshake with the newest TLS version that both speak: no session is ever resumed, and the endpoint has proved that it
// has the leaf's key. No client certificate is shown, so that the endpoint may end the connection after that, and nothing
// is said in it. Nothing in the chain is judged. The error is [ErrNotServed]. At most DefaultTimeout is waited.
func Presented(ctx context.Context, address string, identity id.ID, protocol mesh.Protocol) ([]*x509.Certificate, error) {
	return presented(ctx, address, identity.ServerName(), protocol)
}

// PresentedBy is [Presented] by what a Plan says of a workload's certificate, as [ServedBy] is [Served].
func PresentedBy(ctx context.Context, address string, workload mesh.CertificatePlan, protocol mesh.Protocol) ([]*x509.Certificate, error) {
	if workload.DNSIdentity == "" {
		return Presented(ctx, address, workload.Identity, protocol)
	}
	return presented(ctx, address, workload.DNSIdentity, protocol)
}

func presented(ctx context.Context, address, serverName string, protocol mesh.Protocol) ([]*x509.Certificate, error) {
	ctx, cancel := context.WithTimeout(ctx, DefaultTimeout)
	defer cancel()
	var dialer net.Dialer
	raw, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%w at %s: %s", ErrNotServed, address, plain(err))
	}
	defer raw.Close()
	defer context.AfterFunc(ctx, func() { raw.Close() })()
	var chain []*x509.Certificate
	proved := false
	conn := tls.Client(raw, &tls.Config{
		ServerName: serverName,
		MinVersion: tls.VersionTLS12,
		NextProtos: protocols(protocol),
		// What is presented is for the caller to judge: names in a certificate of a mesh are for others.
		InsecureSkipVerify: true, //nolint:gosec // see above
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			// crypto/tls asks for it when it has verified the server's signature, in every version.
			proved = true
			return &tls.Certificate{}, nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error {
			chain = cs.PeerCertificates
			return nil
		},
	})
	err = conn.HandshakeContext(ctx)
	// Up to TLS 1.2 a server judges its client before the handshake ends, and after it has signed with its key.
	if err != nil && !proved {
		return nil, fmt.Errorf("%w at %s: %s", ErrNotServed, address, plain(err))
	}
	return chain, nil
}

// trusted judges what was presented.
func trusted(chain []*x509.Certificate, identity id.ID, roots []*x509.Certificate, address string) error {
	if err := leadsTo(chain, roots, address); err != nil {
		return err
	}
	leaf := chain[0]
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != identity.String() {
		return fmt.Errorf("%w: at %s the certificate %s is not of %s", ErrNotTrusted, address, mtls.Serial(leaf), identity)
	}
	return nil
}

// leadsTo verifies a chain now.
func leadsTo(chain, roots []*x509.Certificate, address string) error {
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root)
	}
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	leaf := chain[0]
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: pool, Intermediates: between, CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("%w: at %s the certificate %s: %w", ErrNotTrusted, address, mtls.Serial(leaf), err)
	}
	return nil
}
