package server

import (
	"context"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/durable"
	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/journal"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// Sentinel errors of revocation.
var (
	errRevoked = errors.New("the certificate was revoked; make a new join token with `countersign token create` and give it to the instance")
	// ErrRootCRL says that a specification wants revocation to be checked and the root's list cannot be made: by it every
	// sidecar would refuse every peer.
	ErrRootCRL = errors.New("the root's revocation list is missing")
)

// maxCredentialsCRL is up to which length the lists come with a certificate, in bytes. Longer ones come by the watch.
const maxCredentialsCRL = 512 << 10

// crlRetry is how long the server waits after it could not make the lists.
const crlRetry = time.Minute

// revocations is the server's part in revoking certificates.
type revocations struct {
	ledger *ca.Ledger

	// joining is held for reading while somebody joins or renews, and for writing while certificates are revoked: nobody
	// gets one by what was just revoked.
	joining sync.RWMutex
	making  sync.Mutex // one making of the lists at a time
	next    time.Time  // guarded by making: when they are made again
	retry   bool       // guarded by making: the last try came to nothing, and next is when it is repeated

	told   atomic.Pointer[told]
	failed atomic.Pointer[string] // why they could not be made
}

// told are the lists that everybody is told. They are not changed after they were made.
type told struct {
	pem   string
	lists []*x509.RevocationList // the active issuing CA's first
	life  time.Duration
}

// crls are the lists in PEM, empty when there are none yet.
func (s *Server) crls() string {
	if t := s.revocations.told.Load(); t != nil {
		return t.pem
	}
	return ""
}

// openRevocations reads from the journal what was revoked, and lets the database follow it: a crash, or a command without
// a server, came in between.
func (s *Server) openRevocations(ctx context.Context) (err error) {
	if s.revocations.ledger, err = ca.ReadLedger(s.journal.Records()); err != nil {
		return err
	}
	return s.followJournal(ctx)
}

// followJournal lets the database have what the journal says of revocations. To do so again is no error.
func (s *Server) followJournal(ctx context.Context) error {
	tokens, err := ca.ReadTokens(s.journal.Records())
	if err != nil {
		return err
	}
	return s.store.revoke(ctx, s.revocations.ledger.All(), tokens.Void)
}

func isWorkload(identity id.ID) bool {
	return identity.Kind() == id.Service || identity.Kind() == id.Gateway
}

// openCRLs makes the lists for the first time since the start.
func (s *Server) openCRLs(ctx context.Context) error {
	err := s.refreshCRLs(ctx)
	if errors.Is(err, journal.ErrNotRecorded) || err != nil && s.crls() == "" {
		return err
	}
	if err != nil {
		s.log.ErrorContext(ctx, "not every revocation list could be made; those of before are handed out", "error", err)
	}
	spec, _, _ := s.registry.running()
	return s.checkable(spec)
}

// checkable refuses a specification that wants what no list allows.
func (s *Server) checkable(spec *mesh.Spec) error {
	if !spec.Revocation.Check || s.rootsListed() {
		return nil
	}
	return fmt.Errorf("%w, and its key is not in the state: run `countersign ca crl --renew-root --root-key FILE --state %s`, or say `revocation: none` in the specification", ErrRootCRL, s.cfg.State)
}

// rootsListed tells whether every root has a list.
func (s *Server) rootsListed() bool {
	lists := s.revocations.told.Load()
	return lists != nil && !slices.ContainsFunc(s.ca.Hierarchies(), func(h ca.Hierarchy) bool {
		return lists.of(h.Root) == nil
	})
}

// of is the list of a CA, nil when there is none.
func (t *told) of(authority *x509.Certificate) *x509.RevocationList {
	for _, list := range t.lists {
		if string(list.AuthorityKeyId) == string(authority.SubjectKeyId) && string(list.RawIssuer) == string(authority.RawSubject) {
			return list
		}
	}
	return nil
}

// refreshCRLs makes the lists anew and tells everybody. What could not be made comes back in the error; the rest is told.
func (s *Server) refreshCRLs(ctx context.Context) error {
	s.revocations.making.Lock()
	defer s.revocations.making.Unlock()
	s.revocations.next, s.revocations.retry = s.now().Add(crlRetry), true
	life, err := s.crlLife(ctx)
	if err != nil {
		return err
	}
	lists, trouble, err := s.ca.RefreshCRLs(ctx, s.journal, s.revocations.ledger, life)
	if len(lists) > 0 {
		s.revocations.told.Store(&told{pem: string(ca.EncodeCRLs(lists)), lists: lists, life: life})
		durable.Step("server.crl.made")
		s.registry.wake()
	}
	if err == nil { // what is only trouble is not cured by the next try, and each costs the journal an entry
		s.revocations.next, s.revocations.retry = s.now().Add(s.timing.crl), false
	}
	if err := errors.Join(err, trouble); err != nil {
		why := err.Error()
		s.revocations.failed.Store(&why)
		return err
	}
	s.revocations.failed.Store(nil)
	return nil
}

// crlLife is how long a list is to be valid: as the longest certificate lives, declared or issued.
func (s *Server) crlLife(ctx context.Context) (time.Duration, error) {
	living, err := s.store.unexpired(ctx, s.now())
	if err != nil {
		return 0, err
	}
	longest := s.registry.longestTTL()
	for _, c := range living {
		longest = max(longest, c.cert.NotAfter.Sub(c.cert.NotBefore.Add(issue.ClockAllowance)))
	}
	return ca.CRLLife(longest), nil
}

// tendCRLs makes the lists anew when it is time, or when certificates may live longer than they do.
func (s *Server) tendCRLs(ctx context.Context) {
	lists := s.revocations.told.Load()
	short := lists != nil && lists.life < ca.CRLLife(s.registry.longestTTL())
	s.revocations.making.Lock()
	due, retry := !s.now().Before(s.revocations.next), s.revocations.retry
	s.revocations.making.Unlock()
	if !due && (retry || !short) {
		return
	}
	if err := s.refreshCRLs(ctx); err != nil {
		s.log.ErrorContext(ctx, "not all is well with the revocation lists", "error", err)
	}
}

// crlProblem is what an administrator has to do about the lists; empty when there is nothing.
func (s *Server) crlProblem() string {
	if failed := s.revocations.failed.Load(); failed != nil {
		return "the revocation lists could not be made: " + *failed
	}
	lists := s.revocations.told.Load()
	if lists == nil {
		return ""
	}
	for _, h := range s.ca.Hierarchies() {
		list := lists.of(h.Root)
		if list == nil || s.now().Add(ca.RootCRLWarning).After(list.NextUpdate) && list.NextUpdate.Before(h.Issuer.NotAfter) {
			end := "is missing"
			if list != nil {
				end = "ends on " + list.NextUpdate.UTC().Format(time.RFC3339)
			}
			return "the root's revocation list " + end + "; `countersign ca crl --renew-root --root-key FILE` makes another"
		}
	}
	return ""
}

// unrevoked refuses a certificate that was revoked.
func (s *Server) unrevoked(cert *x509.Certificate) error {
	r, revoked := s.revocations.ledger.Revoked(mtls.Serial(cert))
	if !revoked {
		return nil
	}
	return fmt.Errorf("serial %s, on %s (%s): %w", r.Serial, r.Time.Format(time.RFC3339), r.Reason, errRevoked)
}

// revokeFacts are what the journal records of a revocation that was refused.
type revokeFacts struct {
	Target string `json:"target"`
	Code   string `json:"code"`
	Reason string `json:"reason"`
}

// revoke revokes certificates at the administrator's word.
func (s *Server) revoke(r *http.Request, request api.RevokeRequest) (*api.RevokeResponse, error) {
	ctx, cancel := s.toTheEnd(r.Context())
	defer cancel()
	done, err := s.revoked(ctx, request)
	if err != nil {
		return nil, s.recordAdminRefusal(ctx, journal.RevokeRefused, err, func(code, reason string) any {
			return revokeFacts{Target: cut(request.Serial+request.Workload, maxAdmin), Code: code, Reason: reason}
		})
	}
	return done, nil
}

func (s *Server) revoked(ctx context.Context, request api.RevokeRequest) (*api.RevokeResponse, error) {
	reason, target, err := readRevoke(request)
	if err != nil {
		return nil, err
	}
	choice, stored, err := s.recordRevocation(ctx, target, reason)
	if err != nil {
		return nil, err
	}
	// From here on it holds. What fails is told, and made good by the next try, by time, or by the next start.
	s.expel(ctx, choice.Fresh)
	listed := s.refreshCRLs(ctx)
	s.log.InfoContext(ctx, "certificates revoked", "identity", choice.Identity.String(), "count", len(choice.Fresh), "reason", string(reason))
	if listed != nil {
		s.log.ErrorContext(ctx, "not all is well with the revocation lists", "error", listed)
	}
	if stored != nil {
		return nil, fmt.Errorf("the revocation is recorded, and the join tokens of before are not void yet; repeat it: %w", stored)
	}
	if !s.isListed(choice) {
		return nil, fmt.Errorf("the revocation is recorded, and stands on no list yet; it is tried again every minute: %w", listed)
	}
	return &api.RevokeResponse{
		Revoked: s.revocations.ledger.Rows(choice), CRLNumber: s.revocations.told.Load().lists[0].Number.Int64(),
	}, nil
}

// readRevoke reads a request.
func readRevoke(request api.RevokeRequest) (issue.Reason, ca.Target, error) {
	reason, err := issue.ParseReason(request.Reason)
	if err != nil {
		return "", ca.Target{}, fmt.Errorf("%w: %w", errBadRequest, err)
	}
	if (request.Serial == "") == (request.Workload == "") {
		return "", ca.Target{}, fmt.Errorf("%w: say either serial or workload", errBadRequest)
	}
	target, err := ca.ParseTarget(request.Serial + request.Workload)
	if err != nil {
		return "", ca.Target{}, fmt.Errorf("%w: %w", errBadRequest, err)
	}
	if (target.Serial == "") != (request.Serial == "") {
		return "", ca.Target{}, fmt.Errorf("%w: %q is not what it was given as", errBadRequest, target)
	}
	return reason, target, nil
}

// recordRevocation chooses what is meant and records it, while nobody joins: first the journal, then the database. When
// the database does not take it, stored says so, and the revocation holds all the same.
func (s *Server) recordRevocation(ctx context.Context, target ca.Target, reason issue.Reason) (choice ca.Choice, stored, err error) {
	s.revocations.joining.Lock()
	defer s.revocations.joining.Unlock()
	if choice, err = s.choose(ctx, target); err != nil {
		return ca.Choice{}, nil, err
	}
	tokens, err := s.store.tokensOf(ctx, choice.Identity)
	if err != nil {
		return ca.Choice{}, nil, err
	}
	if len(choice.Fresh) == 0 && (target.Serial != "" || len(choice.Already) > 0 && len(tokens) == 0) {
		return choice, s.followJournal(ctx), nil // it was revoked before; what failed then is made good
	}
	if err := s.revocations.ledger.Revoke(ctx, s.journal, choice.Revocation(reason, byAdmin), s.now()); err != nil {
		return ca.Choice{}, nil, err
	}
	var revoked []ca.Revoked
	for _, short := range choice.Fresh {
		if r, ok := s.revocations.ledger.Revoked(short.Serial); ok {
			revoked = append(revoked, r)
		}
	}
	stored = s.store.revoke(ctx, revoked, tokens)
	durable.Step("server.revoke.stored")
	return choice, stored, nil
}

// choose finds what a target means.
func (s *Server) choose(ctx context.Context, target ca.Target) (ca.Choice, error) {
	candidates, err := s.store.candidates(ctx, target)
	if err != nil {
		return ca.Choice{}, err
	}
	// Who never had a certificate may have a token.
	return s.ca.Choose(s.revocations.ledger, target, slices.Values(candidates), slices.Values(s.registry.identities()), s.now())
}

// isListed tells whether all of these stand on the lists that are told.
func (s *Server) isListed(choice ca.Choice) bool {
	listed, known := make(map[string]bool), make(map[string]bool)
	for _, list := range s.revocations.told.Load().lists {
		known[hex.EncodeToString(list.AuthorityKeyId)] = true
		for _, entry := range list.RevokedCertificateEntries {
			listed[mtls.Serial(&x509.Certificate{SerialNumber: entry.SerialNumber})] = true
		}
	}
	// What a CA has signed that is not there any more, nobody believes.
	missing := func(short ca.RevokedShort) bool {
		return known[short.Issuer] && !listed[short.Serial] && s.now().Before(short.NotAfter)
	}
	return !slices.ContainsFunc(choice.Fresh, missing) &&
		!slices.ContainsFunc(choice.Already, func(r ca.Revoked) bool { return missing(r.RevokedShort) })
}

// expel lets go of those whose certificates were revoked: their peers are not sent to them any more, and the server
// itself does not go on with a certificate of its own that was.
func (s *Server) expel(ctx context.Context, revoked []ca.RevokedShort) {
	serials := make(map[string]bool)
	for _, short := range revoked {
		serials[short.Serial] = true
	}
	s.registry.expel(ctx, serials)
	if serials[mtls.Serial(s.leaf.held.Load().Certificate.Leaf)] {
		if err := s.leaf.renew(ctx); err != nil {
			s.log.ErrorContext(ctx, "the server's own certificate was revoked, and it cannot get another", "error", err)
		}
	}
}

// expel ends the streams of instances that serve one of these certificates, and takes them off their peers' Plans.
func (r *registry) expel(ctx context.Context, serials map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, instances := range r.instances {
		for _, i := range instances {
			if !serials[i.report.Serial] {
				continue
			}
			if i.stream != nil {
				close(i.stream.ended)
				i.stream = nil
			}
			i.lost, i.grace = r.now(), 0
		}
	}
	r.publish(ctx)
	r.broadcast()
}

// wake lets every stream look whether there is news beside its Plan.
func (r *registry) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wakeAll()
}

