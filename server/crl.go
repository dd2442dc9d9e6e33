package server

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/durable"
	"countersign.dev/issue"
	"countersign.dev/journal"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// maxCredentialsCRL is up to which length the lists come with a certificate, in bytes. Longer ones come by the watch.
const maxCredentialsCRL = 512 << 10

// crlRetry is how long the server waits after it could not make the lists.
const crlRetry = time.Minute

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
	if !due && (retry || !short && !s.ahead(lists)) {
		return
	}
	if err := s.refreshCRLs(ctx); err != nil {
		s.log.ErrorContext(ctx, "not all is well with the revocation lists", "error", err)
	}
}

// ahead tells whether lists were made by a clock that was ahead for a while: they begin in the future, and lack who was
// revoked and would have ended by then. A root's list is no reason, for its key may not be there.
func (s *Server) ahead(lists *told) bool {
	return lists != nil && slices.ContainsFunc(s.ca.Hierarchies(), func(h ca.Hierarchy) bool {
		list := lists.of(h.Issuer)
		return list != nil && list.ThisUpdate.After(s.now())
	})
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
