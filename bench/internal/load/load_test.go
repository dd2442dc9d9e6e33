package load

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const wrkGood = `Running 5s test @ http://127.0.0.1:1/128
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.62ms    1.05ms  31.45ms   95.01%
    Req/Sec    41.12k     3.31k   45.45k    86.00%
  Latency Distribution
     50%    1.46ms
     75%    1.80ms
     90%    2.23ms
     99%  812.00us
  204730 requests in 5.01s, 59.17MB read
Requests/sec:  40868.18
Transfer/sec:     11.81MB
`

func TestParseWrk(t *testing.T) {
	bad := strings.Replace(wrkGood, "Requests/sec", "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 730\nRequests/sec", 1)
	tests := map[string]struct {
		text string
		want Result
		ok   bool
	}{
		"good": {wrkGood, Result{Requests: 204730, Bytes: 62044241, Elapsed: 5010 * time.Millisecond, P50: 1460 * time.Microsecond, P99: 812 * time.Microsecond}, true},
		"with errors": {
			bad,
			Result{Requests: 204000, Failed: 740, Bytes: 62044241, Elapsed: 5010 * time.Millisecond, P50: 1460 * time.Microsecond, P99: 812 * time.Microsecond},
			true,
		},
		"seconds, with a space after them": {
			strings.Replace(wrkGood, "812.00us", "4.14s ", 1),
			Result{Requests: 204730, Bytes: 62044241, Elapsed: 5010 * time.Millisecond, P50: 1460 * time.Microsecond, P99: 4140 * time.Millisecond},
			true,
		},
		"without --latency": {strings.Replace(wrkGood, "99%  812", "98%  812", 1), Result{}, false},
		"without a total":   {strings.Replace(wrkGood, "requests in", "requests of", 1), Result{}, false},
		"a strange time":    {strings.Replace(wrkGood, "in 5.01s", "in 5.01y", 1), Result{}, false},
		"a strange latency": {strings.Replace(wrkGood, "1.46ms", "1.46ps", 1), Result{}, false},
		"a strange size":    {strings.Replace(wrkGood, "59.17MB", "59.17XB", 1), Result{}, false},
		"nothing":           {"", Result{}, false},
	}
	for name, test := range tests {
		got, err := ParseWrk(test.text)
		if (err == nil) != test.ok {
			t.Errorf("%s: error %v", name, err)
		}
		if !test.ok {
			continue
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestWrkUnits(t *testing.T) {
	for text, want := range map[string]int64{"512.00B": 512, "1.50KB": 1536, "2.00GB": 2 << 30, "1.00TB": 1 << 40} {
		if got, err := wrkBytes(text); err != nil || got != want {
			t.Errorf("%s: %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "12", "-1.00MB", "xMB", "99999999999.00PB"} {
		if got, err := wrkBytes(text); err == nil {
			t.Errorf("%q gives %d and no error", text, got)
		}
	}
	for text, want := range map[string]time.Duration{"1.50m": 90 * time.Second, "1.00h": time.Hour, "12.00us": 12 * time.Microsecond} {
		if got, err := wrkDuration(text); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", text, got, err, want)
		}
	}
	if got, err := wrkDuration("-1.00s"); err == nil {
		t.Errorf("a negative time gives %s and no error", got)
	}
}

func TestCheck(t *testing.T) {
	for name, test := range map[string]struct {
		r  Result
		ok bool
	}{
		"good":           {Result{Requests: 10000, Elapsed: time.Second}, true},
		"a few failed":   {Result{Requests: 10000, Failed: 10, Elapsed: time.Second}, true},
		"too many":       {Result{Requests: 10000, Failed: 11, Elapsed: time.Second}, false},
		"none succeeded": {Result{Elapsed: time.Second}, false},
		"no time":        {Result{Requests: 10}, false},
	} {
		if err := test.r.check(); (err == nil) != test.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

const h2loadGood = `starting benchmark...
finished in 5.00s, 23456.20 req/s, 3.10MB/s
requests: 117281 total, 117409 started, 117281 done, 117280 succeeded, 1 failed, 0 errored, 0 timeout
status codes: 117280 2xx, 0 3xx, 1 4xx, 0 5xx
traffic: 15.50MB (16253219) total, 1.00MB (1048576) headers (space savings 90.00%), 14.00MB (14680064) data
                     min         max         mean         sd        +/- sd
time for request:      300us     40.00ms      5.20ms      1.10ms    80.00%
`

func TestParseH2load(t *testing.T) {
	got, err := ParseH2load(h2loadGood)
	want := Result{Requests: 117280, Failed: 1, Bytes: 16253219, Elapsed: 5 * time.Second}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for _, line := range []string{"finished in 5.00s", "requests:", "status codes:", "traffic:"} {
		if _, err := ParseH2load(strings.Replace(h2loadGood, line, "something else", 1)); err == nil {
			t.Errorf("no error without %q", line)
		}
	}
}

func TestParseH2loadLog(t *testing.T) {
	got, err := ParseH2loadLog(strings.NewReader("1700000000000000\t200\t512\n1700000000000001\t200\t30\n"))
	if diff := cmp.Diff([]time.Duration{512 * time.Microsecond, 30 * time.Microsecond}, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for _, text := range []string{"1\t200\n", "1\t200\tsoon\n", "\n"} {
		if _, err := ParseH2loadLog(strings.NewReader(text)); err == nil {
			t.Errorf("%q gives no error", text)
		}
	}
}

func TestPercentile(t *testing.T) {
	var hundred []time.Duration
	for i := 100; i > 0; i-- {
		hundred = append(hundred, time.Duration(i))
	}
	for share, want := range map[float64]time.Duration{0.5: 50, 0.99: 99, 1: 100, 0: 1} {
		if got := percentile(hundred, share); got != want {
			t.Errorf("%v: %d, want %d", share, got, want)
		}
	}
	if got := percentile(nil, 0.5); got != 0 {
		t.Errorf("of nothing: %d", got)
	}
	if got := percentile([]time.Duration{7}, 0.99); got != 7 {
		t.Errorf("of one: %d", got)
	}
}

func TestFrame(t *testing.T) {
	got, err := Frame(wrapperspb.Bytes([]byte("ab")))
	if want := "\x00\x00\x00\x00\x04\x0a\x02ab"; err != nil || string(got) != want {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

// What other programs print is read without a panic, and never understood as less than nothing.
func FuzzParseWrk(f *testing.F) {
	f.Add(wrkGood)
	f.Fuzz(func(t *testing.T, text string) {
		if r, err := ParseWrk(text); err == nil && (r.Elapsed < 0 || r.Bytes < 0 || r.P50 < 0 || r.P99 < 0 || r.Failed < 0) {
			t.Errorf("%q is read as %+v", text, r)
		}
	})
}
