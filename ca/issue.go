package ca

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"time"

	"countersign.dev/durable"
	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/journal"
	"countersign.dev/mtls"
)

// Recorder writes down what the CA does. Intent is called before anything is signed, Issued before
// anybody gets the certificate; when one of them fails, nobody gets it.
type Recorder interface {
	Intent(ctx context.Context, facts issue.Facts) error
	Issued(ctx context.Context, leafDER []byte) error
}

// Issued is a new certificate.
type Issued struct {
	Certificate *x509.Certificate
	// ChainPEM is the leaf and the issuing CA's certificate.
	ChainPEM []byte
	// Hierarchy is the one that signed.
	Hierarchy Hierarchy
	Facts     issue.Facts
}

// Issue makes a certificate: prepare, record the intent, sign, record the certificate, hand it over,
// in this order. A crash at any point leaves no certificate that the journal does not know: the
// intent holds its serial and the digest of the bytes that were to be signed.
//
// Errors are [ErrNoTrustDomain], those of [issue.Issuer.Prepare], and those of the recorder, wrapped.
// Whether the request may be made at all is for the caller to decide.
func (c *CA) Issue(ctx context.Context, rec Recorder, req issue.Request) (*Issued, error) {
	return c.issueUnder(ctx, rec, c.active(), req)
}

// IssueNext is [CA.Issue] with the hierarchy that is to sign next, for a certificate by which it can be
// seen who accepts that. It is [ErrNotRotating] when there is none.
func (c *CA) IssueNext(ctx context.Context, rec Recorder, req issue.Request) (*Issued, error) {
	for _, h := range c.Hierarchies() {
		if h.State == Next {
			return c.issueUnder(ctx, rec, h, req)
		}
	}
	return nil, fmt.Errorf("issuing for %s: %w", req.ID, ErrNotRotating)
}

func (c *CA) issueUnder(ctx context.Context, rec Recorder, h Hierarchy, req issue.Request) (*Issued, error) {
	issuer, err := c.issuerFor(h)
	if err != nil {
		return nil, fmt.Errorf("issuing for %s: %w", req.ID, err)
	}
	prepared, err := issuer.Prepare(req)
	if err != nil {
		return nil, fmt.Errorf("issuing for %s: %w", req.ID, err)
	}
	durable.Step("ca.issue.prepared")
	if err := rec.Intent(ctx, prepared.Facts()); err != nil {
		return nil, fmt.Errorf("issuing for %s: recording the intent: %w", req.ID, err)
	}
	durable.Step("ca.issue.intent")
	leaf, err := issuer.Issue(prepared)
	if err != nil {
		return nil, fmt.Errorf("issuing for %s: %w", req.ID, err)
	}
	durable.Step("ca.issue.signed")
	if err := rec.Issued(ctx, leaf.Raw); err != nil {
		return nil, fmt.Errorf("issuing for %s: recording the certificate: %w", req.ID, err)
	}
	durable.Step("ca.issue.recorded")
	chain := slices.Concat(encodeCertificate(leaf), encodeCertificate(h.Issuer))
	return &Issued{Certificate: leaf, ChainPEM: chain, Hierarchy: h, Facts: prepared.Facts()}, nil
}

// issuerFor gives the signer of a hierarchy for the trust domain that the CA is bound to.
func (c *CA) issuerFor(h Hierarchy) (*issue.Issuer, error) {
	c.issuerMu.Lock()
	defer c.issuerMu.Unlock()
	if ready := c.signing[h.ID]; ready != nil {
		return ready, nil
	}
	trustDomain := c.TrustDomain()
	if trustDomain == "" {
		return nil, fmt.Errorf("%w; start a server with it, or make it with --trust-domain", ErrNoTrustDomain)
	}
	profile, err := issue.NewProfile(issue.ProfileConfig{TrustDomain: trustDomain, MaxTTL: MaxTTL})
	if err != nil {
		return nil, err
	}
	key := c.keys[h.ID]
	if key == nil {
		return nil, fmt.Errorf("%w: the one of %s has been removed", issue.ErrIssuer, h.Issuer.Subject)
	}
	issuer, err := issue.NewIssuer(h.Issuer, key, profile, c.now)
	if err != nil {
		return nil, err
	}
	c.signing[h.ID] = issuer
	return issuer, nil
}

// Appender is a journal as a [JournalRecorder] needs it.
type Appender interface {
	Append(ctx context.Context, e journal.Entry) (index int64, err error)
}

// JournalRecorder is a [Recorder] that writes into a journal, for one issuance.
type JournalRecorder struct {
	Journal Appender
	// Instance is who gets the certificate, By who asked for it in words ("enrolment", "renewal",
	// "administrator"); both may be empty.
	Instance, By string
	// Request is the id of a request that may be repeated; empty for one that may not.
	Request string
	// Now is the clock, time.Now when it is nil.
	Now func() time.Time
}

// Intent is the data of a [journal.IssueIntent] entry.
type Intent struct {
	issue.Facts
	Instance string `json:"instance,omitempty"`
	By       string `json:"by,omitempty"`
	Request  string `json:"request,omitempty"`
}

// Certificate is the data of a [journal.Issued] entry.
type Certificate struct {
	Serial    string    `json:"serial"`
	Identity  id.ID     `json:"identity"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	Instance  string    `json:"instance,omitempty"`
	Request   string    `json:"request,omitempty"`
	// DER is the certificate, base64.
	DER string `json:"der"`
}

// Intent implements [Recorder].
func (r JournalRecorder) Intent(ctx context.Context, facts issue.Facts) error {
	return r.append(ctx, journal.IssueIntent, Intent{Facts: facts, Instance: r.Instance, By: r.By, Request: r.Request})
}

// Issued implements [Recorder].
func (r JournalRecorder) Issued(ctx context.Context, leafDER []byte) error {
	leaf, err := x509.ParseCertificate(leafDER)
	if err != nil {
		return err
	}
	identity, err := id.FromCertificate(leaf)
	if err != nil {
		return err
	}
	return r.append(ctx, journal.Issued, Certificate{
		Serial:    mtls.Serial(leaf),
		Identity:  identity,
		NotBefore: leaf.NotBefore.UTC(),
		NotAfter:  leaf.NotAfter.UTC(),
		Instance:  r.Instance,
		Request:   r.Request,
		DER:       base64.StdEncoding.EncodeToString(leafDER),
	})
}

func (r JournalRecorder) append(ctx context.Context, what journal.Type, data any) error {
	now := time.Now
	if r.Now != nil {
		now = r.Now
	}
	_, err := r.Journal.Append(ctx, journal.Entry{Time: now(), Type: what, Data: data})
	return err
}

// Certificates reads from a journal's records what was issued, in that order.
func Certificates(records iter.Seq2[journal.Record, error]) ([]Certificate, error) {
	certificates := []Certificate{}
	for record, err := range records {
		if err != nil {
			return nil, fmt.Errorf("reading the journal: %w", err)
		}
		if record.Type != journal.Issued {
			continue
		}
		var c Certificate
		if err := json.Unmarshal(record.Data, &c); err != nil {
			return nil, fmt.Errorf("reading the journal's entry %d: %w", record.Index, err)
		}
		certificates = append(certificates, c)
	}
	return certificates, nil
}
