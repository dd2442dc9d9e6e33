package pcafake

import (
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// CA says what a helper makes a CA like. The zero value is a root in general-purpose mode on P-256 that lives ten years.
type CA struct {
	// Name is its CN; empty is "test".
	Name string
	// ShortLived makes one in short-lived mode.
	ShortLived bool
	// Parent is the ARN of the CA that signs it; empty makes a root.
	Parent string
	// Life is how long its certificate is valid; 0 is ten years for a root and five for another.
	Life time.Duration
	// KeyAlgorithm is AWS's name; empty is EC_prime256v1.
	KeyAlgorithm string
	// CRL is the host, and port, that stands in the CRL location; empty is without a CRL.
	CRL string
	// Region and Account put it elsewhere, as a CA that is shared with this account.
	Region, Account string
}

// Add makes a CA that is ready, and gives its ARN.
func (f *Fake) Add(ca CA) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	in := input{
		CertificateAuthorityType: typeRoot, UsageMode: generalPurpose,
		CertificateAuthorityConfiguration: &configuration{
			KeyAlgorithm: "EC_prime256v1", SigningAlgorithm: "SHA256WITHECDSA", Subject: subject{CommonName: "test", Organization: "example"},
		},
	}
	template, life := "RootCACertificate/V1", 10*year
	if ca.Parent != "" {
		in.CertificateAuthorityType, template, life = typeSub, "SubordinateCACertificate_PathLen0/V1", 5*year
	}
	if ca.ShortLived {
		in.UsageMode = shortLived
	}
	if ca.Name != "" {
		in.CertificateAuthorityConfiguration.Subject.CommonName = ca.Name
	}
	if ca.KeyAlgorithm != "" {
		in.CertificateAuthorityConfiguration.KeyAlgorithm = ca.KeyAlgorithm
		if strings.HasPrefix(ca.KeyAlgorithm, "RSA") {
			in.CertificateAuthorityConfiguration.SigningAlgorithm = "SHA256WITHRSA"
		}
	}
	if ca.Life != 0 {
		life = ca.Life
	}
	if ca.CRL != "" {
		in.RevocationConfiguration = &revocation{CrlConfiguration: &crlConfiguration{Enabled: true, ExpirationInDays: 7, CustomCname: ca.CRL, S3BucketName: "crl"}}
	}
	made, err := f.create(in)
	if err != nil {
		return "", err
	}
	arn, _ := made.(output)["CertificateAuthorityArn"].(string)
	a := f.authorities[arn]
	a.status, a.pending = waiting, 0
	if ca.Region != "" || ca.Account != "" {
		delete(f.authorities, arn)
		a.arn = fmt.Sprintf("arn:aws:acm-pca:%s:%s:certificate-authority/%s", or(ca.Region, f.o.Region), or(ca.Account, f.o.Account), a.id())
		f.authorities[a.arn] = a
	}
	signer := a
	if ca.Parent != "" {
		if signer, err = f.find(ca.Parent); err != nil {
			return "", err
		}
	}
	csr, err := parseCSR(a.csr)
	if err != nil {
		return "", err
	}
	profile, err := parseTemplate(templateARN + template)
	if err != nil {
		return "", err
	}
	tbs, err := f.template(signer, profile, csr, input{
		SigningAlgorithm: signer.config.SigningAlgorithm, Validity: &validity{"ABSOLUTE", f.now().Add(life).Unix()},
	})
	if err != nil {
		return "", err
	}
	if a.cert, a.chain, err = signer.sign(tbs, profile); err != nil {
		return "", err
	}
	a.status = active
	return a.arn, nil
}

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// SetStatus puts a CA into a state, such as DISABLED, whatever it is in.
func (f *Fake) SetStatus(arn, status string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, err := f.findDeleted(arn)
	if err == nil {
		a.status, a.changed = status, f.now()
	}
	return err
}

// Sign is what AWS Certificate Manager does with a CA: it certifies a request (PEM) for a time with the template for end
// entities, and gives certificate and chain up to the root, PEM. A CA in short-lived mode is refused.
func (f *Fake) Sign(arn string, csr []byte, life time.Duration) (cert, chain []byte, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a, err := f.find(arn)
	if err != nil {
		return nil, nil, err
	}
	if a.mode == shortLived {
		return nil, nil, refuse("InvalidStateException", "ACM cannot issue from %s: its usage mode is SHORT_LIVED_CERTIFICATE.", arn)
	}
	out, err := f.issue(input{
		CertificateAuthorityArn: arn, Csr: csr, SigningAlgorithm: a.config.SigningAlgorithm,
		Validity: &validity{"ABSOLUTE", f.now().Add(life).Unix()},
	})
	if err != nil {
		return nil, nil, err
	}
	name, _ := out.(output)["CertificateArn"].(string)
	made := a.certificates[name]
	if made.cert == nil {
		return nil, nil, refuse("RequestFailedException", "Certificate %s is in a failed state.", name)
	}
	return []byte(encode(made.cert)), []byte(encode(made.chain...)), nil
}

// ShortLived tells whether a CA is in short-lived mode; false for one that is not there.
func (f *Fake) ShortLived(arn string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := f.authorities[arn]
	return a != nil && a.mode == shortLived
}

// Revoke puts a certificate on the list of the CA that has issued it.
func (f *Fake) Revoke(arn string, cert *x509.Certificate) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.revoke(input{
		CertificateAuthorityArn: arn, CertificateSerial: hex.EncodeToString(cert.SerialNumber.Bytes()), RevocationReason: "KEY_COMPROMISE",
	})
	return err
}
