package pcafake_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"math/big"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/acmpca"
	"github.com/aws/aws-sdk-go-v2/service/acmpca/types"
	"github.com/aws/smithy-go"

	"countersign.dev/aws/internal/awstest/pcafake"
)

// world is a service and a client of it: the SDK as it is.
type world struct {
	*acmpca.Client

	t    *testing.T
	fake *pcafake.Fake
	now  time.Time
}

func newWorld(t *testing.T, o pcafake.Options) *world {
	t.Helper()
	w := &world{t: t, now: time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)}
	o.Now = func() time.Time { return w.now }
	w.fake = pcafake.New(o)
	server := httptest.NewServer(w.fake)
	t.Cleanup(server.Close)
	w.Client = acmpca.New(acmpca.Options{
		Region: "eu-central-1", BaseEndpoint: aws.String(server.URL), Credentials: credentials.NewStaticCredentialsProvider("AKID", "secret", ""),
		Retryer: aws.NopRetryer{},
	})
	return w
}

// code is AWS's name of an error.
func code(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode()
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

func (w *world) add(ca pcafake.CA) string {
	w.t.Helper()
	arn, err := w.fake.Add(ca)
	if err != nil {
		w.t.Fatal(err)
	}
	return arn
}

// csr makes a request with a subject, a URI and an unknown extension, when the template has none.
func (w *world) csr(template *x509.CertificateRequest) []byte {
	w.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	if template == nil {
		template = &x509.CertificateRequest{
			Subject: pkix.Name{CommonName: "checkout", Organization: []string{"payments.internal"}}, DNSNames: []string{"checkout"},
			URIs:            []*url.URL{{Scheme: "spiffe", Host: "payments.internal", Path: "/service/checkout"}},
			ExtraExtensions: []pkix.Extension{{Id: unknown, Value: []byte{5, 0}}},
		}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		w.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

var unknown = asn1.ObjectIdentifier{1, 2, 3, 4}

// issue asks for a certificate of 90 hours, changed as a test wants it.
func (w *world) issue(arn string, change func(*acmpca.IssueCertificateInput)) (string, error) {
	in := &acmpca.IssueCertificateInput{
		CertificateAuthorityArn: aws.String(arn), Csr: w.csr(nil), SigningAlgorithm: types.SigningAlgorithmSha256withecdsa, Validity: w.until(90 * time.Hour),
	}
	if change != nil {
		change(in)
	}
	out, err := w.IssueCertificate(context.Background(), in)
	if err != nil {
		return "", err
	}
	return aws.ToString(out.CertificateArn), nil
}

func (w *world) until(d time.Duration) *types.Validity {
	return &types.Validity{Type: types.ValidityPeriodTypeAbsolute, Value: aws.Int64(w.now.Add(d).Unix())}
}

// get gives a certificate and its chain.
func (w *world) get(authority, arn string) (*x509.Certificate, string, error) {
	w.t.Helper()
	out, err := w.GetCertificate(w.t.Context(), &acmpca.GetCertificateInput{CertificateAuthorityArn: aws.String(authority), CertificateArn: aws.String(arn)})
	if err != nil {
		return nil, "", err
	}
	return w.parse(aws.ToString(out.Certificate)), aws.ToString(out.CertificateChain), nil
}

func (w *world) parse(text string) *x509.Certificate {
	w.t.Helper()
	block, _ := pem.Decode([]byte(text))
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		w.t.Fatal(err)
	}
	return cert
}

func template(name string) *string { return aws.String("arn:aws:acm-pca:::template/" + name + "/V1") }

// TestLife makes a root as AWS has it made: create, fetch the request, sign it by itself, import, issue, disable, delete.
func TestLife(t *testing.T) {
	w := newWorld(t, pcafake.Options{PendingPolls: 1})
	ctx := t.Context()
	in := &acmpca.CreateCertificateAuthorityInput{
		CertificateAuthorityType: types.CertificateAuthorityTypeRoot, IdempotencyToken: aws.String("one"), UsageMode: types.CertificateAuthorityUsageModeShortLivedCertificate,
		CertificateAuthorityConfiguration: &types.CertificateAuthorityConfiguration{
			KeyAlgorithm: types.KeyAlgorithmEcSecp384r1, SigningAlgorithm: types.SigningAlgorithmSha384withecdsa, Subject: &types.ASN1Subject{CommonName: aws.String("root"), Country: aws.String("DE")},
		},
		Tags: []types.Tag{{Key: aws.String("a"), Value: aws.String("1")}},
	}
	made, err := w.CreateCertificateAuthority(ctx, in)
	if err != nil {
		t.Fatal(err)
	}
	arn := made.CertificateAuthorityArn
	if again, err := w.CreateCertificateAuthority(ctx, in); err != nil || *again.CertificateAuthorityArn != *arn {
		t.Errorf("the same token gave %v, %v", again, err)
	}
	get := &acmpca.GetCertificateAuthorityCsrInput{CertificateAuthorityArn: arn}
	if _, err := w.GetCertificateAuthorityCsr(ctx, get); code(err) != "RequestInProgressException" {
		t.Errorf("too early: %v", err)
	}
	csr, err := w.GetCertificateAuthorityCsr(ctx, get)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.GetCertificateAuthorityCertificate(ctx, &acmpca.GetCertificateAuthorityCertificateInput{CertificateAuthorityArn: arn}); code(err) != "InvalidStateException" {
		t.Errorf("a certificate before there is one: %v", err)
	}
	if _, err := w.issue(*arn, func(in *acmpca.IssueCertificateInput) { in.SigningAlgorithm = types.SigningAlgorithmSha384withecdsa }); code(err) != "InvalidStateException" {
		t.Errorf("a leaf before there is a certificate: %v", err)
	}
	self, err := w.issue(*arn, func(in *acmpca.IssueCertificateInput) {
		in.Csr, in.TemplateArn, in.SigningAlgorithm = []byte(*csr.Csr), template("RootCACertificate"), types.SigningAlgorithmSha384withecdsa
		in.Validity = &types.Validity{Type: types.ValidityPeriodTypeYears, Value: aws.Int64(10)}
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := w.get(*arn, self); code(err) != "RequestInProgressException" {
		t.Errorf("too early: %v", err)
	}
	root, chain, err := w.get(*arn, self)
	if err != nil || chain != "" || !root.IsCA || root.CheckSignatureFrom(root) != nil || !root.NotAfter.Equal(w.now.AddDate(10, 0, 0)) {
		t.Fatalf("%+v, %q, %v", root, chain, err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw})
	if _, err := w.ImportCertificateAuthorityCertificate(ctx, &acmpca.ImportCertificateAuthorityCertificateInput{CertificateAuthorityArn: arn, Certificate: text}); err != nil {
		t.Fatal(err)
	}
	described, err := w.DescribeCertificateAuthority(ctx, &acmpca.DescribeCertificateAuthorityInput{CertificateAuthorityArn: arn})
	if err != nil {
		t.Fatal(err)
	}
	if ca := described.CertificateAuthority; ca.Status != types.CertificateAuthorityStatusActive || !ca.NotAfter.Equal(root.NotAfter) || ca.UsageMode != in.UsageMode ||
		ca.CertificateAuthorityConfiguration.KeyAlgorithm != types.KeyAlgorithmEcSecp384r1 || *ca.CertificateAuthorityConfiguration.Subject.Country != "DE" || *ca.OwnerAccount != "123456789012" {
		t.Errorf("%+v", ca)
	}
	w.ends(arn)
}

// ends disables, deletes and brings back a CA, and looks at its tags and its policy.
func (w *world) ends(arn *string) {
	t, ctx := w.t, w.t.Context()
	t.Helper()
	update := func(status types.CertificateAuthorityStatus) error {
		_, err := w.UpdateCertificateAuthority(ctx, &acmpca.UpdateCertificateAuthorityInput{CertificateAuthorityArn: arn, Status: status})
		return err
	}
	if _, err := w.DeleteCertificateAuthority(ctx, &acmpca.DeleteCertificateAuthorityInput{CertificateAuthorityArn: arn}); code(err) != "InvalidStateException" {
		t.Errorf("deleting an active one: %v", err)
	}
	if err := update(types.CertificateAuthorityStatusDisabled); err != nil {
		t.Fatal(err)
	}
	if _, err := w.issue(*arn, nil); code(err) != "InvalidStateException" {
		t.Errorf("a disabled one has issued: %v", err)
	}
	if _, err := w.DeleteCertificateAuthority(ctx, &acmpca.DeleteCertificateAuthorityInput{CertificateAuthorityArn: arn}); err != nil {
		t.Fatal(err)
	}
	if err := update(types.CertificateAuthorityStatusActive); code(err) != "InvalidStateException" {
		t.Errorf("enabling a deleted one: %v", err)
	}
	if _, err := w.RestoreCertificateAuthority(ctx, &acmpca.RestoreCertificateAuthorityInput{CertificateAuthorityArn: arn}); err != nil {
		t.Fatal(err)
	}
	if err := update(types.CertificateAuthorityStatusActive); err != nil {
		t.Error(err)
	}
	if _, err := w.TagCertificateAuthority(ctx, &acmpca.TagCertificateAuthorityInput{CertificateAuthorityArn: arn, Tags: []types.Tag{{Key: aws.String("b"), Value: aws.String("2")}}}); err != nil {
		t.Error(err)
	}
	if _, err := w.UntagCertificateAuthority(ctx, &acmpca.UntagCertificateAuthorityInput{CertificateAuthorityArn: arn, Tags: []types.Tag{{Key: aws.String("a")}}}); err != nil {
		t.Error(err)
	}
	if tags, err := w.ListTags(ctx, &acmpca.ListTagsInput{CertificateAuthorityArn: arn}); err != nil || len(tags.Tags) != 1 || *tags.Tags[0].Key != "b" {
		t.Errorf("tags %+v, %v", tags, err)
	}
	if _, err := w.GetPolicy(ctx, &acmpca.GetPolicyInput{ResourceArn: arn}); code(err) != "ResourceNotFoundException" {
		t.Errorf("a policy before there is one: %v", err)
	}
	if _, err := w.PutPolicy(ctx, &acmpca.PutPolicyInput{ResourceArn: arn, Policy: aws.String(`{"Statement":[]}`)}); err != nil {
		t.Error(err)
	}
	if policy, err := w.GetPolicy(ctx, &acmpca.GetPolicyInput{ResourceArn: arn}); err != nil || *policy.Policy != `{"Statement":[]}` {
		t.Errorf("the policy is %+v, %v", policy, err)
	}
	if _, err := w.DeletePolicy(ctx, &acmpca.DeletePolicyInput{ResourceArn: arn}); err != nil {
		t.Error(err)
	}
	w.add(pcafake.CA{})
	pages := acmpca.NewListCertificateAuthoritiesPaginator(w, &acmpca.ListCertificateAuthoritiesInput{MaxResults: aws.Int32(1)})
	listed := 0
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		listed += len(page.CertificateAuthorities)
	}
	if listed != 2 {
		t.Errorf("%d CAs are listed", listed)
	}
}

// TestValidity issues for each kind of validity, and refuses what a CA cannot give.
func TestValidity(t *testing.T) {
	w := newWorld(t, pcafake.Options{})
	general, short, brief := w.add(pcafake.CA{}), w.add(pcafake.CA{ShortLived: true}), w.add(pcafake.CA{Life: time.Hour})
	for name, test := range map[string]struct {
		arn   string
		kind  types.ValidityPeriodType
		value int64
		end   time.Time
	}{
		"days":                     {general, "DAYS", 3, w.now.AddDate(0, 0, 3)},
		"months":                   {general, "MONTHS", 2, w.now.AddDate(0, 2, 0)},
		"years":                    {general, "YEARS", 2, w.now.AddDate(2, 0, 0)},
		"absolute":                 {general, "ABSOLUTE", w.now.Unix() + 3600, w.now.Add(time.Hour)},
		"end date":                 {general, "END_DATE", 20261224180000, time.Date(2026, 12, 24, 18, 0, 0, 0, time.UTC)},
		"end date, two digits":     {general, "END_DATE", 261224180000, time.Date(2026, 12, 24, 18, 0, 0, 0, time.UTC)},
		"seven days, short-lived":  {short, "DAYS", 7, w.now.AddDate(0, 0, 7)},
		"eight days, short-lived":  {short, "DAYS", 8, time.Time{}},
		"more by a second":         {short, "ABSOLUTE", w.now.Unix() + 7*86400 + 1, time.Time{}},
		"beyond the CA's end":      {brief, "ABSOLUTE", w.now.Unix() + 3601, time.Time{}},
		"past":                     {general, "ABSOLUTE", w.now.Unix() - 1, time.Time{}},
		"zero":                     {general, "DAYS", 0, time.Time{}},
		"an end date that is none": {general, "END_DATE", 5, time.Time{}},
	} {
		t.Run(name, func(t *testing.T) {
			arn, err := w.issue(test.arn, func(in *acmpca.IssueCertificateInput) {
				in.Validity = &types.Validity{Type: test.kind, Value: aws.Int64(test.value)}
			})
			if test.end.IsZero() {
				if code(err) != "ValidationException" {
					t.Errorf("it gave %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			cert, _, err := w.get(test.arn, arn)
			if err != nil || !cert.NotAfter.Equal(test.end) || !cert.NotBefore.Equal(w.now.Add(-time.Hour)) {
				t.Errorf("valid from %s to %s, %v", cert.NotBefore, cert.NotAfter, err)
			}
		})
	}
	if _, err := w.issue(general, func(in *acmpca.IssueCertificateInput) { in.ValidityNotBefore = w.until(-2 * time.Hour) }); err != nil {
		t.Error(err)
	}
}

// TestTemplates looks at what each template makes of the same request.
func TestTemplates(t *testing.T) {
	w := newWorld(t, pcafake.Options{})
	authority := w.add(pcafake.CA{})
	has := func(cert *x509.Certificate, id asn1.ObjectIdentifier) bool {
		for _, extension := range cert.Extensions {
			if extension.Id.Equal(id) {
				return true
			}
		}
		return false
	}
	for name, test := range map[string]struct {
		ca, passes bool
		usages     int
		cn         string
	}{
		"EndEntityCertificate":                       {usages: 2, cn: "checkout"},
		"EndEntityServerAuthCertificate":             {usages: 1, cn: "checkout"},
		"EndEntityClientAuthCertificate":             {usages: 1, cn: "checkout"},
		"EndEntityCertificate_CSRPassthrough":        {usages: 2, cn: "checkout", passes: true},
		"EndEntityCertificate_APIPassthrough":        {usages: 2, cn: "api"},
		"SubordinateCACertificate_PathLen0":          {ca: true, cn: "checkout"},
		"SubordinateCACertificate_PathLen3":          {ca: true, cn: "checkout"},
		"EndEntityCertificate_APICSRPassthrough":     {usages: 2, cn: "api", passes: true},
		"SubordinateCACertificate_PathLen1_Whatever": {},
		"RootCACertificate_CSRPassthrough":           {},
	} {
		t.Run(name, func(t *testing.T) {
			arn, err := w.issue(authority, func(in *acmpca.IssueCertificateInput) {
				in.TemplateArn = template(name)
				in.ApiPassthrough = &types.ApiPassthrough{
					Subject:    &types.ASN1Subject{CommonName: aws.String("api")},
					Extensions: &types.Extensions{SubjectAlternativeNames: []types.GeneralName{{DnsName: aws.String("api")}}},
				}
			})
			if test.cn == "" {
				if code(err) != "InvalidArnException" {
					t.Errorf("it gave %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			cert, chain, err := w.get(authority, arn)
			if err != nil {
				t.Fatal(err)
			}
			if cert.IsCA != test.ca || len(cert.ExtKeyUsage) != test.usages || cert.Subject.CommonName != test.cn || cert.DNSNames[0] != test.cn || has(cert, unknown) != test.passes {
				t.Errorf("CA %v, usages %v, %s, %v, passed through %v", cert.IsCA, cert.ExtKeyUsage, cert.Subject, cert.DNSNames, has(cert, unknown))
			}
			if err := cert.CheckSignatureFrom(w.parse(chain)); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRefusals gives what AWS refuses, and expects its errors.
func TestRefusals(t *testing.T) {
	w := newWorld(t, pcafake.Options{})
	authority := w.add(pcafake.CA{})
	ed := func(in *acmpca.IssueCertificateInput) {
		in.Csr = w.csr(&x509.CertificateRequest{DNSNames: []string{"a"}})
	}
	for name, test := range map[string]struct {
		change func(*acmpca.IssueCertificateInput)
		code   string
	}{
		"no CSR":            {func(in *acmpca.IssueCertificateInput) { in.Csr = []byte("hello") }, "MalformedCSRException"},
		"no subject":        {ed, "MalformedCSRException"},
		"another algorithm": {func(in *acmpca.IssueCertificateInput) { in.SigningAlgorithm = types.SigningAlgorithmSha256withrsa }, "InvalidArgsException"},
		"no CA": {func(in *acmpca.IssueCertificateInput) {
			in.CertificateAuthorityArn = aws.String(authority[:len(authority)-4] + "0000")
		}, "ResourceNotFoundException"},
		"no ARN":         {func(in *acmpca.IssueCertificateInput) { in.CertificateAuthorityArn = aws.String("arn:aws:acm-pca:x") }, "InvalidArnException"},
		"a long token":   {func(in *acmpca.IssueCertificateInput) { in.IdempotencyToken = aws.String(strings.Repeat("x", 37)) }, "ValidationException"},
		"another's root": {func(in *acmpca.IssueCertificateInput) { in.TemplateArn = template("RootCACertificate") }, "InvalidArgsException"},
		"an empty subject, names critical": {func(in *acmpca.IssueCertificateInput) {
			in.Csr = w.csr(&x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: []byte{0x30, 3, 0x82, 1, 'a'}}}})
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := w.issue(authority, test.change); code(err) != test.code {
				t.Errorf("it gave %v", err)
			}
		})
	}
	get := func(authority, arn string) string { _, _, err := w.get(authority, arn); return code(err) }
	if got := get(authority, authority+"/certificate/"+strings.Repeat("0", 32)); got != "ResourceNotFoundException" {
		t.Errorf("a certificate that is not there: %s", got)
	}
	if got := get(authority, "hello"); got != "InvalidArnException" {
		t.Errorf("no ARN: %s", got)
	}
	w.now = w.now.AddDate(11, 0, 0)
	if _, err := w.issue(authority, nil); code(err) != "InvalidStateException" {
		t.Errorf("an expired CA: %v", err)
	}
}

// TestIdempotency asks with the same token for five minutes, and later.
func TestIdempotency(t *testing.T) {
	fails := false
	w := newWorld(t, pcafake.Options{Fail: func(*x509.CertificateRequest) bool { return fails }})
	authority := w.add(pcafake.CA{})
	ask := func(token string) string {
		t.Helper()
		arn, err := w.issue(authority, func(in *acmpca.IssueCertificateInput) { in.IdempotencyToken = aws.String(token) })
		if err != nil {
			t.Fatal(err)
		}
		return arn
	}
	first := ask("a")
	w.now = w.now.Add(5*time.Minute - time.Second)
	if ask("a") != first || w.fake.Issued() != 1 {
		t.Error("within five minutes it is another one")
	}
	if none := ask(""); ask("b") == first || ask("") == none {
		t.Error("another token, or none, gave the same one")
	}
	w.now = w.now.Add(time.Second)
	if ask("a") == first {
		t.Error("after five minutes it is the same one")
	}
	fails = true
	if _, _, err := w.get(authority, ask("c")); code(err) != "RequestFailedException" {
		t.Errorf("a request that fails: %v", err)
	}
}

// TestThrottle lets too many calls be refused as AWS does.
func TestThrottle(t *testing.T) {
	w := newWorld(t, pcafake.Options{Throttle: func(action string) bool { return action == "IssueCertificate" }})
	authority := w.add(pcafake.CA{})
	if _, err := w.issue(authority, nil); code(err) != "ThrottlingException" {
		t.Errorf("it gave %v", err)
	}
	if w.fake.Calls("IssueCertificate") != 1 || w.fake.Issued() != 0 {
		t.Error("it was counted otherwise")
	}
}

// TestRevoke puts a certificate on the list.
func TestRevoke(t *testing.T) {
	w := newWorld(t, pcafake.Options{})
	authority := w.add(pcafake.CA{CRL: "crl.example.com"})
	arn, err := w.issue(authority, nil)
	if err != nil {
		t.Fatal(err)
	}
	cert, _, err := w.get(authority, arn)
	if err != nil {
		t.Fatal(err)
	}
	id := authority[strings.LastIndex(authority, "/")+1:]
	if want := "http://crl.example.com/crl/" + id + ".crl"; len(cert.CRLDistributionPoints) != 1 || cert.CRLDistributionPoints[0] != want {
		t.Errorf("the list is at %v, want %s", cert.CRLDistributionPoints, want)
	}
	revoke := func(serial *big.Int) string {
		_, err := w.RevokeCertificate(t.Context(), &acmpca.RevokeCertificateInput{
			CertificateAuthorityArn: aws.String(authority), CertificateSerial: aws.String(hex.EncodeToString(serial.Bytes())), RevocationReason: types.RevocationReasonKeyCompromise,
		})
		return code(err)
	}
	for _, test := range []struct {
		serial *big.Int
		want   string
	}{{cert.SerialNumber, ""}, {cert.SerialNumber, "RequestAlreadyProcessedException"}, {big.NewInt(0xab), "ResourceNotFoundException"}} {
		if got := revoke(test.serial); got != test.want {
			t.Errorf("revoking gave %q, want %q", got, test.want)
		}
	}
	recorder := httptest.NewRecorder()
	w.fake.ServeHTTP(recorder, httptest.NewRequest("GET", "/crl/"+id+".crl", nil))
	list, err := x509.ParseRevocationList(recorder.Body.Bytes())
	if err != nil || len(list.RevokedCertificateEntries) != 1 || list.RevokedCertificateEntries[0].SerialNumber.Cmp(cert.SerialNumber) != 0 {
		t.Errorf("the list holds %+v, %v", list, err)
	}
	_, err = w.UpdateCertificateAuthority(t.Context(), &acmpca.UpdateCertificateAuthorityInput{CertificateAuthorityArn: aws.String(authority), RevocationConfiguration: &types.RevocationConfiguration{
		CrlConfiguration: &types.CrlConfiguration{Enabled: aws.Bool(true), ExpirationInDays: aws.Int32(7)},
	}})
	if code(err) != "InvalidArgsException" {
		t.Errorf("a list without a bucket: %v", err)
	}
}

// TestImport refuses what is no certificate of the CA.
func TestImport(t *testing.T) {
	w := newWorld(t, pcafake.Options{})
	root := w.add(pcafake.CA{})
	out, err := w.GetCertificateAuthorityCertificate(t.Context(), &acmpca.GetCertificateAuthorityCertificateInput{CertificateAuthorityArn: aws.String(root)})
	if err != nil {
		t.Fatal(err)
	}
	made, err := w.CreateCertificateAuthority(t.Context(), &acmpca.CreateCertificateAuthorityInput{
		CertificateAuthorityType: types.CertificateAuthorityTypeSubordinate,
		CertificateAuthorityConfiguration: &types.CertificateAuthorityConfiguration{
			KeyAlgorithm: types.KeyAlgorithmRsa2048, SigningAlgorithm: types.SigningAlgorithmSha256withrsa, Subject: &types.ASN1Subject{CommonName: aws.String("sub")},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.DescribeCertificateAuthority(t.Context(), &acmpca.DescribeCertificateAuthorityInput{CertificateAuthorityArn: made.CertificateAuthorityArn}); err != nil {
		t.Fatal(err)
	}
	csr, err := w.GetCertificateAuthorityCsr(t.Context(), &acmpca.GetCertificateAuthorityCsrInput{CertificateAuthorityArn: made.CertificateAuthorityArn})
	if err != nil {
		t.Fatal(err)
	}
	arn, err := w.issue(root, func(in *acmpca.IssueCertificateInput) {
		in.Csr, in.TemplateArn = []byte(*csr.Csr), template("SubordinateCACertificate_PathLen0")
	})
	if err != nil {
		t.Fatal(err)
	}
	signed, err := w.GetCertificate(t.Context(), &acmpca.GetCertificateInput{CertificateAuthorityArn: aws.String(root), CertificateArn: aws.String(arn)})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ certificate, chain, code string }{
		{"hello", "", "MalformedCertificateException"},
		{*out.Certificate, "", "CertificateMismatchException"},
		{*signed.Certificate, "", "InvalidRequestException"},
		{*signed.Certificate, *signed.Certificate, "MalformedCertificateException"},
		{*signed.Certificate, *signed.CertificateChain, ""},
	} {
		in := &acmpca.ImportCertificateAuthorityCertificateInput{CertificateAuthorityArn: made.CertificateAuthorityArn, Certificate: []byte(test.certificate)}
		if test.chain != "" {
			in.CertificateChain = []byte(test.chain)
		}
		if _, err := w.ImportCertificateAuthorityCertificate(t.Context(), in); code(err) != test.code {
			t.Errorf("it gave %v, want %q", err, test.code)
		}
	}
}

// TestSign does for ACM what ACM has a CA do.
func TestSign(t *testing.T) {
	w := newWorld(t, pcafake.Options{})
	root := w.add(pcafake.CA{})
	below := w.add(pcafake.CA{Parent: root, Name: "below"})
	cert, chain, err := w.fake.Sign(below, w.csr(nil), 24*time.Hour)
	if err != nil || w.parse(string(cert)).CheckSignatureFrom(w.parse(string(chain))) != nil || strings.Count(string(chain), "BEGIN") != 2 {
		t.Errorf("%s%s, %v", cert, chain, err)
	}
	short := w.add(pcafake.CA{ShortLived: true})
	if _, _, err := w.fake.Sign(short, w.csr(nil), time.Hour); err == nil || !w.fake.ShortLived(short) || w.fake.ShortLived(below) {
		t.Errorf("a CA in short-lived mode has signed for ACM: %v", err)
	}
}
