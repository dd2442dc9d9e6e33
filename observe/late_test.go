package observe

import (
	"strings"
	"testing"

	"countersign.dev/mesh"
)

// TestClosesLate is about NGINX, which completes the handshake of a stranger and then closes on him: that is a
// refusal of its own. An answer is none, from nobody.
func TestClosesLate(t *testing.T) {
	closed := &outcome{ending: refused, how: "closed", accepted: true}
	spoken := &outcome{ending: answered, how: "answered HTTP 400", accepted: true}
	for name, c := range map[string]struct {
		late bool
		out  *outcome
		want Result
	}{
		"closed by NGINX":           {true, closed, Pass},
		"answered by NGINX":         {true, spoken, Deviates},
		"closed by the built-in":    {false, closed, Deviates},
		"refused in the handshake":  {true, &outcome{ending: refused, how: "alert", alert: true}, Pass},
		"neither closed nor spoken": {true, &outcome{ending: silent, how: "no answer and no close", accepted: true}, Deviates},
	} {
		target := &Target{Inbound: mesh.Inbound{Protocol: mesh.HTTP}, ClosesLate: c.late}
		check := judgeClient(target, CheckStranger, false, c.out)
		if check.Result != c.want || c.out == closed && !strings.HasPrefix(check.Observed, "let in by TLS, then") {
			t.Errorf("%s: %+v, want %s", name, check, c.want)
		}
	}
}
