package awstest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"net/url"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	"github.com/aws/aws-sdk-go-v2/service/acmpca/types"

	"countersign.dev/mtls"
)

var authoritiesContract = []expectation{
	{"CreateCertificateAuthority", "makes a P-384 key for EC_secp384r1, and waits for a certificate: PENDING_CERTIFICATE", makesAuthorityKey},
	{"CreateCertificateAuthority", "answers the same IdempotencyToken with the same CA", repeatsAuthority},
	{"ImportCertificateAuthorityCertificate", "activates a root that signed itself with RootCACertificate/V1", activatesAuthority},
	{"ImportCertificateAuthorityCertificate", "refuses a certificate for another key", refusesOtherCertificate},
	{"IssueCertificate", "signs the request's key, by the CA's key, with the CA's algorithm", signsRequest},
	{"IssueCertificate", "keeps the validity in DAYS", func(w *world) error { return keepsValidity(w, types.ValidityPeriodTypeDays) }},
	{"IssueCertificate", "keeps the validity as an END_DATE", func(w *world) error { return keepsValidity(w, types.ValidityPeriodTypeEndDate) }},
	{"IssueCertificate", "takes SAN URIs from the request with EndEntityCertificate/V1", keepsNames},
	{"IssueCertificate", "never makes a CA with EndEntityCertificate/V1, whatever the request says", refusesCA},
	{"IssueCertificate", "answers the same IdempotencyToken with the same certificate", repeatsIssuing},
	{"IssueCertificate", "refuses more than 7 days in SHORT_LIVED_CERTIFICATE mode", limitsShortLived},
	{"IssueCertificate", "refuses a template that it does not know", refusesTemplate},
	{"IssueCertificate", "refuses a CSR that is none: MalformedCSRException", refusesCSR},
	{"IssueCertificate", "refuses a CA that is DISABLED: InvalidStateException", refusesDisabled},
	{"GetCertificate", "is RequestInProgressException until the certificate is there", waitsForCertificate},
	{"GetCertificate", "gives the chain up to the root", givesChain},
	{"RevokeCertificate", "takes the serial in hexadecimal, and refuses one that it did not issue", revokes},
	{"CreateCertificateAuthority", "puts the CRL's location into certificates", locatesCRL},
	{"PutPolicy", "is given back by GetPolicy", keepsAuthorityPolicy},
}

// authority is a CA, and what is asked of it.
type authority struct {
	*world
	client *acmpca.Client
	arn    *string
	root   *x509.Certificate
}

func (w *world) pending(mode types.CertificateAuthorityUsageMode, revocation *types.RevocationConfiguration, token *string) (*authority, error) {
	a := &authority{world: w, client: acmpca.NewFromConfig(w.config)}
	made, err := a.client.CreateCertificateAuthority(w.ctx, &acmpca.CreateCertificateAuthorityInput{
		CertificateAuthorityType: types.CertificateAuthorityTypeRoot,
		CertificateAuthorityConfiguration: &types.CertificateAuthorityConfiguration{
			KeyAlgorithm: types.KeyAlgorithmEcSecp384r1, SigningAlgorithm: types.SigningAlgorithmSha384withecdsa,
			Subject: &types.ASN1Subject{CommonName: aws.String("contract"), Organization: aws.String("example")},
		},
		UsageMode: mode, RevocationConfiguration: revocation, IdempotencyToken: token,
	})
	if err != nil {
		return nil, err
	}
	a.arn = made.CertificateAuthorityArn
	return a, nil
}

// general is a CA in general-purpose mode that issues and that no check changes.
func (w *world) general() (*authority, error) {
	if w.shared.general == nil {
		made, err := w.authority("", nil)
		if err != nil {
			return nil, err
		}
		w.shared.general = made
	}
	a := *w.shared.general
	a.world = w
	return &a, nil
}

