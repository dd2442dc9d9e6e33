package whole_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"countersign.dev/aws/internal/awstest/pcafake"
	"countersign.dev/rotate"
)

// wrongCA answers with the certificates of another CA for the same requests.
type wrongCA struct {
	right http.Handler
	wrong *pcafake.Fake
	arn   string // of the wrong one

	mu  sync.Mutex
	on  bool
	csr []byte
}

func (w *wrongCA) set(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.on = on
}

func (w *wrongCA) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	recorder := httptest.NewRecorder()
	w.right.ServeHTTP(recorder, r)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch r.Header.Get("X-Amz-Target") {
	case "ACMPrivateCA.IssueCertificate":
		var in struct{ Csr []byte }
		_ = json.Unmarshal(body, &in) // what is wrong with it, the right one has said
		w.csr = in.Csr
	case "ACMPrivateCA.GetCertificate":
		if cert, chain, err := w.wrong.Sign(w.arn, w.csr, 24*time.Hour); w.on && err == nil {
			recorder = httptest.NewRecorder()
			_ = json.NewEncoder(recorder).Encode(map[string]string{"Certificate": string(cert), "CertificateChain": string(chain)})
		}
	}
	out.Header().Set("Content-Type", "application/x-amz-json-1.1")
	for name, values := range recorder.Header() {
		out.Header()[name] = values
	}
	out.WriteHeader(recorder.Code)
	_, _ = out.Write(recorder.Body.Bytes())
}

// tampering changes what a CA signs, while it is set.
type tampering struct {
	mu sync.Mutex
	f  func(*x509.Certificate)
}

func (c *tampering) set(f func(*x509.Certificate)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.f = f
}

func (c *tampering) tamper(template *x509.Certificate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.f != nil {
		c.f(template)
	}
}

// named gives a certificate other names than those of the request.
func named(c *x509.Certificate, uri string, names ...string) {
	c.ExtraExtensions = slices.DeleteFunc(c.ExtraExtensions, func(e pkix.Extension) bool { return e.Id.String() == "2.5.29.17" })
	c.DNSNames, c.URIs = names, nil
	if u, err := url.Parse(uri); err == nil && uri != "" {
		c.URIs = []*url.URL{u}
	}
}

// wrongCertificates has the authority answer with certificates that do not match what was asked for: none is used, or stored where
// anybody would read it, and the next rotation has a right one.
func wrongCertificates(t *testing.T) {
	t.Helper()
	var ca tampering
	l := newLab(t, 5000, pcafake.Options{Tamper: ca.tamper}, "w")
	other := &wrongCA{right: l.pca, wrong: pcafake.New(pcafake.Options{})}
	var err error
	if other.arn, err = other.wrong.Add(pcafake.CA{}); err != nil {
		t.Fatal(err)
	}
	l.cloud.Mount("acm-pca", other)
	l.sites() // the first certificate
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, wrong := range map[string]func(*x509.Certificate){
		"another CA":  nil,
		"another key": func(c *x509.Certificate) { c.PublicKey = &stranger.PublicKey },
		"another service": func(c *x509.Certificate) {
			named(c, "spiffe://"+l.name+".internal/service/other", "w", "w."+l.name+".internal")
		},
		"no identity": func(c *x509.Certificate) { named(c, "", "w", "w."+l.name+".internal") },
		"one name more": func(c *x509.Certificate) {
			named(c, "spiffe://"+l.name+".internal/service/w", "w", "w."+l.name+".internal", "other.internal")
		},
		"too long": func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(31 * 24 * time.Hour) },
		"already over": func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		},
		"not valid yet": func(c *x509.Certificate) { c.NotBefore = time.Now().Add(2 * time.Hour) },
		"itself an issuer": func(c *x509.Certificate) {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		},
		"no use as a proxy": func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} },
	} {
		before, issued := l.current("w"), l.pca.Issued()
		ca.set(wrong)
		other.set(wrong == nil)
		status, said := l.rotate("w", "--force")
		ca.set(nil)
		other.set(false)
		if now := l.current("w"); status != 1 || now != before {
			t.Errorf("%s: status %d, and %s is current", name, status, now.serial)
		}
		l.says(said, "is not what was asked for", "nothing uses it; see who else may change or use the CA")
		if r := l.record("w"); r.LastErrorStep != rotate.StepIssue || r.Failures != 1 {
			t.Errorf("%s: %+v", name, r)
		}
		l.recovers(before, issued, 2)
		if t.Failed() {
			t.Fatalf("%s\n%s", name, said)
		}
	}
}

