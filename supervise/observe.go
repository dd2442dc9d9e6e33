package supervise

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"countersign.dev/admin"
	"countersign.dev/api"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// sighting is what was seen of a generation that is in force.
type sighting struct {
	leaf      *x509.Certificate   // what the listeners presented; where none has TLS, what the program was given
	chain     []*x509.Certificate // the same with its issuers
	path      string              // where the program read it
	listening []api.Listening
}

// rounds is how often in a row everything has to be seen: for a moment the workers of two generations accept.
const rounds = 2

// observe waits until the program serves a generation: it says so itself, and a full handshake with every TLS
// listener shows the generation's leaf. The error says what was seen instead.
func (s *Supervisor) observe(ctx context.Context, p *process, g *generation) (*sighting, error) {
	ctx, cancel := context.WithTimeout(ctx, s.patience)
	defer cancel()
	var err error
	for good := 0; good < rounds; {
		seen := sighting{leaf: g.identity.Certificate.Leaf, chain: admin.Parse(g.identity.Certificate.Certificate), path: filepath.Join(g.dir, "current", "cert.pem")}
		what := s.look(ctx, g, &seen)
		if what == nil {
			if good++; good == rounds {
				return &seen, nil
			}
			continue
		}
		good = 0
		var late net.Error
		if err == nil || !errors.As(what, &late) || !late.Timeout() { // else the time was up in the middle of a look
			err = what
		}
		select {
		case <-p.gone:
			return nil, fmt.Errorf("it ended before it served: %s", p.lastWords())
		case <-ctx.Done():
			if words := p.lastWords(); words != "" {
				err = fmt.Errorf("%w; it said: %s", err, words)
			}
			return nil, fmt.Errorf("it was not seen within %s: %w", s.patience, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil, err
}

// look looks once.
func (s *Supervisor) look(ctx context.Context, g *generation, seen *sighting) error {
	name, err := s.cfg.Binary.Engine.inForce(ctx, g.run)
	if err != nil {
		return fmt.Errorf("it does not answer yet: %w", err)
	}
	if name != g.name {
		return fmt.Errorf("it has generation %q in force, and %q is meant", name, g.name)
	}
	for _, in := range g.plan.Inbound {
		address := g.options.Inbound(in.Port)
		if in.TLS != mesh.Off {
			if err := s.shakeHands(ctx, g, in, address); err != nil {
				return fmt.Errorf("port %d (%s): %w", in.Port, address, err)
			}
		}
		seen.listening = append(seen.listening, api.Listening{Port: in.Port, Address: address})
	}
	return nil
}

// shakeHands makes one full handshake as the workload itself, and compares what is presented. A gateway's own
// certificate is in files that change without us; any is right there.
func (s *Supervisor) shakeHands(ctx context.Context, g *generation, in mesh.Inbound, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer raw.Close()
	s.counts.ignore(raw.LocalAddr().String(), s.cfg.Now())
	certificate := g.identity.Certificate
	config := &tls.Config{
		ServerName: g.identity.ID.ServerName(),
		// What it presents is compared with the one certificate that is right, below.
		InsecureSkipVerify: true, //nolint:gosec // see above
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &certificate, nil
		},
	}
	if in.Protocol != mesh.TCP {
		config.NextProtos = []string{"h2", "http/1.1"}
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("a handshake with it fails: %w", err)
	}
	defer conn.Close()
	chain := conn.ConnectionState().PeerCertificates
	if in.Certificate != nil {
		return nil
	}
	if len(chain) == 0 {
		return errors.New("it presents no certificate")
	}
	if leaf := g.identity.Certificate.Leaf; !bytes.Equal(chain[0].Raw, leaf.Raw) {
		return fmt.Errorf("it presents the certificate %s, and %s is meant", mtls.Serial(chain[0]), mtls.Serial(leaf))
	}
	return nil
}