// authority is a new one that issues.
func (w *world) authority(mode types.CertificateAuthorityUsageMode, revocation *types.RevocationConfiguration) (*authority, error) {
	a, err := w.pending(mode, revocation, nil)
	if err != nil {
		return nil, err
	}
	csr, err := a.csr()
	if err != nil {
		return nil, err
	}
	issued, err := a.client.IssueCertificate(w.ctx, &acmpca.IssueCertificateInput{
		CertificateAuthorityArn: a.arn, Csr: csr, SigningAlgorithm: types.SigningAlgorithmSha384withecdsa,
		TemplateArn: aws.String("arn:aws:acm-pca:::template/RootCACertificate/V1"), Validity: days(3650),
	})
	if err != nil {
		return nil, err
	}
	root, _, err := a.get(issued.CertificateArn)
	if err != nil {
		return nil, err
	}
	a.root = root
	_, err = a.client.ImportCertificateAuthorityCertificate(w.ctx, &acmpca.ImportCertificateAuthorityCertificateInput{CertificateAuthorityArn: a.arn, Certificate: encode(root.Raw)})
	return a, err
}

// csr is the CA's own, which AWS makes in the background.
func (a *authority) csr() ([]byte, error) {
	for {
		got, err := a.client.GetCertificateAuthorityCsr(a.ctx, &acmpca.GetCertificateAuthorityCsrInput{CertificateAuthorityArn: a.arn})
		if err == nil {
			return []byte(aws.ToString(got.Csr)), nil
		}
		if code(err) != "RequestInProgressException" {
			return nil, err
		}
	}
}

func days(n int64) *types.Validity {
	return &types.Validity{Type: types.ValidityPeriodTypeDays, Value: &n}
}

func encode(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// csrOf makes a request of a workload.
func csrOf(change func(*x509.CertificateRequest)) ([]byte, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "checkout"},
		URIs:    []*url.URL{{Scheme: "spiffe", Host: "payments", Path: "/checkout"}},
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), key
}

// issue asks for a certificate of a week, unless change says otherwise.
func (a *authority) issue(csr []byte, change func(*acmpca.IssueCertificateInput)) (*string, error) {
	input := &acmpca.IssueCertificateInput{CertificateAuthorityArn: a.arn, Csr: csr, SigningAlgorithm: types.SigningAlgorithmSha384withecdsa, Validity: days(7)}
	if change != nil {
		change(input)
	}
	issued, err := a.client.IssueCertificate(a.ctx, input)
	if err != nil {
		return nil, err
	}
	return issued.CertificateArn, nil
}

// get waits for a certificate and its chain.
func (a *authority) get(arn *string) (*x509.Certificate, []*x509.Certificate, error) {
	for {
		got, err := a.client.GetCertificate(a.ctx, &acmpca.GetCertificateInput{CertificateAuthorityArn: a.arn, CertificateArn: arn})
		if code(err) == "RequestInProgressException" {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		certs, err := certificates(aws.ToString(got.Certificate))
		if err != nil || len(certs) != 1 {
			return nil, nil, wrong("gives no certificate")
		}
		chain, err := certificates(aws.ToString(got.CertificateChain))
		return certs[0], chain, err
	}
}

func certificates(text string) ([]*x509.Certificate, error) {
	var found []*x509.Certificate
	for rest := []byte(text); len(bytes.TrimSpace(rest)) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, errors.New("gives something that is no PEM")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, errors.New("gives a certificate that cannot be read")
		}
		found = append(found, cert)
	}
	return found, nil
}

// leaf is a new certificate.
func (w *world) leaf(change func(*x509.CertificateRequest), input func(*acmpca.IssueCertificateInput)) (*authority, *x509.Certificate, []*x509.Certificate, error) {
	a, err := w.general()
	if err != nil {
		return nil, nil, nil, err
	}
	csr, _ := csrOf(change)
	arn, err := a.issue(csr, input)
	if err != nil {
		return nil, nil, nil, err
	}
	leaf, chain, err := a.get(arn)
	return a, leaf, chain, err
}

func makesAuthorityKey(w *world) error {
	a, err := w.pending("", nil, nil)
	if err != nil {
		return err
	}
	csr, err := a.csr()
	if err != nil {
		return err
	}
	got, err := a.client.DescribeCertificateAuthority(w.ctx, &acmpca.DescribeCertificateAuthorityInput{CertificateAuthorityArn: a.arn})
	if err != nil {
		return err
	}
	if got.CertificateAuthority.Status != types.CertificateAuthorityStatusPendingCertificate {
		return wrong("another state")
	}
	block, _ := pem.Decode(csr)
	if block == nil {
		return wrong("no CSR")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return wrong("no CSR")
	}
	if key, ok := request.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P384() {
		return wrong("another key")
	}
	return nil
}

