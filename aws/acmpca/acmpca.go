// Package acmpca knows AWS Private CA as an authority of a mesh: it has a CA certify the requests of a rotation, makes CAs,
// and knows what both cost.
//
// A certificate is paid for when it is asked for, so that asking is what this package is careful about. Each one is
// counted first ([Meter]), then what is asked is written down with the rotation's request, and then the ARN of what came
// of it. A try that comes later asks for that ARN; one that finds only that something was asked repeats exactly that, under
// the same idempotency token, which AWS knows again for five minutes; only after these is another one asked for,
// and counted. Nothing is asked for from a CA that is not ready, or for a time that it cannot give.
//
// What comes back is believed only when it is signed by the CA that was asked, for the key, the names and the time that
// were asked for.
package acmpca

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	"github.com/aws/aws-sdk-go-v2/service/acmpca/types"

	"countersign.dev/aws/session"
	"countersign.dev/mesh"
)

// Errors of this package, beside those of packages rotate and session.
var (
	// ErrConfig says that the authority cannot be used as it is declared.
	ErrConfig = errors.New("the private CA cannot be used as it is declared")
	// ErrState says that the CA is not ready to issue. Nothing was asked for, and nothing was paid.
	ErrState = errors.New("the private CA does not issue")
)

// DefaultTemplate is the template that leaves are issued by: names from the request, for servers and clients.
const DefaultTemplate = "arn:aws:acm-pca:::template/EndEntityCertificate/V1"

// maxShortLived is how long a certificate of a CA in short-lived mode is valid at most.
const maxShortLived = 7 * 24 * time.Hour

// Meter counts what is about to be paid for; see package budget.
type Meter interface {
	// Spend counts a certificate under an id, once; its error means that none may be asked for.
	Spend(ctx context.Context, id string) error
}

