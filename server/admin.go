package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"countersign.dev/api"
	"countersign.dev/journal"
	"countersign.dev/mesh"
	"countersign.dev/policy"
)

// agentHandler serves the TLS listener.
func (s *Server) agentHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(api.PathEnroll, endpoint(s, http.MethodPost, maxBody, s.enroll))
	mux.Handle(api.PathRenew, endpoint(s, http.MethodPost, maxBody, s.renew))
	mux.Handle(api.PathReport, endpoint(s, http.MethodPost, maxBody, s.report))
	mux.Handle(api.PathWatch, s.guard(http.MethodPost, s.watch))
	mux.Handle("/", s.guard("", s.nothingThere))
	return mux
}

// adminHandler serves the administrator's socket. Whoever can open it is the administrator.
func (s *Server) adminHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(api.PathStatus, endpoint(s, http.MethodGet, 0, s.status))
	mux.Handle(api.PathMesh, endpoint(s, http.MethodGet, 0, s.mesh))
	mux.Handle(api.PathApply, endpoint(s, http.MethodPost, maxAdminBody, s.applyMesh))
	mux.Handle(api.PathConfirmed, s.guard(http.MethodGet, s.confirmed))
	mux.Handle(api.PathTokens, endpoint(s, http.MethodPost, maxBody, s.createToken))
	mux.Handle(api.PathProbe, endpoint(s, http.MethodPost, maxBody, s.probe))
	mux.Handle(api.PathEndpoints, endpoint(s, http.MethodGet, 0, s.endpoints))
	mux.Handle(api.PathCA, endpoint(s, http.MethodGet, 0, s.describeCA))
	mux.Handle(api.PathRotation, s.rotationHandler())
	mux.Handle(api.PathRevoke, endpoint(s, http.MethodPost, maxBody, s.revoke))
	mux.Handle(api.PathCRL, s.crlsHandler())
	mux.Handle(api.PathIssue, endpoint(s, http.MethodPost, maxBody, s.issueByHand))
	mux.Handle(api.PathCertificates, endpoint(s, http.MethodGet, 0, s.certificates))
	mux.Handle(api.PathJournal, s.guard(http.MethodGet, s.exportJournal))
	mux.Handle("/", s.guard("", s.nothingThere))
	return mux
}

func (s *Server) nothingThere(_ http.ResponseWriter, r *http.Request) error {
	return fmt.Errorf("%w: there is nothing at %q", errNotFound, cut(r.URL.Path, maxAdmin))
}

// none is the body of a request that has none.
type none struct{}

func (s *Server) mesh(*http.Request, none) (*api.MeshResponse, error) {
	_, documents, revision := s.registry.running()
	return &api.MeshResponse{Revision: revision, Documents: documents}, nil
}

func (s *Server) endpoints(*http.Request, none) ([]api.Instance, error) {
	return s.registry.endpointsNow(), nil
}

func (s *Server) certificates(r *http.Request, _ none) ([]api.CertificateRecord, error) {
	return s.store.certificates(r.Context())
}

func (s *Server) describeCA(*http.Request, none) (*api.CAResponse, error) {
	return &api.CAResponse{
		TrustDomain: s.ca.TrustDomain(),
		Root:        encodeCertificate(s.ca.Root()), Issuer: encodeCertificate(s.ca.Issuer()),
		Pin: s.ca.Pin(), JournalKey: s.journal.VerifierKey(), Bundle: string(s.ca.BundlePEM()), Roots: shownHierarchies(s.ca.Hierarchies()),
	}, nil
}

// tokenFacts are what the journal records of a join token.
type tokenFacts struct {
	Token    string    `json:"token,omitempty"` // half of its hash
	Workload string    `json:"workload"`
	Expires  time.Time `json:"expires,omitzero"`
	Uses     int       `json:"uses,omitempty"`
	Code     string    `json:"code,omitempty"`
	Reason   string    `json:"reason,omitempty"`
}

// createToken makes a join token.
func (s *Server) createToken(r *http.Request, request api.TokenRequest) (*api.TokenResponse, error) {
	ctx, cancel := s.toTheEnd(r.Context())
	defer cancel()
	response, err := s.newToken(ctx, request)
	if err == nil {
		return response, nil
	}
	return nil, s.recordAdminRefusal(ctx, journal.TokenRefused, err, func(code, reason string) any {
		return tokenFacts{Workload: cut(request.Workload, maxAdmin), Code: code, Reason: reason}
	})
}

