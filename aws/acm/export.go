package acm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/acm"
	"github.com/aws/aws-sdk-go-v2/service/acm/types"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"countersign.dev/aws/session"
	"countersign.dev/credential"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/rotate"
	"countersign.dev/secret"
)

// algorithms are the kinds of keys that ACM makes.
var algorithms = map[mesh.KeyType]types.KeyAlgorithm{
	mesh.RSA2048: types.KeyAlgorithmRsa2048, mesh.ECDSAP256: types.KeyAlgorithmEcPrime256v1, mesh.ECDSAP384: types.KeyAlgorithmEcSecp384r1,
}

// Export implements [rotate.Exporter]. A certificate is requested when ACM has none for the workload's name, of its names,
// kind of key and CA; it is renewed when it is the one that request.Replaces names, and neither is done when ACM has
// another one already: it has renewed by itself then. The receipt is the certificate's ARN. What is exported is checked
// before it is believed; [rotate.ErrUnfit] says that it will not do.
func (a *Authority) Export(ctx context.Context, request rotate.Request) (*secret.Material, error) {
	w, err := a.want(request)
	if err != nil {
		return nil, err
	}
	detail, err := a.obtain(ctx, w)
	if err != nil {
		return nil, err
	}
	serial, err := serialOf(detail)
	if err != nil {
		return nil, err
	}
	if serial == request.Replaces {
		if detail, err = a.renew(ctx, detail, w.id); err != nil {
			return nil, err
		}
	}
	// Once more, which counts nothing twice: ACM may have renewed it without us, and bills that as it bills ours.
	if err := a.spend(ctx, w.id); err != nil {
		return nil, err
	}
	return a.export(ctx, str(detail.CertificateArn), w)
}

// want is what a request asks of ACM.
type want struct {
	request   rotate.Request
	names     []string // sorted; the workload's DNS name first in request.DNSNames
	algorithm types.KeyAlgorithm
	id        string // for the meter
}

func (a *Authority) want(request rotate.Request) (*want, error) {
	name, err := a.name(request.Workload.Name)
	if err != nil {
		return nil, err
	}
	if len(request.DNSNames) == 0 || request.DNSNames[0] != name {
		return nil, fmt.Errorf("%w: %s is to have a certificate for %.300q, and its name at this authority is %s", ErrUnknown, request.Workload.Name, request.DNSNames, name)
	}
	key := request.Key
	if key == "" {
		key = mesh.ECDSAP256
	}
	algorithm, ok := algorithms[key]
	if !ok {
		return nil, fmt.Errorf("%w: ACM makes no keys of the kind %s; write ecdsa-p256, ecdsa-p384 or rsa-2048", rotate.ErrRequest, key)
	}
	w := &want{request: request, names: slices.Sorted(slices.Values(request.DNSNames)), algorithm: algorithm, id: "acm-first-" + request.ID}
	if request.Replaces != "" {
		w.id = successor(request.Replaces)
	}
	return w, nil
}

// successor is what the meter counts the certificate as that comes after the one of a serial, whoever has it made.
func successor(serial string) string {
	sum := sha256.Sum256([]byte(serial))
	return "acm-after-" + hex.EncodeToString(sum[:16])
}

func (a *Authority) spend(ctx context.Context, id string) error {
	if a.c.Meter == nil {
		return nil
	}
	return a.c.Meter.Spend(ctx, id)
}

// fits tells whether a certificate is what is wanted, so far as ACM tells.
func (w *want) fits(d *types.CertificateDetail) bool {
	names := slices.Compact(slices.Sorted(slices.Values(append([]string{str(d.DomainName)}, d.SubjectAlternativeNames...))))
	// Asked for as EC_prime256v1, it is described as EC-prime256v1.
	algorithm := strings.ReplaceAll(string(d.KeyAlgorithm), "-", "_")
	return str(d.DomainName) == w.request.DNSNames[0] && slices.Equal(names, slices.Compact(slices.Clone(w.names))) && algorithm == string(w.algorithm)
}

