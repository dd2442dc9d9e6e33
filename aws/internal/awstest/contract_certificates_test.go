package awstest_test

import (
	"crypto"
	"crypto/x509"
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/acm"
	"github.com/aws/aws-sdk-go-v2/service/acm/types"
	catypes "github.com/aws/aws-sdk-go-v2/service/acmpca/types"

	"countersign.dev/aws/internal/awstest"
	"countersign.dev/aws/internal/awstest/acmfake"
	"countersign.dev/aws/internal/awstest/pcafake"
	"countersign.dev/credential"
)

var certificatesContract = []expectation{
	{"RequestCertificate", "issues a private certificate from the CA that is named: ISSUED, PRIVATE", requestsCertificate},
	{"RequestCertificate", "answers the same IdempotencyToken with the same certificate", repeatsRequest},
	{"RequestCertificate", "does not issue from a CA in SHORT_LIVED_CERTIFICATE mode", refusesShortLived},
	{"DescribeCertificate", "shows the serial as bytes in hexadecimal with colons", showsSerial},
	{"GetCertificate", "gives a certificate that the CA signed, and the chain up to the root", getsCertificate},
	{"ExportCertificate", "gives the key encrypted with the passphrase, for the certificate that the CA signed", exports},
	{"ExportCertificate", "refuses a passphrase with #, $ or %", refusesPassphrase},
	{"RenewCertificate", "gives an exported private certificate another serial", renews},
	{"RenewCertificate", "refuses a private certificate that was never exported", refusesRenewal},
	{"ListCertificates", "lists private certificates", listsCertificates},
	{"DeleteCertificate", "forgets it: ResourceNotFoundException", deletesCertificate},
}

// issuer lets the fake of ACM issue from the fake of Private CA.
type issuer struct{ *pcafake.Fake }

func (i issuer) Issue(ca string, csr []byte, notAfter time.Time) (leaf, chain []byte, err error) {
	if leaf, chain, err = i.Sign(ca, csr, time.Until(notAfter)); err != nil {
		err = errors.Join(&acmfake.Failure{Reason: "PCA_REQUEST_FAILED"}, err)
	}
	return leaf, chain, err
}

func mountCertificates(_ *testing.T, cloud *awstest.Cloud) {
	authorities := pcafake.New(pcafake.Options{})
	cloud.Mount("acm-pca", authorities)
	cloud.Mount("acm", acmfake.New(acmfake.Options{Issuer: issuer{authorities}, PendingPolls: 1}))
}

var _ http.Handler = (*acmfake.Fake)(nil)

// requested is a certificate of ACM and the CA that it is from.
type requested struct {
	*authority
	acm   *acm.Client
	cert  *string
	name  string
	token string
}

func (w *world) request(mode catypes.CertificateAuthorityUsageMode) (*requested, error) {
	a := &authority{world: w, arn: aws.String("arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012")}
	if lacking["acm-pca"] != w.double { // which has to do with a name
		var err error
		if mode == "" {
			a, err = w.general()
		} else {
			a, err = w.authority(mode, nil)
		}
		if err != nil {
			return nil, err
		}
	}
	var err error
	r := &requested{authority: a, acm: acm.NewFromConfig(w.config), name: "checkout.payments.internal"}
	r.token = strings.ReplaceAll(w.token(), "-", "")[:32]
	r.cert, err = r.again(r.token)
	if err != nil {
		return nil, err
	}
	for {
		detail, err := r.describe()
		if err != nil {
			return nil, err
		}
		switch detail.Status {
		case types.CertificateStatusPendingValidation:
		case types.CertificateStatusIssued:
			return r, nil
		default:
			return r, wrong("fails")
		}
	}
}

func (r *requested) again(token string) (*string, error) {
	made, err := r.acm.RequestCertificate(r.ctx, &acm.RequestCertificateInput{
		DomainName: &r.name, CertificateAuthorityArn: r.arn, IdempotencyToken: &token, KeyAlgorithm: types.KeyAlgorithmEcPrime256v1,
	})
	if err != nil {
		return nil, err
	}
	return made.CertificateArn, nil
}

func (r *requested) describe() (*types.CertificateDetail, error) {
	got, err := r.acm.DescribeCertificate(r.ctx, &acm.DescribeCertificateInput{CertificateArn: r.cert})
	if err != nil {
		return nil, err
	}
	return got.Certificate, nil
}

func (r *requested) export(passphrase string) (*acm.ExportCertificateOutput, error) {
	return r.acm.ExportCertificate(r.ctx, &acm.ExportCertificateInput{CertificateArn: r.cert, Passphrase: []byte(passphrase)})
}

// withCertificate runs on a certificate of its own.
func withCertificate(w *world, step func(*requested) error) error {
	r, err := w.request("")
	if err != nil {
		return err
	}
	return step(r)
}

func requestsCertificate(w *world) error {
	return withCertificate(w, func(r *requested) error {
		detail, err := r.describe()
		if err == nil && (detail.Type != types.CertificateTypePrivate || aws.ToString(detail.CertificateAuthorityArn) != *r.arn) {
			return wrong("another type, or another CA")
		}
		return err
	})
}

func repeatsRequest(w *world) error {
	return withCertificate(w, func(r *requested) error {
		again, err := r.again(r.token)
		if err == nil && *again != *r.cert {
			return wrong("makes another one")
		}
		return err
	})
}

func refusesShortLived(w *world) error {
	r, err := w.request(catypes.CertificateAuthorityUsageModeShortLivedCertificate)
	switch {
	case err == nil:
		return wrong("issues")
	case r != nil, code(err) == "ValidationException", code(err) == "InvalidArgsException", code(err) == "InvalidStateException":
		return nil // refused, or failed afterwards
	default:
		return err
	}
}