// failsWith rotates with something wrong, which is not mended by trying again: it fails, and what is current stays. At is where it begins to be wrong; nil is
// before the rotation.
func (l *lab) failsWith(at *site, wrong, right func(), wants ...string) {
	l.t.Helper()
	before, issued := l.current("w"), l.pca.Issued()
	if at == nil {
		wrong()
	} else {
		l.faults.set(*at, fault{before: wrong})
	}
	status, said := l.rotate("w", "--force")
	if at != nil && !l.faults.end() {
		l.t.Fatalf("%s was not reached\n%s", at, said)
	}
	if at == nil && l.pca.Issued() != issued {
		l.t.Errorf("a certificate was issued for nothing\n%s", said)
	}
	if status != 1 {
		l.t.Errorf("status %d", status)
	}
	l.says(said, wants...)
	right()
	l.recovers(before, issued, 1)
	if l.t.Failed() {
		l.t.Fatalf("%v\n%s", at, said)
	}
}

// deletedSecrets deletes each secret that a rotation needs: for a time, for good, and in the middle of a rotation.
func deletedSecrets(t *testing.T) {
	t.Helper()
	together(t, []string{"the secret", "the record", "the budget"}, func(t *testing.T, n int) {
		l := newLab(t, 5000, pcafake.Options{}, "w")
		l.sites()
		name := []string{l.secret("w"), l.secret("w") + ".rotation", l.name + "/pca.budget"}[n]
		schedule := func() {
			if _, err := l.secrets.DeleteSecret(t.Context(), &secretsmanager.DeleteSecretInput{SecretId: &name, RecoveryWindowInDays: aws.Int64(7)}); err != nil {
				t.Error(err)
			}
		}
		restore := func() {
			if _, err := l.secrets.RestoreSecret(t.Context(), &secretsmanager.RestoreSecretInput{SecretId: &name}); err != nil {
				t.Error(err)
			}
		}
		back := []string{"scheduled for deletion", "aws secretsmanager restore-secret --secret-id " + name}
		l.failsWith(nil, schedule, restore, back...)
		at := []site{
			{"secretsmanager:PutSecretValue", "the secret", 2}, {"secretsmanager:PutSecretValue", "the record", 3}, {"secretsmanager:PutSecretValue", "the budget", 1},
		}[n]
		l.failsWith(&at, schedule, restore, back...)

		gone := func() {
			if _, err := l.secrets.DeleteSecret(t.Context(), &secretsmanager.DeleteSecretInput{SecretId: &name, ForceDeleteWithoutRecovery: aws.Bool(true)}); err != nil {
				t.Error(err)
			}
		}
		before, issued := l.current("w"), l.pca.Issued()
		gone()
		status, said := l.rotate("w", "--force")
		if status != 1 || l.pca.Issued() != issued {
			t.Errorf("status %d, %d certificates\n%s", status, l.pca.Issued()-issued, said)
		}
		l.says(said, "AWS denies it", "or it does not exist any more", "aws secretsmanager describe-secret --secret-id "+name)
		l.place(name) // as the stack does, under another ARN
		l.permit()
		l.recovers(before, issued, 1)
	})
}

// disabledKey disables the key of all secrets: before a rotation, and in the middle of one.
func disabledKey(t *testing.T) {
	t.Helper()
	l := newLab(t, 5000, pcafake.Options{}, "w")
	l.sites()
	off := func() {
		if _, err := l.keys.DisableKey(t.Context(), &kms.DisableKeyInput{KeyId: &l.key}); err != nil {
			t.Error(err)
		}
	}
	on := func() {
		if _, err := l.keys.EnableKey(t.Context(), &kms.EnableKeyInput{KeyId: &l.key}); err != nil {
			t.Error(err)
		}
	}
	wants := []string{"the KMS key cannot be used", "aws kms enable-key", l.key, "what is encrypted with it is not lost"}
	l.failsWith(nil, off, on, wants...)
	for _, at := range []site{
		{"secretsmanager:PutSecretValue", "the secret", 1},
		{"secretsmanager:PutSecretValue", "the budget", 1},
		{"acm-pca:IssueCertificate", "it", 1},
		{"secretsmanager:PutSecretValue", "the secret", 2},
		{"secretsmanager:UpdateSecretVersionStage", "the secret", 1},
		{"secretsmanager:UpdateSecretVersionStage", "the secret", 2},
	} {
		l.failsWith(&at, off, on, wants...)
	}
}

