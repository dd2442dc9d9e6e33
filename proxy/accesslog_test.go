package proxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"countersign.dev/proxy/internal/relay"
)

// TestAccessLogLines checks that a line is what encoding/json makes of the entry.
func TestAccessLogLines(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 89, time.FixedZone("east", 3600))
	for name, e := range map[string]accessEntry{
		"empty": {Time: at},
		"whole": {
			Time: at, Instance: "a-1", Listener: "0.0.0.0_9080", Direction: "inbound", Protocol: "HTTP/2.0", Remote: "[::1]:80",
			Caller: "spiffe://a/service/b", PeerSerial: "01", OwnSerial: "02", TLS: "TLSv1.3", Method: "GET", Path: "/a",
			Status: 200, BytesIn: 1, BytesOut: 2, Seconds: 0.000123, Upstream: "127.0.0.1:1", Flag: relay.FlagCut,
		},
		"hostile": {Time: at, Instance: "a-1", Path: "/\"\\<&>\n\u2028\x80", Method: "\x7f", Listener: "é"},
	} {
		a := &accessLog{instance: e.Instance}
		e.Time = e.Time.UTC()
		want, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if got := a.append(nil, &e); !bytes.Equal(bytes.TrimSuffix(got, []byte("\n")), want) {
			t.Errorf("%s:\ngot  %s\nwant %s", name, got, want)
		}
	}
}

// stuckWriter takes nothing before it is released.
type stuckWriter struct {
	release chan struct{}
	lines   int
}

func (w *stuckWriter) Write(p []byte) (int, error) {
	<-w.release
	w.lines += bytes.Count(p, []byte("\n"))
	return 0, errors.New("no space left on device")
}

// TestAccessLogDoesNotWait checks that a writer that hangs or fails stops nobody, and that what was left
// out is counted.
func TestAccessLogDoesNotWait(t *testing.T) {
	w := &stuckWriter{release: make(chan struct{})}
	a := newAccessLog(w, "a-1")
	entry := &accessEntry{Path: string(bytes.Repeat([]byte("x"), 1<<20))}
	const lines = 64
	for range lines {
		a.write(entry)
	}
	dropped := a.dropped.Load()
	if dropped == 0 || dropped == lines {
		t.Errorf("%d lines were left out of %d", dropped, lines)
	}
	close(w.release)
	a.close()
	if int64(w.lines)+dropped != lines {
		t.Errorf("%d lines written and %d left out of %d", w.lines, dropped, lines)
	}
}
