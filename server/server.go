// Package server knows the control plane of a mesh: it lets workloads in, issues and renews their
// certificates, tells each its Plan and hears what each really serves, and answers the administrator.
//
// Agents speak to it over HTTPS, the administrator over a UNIX socket; package api has the messages.
// What it does is recorded in the journal before it is done, and what cannot be recorded is not done.
// Nothing that serves traffic waits for it.
package server

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"countersign.dev/ca"
	"countersign.dev/journal"
)

// Config says what server to run.
type Config struct {
	// State is the directory that `countersign ca init` has made.
	State string
	// Mesh is the specification, a file or a directory. It may be empty when one has run in State
	// before. One that is the same as when it was last loaded does not replace what was applied since.
	Mesh string
	// Listen is the address for agents, "host:port"; port 0 is any.
	Listen string
	// Socket is the administrator's socket; empty is "server.sock" in State.
	Socket string
	// CRLListen is the address of a plain-HTTP listener for the revocation lists; empty is none.
	CRLListen string
	// Names are further DNS names for the server's own certificate.
	Names []string
	// Seal opens the CA's keys.
	Seal ca.Sealer
	// FixedTopology refuses to apply what changes workloads, instances, ports or run.
	FixedTopology bool
	Log           *slog.Logger
	// Now is the clock, time.Now when it is nil.
	Now func() time.Time

	timing timing // zero: defaultTiming
}

// Server is a control plane. [New] makes it, [Server.Run] runs it, once.
type Server struct {
	cfg      Config
	log      *slog.Logger
	now      func() time.Time
	timing   timing
	ca       *ca.CA
	trust    atomic.Pointer[trust] // what everybody is told to trust
	journal  *journal.Log
	store    *store
	registry *registry
	leaf     *leaf
	refused  limiter
	peers    *connections
	rotation rotation

	revocations revocations

	listener net.Listener
	address  netip.AddrPort
	socket   net.Listener
	crlPlain net.Listener // nil: none

	applying sync.Mutex // one change of the specification at a time
	repeats  repeats
	closing  context.Context
	close    context.CancelFunc
	closers  []func() error // in reverse order
}

// New opens the state, loads the specification and binds both listeners; connections wait until
// [Server.Run]. After an error nothing is left open.
//
// Errors are those of package ca ([ca.ErrNoCA], [ca.ErrSealed], [ca.ErrWrongKey],
// [ca.ErrOtherTrustDomain]) and of package journal ([journal.ErrLocked] when another server runs on
// the state), [mesh.Errors], [ErrDatabase], [ErrDatabaseLocked] and [ErrListen].
func New(ctx context.Context, cfg Config) (*Server, error) {
	s := &Server{cfg: cfg, log: cfg.Log, now: cfg.Now, timing: cfg.timing, peers: newConnections()}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.timing == (timing{}) {
		s.timing = defaultTiming()
	}
	if s.timing.crl == 0 {
		s.timing.crl = ca.CRLInterval
	}
	if s.cfg.Socket == "" {
		s.cfg.Socket = filepath.Join(cfg.State, "server.sock")
	}
	s.closing, s.close = context.WithCancel(context.WithoutCancel(ctx))
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.shut())
	}
	return s, nil
}

