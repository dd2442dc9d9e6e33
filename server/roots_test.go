package server

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/id"
	"countersign.dev/journal"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// endpointUnderTest is a TLS listener of a peer: what it serves and whom it trusts is set by the test.
type endpointUnderTest struct {
	p       *peer
	address string
	held    atomic.Pointer[mtls.Identity]
}

func (e *endpointUnderTest) Identity() (*mtls.Identity, error) { return e.held.Load(), nil }

// serve puts the peer's certificate of now and a bundle in use.
func (e *endpointUnderTest) serve(bundlePEM string) {
	t := e.p.r.f.t
	t.Helper()
	bundle, err := mtls.ParseBundle("colorapp.internal", []byte(bundlePEM))
	if err != nil {
		t.Fatal(err)
	}
	who, err := id.FromCertificate(e.p.chain[0])
	if err != nil {
		t.Fatal(err)
	}
	certificate := tls.Certificate{PrivateKey: e.p.key, Leaf: e.p.chain[0]}
	for _, cert := range e.p.chain {
		certificate.Certificate = append(certificate.Certificate, cert.Raw)
	}
	e.held.Store(&mtls.Identity{ID: who, Certificate: certificate, Bundle: bundle})
}

// listen opens a listener that refuses every request of those whom TLS accepts.
func (p *peer) listen(bundlePEM string) *endpointUnderTest {
	t := p.r.f.t
	t.Helper()
	e := &endpointUnderTest{p: p}
	e.serve(bundlePEM)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	e.address = listener.Addr().String()
	server := &http.Server{
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }),
		TLSConfig: mtls.NewServer(e, mtls.ServerOptions{NextProtos: []string{"h2", "http/1.1"}}).Config(),
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.ServeTLS(listener, "", "") }()
	t.Cleanup(func() { server.Close(); <-done })
	return e
}

// digestOfPEM is what an agent reports of a bundle.
func digestOfPEM(t *testing.T, bundlePEM string) string {
	t.Helper()
	bundle, err := mtls.ParseBundle("colorapp.internal", []byte(bundlePEM))
	if err != nil {
		t.Fatal(err)
	}
	return bundle.Digest()
}

// told is the next event with a Plan and a bundle of that many roots.
func (w *watching) told(roots int) api.Event {
	t := w.p.r.f.t
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		event := w.next()
		if event.Plan == nil {
			continue
		}
		if certs, err := mtls.ParseCertificates([]byte(event.Bundle)); err == nil && len(certs) == roots {
			return event
		}
	}
	t.Fatalf("nobody is told of %d roots", roots)
	panic("not reached")
}

// refuses takes a step that has to be refused, and wants each of the texts in its own line of who stands
// in the way, and no other line.
func (r *remote) refuses(step string, lines ...string) {
	t := r.f.t
	t.Helper()
	_, err := r.admin.Rotate(t.Context(), api.RotationRequest{Step: step})
	refusal, ok := errors.AsType[*api.Error](err)
	if !ok || refusal.Code != api.CodeConflict {
		t.Errorf("%s: %v, want a conflict", step, err)
		return
	}
	for _, want := range lines {
		if !slices.ContainsFunc(refusal.Details, func(line string) bool { return matches(line, want) }) {
			t.Errorf("%s: nobody says %q in\n%s", step, want, strings.Join(refusal.Details, "\n"))
		}
	}
	if len(refusal.Details) != len(lines) {
		t.Errorf("%s: %d stand in the way, want %d:\n%s", step, len(refusal.Details), len(lines), strings.Join(refusal.Details, "\n"))
	}
}

// matches tells whether a line holds the words, in their order.
func matches(line, words string) bool {
	for word := range strings.SplitSeq(words, "...") {
		_, after, ok := strings.Cut(line, word)
		if !ok {
			return false
		}
		line = after
	}
	return true
}

