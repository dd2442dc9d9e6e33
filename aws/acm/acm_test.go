package acm

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/acm"
	"github.com/aws/aws-sdk-go-v2/service/acm/types"

	"countersign.dev/aws/internal/awstest/acmfake"
	"countersign.dev/aws/session"
	"countersign.dev/credential"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/rotate"
)

// TestExport requests a certificate, waits for it and exports it; a retry exports the same one, and renewing makes another.
func TestExport(t *testing.T) {
	w := newWorld(t, acmfake.Options{PendingPolls: 2, PageSize: 1})
	if serial := w.serial(); serial != "" {
		t.Errorf("there is %s before anything was requested", serial)
	}
	trust, err := w.authority.Trust(t.Context())
	if err != nil || string(trust.Bundle) != string(w.ca.Root()) || trust.Issuer == nil {
		t.Fatalf("%v, %v", trust, err)
	}
	material, err := w.authority.Export(t.Context(), w.request("first", ""))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(material.Key), "ENCRYPTED PRIVATE KEY") || string(material.Passphrase) != w.password || w.kept != w.fake.ARNs()[0] {
		t.Errorf("the key is not encrypted with the passphrase, or nothing was kept: %q", w.kept)
	}
	parsed, err := credential.Parse(credential.Input{
		Certificate: credential.Value{Data: material.Certificate}, Chain: credential.Value{Data: material.Chain}, Key: credential.Value{Data: material.Key},
		Passphrase: credential.Value{Data: material.Passphrase}, Bundle: credential.Value{Data: trust.Bundle},
	})
	if err != nil {
		t.Fatal(err)
	}
	first := mtls.Serial(parsed.Leaf())
	if err := parsed.Check(credential.Expect{Now: w.clock(), DNSIdentity: checkoutDNS}); err != nil || w.serial() != first {
		t.Errorf("%v; ACM has %s, exported is %s", err, w.serial(), first)
	}
	w.has(`"Action":"ISSUANCE"`, `"CertificateType":"PRIVATE"`, w.kept)

	// Once more, with and without the receipt.
	for _, kept := range []string{w.kept, ""} {
		w.kept = kept
		if again := w.exported("first", ""); again != first {
			t.Errorf("the retry gave %s", again)
		}
	}
	if w.meter.spent() != 1 || w.ca.Issued() != 1 || w.fake.Calls("RequestCertificate") != 1 || w.fake.Calls("RenewCertificate") != 0 {
		t.Errorf("%d were counted, %d issued", w.meter.spent(), w.ca.Issued())
	}

	second := w.exported("second", first)
	if second == first || w.ca.Issued() != 2 || w.meter.spent() != 2 || w.fake.Calls("RenewCertificate") != 1 {
		t.Errorf("renewed from %s to %s: %d issued, %d counted", first, second, w.ca.Issued(), w.meter.spent())
	}
	w.has(`"Action":"RENEWAL"`, `"ACM Certificate Available"`, w.kept)
	// What was to be renewed has been renewed: a retry after a crash renews nothing and counts nothing.
	if again := w.exported("third", first); again != second || w.fake.Calls("RenewCertificate") != 1 || w.meter.spent() != 2 {
		t.Errorf("the retry gave %s, %d counted", again, w.meter.spent())
	}
}

// TestACMRenewsByItself meets the certificate that ACM has renewed 60 days before its end: it is exported and counted, and
// RenewCertificate is never called.
func TestACMRenewsByItself(t *testing.T) {
	w := newWorld(t, acmfake.Options{})
	first := w.exported("first", "")
	w.advance(300)
	w.fake.Tick()
	if w.serial() != first {
		t.Error("it was renewed too early")
	}
	w.advance(36)
	w.fake.Tick()
	second := w.serial()
	if second == first {
		t.Fatal("it was not renewed")
	}
	w.has(`"Action":"RENEWAL"`)
	if again := w.exported("second", first); again != second || w.fake.Calls("RenewCertificate") != 0 || w.meter.spent() != 2 {
		t.Errorf("%s, %d renewals, %d counted", again, w.fake.Calls("RenewCertificate"), w.meter.spent())
	}
}

