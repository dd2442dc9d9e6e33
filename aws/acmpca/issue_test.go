package acmpca

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign.dev/aws/internal/awstest/pcafake"
	"countersign.dev/aws/session"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/rotate"
)

var _ rotate.Authority = (*Authority)(nil)

// TestIssue has a root and a subordinate CA issue, in both modes, by names in the request and in the call.
func TestIssue(t *testing.T) {
	for name, test := range map[string]struct {
		ca       pcafake.CA
		below    bool
		template string
		chain    int
	}{
		"a root":             {pcafake.CA{}, false, "", 1},
		"short-lived":        {pcafake.CA{ShortLived: true}, false, "", 1},
		"below a root":       {pcafake.CA{}, true, "", 2},
		"an RSA key":         {pcafake.CA{KeyAlgorithm: "RSA_2048"}, false, "", 1},
		"on P-384":           {pcafake.CA{KeyAlgorithm: "EC_secp384r1"}, false, "", 1},
		"of another account": {pcafake.CA{Account: "999999999999"}, false, "", 1},
		"names in the call":  {pcafake.CA{}, false, "arn:aws:acm-pca:::template/EndEntityCertificate_APIPassthrough/V1", 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pcafake.Options{PendingPolls: 2}, test.ca)
			if test.below {
				w.arn = w.add(pcafake.CA{Name: "issuing", Parent: w.arn})
			}
			a := w.open(func(c *Config) { c.Template = test.template })
			r := w.request("20261120T120000Z-0123456789abcdef")
			if test.template != "" { // an old request, without names
				key, err := mtls.GenerateKey(mesh.RSA2048)
				if err != nil {
					t.Fatal(err)
				}
				if r.CSR, err = mtls.NewCSR(key); err != nil {
					t.Fatal(err)
				}
				// AWS wants a subject in each request.
				if r.CSR, err = mtls.NewNamedCSR(key, r.Workload.Identity, nil); err != nil {
					t.Fatal(err)
				}
			}
			text, err := a.Issue(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			chain, err := mtls.ParseCertificates(text)
			if err != nil || len(chain) != test.chain {
				t.Fatalf("a chain of %d, %v", len(chain), err)
			}
			leaf := chain[0]
			if want := w.now.Add(90 * time.Hour); !leaf.NotAfter.Equal(want) {
				t.Errorf("valid to %s, want %s", leaf.NotAfter, want)
			}
			if leaf.Subject.String() != "CN=checkout,OU=service,O=payments.internal" || leaf.URIs[0].String() != r.Workload.Identity.String() || len(leaf.DNSNames) != 2 {
				t.Errorf("its names are %s, %v, %v", leaf.Subject, leaf.URIs, leaf.DNSNames)
			}
			trust, err := a.Trust(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			bundle, err := mtls.ParseBundle("payments.internal", trust.Bundle)
			if err != nil || len(bundle.Roots()) != 1 {
				t.Fatalf("the bundle: %v", err)
			}
			if err := leaf.CheckSignatureFrom(trust.Issuer); err != nil {
				t.Errorf("the issuer has not signed it: %v", err)
			}
			w.issued(1, 1)
			// What was kept leads to it for ever.
			w.now = w.now.Add(48 * time.Hour)
			second, err := w.open(func(c *Config) { c.Template = test.template }).Issue(t.Context(), w.again(r))
			if err != nil || string(second) != string(text) {
				t.Errorf("asked again: another one, %v", err)
			}
			w.issued(1, 1)
		})
	}
}

