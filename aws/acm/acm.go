// Package acm knows how AWS Certificate Manager is the authority of workloads: which of its certificates is which
// workload's, how one comes about and is exported, when ACM has a newer one, and what it refuses by which name. ACM makes
// the keys itself; they leave it encrypted, with a passphrase of Secrets Manager's, and are decrypted here once, in memory,
// to see that they belong to their certificates.
//
// Its certificates have no SPIFFE ID. Who a workload is, is a DNS name that the specification declares for it.
package acm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/acm"
	"github.com/aws/aws-sdk-go-v2/service/acm/types"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"countersign.dev/aws/session"
	"countersign.dev/mesh"
	"countersign.dev/rotate"
)

// Meter counts certificates before they are paid for.
type Meter interface {
	// Spend counts an id once, and is an error when the budget is spent.
	Spend(ctx context.Context, id string) error
}

// Config says for whom is issued, and by which private CA.
type Config struct {
	// Authority is the ARN of the private CA that ACM issues from; it may be another account's, shared by RAM.
	Authority string
	// Region is where ACM is asked; empty is the CA's, and it can be no other.
	Region string
	// Endpoint is where ACM, AWS Private CA and Secrets Manager are asked, all three, instead of AWS's own endpoints; empty
	// is those. For one service alone the SDK has AWS_ENDPOINT_URL_ACM and its like.
	Endpoint string
	// Names are the DNS names of the workloads, by workload.
	Names map[string]string
	// Meter is asked before anything that AWS bills; nil counts nothing.
	Meter Meter
	// Now is the clock; nil is time.Now.
	Now func() time.Time

	// poll is the first pause between two looks at something that is not there yet, which tests shorten.
	poll time.Duration
}

// Errors of this package, beside those of package session.
var (
	// ErrUnknown says that a certificate or a workload has no place in the declared names.
	ErrUnknown = errors.New("the declared names do not have it")
	// ErrAuthority says that the private CA cannot issue what ACM is to have.
	ErrAuthority = errors.New("the private CA cannot issue for ACM")
	// ErrFailed says that ACM has failed to issue or to renew, and why.
	ErrFailed = errors.New("ACM has failed")
)

// Authority is ACM as an authority: a [rotate.Authority] and a [rotate.Exporter]. It is safe for concurrent use.
type Authority struct {
	c        Config
	region   string
	acm      *acm.Client
	pca      *acmpca.Client
	password *secretsmanager.Client
	workload map[string]string // by DNS name
	now      func() time.Time
}