// TestRenewByEvent renews because ACM says that a certificate approaches its end, and counts nothing more when it is asked once more.
func TestRenewByEvent(t *testing.T) {
	w := newWorld(t, acmfake.Options{PendingPolls: 1})
	first := w.exported("first", "")
	w.fake.Deny("PCA_ACCESS_DENIED")
	w.advance(351)
	w.fake.Tick() // ACM's own renewal fails
	w.has(`"ACM Certificate Approaching Expiration"`, `"CommonName":"`+checkoutDNS+`"`)
	arn := w.fake.ARNs()[0]
	name, err := w.authority.Find(t.Context(), arn)
	if err != nil || name != "checkout" {
		t.Fatalf("%q, %v", name, err)
	}
	_, err = w.authority.Export(t.Context(), w.request("second", first))
	says(t, err, "PCA_ACCESS_DENIED", "create-permission --principal acm.amazonaws.com", arn)
	if !errors.Is(err, ErrFailed) || w.serial() != first {
		t.Errorf("%v, want ErrFailed", err)
	}
	w.fake.Deny("")
	second := w.exported("second", first)
	if second == first || w.fake.Calls("RenewCertificate") != 2 || w.exported("second", first) != second || w.meter.spent() != 2 {
		t.Errorf("%s after %s, %d counted", second, first, w.meter.spent())
	}
}

// TestBudget stops before anything is spent.
func TestBudget(t *testing.T) {
	w := newWorld(t, acmfake.Options{})
	w.meter.limit = 0
	if _, err := w.authority.Export(t.Context(), w.request("first", "")); !errors.Is(err, errSpent) || w.fake.Calls("RequestCertificate") != 0 {
		t.Errorf("%v, and %d requests", err, w.fake.Calls("RequestCertificate"))
	}
	w.meter.limit = 1
	first := w.exported("first", "")
	if _, err := w.authority.Export(t.Context(), w.request("second", first)); !errors.Is(err, errSpent) || w.fake.Calls("RenewCertificate") != 0 {
		t.Errorf("%v, and %d renewals", err, w.fake.Calls("RenewCertificate"))
	}
	w.advance(340)
	w.fake.Tick()
	if _, err := w.authority.Export(t.Context(), w.request("second", first)); !errors.Is(err, errSpent) || w.fake.Calls("ExportCertificate") != 1 {
		t.Errorf("%v, and %d exports: ACM bills the first export", err, w.fake.Calls("ExportCertificate"))
	}
}

// TestCAWillNotDo refuses a CA that cannot issue for ACM, by name and before anything is asked for.
func TestCAWillNotDo(t *testing.T) {
	w := newWorld(t, acmfake.Options{})
	w.ca.ShortLived = true
	_, err := w.authority.Export(t.Context(), w.request("first", ""))
	says(t, err, "short-lived mode", caARN, "type acmpca")
	if !errors.Is(err, ErrAuthority) {
		t.Errorf("%v, want ErrAuthority", err)
	}
	w.ca.ShortLived = false
	for status, wanted := range map[string]string{"DISABLED": "enable it", "PENDING_CERTIFICATE": "countersign ca aws activate", "EXPIRED": "install a new certificate", "FAILED": "see what AWS says"} {
		w.ca.Status = status
		_, err := w.authority.Export(t.Context(), w.request("first", ""))
		says(t, err, status, wanted)
		if !rotate.IsFree(err) {
			t.Errorf("%s: nothing was asked for, and that is not said", status)
		}
	}
	if w.fake.Calls("RequestCertificate") != 0 || w.meter.spent() != 0 {
		t.Error("something was asked for")
	}
	// What ACM itself says of such a CA, had it been asked.
	w.ca.Status, w.ca.ShortLived = "ACTIVE", true
	arn := w.requestByHand(checkoutDNS)
	_, err = w.authority.Export(t.Context(), w.request("first", ""))
	says(t, err, "short-lived mode") // the failed one is not taken
	if detail, err := w.authority.describe(t.Context(), arn); err != nil || detail.FailureReason != types.FailureReasonPcaInvalidDuration {
		t.Errorf("%v, %v", detail, err)
	}
}