// TestCutOff ends a try at each of its steps, and tries again: soon, and after AWS has forgotten the token.
func TestCutOff(t *testing.T) {
	for name, test := range map[string]struct {
		options       pcafake.Options
		cut           func(w *world, cancel func()) // how the first try ends
		issued        int                           // after the first try
		soon, counted int                           // issued after a second try soon, and counted
		late, sum     int                           // issued after one hours later, and counted
	}{
		"not counted": {
			cut:  func(w *world, _ func()) { w.meter.err = errors.New("the store is away") },
			soon: 1, counted: 1, late: 1, sum: 1,
		},
		"counted, not written down": {
			cut:  func(w *world, _ func()) { w.keepFail = errors.New("the store is away") },
			soon: 1, counted: 1, late: 1, sum: 1,
		},
		"refused": {
			cut:  func(w *world, _ func()) { w.spoil = refuse("IssueCertificate", 400, "AccessDeniedException", "no") },
			soon: 1, counted: 1, late: 1, sum: 1,
		},
		"throttled": {
			cut: func(w *world, _ func()) {
				w.spoil = refuse("IssueCertificate", 400, "ThrottlingException", "Rate exceeded")
			},
			soon: 1, counted: 1, late: 1, sum: 1,
		},
		"the answer lost": { // nobody knows, and later it has to be counted as another one, which it is
			cut:    func(w *world, _ func()) { w.lose = 5 },
			issued: 1, soon: 1, counted: 1, late: 2, sum: 2,
		},
		"issued, not written down": {
			cut: func(w *world, _ func()) {
				w.spoil = func(http.ResponseWriter, *http.Request) bool {
					if len(w.kept) == 1 {
						w.keepFail = errors.New("the store is away")
					}
					return false
				}
			},
			issued: 1, soon: 1, counted: 1, late: 2, sum: 2,
		},
		"not ready": {
			options: pcafake.Options{PendingPolls: 3},
			cut: func(w *world, cancel func()) {
				w.spoil = func(_ http.ResponseWriter, r *http.Request) bool {
					if strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".GetCertificate") {
						cancel()
					}
					return false
				}
			},
			issued: 1, soon: 1, counted: 1, late: 1, sum: 1,
		},
	} {
		for _, pause := range []time.Duration{time.Minute, 7 * time.Hour} {
			t.Run(name+", "+pause.String(), func(t *testing.T) {
				w := newWorld(t, test.options, pcafake.CA{})
				r := w.request("20261120T120000Z-0123456789abcdef")
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				test.cut(w, cancel)
				if _, err := w.open().Issue(ctx, r); err == nil {
					t.Fatal("it was not cut off")
				}
				if w.fake.Issued() != test.issued {
					t.Errorf("the first try has issued %d", w.fake.Issued())
				}
				w.meter.err, w.keepFail, w.spoil = nil, nil, nil
				w.now = w.now.Add(pause)
				if _, err := w.open().Issue(t.Context(), w.again(r)); err != nil {
					t.Fatal(err)
				}
				if pause < remembers {
					w.issued(test.soon, test.counted)
				} else {
					w.issued(test.late, test.sum)
				}
			})
		}
	}
}

// TestRefusedRepetition has a repeated request refused of which the first answer was lost: that nothing came of the
// repetition says nothing about the first one, which AWS has issued, and which is to be the one that is given in the end.
func TestRefusedRepetition(t *testing.T) {
	w := newWorld(t, pcafake.Options{}, pcafake.CA{})
	r := w.request("20261120T120000Z-0123456789abcdef")
	w.lose = 5
	if _, err := w.open().Issue(t.Context(), r); err == nil {
		t.Fatal("the answer was not lost")
	}
	w.issued(1, 1)
	w.now = w.now.Add(time.Minute + 30*time.Second)
	w.spoil = refuse("IssueCertificate", 400, "ThrottlingException", "Rate exceeded")
	if _, err := w.open().Issue(t.Context(), w.again(r)); err == nil || rotate.IsFree(err) {
		t.Fatalf("it was not refused, or nothing is said to have been issued: %v", err)
	}
	w.spoil = nil
	w.now = w.now.Add(time.Minute)
	if _, err := w.open().Issue(t.Context(), w.again(r)); err != nil {
		t.Error(err)
	}
	w.issued(1, 1)
	// Once AWS has forgotten it, another one is another one, also when the repetition was refused.
	w = newWorld(t, pcafake.Options{}, pcafake.CA{})
	r = w.request("20261120T120000Z-0123456789abcdef")
	w.lose = 5
	if _, err := w.open().Issue(t.Context(), r); err == nil {
		t.Fatal("the answer was not lost")
	}
	w.now = w.now.Add(time.Minute)
	w.spoil = refuse("IssueCertificate", 400, "ThrottlingException", "Rate exceeded")
	if _, err := w.open().Issue(t.Context(), w.again(r)); err == nil {
		t.Fatal("it was not refused")
	}
	w.spoil = nil
	w.now = w.now.Add(7 * time.Hour)
	if _, err := w.open().Issue(t.Context(), w.again(r)); err != nil {
		t.Error(err)
	}
	w.issued(2, 2)
}

