package rotate

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"countersign.dev/secret"
)

func TestMetrics(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	w.first()
	s := ReadStatus(t.Context(), w.target)
	var out strings.Builder
	if err := WriteMetrics(&out, []Status{s, {Service: "none", FailuresTotal: 3, Holder: "x"}}, s.NotAfter.Add(-36*time.Hour)); err != nil {
		t.Fatal(err)
	}
	says(t, out.String(),
		`countersign_rotate_certificate_expiry_days{service="orders"} 1.5`+"\n",
		`countersign_rotate_last_success_timestamp_seconds{service="orders"} `,
		`countersign_rotate_failures_total{service="none"} 3`+"\n",
		`countersign_rotate_in_flight{service="orders"} 0`+"\n", `countersign_rotate_in_flight{service="none"} 1`+"\n",
		"# TYPE countersign_rotate_failures_total counter\n")
	if strings.Contains(out.String(), `days{service="none"}`) {
		t.Error("days of nothing")
	}
	if s.Serial != w.currentSerial() || s.LastSuccess.IsZero() || s.Step != "" {
		t.Errorf("%+v", s)
	}
}

// shut is a store whose values this caller may not read.
type shut struct{ Store }

var errShut = errors.New("AWS denies it")

func (shut) Read(context.Context, string, string) ([]byte, string, error) { return nil, "", errShut }

// TestStatusWithoutValues asserts that who may not read values is told which version is current, and that the rest could not be read.
func TestStatusWithoutValues(t *testing.T) {
	for _, layout := range []secret.Layout{secret.LayoutJSON, secret.LayoutSeparate} {
		w := newWorld(t, layout)
		first := w.first()
		target := w.target
		target.Store = shut{target.Store}
		if s := ReadStatus(t.Context(), target); s.Version != first.Version || s.Version == "" || s.Serial != "" || !strings.Contains(s.Problem, errShut.Error()) {
			t.Errorf("%s: %+v", layout, s)
		}
	}
}

// TestMadeAt reads the time out of ids that rotations make, and of no others.
func TestMadeAt(t *testing.T) {
	now := time.Date(2027, 3, 14, 12, 0, 1, 5, time.FixedZone("", 3600))
	if got := madeAt(newVersion(now)); !got.Equal(now.Truncate(time.Second)) {
		t.Errorf("%s, want %s", got, now)
	}
	for _, id := range []string{"", "by-hand", "20271314T120000Z-0123456789abcdef"} {
		if got := madeAt(id); !got.IsZero() {
			t.Errorf("%q: %s", id, got)
		}
	}
}
