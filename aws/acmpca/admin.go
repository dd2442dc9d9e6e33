package acmpca

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	"github.com/aws/aws-sdk-go-v2/service/acmpca/types"

	"countersign.dev/aws/acmpca/internal/answer"
	"countersign.dev/aws/session"
	"countersign.dev/mesh"
)

// tagCreate is the tag of a CA by which the request that has made it is known again, for longer than AWS's five minutes.
const tagCreate = "countersign:create"

// Types of a CA.
const (
	TypeRoot        = "root"
	TypeSubordinate = "subordinate"
)

// KeyAlgorithms are the kinds of key of a CA, by AWS's names; the first is what is used when nothing is said.
func KeyAlgorithms() []string {
	return []string{"EC_secp384r1", "EC_prime256v1", "EC_secp521r1", "RSA_2048", "RSA_3072", "RSA_4096"}
}

// Subject names a CA. Empty parts are left out.
type Subject struct {
	CommonName, Organization, OrganizationalUnit, Country, State, Locality string
}

// String is the subject as RFC 4514 writes one, roughly: it is for people and for comparing.
func (s Subject) String() string {
	var parts []string
	for _, part := range []struct{ key, value string }{
		{"CN", s.CommonName}, {"OU", s.OrganizationalUnit}, {"O", s.Organization}, {"L", s.Locality}, {"ST", s.State}, {"C", s.Country},
	} {
		if part.value != "" {
			parts = append(parts, part.key+"="+part.value)
		}
	}
	return strings.Join(parts, ",")
}

// NewCA says which CA is made.
type NewCA struct {
	Type         string // [TypeRoot] or [TypeSubordinate]
	Mode         string // [mesh.ModeShortLived] or [mesh.ModeGeneralPurpose]
	KeyAlgorithm string // one of [KeyAlgorithms]
	Subject      Subject
	// Token names this CA: the same request with the same token makes no second one. Empty is one that follows from the rest.
	Token string
	// Parent is part of the token that follows from the rest; see [Admin.Sign].
	Parent string
}

// State is what there is of a CA.
type State struct {
	ARN      string    `json:"arn"`
	Type     string    `json:"type"`
	Mode     string    `json:"mode"`
	Status   string    `json:"status"`
	Subject  string    `json:"subject"`
	Key      string    `json:"key"`
	NotAfter time.Time `json:"notAfter,omitzero"`
}

// Active tells whether it issues.
func (s State) Active() bool { return s.Status == string(types.CertificateAuthorityStatusActive) }

// Pending tells whether it waits for its certificate.
func (s State) Pending() bool {
	return s.Status == string(types.CertificateAuthorityStatusPendingCertificate)
}

// Admin makes CAs, and gives them their certificates. It is safe for concurrent use.
type Admin struct {
	client   *acmpca.Client
	endpoint string
	now      func() time.Time
	poll     time.Duration
}

// AdminConfig says where CAs are made. An empty Region is that of the environment.
type AdminConfig struct {
	Region, Endpoint string
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// OpenAdmin makes an Admin. It asks nobody yet.
func OpenAdmin(ctx context.Context, c AdminConfig) (*Admin, error) {
	loaded, err := session.Load(ctx, session.Config{Region: c.Region, Endpoint: c.Endpoint})
	if err != nil {
		return nil, err
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Admin{client: acmpca.NewFromConfig(loaded), endpoint: c.Endpoint, now: c.Now, poll: firstPoll}, nil
}

// RegionOf is the region of a CA's ARN; [ErrConfig] when it is none.
func RegionOf(arn string) (string, error) {
	parts := arnForm.FindStringSubmatch(arn)
	if parts == nil {
		return "", fmt.Errorf("%w: %.200q is not the ARN of a private CA; it looks like arn:aws:acm-pca:REGION:ACCOUNT:certificate-authority/UUID", ErrConfig, arn)
	}
	return parts[2], nil
}

// token is the request's, of at most 36 characters.
func (n NewCA) token() string {
	if n.Token != "" {
		return n.Token
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{n.Type, n.Mode, n.KeyAlgorithm, n.Subject.String(), n.Parent}, "\x00")))
	return "countersign-" + hex.EncodeToString(sum[:12])
}

