package acmpca

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	"github.com/aws/aws-sdk-go-v2/service/acmpca/types"

	"countersign.dev/aws/acmpca/internal/answer"
	"countersign.dev/aws/session"
	"countersign.dev/durable"
	"countersign.dev/issue"
	"countersign.dev/mtls"
	"countersign.dev/rotate"
)

const (
	// remembers is how long AWS surely knows a request again by its idempotency token: five minutes, less what its clock
	// and ours may differ.
	remembers = 4 * time.Minute
	// firstPoll and lastPoll are the pauses before a certificate is asked for that is not ready.
	firstPoll = 200 * time.Millisecond
	lastPoll  = 3 * time.Second
	// maxToken is what AWS takes as an idempotency token, in characters.
	maxToken = 36
)

// receipt is what is kept with the request of a rotation, in JSON.
type receipt struct {
	// Asked is when AWS was asked, and NotAfter for which end; both in Unix time. A repeated request has the same end.
	Asked    int64 `json:"asked,omitempty"`
	NotAfter int64 `json:"notAfter,omitempty"`
	// Authority is the CA that was asked, and Certificate the ARN that it has given.
	Authority   string `json:"authority,omitempty"`
	Certificate string `json:"certificate,omitempty"`
}

// readReceipt reads a receipt. One that is not ours, or was given by another CA, is none.
func (a *Authority) readReceipt(text string) receipt {
	var r receipt
	if text == "" || json.Unmarshal([]byte(text), &r) != nil || r.Authority != a.config.ARN {
		return receipt{}
	}
	if r.Certificate != "" && !strings.HasPrefix(r.Certificate, a.config.ARN+"/certificate/") {
		return receipt{}
	}
	return r
}

// keep has a receipt stored.
func keep(ctx context.Context, request rotate.Request, r receipt) error {
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("keeping what was asked for: %w", err)
	}
	return request.Keep(ctx, string(text))
}

// Issue implements rotate.Authority: it has the CA certify a request, or gives what it has certified for it before. It waits
// for the certificate until ctx ends; asked again with what it has kept, it goes on with the same one. A request that
// AWS can never answer is [rotate.ErrRequest], an answer that is not what was asked for [rotate.ErrUnfit]; [ErrState] and
// [ErrConfig] are found before anything is paid.
func (a *Authority) Issue(ctx context.Context, request rotate.Request) ([]byte, error) {
	csr, err := a.checkRequest(request)
	if err != nil {
		return nil, err
	}
	authority, err := a.authority(ctx)
	if err != nil {
		return nil, rotate.Free(err)
	}
	r := a.readReceipt(request.Receipt)
	again := r.Certificate != ""
	if !again {
		if r, err = a.ask(ctx, request, r); err != nil {
			return nil, err
		}
	}
	text, err := a.fetch(ctx, r.Certificate, again)
	if err != nil {
		return nil, err
	}
	chain, err := authority.Chain(text, answer.Wanted{
		Key: csr.PublicKey, Identity: request.Workload.Identity, DNSNames: request.DNSNames, NotAfter: time.Unix(r.NotAfter, 0), Now: a.config.Now(),
	})
	if err != nil {
		return nil, fmt.Errorf("%w: the certificate %s is not what was asked for: %w; nothing uses it; see who else may change or use the CA", rotate.ErrUnfit, r.Certificate, err)
	}
	return chain, nil
}

// checkRequest refuses what AWS would refuse, or certify differently, before anything is paid.
func (a *Authority) checkRequest(request rotate.Request) (*x509.CertificateRequest, error) {
	if len(request.ID) == 0 || len(request.ID) > maxToken {
		return nil, fmt.Errorf("the request id %.80q cannot be an idempotency token: that has 1 to %d characters", request.ID, maxToken)
	}
	csr, err := issue.ParseCSR(request.CSR)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", rotate.ErrRequest, err)
	}
	switch csr.PublicKey.(type) {
	case *ecdsa.PublicKey, *rsa.PublicKey:
	default:
		return nil, fmt.Errorf("%w: AWS Private CA certifies RSA and ECDSA keys only; declare another certificates.key for %s", rotate.ErrRequest, request.Workload.Name)
	}
	if a.byAPI() {
		return csr, nil // its names are not looked at
	}
	identity := request.Workload.Identity
	if err := issue.CheckCSRNames(csr, identity, request.DNSNames); err != nil {
		return nil, fmt.Errorf("%w: %w", rotate.ErrRequest, err)
	}
	subject := mtls.Subject(identity)
	if len(csr.URIs) != 1 || csr.Subject.String() != subject.String() || !slices.Equal(csr.DNSNames, request.DNSNames) {
		return nil, fmt.Errorf("%w: it does not carry all names of %s, which AWS Private CA takes from it", rotate.ErrRequest, request.Workload.Name)
	}
	return csr, nil
}