func repeatsAuthority(w *world) error {
	token := aws.String(w.name("token"))
	first, err := w.pending("", nil, token)
	if err != nil {
		return err
	}
	again, err := w.pending("", nil, token)
	if err == nil && *first.arn != *again.arn {
		return wrong("makes another one")
	}
	return err
}

func activatesAuthority(w *world) error {
	a, err := w.authority("", nil)
	if err != nil {
		return err
	}
	got, err := a.client.DescribeCertificateAuthority(w.ctx, &acmpca.DescribeCertificateAuthorityInput{CertificateAuthorityArn: a.arn})
	switch {
	case err != nil:
		return err
	case got.CertificateAuthority.Status != types.CertificateAuthorityStatusActive:
		return wrong("another state")
	case !a.root.IsCA || a.root.CheckSignatureFrom(a.root) != nil:
		return wrong("no root")
	}
	return nil
}

func refusesOtherCertificate(w *world) error {
	other, err := w.general()
	if err != nil {
		return err
	}
	a, err := w.pending("", nil, nil)
	if err != nil {
		return err
	}
	if _, err := a.csr(); err != nil {
		return err
	}
	_, err = a.client.ImportCertificateAuthorityCertificate(w.ctx, &acmpca.ImportCertificateAuthorityCertificateInput{CertificateAuthorityArn: a.arn, Certificate: encode(other.root.Raw)})
	return refuses(err, "CertificateMismatchException")
}

func signsRequest(w *world) error {
	a, leaf, _, err := w.leaf(nil, nil)
	switch {
	case err != nil:
		return err
	case leaf.CheckSignatureFrom(a.root) != nil:
		return wrong("signed by another key")
	case leaf.SignatureAlgorithm != x509.ECDSAWithSHA384:
		return wrong("another algorithm")
	}
	return nil
}

func keepsValidity(w *world, kind types.ValidityPeriodType) error {
	end := time.Now().UTC().Add(72 * time.Hour).Truncate(time.Second)
	_, leaf, _, err := w.leaf(nil, func(input *acmpca.IssueCertificateInput) {
		input.Validity = days(3)
		if kind == types.ValidityPeriodTypeEndDate {
			var number int64
			for _, part := range []int{end.Year(), int(end.Month()), end.Day(), end.Hour(), end.Minute(), end.Second()} {
				number = number*100 + int64(part)
			}
			input.Validity = &types.Validity{Type: kind, Value: &number}
		}
	})
	if err == nil && leaf.NotAfter.Sub(end).Abs() > time.Hour {
		return wrong("ends at another time")
	}
	return err
}

func keepsNames(w *world) error {
	_, leaf, _, err := w.leaf(nil, nil)
	if err == nil && (len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://payments/checkout") {
		return wrong("loses them")
	}
	return err
}

func refusesCA(w *world) error {
	_, leaf, _, err := w.leaf(func(request *x509.CertificateRequest) {
		// basicConstraints: CA.
		request.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}}
	}, nil)
	if err == nil && leaf.IsCA {
		return wrong("makes one")
	}
	return err
}

func repeatsIssuing(w *world) error {
	a, err := w.general()
	if err != nil {
		return err
	}
	csr, _ := csrOf(nil)
	token := func(input *acmpca.IssueCertificateInput) { input.IdempotencyToken = aws.String("again") }
	first, err := a.issue(csr, token)
	if err != nil {
		return err
	}
	again, err := a.issue(csr, token)
	if err == nil && *first != *again {
		return wrong("issues another one")
	}
	return err
}

func limitsShortLived(w *world) error {
	a, err := w.authority(types.CertificateAuthorityUsageModeShortLivedCertificate, nil)
	if err != nil {
		return err
	}
	csr, _ := csrOf(nil)
	if _, err := a.issue(csr, nil); err != nil {
		return err
	}
	_, err = a.issue(csr, func(input *acmpca.IssueCertificateInput) { input.Validity = days(8) })
	return refuses(err, "ValidationException", "InvalidArgsException")
}