var (
	caForm   = regexp.MustCompile(`^arn:aws(?:-cn|-us-gov)?:acm-pca:([a-z0-9-]+):([0-9]{12}):certificate-authority/[0-9a-f-]{36}$`)
	certForm = regexp.MustCompile(`^arn:aws(?:-cn|-us-gov)?:acm:[a-z0-9-]+:[0-9]{12}:certificate/([0-9a-f-]{36})$`)
	nameForm = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])$`)
)

// firstPoll and lastPoll are the pauses between two looks at something that is not there yet; they grow.
const (
	firstPoll = 500 * time.Millisecond
	lastPoll  = 5 * time.Second
)

// maxCommonName is what ACM takes as the first name of a certificate, which is its common name (RFC 5280, appendix A.1).
const maxCommonName = 64

// Open makes an Authority. Nobody is asked yet. The error says which part of the Config cannot be used.
func Open(ctx context.Context, c Config) (*Authority, error) {
	ca := caForm.FindStringSubmatch(c.Authority)
	if ca == nil {
		return nil, fmt.Errorf("the authority acm: %q is not the ARN of a private CA (arn:aws:acm-pca:REGION:ACCOUNT:certificate-authority/UUID)", c.Authority)
	}
	a := &Authority{c: c, region: c.Region, workload: make(map[string]string), now: c.Now}
	switch a.region {
	case "":
		a.region = ca[1]
	case ca[1]:
	default:
		return nil, fmt.Errorf("the authority acm: its region is %q and its private CA is in %s; ACM issues from a CA of its own region only", a.region, ca[1])
	}
	if a.now == nil {
		a.now = time.Now
	}
	if a.c.poll == 0 {
		a.c.poll = firstPoll
	}
	for _, workload := range slices.Sorted(maps.Keys(c.Names)) {
		name := c.Names[workload]
		switch other, twice := a.workload[name]; {
		case twice:
			return nil, fmt.Errorf("the authority acm: the name %s is that of %s and of %s; nobody could tell the two apart", name, other, workload)
		case len(name) > maxCommonName || !nameForm.MatchString(name):
			return nil, fmt.Errorf("the authority acm: %q, the name of %s, is none that ACM issues for: write a DNS name with a dot, in lower case, of at most %d characters", name, workload, maxCommonName)
		}
		a.workload[name] = workload
	}
	loaded, err := session.Load(ctx, session.Config{Region: a.region, Endpoint: c.Endpoint})
	if err != nil {
		return nil, fmt.Errorf("the authority acm: %w", err)
	}
	a.acm, a.pca, a.password = acm.NewFromConfig(loaded), acmpca.NewFromConfig(loaded), secretsmanager.NewFromConfig(loaded)
	return a, nil
}

var (
	_ rotate.Authority = (*Authority)(nil)
	_ rotate.Exporter  = (*Authority)(nil)
)

// Issue is always an error: ACM signs no requests.
func (a *Authority) Issue(context.Context, rotate.Request) ([]byte, error) {
	return nil, fmt.Errorf("%w: ACM makes keys itself and signs no request of others; use the layout exported, or an authority of the type acmpca", rotate.ErrRequest)
}

// name is the DNS name that is a workload.
func (a *Authority) name(workload string) (string, error) {
	name := a.c.Names[workload]
	if name == "" {
		return "", fmt.Errorf("%w: %s has no DNS name at this authority; add it below names: of the authority in the specification", ErrUnknown, workload)
	}
	return name, nil
}

// resource is the ARN of certificates, for what is not about one of them.
func (a *Authority) resource() string {
	partition := strings.SplitN(a.c.Authority, ":", 3)[1]
	return "arn:" + partition + ":acm:" + a.region + ":*:certificate/*"
}

// describe gives what ACM says of a certificate.
func (a *Authority) describe(ctx context.Context, arn string) (*types.CertificateDetail, error) {
	answer, err := a.acm.DescribeCertificate(ctx, &acm.DescribeCertificateInput{CertificateArn: &arn})
	if err != nil {
		return nil, fmt.Errorf("looking at the certificate: %w", session.Explain(err, "acm:DescribeCertificate", arn))
	}
	if answer.Certificate == nil || str(answer.Certificate.CertificateArn) != arn {
		return nil, fmt.Errorf("looking at the certificate %s: ACM answers about another one", arn)
	}
	return answer.Certificate, nil
}

// ours tells whether a certificate is a private one of our CA.
func (a *Authority) ours(d *types.CertificateDetail) bool {
	return d.Type == types.CertificateTypePrivate && str(d.CertificateAuthorityArn) == a.c.Authority
}

// keyTypes are all that ListCertificates is to show: asked for nothing it shows RSA only.
var keyTypes = types.KeyAlgorithm("").Values()

// list gives the private certificates of some states, or of all when none is named, that are wanted. It needs no permission on
// any one of them.
func (a *Authority) list(ctx context.Context, states []types.CertificateStatus, wanted func(types.CertificateSummary) bool) ([]types.CertificateSummary, error) {
	var found []types.CertificateSummary
	pages := acm.NewListCertificatesPaginator(a.acm, &acm.ListCertificatesInput{
		CertificateStatuses: states, Includes: &types.Filters{KeyTypes: keyTypes},
	})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, session.Explain(err, "acm:ListCertificates", "*")
		}
		for _, summary := range page.CertificateSummaryList {
			if summary.Type == types.CertificateTypePrivate && wanted(summary) {
				found = append(found, summary)
			}
		}
	}
	return found, nil
}

// newest finds the certificate of a DNS name: of those that our CA has signed or is to sign the one that was requested
// last, in one of some states. It is nil when there is none.
func (a *Authority) newest(ctx context.Context, name string, states ...types.CertificateStatus) (*types.CertificateDetail, error) {
	found, err := a.list(ctx, states, func(summary types.CertificateSummary) bool { return str(summary.DomainName) == name })
	if err != nil {
		return nil, fmt.Errorf("looking for the certificate of %s: %w", name, err)
	}
	slices.SortStableFunc(found, func(x, y types.CertificateSummary) int { return at(y.CreatedAt).Compare(at(x.CreatedAt)) })
	for _, summary := range found {
		detail, err := a.describe(ctx, str(summary.CertificateArn))
		if isGone(err) {
			continue // deleted between the two questions
		}
		if err != nil {
			return nil, err
		}
		if a.ours(detail) && slices.Contains(states, detail.Status) {
			return detail, nil
		}
	}
	return nil, nil
}

func isGone(err error) bool {
	var gone *types.ResourceNotFoundException
	return errors.As(err, &gone)
}

// Newest implements [rotate.Exporter]: what ACM has issued for a workload and is in force. It asks ACM only.
func (a *Authority) Newest(ctx context.Context, workload mesh.Workload) (serial string, notAfter time.Time, err error) {
	name, err := a.name(workload.Name)
	if err != nil {
		return "", time.Time{}, err
	}
	detail, err := a.newest(ctx, name, types.CertificateStatusIssued)
	if err != nil || detail == nil {
		return "", time.Time{}, err
	}
	serial, err = serialOf(detail)
	return serial, at(detail.NotAfter), err
}

// Find says whose a certificate is, as an event of ACM names it. [ErrUnknown] says that it is nobody's here: it is not there any
// more, of another private CA, a public one, or of a name that is not declared. Of such ones only the list of certificates is looked
// at: a role needs no permission on certificates of others.
func (a *Authority) Find(ctx context.Context, certificate string) (workload string, err error) {
	if !certForm.MatchString(certificate) {
		return "", fmt.Errorf("%w: %.200q is not the ARN of a certificate of ACM", ErrUnknown, certificate)
	}
	found, err := a.list(ctx, nil, func(summary types.CertificateSummary) bool { return str(summary.CertificateArn) == certificate })
	if err != nil {
		return "", fmt.Errorf("finding out whose the certificate %s is: %w", certificate, err)
	}
	if len(found) == 0 {
		return "", fmt.Errorf("%w: there is no private certificate %s in this account and region", ErrUnknown, certificate)
	}
	name := str(found[0].DomainName)
	if workload = a.workload[name]; workload == "" {
		return "", fmt.Errorf("%w: the certificate %s is for %.100q, and no workload has that name; declare it below names: of the authority, or delete the certificate", ErrUnknown, certificate, name)
	}
	detail, err := a.describe(ctx, certificate)
	switch {
	case isGone(err):
		return "", fmt.Errorf("%w: it has just been deleted: %w", ErrUnknown, err)
	case err != nil:
		return "", err
	case !a.ours(detail):
		return "", fmt.Errorf("%w: the certificate %s of %s is not of the private CA %s", ErrUnknown, certificate, name, a.c.Authority)
	}
	return workload, nil
}

// serialOf is a serial as mtls.Serial spells it; ACM writes colons between the bytes.
func serialOf(d *types.CertificateDetail) (string, error) {
	serial := strings.ToLower(strings.ReplaceAll(str(d.Serial), ":", ""))
	if len(serial)%2 == 1 {
		serial = "0" + serial
	}
	for len(serial) > 2 && strings.HasPrefix(serial, "00") {
		serial = serial[2:]
	}
	if serial == "" || strings.Trim(serial, "0123456789abcdef") != "" {
		return "", fmt.Errorf("ACM says of the certificate %s the serial %.80q, which is none", str(d.CertificateArn), str(d.Serial))
	}
	return serial, nil
}

func str(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func at(t *time.Time) time.Time {
	if t == nil {
		return time.Time{}
	}
	return *t
}