func (s *Server) newToken(ctx context.Context, request api.TokenRequest) (*api.TokenResponse, error) {
	ttl, uses := time.Duration(request.TTL), request.Uses
	if ttl == 0 {
		ttl = defaultTokenTTL
	}
	if uses == 0 {
		uses = 1
	}
	if ttl < time.Second || ttl > maxTokenTTL {
		return nil, fmt.Errorf("%w: a token can live from 1s to %s, not %s", errBadRequest, maxTokenTTL, ttl)
	}
	if uses < 1 || uses > maxTokenUses {
		return nil, fmt.Errorf("%w: a token can be used from once to %d times, not %d times", errBadRequest, maxTokenUses, uses)
	}
	spec, _, _ := s.registry.running()
	if _, err := policy.Enrollment(spec, request.Workload); err != nil {
		return nil, err
	}
	s.revocations.joining.RLock() // a token that is recorded before a revocation is void
	defer s.revocations.joining.RUnlock()
	text, t := newToken(request.Workload, uses, s.now().Add(ttl))
	if err := s.record(ctx, journal.TokenCreated, tokenFacts{Token: t.id, Workload: t.workload, Expires: t.expires.UTC(), Uses: uses}); err != nil {
		return nil, err
	}
	if err := s.store.putToken(ctx, t); err != nil {
		return nil, err
	}
	s.log.InfoContext(ctx, "join token created", "workload", t.workload, "token", t.id, "expires", t.expires, "uses", uses)
	return &api.TokenResponse{Token: text, Expires: t.expires.UTC()}, nil
}

// probeFacts are what the journal records of a verifier's certificate, beside its issuance.
type probeFacts struct {
	Identity string `json:"identity,omitempty"`
	TTL      string `json:"ttl"`
	Code     string `json:"code,omitempty"`
	Reason   string `json:"reason,omitempty"`
}

// probe issues a verifier's certificate.
func (s *Server) probe(r *http.Request, request api.ProbeRequest) (*api.Credentials, error) {
	ctx, cancel := s.toTheEnd(r.Context())
	defer cancel()
	credentials, err := s.newProbe(ctx, request)
	if err == nil {
		return credentials, nil
	}
	return nil, s.recordAdminRefusal(ctx, journal.ProbeRefused, err, func(code, reason string) any {
		return probeFacts{TTL: time.Duration(request.TTL).String(), Code: code, Reason: reason}
	})
}

func (s *Server) newProbe(ctx context.Context, request api.ProbeRequest) (*api.Credentials, error) {
	identity, ttl, err := policy.Probe(s.ca.TrustDomain(), time.Duration(request.TTL))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBadRequest, err)
	}
	csr, err := s.acceptCSR(request.CSR, identity, nil)
	if err != nil {
		return nil, err
	}
	if err := s.record(ctx, journal.Probe, probeFacts{Identity: identity.String(), TTL: ttl.String()}); err != nil {
		return nil, err
	}
	return s.issue(ctx, mesh.CertificatePlan{Identity: identity, TTL: mesh.Duration(ttl)}, csr, "", "probe", nil)
}

// issueByHand issues a workload's certificate by the administrator's word.
func (s *Server) issueByHand(r *http.Request, request api.IssueRequest) (*api.Credentials, error) {
	ctx, cancel := s.toTheEnd(r.Context())
	defer cancel()
	s.revocations.joining.RLock() // a revocation of the workload finds it, or comes before it
	defer s.revocations.joining.RUnlock()
	credentials, err := s.issuedByHand(ctx, request)
	if err == nil {
		return credentials, nil
	}
	return nil, s.recordAdminRefusal(ctx, journal.IssueRefused, err, func(code, reason string) any {
		return tokenFacts{Workload: cut(request.Workload, maxAdmin), Code: code, Reason: reason}
	})
}

// recordAdminRefusal puts a refusal of the administrator into the journal and returns the error to
// answer with.
func (s *Server) recordAdminRefusal(ctx context.Context, what journal.Type, cause error, facts func(code, reason string) any) error {
	status, answer := answerOf(cause)
	if status >= http.StatusInternalServerError {
		return cause
	}
	if err := s.record(ctx, what, facts(answer.Code, cut(answer.Message, maxProblem))); err != nil {
		return errors.Join(err, cause)
	}
	return cause
}

// exportJournal sends a copy of the journal.
func (s *Server) exportJournal(w http.ResponseWriter, r *http.Request) error {
	control := http.NewResponseController(w)
	if err := control.SetWriteDeadline(time.Now().Add(maxConfirmWait)); err != nil {
		return fmt.Errorf("set a deadline: %w", err)
	}
	w.Header().Set("Content-Type", "application/x-tar")
	begun := &begunWriter{w: w}
	err := s.journal.Export(begun)
	if err == nil || !begun.begun {
		return err
	}
	// The answer has begun with 200; only its abrupt end can say that it is not whole.
	s.log.ErrorContext(r.Context(), "the journal was not sent whole", "error", err)
	panic(http.ErrAbortHandler)
}

// begunWriter knows whether anything was written.
type begunWriter struct {
	w     http.ResponseWriter
	begun bool
}

func (b *begunWriter) Write(p []byte) (int, error) {
	b.begun = true
	return b.w.Write(p)
}

// record puts an entry into the journal.
func (s *Server) record(ctx context.Context, what journal.Type, facts any) error {
	_, err := s.journal.Append(ctx, journal.Entry{Time: s.now(), Type: what, Data: facts})
	return err
}
