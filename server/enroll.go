package server

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"countersign.dev/api"
	"countersign.dev/durable"
	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/journal"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/policy"
)

// member is the workload that a request's client certificate proves, with the certificate. It is
// verified at every request: connections outlive certificates.
func (s *Server) member(r *http.Request) (id.ID, *x509.Certificate, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return id.ID{}, nil, errUnauthorized
	}
	chain := r.TLS.PeerCertificates
	workload, err := s.trust.Load().bundle.Verify(chain, x509.ExtKeyUsageClientAuth, s.now())
	if err != nil {
		return id.ID{}, nil, err
	}
	if kind := workload.Kind(); kind != id.Service && kind != id.Gateway {
		return id.ID{}, nil, fmt.Errorf("%s: %w", workload, policy.ErrNoWorkload)
	}
	if err := s.unrevoked(chain[0]); err != nil {
		return id.ID{}, nil, err
	}
	s.peers.known(r.Context())
	return workload, chain[0], nil
}

// joined are the facts of an enrolment or a renewal, as the journal records them.
type joined struct {
	Identity  string `json:"identity,omitempty"`
	Instance  string `json:"instance,omitempty"`
	Token     string `json:"token,omitempty"`     // half of its hash
	PublicKey string `json:"publicKey,omitempty"` // SHA-256
	Serial    string `json:"serial,omitempty"`    // of the certificate that proved it
	Remote    string `json:"remote"`
	Code      string `json:"code,omitempty"`
	Reason    string `json:"reason,omitempty"`
	// Suppressed is how many refusals were not recorded before this one, because there were too many.
	Suppressed int64 `json:"suppressed,omitempty"`
}

// enroll exchanges a join token for a first certificate.
func (s *Server) enroll(r *http.Request, request api.EnrollRequest) (*api.Credentials, error) {
	facts := joined{Instance: request.Instance, Remote: r.RemoteAddr}
	credentials, err := s.enrolled(r.Context(), request, &facts)
	if err != nil {
		return nil, s.recordRefusal(r, journal.EnrollRefused, facts, err)
	}
	return credentials, nil
}

func (s *Server) enrolled(ctx context.Context, request api.EnrollRequest, facts *joined) (*api.Credentials, error) {
	s.revocations.joining.RLock()
	defer s.revocations.joining.RUnlock()
	if err := checkInstance(request.Instance); err != nil {
		facts.Instance = ""
		return nil, err
	}
	if !wellFormedToken(request.Token) {
		return nil, fmt.Errorf("%w (it does not even look like one: a token begins with %s)", errUnknownToken, tokenPrefix)
	}
	t, err := s.store.findToken(ctx, request.Token)
	if err != nil {
		return nil, err
	}
	facts.Token = t.id
	spec, _, _ := s.registry.running()
	plan, err := policy.Enrollment(spec, t.workload)
	if err != nil {
		return nil, err
	}
	facts.Identity = plan.Identity.String()
	csr, err := s.acceptCSR(request.CSR, plan.Identity, plan.DNSNames)
	if err != nil {
		return nil, err
	}
	facts.PublicKey = keyDigest(csr.RawSubjectPublicKeyInfo)
	if der, err := s.store.redeemed(ctx, t.id, facts.PublicKey, s.now()); err != nil || der != nil {
		if err != nil {
			return nil, err
		}
		// Nil: nobody trusts any more what it got then. As after its end, another one costs another use.
		if again, err := s.again(der, plan); err != nil || again != nil {
			return again, err
		}
	}
	// The same is asked again when the token is used up; here it keeps a false entry out of the journal.
	if err := s.store.redeemable(ctx, t.id, facts.PublicKey, s.now()); err != nil {
		return nil, err
	}
	ctx, cancel := s.toTheEnd(ctx)
	defer cancel()
	if err := s.record(ctx, journal.Enroll, facts); err != nil {
		return nil, err
	}
	durable.Step("server.enroll.recorded")
	if err := s.store.redeem(ctx, t.id, facts.PublicKey, s.now()); err != nil {
		return nil, err
	}
	durable.Step("server.enroll.redeemed")
	return s.issue(ctx, plan, csr, request.Instance, "enrolment", &redemption{token: t.id, publicKey: facts.PublicKey})
}

// renew exchanges a workload's certificate for the next one.
func (s *Server) renew(r *http.Request, request api.RenewRequest) (*api.Credentials, error) {
	facts := joined{Instance: request.Instance, Remote: r.RemoteAddr}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		facts.Serial = mtls.Serial(r.TLS.PeerCertificates[0])
	}
	credentials, err := s.renewed(r, request, &facts)
	if err != nil {
		return nil, s.recordRefusal(r, journal.RenewRefused, facts, err)
	}
	return credentials, nil
}