// takes takes a step that has to succeed.
func (r *remote) takes(request api.RotationRequest) *api.Rotation {
	r.f.t.Helper()
	rotation, err := r.admin.Rotate(r.f.t.Context(), request)
	if err != nil {
		if refusal, ok := errors.AsType[*api.Error](err); ok {
			r.f.t.Fatalf("%s: %v\n%s", request.Step, err, strings.Join(refusal.Details, "\n"))
		}
		r.f.t.Fatalf("%s: %v", request.Step, err)
	}
	return rotation
}

// TestRotateRoot changes the root of a mesh with a service and a gateway, and tries every step too early
// in every way.
func TestRotateRoot(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	pin := r.Info().CAPin
	teller, gateway := r.joinAs("colorteller", "colorteller-1"), r.joinAs("colorgateway", "colorgateway-1")
	tellerWatch, gatewayWatch := teller.watch(0), gateway.watch(0)
	first := gatewayWatch.told(1)
	tellerWatch.told(1)
	end := teller.listen(first.Bundle)
	report := func(p *peer, bundle string) {
		t.Helper()
		report := api.Report{Revision: 1, Bundle: digestOfPEM(t, bundle)}
		if p == teller {
			report.Listening = []api.Listening{{Port: 9080, Address: end.address}}
		}
		if err := p.reportAs(report); err != nil {
			t.Fatal(err)
		}
	}
	report(teller, first.Bundle)
	report(gateway, first.Bundle)
	byHand := r.newPeer("")
	if _, err := r.admin.Issue(t.Context(), api.IssueRequest{Workload: "colorteller", CSR: byHand.csr()}); err != nil {
		t.Fatal(err)
	}

	r.refuses(api.RotateActivate)
	r.refuses(api.RotateFinish)
	started := r.takes(api.RotationRequest{Step: api.RotateStart})
	if started.Next != api.RotateActivate || len(started.Roots) != 2 || started.Roots[0].Pin != pin || started.Roots[1].State != "next" {
		t.Errorf("after the start: %+v", started)
	}
	r.refuses(api.RotateStart)
	r.refuses(api.RotateFinish)
	both := tellerWatch.told(2)
	if gatewayWatch.told(2).Issuer != first.Issuer || first.Issuer == "" {
		t.Error("another issuer is told before it signs")
	}
	r.refuses(api.RotateActivate, "colorgateway colorgateway-1: it does not trust the next root yet",
		"colorteller colorteller-1: it does not trust the next root yet", "colorteller colorteller-1 "+end.address+": it does not accept a certificate of the next root: ...alert")
	report(teller, both.Bundle)
	report(gateway, both.Bundle)
	r.refuses(api.RotateActivate, "colorteller colorteller-1 "+end.address+": it does not accept a certificate of the next root: ...alert")
	end.serve(both.Bundle)
	gatewayWatch.close()
	eventually(t, "the gateway is away", func() bool {
		rotation, err := r.admin.Rotation(t.Context(), true)
		return err == nil && rotation.Checked && len(rotation.Blockers) == 1 && strings.HasPrefix(rotation.Blockers[0].Reason, "not connected since")
	})
	gatewayWatch = gateway.watch(0)
	gatewayWatch.told(2)
	active := r.takes(api.RotationRequest{Step: api.RotateActivate})
	if active.Next != api.RotateFinish || active.Roots[0].Pin == pin || active.Roots[0].Pin != started.Roots[1].Pin || active.Roots[1].State != "retiring" {
		t.Errorf("after the activation: %+v", active)
	}
	if told := gatewayWatch.told(2); told.Issuer == first.Issuer || told.Issuer == "" {
		t.Errorf("the issuer that is told is %q", told.Issuer)
	}

	r.info = r.Info()
	if r.info.CAPin != active.Roots[0].Pin {
		t.Error("the pin is not that of the new root")
	}
	r.joinAs("colorteller", "colorteller-2") // the server shows a chain of the new root
	hand := "colorteller: the certificate...by hand"
	r.refuses(api.RotateFinish, hand, "colorgateway colorgateway-1: it has the certificate",
		"colorteller colorteller-1: it has the certificate", "colorteller colorteller-1 "+end.address+": it serves the certificate")
	old := &peer{r: gateway.r, instance: gateway.instance, key: gateway.key, chain: gateway.chain}
	old.connect()
	for _, p := range []*peer{teller, gateway} {
		if err := p.renew(); err != nil {
			t.Fatal(err)
		}
		report(p, both.Bundle)
	}
	r.refuses(api.RotateFinish, hand, "colorteller colorteller-1 "+end.address+": it serves the certificate")
	end.serve(both.Bundle)
	r.refuses(api.RotateFinish, hand)
	if _, err := r.admin.Issue(t.Context(), api.IssueRequest{Workload: "colorteller", CSR: byHand.csr()}); err != nil {
		t.Fatal(err)
	}
	if err := old.report(1); err != nil {
		t.Errorf("the old certificate before the end: %v", err)
	}
	report(gateway, both.Bundle)
	gatewayWatch = gateway.watch(0)
	teller.watch(0)
	gatewayWatch.told(2)
	finished := r.takes(api.RotationRequest{Step: api.RotateFinish})
	if finished.Next != "" || len(finished.Roots) != 1 {
		t.Errorf("after the end: %+v", finished)
	}
	if len(finished.Lagging) != 2 || !strings.Contains(finished.Lagging[0].Reason, "not taken in") {
		t.Errorf("who still trusts the root of before: %+v", finished.Lagging)
	}
	if event := gatewayWatch.told(1); !strings.Contains(event.Bundle, strings.TrimSpace(finished.Roots[0].Root)) {
		t.Error("the root that is left is not the new one")
	}
	wantCode(t, old.report(1), api.CodeForbidden)
	report(gateway, finished.Roots[0].Root)
	report(teller, finished.Roots[0].Root)
	if rotation, err := r.admin.Rotation(t.Context(), true); err != nil || len(rotation.Lagging) != 0 || rotation.Checked {
		t.Errorf("everybody has the bundle: %+v, %v", rotation, err)
	}
	r.stop()
	if text, err := os.ReadFile(r.Info().CAFile); err != nil || string(text) != finished.Roots[0].Root {
		t.Errorf("the bundle's file: %v", err)
	}
	r = f.start()
	if r.Info().CAPin != finished.Roots[0].Pin {
		t.Error("the next start has another root")
	}
	if n, refused := f.count(journal.CARotate), f.count(journal.CARotateRefused); n != 3 || refused != 9 {
		t.Errorf("the journal has %d changes and %d refusals", n, refused)
	}
}

