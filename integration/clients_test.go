package integration

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
)

// webDoors are where clients reach the web application: through two sidecars, through a gateway, and
// without a client certificate.
func webDoors(t *testing.T, mesh *wired, http2 bool) []door {
	t.Helper()
	if http2 {
		return []door{
			{"sidecars", mesh.outbound(t, "caller", "web", 9282), ""},
			{"gateway with a certificate", mesh.inbound(t, "edge", 8283), "h2"},
			{"without client certificates", mesh.inbound(t, "web", 9283), "h2"},
		}
	}
	return []door{
		{"sidecars", mesh.outbound(t, "caller", "web", 9280), ""},
		{"gateway", mesh.inbound(t, "edge", 8280), ""},
		{"without client certificates", mesh.inbound(t, "web", 9281), "http/1.1"},
	}
}

func (d door) url() string {
	if d.alpn != "" {
		return "https://" + d.address
	}
	return "http://" + d.address
}

// mebibyte is the body that clients send, and sum what the application answers to it.
var mebibyte = pattern(1 << 20)

func sum() string { return fmt.Sprintf("%s %d\n", checksum(mebibyte), len(mebibyte)) }

// eachDoor runs a client at every door, over HTTP/1.1 and HTTP/2.
func eachDoor(t *testing.T, versions []string, run func(t *testing.T, d door, version string)) {
	t.Helper()
	mesh := wire(t)
	for _, version := range versions {
		for _, d := range webDoors(t, mesh, version == "2") {
			t.Run("HTTP "+version+"/"+d.name, func(t *testing.T) { run(t, d, version) })
		}
	}
}

// curl asks, uploads, waits for a 100, and takes a stream as it comes.
func TestClientCurl(t *testing.T) {
	curl := peer(t, "curl")
	file := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(file, mebibyte, 0o600); err != nil {
		t.Fatal(err)
	}
	eachDoor(t, []string{"1.1", "2"}, func(t *testing.T, d door, version string) {
		common := []string{"-sS", "-k", "--max-time", "60", "--http1.1"}
		switch {
		case version == "2" && d.alpn == "":
			common[4] = "--http2-prior-knowledge"
		case version == "2":
			common[4] = "--http2"
		}
		run := func(args ...string) string {
			t.Helper()
			got := execute(t, nil, curl, append(append([]string{"--fail-with-body"}, common...), args...)...)
			if got.status != 0 {
				t.Errorf("curl %v: status %d\n%s%s", args, got.status, got.stdout, got.stderr)
			}
			return got.stdout
		}
		if got := run("-w", "%{http_version} %{size_download}", "-o", "/dev/null", d.url()+"/bytes/100000"); got != version+" 100000" {
			t.Errorf("GET: %q", got)
		}
		for what, args := range map[string][]string{
			"POST":                      {"--data-binary", "@" + file},
			"PUT":                       {"-T", file},
			"PUT in chunks":             {"-T", file, "-H", "Transfer-Encoding: chunked"},
			"PUT after a 100":           {"-T", file, "-H", "Expect: 100-continue", "--expect100-timeout", "30"},
			"POST of an unknown length": {"-X", "POST", "-T", "-"},
		} {
			stdin := io.Reader(nil)
			if args[len(args)-1] == "-" {
				stdin = bytes.NewReader(mebibyte)
			}
			got := execute(t, stdin, curl, append(append(common, args...), d.url()+"/sum")...)
			if got.stdout != sum() {
				t.Errorf("%s: %q, status %d %s", what, got.stdout, got.status, got.stderr)
			}
		}
		if got := run("--compressed", d.url()+"/gzip"); got != "\"compressed by the application\"\n" {
			t.Errorf("--compressed: %q", got)
		}
		// Nobody but the client asks for compression, and nobody but the client undoes it.
		if got := run("-i", d.url()+"/gzip"); !strings.Contains(got, "\x1f\x8b") || strings.Contains(strings.ToLower(got), "x-asked-for: gzip") {
			t.Errorf("what was compressed by the application alone came as %q", got)
		}
		streamCurl(t, curl, common, d)
		if version == "1.1" {
			if got := run("-o", "/dev/null", "-o", "/dev/null", "-w", "%{num_connects} ", d.url()+"/bytes/1", d.url()+"/bytes/2"); got != "1 0 " {
				t.Errorf("connections made for two requests: %q, want one and none", got)
			}
		}
	})
}

