package rotate

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"countersign.dev/credential"
	"countersign.dev/issue"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/secret"
)

// exporter is an authority that makes keys itself, as AWS Certificate Manager does.
type exporter struct {
	*authority
	// life is how long its certificates are valid; spoils changes what is about to be signed.
	life time.Duration
	now  func() time.Time

	mu    sync.Mutex
	leaf  *x509.Certificate // the newest; nil for none
	key   crypto.Signer
	made  int // certificates, which is what is paid for
	asked []Request
	// before is called when a credential is asked for; its error is the answer. made is called when one was made.
	before, after func(Request) error
}

const ordersDNS = "orders.example.com"

// exportingWorld makes a world whose authority is an exporter.
func exportingWorld(t *testing.T) (*world, *exporter) {
	t.Helper()
	w := newWorld(t, secret.LayoutExported)
	e := &exporter{authority: w.authority, life: 9 * time.Hour, now: time.Now}
	w.config.Authority = e
	w.target.Certificate.DNSIdentity, w.target.Certificate.DNSNames = ordersDNS, []string{ordersDNS}
	w.target.Certificate.TTL, w.target.Certificate.RenewAfter = mesh.Duration(e.life), mesh.Duration(6*time.Hour)
	return w, e
}

// renew makes the next certificate, as ACM does by itself, too.
func (e *exporter) renew() {
	e.key = newKey(e.t)
	template := &x509.Certificate{
		SerialNumber: serial(e.t), Subject: pkix.Name{CommonName: ordersDNS}, DNSNames: []string{ordersDNS}, KeyUsage: x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		NotBefore: e.now().Add(-issue.ClockAllowance), NotAfter: e.now().Add(e.life),
	}
	if e.spoil != nil {
		e.spoil(template)
	}
	e.leaf = sign(e.t, template, e.signer.issuer, e.key.Public(), e.signer.key)
	e.made++
}

func (e *exporter) Export(ctx context.Context, request Request) (*secret.Material, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.asked = append(e.asked, request)
	if e.before != nil {
		if err := e.before(request); err != nil {
			return nil, err
		}
	}
	if e.leaf == nil || mtls.Serial(e.leaf) == request.Replaces {
		e.renew()
	}
	if err := request.Keep(ctx, "the receipt"); err != nil {
		return nil, err
	}
	if e.after != nil {
		if err := e.after(request); err != nil {
			return nil, err
		}
	}
	passphrase := credential.NewPassphrase()
	key, err := credential.EncryptKey(e.key, passphrase)
	if err != nil {
		return nil, err
	}
	block := func(cert *x509.Certificate) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	}
	return &secret.Material{Certificate: block(e.leaf), Chain: append(block(e.signer.issuer), block(e.signer.root)...), Key: key, Passphrase: passphrase}, nil
}

func (e *exporter) Newest(_ context.Context, workload mesh.Workload) (string, time.Time, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if workload.Name != "orders" || e.leaf == nil {
		return "", time.Time{}, nil
	}
	return mtls.Serial(e.leaf), e.leaf.NotAfter, nil
}

// TestExport has a credential exported, and again when there is a reason: by the clock, which renews, and when the authority
// has renewed by itself, which does not.
func TestExport(t *testing.T) {
	w, e := exportingWorld(t)
	first := w.first()
	if e.made != 1 || len(e.asked) != 1 || e.asked[0].Replaces != "" || e.asked[0].Key != mesh.ECDSAP256 || len(e.asked[0].CSR) != 0 || e.asked[0].Keep == nil {
		t.Errorf("%d were made, asked for %+v", e.made, e.asked)
	}
	if len(e.authority.asked) != 0 {
		t.Errorf("a certificate was asked for: %q", e.authority.asked)
	}
	material, err := w.target.Shape.Read(t.Context(), w.files, w.target.Secret, "")
	if err != nil || len(material.Passphrase) == 0 || len(material.Chain) == 0 {
		t.Errorf("what is stored lacks a part: %v", err)
	}
	w.check()
	w.must(Options{}, Nothing)
	if len(e.asked) != 1 {
		t.Error("asked although nothing is due")
	}

	e.renew()
	dry := w.must(Options{DryRun: true}, WouldRotate)
	says(t, dry.Reason, "the authority has renewed it", mtls.Serial(e.leaf))
	second := w.must(Options{}, Rotated)
	if e.made != 2 || second.Serial != mtls.Serial(e.leaf) || e.asked[1].Replaces != first.Serial {
		t.Errorf("%d were made, %s is current, asked for %+v", e.made, second.Serial, e.asked[1])
	}
	w.check()

	e.now = func() time.Time { return time.Now().Add(7 * time.Hour) }
	w.config.Now = e.now
	third := w.must(Options{}, Rotated)
	says(t, third.Reason, "it was due at")
	if e.made != 3 || e.asked[2].Replaces != second.Serial {
		t.Errorf("%d were made, asked for %+v", e.made, e.asked[2])
	}
	w.check()
	forced := w.must(Options{Force: true}, Rotated)
	if e.made != 4 || forced.Serial == third.Serial {
		t.Errorf("%d were made", e.made)
	}
}

