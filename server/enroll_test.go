package server

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/journal"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// makeCSR is a certificate request with a key and names of the caller's choice.
func makeCSR(t *testing.T, key any, template *x509.CertificateRequest) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func TestEnrollTokens(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	p := r.newPeer("colorteller-1")

	wantCode(t, p.enroll("nonsense"), api.CodeUnknownToken)
	unknown, _ := newToken("colorteller", 1, time.Time{})
	if message := wantCode(t, p.enroll(unknown), api.CodeUnknownToken); !strings.Contains(message, "countersign token create") {
		t.Errorf("the message %q does not say what to do", message)
	}
	token := r.token("colorteller", 1)
	if err := p.enroll(token); err != nil {
		t.Fatal(err)
	}
	wantCode(t, r.newPeer("colorteller-2").enroll(token), api.CodeUsedToken)

	expired := r.token("colorteller", 1)
	f.offset.Store(int64(defaultTokenTTL))
	wantCode(t, r.newPeer("colorteller-3").enroll(expired), api.CodeExpiredToken)

	if got := f.count(journal.EnrollRefused); got != 4 {
		t.Errorf("the journal has %d refused enrolments, want 4", got)
	}
	if got := f.count(journal.Enroll); got != 1 {
		t.Errorf("the journal has %d enrolments, want 1", got)
	}
}

// TestEnrollTokenOfAnotherWorkload shows that it is the token that names the workload: there is no way
// to ask for another one.
func TestEnrollTokenOfAnotherWorkload(t *testing.T) {
	r := newFixture(t, colorapp).start()
	p := r.newPeer("colorteller-1")
	csr := makeCSR(t, p.key, &x509.CertificateRequest{DNSNames: []string{"colorteller"}})
	err := p.post(api.PathEnroll, api.EnrollRequest{Token: r.token("colorgateway", 1), Instance: "colorteller-1", CSR: csr}, &api.Credentials{})
	wantCode(t, err, api.CodeNameMismatch)
	if err := p.enroll(r.token("colorgateway", 1)); err != nil {
		t.Fatal(err)
	}
	if got := p.chain[0].URIs[0].String(); got != "spiffe://colorapp.internal/gateway/colorgateway" {
		t.Errorf("identity %s, want the token's", got)
	}
}

func TestEnrollWorkloadThatIsGone(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	token := r.token("colorteller", 1)
	r.apply(t, strings.ReplaceAll(colorapp, "colorteller", "colourteller"))
	wantCode(t, r.newPeer("colorteller-1").enroll(token), api.CodeNotDeclared)
}

// apply replaces the running specification.
func (r *remote) apply(t *testing.T, spec string) *api.ApplyResponse {
	t.Helper()
	response, err := r.tryApply(spec, false)
	if err != nil {
		t.Fatal(err)
	}
	return response
}

func (r *remote) tryApply(spec string, dryRun bool) (*api.ApplyResponse, error) {
	documents := []mesh.Document{{Name: "mesh.yaml", Directory: r.f.dir, Content: spec}}
	return r.admin.Apply(r.f.t.Context(), api.ApplyRequest{Documents: documents, DryRun: dryRun})
}

// TestEnrollAgain repeats enrolments as an agent does that was killed before it could keep the answer.
func TestEnrollAgain(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	p := r.newPeer("colorteller-1")
	token := r.token("colorteller", 1)
	if err := p.enroll(token); err != nil {
		t.Fatal(err)
	}
	first := p.serial()
	p.chain = nil
	f.offset.Store(int64(defaultTokenTTL + time.Minute)) // the token has expired meanwhile
	if err := p.enroll(token); err != nil {
		t.Fatal(err)
	}
	if p.serial() != first {
		t.Errorf("serial %s, want %s again", p.serial(), first)
	}
	f.offset.Store(int64(2 * time.Hour)) // and now the certificate, too
	wantCode(t, p.enroll(token), api.CodeUsedToken)
}

