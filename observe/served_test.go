package observe

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

// endpoint accepts connections with a configuration, and tells whether any was resumed.
func endpoint(t *testing.T, config *tls.Config) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			raw, err := listener.Accept()
			if err != nil {
				return
			}
			conn := tls.Server(raw, config)
			if conn.Handshake() == nil && conn.ConnectionState().DidResume {
				t.Error("a session was resumed")
			}
			conn.Close()
		}
	}()
	t.Cleanup(func() { listener.Close(); <-done })
	return listener.Addr().String()
}

func TestServed(t *testing.T) {
	ca, stranger := newTestCA(t), newTestCA(t)
	who, other := mustID(t, id.Service, "a"), mustID(t, id.Service, "b")
	roots := []*x509.Certificate{ca.cert}
	for name, c := range map[string]struct {
		leaf tls.Certificate
		auth tls.ClientAuthType
		max  uint16
		want error
	}{
		"TLS 1.3, which wants a certificate": {ca.leaf(who, nil), tls.RequireAndVerifyClientCert, 0, nil},
		"TLS 1.2, which wants a certificate": {ca.leaf(who, nil), tls.RequireAndVerifyClientCert, tls.VersionTLS12, nil},
		"TLS 1.2, which wants none":          {ca.leaf(who, nil), tls.NoClientCert, tls.VersionTLS12, nil},
		"TLS 1.3, which wants none":          {ca.leaf(who, nil), tls.NoClientCert, 0, nil},
		"TLS 1.1":                            {ca.leaf(who, nil), tls.NoClientCert, tls.VersionTLS11, ErrNotServed},
		"another workload's":                 {ca.leaf(other, nil), tls.RequireAndVerifyClientCert, 0, ErrNotTrusted},
		"another CA's":                       {stranger.leaf(who, nil), tls.RequireAndVerifyClientCert, 0, ErrNotTrusted},
		"no URI":                             {ca.leaf(who, func(c *x509.Certificate) { c.URIs = nil }), tls.NoClientCert, 0, ErrNotTrusted},
		"expired":                            {ca.leaf(who, func(c *x509.Certificate) { c.NotAfter = c.NotBefore }), tls.NoClientCert, 0, ErrNotTrusted},
	} {
		t.Run(name, func(t *testing.T) {
			address := endpoint(t, &tls.Config{Certificates: []tls.Certificate{c.leaf}, ClientAuth: c.auth, ClientCAs: ca.pool(), MaxVersion: c.max, MinVersion: tls.VersionTLS10})
			for range 2 {
				leaf, err := Served(t.Context(), address, who, mesh.HTTP, roots)
				if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
					t.Errorf("%v, want %v", err, c.want)
				}
				chain, err := Presented(t.Context(), address, who, mesh.HTTP)
				if errors.Is(c.want, ErrNotServed) != errors.Is(err, ErrNotServed) || err == nil && !bytes.Equal(chain[0].Raw, c.leaf.Certificate[0]) {
					t.Errorf("presented %v, %v", chain, err)
				}
				if c.want == nil && !bytes.Equal(leaf.Raw, c.leaf.Certificate[0]) {
					t.Errorf("the leaf %v", leaf)
				}
			}
		})
	}
}

// TestServedBy sees endpoints of workloads that are known by a DNS name, and of one that has a SPIFFE ID.
func TestServedBy(t *testing.T) {
	const name = "a.payments.example"
	ca, stranger := newTestCA(t), newTestCA(t)
	who := mustID(t, id.Service, "a")
	named := func(change func(*x509.Certificate)) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.URIs, c.Subject, c.DNSNames = nil, pkix.Name{CommonName: name}, []string{name}
			if change != nil {
				change(c)
			}
		}
	}
	for title, c := range map[string]struct {
		leaf tls.Certificate
		dns  string
		want error
	}{
		"by its DNS name":                   {ca.leaf(who, named(nil)), name, nil},
		"another's":                         {ca.leaf(who, named(func(c *x509.Certificate) { c.Subject.CommonName = "b.payments.example" })), name, ErrNotTrusted},
		"for another name":                  {ca.leaf(who, named(func(c *x509.Certificate) { c.DNSNames = []string{"b.payments.example"} })), name, ErrNotTrusted},
		"another CA's":                      {stranger.leaf(who, named(nil)), name, ErrNotTrusted},
		"expired":                           {ca.leaf(who, named(func(c *x509.Certificate) { c.NotAfter = c.NotBefore })), name, ErrNotTrusted},
		"a SPIFFE ID for a DNS name":        {ca.leaf(who, nil), name, ErrNotTrusted},
		"by its SPIFFE ID":                  {ca.leaf(who, nil), "", nil},
		"a DNS name for its SPIFFE ID":      {ca.leaf(who, named(nil)), "", ErrNotTrusted},
		"a DNS name and the SPIFFE ID both": {ca.leaf(who, named(func(c *x509.Certificate) { c.URIs = []*url.URL{who.URL()} })), name, ErrNotTrusted},
	} {
		t.Run(title, func(t *testing.T) {
			address := endpoint(t, &tls.Config{Certificates: []tls.Certificate{c.leaf}, ClientAuth: tls.RequireAnyClientCert})
			_, err := ServedBy(t.Context(), address, mesh.CertificatePlan{Identity: who, DNSIdentity: c.dns}, mesh.HTTP, []*x509.Certificate{ca.cert})
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
	if _, err := ServedBy(t.Context(), "127.0.0.1:1", mesh.CertificatePlan{Identity: who, DNSIdentity: name}, mesh.HTTP, nil); !errors.Is(err, ErrNotServed) {
		t.Errorf("nobody there: %v", err)
	}
}

// TestServedWithoutTheKey meets endpoints that show a certificate and cannot prove that it is theirs.
func TestServedWithoutTheKey(t *testing.T) {
	ca := newTestCA(t)
	who := mustID(t, id.Service, "a")
	stolen, own := ca.leaf(who, nil), ca.leaf(who, nil)
	stolen.PrivateKey = own.PrivateKey
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		address := endpoint(t, &tls.Config{
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &stolen, nil },
			MaxVersion:     version, ClientAuth: tls.RequireAnyClientCert,
		})
		if _, err := Served(t.Context(), address, who, mesh.HTTP, []*x509.Certificate{ca.cert}); !errors.Is(err, ErrNotServed) {
			t.Errorf("%s: %v, want ErrNotServed", versionName(version), err)
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	if _, err := Served(t.Context(), listener.Addr().String(), who, mesh.HTTP, nil); !errors.Is(err, ErrNotServed) {
		t.Errorf("nobody there: %v", err)
	}
}

// TestServedSerial asserts that a serial number is named with its leading zero.
func TestServedSerial(t *testing.T) {
	err := trusted([]*x509.Certificate{{SerialNumber: big.NewInt(0xabc)}}, id.ID{}, nil, "here")
	if !errors.Is(err, ErrNotTrusted) || !strings.Contains(err.Error(), "the certificate 0abc:") {
		t.Errorf("%v, want the serial number 0abc", err)
	}
}
