package acm

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	pcatypes "github.com/aws/aws-sdk-go-v2/service/acmpca/types"

	"countersign.dev/aws/session"
	"countersign.dev/mtls"
	"countersign.dev/rotate"
)

// Trust implements [rotate.Authority]: the root of the private CA, and the CA's own certificate. Revocation lists are not
// fetched: what ACM has revoked it does not export, and says so at the next look.
func (a *Authority) Trust(ctx context.Context) (rotate.Trust, error) {
	answer, err := a.pca.GetCertificateAuthorityCertificate(ctx, &acmpca.GetCertificateAuthorityCertificateInput{CertificateAuthorityArn: &a.c.Authority})
	if err != nil {
		return rotate.Trust{}, fmt.Errorf("asking for the certificate of the private CA: %w", session.Explain(err, "acm-pca:GetCertificateAuthorityCertificate", a.c.Authority))
	}
	chain, err := mtls.ParseCertificates([]byte(str(answer.Certificate) + "\n" + str(answer.CertificateChain)))
	if err != nil {
		return rotate.Trust{}, fmt.Errorf("the certificate of the private CA %s: %w", a.c.Authority, err)
	}
	root := chain[len(chain)-1]
	for i, child := range chain {
		parent := chain[min(i+1, len(chain)-1)]
		if err := child.CheckSignatureFrom(parent); err != nil || !child.IsCA {
			return rotate.Trust{}, fmt.Errorf("%w: the chain of %s does not lead up to a root, its certificate %d (%.100q) is not signed by the next: %w", ErrAuthority, a.c.Authority, i+1, child.Subject.String(), err)
		}
	}
	return rotate.Trust{Bundle: encode(root), Issuer: chain[0]}, nil
}

func encode(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

// checkCA makes sure, before anything is asked for, that the private CA can issue what ACM wants of it.
func (a *Authority) checkCA(ctx context.Context) error {
	answer, err := a.pca.DescribeCertificateAuthority(ctx, &acmpca.DescribeCertificateAuthorityInput{CertificateAuthorityArn: &a.c.Authority})
	if err != nil {
		return fmt.Errorf("looking at the private CA: %w", session.Explain(err, "acm-pca:DescribeCertificateAuthority", a.c.Authority))
	}
	ca := answer.CertificateAuthority
	switch {
	case ca == nil:
		return fmt.Errorf("looking at the private CA %s: AWS answers nothing", a.c.Authority)
	case ca.UsageMode == pcatypes.CertificateAuthorityUsageModeShortLivedCertificate:
		return fmt.Errorf("%w: %s is in short-lived mode, and ACM issues for 13 months; give it a CA in general-purpose mode, or issue from this one with an authority of the type acmpca", ErrAuthority, a.c.Authority)
	case ca.Status == pcatypes.CertificateAuthorityStatusActive:
		return nil
	}
	advice := map[pcatypes.CertificateAuthorityStatus]string{
		pcatypes.CertificateAuthorityStatusCreating:           "wait until it is created, and install its certificate (countersign ca aws activate)",
		pcatypes.CertificateAuthorityStatusPendingCertificate: "install its certificate (countersign ca aws activate)",
		pcatypes.CertificateAuthorityStatusDisabled:           "enable it (aws acm-pca update-certificate-authority --status ACTIVE), if it was not disabled for a reason",
		pcatypes.CertificateAuthorityStatusExpired:            "install a new certificate for it (countersign ca aws activate)",
		pcatypes.CertificateAuthorityStatusDeleted:            "restore it (aws acm-pca restore-certificate-authority), or name another one",
	}[ca.Status]
	if advice == "" {
		advice = "see what AWS says of it (aws acm-pca describe-certificate-authority)"
	}
	return fmt.Errorf("%w: %s is %s; %s. What was issued before stays in force", ErrAuthority, a.c.Authority, ca.Status, advice)
}
