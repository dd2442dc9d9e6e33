package admin

import (
	"net/http/httptest"
	"testing"
	"time"
)

func TestWriteState(t *testing.T) {
	for name, c := range map[string]struct {
		problem string
		remarks []string
		status  int
		body    string
	}{
		"live":            {"", nil, 200, "LIVE\n"},
		"with a remark":   {"", []string{"revision 7 is refused"}, 200, "LIVE\nrevision 7 is refused\n"},
		"not ready":       {"NO PLAN", nil, 503, "NO PLAN\n"},
		"not ready, more": {"NO PLAN", []string{"it is refused"}, 503, "NO PLAN\nit is refused\n"},
	} {
		w := httptest.NewRecorder()
		WriteState(w, c.problem, c.remarks...)
		if w.Code != c.status || w.Body.String() != c.body {
			t.Errorf("%s: %d %q", name, w.Code, w.Body)
		}
	}
}

func TestWriteJSON(t *testing.T) {
	w := httptest.NewRecorder()
	WriteJSON(w, Certs{Certificates: []Certificate{Pair(Parse([][]byte{[]byte("no certificate")}), nil, InMemory, time.Now())}})
	want := `{
  "certificates": [
    {
      "ca_cert": [],
      "cert_chain": []
    }
  ]
}
`
	if got := w.Body.String(); got != want || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("%s %s", w.Header(), got)
	}
}