// Config is what an [Authority] is made of.
type Config struct {
	// ARN is the CA's; it may be of another account that shares it (AWS RAM).
	ARN string
	// Region is empty for that of the ARN; Endpoint takes the place of the service's own address when it is not empty.
	Region, Endpoint string
	// Mode is [mesh.ModeShortLived] where the CA is meant to be in that mode: one that is not is refused. Other words are not
	// looked at.
	Mode string
	// Template is the ARN of the template; empty is [DefaultTemplate] in the CA's partition. It makes certificates for servers and clients.
	Template string
	// Meter counts before anything is paid for; nil counts nothing.
	Meter Meter
	// Note is told what people should know although it stops nothing; nil tells nobody.
	Note func(text string)
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Authority is a private CA. It is a rotate.Authority, and safe for concurrent use.
type Authority struct {
	config Config
	client *acmpca.Client
	bucket *bucket
	lists  *http.Client
	poll   time.Duration // the first pause before a certificate is asked for again

	mu    sync.Mutex
	trust *known
}

// arnForm is the ARN of a private CA.
var arnForm = regexp.MustCompile(`^arn:(aws|aws-cn|aws-us-gov):acm-pca:([a-z0-9-]{1,40}):([0-9]{12}):certificate-authority/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})$`)

// templateForm is the ARN of a template that makes leaves for servers and clients.
var templateForm = regexp.MustCompile(`^arn:(aws|aws-cn|aws-us-gov):acm-pca:::template/EndEntityCertificate(_APIPassthrough|_CSRPassthrough|_APICSRPassthrough)?/V1$`)

// Open makes an Authority. It asks nobody yet. Errors are [ErrConfig] and those of [session.Load].
func Open(ctx context.Context, c Config) (*Authority, error) {
	parts := arnForm.FindStringSubmatch(c.ARN)
	if c.Template == "" && parts != nil {
		c.Template = strings.Replace(DefaultTemplate, "arn:aws:", "arn:"+parts[1]+":", 1)
	}
	template := templateForm.FindStringSubmatch(c.Template)
	switch {
	case parts == nil:
		return nil, fmt.Errorf("%w: %.200q is not the ARN of a private CA; it looks like arn:aws:acm-pca:REGION:ACCOUNT:certificate-authority/UUID", ErrConfig, c.ARN)
	case c.Region != "" && c.Region != parts[2]:
		return nil, fmt.Errorf("%w: its region is %s by its ARN, and %s is declared; a CA is asked in its own region", ErrConfig, parts[2], c.Region)
	case template == nil:
		return nil, fmt.Errorf("%w: the template %.200q does not make certificates for servers and clients; use %s", ErrConfig, c.Template, DefaultTemplate)
	case template[1] != parts[1]:
		return nil, fmt.Errorf("%w: the template is of the partition %s, and the CA of %s; leave it out for the right one", ErrConfig, template[1], parts[1])
	}
	loaded, err := session.Load(ctx, session.Config{Region: parts[2], Endpoint: c.Endpoint})
	if err != nil {
		return nil, err
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Note == nil {
		c.Note = func(string) {}
	}
	return &Authority{config: c, client: acmpca.NewFromConfig(loaded), bucket: newBucket(c.Now), lists: listClient(), poll: firstPoll}, nil
}

// explain says what an error of the service means for this CA.
func (a *Authority) explain(err error, action string) error {
	return session.Explain(err, "acm-pca:"+action, a.config.ARN)
}

// describe asks for the CA, and in which state it is.
func (a *Authority) describe(ctx context.Context) (*types.CertificateAuthority, error) {
	out, err := a.client.DescribeCertificateAuthority(ctx, &acmpca.DescribeCertificateAuthorityInput{CertificateAuthorityArn: aws.String(a.config.ARN)})
	if err != nil {
		return nil, missing(a.explain(err, "DescribeCertificateAuthority"), a.config.ARN)
	}
	if out.CertificateAuthority == nil || aws.ToString(out.CertificateAuthority.Arn) != a.config.ARN {
		return nil, fmt.Errorf("%w: AWS describes another CA than %s", ErrConfig, a.config.ARN)
	}
	return out.CertificateAuthority, nil
}

// missing says what to do about a CA that is not there.
func missing(err error, arn string) error {
	if _, not := errors.AsType[*types.ResourceNotFoundException](err); not {
		return fmt.Errorf("%w: there is no %s in this account and region, and none is shared with it: see the ARN; one of another account has to be shared with this one by AWS RAM: %w", ErrConfig, arn, err)
	}
	return err
}

// ready refuses a CA that does not issue, and says what to do.
func (a *Authority) ready(ca *types.CertificateAuthority) error {
	advice := ""
	switch ca.Status {
	case types.CertificateAuthorityStatusActive:
		if a.config.Mode == mesh.ModeShortLived && ca.UsageMode != types.CertificateAuthorityUsageModeShortLivedCertificate {
			return fmt.Errorf("%w: %s is declared with mode short-lived, and is a general-purpose one, which costs more for each certificate; declare mode: general-purpose, or name another CA", ErrConfig, a.config.ARN)
		}
		return nil
	case types.CertificateAuthorityStatusDisabled:
		advice = "somebody has disabled it; to enable it again: aws acm-pca update-certificate-authority --status ACTIVE --certificate-authority-arn " + a.config.ARN
	case types.CertificateAuthorityStatusPendingCertificate, types.CertificateAuthorityStatusCreating:
		advice = "it has no certificate yet: countersign ca aws activate --arn " + a.config.ARN
	case types.CertificateAuthorityStatusExpired:
		advice = "its own certificate has expired: give it a new one, or make another CA and bring its root to everybody first"
	case types.CertificateAuthorityStatusDeleted:
		advice = "it was deleted; for a time it can be brought back: aws acm-pca restore-certificate-authority --certificate-authority-arn " + a.config.ARN
	case types.CertificateAuthorityStatusFailed:
		advice = "making it has failed (" + string(ca.FailureReason) + "); delete it, and make another one"
	}
	return fmt.Errorf("%w: %s is in the state %s; %s", ErrState, a.config.ARN, ca.Status, advice)
}

// idOf is the last part of an ARN.
func idOf(arn string) string { return arn[strings.LastIndex(arn, "/")+1:] }
