package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"countersign.dev/api"
	"countersign.dev/id"
	"countersign.dev/issue"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// fake is a control plane that speaks package api over TLS and HTTP/2, and does as it is told.
type fake struct {
	t    testing.TB
	http *http.Server
	done chan struct{}

	mu          sync.Mutex
	ca          *authority // signs leaves and the server's own
	shows       *authority // signs the server's own; nil is ca
	roots       []*x509.Certificate
	self        id.ID
	tokens      map[string]id.ID // who a token enrols; the zero ID: it is used up
	issued      map[string]*api.Credentials
	who         id.ID // the workload of the Plan
	plan        *mesh.Plan
	crl         string   // the revocation lists, PEM
	names       []string // overrides the DNS names in leaves
	mangle      func(*api.Credentials)
	compromised string           // the key that gets nothing; "any" is the first that comes
	instead     http.HandlerFunc // answers every request
	strict      bool             // ends a handshake with an expired certificate by an alert
	hangUp      bool             // ends a connection with an expired certificate without a word
	mute        bool             // the watch is silent
	junk        []byte           // sent on the watch instead of an event
	issuer      string           // told with every Plan
	ahead       time.Duration    // this server's clock minus everybody's
	ttl         time.Duration
	fail        map[string]*api.Error
	revoked     string // the serial of a certificate that is refused as revoked
	watchers    map[chan struct{}]bool
	watches     []api.WatchRequest
	enrolls     []api.EnrollRequest
	renewals    []renewal
	reports     []api.Report
}

// renewal is what the fake saw of one.
type renewal struct {
	at  time.Time
	key string
}

const heartbeat = 5 * time.Second

func newFake(t testing.TB) *fake {
	f := &fake{
		t: t, ca: newAuthority(t, "first"), self: mustID(t, id.Server, "countersign"), ttl: time.Hour,
		tokens: make(map[string]id.ID), issued: make(map[string]*api.Credentials),
		fail: make(map[string]*api.Error), watchers: make(map[chan struct{}]bool), done: make(chan struct{}),
	}
	f.roots = []*x509.Certificate{f.ca.root}
	f.who = mustID(t, id.Service, "colorteller")
	f.tokens["good-token"] = f.who
	f.plan = testPlan(f.who, 1, time.Hour, 40*time.Minute)
	return f
}

func testPlan(who id.ID, revision uint64, ttl, renewAfter time.Duration) *mesh.Plan {
	return &mesh.Plan{
		Version: mesh.PlanVersion, Mesh: "test", TrustDomain: testDomain, Revision: revision,
		Workload: mesh.Workload{Name: who.Name(), Kind: who.Kind(), Identity: who},
		Certificate: mesh.CertificatePlan{
			Identity: who, DNSNames: []string{who.Name(), who.ServerName()},
			TTL: mesh.Duration(ttl), RenewAfter: mesh.Duration(renewAfter), Key: mesh.ECDSAP256,
		},
	}
}

// serve answers on a listener until stop.
func (f *fake) serve(listener net.Listener) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+api.PathEnroll, f.enroll)
	mux.HandleFunc("POST "+api.PathRenew, f.renew)
	mux.HandleFunc("POST "+api.PathWatch, f.watch)
	mux.HandleFunc("POST "+api.PathReport, f.report)
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	f.http = &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			f.mu.Lock()
			instead := f.instead
			f.mu.Unlock()
			if instead != nil {
				instead(w, r)
				return
			}
			mux.ServeHTTP(w, r)
		}), Protocols: protocols, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
		TLSConfig: &tls.Config{
			ClientAuth: tls.RequestClientCert, Time: f.now, VerifyConnection: f.handshake,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return f.certificate(), nil },
		},
	}
	go func() { _ = f.http.ServeTLS(listener, "", "") }()
}

// handshake refuses expired certificates while strict is set.
func (f *fake) handshake(cs tls.ConnectionState) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.strict && len(cs.PeerCertificates) > 0 && !f.nowLocked().Before(cs.PeerCertificates[0].NotAfter) {
		return mtls.ErrExpired
	}
	return nil
}

func (f *fake) stop() {
	close(f.done)
	f.http.Close()
}

func (f *fake) now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nowLocked()
}

func (f *fake) nowLocked() time.Time { return time.Now().Add(f.ahead) }

