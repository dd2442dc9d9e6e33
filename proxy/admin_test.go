package proxy

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/admin"
	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

func (n *node) ask(method, path string) (int, string) {
	w := httptest.NewRecorder()
	n.Admin().ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w.Code, w.Body.String()
}

func TestReadiness(t *testing.T) {
	app, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	n := newNode(t, newAuthority(t), id.Service, "back", map[int]string{9080: app.Addr().String()})
	expect := func(path string, status int, text string) {
		t.Helper()
		if got, body := n.ask("GET", path); got != status || !strings.Contains(body, text) {
			t.Errorf("%s: %d %q, want %d %q", path, got, body, status, text)
		}
	}
	expect("/healthz", 503, "NO PLAN")
	expect("/ready", 503, "NO PLAN")
	expect("/plan", 404, "no plan")
	plan := n.plan()
	plan.Inbound = []mesh.Inbound{inboundPort(9080, mesh.HTTP, mesh.FromAny)}
	n.apply(plan)
	expect("/healthz", 200, "LIVE\n")
	expect("/ready", 200, "LIVE\n")
	var got mesh.Plan
	if _, body := n.ask("GET", "/plan"); json.Unmarshal([]byte(body), &got) != nil || cmp.Diff(plan.Inbound, got.Inbound) != "" {
		t.Errorf("/plan: %s", body)
	}
	app.Close()
	expect("/healthz", 200, "LIVE\n")
	expect("/ready", 503, "APPLICATION DOES NOT ACCEPT")
	identity := n.source.identity.Swap(nil)
	expect("/healthz", 503, "NO CERTIFICATE")
	n.source.identity.Store(n.ca.issue(id.Service, "back", -time.Minute))
	expect("/healthz", 503, "CERTIFICATE EXPIRED")
	n.source.identity.Store(identity)
	for _, name := range []string{"ssl.handshake", "ssl.connection_error", "downstream_cx_total"} {
		if v := n.stat("listener.0.0.0.0_9080." + name); v != 0 {
			t.Errorf("%s is %d: readiness made a connection", name, v)
		}
	}
}

func TestDrainListeners(t *testing.T) {
	s := newSingle(t, mesh.HTTP, func(*mesh.Inbound) {})
	client := tlsClient(t, mutual(t, s.ca.issue(id.Service, "front", time.Hour), s.node, "http/1.1"), false)
	url := "https://" + s.inboundAddress(9080)
	if got := do(t, client, newRequest(t, "GET", url, nil)); got.status != 200 || got.close {
		t.Errorf("%+v", got)
	}
	if status, body := s.ask("POST", "/drain_listeners"); status != 200 || body != "OK\n" {
		t.Errorf("%d %q", status, body)
	}
	if got := do(t, client, newRequest(t, "GET", url, nil)); got.status != 200 || !got.close {
		t.Errorf("on a connection that was open: %+v", got)
	}
	if response, err := client.Do(newRequest(t, "GET", url, nil)); err == nil {
		response.Body.Close()
		t.Error("a new connection is accepted")
	}
	if r := s.Report(); len(r.Listening) != 0 {
		t.Errorf("report %+v", r)
	}
	if status, body := s.ask("GET", "/ready"); status != 503 || body != "DRAINING\n" {
		t.Errorf("/ready: %d %q", status, body)
	}
	plan := s.plan()
	plan.Revision, plan.Inbound = 5, []mesh.Inbound{s.in}
	s.apply(plan)
	if r := s.Report(); len(r.Listening) != 0 || r.Revision != 5 {
		t.Errorf("after another plan: %+v", r)
	}
}

func TestAdminMethods(t *testing.T) {
	s := newSingle(t, mesh.HTTP, func(*mesh.Inbound) {})
	for path, method := range map[string]string{
		"/stats": "POST", "/metrics": "POST", "/ready": "DELETE", "/healthz": "POST", "/certs": "PUT", "/plan": "POST", "/drain_listeners": "GET",
	} {
		if status, _ := s.ask(method, path); status != http.StatusMethodNotAllowed {
			t.Errorf("%s %s: status %d", method, path, status)
		}
	}
	if status, _ := s.ask("GET", "/quitquitquit"); status != 404 {
		t.Errorf("an unknown path: %d", status)
	}
	if status, _ := s.ask("GET", "/stats?filter=("); status != 400 {
		t.Errorf("a bad filter: %d", status)
	}
	if status, body := s.ask("GET", "/metrics"); status != 200 || !strings.Contains(body, `countersign_listener_ssl_handshake_total{listener="0.0.0.0_9080"} 0`) {
		t.Errorf("/metrics: %d %s", status, body)
	}
}

func TestCerts(t *testing.T) {
	s := newSingle(t, mesh.HTTP, func(*mesh.Inbound) {})
	_, body := s.ask("GET", "/certs")
	var got admin.Certs
	if err := json.Unmarshal([]byte(body), &got); err != nil || len(got.Certificates) != 1 {
		t.Fatalf("%v: %s", err, body)
	}
	leaf := s.source.identity.Load().Certificate.Leaf
	want := []admin.CertDetails{{
		Path: "<inline>", SerialNumber: mtls.Serial(leaf), DaysUntilExpiration: "0", ValidFrom: leaf.NotBefore.UTC(), ExpirationTime: leaf.NotAfter.UTC(),
		SubjectAltNames: []admin.SubjectAlt{{URI: "spiffe://shop.internal/service/back"}, {DNS: "back"}, {DNS: "back.shop.internal"}},
	}}
	if diff := cmp.Diff(want, got.Certificates[0].CertChain); diff != "" {
		t.Errorf("cert_chain (-want +got)\n%s", diff)
	}
	if ca := got.Certificates[0].CACert; len(ca) != 1 || ca[0].SerialNumber != "01" {
		t.Errorf("ca_cert %+v", ca)
	}
	for _, name := range []string{`"ca_cert"`, `"cert_chain"`, `"serial_number"`, `"subject_alt_names"`, `"days_until_expiration"`, `"valid_from"`, `"expiration_time"`, `"uri"`} {
		if !strings.Contains(body, name) {
			t.Errorf("%s is missing", name)
		}
	}
	if strings.Contains(body, "PRIVATE") {
		t.Error("a private key is shown")
	}
}

func TestNewRefuses(t *testing.T) {
	n := newNode(t, newAuthority(t), id.Service, "back", nil)
	good := n.cfg
	for name, change := range map[string]func(*Config){
		"no source":     func(c *Config) { c.Source = nil },
		"no log":        func(c *Config) { c.Log = nil },
		"a wildcard":    func(c *Config) { c.Address = netip.MustParseAddr("0.0.0.0") },
		"all of IPv6":   func(c *Config) { c.Address = netip.MustParseAddr("::") },
		"no address":    func(c *Config) { c.Address = netip.Addr{} },
		"mapped to any": func(c *Config) { c.Address = netip.MustParseAddr("::ffff:0.0.0.0") },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if err := n.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := n.Apply(n.plan()); err == nil {
		t.Error("a plan is applied after Shutdown")
	}
}