// TestWatched has the client of a session, which waits between its tries, find that nothing was issued.
func TestWatched(t *testing.T) {
	w := newWorld(t, pcafake.Options{}, pcafake.CA{})
	a, err := Open(t.Context(), Config{ARN: w.arn, Endpoint: w.server.URL, Meter: w.meter, Now: func() time.Time { return w.now }})
	if err != nil {
		t.Fatal(err)
	}
	r := w.request("20261120T120000Z-0123456789abcdef")
	w.spoil = refuse("IssueCertificate", 400, "AccessDeniedException", "no")
	_, err = a.Issue(t.Context(), r)
	says(t, err, session.ErrDenied)
	if got := a.readReceipt(w.again(r).Receipt); got != (receipt{Authority: w.arn}) {
		t.Errorf("it is kept as if something may have been issued: %+v", got)
	}
	w.spoil = nil
	w.now = w.now.Add(time.Hour)
	if _, err := a.Issue(t.Context(), w.again(r)); err != nil {
		t.Error(err)
	}
	w.issued(1, 1)
}

// TestNotAsked finds what is wrong before anything is paid.
func TestNotAsked(t *testing.T) {
	spent := errors.New("the budget is spent")
	for name, test := range map[string]struct {
		ca     pcafake.CA
		change func(w *world, c *Config, r *rotate.Request)
		is     error
		says   []string
	}{
		"disabled":        {is: ErrState, says: []string{"DISABLED", "--status ACTIVE"}, change: state("DISABLED")},
		"deleted":         {is: nil, says: []string{"DELETED"}, change: state("DELETED")},
		"expired":         {ca: pcafake.CA{Life: time.Hour}, is: ErrState, says: []string{"EXPIRED"}, change: func(w *world, _ *Config, _ *rotate.Request) { w.now = w.now.Add(2 * time.Hour) }},
		"not there":       {is: ErrConfig, says: []string{"AWS RAM"}, change: func(w *world, c *Config, _ *rotate.Request) { c.ARN = w.arn[:len(w.arn)-1] + "_" }},
		"too long":        {ca: pcafake.CA{ShortLived: true}, is: ErrConfig, says: []string{"at most 168h0m0s"}, change: ttl(169 * time.Hour)},
		"beyond its end":  {ca: pcafake.CA{Life: 24 * time.Hour}, is: ErrState, says: []string{"the CA itself ends at 2026-11-21T12:00:00Z"}, change: ttl(25 * time.Hour)},
		"not short-lived": {is: ErrConfig, says: []string{"general-purpose one"}, change: func(_ *world, c *Config, _ *rotate.Request) { c.Mode = mesh.ModeShortLived }},
		"spent":           {is: spent, change: func(w *world, _ *Config, _ *rotate.Request) { w.meter.err = spent }},
		"a long id":       {says: []string{"1 to 36 characters"}, change: func(_ *world, _ *Config, r *rotate.Request) { r.ID = strings.Repeat("x", 37) }},
		"no names":        {is: rotate.ErrRequest, says: []string{"does not carry all names"}, change: csr(mesh.ECDSAP256, false)},
		"no CSR":          {is: rotate.ErrRequest, change: func(_ *world, _ *Config, r *rotate.Request) { r.CSR = []byte("hello") }},
		"other names": {is: rotate.ErrRequest, says: []string{"DNS name"}, change: func(w *world, c *Config, r *rotate.Request) {
			wanted := r.DNSNames
			r.DNSNames = []string{"ledger"}
			csr(mesh.ECDSAP256, true)(w, c, r)
			r.DNSNames = wanted
		}},
		"more names": {is: rotate.ErrRequest, says: []string{"does not carry all names"}, change: func(_ *world, _ *Config, r *rotate.Request) { r.DNSNames = append(r.DNSNames, "more.example") }},
		"ed25519":    {is: rotate.ErrRequest, says: []string{"RSA and ECDSA keys only"}, change: csr(mesh.Ed25519, true)},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pcafake.Options{}, test.ca)
			r := w.request("20261120T120000Z-0123456789abcdef")
			a := w.open()
			test.change(w, &a.config, &r)
			if strings.HasSuffix(a.config.ARN, "_") {
				a.config.ARN = strings.TrimSuffix(a.config.ARN, "_") + "0"
				if a.config.ARN == w.arn {
					a.config.ARN = w.arn[:len(w.arn)-1] + "1"
				}
			}
			_, err := a.Issue(t.Context(), r)
			says(t, err, test.is, test.says...)
			if free := !errors.Is(err, rotate.ErrRequest) && name != "a long id"; rotate.IsFree(err) != free {
				t.Errorf("that nothing was asked for is said: %t", !free)
			}
			if n := w.fake.Calls("IssueCertificate"); n != 0 {
				t.Errorf("IssueCertificate was called %d times", n)
			}
			w.issued(0, 0)
		})
	}
}

