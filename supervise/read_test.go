package supervise

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"countersign.dev/accesslog"
	"countersign.dev/mesh"
)

const nginxLine = `{"time":"2026-11-23T02:11:58+00:00","listener":"0.0.0.0_9080","direction":"inbound","protocol":"HTTP/1.1","remote":"127.0.0.1:44708","caller":"spiffe://shop.internal/service/other","peerSerial":"0AF1","tls":"TLSv1.3","method":"GET","path":"/a\"b","status":403,"bytesOut":37,"seconds":0.000,"upstream":"","upstreamStatus":"","verify":"SUCCESS","admitted":"0"}`

const haproxyLine = `{"time":"2026-11-23T02:11:58Z","listener":"0.0.0.0_9080","direction":"inbound","protocol":"HTTP/1.1","remote":"127.0.0.1:36234","subject":"CN=front,OU=service,O=shop.internal","peerSerial":"009780","tls":"TLSv1.3","method":"GET","path":"\/","status":200,"milliseconds":2,"upstream":"127.64.18.1:18080","end":"--","admitted":"1"}`

const haproxyFailure = `{"time":"2026-11-23T02:11:58Z","listener":"0.0.0.0_9080","direction":"inbound","remote":"127.0.0.1:36248","error":"SSL handshake failure","tlsError":"error:0A0000C7:SSL routines::peer did not return a certificate","certificateError":"0"}`

// FuzzEntry compares the reading of lines with encoding/json: what both read is the same, and what is read is JSON's
// texts and numbers.
func FuzzEntry(f *testing.F) {
	for _, line := range []string{nginxLine, haproxyLine, haproxyFailure, `{}`, `{"status":-}`, `{"a":"\ud800"}`, `{"a":{}}`, `{"a":"b"`, "{\"listener\":\"\x00\"}"} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		_, _ = parseEntry(line)
		read := map[string]string{}
		twice := false
		if err := scan(line, func(key, value []byte) {
			_, known := read[string(key)]
			twice = twice || known
			read[string(key)] = string(value)
		}); err != nil || twice {
			return
		}
		var want map[string]any
		decoder := json.NewDecoder(bytes.NewReader(line))
		decoder.UseNumber()
		if decoder.Decode(&want) != nil || len(want) != len(read) || bytes.ContainsRune(line, '\\') || !isASCII(line) {
			return // HAProxy's own ideas of JSON
		}
		for key, value := range want {
			if text, ok := value.(string); ok && read[key] != text {
				t.Errorf("%q: %q, want %q in %q", key, read[key], text, line)
			}
			if number, ok := value.(json.Number); ok && read[key] != number.String() {
				t.Errorf("%q: %q, want %s in %q", key, read[key], number, line)
			}
		}
	})
}

func isASCII(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c >= 0x80 })
}