// giveCRL answers with the lists in PEM.
func (s *Server) giveCRL(w http.ResponseWriter, _ *http.Request) error {
	text := s.crls()
	if text == "" {
		return fmt.Errorf("%w: no revocation list could be made yet", errNotFound)
	}
	w.Header().Set("Content-Type", "application/x-pem-file")
	w.Header().Set("Cache-Control", "no-store")
	_, err := w.Write([]byte(text))
	return err
}

// renewCRLs makes the lists anew, the root's with its key in a file that the server can read.
func (s *Server) renewCRLs(r *http.Request, request api.RenewCRLRequest) (*api.RenewCRLResponse, error) {
	ctx, cancel := s.toTheEnd(r.Context())
	defer cancel()
	if err := s.renewRootCRL(ctx, request.RootKeyFile); err != nil {
		return nil, err
	}
	if err := s.refreshCRLs(ctx); err != nil {
		return nil, err
	}
	return &api.RenewCRLResponse{CRL: s.crls()}, nil
}

// crlsHandler gives the lists, or makes them anew.
func (s *Server) crlsHandler() http.Handler {
	give, renew := s.guard(http.MethodGet, s.giveCRL), endpoint(s, http.MethodPost, maxBody, s.renewCRLs)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			renew.ServeHTTP(w, r)
			return
		}
		give.ServeHTTP(w, r)
	})
}