func (s *Server) renewed(r *http.Request, request api.RenewRequest, facts *joined) (*api.Credentials, error) {
	s.revocations.joining.RLock()
	defer s.revocations.joining.RUnlock()
	if err := checkInstance(request.Instance); err != nil {
		facts.Instance = ""
		return nil, err
	}
	workload, _, err := s.member(r)
	if err != nil {
		return nil, err
	}
	facts.Identity = workload.String()
	spec, _, _ := s.registry.running()
	plan, err := policy.Renewal(spec, workload)
	if err != nil {
		return nil, err
	}
	csr, err := s.acceptCSR(request.CSR, plan.Identity, plan.DNSNames)
	if err != nil {
		return nil, err
	}
	facts.PublicKey = keyDigest(csr.RawSubjectPublicKeyInfo)
	ctx, cancel := s.toTheEnd(r.Context())
	defer cancel()
	if err := s.record(ctx, journal.Renew, facts); err != nil {
		return nil, err
	}
	durable.Step("server.renew.recorded")
	return s.issue(ctx, plan, csr, request.Instance, "renewal", nil)
}

// toTheEnd detaches what must not stop half-way from a client that goes away.
func (s *Server) toTheEnd(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
}

// checkCSR reads a certificate request and checks that it asks for nothing that its sender does not
// get.
func checkCSR(text string, identity id.ID, dnsNames []string) (*x509.CertificateRequest, error) {
	csr, err := issue.ParseCSR([]byte(text))
	if err != nil {
		return nil, err
	}
	return csr, issue.CheckCSRNames(csr, identity, dnsNames)
}

// acceptCSR is checkCSR that refuses a key that was compromised, too. The caller holds revocations.joining until the
// certificate is issued.
func (s *Server) acceptCSR(text string, identity id.ID, dnsNames []string) (*x509.CertificateRequest, error) {
	csr, err := checkCSR(text, identity, dnsNames)
	if err != nil {
		return nil, err
	}
	return csr, s.revocations.ledger.CheckKey(csr.RawSubjectPublicKeyInfo)
}

func keyDigest(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// issue makes a workload's certificate: the CA records intent and certificate in the journal before
// it hands the certificate out, then it is stored, then it may be answered.
func (s *Server) issue(ctx context.Context, plan mesh.CertificatePlan, csr *x509.CertificateRequest, instance, by string, answers *redemption) (*api.Credentials, error) {
	request := ""
	if answers != nil {
		request = answers.request
	}
	issued, err := s.ca.Issue(ctx, s.recorder(instance, by, request), issue.Request{
		ID: plan.Identity, DNSNames: plan.DNSNames, PublicKey: csr.PublicKey, TTL: time.Duration(plan.TTL),
	})
	if err != nil {
		return nil, err
	}
	if err := s.store.putCertificate(ctx, issued.Certificate, instance, answers); err != nil {
		return nil, err
	}
	durable.Step("server.issue.stored")
	s.log.InfoContext(ctx, "certificate issued", "identity", plan.Identity.String(), "instance", instance, "by", by,
		"serial", mtls.Serial(issued.Certificate), "notAfter", issued.Certificate.NotAfter)
	return s.credentials(issued.Certificate, plan.Identity, time.Duration(plan.RenewAfter)), nil
}

// again answers a repeated enrolment with the certificate that the first one got; nil when its root has
// been removed meanwhile.
func (s *Server) again(der []byte, plan mesh.CertificatePlan) (*api.Credentials, error) {
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%w: a stored certificate cannot be read: %w", ErrDatabase, err)
	}
	identity, err := id.FromCertificate(leaf)
	if err != nil {
		return nil, fmt.Errorf("%w: a stored certificate cannot be read: %w", ErrDatabase, err)
	}
	if _, known := s.ca.HierarchyOf(leaf); !known {
		return nil, nil //nolint:nilnil // there is none to hand out
	}
	if err := s.unrevoked(leaf); err != nil {
		return nil, err
	}
	return s.credentials(leaf, identity, time.Duration(plan.RenewAfter)), nil
}

// credentials are the answer with a certificate. One that is cut short by the end of its issuer, or
// that is handed out again, is renewed earlier.
func (s *Server) credentials(leaf *x509.Certificate, identity id.ID, renewAfter time.Duration) *api.Credentials {
	now := s.now()
	if left := leaf.NotAfter.Sub(now); renewAfter <= 0 || renewAfter >= left {
		renewAfter = left * 5 / 7
	}
	crl := s.crls()
	if len(crl) > maxCredentialsCRL {
		crl = ""
	}
	return &api.Credentials{
		Identity: identity, Chain: string(s.ca.ChainPEM(leaf)), Bundle: s.trust.Load().pem, CRL: crl,
		RenewAfter: mesh.Duration(renewAfter), ServerTime: now.UTC(),
	}
}

// recordRefusal puts a refusal into the journal and returns the error to answer with. Failures of
// our own are not refusals. Somebody who is refused all the time is only told to wait.
func (s *Server) recordRefusal(r *http.Request, what journal.Type, facts joined, cause error) error {
	status, answer := answerOf(cause)
	if status >= http.StatusInternalServerError {
		return cause
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return fmt.Errorf("read the peer's address: %w", err)
	}
	suppressed, ok := s.refused.allow(peer.Addr(), s.now())
	if !ok {
		return errRateLimited
	}
	facts.Code, facts.Reason, facts.Suppressed = answer.Code, cut(answer.Message, maxProblem), suppressed
	ctx, cancel := s.toTheEnd(r.Context())
	defer cancel()
	if err := s.record(ctx, what, facts); err != nil {
		return errors.Join(err, cause)
	}
	return cause
}