func TestEntry(t *testing.T) {
	e, err := parseEntry([]byte(nginxLine + "\n"))
	if err != nil || string(e.listener) != "0.0.0.0_9080" || e.status != 403 || e.admitted == nil || string(e.admitted) != "0" || e.upstreamStatus == nil || len(e.upstream) != 0 {
		t.Errorf("%+v, %v", e, err)
	}
	e, err = parseEntry([]byte(haproxyFailure))
	if err != nil || !e.failed || !strings.Contains(string(e.tlsError), "did not return") || number(e.certificateError) != 0 {
		t.Errorf("%+v, %v", e, err)
	}
	if e, err = parseEntry([]byte(`{"subject":"-","admitted":"-","upstream":"-:-"}`)); err != nil || len(e.caller) != 0 || e.admitted == nil || len(e.admitted) != 0 || len(e.upstream) != 0 {
		t.Errorf("HAProxy's nothing: %+v, %v", e, err)
	}
	for _, bad := range []string{"", "{", `{"a"}`, `{"a":}x`, `{"a":1,}`, `{"a":"b}`, `{a:1}`, `["a"]`, `{"a":{"b":1}}`, `{"a":1 "b":2}`, "Proxy in9080 stopped"} {
		if _, err := parseEntry([]byte(bad)); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}

// TestCounts is about lines of each kind, on an engine that is known by its log alone.
func TestCounts(t *testing.T) {
	changed := 0
	c := newCounts(func() { changed++ })
	c.declare(compile(t, shop, "back"), NGINX)
	take := func(line string) bool {
		t.Helper()
		e, err := parseEntry([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		return c.take(e, time.Now())
	}
	const port = `"listener":"0.0.0.0_9080","direction":"inbound"`
	take(nginxLine)
	take(`{` + port + `,"tls":"TLSv1.3","verify":"NONE","status":444,"admitted":"0","upstreamStatus":""}`)
	take(`{` + port + `,"tls":"TLSv1.3","verify":"FAILED:certificate has expired","status":444,"admitted":"0","upstreamStatus":""}`)
	take(`{` + port + `,"tls":"","verify":"","status":444,"admitted":"0","upstreamStatus":""}`)
	take(`{"listener":"0.0.0.0_7000","direction":"inbound","protocol":"tcp","caller":"CN=front,OU=service,O=shop.internal","peerSerial":"0B","tls":"TLSv1.3","upstream":"127.0.0.1:17000","verify":"SUCCESS"}`)
	take(`{"listener":"0.0.0.0_7000","direction":"inbound","protocol":"tcp","caller":"CN=other,OU=service,O=shop.internal","peerSerial":"0C","tls":"TLSv1.3","upstream":"","verify":"SUCCESS"}`)
	for range 3 {
		take(`{"listener":"0.0.0.0_9081","direction":"inbound","remote":"::1:5000","tls":"","status":200,"admitted":"1","upstreamStatus":"200"}`)
	}
	take(`{"listener":"unknown","direction":"inbound"}`)
	c.ignore("127.0.0.1:1", time.Now())
	if take(`{` + port + `,"remote":"127.0.0.1:1","status":200}`) {
		t.Error("its own connection is somebody's")
	}
	c.ignore("[::1]:2", time.Now())
	if take(`{` + port + `,"remote":"::1:2","status":200}`) {
		t.Error("its own connection over IPv6 is somebody's")
	}
	want := map[string]int64{
		"listener.0.0.0.0_9080.rbac.denied": 1, "listener.0.0.0.0_9080.ssl.fail_verify_no_cert": 1, "listener.0.0.0.0_9080.ssl.fail_verify_error": 1,
		"http.0.0.0.0_9080.downstream_rq_total": 1, "http.0.0.0.0_9080.downstream_rq_4xx": 1, "listener.0.0.0.0_7000.rbac.denied": 1,
		"listener.0.0.0.0_7000.downstream_cx_total": 2, "listener.0.0.0.0_9081.plaintext_cx_total": 1, "http.0.0.0.0_9081.downstream_rq_2xx": 3,
	}
	for _, stat := range c.set.Stats() {
		if value, ok := want[stat.Name]; ok && value != stat.Value {
			t.Errorf("%s: %d, want %d", stat.Name, stat.Value, value)
		}
		delete(want, stat.Name)
		for _, absent := range []string{"9080.ssl.handshake", "9080.downstream_cx_total", "downstream_cx_active", "session_reused", "ssl.connection_error"} {
			if strings.Contains(stat.Name, absent) {
				t.Errorf("NGINX does not tell %s, and it is there", stat.Name)
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("not there: %v", want)
	}
	r := c.report()
	if r.Requests != 4 || r.Refused != 2 || r.PlaintextCallers["::1"] != 1 || len(r.Callers) != 2 || r.Callers["spiffe://shop.internal/service/front"].Serial != "0b" {
		t.Errorf("report %+v", r)
	}
	if changed < 4 {
		t.Errorf("%d changes are told", changed)
	}
}

// TestOurs takes only the line of our own handshake for nobody's: its port is somebody else's afterwards.
func TestOurs(t *testing.T) {
	now := time.Now()
	line := &entry{remote: []byte("127.0.0.1:40000")}
	for name, test := range map[string]struct {
		earlier int           // lines of that port
		after   time.Duration // the handshake
		want    bool          // that it is somebody else's
	}{
		"our own": {0, time.Second, false}, "a second line": {1, time.Second, true}, "an hour later": {0, time.Hour, true},
	} {
		c := newCounts(func() {})
		c.ignore("127.0.0.1:40000", now)
		for range test.earlier {
			c.take(line, now)
		}
		if got := c.take(line, now.Add(test.after)); got != test.want {
			t.Errorf("%s: somebody else's is %v", name, got)
		}
	}
}

// TestCountsBounded fills what is kept of callers.
func TestCountsBounded(t *testing.T) {
	c := newCounts(func() {})
	c.declare(compile(t, shop, "back"), NGINX)
	p := c.inbound["0.0.0.0_9081"]
	for i := range 3 * mostRemembered {
		n := []byte{byte('a' + i%26), byte('a' + i/26%26), byte('a' + i/676)}
		c.presented("spiffe://shop.internal/service/"+string(n), "01", time.Now())
		c.spokePlaintext(p, append(n, ":1"...))
		c.ignore(string(n), time.Now())
	}
	if len(c.peers) > mostRemembered || len(c.plaintext) > mostRemembered+1 || len(c.ours) > mostRemembered || c.plaintext[otherCallers] == 0 {
		t.Errorf("%d peers, %d addresses, %d of our own", len(c.peers), len(c.plaintext), len(c.ours))
	}
}

// TestHAProxyCounts lets workers come and go: what they counted stays, once.
func TestHAProxyCounts(t *testing.T) {
	c := newCounts(func() {})
	plan := compile(t, shop, "back")
	c.declare(plan, HAProxy)
	h := newHAProxySampler(c).(*haproxySampler)
	look := func(counted map[string]int64, requests, active string) map[*atomic.Int64]int64 {
		rows, err := readStat("# pxname,svname,scur,conn_tot,req_tot,hrsp_2xx,ssl_sess,ssl_reused_sess,\nin9080,FRONTEND," + active + ",4," + requests + ",3,4,1,\n\n")
		if err != nil || len(rows) != 1 {
			t.Fatalf("%d rows: %v", len(rows), err)
		}
		now := map[*atomic.Int64]int64{}
		h.take(rows[0], counted, plan, now)
		return now
	}
	first, second := map[string]int64{}, map[string]int64{}
	look(first, "5", "2")
	look(first, "7", "2")
	if active := look(second, "1", "1")[c.inbound["0.0.0.0_9080"].active]; active != 1 {
		t.Errorf("%d active", active)
	}
	look(second, "0", "1") // a worker that counts backwards is another one
	p := c.inbound["0.0.0.0_9080"]
	if got := p.http.RqTotal.Load(); got != 8 || c.report().Requests != 8 {
		t.Errorf("%d requests, %d reported, want 8", got, c.report().Requests)
	}
	if p.connections.Load() != 8 || p.handshakes.Load() != 10 || p.again.Load() != 2 {
		t.Errorf("%d connections, %d handshakes, %d resumed", p.connections.Load(), p.handshakes.Load(), p.again.Load())
	}
}

// FuzzHAProxyAnswers reads what a socket says: nothing of it ends the process.
func FuzzHAProxyAnswers(f *testing.F) {
	f.Add("# pxname,svname\na,b\n")
	f.Fuzz(func(t *testing.T, text string) {
		_, _ = readStat(text)
		var b Binary
		_ = readNGINX(text, &b)
		_ = readHAProxy(text, &b)
	})
}

// TestFind is about programs that are none, or too old.
func TestFind(t *testing.T) {
	program := func(says string) string {
		path := filepath.Join(t.TempDir(), "program")
		if err := os.WriteFile(path, []byte("#!/bin/sh\ncat <<'E'\n"+says+"\nE\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct {
		engine *Engine
		path   string
		want   string
	}{
		"nothing":             {NGINX, filepath.Join(t.TempDir(), "none"), "no program that this user may run"},
		"something else":      {NGINX, program("nginx version: openresty/1.21.4"), "does not say that it is NGINX"},
		"old":                 {NGINX, program("nginx version: nginx/1.18.0\nbuilt with OpenSSL 1.1.1f  31 Mar 2020"), "1.22 is the oldest"},
		"another library":     {NGINX, program("nginx version: nginx/1.24.0\nbuilt with LibreSSL 3.8.2"), "not linked with OpenSSL"},
		"no HAProxy":          {HAProxy, program("hello"), "does not say that it is HAProxy"},
		"old HAProxy":         {HAProxy, program("HAProxy version 2.4.22 2023/02/14\nRunning on OpenSSL version : OpenSSL 3.0.2"), "2.6 is the oldest"},
		"HAProxy by AWS-LC":   {HAProxy, program("HAProxy version 3.0.1\nRunning on OpenSSL version : AWS-LC 1.29.0"), "does not run with OpenSSL"},
		"a program that ends": {HAProxy, "/bin/false", "exit status 1"},
	} {
		least := map[*Engine]string{NGINX: "1.22", HAProxy: "2.6"}[c.engine]
		if _, err := Find(t.Context(), c.engine, c.path, least); !errors.Is(err, ErrBinary) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	b, err := Find(t.Context(), NGINX, program("nginx version: nginx/1.27.1 (Ubuntu)\nbuilt with OpenSSL 3.0.2 15 Mar 2022 (running with OpenSSL 3.5.1 1 Jul 2025)\nconfigure arguments: --modules-path=/opt/modules --with-stream=dynamic --with-stream_ssl_module"), "1.22")
	if err != nil || b.Version != "1.27.1" || b.OpenSSL != "3.5.1" || b.StreamModule != "/opt/modules/ngx_stream_module.so" {
		t.Errorf("%+v, %v", b, err)
	}
	if b, err = Find(t.Context(), NGINX, program("nginx version: nginx/1.27.1\nbuilt with OpenSSL 3.0.2\nconfigure arguments: --with-stream"), "1.22"); err != nil || b.StreamModule != "" {
		t.Errorf("compiled in: %+v, %v", b, err)
	}
}

// TestLongLines is about a line that is longer than any that is read.
func TestLongLines(t *testing.T) {
	s := &Supervisor{cfg: Config{Now: time.Now}, log: slog.New(slog.DiscardHandler), counts: newCounts(func() {}), work: t.Context()}
	s.lines = accesslog.New(nil)
	s.counts.declare(compile(t, shop, "back"), NGINX)
	s.readLog(strings.NewReader("{" + strings.Repeat("a", 3*mostLine) + "}\n" + nginxLine + "\nwords\n"))
	if got := s.counts.requests.Load(); got != 1 {
		t.Errorf("%d requests", got)
	}
}

// TestComplaints is about what the programs say: levels, queries that are kept back, and floods.
func TestComplaints(t *testing.T) {
	out := new(text1)
	s := &Supervisor{log: slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	p := &process{}
	s.readComplaints(p, strings.NewReader(`2026/11/23 [error] 1#1: *1 connect() failed, request: "GET /a?token=secret HTTP/1.1", upstream: "http://127.0.0.1/a?token=secret"`+"\n"+
		"[NOTICE]   (1) : New worker (2) forked\n"+strings.Repeat("[WARNING] (1) : again\n", 300)))
	text := out.String()
	if strings.Contains(text, "secret") || !strings.Contains(text, "GET /a?... HTTP/1.1") || !strings.Contains(text, "level=WARN") || !strings.Contains(text, "level=DEBUG") {
		t.Errorf("%.2000s", text)
	}
	if n := strings.Count(text, "again"); n > 100 {
		t.Errorf("%d lines of a flood are passed on", n)
	}
	if words := p.lastWords(); !strings.Contains(words, "again") {
		t.Errorf("last words %q", words)
	}
}

func TestFilesDigest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cert.pem")
	plan := &mesh.Plan{Inbound: []mesh.Inbound{{Certificate: &mesh.CertificateFiles{Cert: path, Key: path}}}}
	missing := filesDigest(plan)
	if err := os.WriteFile(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	one := filesDigest(plan)
	if err := os.WriteFile(path, []byte("two"), 0o600); err != nil {
		t.Fatal(err)
	}
	if two := filesDigest(plan); one == two || one == missing || !hasFiles(plan) || hasFiles(&mesh.Plan{}) {
		t.Error("a change of a gateway's certificate is not seen")
	}
}

// TestOutputHeldOpen has a program that ends well and leaves a child with its output: what it said counts.
func TestOutputHeldOpen(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nsleep 5 &\necho 'HAProxy version 3.0.1'\necho 'Running on OpenSSL version : OpenSSL 3.0.2'\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	b, err := Find(t.Context(), HAProxy, path, "2.6")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.tested(t.Context(), "any", t.TempDir()); err != nil || b.Version != "3.0.1" {
		t.Errorf("version %q, %v", b.Version, err)
	}
}