// set changes the fake under its lock.
func (f *fake) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// push changes the fake and wakes every watch.
func (f *fake) push(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
	for c := range f.watchers {
		wake(c)
	}
}

func (f *fake) certificate() *tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.t.Error(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	shows := f.ca
	if f.shows != nil {
		shows = f.shows
	}
	leaf := shows.sign(f.t, f.self, nil, key.Public(), f.nowLocked(), time.Hour)
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw, shows.issuer.Raw, shows.root.Raw}, PrivateKey: key}
}

func (f *fake) answer(w http.ResponseWriter, v any) {
	w.Header().Set("Date", f.now().UTC().Format(http.TimeFormat))
	if err := json.NewEncoder(w).Encode(v); err != nil {
		f.t.Error(err)
	}
}

var statusOf = map[string]int{
	api.CodeExpiredCert: 401, api.CodeUnauthorized: 401, api.CodeNotRecorded: 503, api.CodeUnavailable: 503,
	api.CodeInternal: 500, api.CodeBadRequest: 400,
}

func (f *fake) refuse(w http.ResponseWriter, code string) {
	status, ok := statusOf[code]
	if !ok {
		status = http.StatusForbidden
	}
	w.Header().Set("Date", f.now().UTC().Format(http.TimeFormat))
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(&api.Error{Code: code, Message: "the fake says " + code})
}

// begin reads a request, and refuses it when the test wants that.
func (f *fake) begin(w http.ResponseWriter, r *http.Request, v any) bool {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		f.t.Errorf("a message that does not fit package api: %v", err)
		f.refuse(w, api.CodeBadRequest)
		return false
	}
	f.mu.Lock()
	e := f.fail[r.URL.Path]
	f.mu.Unlock()
	if e != nil {
		f.refuse(w, e.Code)
		return false
	}
	return true
}

// member is who a request's certificate proves; without one it refuses.
func (f *fake) member(w http.ResponseWriter, r *http.Request) (id.ID, bool) {
	if len(r.TLS.PeerCertificates) == 0 {
		f.refuse(w, api.CodeUnauthorized)
		return id.ID{}, false
	}
	leaf := r.TLS.PeerCertificates[0]
	if !f.now().Before(leaf.NotAfter) {
		f.mu.Lock()
		hangUp := f.hangUp
		f.mu.Unlock()
		if hangUp {
			panic(http.ErrAbortHandler)
		}
		f.refuse(w, api.CodeExpiredCert)
		return id.ID{}, false
	}
	f.mu.Lock()
	bundle, err := mtls.NewBundle(testDomain, f.roots)
	revoked := f.revoked == mtls.Serial(leaf)
	f.mu.Unlock()
	if revoked {
		f.refuse(w, api.CodeRevoked)
		return id.ID{}, false
	}
	if err != nil {
		f.t.Error(err)
	}
	who, err := bundle.Verify(r.TLS.PeerCertificates, x509.ExtKeyUsageClientAuth, f.now())
	if err != nil {
		f.refuse(w, api.CodeUnauthorized)
		return id.ID{}, false
	}
	return who, true
}

func (f *fake) credentials(who id.ID, csrPEM string) (*api.Credentials, string) {
	csr, err := issue.ParseCSR([]byte(csrPEM))
	if err != nil {
		f.t.Errorf("the agent's CSR: %v", err)
		return nil, ""
	}
	spki := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	f.mu.Lock()
	defer f.mu.Unlock()
	names := f.names
	if names == nil {
		names = f.plan.Certificate.DNSNames
	}
	now := f.nowLocked()
	leaf := f.ca.sign(f.t, who, names, csr.PublicKey, now, f.ttl)
	credentials := &api.Credentials{
		Identity: who, Chain: pemOf(leaf, f.ca.issuer), Bundle: pemOf(f.roots...),
		RenewAfter: f.plan.Certificate.RenewAfter, ServerTime: now, CRL: f.crl,
	}
	if f.mangle != nil {
		f.mangle(credentials)
	}
	return credentials, fmt.Sprintf("%x", spki)
}

