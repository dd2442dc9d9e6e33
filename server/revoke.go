package server

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
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
	"countersign.dev/mtls"
)

// Sentinel errors of revocation.
var (
	errRevoked = errors.New("the certificate was revoked; make a new join token with `countersign token create` and give it to the instance")
	// ErrRootCRL says that a specification wants revocation to be checked and the root's list cannot be made: by it every
	// sidecar would refuse every peer.
	ErrRootCRL = errors.New("the root's revocation list is missing")
)

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
	if choice, err = s.choose(ctx, target, reason); err != nil {
		return ca.Choice{}, nil, err
	}
	tokens, err := s.store.tokensOf(ctx, choice.Identity)
	if err != nil {
		return ca.Choice{}, nil, err
	}
	if choice.IsEmpty() && (target.Serial != "" || len(choice.Already) > 0 && len(tokens) == 0) {
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
func (s *Server) choose(ctx context.Context, target ca.Target, reason issue.Reason) (ca.Choice, error) {
	candidates, err := s.store.candidates(ctx, target)
	if err != nil {
		return ca.Choice{}, err
	}
	// Who never had a certificate may have a token.
	choice, err := s.ca.Choose(s.revocations.ledger, target, slices.Values(candidates), slices.Values(s.registry.identities()), s.now())
	if reason == issue.KeyCompromise {
		return s.revocations.ledger.Compromise(choice, err, target, s.journal.Records(), s.now())
	}
	return choice, err
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
