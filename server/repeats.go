package server

import (
	"context"
	"crypto/x509"
	"fmt"
	"regexp"
	"sync"

	"countersign.dev/api"
	"countersign.dev/mesh"
	"countersign.dev/policy"
)

// requestID is what the id of a request that may be repeated looks like.
var requestID = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// repeats lets one request that may be repeated run at a time: a client that gave up waiting comes again
// while the first is still at work, and must not get a second certificate.
type repeats struct {
	mu sync.Mutex
	// unstored is set when a certificate may be in the journal and not in the database.
	unstored bool
}

// issuedByHand issues by the administrator's word.
func (s *Server) issuedByHand(ctx context.Context, request api.IssueRequest) (*api.Credentials, error) {
	spec, _, _ := s.registry.running()
	plan, err := policy.Enrollment(spec, request.Workload)
	if err != nil {
		return nil, err
	}
	csr, err := s.acceptCSR(request.CSR, plan.Identity, plan.DNSNames)
	if err != nil {
		return nil, err
	}
	if request.Request == "" {
		return s.issue(ctx, plan, csr, "", "administrator", nil)
	}
	if !requestID.MatchString(request.Request) {
		return nil, fmt.Errorf("%w: the request id %.80q; write 1 to 64 letters, digits and _.-", errBadRequest, request.Request)
	}
	return s.issueOnce(ctx, plan, csr, request.Request)
}

// issueOnce answers a request for the first time with a new certificate, and from then on with that one.
// What the database has forgotten with the certificate, long after its end, is new again.
func (s *Server) issueOnce(ctx context.Context, plan mesh.CertificatePlan, csr *x509.CertificateRequest, request string) (*api.Credentials, error) {
	s.repeats.mu.Lock()
	defer s.repeats.mu.Unlock()
	if s.repeats.unstored {
		if err := s.reconcile(ctx); err != nil {
			return nil, err
		}
		s.repeats.unstored = false
	}
	key := keyDigest(csr.RawSubjectPublicKeyInfo)
	der, before, err := s.store.requested(ctx, plan.Identity.String(), request)
	switch {
	case err != nil:
		return nil, err
	case der != nil && before != key:
		return nil, errOtherKey
	case der != nil:
		// Nil: nobody trusts any more what was issued then. The request gets another certificate, once.
		if again, err := s.again(der, plan); err != nil || again != nil {
			return again, err
		}
	}
	credentials, err := s.issue(ctx, plan, csr, "", "administrator", &redemption{request: request, publicKey: key})
	s.repeats.unstored = err != nil
	return credentials, err
}