func TestEnrollAgainAfterExpiryCostsAUse(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	created, err := r.admin.CreateToken(t.Context(), api.TokenRequest{Workload: "colorteller", Uses: 2, TTL: mesh.Duration(24 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	p := r.newPeer("colorteller-1")
	var serials []string
	for range 2 {
		if err := p.enroll(created.Token); err != nil {
			t.Fatal(err)
		}
		serials = append(serials, p.serial())
		f.offset.Add(int64(2 * time.Hour))
	}
	if serials[0] == serials[1] {
		t.Error("an expired certificate was given out again")
	}
	wantCode(t, p.enroll(created.Token), api.CodeUsedToken)
}

// TestEnrollRace uses one token from many sides at once.
func TestEnrollRace(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	const uses, tries = 2, 6
	token := r.token("colorteller", uses)
	var wg sync.WaitGroup
	results := make(chan error, tries)
	for i := range tries {
		p := r.newPeer(fmt.Sprintf("colorteller-%d", i))
		wg.Go(func() { results <- p.enroll(token) })
	}
	wg.Wait()
	close(results)
	succeeded := 0
	for err := range results {
		if err == nil {
			succeeded++
		} else {
			wantCode(t, err, api.CodeUsedToken)
		}
	}
	if succeeded != uses {
		t.Errorf("%d enrolments by a token of %d uses", succeeded, uses)
	}
}

func TestEnrollCSRs(t *testing.T) {
	r := newFixture(t, colorapp).start()
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GODEBUG", "rsa1024min=0")
	rsa1024, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	other, err := id.Parse("spiffe://colorapp.internal/service/another")
	if err != nil {
		t.Fatal(err)
	}
	good := makeCSR(t, p256, &x509.CertificateRequest{})
	block, _ := pem.Decode([]byte(good))
	block.Bytes[len(block.Bytes)-1] ^= 1
	cases := map[string]struct{ csr, code string }{
		"another DNS name": {makeCSR(t, p256, &x509.CertificateRequest{DNSNames: []string{"colorteller", "another"}}), api.CodeNameMismatch},
		"another identity": {makeCSR(t, p256, &x509.CertificateRequest{URIs: []*url.URL{other.URL()}}), api.CodeNameMismatch},
		"an e-mail":        {makeCSR(t, p256, &x509.CertificateRequest{EmailAddresses: []string{"a@b.c"}}), api.CodeNameMismatch},
		"a weak RSA key":   {makeCSR(t, rsa1024, &x509.CertificateRequest{}), api.CodeWeakKey},
		"a weak curve":     {makeCSR(t, p224, &x509.CertificateRequest{}), api.CodeWeakKey},
		"a bad signature":  {string(pem.EncodeToMemory(block)), api.CodeBadRequest},
		"no PEM":           {"nonsense", api.CodeBadRequest},
		"nothing":          {"", api.CodeBadRequest},
		"too much":         {good + strings.Repeat("\n", issue.MaxCSR), api.CodeBadRequest},
	}
	token := r.token("colorteller", 1)
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p := r.newPeer("colorteller-1")
			err := p.post(api.PathEnroll, api.EnrollRequest{Token: token, Instance: p.instance, CSR: c.csr}, &api.Credentials{})
			wantCode(t, err, c.code)
		})
	}
	p := r.newPeer("colorteller-1") // the refusals have not used the token up
	if err := p.enroll(token); err != nil {
		t.Error(err)
	}
	// Names that the workload has may be asked for.
	csr := makeCSR(t, p256, &x509.CertificateRequest{DNSNames: []string{"colour.example.com", "colorteller"}})
	p = r.newPeer("colorteller-2")
	if err := p.post(api.PathEnroll, api.EnrollRequest{Token: r.token("colorteller", 1), Instance: p.instance, CSR: csr}, &api.Credentials{}); err != nil {
		t.Error(err)
	}
	bad := r.newPeer("not a name")
	wantCode(t, bad.enroll(r.token("colorteller", 1)), api.CodeBadRequest)
}

func TestEnrolledCertificate(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	p := r.newPeer("colorteller-1")
	var credentials api.Credentials
	if err := p.post(api.PathEnroll, api.EnrollRequest{Token: r.token("colorteller", 1), Instance: p.instance, CSR: p.csr()}, &credentials); err != nil {
		t.Fatal(err)
	}
	chain, err := mtls.ParseCertificates([]byte(credentials.Chain))
	if err != nil || len(chain) != 2 {
		t.Fatalf("%d certificates in the chain, %v; want leaf and issuer", len(chain), err)
	}
	names := slices.Sorted(slices.Values(chain[0].DNSNames))
	if want := []string{"colorteller", "colorteller.colorapp.internal", "colour.example.com"}; !slices.Equal(names, want) {
		t.Errorf("DNS names %v, want %v", names, want)
	}
	bundle, err := mtls.ParseBundle("colorapp.internal", []byte(credentials.Bundle))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.Verify(chain, x509.ExtKeyUsageClientAuth, time.Now()); err != nil {
		t.Error(err)
	}
	if got, want := time.Duration(credentials.RenewAfter), time.Hour*5/7; got.Round(time.Second) != want.Round(time.Second) {
		t.Errorf("renew after %s, want %s", got, want)
	}
	records, err := r.admin.Certificates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(records, func(c api.CertificateRecord) bool {
		return c.Serial == mtls.Serial(chain[0]) && c.Instance == "colorteller-1" && c.Identity == credentials.Identity && c.NotAfter.Equal(chain[0].NotAfter)
	}) {
		t.Errorf("the certificate is not among %+v", records)
	}
}