// skewed is what AWS says to who signs with a wrong time.
var skewed = trouble{
	"skewed",
	fault{answer: refusing(400, "InvalidSignatureException", "Signature not yet current: 20261123T101600Z is still later than 20261123T100500Z (20261123T100000Z + 5 min.)")},
	[]string{"the AWS credentials do not hold", "see that this machine's clock is right"},
}

// clocks has clocks differ: of the machine and AWS, of the machine and the CA, and of machines that worked before.
func clocks(t *testing.T) {
	t.Helper()
	var mu sync.Mutex
	var ahead time.Duration
	jump := func(by time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		ahead = by
	}
	l := newLab(t, 5000, pcafake.Options{Now: func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return time.Now().Add(ahead)
	}}, "w")
	l.sites()

	// AWS refuses what is signed by a wrong clock.
	at := site{"acm-pca:DescribeCertificateAuthority", "it", 2}
	l.fails(at, skewed)

	// The CA's clock is ahead of ours: what it issues is not valid yet. Behind it, nothing is wrong.
	before, issued := l.current("w"), l.pca.Issued()
	jump(3 * time.Hour)
	status, said := l.rotate("w", "--force")
	if now := l.current("w"); status != 1 || now != before {
		t.Errorf("status %d, and %s is current\n%s", status, now.serial, said)
	}
	l.says(said, "is not what was asked for", "clock")
	jump(-3 * time.Hour)
	l.recovers(before, issued, 2)
	jump(0)

	// Its clock was ahead when it was asked, and its answer was lost: AWS knows the request again all the same.
	before, issued = l.current("w"), l.pca.Issued()
	l.faults.set(site{"acm-pca:IssueCertificate", "it", 1}, fault{lose: true})
	if status, said = l.rotate("w", "--force"); status != 1 || l.pca.Issued() != issued+1 {
		t.Errorf("status %d, %d issued\n%s", status, l.pca.Issued()-issued, said)
	}
	record := l.record("w")
	var receipt map[string]any
	if err := json.Unmarshal([]byte(record.Receipt), &receipt); err != nil {
		t.Fatalf("%v: %+v", err, record)
	}
	receipt["asked"] = time.Now().Add(time.Hour).Unix()
	text, _ := json.Marshal(receipt)
	record.Receipt = string(text)
	l.write(l.secret("w")+".rotation", record)
	l.recovers(before, issued, 1)

	// A machine elsewhere, whose clock was a day ahead, has died with the lease.
	end := time.Now().Add(24 * time.Hour)
	label := fmt.Sprintf("COUNTERSIGN-HELD:%d:abcdefghijklm:%s", end.UnixMilli(), url.QueryEscape("countersign rotate on elsewhere"))
	l.label(l.secret("w")+".rotation", label)
	if status, said = l.rotate("w", "--force"); status != 1 {
		t.Errorf("status %d\n%s", status, said)
	}
	l.says(said, "is held by countersign rotate on elsewhere", end.UTC().Format("2006-01-02"), "its clock was wrong, or this machine's is",
		fmt.Sprintf("--secret-id %s.rotation --version-stage '%s' --remove-from-version-id %s", l.secret("w"), label, carrier))
	if strings.Contains(said, "issue: asking") {
		t.Errorf("it has asked without the lease\n%s", said)
	}
	before, issued = l.current("w"), l.pca.Issued()
	_, err := l.secrets.UpdateSecretVersionStage(t.Context(), &secretsmanager.UpdateSecretVersionStageInput{
		SecretId: aws.String(l.secret("w") + ".rotation"), VersionStage: &label, RemoveFromVersionId: aws.String(carrier),
	})
	if err != nil {
		t.Fatal(err)
	}
	l.recovers(before, issued, 1)
}

// carrier is the version whose labels say who has a lease.
const carrier = "countersign-lease-carrier-version-1"

// write makes a value current.
func (l *lab) write(name string, value any) {
	l.t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := l.secrets.PutSecretValue(l.t.Context(), &secretsmanager.PutSecretValueInput{SecretId: &name, SecretString: aws.String(string(text))}); err != nil {
		l.t.Fatal(err)
	}
}

// label puts a label on the version that leases lie on.
func (l *lab) label(name, label string) {
	l.t.Helper()
	_, err := l.secrets.UpdateSecretVersionStage(l.t.Context(), &secretsmanager.UpdateSecretVersionStageInput{
		SecretId: &name, VersionStage: &label, MoveToVersionId: aws.String(carrier),
	})
	if err != nil {
		l.t.Fatal(err)
	}
}