// TestRotateForced goes over those who stand in the way, with the word and not without it, and writes down
// who they were.
func TestRotateForced(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	gateway := r.joinAs("colorgateway", "colorgateway-1")
	w := gateway.watch(0)
	w.told(1)
	w.close()
	_, err := r.admin.Rotate(t.Context(), api.RotationRequest{Step: api.RotateStart, RootLife: mesh.Duration(time.Hour)})
	wantCode(t, err, api.CodeBadRequest) // the issuing CA lives for years, and is not cut short
	r.takes(api.RotationRequest{Step: api.RotateStart, Key: mesh.ECDSAP384, RootLife: mesh.Duration(48 * time.Hour), IssuerLife: mesh.Duration(24 * time.Hour)})
	for _, request := range []api.RotationRequest{
		{Step: api.RotateActivate, Force: "yes"},
		{Step: "hurry"},
		{},
		{Step: api.RotateStart, Key: "rsa-2048"},
		{Step: api.RotateStart, RootLife: mesh.Duration(time.Second)},
		{Step: api.RotateStart, RootLife: mesh.Duration(time.Hour), IssuerLife: mesh.Duration(2 * time.Hour)},
		{Step: api.RotateIssuer, RootKeyFile: filepath.Join(f.dir, "none")},
	} {
		_, err := r.admin.Rotate(t.Context(), request)
		wantCode(t, err, api.CodeBadRequest)
	}
	r.takes(api.RotationRequest{Step: api.RotateActivate, Force: api.CutOff})
	finished := r.takes(api.RotationRequest{Step: api.RotateFinish, Force: api.CutOff})
	if len(finished.Roots) != 1 {
		t.Errorf("%+v", finished)
	}
	r.stop()
	forced := 0
	for record, err := range journal.Records(ca.JournalDir(f.cfg.State)) {
		if err != nil {
			t.Fatal(err)
		}
		if text := string(record.Data); record.Type == journal.CARotate && strings.Contains(text, `"forced":"cut-off"`) && strings.Contains(text, "colorgateway-1") {
			forced++
		}
	}
	if forced != 2 {
		t.Errorf("%d entries name who was cut off, want 2", forced)
	}
}

