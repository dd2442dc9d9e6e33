package acmpca

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"countersign.dev/aws/internal/awstest/pcafake"
	"countersign.dev/mtls"
)

// TestRevocationList reads the CA's list, and goes on without one that cannot be had or believed.
func TestRevocationList(t *testing.T) {
	w := newWorld(t, pcafake.Options{}, pcafake.CA{CRL: "self"})
	a := w.open()
	text, err := a.Issue(t.Context(), w.request("20261120T120000Z-0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	chain, err := mtls.ParseCertificates(text)
	if err != nil {
		t.Fatal(err)
	}
	if points := chain[0].CRLDistributionPoints; len(points) != 1 || !strings.HasSuffix(points[0], "/crl/"+idOf(w.arn)+".crl") {
		t.Errorf("the certificate's list is at %v", points)
	}
	if err := w.fake.Revoke(w.arn, chain[0]); err != nil {
		t.Fatal(err)
	}
	trust, err := a.Trust(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	lists, err := mtls.ParseCRLs(trust.CRL)
	if err != nil {
		t.Fatal(err)
	}
	if number, end, ok := lists.Covers(trust.Issuer); !ok || number != "1" || !end.Equal(w.now.AddDate(0, 0, 7)) || len(w.notes) > 0 {
		t.Errorf("the list: %q, %s, %v; notes %q", number, end, ok, w.notes)
	}
	before := w.fake.Calls("GetCertificateAuthorityCertificate")
	if _, err := a.Trust(t.Context()); err != nil || w.fake.Calls("GetCertificateAuthorityCertificate") != before {
		t.Errorf("asked again within a minute: %v", err)
	}
	w.now = w.now.Add(2 * time.Minute)
	if _, err := a.Trust(t.Context()); err != nil || w.fake.Calls("GetCertificateAuthorityCertificate") != before+1 {
		t.Errorf("not asked again after two minutes: %v", err)
	}
}

// TestNoRevocationList has the list missing in each way: it is said, and trust is what it is.
func TestNoRevocationList(t *testing.T) {
	answer := func(f func(http.ResponseWriter)) func(*world) {
		return func(w *world) {
			w.spoil = func(rw http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodGet {
					return false
				}
				f(rw)
				return true
			}
		}
	}
	for name, test := range map[string]struct {
		spoil func(*world)
		note  string
	}{
		"forbidden": {answer(func(rw http.ResponseWriter) { rw.WriteHeader(http.StatusForbidden) }), "403 Forbidden"},
		"moved":     {answer(func(rw http.ResponseWriter) { rw.Header().Set("Location", "/other"); rw.WriteHeader(http.StatusFound) }), "302 Found"},
		"no list":   {answer(func(rw http.ResponseWriter) { _, _ = rw.Write([]byte("hello")) }), "invalid revocation list"},
		"another CA's": {func(w *world) {
			other := w.add(pcafake.CA{Name: "test", CRL: "example.com"})
			w.spoil = func(_ http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodGet {
					r.URL.Path = "/crl/" + idOf(other) + ".crl"
				}
				return false
			}
		}, "not signed by the CA"},
		"denied": {func(w *world) {
			w.spoil = refuse("DescribeCertificateAuthority", 400, "AccessDeniedException", "no")
		}, "acm-pca:DescribeCertificateAuthority"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pcafake.Options{}, pcafake.CA{CRL: "self"})
			test.spoil(w)
			trust, err := w.open().Trust(t.Context())
			if err != nil || len(trust.CRL) > 0 || trust.Issuer == nil || len(trust.Bundle) == 0 {
				t.Fatalf("Trust = %+v, %v", trust, err)
			}
			if len(w.notes) != 1 || !strings.Contains(w.notes[0], test.note) {
				t.Errorf("notes %q", w.notes)
			}
		})
	}
}

// TestTrustStates trusts a CA that is disabled, and not one that has no certificate.
func TestTrustStates(t *testing.T) {
	w := newWorld(t, pcafake.Options{}, pcafake.CA{})
	if err := w.fake.SetStatus(w.arn, "DISABLED"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.open().Trust(t.Context()); err != nil {
		t.Errorf("a disabled CA: %v", err)
	}
	admin := w.admin()
	made, err := admin.Create(t.Context(), NewCA{Type: TypeRoot, KeyAlgorithm: "EC_prime256v1", Subject: Subject{CommonName: "new"}})
	if err != nil {
		t.Fatal(err)
	}
	w.arn = made.ARN
	_, err = w.open().Trust(t.Context())
	says(t, err, ErrState, "PENDING_CERTIFICATE", "countersign ca aws activate --arn "+made.ARN)
}