func showsSerial(w *world) error {
	return withCertificate(w, func(r *requested) error {
		detail, err := r.describe()
		if err == nil && !regexp.MustCompile(`^[0-9a-f]{2}(:[0-9a-f]{2})+$`).MatchString(aws.ToString(detail.Serial)) {
			return wrong("another form")
		}
		return err
	})
}

// signed checks a certificate and its chain against the CA.
func (r *requested) signed(cert, chain *string) error {
	leaf, err := certificates(aws.ToString(cert))
	if err != nil || len(leaf) != 1 {
		return wrong("gives no certificate")
	}
	above, err := certificates(aws.ToString(chain))
	switch {
	case err != nil:
		return err
	case r.root == nil || leaf[0].CheckSignatureFrom(r.root) != nil:
		return wrong("not signed by the CA")
	case len(above) == 0 || !above[len(above)-1].Equal(r.root):
		return wrong("another chain")
	case !slices.Contains(leaf[0].DNSNames, r.name):
		return wrong("another name")
	}
	return nil
}

func getsCertificate(w *world) error {
	return withCertificate(w, func(r *requested) error {
		got, err := r.acm.GetCertificate(r.ctx, &acm.GetCertificateInput{CertificateArn: r.cert})
		if err != nil {
			return err
		}
		return r.signed(got.Certificate, got.CertificateChain)
	})
}

const passphrase = "aB3daB3daB3daB3daB3daB3daB3daB3d"

func exports(w *world) error {
	return withCertificate(w, func(r *requested) error {
		got, err := r.export(passphrase)
		if err != nil {
			return err
		}
		if err := r.signed(got.Certificate, got.CertificateChain); err != nil {
			return err
		}
		read, err := credential.Parse(credential.Input{
			Certificate: credential.Value{Name: "certificate", Data: []byte(aws.ToString(got.Certificate))},
			Chain:       credential.Value{Name: "chain", Data: []byte(aws.ToString(got.CertificateChain))},
			Key:         credential.Value{Name: "key", Data: []byte(aws.ToString(got.PrivateKey))},
			Passphrase:  credential.Value{Name: "passphrase", Data: []byte(passphrase)},
			Bundle:      credential.Value{Name: "bundle", Data: encode(r.root.Raw)},
		})
		if err != nil {
			return wrong("gives what cannot be read")
		}
		key, _ := read.TLS().PrivateKey.(crypto.Signer)
		public, ok := read.Leaf().PublicKey.(interface{ Equal(crypto.PublicKey) bool })
		if key == nil || !ok || !public.Equal(key.Public()) {
			return wrong("the key is not the certificate's")
		}
		return nil
	})
}

func refusesPassphrase(w *world) error {
	return withCertificate(w, func(r *requested) error {
		for _, forbidden := range []string{"#", "$", "%"} {
			_, err := r.export(passphrase + forbidden)
			if err := refuses(err, "ValidationException", "InvalidParameterException"); err != nil {
				return err
			}
		}
		return nil
	})
}

// leaf is what ACM has now.
func (r *requested) leaf() (*x509.Certificate, error) {
	got, err := r.acm.GetCertificate(r.ctx, &acm.GetCertificateInput{CertificateArn: r.cert})
	if err != nil {
		return nil, err
	}
	certs, err := certificates(aws.ToString(got.Certificate))
	if err != nil || len(certs) != 1 {
		return nil, wrong("gives no certificate")
	}
	return certs[0], nil
}

func renews(w *world) error {
	return withCertificate(w, func(r *requested) error {
		if _, err := r.export(passphrase); err != nil {
			return err
		}
		before, err := r.leaf()
		if err != nil {
			return err
		}
		if _, err := r.acm.RenewCertificate(r.ctx, &acm.RenewCertificateInput{CertificateArn: r.cert}); err != nil {
			return err
		}
		for range 10 { // AWS does it in the background; looking at it is enough for the fake
			detail, err := r.describe()
			if err != nil {
				return err
			}
			if detail.RenewalSummary != nil && detail.RenewalSummary.RenewalStatus == types.RenewalStatusSuccess {
				break
			}
		}
		after, err := r.leaf()
		if err == nil && after.SerialNumber.Cmp(before.SerialNumber) == 0 {
			return wrong("the same serial")
		}
		return err
	})
}

func refusesRenewal(w *world) error {
	return withCertificate(w, func(r *requested) error {
		_, err := r.acm.RenewCertificate(r.ctx, &acm.RenewCertificateInput{CertificateArn: r.cert})
		return refuses(err, "ValidationException", "RequestInProgressException")
	})
}

func listsCertificates(w *world) error {
	return withCertificate(w, func(r *requested) error {
		pages := acm.NewListCertificatesPaginator(r.acm, &acm.ListCertificatesInput{Includes: &types.Filters{KeyTypes: []types.KeyAlgorithm{types.KeyAlgorithmEcPrime256v1}}})
		for pages.HasMorePages() {
			page, err := pages.NextPage(r.ctx)
			if err != nil {
				return err
			}
			for _, summary := range page.CertificateSummaryList {
				if aws.ToString(summary.CertificateArn) == *r.cert {
					return nil
				}
			}
		}
		return wrong("leaves it out")
	})
}

func deletesCertificate(w *world) error {
	return withCertificate(w, func(r *requested) error {
		if _, err := r.acm.DeleteCertificate(r.ctx, &acm.DeleteCertificateInput{CertificateArn: r.cert}); err != nil {
			return err
		}
		_, err := r.describe()
		return refuses(err, "ResourceNotFoundException")
	})
}
