package mtls

import (
	"crypto/fips140"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

// sessionCacheSize is how many sessions a [Client] remembers. It has one server name, so that
// crypto/tls keeps one session in it.
const sessionCacheSize = 4

// ClientOptions say whom a client connects to and how.
type ClientOptions struct {
	// Expect is the identity that the server has to prove. It must be set.
	Expect id.ID
	// MinVersion is TLS 1.2 when it is not set.
	MinVersion mesh.TLSVersion
	// Groups and Revocations are as in [ServerOptions].
	Groups      []tls.CurveID
	Revocations func() string
	// NextProtos are the ALPN protocols that are offered.
	NextProtos []string
	// Epoch is asked at every dial; sessions of another epoch are not resumed. Nil means that there
	// is none.
	Epoch func() string
	// Anonymous lets the client present no certificate, also when it is asked for one.
	Anonymous bool
	// Now is the clock, time.Now when it is nil.
	Now func() time.Time
}

// Client makes the configurations of connections to one member of the mesh. It is safe for
// concurrent use. Instances that cannot resume each other's sessions (two sidecars of one service)
// are better served by a Client each.
type Client struct {
	src     Source
	o       ClientOptions
	version uint16
	groups  []tls.CurveID
	err     error // options that make no sense: Config returns it

	mu         sync.Mutex
	generation generation  // guarded by mu: what config was made for
	config     *tls.Config // guarded by mu: nil before the first call
	made       time.Time   // guarded by mu: when config was made
}

// NewClient makes a Client. Options that cannot be obeyed are reported by [Client.Config].
func NewClient(src Source, o ClientOptions) *Client {
	if o.Now == nil {
		o.Now = time.Now
	}
	c := &Client{src: src, o: o}
	c.version, c.err = minVersion(o.MinVersion)
	var err error
	if c.groups, err = effectiveGroups(o.Groups, fips140.Enabled()); err != nil {
		c.err = errors.Join(c.err, err)
	}
	if o.Expect.IsZero() {
		c.err = errors.Join(c.err, errors.New("the client does not say which identity it expects"))
	}
	return c
}

// Config is the configuration for one dial: ask for it each time. SNI is NAME.TRUST-DOMAIN of the
// expected identity; the DNS names in the server's certificate play no part. The caller owns what it
// gets.
func (c *Client) Config() (*tls.Config, error) {
	if c.err != nil {
		return nil, c.err
	}
	identity, err := identityOf(c.src)
	if err != nil {
		return nil, err
	}
	now := c.o.Now()
	epoch := ask(c.o.Epoch)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.generation.is(identity, epoch) || now.Sub(c.made) >= sessionLife {
		c.config, c.generation, c.made = c.newConfig(identity), generation{identity, epoch}, now
	}
	return c.config.Clone(), nil // the clone shares the sessions
}

func (c *Client) newConfig(identity *Identity) *tls.Config {
	config := baseConfig(c.version, c.groups, c.o.NextProtos, c.o.Now)
	config.ServerName = c.o.Expect.ServerName()
	config.ClientSessionCache = tls.NewLRUClientSessionCache(sessionCacheSize)
	// crypto/tls would compare DNS names, which say less than the SPIFFE ID, and would not look again
	// at a resumed session's chain. VerifyConnection does both jobs, and runs always.
	config.InsecureSkipVerify = true
	config.VerifyConnection = c.verify
	certificate := identity.Certificate
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if c.o.Anonymous {
			return &tls.Certificate{}, nil
		}
		// Whatever the server says it accepts: to fall back to no certificate would turn a wrong
		// setting into an anonymous caller.
		return &certificate, nil
	}
	return config
}

// verify decides about the server, with the bundle of this moment.
func (c *Client) verify(cs tls.ConnectionState) error {
	identity, err := identityOf(c.src)
	if err != nil {
		return err
	}
	peer, err := identity.verifyAgain(ask(c.o.Revocations), cs.PeerCertificates, x509.ExtKeyUsageServerAuth, c.o.Now())
	if err != nil {
		return err
	}
	if peer != c.o.Expect {
		return fmt.Errorf("%w: %s was expected, and %s answered", ErrWrongIdentity, c.o.Expect, peer)
	}
	return nil
}