// Find looks for the CA that a request has made before, in this account and region; nil when there is none. It may have any
// state but DELETED and FAILED.
func (a *Admin) Find(ctx context.Context, n NewCA) (*State, error) {
	pages := acmpca.NewListCertificateAuthoritiesPaginator(a.client, &acmpca.ListCertificateAuthoritiesInput{ResourceOwner: types.ResourceOwnerSelf})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, session.Explain(err, "acm-pca:ListCertificateAuthorities", "*")
		}
		for i := range page.CertificateAuthorities {
			ca := &page.CertificateAuthorities[i]
			if ca.Status == types.CertificateAuthorityStatusDeleted || ca.Status == types.CertificateAuthorityStatusFailed {
				continue
			}
			ours, err := a.made(ctx, aws.ToString(ca.Arn), n.token())
			if err != nil {
				return nil, err
			}
			if ours {
				state := stateOf(ca)
				return &state, nil
			}
		}
	}
	return nil, nil
}

// made tells whether a CA has the tag of a request.
func (a *Admin) made(ctx context.Context, arn, token string) (bool, error) {
	pages := acmpca.NewListTagsPaginator(a.client, &acmpca.ListTagsInput{CertificateAuthorityArn: aws.String(arn)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return false, session.Explain(err, "acm-pca:ListTags", arn)
		}
		for _, tag := range page.Tags {
			if aws.ToString(tag.Key) == tagCreate && aws.ToString(tag.Value) == token {
				return true, nil
			}
		}
	}
	return false, nil
}

// Create makes a CA, which waits for its certificate then. It is billed from now on until it is deleted. It makes no second
// one for a request that [Admin.Find] finds: it is the caller's to look first.
func (a *Admin) Create(ctx context.Context, n NewCA) (State, error) {
	config := &types.CertificateAuthorityConfiguration{
		KeyAlgorithm: types.KeyAlgorithm(n.KeyAlgorithm), SigningAlgorithm: signingOf(types.KeyAlgorithm(n.KeyAlgorithm)),
		Subject: &types.ASN1Subject{
			CommonName: text(n.Subject.CommonName), Organization: text(n.Subject.Organization), OrganizationalUnit: text(n.Subject.OrganizationalUnit),
			Country: text(n.Subject.Country), State: text(n.Subject.State), Locality: text(n.Subject.Locality),
		},
	}
	in := &acmpca.CreateCertificateAuthorityInput{
		CertificateAuthorityConfiguration: config,
		CertificateAuthorityType:          types.CertificateAuthorityTypeRoot,
		UsageMode:                         types.CertificateAuthorityUsageModeGeneralPurpose,
		IdempotencyToken:                  aws.String(n.token()),
		Tags:                              []types.Tag{{Key: aws.String(tagCreate), Value: aws.String(n.token())}},
	}
	if n.Type == TypeSubordinate {
		in.CertificateAuthorityType = types.CertificateAuthorityTypeSubordinate
	}
	if n.Mode == mesh.ModeShortLived {
		in.UsageMode = types.CertificateAuthorityUsageModeShortLivedCertificate
	}
	out, err := a.client.CreateCertificateAuthority(ctx, in)
	if err != nil {
		return State{}, session.Explain(err, "acm-pca:CreateCertificateAuthority", "*")
	}
	return a.Describe(ctx, aws.ToString(out.CertificateAuthorityArn))
}

func text(s string) *string {
	if s == "" {
		return nil
	}
	return aws.String(s)
}

// Describe gives the state of a CA. One that is still being made is waited for.
func (a *Admin) Describe(ctx context.Context, arn string) (State, error) {
	for pause := a.poll; ; pause = min(2*pause, lastPoll) {
		out, err := a.client.DescribeCertificateAuthority(ctx, &acmpca.DescribeCertificateAuthorityInput{CertificateAuthorityArn: aws.String(arn)})
		if err != nil {
			return State{}, missing(session.Explain(err, "acm-pca:DescribeCertificateAuthority", arn), arn)
		}
		if out.CertificateAuthority == nil {
			return State{}, fmt.Errorf("%w: AWS says nothing about %s", ErrConfig, arn)
		}
		if out.CertificateAuthority.Status != types.CertificateAuthorityStatusCreating {
			return stateOf(out.CertificateAuthority), nil
		}
		if err := sleep(ctx, pause); err != nil {
			return State{}, fmt.Errorf("waiting until %s is made: %w; repeat the command, which goes on with it", arn, err)
		}
	}
}