// open does what New says, in the order in which each step needs the ones before.
func (s *Server) open(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		s.openCA, s.openStore, s.openRevocations, s.openMesh, s.listen, s.openCRLs, s.openLeaf,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// openCA opens the CA and the journal, whose lock keeps a second server away.
func (s *Server) openCA(context.Context) (err error) {
	if s.ca, err = ca.OpenClock(s.cfg.State, s.cfg.Seal, s.now); err != nil {
		return err
	}
	if s.journal, err = ca.OpenJournal(s.cfg.State, s.cfg.Seal); err != nil {
		return err
	}
	s.closers = append(s.closers, s.journal.Close)
	if err := s.ca.Settle(); err != nil {
		return err
	}
	if dropped := s.journal.Dropped(); dropped > 0 {
		s.log.Warn("the end of the journal was never completed and is cut off", "bytes", dropped)
	}
	return nil
}

// openStore opens the database, which refuses a journal that is older than itself, and adds what only
// the journal knows.
func (s *Server) openStore(ctx context.Context) (err error) {
	if s.store, err = openStore(ctx, filepath.Join(s.cfg.State, "server.db"), s.journal.Size); err != nil {
		return err
	}
	s.closers = append(s.closers, s.store.close)
	if err := s.bindStore(ctx); err != nil {
		return err
	}
	return s.reconcile(ctx)
}

// reconcile adds the certificates that were recorded and not stored: a crash came in between.
func (s *Server) reconcile(ctx context.Context) error {
	issued, err := ca.Certificates(s.journal.Records())
	if err != nil {
		return err
	}
	horizon := s.now().Add(-keepExpired)
	var missing []ownedCertificate
	for _, certificate := range issued {
		if certificate.NotAfter.Before(horizon) {
			continue
		}
		der, err := base64.StdEncoding.DecodeString(certificate.DER)
		if err != nil {
			return fmt.Errorf("read the journal: certificate %s: %w", certificate.Serial, err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("read the journal: certificate %s: %w", certificate.Serial, err)
		}
		missing = append(missing, ownedCertificate{cert, certificate.Instance, certificate.Request})
	}
	added, err := s.store.addCertificates(ctx, missing)
	if err != nil {
		return err
	}
	if added > 0 {
		s.log.InfoContext(ctx, "certificates that only the journal knew are stored", "count", added)
	}
	return nil
}

// listen binds both listeners.
func (s *Server) listen(ctx context.Context) (err error) {
	if s.listener, s.address, err = listenTLS(ctx, s.cfg.Listen); err != nil {
		return err
	}
	s.closers = append(s.closers, ignoreClosed(s.listener.Close))
	if s.cfg.CRLListen != "" {
		if s.crlPlain, _, err = listenTLS(ctx, s.cfg.CRLListen); err != nil {
			return err
		}
		s.closers = append(s.closers, ignoreClosed(s.crlPlain.Close))
	}
	if s.socket, err = listenSocket(ctx, s.cfg.Socket); err != nil {
		return err
	}
	s.closers = append(s.closers, ignoreClosed(s.socket.Close))
	return nil
}

func ignoreClosed(f func() error) func() error {
	return func() error {
		if err := f(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}

// openLeaf makes the server's own certificate.
func (s *Server) openLeaf(ctx context.Context) error {
	addresses, err := subjectAddresses(s.address.Addr())
	if err != nil {
		return err
	}
	s.leaf = &leaf{s: s, names: s.cfg.Names, addresses: addresses}
	return s.leaf.renew(ctx)
}

// Info is what agents and administrators need to find a server.
type Info struct {
	URL         string `json:"url"`
	Socket      string `json:"socket"`
	PID         int    `json:"pid"`
	TrustDomain string `json:"trustDomain"`
	Mesh        string `json:"mesh"`
	Revision    uint64 `json:"revision"`
	CAFile      string `json:"caFile"`
	CAPin       string `json:"caPin"`
	JournalKey  string `json:"journalKey"`
	CRL         string `json:"crl,omitempty"` // the address of the revocation lists: append api.PathIssuerCRL
}

// Info describes the server. It may be called as soon as [New] has returned.
func (s *Server) Info() Info {
	spec, _, revision := s.registry.running()
	plain := ""
	if s.crlPlain != nil {
		plain = "http://" + s.crlPlain.Addr().String()
	}
	return Info{
		CRL: plain,
		URL: "https://" + s.address.String(), Socket: absolute(s.cfg.Socket), PID: os.Getpid(),
		TrustDomain: s.ca.TrustDomain(), Mesh: spec.Mesh, Revision: revision,
		CAFile: absolute(s.ca.BundleFile()), CAPin: s.ca.Pin(), JournalKey: s.journal.VerifierKey(),
	}
}

// absolute is a path for somebody in another directory.
func absolute(path string) string {
	if whole, err := filepath.Abs(path); err == nil {
		return whole
	}
	return path
}

// Run serves until ctx ends, and then ends the streams, lets requests finish for a while, and closes
// everything. The error is nil when it was ctx that ended it.
func (s *Server) Run(ctx context.Context) error {
	agents := &http.Server{
		Handler: s.agentHandler(), TLSConfig: s.tlsConfig(), ConnState: s.peers.observe, ConnContext: s.peers.remember,
		ReadHeaderTimeout: 10 * time.Second, // the handshake is within it
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       30 * time.Second, // an agent's watch keeps its connection busy
		MaxHeaderBytes:    16 << 10,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 32,
			SendPingTimeout:      15 * time.Second, // a peer that has vanished is noticed
			PingTimeout:          10 * time.Second,
			WriteByteTimeout:     s.timing.write,
		},
		// Handshakes that fail are other people's noise.
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	admin := &http.Server{
		Handler: s.adminHandler(), ReadHeaderTimeout: 10 * time.Second, WriteTimeout: 2 * requestTimeout, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	failed := make(chan error, 3)
	servers := []*http.Server{agents, admin}
	var work sync.WaitGroup
	work.Go(func() { failed <- agents.ServeTLS(s.listener, "", "") })
	work.Go(func() { failed <- admin.Serve(s.socket) })
	if s.crlPlain != nil {
		plain := s.crlServer()
		servers = append(servers, plain)
		work.Go(func() { failed <- plain.Serve(s.crlPlain) })
	}
	work.Go(func() { s.leaf.keep(background) })
	work.Go(func() { s.housekeeping(background) })
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		err = fmt.Errorf("serve: %w", err)
	}
	s.close()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.timing.socketStop)
	defer cancel()
	for _, server := range servers {
		if server.Shutdown(last) != nil {
			server.Close()
		}
	}
	stop()
	work.Wait()
	return errors.Join(err, s.shut())
}

// housekeeping does what is due now and then.
func (s *Server) housekeeping(ctx context.Context) {
	sweep := time.NewTicker(s.timing.sweep)
	defer sweep.Stop()
	prune := time.NewTicker(time.Hour)
	defer prune.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-sweep.C:
			s.registry.sweep(ctx)
			s.tendCA(ctx)
			s.tendCRLs(ctx)
		case <-prune.C:
			horizon := s.now().Add(-keepExpired)
			if err := errors.Join(s.store.pruneCertificates(ctx, horizon), s.store.pruneTokens(ctx, horizon)); err != nil {
				s.log.ErrorContext(ctx, "cannot tidy the database; it is tried again in an hour", "error", err)
			}
		}
	}
}

// Close ends a server that is not run.
func (s *Server) Close() error { return s.shut() }

// shut closes what is open.
func (s *Server) shut() error {
	s.close()
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	s.closers = nil
	return errors.Join(errs...)
}

// encodeCertificate writes a certificate in PEM.
func encodeCertificate(cert *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
}