func TestRenew(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	p := r.joinAs("colorteller", "colorteller-1")
	if err := p.renew(); err != nil {
		t.Fatal(err)
	}
	stranger := r.newPeer("colorteller-1")
	wantCode(t, stranger.renew(), api.CodeUnauthorized)

	// A certificate of another CA, with the right name in it.
	foreign := newFixture(t, colorapp).start().joinAs("colorteller", "colorteller-1")
	stranger.key, stranger.chain = foreign.key, foreign.chain
	stranger.connect()
	wantCode(t, stranger.renew(), api.CodeForbidden)

	// The probe and the server itself renew nothing.
	probe := r.newPeer("verify")
	credentials, err := r.admin.Probe(t.Context(), probe.csr(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := probe.take(*credentials); err != nil {
		t.Fatal(err)
	}
	wantCode(t, probe.renew(), api.CodeForbidden)

	// Another workload's names.
	csr := makeCSR(t, p.key, &x509.CertificateRequest{DNSNames: []string{"colorgateway"}})
	wantCode(t, p.post(api.PathRenew, api.RenewRequest{Instance: p.instance, CSR: csr}, &api.Credentials{}), api.CodeNameMismatch)

	// An expired certificate, over a connection that was made while it was good, and over a new one.
	f.offset.Store(int64(2 * time.Hour))
	wantCode(t, p.renew(), api.CodeExpiredCert)
	p.connect()
	wantCode(t, p.renew(), api.CodeExpiredCert)
	wantCode(t, p.report(1), api.CodeExpiredCert)
	_, err = p.tryWatch(0)
	wantCode(t, err, api.CodeExpiredCert)
	f.offset.Store(0)

	r.apply(t, strings.ReplaceAll(colorapp, "colorteller", "colourteller"))
	wantCode(t, p.renew(), api.CodeNotDeclared)
	wantCode(t, p.report(1), api.CodeNotDeclared)
	if got := f.count(journal.Renew); got != 1 {
		t.Errorf("the journal has %d renewals, want 1", got)
	}
	if got := f.count(journal.RenewRefused); got != 7 {
		t.Errorf("the journal has %d refused renewals, want 7", got)
	}
}

// TestRenewAsAnotherKind changes a service into a gateway of the same name: the old identity is gone.
func TestRenewAsAnotherKind(t *testing.T) {
	r := newFixture(t, colorapp).start()
	p := r.joinAs("colorgateway", "colorgateway-1")
	r.apply(t, "mesh: colorapp\nservices:\n  colorgateway: {ports: [{port: 8080, protocol: http}]}\n")
	wantCode(t, p.renew(), api.CodeNotDeclared)
}

// TestRefusalsAreLimited floods the server with wrong tokens: the journal stays small, and a right
// token is not held up.
func TestRefusalsAreLimited(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	p := r.newPeer("colorteller-1")
	limited := 0
	for range refusalsPerPeer + 20 {
		err := p.enroll("nonsense")
		if refusal, ok := errors.AsType[*api.Error](err); ok && refusal.Code == api.CodeRateLimited {
			limited++
		} else {
			wantCode(t, err, api.CodeUnknownToken)
		}
	}
	if limited < 10 {
		t.Errorf("%d of the refusals were limited", limited)
	}
	if got := f.count(journal.EnrollRefused); got > refusalsPerPeer+10 {
		t.Errorf("the journal has %d refusals", got)
	}
	if err := p.enroll(r.token("colorteller", 1)); err != nil {
		t.Error(err)
	}
}

// FuzzAgentRequests sends bodies to the handlers that strangers can reach. No body may be taken, make
// the server fail, or appear in its log with a token in it.
func FuzzAgentRequests(f *testing.F) {
	seed := func(v any) {
		text, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	secret, _ := newToken("colorteller", 1, time.Time{})
	seed(api.EnrollRequest{Token: secret, Instance: "a", CSR: "-----BEGIN CERTIFICATE REQUEST-----\nAA==\n-----END CERTIFICATE REQUEST-----\n"})
	seed(api.RenewRequest{Instance: "a", CSR: "x"})
	seed(api.WatchRequest{Instance: "a", Revision: 1})
	seed(api.Report{Instance: "a", Listening: []api.Listening{{Port: 1, Address: "127.0.0.1:1"}}})
	f.Add([]byte(`{"token":["` + secret + `"]}`))
	f.Add([]byte(`{"token":"` + secret + `"} {}`))
	f.Add([]byte(`{"` + secret + `":1}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var enroll api.EnrollRequest
		var renew api.RenewRequest
		var watch api.WatchRequest
		var report api.Report
		for _, into := range []any{&enroll, &renew, &watch, &report} {
			request := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(string(body)))
			request.Header.Set("Content-Type", "application/json")
			recorder := httptest.NewRecorder()
			err := decode(recorder, request, maxBody, into)
			status, answer := http.StatusOK, &api.Error{}
			if err != nil {
				status, answer = answerOf(err)
			}
			if status >= http.StatusInternalServerError {
				t.Errorf("%v", err)
			}
			if strings.Contains(answer.Message, secret) && !strings.HasPrefix(answer.Message, "invalid request: unknown field") {
				t.Errorf("the message quotes a token: %s", answer.Message)
			}
		}
		if csr, err := checkCSR(enroll.CSR, id.ID{}, nil); err == nil && csr.CheckSignature() != nil {
			t.Error("a request with a wrong signature was taken")
		}
		_ = wellFormedToken(enroll.Token)
		if report = bounded(report); len(report.PlaintextCallers) > maxReported || len(report.Problem) > maxProblem+3 {
			t.Error("a report is not bounded")
		}
	})
}