// requestByHand requests a certificate as somebody else does.
func (w *world) requestByHand(name string) string {
	w.t.Helper()
	ca := caARN
	answer, err := w.authority.acm.RequestCertificate(w.t.Context(), &acm.RequestCertificateInput{DomainName: &name, CertificateAuthorityArn: &ca})
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.authority.describe(w.t.Context(), *answer.CertificateArn); err != nil {
		w.t.Fatal(err)
	}
	return *answer.CertificateArn
}

// TestUnknown refuses names that are not declared.
func TestUnknown(t *testing.T) {
	w := newWorld(t, acmfake.Options{})
	stray := w.requestByHand("pay.example.com")
	for title, err := range map[string]error{
		"a workload": func() error { r := w.request("x", ""); r.Workload.Name = "other"; return export(t, w, r) }(),
		"another's name": func() error {
			r := w.request("x", "")
			r.DNSNames = []string{"ledger.payments.internal"}
			return export(t, w, r)
		}(),
		"a certificate":    second(w.authority.Find(t.Context(), stray)),
		"one that is gone": second(w.authority.Find(t.Context(), "arn:aws:acm:eu-central-1:123456789012:certificate/00000000-0000-0000-0000-000000000000")),
		"no ARN":           second(w.authority.Find(t.Context(), "checkout")),
	} {
		if !errors.Is(err, ErrUnknown) {
			t.Errorf("%s: %v, want ErrUnknown", title, err)
		}
	}
	// Of the right name, and of another CA.
	w.authority.c.Authority = strings.Replace(caARN, "12345678", "87654321", 1)
	ours := w.requestByHand(checkoutDNS)
	if _, err := w.authority.Find(t.Context(), ours); !errors.Is(err, ErrUnknown) {
		t.Errorf("of another CA: %v, want ErrUnknown", err)
	}
	_, _, err := w.authority.Newest(t.Context(), workload(t, "other"))
	says(t, err, "add it below names:")
	r := w.request("x", "")
	r.Key = mesh.Ed25519
	if err := export(t, w, r); !errors.Is(err, rotate.ErrRequest) {
		t.Errorf("%v, want ErrRequest", err)
	}
	if _, err := w.authority.Issue(t.Context(), r); !errors.Is(err, rotate.ErrRequest) {
		t.Errorf("%v, want ErrRequest", err)
	}
	r = w.request("x", "")
	r.Receipt = "../../something"
	if err := export(t, w, r); !errors.Is(err, rotate.ErrRequest) {
		t.Errorf("%v, want ErrRequest", err)
	}
}

func second(_ string, err error) error { return err }

func export(t *testing.T, w *world, r rotate.Request) error {
	t.Helper()
	_, err := w.authority.Export(t.Context(), r)
	return err
}

