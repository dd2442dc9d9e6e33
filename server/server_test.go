package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"countersign.dev/api"
	"countersign.dev/ca"
	"countersign.dev/journal"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// colorapp is a gateway in front of a service.
const colorapp = `mesh: colorapp
certificates: {ttl: 1h}
services:
  colorteller:
    ports: [{port: 9080, protocol: http}]
    names: [colour.example.com]
gateways:
  colorgateway:
    listen: [{port: 8080, protocol: http}]
    routes: [{match: {prefix: /}, to: [{service: colorteller}]}]
`

// patience is how long a test waits for what has to happen.
const patience = 20 * time.Second

// fixture is a state directory with a CA, and the servers that a test runs on it.
type fixture struct {
	t      *testing.T
	dir    string
	cfg    Config
	offset atomic.Int64 // of the server's clock
	log    *lockedBuffer
}

// newFixture makes a state in a directory whose path is short enough for a socket.
func newFixture(t *testing.T, spec string) *fixture {
	t.Helper()
	dir, err := os.MkdirTemp("", "cs")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fixture{t: t, dir: dir, log: &lockedBuffer{}}
	f.cfg = Config{
		State: filepath.Join(dir, "state"), Mesh: filepath.Join(dir, "mesh.yaml"), Listen: "127.0.0.1:0", Seal: ca.Unsealed(),
		Log:    slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Now:    func() time.Time { return time.Now().Add(time.Duration(f.offset.Load())) },
		timing: defaultTiming(),
	}
	f.cfg.timing.heartbeat = 50 * time.Millisecond
	f.cfg.timing.sweep = 20 * time.Millisecond
	f.cfg.timing.socketStop = 500 * time.Millisecond
	if _, err := ca.Init(f.cfg.State, ca.InitConfig{Seal: ca.Unsealed()}); err != nil {
		t.Fatal(err)
	}
	f.write(spec)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the servers' log:\n%s", f.log)
		}
	})
	return f
}

// write changes the file of --mesh.
func (f *fixture) write(spec string) {
	f.t.Helper()
	if err := os.WriteFile(f.cfg.Mesh, []byte(spec), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// remote is how a server looks from outside.
type remote struct {
	f     *fixture
	info  Info
	admin *api.Admin
}

// running is a server that runs in this process.
type running struct {
	*Server
	*remote
	stop func()
}

// start runs a server until stop or the end of the test.
func (f *fixture) start() *running {
	f.t.Helper()
	s, err := New(f.t.Context(), f.cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("the server ended with %v", err)
		}
	})
	f.t.Cleanup(stop)
	return &running{Server: s, remote: f.at(s.Info()), stop: stop}
}

// at is a server that describes itself so.
func (f *fixture) at(info Info) *remote {
	return &remote{f: f, info: info, admin: api.NewAdmin(info.Socket)}
}

// token makes a join token.
func (r *remote) token(workload string, uses int) string {
	r.f.t.Helper()
	created, err := r.admin.CreateToken(r.f.t.Context(), api.TokenRequest{Workload: workload, Uses: uses})
	if err != nil {
		r.f.t.Fatal(err)
	}
	return created.Token
}

// journalTypes are the types of the journal's entries after the first.
func (f *fixture) journalTypes() []journal.Type {
	f.t.Helper()
	var types []journal.Type
	for record, err := range journal.Records(ca.JournalDir(f.cfg.State)) {
		if err != nil {
			f.t.Fatal(err)
		}
		types = append(types, record.Type)
	}
	return types
}

// count says how many of the journal's entries are of a type.
func (f *fixture) count(want journal.Type) int {
	n := 0
	for _, t := range f.journalTypes() {
		if t == want {
			n++
		}
	}
	return n
}

// peer is a small agent: a key, a certificate when it has one, and an HTTP/2 client.
type peer struct {
	r        *remote
	instance string
	key      crypto.Signer
	chain    []*x509.Certificate
	client   *http.Client
}

// newPeer makes a peer that trusts the server by its pin.
func (r *remote) newPeer(instance string) *peer {
	r.f.t.Helper()
	key, err := mtls.GenerateKey(mesh.ECDSAP256)
	if err != nil {
		r.f.t.Fatal(err)
	}
	p := &peer{r: r, instance: instance, key: key}
	p.connect()
	return p
}