// renewRootCRL makes the active root's list. It is told with the next refreshCRLs.
func (s *Server) renewRootCRL(ctx context.Context, keyFile string) error {
	s.revocations.making.Lock()
	defer s.revocations.making.Unlock()
	if _, err := s.ca.RenewRootCRL(ctx, s.journal, s.revocations.ledger, s.ca.Hierarchies()[0], keyFile); err != nil {
		return fmt.Errorf("%w: %w", errRootKey, err)
	}
	return nil
}

// crlHandler serves the plain-HTTP listener. What it gives is public and signed, and it takes nothing.
func (s *Server) crlHandler() http.Handler {
	mux := http.NewServeMux()
	serve := func(pattern string, authority func() *x509.Certificate) {
		mux.HandleFunc("GET "+pattern, func(w http.ResponseWriter, _ *http.Request) {
			lists := s.revocations.told.Load()
			if lists == nil || lists.of(authority()) == nil {
				http.Error(w, "there is no list yet", http.StatusServiceUnavailable)
				return
			}
			list := lists.of(authority())
			w.Header().Set("Content-Type", "application/pkix-crl")
			w.Header().Set("Last-Modified", list.ThisUpdate.UTC().Format(http.TimeFormat))
			w.Header().Set("Cache-Control", "public, max-age=300")
			w.Header().Set("X-Content-Type-Options", "nosniff")
			_, _ = w.Write(list.Raw) // the reader has gone: nobody to tell
		})
	}
	serve(api.PathIssuerCRL, s.ca.Issuer)
	serve(api.PathRootCRL, s.ca.Root)
	return mux
}

