package stat

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func ask(t *testing.T, h http.Handler, query string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/stats"+query, nil))
	return w.Code, w.Body.String()
}

func TestNamesAreThereFromTheStart(t *testing.T) {
	s := NewSet()
	s.Listener("0.0.0.0_9080")
	s.HTTP("0.0.0.0_9080")
	s.Cluster("colorteller_9080")
	want := `cluster.colorteller_9080.ssl.handshake: 0
cluster.colorteller_9080.upstream_cx_active: 0
cluster.colorteller_9080.upstream_cx_connect_fail: 0
cluster.colorteller_9080.upstream_cx_total: 0
cluster.colorteller_9080.upstream_rq_5xx: 0
cluster.colorteller_9080.upstream_rq_total: 0
http.0.0.0.0_9080.downstream_rq_2xx: 0
http.0.0.0.0_9080.downstream_rq_3xx: 0
http.0.0.0.0_9080.downstream_rq_4xx: 0
http.0.0.0.0_9080.downstream_rq_5xx: 0
http.0.0.0.0_9080.downstream_rq_total: 0
listener.0.0.0.0_9080.downstream_cx_active: 0
listener.0.0.0.0_9080.downstream_cx_total: 0
listener.0.0.0.0_9080.plaintext_cx_total: 0
listener.0.0.0.0_9080.rbac.denied: 0
listener.0.0.0.0_9080.ssl.connection_error: 0
listener.0.0.0.0_9080.ssl.fail_verify_error: 0
listener.0.0.0.0_9080.ssl.fail_verify_no_cert: 0
listener.0.0.0.0_9080.ssl.fail_verify_san: 0
listener.0.0.0.0_9080.ssl.handshake: 0
listener.0.0.0.0_9080.ssl.no_certificate: 0
listener.0.0.0.0_9080.ssl.session_reused: 0
`
	status, got := ask(t, s.Handler(nil), "")
	if diff := cmp.Diff(want, got); diff != "" || status != 200 {
		t.Errorf("status %d (-want +got)\n%s", status, diff)
	}
}

func TestShook(t *testing.T) {
	s := NewSet()
	l := s.Listener("a")
	l.Shook(tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256, PeerCertificates: []*x509.Certificate{{}}})
	l.Shook(tls.ConnectionState{Version: tls.VersionTLS12, CipherSuite: tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, DidResume: true})
	_, got := ask(t, s.Handler(nil), "?filter=%5Elistener.a.ssl.(handshake|no_|session|versions|ciphers)")
	want := `listener.a.ssl.ciphers.ECDHE-ECDSA-AES128-GCM-SHA256: 1
listener.a.ssl.ciphers.TLS_AES_128_GCM_SHA256: 1
listener.a.ssl.handshake: 2
listener.a.ssl.no_certificate: 1
listener.a.ssl.session_reused: 1
listener.a.ssl.versions.TLSv1.2: 1
listener.a.ssl.versions.TLSv1.3: 1
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestAnswered(t *testing.T) {
	s := NewSet()
	h := s.HTTP("a")
	for _, status := range []int{101, 200, 204, 304, 404, 503, 0, 999} {
		h.Answered(status)
	}
	_, got := ask(t, s.Handler(nil), "?filter=rq_.xx")
	want := "http.a.downstream_rq_2xx: 2\nhttp.a.downstream_rq_3xx: 1\nhttp.a.downstream_rq_4xx: 1\nhttp.a.downstream_rq_5xx: 1\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestHandler(t *testing.T) {
	s := NewSet()
	s.Cluster("a_1").RqTotal.Add(7)
	h := s.Handler(func() map[string]int64 { return map[string]int64{"server.survives_seconds": 60} })
	status, body := ask(t, h, "?format=json&filter=rq_total|survives")
	var got struct{ Stats []Stat }
	if err := json.Unmarshal([]byte(body), &got); err != nil || status != 200 {
		t.Fatalf("status %d, %v, %s", status, err, body)
	}
	want := []Stat{{"cluster.a_1.upstream_rq_total", 7}, {"server.survives_seconds", 60}}
	if diff := cmp.Diff(want, got.Stats); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if status, body := ask(t, h, "?filter=nothing&format=json"); status != 200 || strings.TrimSpace(body) != `{"stats":[]}` {
		t.Errorf("nothing found: status %d, %s", status, body)
	}
	for _, bad := range []string{"?filter=" + url.QueryEscape("(["), "?format=xml", "?filter=" + strings.Repeat("a", 2000)} {
		if status, body := ask(t, h, bad); status != 400 || body == "" {
			t.Errorf("%.30s: status %d, %q", bad, status, body)
		}
	}
}

func TestPrometheus(t *testing.T) {
	s := NewSet()
	s.Listener("0.0.0.0_1").Shook(tls.ConnectionState{Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256})
	s.HTTP("0.0.0.0_1").Answered(200)
	s.Cluster("a_1").CxActive.Add(2)
	status, body := ask(t, s.Prometheus(func() map[string]int64 { return map[string]int64{"server.survives-seconds": 60} }), "")
	if status != 200 {
		t.Fatalf("status %d: %s", status, body)
	}
	for _, want := range []string{
		"# TYPE countersign_listener_ssl_handshake_total counter\n",
		`countersign_listener_ssl_handshake_total{listener="0.0.0.0_1"} 1` + "\n",
		`countersign_listener_ssl_versions_total{listener="0.0.0.0_1",name="TLSv1.3"} 1` + "\n",
		`countersign_http_downstream_rq_2xx_total{listener="0.0.0.0_1"} 1` + "\n",
		"# TYPE countersign_cluster_upstream_cx_active gauge\n",
		`countersign_cluster_upstream_cx_active{cluster="a_1"} 2` + "\n",
		`countersign_listener_downstream_cx_total{listener="0.0.0.0_1"} 0` + "\n",
		"countersign_server_survives_seconds 60\n",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is missing in\n%s", want, body)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	s := NewSet()
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 100 {
				s.Listener("a").CxTotal.Add(1)
				s.Stats()
			}
		})
	}
	group.Wait()
	if got := s.Listener("a").CxTotal.Load(); got != 800 {
		t.Errorf("%d", got)
	}
}

// TestPrometheusGauges checks the names of what the agent adds: one prefix, and counters as counters.
func TestPrometheusGauges(t *testing.T) {
	s := NewSet()
	w := httptest.NewRecorder()
	gauges := func() map[string]int64 {
		return map[string]int64{"countersign.renewals_total": 2, "control_plane.connected_state": 1}
	}
	s.Prometheus(gauges).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, want := range []string{
		"# TYPE countersign_renewals_total counter", "countersign_renewals_total 2",
		"# TYPE countersign_control_plane_connected_state gauge", "countersign_control_plane_connected_state 1",
	} {
		if !strings.Contains(w.Body.String(), want+"\n") {
			t.Errorf("no line %q in\n%s", want, w.Body)
		}
	}
}
