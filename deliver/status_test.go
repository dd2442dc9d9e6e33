package deliver

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"countersign.dev/mesh"
	"countersign.dev/mtls"
)

// TestAdmin asks what an administrator asks, before and after something went wrong.
func TestAdmin(t *testing.T) {
	l := newLab(t)
	server := httptest.NewServer(l.w.Admin(func() map[string]int64 { return map[string]int64{"control_plane.connected_state": 1} }))
	defer server.Close()
	defer http.DefaultClient.CloseIdleConnections()
	get := func(path string, want ...string) {
		t.Helper()
		answer, err := http.Get(server.URL + path)
		ok(t, err)
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		ok(t, err)
		for _, text := range want {
			if text = strings.TrimSpace(text); !strings.Contains(answer.Status+"\n"+string(body), text) {
				t.Errorf("%s: %s\n%s\nand %q was expected", path, answer.Status, body, text)
			}
		}
	}
	get("/ready", "503", "NO CERTIFICATE")
	get("/plan", "404")
	get("/certs", `"certificates": []`)
	l.round("")
	get("/ready", "200", "LIVE")
	get("/healthz", "LIVE")
	serial := l.w.Status().Serial
	get("/certs", `"serial_number": "`+serial+`"`, `spiffe://shop.internal/service/orders`, l.proxy.dir+"/current")
	get("/stats", "countersign.delivery_problem_state: 0", "control_plane.connected_state: 1", "server.days_until_first_cert_expiring: 0", "countersign.delivery_generation: 1")
	get("/metrics", "countersign_delivery_problem_state 0")
	l.source.set(Offer{}, errors.New("the store is on fire"))
	l.round("")
	ok(t, l.w.takePlan(t.Context(), &mesh.Plan{Mesh: "shop", Revision: 3}))
	get("/ready", "200", "LIVE", "the store is on fire")
	get("/stats", "countersign.delivery_problem_state: 1", "countersign.plan_revision: 3")
	get("/plan", `"mesh": "shop"`)
}

// TestReadyIsWhatIsSeen: peers are told of what the proxy serves, and neither of what it served nor of what it should serve.
func TestReadyIsWhatIsSeen(t *testing.T) {
	l := newLab(t)
	ready := func(want string) {
		t.Helper()
		if problem := l.w.Status().readyProblem(); problem != want {
			t.Errorf("it says %q of itself, want %q", problem, want)
		}
	}
	l.round("")
	ready("")
	l.proxy.down = true
	l.round("nobody serves it")
	ready("THE PROXY DOES NOT SERVE")
	if s := l.w.Status(); s.Serial != "" || !s.NotAfter.IsZero() || !s.Since.IsZero() || len(s.Listening) != 0 {
		t.Errorf("nothing is served, and it says %+v", s)
	}
	l.proxy.start(t)
	l.round("")
	ready("")
	serial := l.w.Status().Serial
	if serial != mtls.Serial(certificates(l.proxy.file)[0]) || l.w.Status().Since.IsZero() {
		t.Errorf("it serves again, and %q is seen", serial)
	}
	l.w.tell(func(s *Status) { s.NotAfter = time.Now().Add(-time.Minute) }) // the proxy goes on with an old one
	ready("CERTIFICATE EXPIRED")
}
