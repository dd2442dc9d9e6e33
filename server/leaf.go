package server

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"countersign.dev/ca"
	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// serverName is the last segment of the server's own SPIFFE ID.
const serverName = "countersign"

// leafRetry is how long the server waits after it could not renew its own certificate.
const leafRetry = 30 * time.Second

// leaf is the server's own certificate. Its key is made anew with each and is never stored. It is a
// [mtls.Source].
type leaf struct {
	s         *Server
	names     []string
	addresses []net.IP
	held      atomic.Pointer[mtls.Identity]
}

// Identity implements [mtls.Source].
func (l *leaf) Identity() (*mtls.Identity, error) {
	held := l.held.Load()
	if held == nil {
		return nil, mtls.ErrNoIdentity
	}
	return held, nil
}

// renew makes a new key and certificate and puts them in use.
func (l *leaf) renew(ctx context.Context) error {
	identity, err := id.New(l.s.ca.TrustDomain(), id.Server, serverName)
	if err != nil {
		return err
	}
	key, err := mtls.GenerateKey(mesh.ECDSAP256)
	if err != nil {
		return err
	}
	issued, err := l.s.ca.Issue(ctx, l.s.recorder("", "server", ""), issue.Request{
		ID: identity, DNSNames: l.names, IPAddresses: l.addresses, PublicKey: key.Public(), TTL: l.s.timing.leafTTL,
	})
	if err != nil {
		return fmt.Errorf("issue the server's own certificate: %w", err)
	}
	if err := l.s.store.putCertificate(ctx, issued.Certificate, "", nil); err != nil {
		return fmt.Errorf("issue the server's own certificate: %w", err)
	}
	l.held.Store(&mtls.Identity{
		ID:     identity,
		Bundle: l.s.trust.Load().bundle,
		Certificate: tls.Certificate{
			// The root goes along: an agent that knows only its pin recognizes it here.
			Certificate: [][]byte{issued.Certificate.Raw, issued.Hierarchy.Issuer.Raw, issued.Hierarchy.Root.Raw},
			PrivateKey:  key,
			Leaf:        issued.Certificate,
		},
	})
	l.s.log.InfoContext(ctx, "the server has a new certificate of its own", "serial", mtls.Serial(issued.Certificate), "notAfter", issued.Certificate.NotAfter)
	return nil
}

// left is how long the certificate lives on. There is one: a server does not start without.
func (l *leaf) left() time.Duration {
	return l.held.Load().Certificate.Leaf.NotAfter.Sub(l.s.now())
}

// keep renews the certificate when half of its life is over, until ctx ends.
func (l *leaf) keep(ctx context.Context) {
	for {
		wait := l.left() / 2 // NotBefore is set back and not part of the life
		for {
			timer := time.NewTimer(wait)
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
			}
			err := l.renew(ctx)
			if err == nil {
				break
			}
			l.s.log.ErrorContext(ctx, "cannot renew the server's own certificate; it is tried again", "error", err)
			// Each try may cost the journal an entry: there is a hurry only when the end is near.
			wait = min(leafRetry, max(time.Second, l.left()/2))
		}
	}
}

// subjectAddresses are the addresses that agents may reach a listener at: the one that it is bound
// to, or all of the machine's when it is bound to none in particular.
func subjectAddresses(listen netip.Addr) ([]net.IP, error) {
	if !listen.IsUnspecified() {
		return []net.IP{net.IP(listen.Unmap().AsSlice())}, nil
	}
	interfaces, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list this machine's addresses: %w", err)
	}
	var addresses []net.IP
	for _, address := range interfaces {
		network, ok := address.(*net.IPNet)
		if !ok || network.IP.IsMulticast() || network.IP.IsLinkLocalUnicast() {
			continue
		}
		if !slices.ContainsFunc(addresses, network.IP.Equal) {
			addresses = append(addresses, network.IP)
		}
	}
	const most = 50 // a certificate with more names than that is refused
	return addresses[:min(len(addresses), most)], nil
}

// recorder writes one issuance into the journal.
func (s *Server) recorder(instance, by, request string) ca.Recorder {
	return ca.JournalRecorder{Journal: s.journal, Instance: instance, By: by, Request: request, Now: s.now}
}

// tlsConfig is that of the listener: the parameters of package mtls, with two differences. A client
// certificate is asked for but judged by the handlers, at every request, so that a client whose
// certificate has expired gets an answer that says so rather than an alert; and no session is
// resumed, because there is nothing to gain: an agent connects once in a long while.
func (s *Server) tlsConfig() *tls.Config {
	server := mtls.NewServer(s.leaf, mtls.ServerOptions{ClientAuth: mesh.Optional, NextProtos: []string{"h2", "http/1.1"}, Now: s.now})
	config := server.Config()
	current := config.GetConfigForClient
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c, err := current(hello)
		if err != nil {
			return nil, err
		}
		c = c.Clone()
		c.VerifyConnection = nil
		c.SessionTicketsDisabled = true
		return c, nil
	}
	return config
}