// TestExportOfOneThatIsGone replaces a certificate that was revoked or deleted at the authority.
func TestExportOfOneThatIsGone(t *testing.T) {
	w, e := exportingWorld(t)
	first := w.first()
	e.leaf = nil
	result := w.must(Options{}, Rotated)
	says(t, result.Reason, "revoked or deleted there")
	if e.made != 2 || result.Serial == first.Serial || e.asked[1].Replaces != first.Serial {
		t.Errorf("%d were made, asked for %+v", e.made, e.asked[1])
	}
	w.must(Options{}, Nothing)
	w.check()
}

// TestExportOfOneThatEnds meets an authority that has had a certificate for long: that is renewed, once, before anybody gets it.
func TestExportOfOneThatEnds(t *testing.T) {
	w, e := exportingWorld(t)
	e.spoil = func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-8*time.Hour), time.Now().Add(time.Hour)
	}
	e.renew()
	old := mtls.Serial(e.leaf)
	e.spoil = nil
	result := w.first()
	if e.made != 2 || result.Serial == old || len(e.asked) != 2 || e.asked[1].Replaces != old || e.asked[0].ID == e.asked[1].ID || e.asked[1].Receipt != "the receipt" {
		t.Errorf("%d were made, asked for %+v", e.made, e.asked)
	}
	w.check()
}

// TestExportKilled kills a rotation before and after each change of the store: what is current is fit at every moment, and one
// certificate is paid for.
func TestExportKilled(t *testing.T) {
	for _, after := range []bool{false, true} {
		t.Run(fmt.Sprintf("after %t", after), func(t *testing.T) {
			t.Parallel()
			at, stride := places(after)
			for ; ; at += stride {
				w, e := exportingWorld(t)
				w.quiet = true
				w.first()
				_, died := w.dying(&mortal{at: at, after: after}, Options{Force: true})
				w.checkCurrent()
				made := e.made
				again := w.run(Options{})
				if again.Err != nil || (again.Outcome != Rotated && again.Outcome != Nothing) {
					t.Errorf("operation %d: the next rotation: %s, %v", at, again.Outcome, again.Err)
				}
				w.check()
				if e.made > 2 || e.made > made+1 || w.currentSerial() != mtls.Serial(e.leaf) {
					t.Errorf("operation %d: %d were made, %d of them by the next rotation", at, e.made, e.made-made)
				}
				if last := e.asked[len(e.asked)-1]; made == 2 && len(e.asked) == 3 && last.Receipt != "the receipt" && last.ID != e.asked[1].ID {
					t.Errorf("operation %d: the receipt is lost: %+v", at, last)
				}
				if t.Failed() {
					t.Fatalf("at operation %d", at)
				}
				if !died {
					break
				}
			}
			if at < 8 {
				t.Errorf("everything was done in %d operations", at)
			}
		})
	}
}

// TestExportUnfit lets the authority export what is not to be used: nothing current is replaced, and nothing is renewed.
func TestExportUnfit(t *testing.T) {
	spiffe := func(w *world) []*url.URL { return []*url.URL{w.target.Workload.Identity.URL()} }
	for name, c := range map[string]struct {
		spoil func(*world, *x509.Certificate)
		says  string
	}{
		"another name":     {func(_ *world, c *x509.Certificate) { c.Subject.CommonName = "ledger.example.com" }, "CN=" + ordersDNS + " is expected"},
		"another SAN":      {func(_ *world, c *x509.Certificate) { c.DNSNames = []string{"ledger.example.com"} }, "it is not for the DNS name"},
		"a longer subject": {func(_ *world, c *x509.Certificate) { c.Subject.Organization = []string{"shop"} }, "CN=" + ordersDNS + " is expected"},
		"more names":       {func(_ *world, c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "ledger.example.com") }, "other names"},
		"a SPIFFE ID":      {func(w *world, c *x509.Certificate) { c.URIs = spiffe(w) }, "has the URI"},
		"expired":          {func(_ *world, c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, "has expired"},
	} {
		t.Run(name, func(t *testing.T) {
			w, e := exportingWorld(t)
			first := w.first()
			e.spoil = func(cert *x509.Certificate) { c.spoil(w, cert) }
			e.renew()
			result := w.must(Options{}, Failed)
			if !errors.Is(result.Err, ErrUnfit) || w.currentSerial() != first.Serial || e.made != 2 {
				t.Errorf("%v, %d were made", result.Err, e.made)
			}
			says(t, result.Error, c.says)
			w.check()
			// It is looked at again each time, and costs nothing.
			w.must(Options{}, Failed)
			e.spoil = nil
			e.renew()
			w.must(Options{}, Rotated)
			if e.made != 3 {
				t.Errorf("%d were made", e.made)
			}
		})
	}
}

// TestNoSPIFFEID stores a certificate without SPIFFE ID where no DNS name is declared: that is nobody's.
func TestNoSPIFFEID(t *testing.T) {
	w, _ := exportingWorld(t)
	w.first()
	w.config.Authority = w.authority
	w.target.Certificate.DNSIdentity = ""
	result := w.must(Options{DryRun: true}, WouldRotate)
	says(t, result.Reason, "the leaf has no SPIFFE ID")
}

