package stack

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	"github.com/aws/aws-sdk-go-v2/service/acmpca/types"
)

type authority struct {
	Type, UsageMode, KeyStorageSecurityStandard string
	KeyAlgorithm, SigningAlgorithm              string
	Subject                                     *types.ASN1Subject
	CsrExtensions                               *types.CsrExtensions
	RevocationConfiguration                     *types.RevocationConfiguration
	Tags                                        []types.Tag
}

// makeAuthority creates a private CA, and asks for its certificate request.
func makeAuthority(ctx context.Context, s *Stack, _ string, properties map[string]any, _ *Resource) (result, error) {
	p, err := decode[authority](properties)
	if err != nil {
		return result{}, err
	}
	created, err := s.clients.pca.CreateCertificateAuthority(ctx, &acmpca.CreateCertificateAuthorityInput{
		CertificateAuthorityType: types.CertificateAuthorityType(p.Type), UsageMode: types.CertificateAuthorityUsageMode(p.UsageMode),
		KeyStorageSecurityStandard: types.KeyStorageSecurityStandard(p.KeyStorageSecurityStandard), RevocationConfiguration: p.RevocationConfiguration, Tags: p.Tags,
		IdempotencyToken: aws.String(rand.Text()),
		CertificateAuthorityConfiguration: &types.CertificateAuthorityConfiguration{
			KeyAlgorithm: types.KeyAlgorithm(p.KeyAlgorithm), SigningAlgorithm: types.SigningAlgorithm(p.SigningAlgorithm), Subject: p.Subject, CsrExtensions: p.CsrExtensions,
		},
	})
	if err != nil {
		return result{}, fmt.Errorf("create the CA: %w", err)
	}
	arn := created.CertificateAuthorityArn
	var csr *acmpca.GetCertificateAuthorityCsrOutput
	if err := s.patiently(ctx, func() (err error) {
		csr, err = s.clients.pca.GetCertificateAuthorityCsr(ctx, &acmpca.GetCertificateAuthorityCsrInput{CertificateAuthorityArn: arn})
		return err
	}); err != nil {
		return result{}, fmt.Errorf("get the CA's certificate request: %w", err)
	}
	return result{*arn, map[string]string{"Arn": *arn, "CertificateSigningRequest": aws.ToString(csr.Csr)}}, nil
}

// patiently repeats what AWS Private CA says is still in progress.
func (s *Stack) patiently(ctx context.Context, ask func() error) error {
	for {
		err := ask()
		var progress *types.RequestInProgressException
		if !errors.As(err, &progress) {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

type certificate struct {
	CertificateAuthorityArn, CertificateSigningRequest, SigningAlgorithm string
	TemplateArn                                                          *string
	Validity, ValidityNotBefore                                          *types.Validity
	APIPassthrough                                                       *types.ApiPassthrough
}

// makeCertificate has a CA sign a request.
func makeCertificate(ctx context.Context, s *Stack, _ string, properties map[string]any, _ *Resource) (result, error) {
	p, err := decode[certificate](properties)
	if err != nil {
		return result{}, err
	}
	issued, err := s.clients.pca.IssueCertificate(ctx, &acmpca.IssueCertificateInput{
		CertificateAuthorityArn: &p.CertificateAuthorityArn, Csr: []byte(p.CertificateSigningRequest), SigningAlgorithm: types.SigningAlgorithm(p.SigningAlgorithm),
		TemplateArn: p.TemplateArn, Validity: p.Validity, ValidityNotBefore: p.ValidityNotBefore, ApiPassthrough: p.APIPassthrough, IdempotencyToken: aws.String(rand.Text()),
	})
	if err != nil {
		return result{}, fmt.Errorf("issue the certificate: %w", err)
	}
	var got *acmpca.GetCertificateOutput
	if err := s.patiently(ctx, func() (err error) {
		got, err = s.clients.pca.GetCertificate(ctx, &acmpca.GetCertificateInput{CertificateAuthorityArn: &p.CertificateAuthorityArn, CertificateArn: issued.CertificateArn})
		return err
	}); err != nil {
		return result{}, fmt.Errorf("get the certificate: %w", err)
	}
	return result{*issued.CertificateArn, map[string]string{"Arn": *issued.CertificateArn, "Certificate": aws.ToString(got.Certificate)}}, nil
}

type activation struct {
	CertificateAuthorityArn, Certificate string
	CertificateChain                     *string
	Status                               string
}

// makeActivation gives a CA its certificate.
func makeActivation(ctx context.Context, s *Stack, _ string, properties map[string]any, _ *Resource) (result, error) {
	p, err := decode[activation](properties)
	if err != nil {
		return result{}, err
	}
	in := &acmpca.ImportCertificateAuthorityCertificateInput{CertificateAuthorityArn: &p.CertificateAuthorityArn, Certificate: []byte(p.Certificate)}
	chain := p.Certificate
	if p.CertificateChain != nil {
		in.CertificateChain = []byte(*p.CertificateChain)
		chain += "\n" + *p.CertificateChain
	}
	if _, err := s.clients.pca.ImportCertificateAuthorityCertificate(ctx, in); err != nil {
		return result{}, fmt.Errorf("import the CA's certificate: %w", err)
	}
	if p.Status != "" && p.Status != string(types.CertificateAuthorityStatusActive) {
		if _, err := s.clients.pca.UpdateCertificateAuthority(ctx, &acmpca.UpdateCertificateAuthorityInput{CertificateAuthorityArn: &p.CertificateAuthorityArn, Status: types.CertificateAuthorityStatus(p.Status)}); err != nil {
			return result{}, fmt.Errorf("set the CA's state: %w", err)
		}
	}
	return result{p.CertificateAuthorityArn, map[string]string{"CompleteCertificateChain": chain}}, nil
}