// TestFinishNamesWhoHasLeft counts the certificate of an instance that has said good-bye, until it ends.
func TestFinishNamesWhoHasLeft(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	gateway := r.joinAs("colorgateway", "colorgateway-1")
	r.takes(api.RotationRequest{Step: api.RotateStart})
	if err := gateway.reportAs(api.Report{Draining: true}); err != nil {
		t.Fatal(err)
	}
	r.takes(api.RotationRequest{Step: api.RotateActivate})
	r.refuses(api.RotateFinish, "colorgateway colorgateway-1: its certificate "+gateway.serial()+" is of the root of before, lives until...has no successor")
	f.offset.Store(int64(2 * time.Hour)) // the certificates live for one
	r.takes(api.RotationRequest{Step: api.RotateFinish})
}

// TestFinishBelievesPeers waits while peers still see somebody present a certificate of the root of before who
// says that he has renewed; and does not believe in a certificate that nobody has issued.
func TestFinishBelievesPeers(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	gateway, teller := r.joinAs("colorgateway", "colorgateway-1"), r.joinAs("colorteller", "colorteller-1")
	old := gateway.serial()
	r.takes(api.RotationRequest{Step: api.RotateStart})
	r.takes(api.RotationRequest{Step: api.RotateActivate, Force: api.CutOff})
	r.info = r.Info()
	for _, p := range []*peer{gateway, teller} {
		p.connect()
		if err := p.renew(); err != nil {
			t.Fatal(err)
		}
		if err := p.report(1); err != nil {
			t.Fatal(err)
		}
	}
	who := "spiffe://colorapp.internal/gateway/colorgateway"
	saw := func(at time.Time) {
		t.Helper()
		if err := teller.reportAs(api.Report{Callers: map[string]api.Caller{who: {Serial: old, Seen: at}}}); err != nil {
			t.Fatal(err)
		}
	}
	saw(time.Now().Add(time.Second))
	r.refuses(api.RotateFinish, "colorgateway colorgateway-1: its peers saw it present the certificate "+old)
	saw(time.Now().Add(-recently))
	chain := gateway.chain
	strange := r.joinAs("colorgateway", "colorgateway-1")
	unknown := *strange.chain[0]
	unknown.SerialNumber = new(big.Int).Add(unknown.SerialNumber, big.NewInt(1))
	gateway.chain = []*x509.Certificate{&unknown}
	if err := gateway.report(1); err != nil {
		t.Fatal(err)
	}
	r.refuses(api.RotateFinish, "colorgateway colorgateway-1: it reports the certificate...which this CA has not issued")
	gateway.chain = chain
	if err := gateway.report(1); err != nil {
		t.Fatal(err)
	}
	r.takes(api.RotationRequest{Step: api.RotateFinish})
}

// TestRotateCancel gives the next root up.
func TestRotateCancel(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	r.refuses(api.RotateCancel)
	r.takes(api.RotationRequest{Step: api.RotateStart})
	w := r.joinAs("colorgateway", "colorgateway-1").watch(0)
	w.told(2)
	if rotation := r.takes(api.RotationRequest{Step: api.RotateCancel}); rotation.Next != "" || len(rotation.Roots) != 1 {
		t.Errorf("%+v", rotation)
	}
	w.told(1)
}