// obtain finds the certificate, or requests it, and waits until it is issued.
func (a *Authority) obtain(ctx context.Context, w *want) (*types.CertificateDetail, error) {
	detail, err := a.known(ctx, w)
	if err != nil {
		return nil, rotate.Free(err)
	}
	if detail == nil {
		arn, err := a.requestNew(ctx, w)
		if err != nil {
			return nil, err
		}
		if detail, err = a.describe(ctx, arn); err != nil && !isGone(err) { // ACM may need a moment to know it
			return nil, err
		}
		if detail == nil {
			detail = &types.CertificateDetail{CertificateArn: &arn, Status: types.CertificateStatusPendingValidation}
		}
	}
	arn := str(detail.CertificateArn)
	for pause := a.c.poll; ; pause = min(2*pause, lastPoll) {
		switch detail.Status {
		case types.CertificateStatusIssued:
			return detail, nil
		case types.CertificateStatusPendingValidation:
		default:
			return nil, failed("issuing", arn, detail.Status, detail.FailureReason)
		}
		if err := wait(ctx, pause, "ACM has not issued "+arn+" yet"); err != nil {
			return nil, err
		}
		next, err := a.describe(ctx, arn)
		switch {
		case err == nil:
			detail = next
		case !isGone(err):
			return nil, err
		}
	}
}

// known finds a certificate by the receipt of an earlier try, or by its name; nil when none will do.
func (a *Authority) known(ctx context.Context, w *want) (*types.CertificateDetail, error) {
	if arn := w.request.Receipt; arn != "" {
		if !certForm.MatchString(arn) {
			return nil, fmt.Errorf("%w: what was kept of an earlier try is no ARN of a certificate", rotate.ErrRequest)
		}
		detail, err := a.describe(ctx, arn)
		pending := err == nil && (detail.Status == types.CertificateStatusIssued || detail.Status == types.CertificateStatusPendingValidation)
		if err != nil && !isGone(err) {
			return nil, err
		}
		if pending && a.ours(detail) && w.fits(detail) {
			return detail, nil
		}
	}
	detail, err := a.newest(ctx, w.request.DNSNames[0], types.CertificateStatusIssued, types.CertificateStatusPendingValidation)
	if err != nil || detail == nil || !w.fits(detail) {
		return nil, err
	}
	return detail, nil
}

// requestNew requests a certificate.
func (a *Authority) requestNew(ctx context.Context, w *want) (arn string, err error) {
	if err := a.checkCA(ctx); err != nil {
		return "", rotate.Free(err)
	}
	if err := a.spend(ctx, w.id); err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(w.request.ID))
	token := hex.EncodeToString(sum[:16]) // 32 characters, which is what fits
	product := "countersign"
	tag, of := "countersign:workload", w.request.Workload.Identity.String()
	in := &acm.RequestCertificateInput{
		DomainName: &w.request.DNSNames[0], CertificateAuthorityArn: &a.c.Authority, KeyAlgorithm: w.algorithm, IdempotencyToken: &token,
		Tags: []types.Tag{{Key: &tag, Value: &of}, {Key: strPtr("countersign:by"), Value: &product}},
	}
	if len(w.request.DNSNames) > 1 {
		in.SubjectAlternativeNames = w.request.DNSNames[1:]
	}
	answer, err := a.acm.RequestCertificate(ctx, in)
	if err != nil {
		return "", fmt.Errorf("requesting a certificate for %s: %w", w.request.DNSNames[0], session.Explain(err, "acm:RequestCertificate", a.resource()))
	}
	arn = str(answer.CertificateArn)
	if !certForm.MatchString(arn) {
		return "", fmt.Errorf("requesting a certificate for %s: ACM answers %.200q, which is no ARN of one", w.request.DNSNames[0], arn)
	}
	if err := w.request.Keep(ctx, arn); err != nil {
		return "", err
	}
	return arn, nil
}

func strPtr(s string) *string { return &s }