// streamCurl sees that the first line of an answer arrives before the last is written.
func streamCurl(t *testing.T, curl string, common []string, d door) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	id := unique()
	command := exec.CommandContext(ctx, curl, append(common, "-N", d.url()+"/hold/"+id)...)
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(out)
	if line, err := in.ReadString('\n'); line != "first\n" {
		t.Errorf("the stream begins with %q (%v)", line, err)
	}
	execute(t, nil, curl, append(common, d.url()+"/release/"+id)...)
	if line, err := in.ReadString('\n'); line != "last\n" {
		t.Errorf("the stream ends with %q (%v)", line, err)
	}
	if err := command.Wait(); err != nil {
		t.Errorf("curl: %v", err)
	}
}

var uniqueNumber atomic.Int64

func unique() string { return "u" + strconv.FormatInt(uniqueNumber.Add(1), 10) }

// Go's net/http does the same, and uses its connection again.
func TestClientGo(t *testing.T) {
	eachDoor(t, []string{"1.1", "2"}, func(t *testing.T, d door, version string) {
		transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, Protocols: new(http.Protocols)}
		defer transport.CloseIdleConnections()
		switch {
		case version == "1.1":
			transport.Protocols.SetHTTP1(true)
		case d.alpn == "":
			transport.Protocols.SetUnencryptedHTTP2(true)
		default:
			transport.Protocols.SetHTTP2(true)
		}
		dials := 0
		transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			dials++
			return new(net.Dialer).DialContext(ctx, network, address)
		}
		c := &http.Client{Transport: transport, Timeout: patience}
		ask := func(method, path string, body io.Reader) string {
			t.Helper()
			request, err := http.NewRequestWithContext(t.Context(), method, d.url()+path, body)
			if err != nil {
				t.Fatal(err)
			}
			response, err := c.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			got, err := io.ReadAll(response.Body)
			if err != nil || response.StatusCode != http.StatusOK || !strings.HasPrefix(response.Proto, "HTTP/"+version) {
				t.Fatalf("%s %s: %s %s (%v)", method, path, response.Proto, response.Status, err)
			}
			return string(got)
		}
		if got := ask("GET", "/bytes/100000", nil); checksum([]byte(got)) != checksum(pattern(100_000)) {
			t.Error("GET: the wrong bytes")
		}
		if got := ask("POST", "/sum", bytes.NewReader(mebibyte)); got != sum() {
			t.Errorf("POST: %q", got)
		}
		if got := ask("POST", "/sum", io.MultiReader(bytes.NewReader(mebibyte))); got != sum() {
			t.Errorf("POST in chunks: %q", got)
		}
		if got := ask("GET", "/gzip", nil); got != "\"compressed by the application\"\n" {
			t.Errorf("compressed: %q", got)
		}
		if dials != 1 {
			t.Errorf("%d connections for four requests", dials)
		}
		streamGo(t, c, d)
		early(t, c, d)
	})
}

func streamGo(t *testing.T, c *http.Client, d door) {
	t.Helper()
	id := unique()
	response, err := c.Get(d.url() + "/hold/" + id)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	in := bufio.NewReader(response.Body)
	if line, err := in.ReadString('\n'); line != "first\n" {
		t.Errorf("the stream begins with %q (%v)", line, err)
	}
	if release, err := c.Get(d.url() + "/release/" + id); err != nil {
		t.Error(err)
	} else {
		release.Body.Close()
	}
	if rest, err := io.ReadAll(in); string(rest) != "last\n" || err != nil {
		t.Errorf("the stream ends with %q (%v)", rest, err)
	}
}