// connect makes a new client, with the certificate of now.
func (p *peer) connect() {
	if p.client != nil {
		p.client.CloseIdleConnections()
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	pin := p.r.info.CAPin
	transport := &http.Transport{Protocols: protocols, TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if got := mtls.Pin(cs.PeerCertificates[len(cs.PeerCertificates)-1]); got != pin {
				return fmt.Errorf("pin %s, want %s", got, pin)
			}
			return nil
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			certificate := &tls.Certificate{PrivateKey: p.key}
			for _, cert := range p.chain {
				certificate.Certificate = append(certificate.Certificate, cert.Raw)
			}
			return certificate, nil
		},
	}}
	p.client = &http.Client{Transport: transport}
	p.r.f.t.Cleanup(p.client.CloseIdleConnections)
}

// csr is a certificate request without names.
func (p *peer) csr() string {
	p.r.f.t.Helper()
	text, err := mtls.NewCSR(p.key)
	if err != nil {
		p.r.f.t.Fatal(err)
	}
	return string(text)
}

// post sends a message and reads the answer.
func (p *peer) post(path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return p.send(path, "application/json", bytes.NewReader(body), out)
}

func (p *peer) send(path, contentType string, body io.Reader, out any) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, p.r.info.URL+path, body)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", contentType)
	response, err := p.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		e := api.DecodeError(response)
		return fmt.Errorf("status %d: %w", response.StatusCode, e)
	}
	return json.NewDecoder(response.Body).Decode(out)
}

// enroll gets the first certificate.
func (p *peer) enroll(token string) error {
	var credentials api.Credentials
	err := p.post(api.PathEnroll, api.EnrollRequest{Token: token, Instance: p.instance, CSR: p.csr()}, &credentials)
	if err != nil {
		return err
	}
	return p.take(credentials)
}

// renew gets the next certificate.
func (p *peer) renew() error {
	var credentials api.Credentials
	if err := p.post(api.PathRenew, api.RenewRequest{Instance: p.instance, CSR: p.csr()}, &credentials); err != nil {
		return err
	}
	return p.take(credentials)
}

func (p *peer) take(credentials api.Credentials) error {
	chain, err := mtls.ParseCertificates([]byte(credentials.Chain))
	if err != nil {
		return err
	}
	p.chain = chain
	p.connect()
	return nil
}

func (p *peer) serial() string { return mtls.Serial(p.chain[0]) }

// joinAs makes a peer with a certificate.
func (r *remote) joinAs(workload, instance string) *peer {
	r.f.t.Helper()
	p := r.newPeer(instance)
	if err := p.enroll(r.token(workload, 1)); err != nil {
		r.f.t.Fatal(err)
	}
	return p
}

// report says that the instance listens at the addresses, port by port.
func (p *peer) report(revision uint64, listening ...api.Listening) error {
	return p.reportAs(api.Report{Revision: revision, Listening: listening})
}

func (p *peer) reportAs(report api.Report) error {
	report.Instance, report.Serial, report.NotAfter = p.instance, p.serial(), p.chain[0].NotAfter
	report.LastRenewal = time.Now()
	var answer api.ReportResponse
	err := p.post(api.PathReport, report, &answer)
	if err == nil && answer.ServerTime.IsZero() {
		err = errors.New("no server time")
	}
	return err
}

// watching is an open watch.
type watching struct {
	p      *peer
	cancel context.CancelFunc
	body   io.ReadCloser
	events chan api.Event // closed at the end
}

// watch opens the stream of Plans.
func (p *peer) watch(revision uint64) *watching {
	p.r.f.t.Helper()
	w, err := p.tryWatch(revision)
	if err != nil {
		p.r.f.t.Fatal(err)
	}
	return w
}

func (p *peer) tryWatch(revision uint64) (*watching, error) {
	body, err := json.Marshal(api.WatchRequest{Instance: p.instance, Revision: revision})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, p.r.info.URL+api.PathWatch, bytes.NewReader(body))
	if err != nil {
		cancel()
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := p.client.Do(request) //nolint:bodyclose // watching.close closes it
	if err != nil {
		cancel()
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		defer cancel()
		defer response.Body.Close()
		return nil, fmt.Errorf("status %d: %w", response.StatusCode, api.DecodeError(response))
	}
	w := &watching{p: p, cancel: cancel, body: response.Body, events: make(chan api.Event)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(w.events)
		scanner := bufio.NewScanner(response.Body)
		scanner.Buffer(nil, 1<<20)
		for scanner.Scan() {
			var event api.Event
			if json.Unmarshal(scanner.Bytes(), &event) != nil {
				return
			}
			select {
			case w.events <- event:
			case <-ctx.Done():
				return
			}
		}
	}()
	p.r.f.t.Cleanup(func() { w.close(); <-done })
	return w, nil
}