// TestRotateRestart restarts the server between the steps: everybody is told again, and nothing is lost.
func TestRotateRestart(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	pin := r.Info().CAPin
	gateway := r.joinAs("colorgateway", "colorgateway-1")
	r.takes(api.RotationRequest{Step: api.RotateStart})
	r.stop()
	r = f.start()
	gateway.r = r.remote
	gateway.connect()
	w := gateway.watch(0)
	both := w.told(2)
	if err := gateway.reportAs(api.Report{Bundle: digestOfPEM(t, both.Bundle)}); err != nil {
		t.Fatal(err)
	}
	r.takes(api.RotationRequest{Step: api.RotateActivate})
	r.stop()
	r = f.start()
	if r.Info().CAPin == pin {
		t.Error("the activation was forgotten")
	}
	gateway.r = r.remote
	gateway.connect()
	w = gateway.watch(0)
	if told := w.told(2); told.Issuer == both.Issuer {
		t.Error("the old issuer is told")
	}
	r.refuses(api.RotateFinish, "colorgateway colorgateway-1: it has the certificate")
	if err := gateway.renew(); err != nil {
		t.Fatal(err)
	}
	if err := gateway.reportAs(api.Report{Bundle: digestOfPEM(t, both.Bundle)}); err != nil {
		t.Fatal(err)
	}
	r.takes(api.RotationRequest{Step: api.RotateFinish})
}

// TestRotateFrozen has a listener that takes connections and says nothing, as a process that was stopped.
func TestRotateFrozen(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	teller := r.joinAs("colorteller", "colorteller-1")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	r.takes(api.RotationRequest{Step: api.RotateStart})
	both := teller.watch(0).told(2)
	report := api.Report{Bundle: digestOfPEM(t, both.Bundle), Listening: []api.Listening{{Port: 9080, Address: listener.Addr().String()}}}
	if err := teller.reportAs(report); err != nil {
		t.Fatal(err)
	}
	r.refuses(api.RotateActivate, "colorteller colorteller-1 "+listener.Addr().String()+": it does not accept a certificate of the next root: no answer")
	report.Listening = nil
	if err := teller.reportAs(report); err != nil {
		t.Fatal(err)
	}
	r.refuses(api.RotateActivate, "colorteller colorteller-1: it does not listen on its port 9080")
	report.Bundle = ""
	if err := teller.reportAs(report); err != nil {
		t.Fatal(err)
	}
	r.refuses(api.RotateActivate, "colorteller colorteller-1: it does not listen", "colorteller colorteller-1: it does not say which roots it trusts")
}

// TestEnrolAgainAfterTheRoot repeats an enrolment whose first answer nobody trusts any more: it is another one,
// and costs another use.
func TestEnrolAgainAfterTheRoot(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	token, once := r.token("colorgateway", 2), r.token("colorgateway", 1)
	p, spent := r.newPeer("colorgateway-1"), r.newPeer("colorgateway-2")
	if err := errors.Join(p.enroll(token), spent.enroll(once)); err != nil {
		t.Fatal(err)
	}
	first := p.serial()
	r.takes(api.RotationRequest{Step: api.RotateStart})
	r.takes(api.RotationRequest{Step: api.RotateActivate})
	r.takes(api.RotationRequest{Step: api.RotateFinish, Force: api.CutOff})
	r.info = r.Info()
	p.chain = nil
	p.connect()
	if err := p.enroll(token); err != nil || p.serial() == first {
		t.Fatalf("the same certificate, %v", err)
	}
	if err := p.report(1); err != nil {
		t.Error(err)
	}
	spent.chain = nil
	spent.connect()
	wantCode(t, spent.enroll(once), api.CodeUsedToken)
}