// stateOf says what AWS says of a CA.
func stateOf(ca *types.CertificateAuthority) State {
	s := State{
		ARN: aws.ToString(ca.Arn), Type: TypeRoot, Mode: mesh.ModeGeneralPurpose, Status: string(ca.Status), NotAfter: aws.ToTime(ca.NotAfter).UTC(),
	}
	if ca.Type == types.CertificateAuthorityTypeSubordinate {
		s.Type = TypeSubordinate
	}
	if ca.UsageMode == types.CertificateAuthorityUsageModeShortLivedCertificate {
		s.Mode = mesh.ModeShortLived
	}
	if c := ca.CertificateAuthorityConfiguration; c != nil {
		s.Key = string(c.KeyAlgorithm)
		if name := c.Subject; name != nil {
			s.Subject = Subject{
				CommonName: aws.ToString(name.CommonName), Organization: aws.ToString(name.Organization), OrganizationalUnit: aws.ToString(name.OrganizationalUnit),
				Country: aws.ToString(name.Country), State: aws.ToString(name.State), Locality: aws.ToString(name.Locality),
			}.String()
		}
	}
	return s
}

// CSR is the request of a CA that waits for its certificate, PEM.
func (a *Admin) CSR(ctx context.Context, arn string) ([]byte, error) {
	out, err := a.client.GetCertificateAuthorityCsr(ctx, &acmpca.GetCertificateAuthorityCsrInput{CertificateAuthorityArn: aws.String(arn)})
	if err != nil {
		return nil, missing(session.Explain(err, "acm-pca:GetCertificateAuthorityCsr", arn), arn)
	}
	return []byte(aws.ToString(out.Csr)), nil
}

// CanSign refuses a parent that cannot sign a CA that is to live for a time, before anything is made.
func (a *Admin) CanSign(ctx context.Context, parent string, life time.Duration) error {
	p, err := a.of(ctx, parent)
	if err != nil {
		return err
	}
	state, err := p.Describe(ctx, parent)
	if err != nil {
		return err
	}
	end := a.now().Add(life)
	switch {
	case !state.Active():
		return fmt.Errorf("%w: the parent %s is in the state %s, and has to be ACTIVE", ErrState, parent, state.Status)
	case state.Mode == mesh.ModeShortLived && life > maxShortLived:
		return fmt.Errorf("%w: the parent %s is in short-lived mode and signs nothing for longer than %s; name a general-purpose CA", ErrConfig, parent, maxShortLived)
	case end.After(state.NotAfter):
		return fmt.Errorf("%w: the parent %s ends at %s, and the new CA would live to %s; give a shorter --validity", ErrConfig, parent, state.NotAfter.Format(time.RFC3339), end.UTC().Format(time.RFC3339))
	}
	return nil
}

// of is an Admin for the region of a CA.
func (a *Admin) of(ctx context.Context, arn string) (*Admin, error) {
	region, err := RegionOf(arn)
	if err != nil || a.client.Options().Region == region {
		return a, err
	}
	other, err := OpenAdmin(ctx, AdminConfig{Region: region, Endpoint: a.endpoint, Now: a.now})
	if err != nil {
		return nil, err
	}
	other.poll = a.poll
	return other, nil
}