func (f *fake) enroll(w http.ResponseWriter, r *http.Request) {
	var request api.EnrollRequest
	if !f.begin(w, r, &request) {
		return
	}
	f.mu.Lock()
	f.enrolls = append(f.enrolls, request)
	who, known := f.tokens[request.Token]
	f.mu.Unlock()
	if !known {
		f.refuse(w, api.CodeUnknownToken)
		return
	}
	fresh, key := f.credentials(who0(who, f.who), request.CSR)
	f.mu.Lock()
	compromised := f.compromised == "any" || f.compromised == key
	if f.compromised == "any" {
		f.compromised = key
	}
	f.mu.Unlock()
	if compromised {
		f.refuse(w, api.CodeRevoked)
		return
	}
	f.mu.Lock()
	before := f.issued[request.Token+key]
	if before == nil && !who.IsZero() {
		f.issued[request.Token+key], before = fresh, fresh
		f.tokens[request.Token] = id.ID{}
	}
	f.mu.Unlock()
	if before == nil {
		f.refuse(w, api.CodeUsedToken)
		return
	}
	f.answer(w, before)
}

func who0(who, or id.ID) id.ID {
	if who.IsZero() {
		return or
	}
	return who
}

func (f *fake) renew(w http.ResponseWriter, r *http.Request) {
	var request api.RenewRequest
	if !f.begin(w, r, &request) {
		return
	}
	who, ok := f.member(w, r)
	if !ok {
		return
	}
	fresh, key := f.credentials(who, request.CSR)
	f.mu.Lock()
	f.renewals = append(f.renewals, renewal{time.Now(), key})
	f.mu.Unlock()
	f.answer(w, fresh)
}

func (f *fake) report(w http.ResponseWriter, r *http.Request) {
	var report api.Report
	if !f.begin(w, r, &report) {
		return
	}
	if _, ok := f.member(w, r); !ok {
		return
	}
	f.mu.Lock()
	f.reports = append(f.reports, report)
	f.mu.Unlock()
	f.answer(w, api.ReportResponse{ServerTime: f.now()})
}

func (f *fake) watch(w http.ResponseWriter, r *http.Request) {
	var request api.WatchRequest
	if !f.begin(w, r, &request) {
		return
	}
	if _, ok := f.member(w, r); !ok {
		return
	}
	woken := make(chan struct{}, 1)
	f.mu.Lock()
	f.watches = append(f.watches, request)
	f.watchers[woken] = true
	f.mu.Unlock()
	defer f.set(func() { delete(f.watchers, woken) })

	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	have, haveRoots, haveCRL := request.Revision, "", ""
	if have != 0 {
		haveRoots = f.rootsPEM()
	}
	for {
		if !f.event(w, &have, &haveRoots, &haveCRL) {
			return
		}
		select {
		case <-beat.C:
		case <-woken:
		case <-r.Context().Done():
			return
		case <-f.done:
			return
		}
	}
}

func (f *fake) rootsPEM() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return pemOf(f.roots...)
}

// event sends what differs from what the agent has.
func (f *fake) event(w http.ResponseWriter, have *uint64, haveRoots, haveCRL *string) bool {
	f.mu.Lock()
	e := api.Event{ServerTime: f.nowLocked()}
	if roots := pemOf(f.roots...); *have != f.plan.Revision || roots != *haveRoots {
		e.Plan, e.Bundle, e.Issuer = f.plan, roots, f.issuer
		*have, *haveRoots = f.plan.Revision, roots
	}
	if f.crl != *haveCRL {
		e.CRL, *haveCRL = f.crl, f.crl
	}
	mute, junk := f.mute, f.junk
	f.mu.Unlock()
	if mute {
		return true
	}
	line, err := json.Marshal(e)
	if err != nil {
		f.t.Error(err)
	}
	if junk != nil {
		line = junk
	}
	if _, err := w.Write(append(line, '\n')); err != nil {
		return false
	}
	w.(http.Flusher).Flush()
	return true
}

// lastReport is the newest report, the zero one before there is any.
func (f *fake) lastReport() api.Report {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.reports) == 0 {
		return api.Report{}
	}
	return f.reports[len(f.reports)-1]
}

// enrolled, watched and reported count requests.
func (f *fake) enrolled() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.enrolls)
}

func (f *fake) watched() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.watches)
}

func (f *fake) reported() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.reports)
}

// lastWatch is the newest request for a watch.
func (f *fake) lastWatch() api.WatchRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.watches[len(f.watches)-1]
}

// renewed are the renewals until now.
func (f *fake) renewed() []renewal {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.renewals)
}
