package main

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const somePin = "sha256:0000000000000000000000000000000000000000000000000000000000000000"

func goodProxy() proxyCmd {
	return proxyCmd{
		Server: "https://10.0.0.5:8443", CAPin: somePin, TokenFile: "token", State: "state", Instance: "a-1",
		Address: "10.0.1.17", AppAddress: "127.0.0.1", Admin: "127.0.0.1:9901", DrainTimeout: time.Second,
	}
}

func TestProxyCommandLine(t *testing.T) {
	good := goodProxy()
	good.Bind = []string{"inbound/9080=10.0.1.17:19080", "outbound/9100=127.0.0.1:19100", "app/9080=[::1]:9080"}
	settings, err := good.check()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"inbound/9080": "10.0.1.17:19080", "outbound/9100": "127.0.0.1:19100", "app/9080": "[::1]:9080"}
	if diff := cmp.Diff(want, settings.binds); diff != "" {
		t.Error(diff)
	}
	cases := map[string]struct {
		spoil func(*proxyCmd)
		want  string
	}{
		"a wildcard":              {func(c *proxyCmd) { c.Address = "0.0.0.0" }, "never a wildcard"},
		"an IPv6 wildcard":        {func(c *proxyCmd) { c.Address = "::" }, "never a wildcard"},
		"a mapped wildcard":       {func(c *proxyCmd) { c.Address = "::ffff:0.0.0.0" }, "never a wildcard"},
		"no address":              {func(c *proxyCmd) { c.Address = "" }, "never a wildcard"},
		"a name":                  {func(c *proxyCmd) { c.Address = "localhost" }, "never a wildcard"},
		"a multicast address":     {func(c *proxyCmd) { c.Address = "224.0.0.1" }, "never a wildcard"},
		"an app elsewhere":        {func(c *proxyCmd) { c.AppAddress = "10.0.1.17" }, "loopback"},
		"an app everywhere":       {func(c *proxyCmd) { c.AppAddress = "0.0.0.0" }, "loopback"},
		"admin on the network":    {func(c *proxyCmd) { c.Admin = "10.0.1.17:9901" }, "loopback"},
		"admin everywhere":        {func(c *proxyCmd) { c.Admin = ":9901" }, "loopback"},
		"admin without a port":    {func(c *proxyCmd) { c.Admin = "127.0.0.1" }, "loopback"},
		"a short pin":             {func(c *proxyCmd) { c.CAPin = "sha256:00" }, "--ca-pin"},
		"a pin of another hash":   {func(c *proxyCmd) { c.CAPin = strings.Replace(somePin, "256", "512", 1) }, "--ca-pin"},
		"an instance with spaces": {func(c *proxyCmd) { c.Instance = "a 1" }, "--instance"},
		"a negative drain":        {func(c *proxyCmd) { c.DrainTimeout = -1 }, "negative"},
		"an unreadable URL":       {func(c *proxyCmd) { c.Server = "https://[" }, "https://HOST:PORT"},
		"a bind of nothing":       {func(c *proxyCmd) { c.Bind = []string{"9080=127.0.0.1:1"} }, "inbound/PORT=IP:PORT"},
		"a bind to a wildcard":    {func(c *proxyCmd) { c.Bind = []string{"inbound/9080=0.0.0.0:9080"} }, "one address"},
		"a bind to all, mapped":   {func(c *proxyCmd) { c.Bind = []string{"inbound/9080=[::ffff:0.0.0.0]:9080"} }, "one address"},
		"a bind to no port":       {func(c *proxyCmd) { c.Bind = []string{"inbound/9080=127.0.0.1:0"} }, "one address"},
		"a bind to a name":        {func(c *proxyCmd) { c.Bind = []string{"inbound/9080=host:80"} }, "one address"},
		"outbound on the network": {func(c *proxyCmd) { c.Bind = []string{"outbound/9080=10.0.0.1:80"} }, "loopback"},
		"a bind twice": {func(c *proxyCmd) {
			c.Bind = []string{"inbound/9080=127.0.0.1:1", "inbound/9080=127.0.0.1:2"}
		}, "twice"},
	}
	for name, c := range cases {
		cmd := goodProxy()
		c.spoil(&cmd)
		_, err := cmd.check()
		var usage usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want a usage error with %q", name, err, c.want)
		}
	}
}

// TestAdminHost is about browsers: a web page must not reach the admin listener under its own name.
func TestAdminHost(t *testing.T) {
	handler := notForPages(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }))
	for host, want := range map[string]int{
		"127.0.0.1:9901": 200, "127.9.8.7": 200, "localhost:9901": 200, "localhost": 200, "[::1]:9901": 200,
		"rebound.example.com:9901": 403, "10.0.0.1:9901": 403, "": 403, "localhost.example.com": 403, "0.0.0.0:9901": 403,
	} {
		request := httptest.NewRequest(http.MethodPost, "/drain_listeners", nil)
		request.Host = host
		recorder := httptest.NewRecorder()
		handler.ServeHTTP(recorder, request)
		if recorder.Code != want {
			t.Errorf("Host %q: %d, want %d", host, recorder.Code, want)
		}
	}
	for name, tt := range map[string]struct {
		method, field, value string
		want                 int
	}{
		"a page's form":       {"POST", "Sec-Fetch-Site", "cross-site", 403},
		"an old browser's":    {"POST", "Origin", "http://example.com", 403},
		"no browser":          {"POST", "Accept", "*/*", 200},
		"a link to /stats":    {"GET", "Sec-Fetch-Site", "cross-site", 200},
		"typed in by someone": {"GET", "Sec-Fetch-Site", "none", 200},
	} {
		request := httptest.NewRequest(tt.method, "http://127.0.0.1:9901/drain_listeners", nil)
		request.Header.Set(tt.field, tt.value)
		recorder := httptest.NewRecorder()
		handler.ServeHTTP(recorder, request)
		if recorder.Code != tt.want {
			t.Errorf("%s: %d, want %d", name, recorder.Code, tt.want)
		}
	}
}

func TestAccessLogReopens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	access, err := openAccessLog(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer access.Close()
	stop := access.reopenOn(syscall.SIGHUP, slog.New(slog.DiscardHandler))
	defer stop()
	write := func(line string) {
		if _, err := access.writer().Write([]byte(line + "\n")); err != nil {
			t.Fatal(err)
		}
	}
	write("one")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write("two")
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		if _, err := os.Stat(path); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the file was not opened again")
		}
		time.Sleep(time.Millisecond)
	}
	stop()
	write("three")
	old, err := os.ReadFile(path + ".1")
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(old) != "one\ntwo\n" || string(fresh) != "three\n" {
		t.Errorf("old %q, new %q", old, fresh)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestAccessLogPlaces(t *testing.T) {
	var stdout bytes.Buffer
	none, err := openAccessLog("", &stdout)
	if err != nil || none.writer() != nil {
		t.Errorf("none: %v, %v", none.writer(), err)
	}
	none.Close()
	dash, err := openAccessLog("-", &stdout)
	if err != nil || dash.writer() != &stdout {
		t.Errorf("-: %v, %v", dash.writer(), err)
	}
	dash.Close()
	var usage usageError
	if _, err := openAccessLog(filepath.Join(t.TempDir(), "no", "file"), nil); !errors.As(err, &usage) {
		t.Errorf("a directory that is not there: %v", err)
	}
}