// TestDenied names what is missing from the policy, for each call that a role may lack.
func TestDenied(t *testing.T) {
	var w *world
	for operation, action := range map[string]string{
		"ListCertificates": "acm:ListCertificates", "DescribeCertificateAuthority": "acm-pca:DescribeCertificateAuthority",
		"RequestCertificate": "acm:RequestCertificate", "DescribeCertificate": "acm:DescribeCertificate", "GetRandomPassword": "secretsmanager:GetRandomPassword",
		"ExportCertificate": "acm:ExportCertificate", "GetCertificateAuthorityCertificate": "acm-pca:GetCertificateAuthorityCertificate",
	} {
		w = newWorld(t, acmfake.Options{})
		w.refuses(operation, "AccessDeniedException", "User: arn:aws:sts::123456789012:assumed-role/rotation/x is not authorized to perform: "+action)
		_, err := w.authority.Export(t.Context(), w.request("first "+operation, ""))
		says(t, err, `"Action":"`+action+`"`, "arn:aws:sts::123456789012:assumed-role/rotation/x")
		if !errors.Is(err, session.ErrDenied) {
			t.Errorf("%v, want ErrDenied", err)
		}
		if before := operation == "ListCertificates" || operation == "DescribeCertificateAuthority"; rotate.IsFree(err) != before {
			t.Errorf("%s: that nothing was asked for is said: %t", operation, !before)
		}
	}
	w = newWorld(t, acmfake.Options{})
	first := w.exported("first", "")
	w.refuses("RenewCertificate", "AccessDeniedException", "no")
	_, err := w.authority.Export(t.Context(), w.request("second", first))
	says(t, err, `"Action":"acm:RenewCertificate","Resource":"`+w.kept+`"`)
	w.refuses("DescribeCertificate", "AccessDeniedException", "no")
	_, err = w.authority.Find(t.Context(), w.kept)
	says(t, err, `"Action":"acm:DescribeCertificate","Resource":"`+w.kept+`"`)
	w.refuses("ListCertificates", "AccessDeniedException", "no")
	_, err = w.authority.Find(t.Context(), w.kept)
	says(t, err, `"Action":"acm:ListCertificates"`)
	_, _, err = w.authority.Newest(t.Context(), workload(t, "checkout"))
	says(t, err, `"Action":"acm:ListCertificates"`)
}

// TestPassphrase believes no passphrase that is not what was asked for.
func TestPassphrase(t *testing.T) {
	w := newWorld(t, acmfake.Options{})
	for _, bad := range []string{"", "short", strings.Repeat("a", 65), strings.Repeat("a", 63) + "$", strings.Repeat("a", 63) + "\n"} {
		w.password = bad
		if err := export(t, w, w.request("first", "")); err == nil || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if w.fake.Calls("ExportCertificate") != 0 {
		t.Error("it was exported")
	}
}

// TestUnfit lets ACM export what will not do.
func TestUnfit(t *testing.T) {
	for title, c := range map[string]struct {
		spoil func(*x509.Certificate)
		says  string
	}{
		"another name":    {func(c *x509.Certificate) { c.DNSNames = []string{"ledger.payments.internal"} }, "not for " + checkoutDNS},
		"another subject": {func(c *x509.Certificate) { c.Subject.Organization = []string{"Payments"} }, "proxies know the workload by CN=" + checkoutDNS},
		"more names":      {func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "x.example.com") }, "other names"},
		"a CA":            {func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }, "CA flag"},
	} {
		t.Run(title, func(t *testing.T) {
			w := newWorld(t, acmfake.Options{})
			w.ca.Spoil(c.spoil)
			err := export(t, w, w.request("first", ""))
			says(t, err, c.says)
			if !errors.Is(err, rotate.ErrUnfit) {
				t.Errorf("%v, want ErrUnfit", err)
			}
		})
	}
}

// TestWrongCA is told of a CA by another name than the one that ACM's certificates are of.
func TestWrongCA(t *testing.T) {
	w := newWorld(t, acmfake.Options{})
	w.exported("first", "")
	other, err := acmfake.NewCA(caARN, w.clock())
	if err != nil {
		t.Fatal(err)
	}
	w.ca = other
	w.kept = ""
	err = export(t, w, w.request("second", ""))
	says(t, err, "the root at the end of the chain is not in it")
	if !errors.Is(err, rotate.ErrUnfit) {
		t.Errorf("%v, want ErrUnfit", err)
	}
}