func state(status string) func(*world, *Config, *rotate.Request) {
	return func(w *world, _ *Config, _ *rotate.Request) {
		if err := w.fake.SetStatus(w.arn, status); err != nil {
			w.t.Fatal(err)
		}
	}
}

func ttl(d time.Duration) func(*world, *Config, *rotate.Request) {
	return func(_ *world, _ *Config, r *rotate.Request) { r.TTL = d }
}

func csr(kind mesh.KeyType, named bool) func(*world, *Config, *rotate.Request) {
	return func(w *world, _ *Config, r *rotate.Request) {
		key, err := mtls.GenerateKey(kind)
		if err == nil && named {
			r.CSR, err = mtls.NewNamedCSR(key, r.Workload.Identity, r.DNSNames)
		} else if err == nil {
			r.CSR, err = mtls.NewCSR(key)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
}

// TestUnbelievable has the CA sign what was not asked for: nothing of it comes back.
func TestUnbelievable(t *testing.T) {
	other, err := mtls.GenerateKey(mesh.ECDSAP256)
	if err != nil {
		t.Fatal(err)
	}
	evil, err := url.Parse("spiffe://payments.internal/service/ledger")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		tamper func(*x509.Certificate)
		says   string
	}{
		"another key": {func(c *x509.Certificate) { c.PublicKey = other.Public() }, "another key"},
		"another identity": {func(c *x509.Certificate) {
			c.ExtraExtensions, c.DNSNames, c.URIs = nil, []string{"checkout", "checkout.payments.internal"}, []*url.URL{evil}
		}, "its URIs"},
		"one name more": {func(c *x509.Certificate) {
			c.ExtraExtensions, c.DNSNames = nil, []string{"checkout", "checkout.payments.internal", "ledger"}
			c.URIs = []*url.URL{{Scheme: "spiffe", Host: "payments.internal", Path: "/service/checkout"}}
		}, "its DNS names"},
		"another subject": {func(c *x509.Certificate) { c.RawSubject, c.Subject.CommonName = nil, "ledger" }, "its subject"},
		"a longer life":   {func(c *x509.Certificate) { c.NotAfter = c.NotAfter.AddDate(1, 0, 0) }, "is valid to"},
		"a shorter life":  {func(c *x509.Certificate) { c.NotAfter = c.NotAfter.Add(-time.Hour) }, "is valid to"},
		"later":           {func(c *x509.Certificate) { c.NotBefore = c.NotBefore.Add(3 * time.Hour) }, "not valid before"},
		"a CA": {func(c *x509.Certificate) {
			c.IsCA, c.KeyUsage = true, c.KeyUsage|x509.KeyUsageCertSign
		}, "it is a CA's"},
		"for servers only": {func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, "servers and clients"},
		"not for signing":  {func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, "may not sign"},
	} {
		t.Run(name, func(t *testing.T) {
			tamper := func(*x509.Certificate) {}
			w := newWorld(t, pcafake.Options{Tamper: func(c *x509.Certificate) { tamper(c) }}, pcafake.CA{})
			tamper = test.tamper
			chain, err := w.open().Issue(t.Context(), w.request("20261120T120000Z-0123456789abcdef"))
			if chain != nil {
				t.Error("a chain came back")
			}
			says(t, err, rotate.ErrUnfit, test.says, "nothing uses it")
		})
	}
	t.Run("another CA", func(t *testing.T) {
		w := newWorld(t, pcafake.Options{}, pcafake.CA{})
		elsewhere := w.add(pcafake.CA{Name: "elsewhere"})
		w.spoil = func(rw http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.Header.Get("X-Amz-Target"), ".GetCertificateAuthorityCertificate") {
				return false
			}
			r.Body = io.NopCloser(strings.NewReader(`{"CertificateAuthorityArn":"` + elsewhere + `"}`))
			return false
		}
		_, err := w.open().Issue(t.Context(), w.request("20261120T120000Z-0123456789abcdef"))
		says(t, err, rotate.ErrUnfit, "not signed by the CA that was asked")
	})
}