func refusesTemplate(w *world) error {
	a, err := w.general()
	if err != nil {
		return err
	}
	csr, _ := csrOf(nil)
	_, err = a.issue(csr, func(input *acmpca.IssueCertificateInput) {
		input.TemplateArn = aws.String("arn:aws:acm-pca:::template/NoSuchCertificate/V1")
	})
	return refuses(err, "ValidationException", "InvalidArgsException", "InvalidArnException")
}

func refusesCSR(w *world) error {
	a, err := w.general()
	if err != nil {
		return err
	}
	_, err = a.issue([]byte("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"), nil)
	return refuses(err, "MalformedCSRException")
}

func refusesDisabled(w *world) error {
	a, err := w.authority("", nil)
	if err != nil {
		return err
	}
	_, err = a.client.UpdateCertificateAuthority(w.ctx, &acmpca.UpdateCertificateAuthorityInput{CertificateAuthorityArn: a.arn, Status: types.CertificateAuthorityStatusDisabled})
	if err != nil {
		return err
	}
	csr, _ := csrOf(nil)
	_, err = a.issue(csr, nil)
	return refuses(err, "InvalidStateException")
}

func waitsForCertificate(w *world) error {
	a, err := w.general()
	if err != nil {
		return err
	}
	csr, _ := csrOf(nil)
	arn, err := a.issue(csr, nil)
	if err != nil {
		return err
	}
	_, err = a.client.GetCertificate(w.ctx, &acmpca.GetCertificateInput{CertificateAuthorityArn: a.arn, CertificateArn: arn})
	if err == nil {
		return wrong("is there at once")
	}
	return refuses(err, "RequestInProgressException")
}

func givesChain(w *world) error {
	a, _, chain, err := w.leaf(nil, nil)
	if err == nil && (len(chain) != 1 || !chain[0].Equal(a.root)) {
		return wrong("another chain")
	}
	return err
}

func revokes(w *world) error {
	a, leaf, _, err := w.leaf(nil, nil)
	if err != nil {
		return err
	}
	revoke := func(serial string) error {
		_, err := a.client.RevokeCertificate(w.ctx, &acmpca.RevokeCertificateInput{CertificateAuthorityArn: a.arn, CertificateSerial: &serial, RevocationReason: types.RevocationReasonSuperseded})
		return err
	}
	if err := revoke(mtls.Serial(leaf)); err != nil {
		return err
	}
	return refuses(revoke("0123456789abcdef"), "ResourceNotFoundException", "InvalidRequestException", "RequestFailedException")
}

func locatesCRL(w *world) error {
	a, err := w.authority("", &types.RevocationConfiguration{CrlConfiguration: &types.CrlConfiguration{
		Enabled: aws.Bool(true), ExpirationInDays: aws.Int32(7), S3BucketName: aws.String("crl-bucket"), CustomCname: aws.String("crl.example.com"),
	}})
	if err != nil {
		return err
	}
	csr, _ := csrOf(nil)
	arn, err := a.issue(csr, nil)
	if err != nil {
		return err
	}
	leaf, _, err := a.get(arn)
	if err == nil && len(leaf.CRLDistributionPoints) != 1 {
		return wrong("leaves it out")
	}
	return err
}

func keepsAuthorityPolicy(w *world) error {
	a, err := w.authority("", nil)
	if err != nil {
		return err
	}
	document := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"AWS":"111122223333"},"Action":["acm-pca:IssueCertificate","acm-pca:GetCertificate"],"Resource":"` + *a.arn + `"}]}`
	if _, err := a.client.PutPolicy(w.ctx, &acmpca.PutPolicyInput{ResourceArn: a.arn, Policy: &document}); err != nil {
		return err
	}
	got, err := a.client.GetPolicy(w.ctx, &acmpca.GetPolicyInput{ResourceArn: a.arn})
	if err == nil && aws.ToString(got.Policy) != document {
		return wrong("another policy")
	}
	return err
}
