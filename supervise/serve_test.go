package supervise

import (
	"net/netip"
	"strings"
	"testing"

	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

const frontDN = "CN=front,OU=service,O=shop.internal"

// TestServe has traffic in and out through two sidecars, and looks at what the administrator is told.
func TestServe(t *testing.T) {
	each(t, func(t *testing.T, s subject) {
		ca := newAuthority(t)
		back, front := s.supervise(t, ca, "back"), s.supervise(t, ca, "front")
		application(t, back.address)
		if err := back.Apply(compile(t, shop, "back")); err != nil {
			t.Fatal(err)
		}
		plan := compile(t, shop, "front")
		plan.Upstreams[0].Endpoints = []mesh.Endpoint{{Instance: "back-1", Address: netip.MustParseAddrPort(back.address + ":9080")}}
		if err := front.Apply(plan); err != nil {
			t.Fatal(err)
		}
		if status, body, _, err := get(t, client(nil), "http://"+front.address+":9180/"); err != nil || status != 200 || body != frontDN {
			t.Errorf("out and in: %d %q %v", status, body, err)
		}
		if status, _, serial, err := get(t, client(ca.identity(t, "other")), "https://"+back.address+":9080/"); err != nil || status != 403 || serial != mtls.Serial(back.source.now.Load().Certificate.Leaf) {
			t.Errorf("who is not admitted: %d %s %v", status, serial, err)
		}
		if _, _, _, err := get(t, client(nil), "https://"+back.address+":9080/"); err == nil {
			t.Error("a stranger is answered")
		}
		if status, _, _, err := get(t, client(nil), "http://"+back.address+":9081/"); err != nil || status != 200 {
			t.Errorf("plaintext on a permissive port: %d %v", status, err)
		}
		back.told(t, front)
	})
}

// told is about what report, statistics and the rest say after the traffic of TestServe.
func (c *sidecar) told(t *testing.T, front *sidecar) {
	t.Helper()
	own := mtls.Serial(c.source.now.Load().Certificate.Leaf)
	caller := mtls.Serial(front.source.now.Load().Certificate.Leaf)
	eventually(t, "the caller's serial is reported", func() bool {
		return c.Report().Callers["spiffe://shop.internal/service/front"].Serial == caller
	})
	r := c.Report()
	if r.Serial != own || r.Revision != 1 || len(r.Listening) != 3 || r.Problem != "" {
		t.Errorf("report %+v", r)
	}
	if _, known := r.Callers["spiffe://shop.internal/service/back"]; known {
		t.Error("its own handshakes are a caller")
	}
	for _, want := range []string{
		"http.0.0.0.0_9080.downstream_rq_2xx: 1", "http.0.0.0.0_9080.downstream_rq_4xx: 1", "http.0.0.0.0_9080.downstream_rq_total: 2",
		"listener.0.0.0.0_9080.rbac.denied: 1", "listener.0.0.0.0_9080.ssl.fail_verify_no_cert: 1", "listener.0.0.0.0_9080.ssl.fail_verify_error: 0",
		"listener.0.0.0.0_9081.plaintext_cx_total: 1",
	} {
		eventually(t, want, func() bool {
			_, body := c.ask("GET", "/stats")
			return strings.Contains(body, want+"\n")
		})
	}
	eventually(t, "the upstream's requests are counted", func() bool {
		_, body := front.ask("GET", "/stats")
		return strings.Contains(body, "cluster.back_9080.upstream_rq_total: 1\n") && strings.Contains(body, "http.127.0.0.1_9180.downstream_rq_2xx: 1\n")
	})
	if status, body := c.ask("GET", "/ready"); status != 200 || body != "LIVE\n" {
		t.Errorf("/ready: %d %q", status, body)
	}
	if _, body := c.ask("GET", "/certs"); !strings.Contains(body, own) || !strings.Contains(body, "/current/cert.pem") {
		t.Errorf("/certs: %s", body)
	}
	if status, body := c.ask("GET", "/plan"); status != 200 || !strings.Contains(body, `"revision": 1`) {
		t.Errorf("/plan: %d %s", status, body)
	}
	if got := c.Report().PlaintextCallers; len(got) != 1 || got["127.0.0.1"] != 1 {
		t.Errorf("plaintext callers %v", got)
	}
	if text := c.access.String(); !strings.Contains(text, caller) && !strings.Contains(strings.ToLower(text), caller) {
		t.Error("the access log does not have the caller's serial")
	}
}