// TestFailed finds requests that AWS never answers: the rotation makes another one.
func TestFailed(t *testing.T) {
	w := newWorld(t, pcafake.Options{Fail: func(*x509.CertificateRequest) bool { return true }}, pcafake.CA{})
	_, err := w.open().Issue(t.Context(), w.request("20261120T120000Z-0123456789abcdef"))
	says(t, err, rotate.ErrRequest, "RequestFailedException")
	// The receipt names a certificate that is not there any more.
	r := w.request("20261120T120000Z-0123456789abcde0")
	text, err := json.Marshal(receipt{Authority: w.arn, Certificate: w.arn + "/certificate/" + strings.Repeat("0", 32)})
	if err != nil {
		t.Fatal(err)
	}
	r.Receipt = string(text)
	_, err = w.open().Issue(t.Context(), r)
	says(t, err, rotate.ErrRequest, "ResourceNotFoundException")
	if n := w.fake.Calls("IssueCertificate"); n != 1 {
		t.Errorf("IssueCertificate was called %d times", n)
	}
}

// TestForeignReceipts gives receipts that are not this CA's: they are none.
func TestForeignReceipts(t *testing.T) {
	w := newWorld(t, pcafake.Options{}, pcafake.CA{})
	a := w.open()
	other := w.add(pcafake.CA{})
	for _, text := range []string{
		"", "{}", "hello", "null", `{"asked":1}`, `{"authority":"` + other + `","certificate":"` + other + `/certificate/x"}`,
		`{"authority":"` + w.arn + `","certificate":"` + other + `/certificate/x"}`,
	} {
		if r := a.readReceipt(text); r != (receipt{}) {
			t.Errorf("%q is read as %+v", text, r)
		}
	}
}

// TestErrors says what errors of AWS mean and what to do.
func TestErrors(t *testing.T) {
	for name, test := range map[string]struct {
		action, code, message string
		status                int
		is                    error
		says                  []string
	}{
		"denied":      {"IssueCertificate", "AccessDeniedException", "User: arn:aws:sts::123456789012:assumed-role/rotation/x is not authorized to perform: acm-pca:IssueCertificate on resource: ARN because no identity-based policy allows the acm-pca:IssueCertificate action", 400, session.ErrDenied, []string{`"Action":"acm-pca:IssueCertificate"`}},
		"throttled":   {"IssueCertificate", "ThrottlingException", "Rate exceeded", 400, session.ErrThrottled, nil},
		"500":         {"IssueCertificate", "InternalFailure", "oops", 500, session.ErrUnavailable, nil},
		"expired":     {"DescribeCertificateAuthority", "ExpiredTokenException", "expired", 400, session.ErrCredentials, nil},
		"get denied":  {"GetCertificate", "AccessDeniedException", "no", 400, session.ErrDenied, []string{"acm-pca:GetCertificate"}},
		"malformed":   {"IssueCertificate", "MalformedCSRException", "no", 400, rotate.ErrRequest, nil},
		"trust fails": {"GetCertificateAuthorityCertificate", "AccessDeniedException", "no", 400, session.ErrDenied, []string{"acm-pca:GetCertificateAuthorityCertificate"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pcafake.Options{}, pcafake.CA{})
			w.spoil = refuse(test.action, test.status, test.code, strings.ReplaceAll(test.message, "ARN", w.arn))
			chain, err := w.open().Issue(t.Context(), w.request("20261120T120000Z-0123456789abcdef"))
			if chain != nil {
				t.Error("a chain came back")
			}
			says(t, err, test.is, append(test.says, w.arn)...)
		})
	}
}