// TestExportFails asks an authority that fails, and goes on with the same request.
func TestExportFails(t *testing.T) {
	w, e := exportingWorld(t)
	first := w.first()
	broken := errors.New("the authority is away")
	e.after = func(Request) error { return broken }
	result := w.must(Options{Force: true}, Failed)
	says(t, result.Error, "at the step issue", broken.Error())
	if w.currentSerial() != first.Serial || e.made != 2 {
		t.Errorf("%d were made", e.made)
	}
	e.after = nil
	result = w.must(Options{}, Rotated)
	says(t, result.Reason, "a request waits for its certificate")
	if e.made != 2 || e.asked[2].ID != e.asked[1].ID || e.asked[2].Receipt != "the receipt" || e.asked[2].Replaces != first.Serial {
		t.Errorf("%d were made, asked for %+v", e.made, e.asked[2])
	}
	w.check()
	// An answer that will never come is not waited for.
	e.before = func(Request) error { return ErrRequest }
	result = w.must(Options{Force: true}, Failed)
	if !errors.Is(result.Err, ErrRequest) {
		t.Error(result.Err)
	}
	w.check()
}

// TestExportStopped ends while the authority is waited for: the next rotation goes on.
func TestExportStopped(t *testing.T) {
	w, e := exportingWorld(t)
	w.first()
	target := w.target
	target.Authority = e
	ctx, stop := context.WithCancel(t.Context())
	e.after = func(Request) error { stop(); return context.Canceled }
	result := w.rotator().Rotate(ctx, target, Options{Force: true})
	if !errors.Is(result.Err, ErrStopped) {
		t.Errorf("%v, want ErrStopped", result.Err)
	}
	e.after = nil
	w.must(Options{}, Rotated)
	if e.made != 2 {
		t.Errorf("%d were made", e.made)
	}
	w.check()
}

// TestExportOfOtherNames changes what the workload is called: the request of before is of no use.
func TestExportOfOtherNames(t *testing.T) {
	w, e := exportingWorld(t)
	w.first()
	e.after = func(Request) error { return errors.New("away") }
	w.must(Options{Force: true}, Failed)
	e.after = nil
	w.target.Certificate.Key = mesh.ECDSAP384
	e.before = func(r Request) error {
		if r.Key != mesh.ECDSAP384 {
			return fmt.Errorf("asked for %s", r.Key)
		}
		return errors.New("no such key here")
	}
	w.must(Options{}, Failed)
	if ids := []string{e.asked[1].ID, e.asked[2].ID}; ids[0] == ids[1] || slices.Contains(ids, "") {
		t.Errorf("the ids %q", ids)
	}
}

// TestExportLayout refuses a layout that has no place for a passphrase.
func TestExportLayout(t *testing.T) {
	w, e := exportingWorld(t)
	shape, err := secret.NewShape(secret.LayoutJSON, secret.Fields{})
	if err != nil {
		t.Fatal(err)
	}
	w.target.Shape = shape
	result := w.must(Options{}, Failed)
	says(t, result.Error, "write layout: exported")
	if len(e.asked) != 0 {
		t.Error("something was asked for")
	}
}

// TestNewestFails cannot find out what the authority has.
func TestNewestFails(t *testing.T) {
	w, e := exportingWorld(t)
	w.first()
	w.config.Authority = brokenNewest{e}
	result := w.must(Options{}, Failed)
	says(t, result.Error, "at the step look", "which certificate is its newest", "throttled")
}

type brokenNewest struct{ *exporter }

func (brokenNewest) Newest(context.Context, mesh.Workload) (string, time.Time, error) {
	return "", time.Time{}, errors.New("throttled")
}

// TestExportAfterRollback goes back from what the authority has renewed, and tries it again: nothing more is made.
func TestExportAfterRollback(t *testing.T) {
	w, e := exportingWorld(t)
	first := w.first()
	e.renew()
	w.fleet.refuses = func(serial string) bool { return serial != first.Serial }
	w.must(Options{}, RolledBack)
	w.fleet.refuses = nil
	again := w.must(Options{}, Rotated)
	if e.made != 2 || again.Serial != mtls.Serial(e.leaf) {
		t.Errorf("%d were made, %s is current", e.made, again.Serial)
	}
	w.check()
}

// FuzzExportRequest reads a request of whatever lies in the store.
func FuzzExportRequest(f *testing.F) {
	f.Add([]byte(`{"exportFormat":1,"dnsNames":["a.b"]}`))
	f.Add([]byte(`{"format":1,"csr":"x","key":"y"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		request, ok := parseExport(text)
		if ok && (request.Format != exportFormat || len(request.DNSNames) == 0) {
			t.Errorf("%+v", request)
		}
		if _, other := parsePending(text); other && ok && len(request.DNSNames) == 0 {
			t.Error("it is both kinds of request")
		}
	})
}