// Sign gives a CA that waits for it a certificate for a time: signed by the CA parent, or by itself when that is empty. It may be
// repeated after it was cut off at any point.
func (a *Admin) Sign(ctx context.Context, arn, parent string, life time.Duration) error {
	csr, err := a.CSR(ctx, arn)
	if err != nil {
		return err
	}
	signer, template := arn, "RootCACertificate/V1"
	if parent != "" {
		signer, template = parent, "SubordinateCACertificate_PathLen0/V1"
	}
	by, err := a.of(ctx, signer)
	if err != nil {
		return err
	}
	describe, err := by.client.DescribeCertificateAuthority(ctx, &acmpca.DescribeCertificateAuthorityInput{CertificateAuthorityArn: aws.String(signer)})
	if err != nil {
		return missing(session.Explain(err, "acm-pca:DescribeCertificateAuthority", signer), signer)
	}
	algorithm, err := signing(describe.CertificateAuthority)
	if err != nil {
		return err
	}
	partition, _, _ := strings.Cut(strings.TrimPrefix(signer, "arn:"), ":")
	out, err := by.client.IssueCertificate(ctx, &acmpca.IssueCertificateInput{
		CertificateAuthorityArn: aws.String(signer), Csr: csr, SigningAlgorithm: algorithm,
		TemplateArn:      aws.String("arn:" + partition + ":acm-pca:::template/" + template),
		IdempotencyToken: aws.String("ca-" + strings.ReplaceAll(idOf(arn), "-", "")),
		Validity:         &types.Validity{Type: types.ValidityPeriodTypeAbsolute, Value: aws.Int64(a.now().Add(life).Unix())},
	})
	if err != nil {
		return session.Explain(err, "acm-pca:IssueCertificate", signer)
	}
	certificate, chain, err := by.issued(ctx, signer, aws.ToString(out.CertificateArn))
	if err != nil {
		return err
	}
	if parent == "" {
		chain = nil
	}
	return a.Import(ctx, arn, certificate, chain)
}

// issued waits for a certificate and its chain.
func (a *Admin) issued(ctx context.Context, authority, arn string) (certificate, chain []byte, err error) {
	in := &acmpca.GetCertificateInput{CertificateAuthorityArn: aws.String(authority), CertificateArn: aws.String(arn)}
	for pause := a.poll; ; pause = min(2*pause, lastPoll) {
		out, err := a.client.GetCertificate(ctx, in)
		if err == nil {
			return []byte(aws.ToString(out.Certificate)), []byte(aws.ToString(out.CertificateChain)), nil
		}
		if _, waiting := errors.AsType[*types.RequestInProgressException](err); !waiting {
			return nil, nil, session.Explain(err, "acm-pca:GetCertificate", authority)
		}
		if err := sleep(ctx, pause); err != nil {
			return nil, nil, fmt.Errorf("waiting for the CA's certificate %s: %w; repeat the command, which goes on with it", arn, err)
		}
	}
}

// Import gives a CA its certificate, and the chain above it up to the root (empty for a root), PEM. Both are checked first:
// the certificate has to be for the CA's own request, be a CA's, be valid now, and lead to the root. Importing what it has is no
// error.
func (a *Admin) Import(ctx context.Context, arn string, certificate, chain []byte) error {
	csr, err := a.CSR(ctx, arn)
	if err != nil {
		return err
	}
	if err := checkImport(csr, certificate, chain, a.now()); err != nil {
		return fmt.Errorf("%w: %s: %w; nothing was imported", ErrConfig, arn, err)
	}
	in := &acmpca.ImportCertificateAuthorityCertificateInput{CertificateAuthorityArn: aws.String(arn), Certificate: certificate}
	if len(chain) > 0 {
		in.CertificateChain = chain
	}
	if _, err := a.client.ImportCertificateAuthorityCertificate(ctx, in); err != nil {
		return session.Explain(err, "acm-pca:ImportCertificateAuthorityCertificate", arn)
	}
	return nil
}

// checkImport refuses what AWS would refuse, with what is wrong, and what it would take although nobody could use it.
func checkImport(csr, certificate, chain []byte, now time.Time) error {
	block, _ := pem.Decode(csr)
	if block == nil {
		return errors.New("AWS has answered no certificate request")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return fmt.Errorf("the certificate request that AWS has answered: %w", err)
	}
	authority, err := answer.ParseAuthority(certificate, chain)
	if err != nil {
		return err
	}
	return authority.BelongsTo(request, now)
}