func (w *watching) close() {
	w.cancel()
	w.body.Close()
}

// next is the next event.
func (w *watching) next() api.Event {
	w.p.r.f.t.Helper()
	select {
	case event, ok := <-w.events:
		if !ok {
			w.p.r.f.t.Fatal("the stream has ended")
		}
		return event
	case <-time.After(patience):
		w.p.r.f.t.Fatal("no event comes")
	}
	panic("not reached")
}

// plan is the next Plan for which a condition holds.
func (w *watching) plan(what string, ok func(*mesh.Plan) bool) *mesh.Plan {
	w.p.r.f.t.Helper()
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		if event := w.next(); event.Plan != nil && ok(event.Plan) {
			if event.Bundle == "" {
				w.p.r.f.t.Error("a Plan came without the bundle")
			}
			return event.Plan
		}
	}
	w.p.r.f.t.Fatalf("no Plan comes %s", what)
	panic("not reached")
}

// ended waits for the end of the stream.
func (w *watching) ended() {
	w.p.r.f.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case _, ok := <-w.events:
			if !ok {
				return
			}
		case <-deadline:
			w.p.r.f.t.Fatal("the stream does not end")
		}
	}
}

// anyPlan accepts every Plan.
func anyPlan(*mesh.Plan) bool { return true }

// eventually polls until a condition holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s never came true", what)
		}
		time.Sleep(5 * time.Millisecond) // between two looks; nothing depends on its length
	}
}

// wantCode checks which refusal an error is, and gives its message.
func wantCode(t *testing.T, err error, code string) string {
	t.Helper()
	refusal, ok := errors.AsType[*api.Error](err)
	if !ok || refusal.Code != code {
		t.Errorf("%v, want the code %s", err, code)
		return ""
	}
	return refusal.Message
}

// lockedBuffer is a log that goroutines share.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// TestLifeOfAMesh goes once through everything: enrolment, watch, report, endpoints, renewal, apply,
// restart.
func TestLifeOfAMesh(t *testing.T) {
	f := newFixture(t, colorapp)
	r := f.start()
	teller, gateway := r.joinAs("colorteller", "colorteller-1"), r.joinAs("colorgateway", "colorgateway-1")
	if got := teller.chain[0].URIs[0].String(); got != "spiffe://colorapp.internal/service/colorteller" {
		t.Errorf("identity %s", got)
	}
	w := gateway.watch(0)
	first := w.plan("at once", anyPlan)
	if len(first.Upstreams) != 1 || len(first.Upstreams[0].Endpoints) != 0 {
		t.Errorf("upstreams %+v", first.Upstreams)
	}
	teller.watch(0)
	if err := teller.report(1, api.Listening{Port: 9080, Address: "127.0.0.2:9080"}); err != nil {
		t.Fatal(err)
	}
	second := w.plan("with the endpoint", func(p *mesh.Plan) bool { return len(p.Upstreams[0].Endpoints) == 1 })
	if e := second.Upstreams[0].Endpoints[0]; e.Instance != "colorteller-1" || e.Address.String() != "127.0.0.2:9080" {
		t.Errorf("endpoint %+v", e)
	}
	if second.Revision <= first.Revision {
		t.Errorf("revision %d after %d", second.Revision, first.Revision)
	}
	before := teller.serial()
	if err := teller.renew(); err != nil {
		t.Fatal(err)
	}
	if teller.serial() == before {
		t.Error("the renewal gave the same certificate")
	}
	r.stop()

	r = f.start()
	gateway.r, teller.r = r.remote, r.remote
	gateway.connect()
	w = gateway.watch(second.Revision)
	for range 3 { // the instance that was there before is forgiven, so the Plan is the same
		if event := w.next(); event.Plan != nil {
			t.Errorf("after the restart: revision %d with endpoints %v", event.Plan.Revision, event.Plan.Upstreams[0].Endpoints)
		}
	}
	if text := f.log.String(); strings.Contains(text, tokenPrefix) {
		t.Error("the log holds a token")
	}
	vkey := r.Info().JournalKey
	r.stop()
	if _, err := journal.Verify(ca.JournalDir(f.cfg.State), vkey); err != nil {
		t.Error(err)
	}
}
