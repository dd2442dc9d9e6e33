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

const (
	lookAgain  = 2 * time.Second // between two looks at what is in force
	lookWithin = 5 * time.Second // for one
	mostMissed = 3               // looks in a row, after which it is not seen to serve
)

// lookOn looks again and again whether the program answers with what it was seen to have: one that hangs does not
// end.
func (s *Supervisor) lookOn() {
	missed := 0
	for pause(s.work, lookAgain) {
		s.mu.Lock()
		p, g, seen, skip := s.running, s.good, s.seen, s.running == nil || s.good == nil || s.retired != nil || s.unsure
		s.mu.Unlock()
		if skip {
			missed = 0
			continue
		}
		again, err := s.lookOnce(g, seen == nil)
		select {
		case s.change <- struct{}{}:
		default:
			continue // something else is put in force at this moment, and observed
		}
		s.mu.Lock()
		same := s.running == p && s.good != nil && s.good.name == g.name && s.retired == nil && !s.unsure
		s.mu.Unlock()
		switch {
		case !same || s.work.Err() != nil:
			missed = 0
		case err == nil:
			missed = 0
			s.noteLook(again, nil)
		default:
			if missed++; missed >= mostMissed {
				s.noteLook(nil, err)
			}
		}
		s.unlock()
	}
}

// lookOnce asks the program for its generation. That makes no connection to a listener, which the program would count; a
// program that was lost is seen again by handshakes, too.
func (s *Supervisor) lookOnce(g *generation, whole bool) (*sighting, error) {
	ctx, cancel := context.WithTimeout(s.work, lookWithin)
	defer cancel()
	if whole {
		seen := &sighting{leaf: g.identity.Certificate.Leaf, chain: admin.Parse(g.identity.Certificate.Certificate), path: filepath.Join(g.dir, "current", "cert.pem")}
		return seen, s.look(ctx, g, seen)
	}
	name, err := s.cfg.Binary.Engine.inForce(ctx, g.run)
	if err == nil && name != g.name {
		err = fmt.Errorf("it has generation %q in force, and %q is meant", name, g.name)
	}
	return nil, err
}

// noteLook notes that the program was lost, or seen again. The caller holds change.
func (s *Supervisor) noteLook(again *sighting, err error) {
	if err == nil && again == nil {
		return
	}
	s.mu.Lock()
	s.seen = again
	s.mu.Unlock()
	text := ""
	if err != nil {
		text = fmt.Sprintf("it runs, and does not answer: %v", err)
	}
	s.setProblem(problemProcess, text)
}
