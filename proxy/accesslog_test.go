package proxy

import (
	"bytes"
	"encoding/json"
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