// byAPI tells whether the template takes names from the call.
func (a *Authority) byAPI() bool { return strings.Contains(a.config.Template, "_API") }

// ask asks for a certificate, counted and written down before, and gives its ARN.
func (a *Authority) ask(ctx context.Context, request rotate.Request, before receipt) (receipt, error) {
	ca, err := a.describe(ctx)
	if err == nil {
		err = a.ready(ca)
	}
	if err != nil {
		return receipt{}, rotate.Free(err)
	}
	now := a.config.Now()
	r, count := before, request.ID
	if since := now.Sub(time.Unix(before.Asked, 0)); before.Asked == 0 || since > remembers || since < 0 {
		r = receipt{Authority: a.config.ARN, Asked: now.Unix(), NotAfter: now.Add(request.TTL).Unix()}
		if before.Asked != 0 { // what came of it nobody knows: this may be another certificate
			count += "@" + strconv.FormatInt(r.Asked, 10)
		}
	}
	if err := checkEnd(ca, time.Unix(r.NotAfter, 0), now); err != nil {
		return receipt{}, rotate.Free(err)
	}
	if a.config.Meter != nil {
		if err := a.config.Meter.Spend(ctx, count); err != nil {
			return receipt{}, rotate.Free(err)
		}
	}
	durable.Step("acmpca.spent")
	if err := a.bucket.take(ctx); err != nil {
		return receipt{}, fmt.Errorf("waiting for a turn at AWS Private CA: %w", err)
	}
	if err := keep(ctx, request, r); err != nil {
		return receipt{}, err
	}
	arn, certain, err := a.issue(ctx, request, r, ca)
	if err != nil {
		if certain && r != before { // nothing was issued: the next try is the first one; of a try that this one repeats it says nothing
			if forgot := keep(ctx, request, receipt{Authority: a.config.ARN}); forgot != nil {
				return receipt{}, errors.Join(err, forgot)
			}
			err = rotate.Free(err)
		}
		return receipt{}, err
	}
	durable.Step("acmpca.issued")
	r.Certificate = arn
	return r, keep(ctx, request, r)
}

// checkEnd refuses an end that the CA cannot give.
func checkEnd(ca *types.CertificateAuthority, end, now time.Time) error {
	if own := aws.ToTime(ca.NotAfter); ca.NotAfter != nil && end.After(own) {
		return fmt.Errorf("%w: a certificate to %s is asked for, and the CA itself ends at %s; give the CA a new certificate, or declare a shorter certificates.ttl", ErrState, end.UTC().Format(time.RFC3339), own.UTC().Format(time.RFC3339))
	}
	if ca.UsageMode == types.CertificateAuthorityUsageModeShortLivedCertificate && end.Sub(now) > maxShortLived {
		return fmt.Errorf("%w: a certificate for %s is asked for, and a CA in short-lived mode gives at most %s; declare a shorter certificates.ttl, or use a general-purpose CA", ErrConfig, end.Sub(now).Round(time.Second), maxShortLived)
	}
	return nil
}

// issue calls IssueCertificate. certain tells, of an error, that nothing was issued: AWS has refused each try.
func (a *Authority) issue(ctx context.Context, request rotate.Request, r receipt, ca *types.CertificateAuthority) (arn string, certain bool, err error) {
	algorithm, err := signing(ca)
	if err != nil {
		return "", true, err
	}
	in := &acmpca.IssueCertificateInput{
		CertificateAuthorityArn: aws.String(a.config.ARN),
		Csr:                     request.CSR,
		IdempotencyToken:        aws.String(request.ID),
		SigningAlgorithm:        algorithm,
		TemplateArn:             aws.String(a.config.Template),
		// Whole hours, and the same end when it is repeated, need an absolute one.
		Validity: &types.Validity{Type: types.ValidityPeriodTypeAbsolute, Value: aws.Int64(r.NotAfter)},
	}
	if a.byAPI() {
		in.ApiPassthrough = names(request)
	}
	var watch *tries
	out, err := a.client.IssueCertificate(ctx, in, func(o *acmpca.Options) {
		if v2, ok := o.Retryer.(aws.RetryerV2); ok {
			watch = &tries{RetryerV2: v2}
			o.Retryer = watch
		}
	})
	if err != nil {
		certain = watch != nil && !watch.uncertain.Load() && refusal(err)
		if _, malformed := errors.AsType[*types.MalformedCSRException](err); malformed {
			return "", certain, fmt.Errorf("%w: %w", rotate.ErrRequest, a.explain(err, "IssueCertificate"))
		}
		return "", certain, missing(a.explain(err, "IssueCertificate"), a.config.ARN)
	}
	arn = aws.ToString(out.CertificateArn)
	if !strings.HasPrefix(arn, a.config.ARN+"/certificate/") {
		return "", false, fmt.Errorf("%w: AWS has answered %.300q, which is no certificate of %s", rotate.ErrUnfit, arn, a.config.ARN)
	}
	return arn, false, nil
}