// renew has a certificate renewed, unless that is being done, and waits for the new one.
func (a *Authority) renew(ctx context.Context, old *types.CertificateDetail, id string) (*types.CertificateDetail, error) {
	arn := str(old.CertificateArn)
	before, err := serialOf(old)
	if err != nil {
		return nil, err
	}
	if err := a.checkCA(ctx); err != nil {
		return nil, rotate.Free(err)
	}
	if err := a.spend(ctx, id); err != nil {
		return nil, err
	}
	seen := renewing(old)
	if !seen {
		_, err := a.acm.RenewCertificate(ctx, &acm.RenewCertificateInput{CertificateArn: &arn})
		var busy *types.RequestInProgressException
		if err != nil && !errors.As(err, &busy) {
			return nil, fmt.Errorf("renewing the certificate of %s: %w", str(old.DomainName), session.Explain(err, "acm:RenewCertificate", arn))
		}
	}
	for pause := a.c.poll; ; pause = min(2*pause, lastPoll) {
		detail, err := a.describe(ctx, arn)
		if err != nil {
			return nil, err
		}
		serial, err := serialOf(detail)
		if err != nil {
			return nil, err
		}
		if serial != before && detail.Status == types.CertificateStatusIssued {
			return detail, nil
		}
		seen = seen || renewing(detail)
		// What failed the last time is no answer to this time.
		if s := detail.RenewalSummary; s != nil && s.RenewalStatus == types.RenewalStatusFailed && (seen && !renewing(detail) || !updated(old).Equal(updated(detail))) {
			return nil, failed("renewing", arn, detail.Status, s.RenewalStatusReason)
		}
		if detail.Status != types.CertificateStatusIssued {
			return nil, failed("renewing", arn, detail.Status, detail.FailureReason)
		}
		if err := wait(ctx, pause, "ACM has not renewed "+arn+" yet"); err != nil {
			return nil, err
		}
	}
}

// renewing tells whether ACM is at it.
func renewing(d *types.CertificateDetail) bool {
	return d.RenewalSummary != nil && d.RenewalSummary.RenewalStatus == types.RenewalStatusPendingAutoRenewal
}

func updated(d *types.CertificateDetail) time.Time {
	if d.RenewalSummary == nil {
		return time.Time{}
	}
	return at(d.RenewalSummary.UpdatedAt)
}

// wait waits for a pause of random length. The error says what was waited for, and is the context's.
func wait(ctx context.Context, pause time.Duration, what string) error {
	const half = 2
	timer := time.NewTimer(pause/half + rand.N(pause/half+1)) //nolint:gosec // it spreads load, and is no secret
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s; the next rotation goes on waiting for it: %w", what, context.Cause(ctx))
	}
}

// reasons are what helps, by why ACM says that it has failed.
var reasons = map[types.FailureReason]string{
	types.FailureReasonPcaAccessDenied:     "let ACM issue from the CA: aws acm-pca create-permission --principal acm.amazonaws.com --actions IssueCertificate GetCertificate ListPermissions, or for a CA of another account share it by RAM; a first certificate is issued in the name of who requests it, whose policy has to allow acm-pca:IssueCertificate and acm-pca:GetCertificate on the CA",
	types.FailureReasonPcaInvalidDuration:  "the CA's own certificate ends before ACM's would, in 13 months, or the CA is in short-lived mode: renew the CA's certificate, or use an authority of the type acmpca",
	types.FailureReasonPcaInvalidState:     "see in what state the CA is (aws acm-pca describe-certificate-authority)",
	types.FailureReasonPcaLimitExceeded:    "the CA has issued as much as it may: ask AWS for a higher quota, or wait",
	types.FailureReasonPcaResourceNotFound: "the CA was deleted: name another one",
	types.FailureReasonPcaRequestFailed:    "try again later",
	types.FailureReasonSlrNotFound:         "ACM needs its service-linked role in this account: aws iam create-service-linked-role --aws-service-name acm.amazonaws.com",

	types.FailureReasonPcaNameConstraintsValidation: "the CA's name constraints exclude one of the names",
}

func failed(doing, arn string, status types.CertificateStatus, reason types.FailureReason) error {
	advice := reasons[reason]
	if advice == "" {
		advice = "see what ACM says of it (aws acm describe-certificate)"
	}
	if status == types.CertificateStatusRevoked || status == types.CertificateStatusExpired {
		advice = "the next rotation requests another one"
	}
	return fmt.Errorf("%w: %s %s: it is %s (%s); %s", ErrFailed, doing, arn, status, orNone(string(reason)), advice)
}