// TestOtherCertificate finds certificates of the same name that will not do, and requests another one.
func TestOtherCertificate(t *testing.T) {
	w := newWorld(t, acmfake.Options{})
	w.requestByHand(checkoutDNS) // with an RSA key
	w.advance(1)
	first := w.exported("first", "")
	if w.ca.Issued() != 2 || len(w.fake.ARNs()) != 2 {
		t.Errorf("%d were issued", w.ca.Issued())
	}
	// The one that was requested last is the workload's from now on, whatever becomes of the other.
	if w.exported("second", first) == first || w.ca.Issued() != 3 {
		t.Errorf("%d were issued", w.ca.Issued())
	}
	more := w.request("third", "")
	more.DNSNames = append(more.DNSNames, "pay.example.com")
	more.Receipt = ""
	material, err := w.authority.Export(t.Context(), more)
	if err != nil || w.ca.Issued() != 4 {
		t.Fatalf("%v, %d were issued", err, w.ca.Issued())
	}
	material.Clear()
	// Revoked and deleted ones are none.
	for i, gone := range []func(string){w.fake.Revoke, w.delete} {
		w.advance(1)
		arns := w.fake.ARNs()
		for _, arn := range arns {
			gone(arn)
		}
		if w.serial() != "" {
			t.Errorf("%d: what is gone is there", i)
		}
		if w.exported("after"+string(rune('a'+i)), ""); w.ca.Issued() != 5+i {
			t.Errorf("%d were issued", w.ca.Issued())
		}
	}
}

func (w *world) delete(arn string) {
	if _, err := w.authority.acm.DeleteCertificate(w.t.Context(), &acm.DeleteCertificateInput{CertificateArn: &arn}); err != nil {
		w.t.Error(err)
	}
}

// TestWaitEnds runs out of time while ACM is at it, and goes on the next time.
func TestWaitEnds(t *testing.T) {
	w := newWorld(t, acmfake.Options{PendingPolls: 1 << 20})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := w.authority.Export(ctx, w.request("first", ""))
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want that the time is up", err)
	}
	if w.fake.Calls("RequestCertificate") != 1 || w.kept == "" || w.meter.spent() != 1 {
		t.Errorf("%d requests, kept %q", w.fake.Calls("RequestCertificate"), w.kept)
	}
	if serial := w.serial(); serial != "" {
		t.Errorf("%s is there", serial)
	}
}

// TestThrottled is tried again by the SDK, and says so in the end.
func TestThrottled(t *testing.T) {
	n := 0
	w := newWorld(t, acmfake.Options{Throttle: func(string) bool { n++; return n == 1 }})
	w.exported("first", "")
}

func TestOpen(t *testing.T) {
	good := Config{Authority: caARN, Names: map[string]string{"a": "a.example.com"}}
	for title, c := range map[string]struct {
		change func(*Config)
		says   string
	}{
		"no ARN":         {func(c *Config) { c.Authority = "" }, "not the ARN of a private CA"},
		"a certificate":  {func(c *Config) { c.Authority = "arn:aws:acm:eu-central-1:123456789012:certificate/1" }, "not the ARN of a private CA"},
		"one name twice": {func(c *Config) { c.Names = map[string]string{"a": "a.example.com", "b": "a.example.com"} }, "is that of a and of b"},
		"no dot":         {func(c *Config) { c.Names = map[string]string{"a": "a"} }, "with a dot"},
		"upper case":     {func(c *Config) { c.Names = map[string]string{"a": "A.example.com"} }, "in lower case"},
		"a wildcard":     {func(c *Config) { c.Names = map[string]string{"a": "*.example.com"} }, "none that ACM issues for"},
		"too long":       {func(c *Config) { c.Names = map[string]string{"a": strings.Repeat("a", 60) + ".example.com"} }, "at most 64 characters"},
		"a region":       {func(c *Config) { c.Region = "eu-west-1" }, "a CA of its own region only"},
		"the endpoint":   {func(c *Config) { c.Endpoint = "http://198.51.100.7" }, "not https"},
	} {
		t.Run(title, func(t *testing.T) {
			config := good
			c.change(&config)
			_, err := Open(t.Context(), config)
			says(t, err, c.says)
		})
	}
	if _, err := Open(t.Context(), good); err != nil {
		t.Error(err)
	}
}

// TestSerial spells serials as everybody else does.
func TestSerial(t *testing.T) {
	for said, want := range map[string]string{"0A:bc": "0abc", "a:bc": "0abc", "00:ab": "ab", "": "", "xy": "", "00": "00"} {
		got, err := serialOf(&types.CertificateDetail{Serial: &said})
		if got != want && err == nil || (err != nil) != (want == "") {
			t.Errorf("%q: %q, %v", said, got, err)
		}
	}
}