// tries watches the tries of one call: it is known that nothing came of them when AWS has refused each.
type tries struct {
	aws.RetryerV2

	uncertain atomic.Bool
}

// IsErrorRetryable is asked after each try that failed.
func (t *tries) IsErrorRetryable(err error) bool {
	if !refusal(err) {
		t.uncertain.Store(true)
	}
	return t.RetryerV2.IsErrorRetryable(err)
}

// refusal tells whether AWS has answered that it will not do something, which is then not done.
func refusal(err error) bool {
	answered, ok := errors.AsType[interface {
		error
		HTTPStatusCode() int
	}](err)
	return ok && session.Code(err) != "" && answered.HTTPStatusCode() >= 400 && answered.HTTPStatusCode() < 500
}

// names are a workload's as the call carries them.
func names(request rotate.Request) *types.ApiPassthrough {
	subject := mtls.Subject(request.Workload.Identity)
	alternatives := []types.GeneralName{{UniformResourceIdentifier: aws.String(request.Workload.Identity.String())}}
	for _, name := range request.DNSNames {
		alternatives = append(alternatives, types.GeneralName{DnsName: aws.String(name)})
	}
	return &types.ApiPassthrough{
		Subject: &types.ASN1Subject{
			CommonName: aws.String(subject.CommonName), Organization: aws.String(subject.Organization[0]), OrganizationalUnit: aws.String(subject.OrganizationalUnit[0]),
		},
		Extensions: &types.Extensions{SubjectAlternativeNames: alternatives},
	}
}

// signing is the algorithm that a CA signs leaves with: its own, unless its configuration does not say it.
func signing(ca *types.CertificateAuthority) (types.SigningAlgorithm, error) {
	if ca.CertificateAuthorityConfiguration == nil {
		return "", fmt.Errorf("%w: AWS does not say which key it has", ErrConfig)
	}
	c := ca.CertificateAuthorityConfiguration
	return cmp.Or(c.SigningAlgorithm, signingOf(c.KeyAlgorithm)), nil
}

// signingOf is the algorithm for a kind of key.
func signingOf(key types.KeyAlgorithm) types.SigningAlgorithm {
	switch key {
	case types.KeyAlgorithmEcPrime256v1:
		return types.SigningAlgorithmSha256withecdsa
	case types.KeyAlgorithmEcSecp384r1:
		return types.SigningAlgorithmSha384withecdsa
	case types.KeyAlgorithmEcSecp521r1:
		return types.SigningAlgorithmSha512withecdsa
	default:
		return types.SigningAlgorithmSha256withrsa
	}
}

// fetch waits for a certificate, and gives its PEM. again tells that it was asked for by an earlier try.
func (a *Authority) fetch(ctx context.Context, arn string, again bool) ([]byte, error) {
	in := &acmpca.GetCertificateInput{CertificateAuthorityArn: aws.String(a.config.ARN), CertificateArn: aws.String(arn)}
	pause := a.poll
	for {
		out, err := a.client.GetCertificate(ctx, in)
		if err == nil {
			return []byte(aws.ToString(out.Certificate)), nil
		}
		_, failed := errors.AsType[*types.RequestFailedException](err)
		_, gone := errors.AsType[*types.ResourceNotFoundException](err)
		_, waiting := errors.AsType[*types.RequestInProgressException](err)
		err = a.explain(err, "GetCertificate")
		switch {
		case failed, gone && again:
			return nil, fmt.Errorf("%w: of the certificate %s that was asked for: %w", rotate.ErrRequest, arn, err)
		case !waiting && !gone: // one that was just asked for may not be known everywhere yet
			return nil, err
		}
		if stopped := sleep(ctx, pause/2+rand.N(pause)); stopped != nil { //nolint:gosec // jitter is no secret
			return nil, fmt.Errorf("waiting for the certificate %s, which the next rotation goes on with: %w (%w)", arn, stopped, err)
		}
		pause = min(2*pause, lastPoll)
	}
}