func orNone(reason string) string {
	if reason == "" {
		return "no reason given"
	}
	return reason
}

// passphraseLength is that of passphrases, in characters; ACM takes up to 128. Letters and digits of this length have more
// than 300 bits.
const passphraseLength = 64

// passphrase has Secrets Manager make one: letters and digits only, which neither ACM nor a shell nor a file of settings
// takes for anything else. There is no other source: where it is denied, the policy is to be mended.
func (a *Authority) passphrase(ctx context.Context) ([]byte, error) {
	length, yes, exclude := int64(passphraseLength), true, "#$%\"'`\\"
	answer, err := a.password.GetRandomPassword(ctx, &secretsmanager.GetRandomPasswordInput{
		PasswordLength: &length, ExcludePunctuation: &yes, ExcludeCharacters: &exclude, RequireEachIncludedType: &yes,
	})
	if err != nil {
		return nil, fmt.Errorf("making a passphrase: %w", session.Explain(err, "secretsmanager:GetRandomPassword", "*"))
	}
	text := []byte(str(answer.RandomPassword))
	plain := func(b byte) bool { return b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' }
	if len(text) != passphraseLength || slices.ContainsFunc(text, func(b byte) bool { return !plain(b) }) {
		clear(text)
		return nil, fmt.Errorf("making a passphrase: Secrets Manager answers with another one than was asked for: it is to have %d letters and digits", passphraseLength)
	}
	return text, nil
}

// export exports a certificate and checks it.
func (a *Authority) export(ctx context.Context, arn string, w *want) (_ *secret.Material, err error) {
	passphrase, err := a.passphrase(ctx)
	if err != nil {
		return nil, err
	}
	m := &secret.Material{Passphrase: passphrase}
	defer func() {
		if err != nil {
			m.Clear()
		}
	}()
	answer, err := a.acm.ExportCertificate(ctx, &acm.ExportCertificateInput{CertificateArn: &arn, Passphrase: passphrase})
	if err != nil {
		return nil, fmt.Errorf("exporting the certificate of %s: %w", w.request.DNSNames[0], session.Explain(err, "acm:ExportCertificate", arn))
	}
	m.Certificate, m.Chain, m.Key = []byte(str(answer.Certificate)), []byte(str(answer.CertificateChain)), []byte(str(answer.PrivateKey))
	trust, err := a.Trust(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.check(m, trust, w); err != nil {
		return nil, fmt.Errorf("%w: what ACM has exported of %s: %w", rotate.ErrUnfit, arn, err)
	}
	return m, nil
}

// check makes sure that an export is of one piece and what was wanted. The key is decrypted for that, in memory.
func (a *Authority) check(m *secret.Material, trust rotate.Trust, w *want) error {
	parsed, err := credential.Parse(credential.Input{
		Certificate: credential.Value{Name: "the certificate", Data: m.Certificate}, Chain: credential.Value{Name: "the chain", Data: m.Chain},
		Key: credential.Value{Name: "the key", Data: m.Key}, Passphrase: credential.Value{Name: "the passphrase", Data: m.Passphrase},
		Bundle: credential.Value{Name: "the private CA's root", Data: trust.Bundle},
	})
	if err != nil {
		return err
	}
	if err := parsed.Check(credential.Expect{Now: a.now(), DNSNames: w.request.DNSNames}); err != nil {
		return err
	}
	leaf := parsed.Leaf()
	name := w.request.DNSNames[0]
	switch {
	case leaf.Subject.String() != "CN="+name:
		return fmt.Errorf("its subject is %.200q, and proxies know the workload by CN=%s", leaf.Subject.String(), name)
	case !slices.Equal(slices.Compact(slices.Sorted(slices.Values(leaf.DNSNames))), slices.Compact(slices.Clone(w.names))), len(leaf.URIs)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0:
		return fmt.Errorf("it has other names than were asked for: %.300q", leaf.DNSNames)
	case mtls.Serial(leaf) == w.request.Replaces:
		return fmt.Errorf("it is the certificate %s that was to be replaced", w.request.Replaces)
	}
	return nil
}
