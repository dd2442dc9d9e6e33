package acmfake

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/acm"
	"github.com/aws/aws-sdk-go-v2/service/acm/types"
	"github.com/aws/smithy-go"
)

const caARN = "arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/12345678-1234-1234-1234-123456789012"

// client is the SDK's, in front of a fake.
func client(t *testing.T, o Options) (*Fake, *acm.Client, *CA) {
	t.Helper()
	ca, err := NewCA(caARN, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	o.Issuer = ca
	fake := New(o)
	server := httptest.NewServer(fake)
	t.Cleanup(server.Close)
	return fake, acm.New(acm.Options{
		Region: "eu-central-1", BaseEndpoint: &server.URL, Credentials: credentials.NewStaticCredentialsProvider("AKIATEST", "test", ""), RetryMaxAttempts: 1,
	}), ca
}

func request(t *testing.T, c *acm.Client, token string) string {
	t.Helper()
	in := &acm.RequestCertificateInput{
		DomainName: aws.String("a.example.com"), CertificateAuthorityArn: aws.String(caARN), KeyAlgorithm: types.KeyAlgorithmEcPrime256v1,
		SubjectAlternativeNames: []string{"b.example.com"},
	}
	if token != "" {
		in.IdempotencyToken = &token
	}
	answer, err := c.RequestCertificate(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	return *answer.CertificateArn
}

// code is what the API calls an error; empty for none.
func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// TestExportRules keeps to what ACM says of passphrases, of certificates that are not there yet, and of renewing.
func TestExportRules(t *testing.T) {
	_, c, _ := client(t, Options{PendingPolls: 1})
	arn := request(t, c, "")
	export := func(arn, passphrase string) error {
		_, err := c.ExportCertificate(t.Context(), &acm.ExportCertificateInput{CertificateArn: &arn, Passphrase: []byte(passphrase)})
		return err
	}
	renew := func(arn string) error {
		_, err := c.RenewCertificate(t.Context(), &acm.RenewCertificateInput{CertificateArn: &arn})
		return err
	}
	if got := code(export(arn, "passphrase")); got != "RequestInProgressException" {
		t.Errorf("exporting too early: %q", got)
	}
	for _, want := range []types.CertificateStatus{types.CertificateStatusPendingValidation, types.CertificateStatusIssued} {
		answer, err := c.DescribeCertificate(t.Context(), &acm.DescribeCertificateInput{CertificateArn: &arn})
		if err != nil || answer.Certificate.Status != want || answer.Certificate.RenewalEligibility != types.RenewalEligibilityIneligible {
			t.Fatalf("%v, %v, want %s", answer, err, want)
		}
	}
	if got := code(renew(arn)); got != "ValidationException" {
		t.Errorf("renewing what was never exported: %q", got)
	}
	for passphrase, want := range map[string]string{
		"abc": "ValidationException", strings.Repeat("a", 129): "ValidationException", "pass#word": "ValidationException", "pa$$word": "ValidationException",
		"100%sure": "ValidationException", "grüße": "ValidationException", "abcd": "", "any other \"punctuation\" & spaces!": "",
	} {
		if got := code(export(arn, passphrase)); got != want {
			t.Errorf("the passphrase %q: %q, want %q", passphrase, got, want)
		}
	}
	if err := renew(arn); err != nil {
		t.Errorf("renewing: %v", err)
	}
	if got := code(renew(arn)); got != "RequestInProgressException" {
		t.Errorf("renewing twice: %q", got)
	}
	gone := arn[:len(arn)-12] + "000000000000"
	if got := code(export(gone, "passphrase")); got != "ResourceNotFoundException" {
		t.Errorf("exporting what is not there: %q", got)
	}
	if got := code(renew("arn:aws:acm:eu-central-1:1:nothing")); got != "InvalidArnException" {
		t.Errorf("no ARN: %q", got)
	}
}

// TestRequestRules keeps to what ACM says of names, keys and idempotency tokens.
func TestRequestRules(t *testing.T) {
	now := time.Now()
	fake, c, _ := client(t, Options{Now: func() time.Time { return now }})
	first := request(t, c, "token")
	if again := request(t, c, "token"); again != first {
		t.Error("a token gives another certificate within the hour")
	}
	if other := request(t, c, ""); other == first {
		t.Error("without a token it is the same certificate")
	}
	now = now.Add(61 * time.Minute)
	if later := request(t, c, "token"); later == first {
		t.Error("a token is known for more than an hour")
	}
	if len(fake.ARNs()) != 3 {
		t.Errorf("the certificates %q", fake.ARNs())
	}
	for title, change := range map[string]func(*acm.RequestCertificateInput){
		"a bare name": func(in *acm.RequestCertificateInput) { in.DomainName = aws.String("a") },
		"a long name": func(in *acm.RequestCertificateInput) {
			in.DomainName = aws.String(strings.Repeat("a", 60) + ".example.com")
		},
		"no CA":       func(in *acm.RequestCertificateInput) { in.CertificateAuthorityArn = nil },
		"a bad CA":    func(in *acm.RequestCertificateInput) { in.CertificateAuthorityArn = aws.String(first) },
		"an old key":  func(in *acm.RequestCertificateInput) { in.KeyAlgorithm = types.KeyAlgorithmRsa4096 },
		"a bad token": func(in *acm.RequestCertificateInput) { in.IdempotencyToken = aws.String("not-a-token") },
		"a long SAN": func(in *acm.RequestCertificateInput) {
			in.SubjectAlternativeNames = []string{strings.Repeat("a.", 127) + "com"}
		},
	} {
		in := &acm.RequestCertificateInput{DomainName: aws.String("a.example.com"), CertificateAuthorityArn: aws.String(caARN)}
		change(in)
		if _, err := c.RequestCertificate(t.Context(), in); code(err) == "" {
			t.Errorf("%s: %v", title, err)
		}
	}
}

// TestListRules shows RSA alone to those who ask for nothing else, and pages.
func TestListRules(t *testing.T) {
	_, c, _ := client(t, Options{PageSize: 1})
	for _, token := range []string{"a", "b"} {
		request(t, c, token)
	}
	plain, err := c.ListCertificates(t.Context(), &acm.ListCertificatesInput{})
	if err != nil || len(plain.CertificateSummaryList) != 0 {
		t.Errorf("%v, %v", plain, err)
	}
	count := 0
	pages := acm.NewListCertificatesPaginator(c, &acm.ListCertificatesInput{Includes: &types.Filters{KeyTypes: []types.KeyAlgorithm{types.KeyAlgorithmEcPrime256v1}}})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil || len(page.CertificateSummaryList) > 1 {
			t.Fatal(page, err)
		}
		count += len(page.CertificateSummaryList)
	}
	if count != 2 {
		t.Errorf("%d certificates", count)
	}
	none, err := c.ListCertificates(t.Context(), &acm.ListCertificatesInput{
		CertificateStatuses: []types.CertificateStatus{types.CertificateStatusExpired}, Includes: &types.Filters{KeyTypes: []types.KeyAlgorithm{types.KeyAlgorithmEcPrime256v1}},
	})
	if err != nil || len(none.CertificateSummaryList) != 0 {
		t.Errorf("%v, %v", none, err)
	}
}

// TestTagsAndGet does the rest.
func TestTagsAndGet(t *testing.T) {
	_, c, _ := client(t, Options{})
	arn := request(t, c, "")
	if _, err := c.GetCertificate(t.Context(), &acm.GetCertificateInput{CertificateArn: &arn}); code(err) != "RequestInProgressException" {
		t.Errorf("too early: %v", err)
	}
	if _, err := c.DescribeCertificate(t.Context(), &acm.DescribeCertificateInput{CertificateArn: &arn}); err != nil {
		t.Fatal(err)
	}
	got, err := c.GetCertificate(t.Context(), &acm.GetCertificateInput{CertificateArn: &arn})
	if err != nil || strings.Count(*got.CertificateChain, "BEGIN") != 2 || strings.Count(*got.Certificate, "BEGIN") != 1 {
		t.Errorf("%v, %v", got, err)
	}
	tags := []types.Tag{{Key: aws.String("b"), Value: aws.String("2")}, {Key: aws.String("a"), Value: aws.String("1")}}
	if _, err := c.AddTagsToCertificate(t.Context(), &acm.AddTagsToCertificateInput{CertificateArn: &arn, Tags: tags}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RemoveTagsFromCertificate(t.Context(), &acm.RemoveTagsFromCertificateInput{CertificateArn: &arn, Tags: tags[:1]}); err != nil {
		t.Fatal(err)
	}
	listed, err := c.ListTagsForCertificate(t.Context(), &acm.ListTagsForCertificateInput{CertificateArn: &arn})
	if err != nil || len(listed.Tags) != 1 || *listed.Tags[0].Key != "a" {
		t.Errorf("%v, %v", listed, err)
	}
	if _, err := c.DeleteCertificate(t.Context(), &acm.DeleteCertificateInput{CertificateArn: &arn}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.GetCertificate(t.Context(), &acm.GetCertificateInput{CertificateArn: &arn}); code(err) != "ResourceNotFoundException" {
		t.Errorf("after it was deleted: %v", err)
	}
	if _, err := c.GetAccountConfiguration(t.Context(), &acm.GetAccountConfigurationInput{}); code(err) != "UnknownOperationException" {
		t.Errorf("what it does not know: %v", err)
	}
}

// TestThrottle refuses, and counts the call.
func TestThrottle(t *testing.T) {
	fake, c, _ := client(t, Options{Throttle: func(operation string) bool { return operation == "ListCertificates" }})
	if _, err := c.ListCertificates(t.Context(), &acm.ListCertificatesInput{}); code(err) != "ThrottlingException" || fake.Calls("ListCertificates") != 1 {
		t.Errorf("%v after %d calls", err, fake.Calls("ListCertificates"))
	}
}