// TestOpen refuses what cannot be an authority.
func TestOpen(t *testing.T) {
	const arn = "arn:aws:acm-pca:eu-central-1:123456789012:certificate-authority/01234567-89ab-cdef-0123-456789abcdef"
	for name, c := range map[string]Config{
		"no ARN":             {},
		"a certificate's":    {ARN: arn + "/certificate/x"},
		"another region":     {ARN: arn, Region: "us-east-1"},
		"a CA's template":    {ARN: arn, Template: "arn:aws:acm-pca:::template/SubordinateCACertificate_PathLen0/V1"},
		"for servers only":   {ARN: arn, Template: "arn:aws:acm-pca:::template/EndEntityServerAuthCertificate/V1"},
		"another partition":  {ARN: arn, Template: "arn:aws-cn:acm-pca:::template/EndEntityCertificate/V1"},
		"no template at all": {ARN: arn, Template: "EndEntityCertificate/V1"},
	} {
		if _, err := Open(t.Context(), c); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	china, err := Open(t.Context(), Config{ARN: strings.NewReplacer("arn:aws:", "arn:aws-cn:", "eu-central-1", "cn-north-1").Replace(arn)})
	if err != nil || china.config.Template != "arn:aws-cn:acm-pca:::template/EndEntityCertificate/V1" {
		t.Errorf("in China: %+v, %v", china, err)
	}
	if _, err := Open(t.Context(), Config{ARN: arn, Endpoint: "http://192.0.2.1"}); !errors.Is(err, session.ErrConfig) {
		t.Errorf("an endpoint in the clear: %v", err)
	}
}

// TestBucket lets few go at once, and one a second then.
func TestBucket(t *testing.T) {
	now := time.Unix(1e9, 0)
	b := newBucket(func() time.Time { return now })
	var waits []time.Duration
	for range bucketSize + 2 {
		waits = append(waits, max(b.reserve(), 0))
	}
	if want := []time.Duration{0, 0, 0, 0, 0, time.Second, 2 * time.Second}; !slices.Equal(waits, want) {
		t.Errorf("the waits are %v, want %v", waits, want)
	}
	now = now.Add(-time.Hour)
	if wait := b.reserve(); wait != 3*time.Second {
		t.Errorf("a clock that went back: %v", wait)
	}
	now = now.Add(time.Hour)
	if wait := b.reserve(); wait > 0 {
		t.Errorf("an hour later: %v", wait)
	}
	b.tokens = -100
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.take(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("take = %v", err)
	}
}

// TestPrice reckons with AWS's tiers.
func TestPrice(t *testing.T) {
	for _, test := range []struct {
		mode            string
		issued, further int
		want            float64
	}{
		{mesh.ModeShortLived, 5000, 100, 5.8},
		{mesh.ModeGeneralPurpose, 0, 0, 0},
		{mesh.ModeGeneralPurpose, 0, 4, 3},
		{mesh.ModeGeneralPurpose, 998, 4, 2*0.75 + 2*0.35},
		{mesh.ModeGeneralPurpose, 20000, 1000, 1},
		{mesh.ModeGeneralPurpose, 0, 10001, 750 + 9000*0.35 + 0.001},
	} {
		if got := Cost(test.mode, test.issued, test.further); got < test.want-1e-6 || got > test.want+1e-6 {
			t.Errorf("Cost(%s, %d, %d) = %v, want %v", test.mode, test.issued, test.further, got, test.want)
		}
	}
	if ca, one := Price(mesh.ModeShortLived); ca != "$50 a month" || one != "$0.058 each" {
		t.Errorf("short-lived: %q, %q", ca, one)
	}
	if ca, one := Price(""); ca != "$400 a month" || !strings.HasPrefix(one, "$0.75 each") {
		t.Errorf("general: %q, %q", ca, one)
	}
	if _, err := time.Parse(time.DateOnly, PricesOf); err != nil {
		t.Error(err)
	}
}