// early is an answer that comes before the request was sent whole: it arrives, and the request ends.
func early(t *testing.T, c *http.Client, d door) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var wrote atomic.Int64
	endless := io.TeeReader(zeros{}, counter{&wrote})
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url()+"/early", io.LimitReader(endless, 1<<30))
	if err != nil {
		t.Fatal(err)
	}
	response, err := c.Do(request)
	if err != nil {
		t.Errorf("an answer before the end of the request: %v", err)
		return
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusRequestEntityTooLarge || string(body) != "too large\n" || err != nil {
		t.Errorf("an answer before the end of the request: %s %q (%v)", response.Status, body, err)
	}
	if wrote.Load() == 1<<30 {
		t.Error("1 GiB was taken for a request that was refused at once")
	}
}

// counter counts what is written to it.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(b []byte) (int, error) { c.n.Add(int64(len(b))); return len(b), nil }

// Python's httpx does the same.
func TestClientHTTPX(t *testing.T) {
	python := httpx(t)
	eachDoor(t, []string{"1.1", "2"}, func(t *testing.T, d door, version string) {
		got := execute(t, nil, python, filepath.Join("testdata", "clients", "httpx_client.py"), d.url(), version)
		if got.status != 0 || got.stdout != "done\n" {
			t.Errorf("status %d\n%s%s", got.status, got.stdout, got.stderr)
		}
	})
}

// httpx is the interpreter that has it; tools/install-peers.sh made it.
func httpx(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return peer(t, filepath.Join(cache, "countersign", "httpx", "bin", "python"))
}

// Node's fetch does the same.
func TestClientFetch(t *testing.T) {
	node := peer(t, "node")
	eachDoor(t, []string{"1.1"}, func(t *testing.T, d door, _ string) {
		t.Setenv("NODE_TLS_REJECT_UNAUTHORIZED", "0") // it is the gateway's own certificate
		got := execute(t, nil, node, filepath.Join("testdata", "clients", "fetch.mjs"), d.url())
		if got.status != 0 || got.stdout != "done\n" {
			t.Errorf("status %d\n%s%s", got.status, got.stdout, got.stderr)
		}
	})
}

// wrk and h2load lose nothing, small or large.
func TestClientLoad(t *testing.T) {
	wrk, h2load := peer(t, "wrk"), peer(t, "h2load")
	file := filepath.Join(t.TempDir(), "body")
	if err := os.WriteFile(file, mebibyte, 0o600); err != nil {
		t.Fatal(err)
	}
	eachDoor(t, []string{"1.1", "2"}, func(t *testing.T, d door, version string) {
		for _, args := range [][]string{
			{"-n", "1000", "-c", "8", "-m", "8", d.url() + "/bytes/1000"},
			{"-n", "40", "-c", "4", "-m", "2", d.url() + "/bytes/1000000"},
			{"-n", "40", "-c", "4", "-m", "2", "-d", file, d.url() + "/sum"},
		} {
			if version == "1.1" {
				args = append([]string{"--h1"}, args...)
			}
			got := execute(t, nil, h2load, args...)
			number := args[1+slices.Index(args, "-n")]
			if got.status != 0 || !strings.Contains(got.stdout, number+" succeeded, 0 failed, 0 errored") || !strings.Contains(got.stdout, number+" 2xx") {
				t.Errorf("h2load %v: status %d\n%s%s", args, got.status, got.stdout, got.stderr)
			}
		}
		if version == "2" {
			return
		}
		t.Setenv("WANT", strings.TrimSpace(sum()))
		got := execute(t, nil, wrk, "-t", "1", "-c", "4", "-d", "1s", "--timeout", "20s", "-s", filepath.Join("testdata", "clients", "post.lua"), d.url()+"/sum")
		count, err := parseWrk(got.stdout)
		if err != nil || count.failed > 0 || count.requests == 0 || !strings.Contains(got.stdout, "wrong answers: 0") {
			t.Errorf("wrk: %d of %d failed (%v)\n%s%s", count.failed, count.requests, err, got.stdout, got.stderr)
		}
	})
}