// crlServer serves crlHandler.
func (s *Server) crlServer() *http.Server {
	return &http.Server{
		Handler: s.crlHandler(), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: 30 * time.Second, MaxHeaderBytes: 4 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// candidates are the certificates that a target means.
func (s *store) candidates(ctx context.Context, target ca.Target) ([]ca.Candidate, error) {
	rows, err := s.db.QueryContext(ctx, "SELECT serial, identity, der FROM certificates")
	if err != nil {
		return nil, s.explain(err)
	}
	defer rows.Close()
	var found []ca.Candidate
	for rows.Next() {
		var serial, text string
		var der []byte
		if err := rows.Scan(&serial, &text, &der); err != nil {
			return nil, s.explain(err)
		}
		identity, err := id.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("%w: certificate %s: %w", ErrDatabase, serial, err)
		}
		if !target.Means(serial, identity) {
			continue
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%w: a stored certificate cannot be read: %w", ErrDatabase, err)
		}
		found = append(found, ca.Candidate{RevokedShort: ca.ShortOf(serial, cert), Identity: identity})
	}
	return found, s.explain(rows.Err())
}

// tokensOf are the join tokens of a workload; nobody else has any.
func (s *store) tokensOf(ctx context.Context, identity id.ID) ([]string, error) {
	if !isWorkload(identity) {
		return nil, nil
	}
	rows, err := s.db.QueryContext(ctx, "SELECT id FROM tokens WHERE workload = ?", identity.Name())
	if err != nil {
		return nil, s.explain(err)
	}
	defer rows.Close()
	var tokens []string
	for rows.Next() {
		var token string
		if err := rows.Scan(&token); err != nil {
			return nil, s.explain(err)
		}
		tokens = append(tokens, token)
	}
	return tokens, s.explain(rows.Err())
}

// revoke notes what was revoked, and forgets the join tokens that went with it. To do so twice is no error.
func (s *store) revoke(ctx context.Context, revoked []ca.Revoked, tokens []string) error {
	if len(revoked) == 0 && len(tokens) == 0 {
		return nil
	}
	return s.write(ctx, func(tx *sql.Tx) error {
		for _, r := range revoked {
			_, err := tx.ExecContext(ctx, "INSERT OR IGNORE INTO revocations VALUES (?, ?, ?, ?, ?)",
				r.Serial, r.Identity.String(), string(r.Reason), micros(r.Time), micros(r.NotAfter))
			if err != nil {
				return err
			}
		}
		for _, token := range tokens {
			if _, err := tx.ExecContext(ctx, "DELETE FROM tokens WHERE id = ?", token); err != nil {
				return err
			}
		}
		return nil
	})
}
