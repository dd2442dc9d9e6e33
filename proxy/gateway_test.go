package proxy

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/proxy/internal/relay"
)

// gatewayPort is a gateway's plaintext listener.
func gatewayPort(port int, protocol mesh.Protocol, routes ...mesh.Route) mesh.Inbound {
	return mesh.Inbound{
		Name: "0.0.0.0_" + strconv.Itoa(port), Port: port, Protocol: protocol, TLS: mesh.Off, ClientAuth: mesh.None, MinTLS: mesh.TLS12,
		Rules: []mesh.Rule{{From: []string{mesh.FromAnonymous}}}, Routes: routes,
	}
}

// closedAddress is one where nobody listens.
func closedAddress(t testing.TB) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

// shop is a gateway in front of services that answer with their name.
type shop struct {
	gate     *node
	services map[string]*node
	plan     *mesh.Plan
}

// newShop makes the services of the names, each with one port of HTTP.
func newShop(t *testing.T, names []string, handler http.HandlerFunc) *shop {
	t.Helper()
	ca := newAuthority(t)
	s := &shop{gate: newNode(t, ca, id.Gateway, "gate", nil), services: map[string]*node{}}
	s.plan = s.gate.plan()
	for _, name := range names {
		app := serveApp(t, false, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Service", name)
			handler(w, r)
		}))
		n := newNode(t, ca, id.Service, name, map[int]string{9080: app})
		plan := n.plan()
		plan.Inbound = []mesh.Inbound{inboundPort(9080, mesh.HTTP, s.gate.id.String())}
		n.apply(plan)
		s.services[name] = n
		s.plan.Upstreams = append(s.plan.Upstreams, upstreamOf([]*node{n}, 9080, mesh.HTTP))
	}
	return s
}

func to(service string) []mesh.Destination {
	return []mesh.Destination{{Upstream: service + "_9080", Weight: 1}}
}

func TestRoutes(t *testing.T) {
	s := newShop(t, []string{"a", "b", "c"}, func(http.ResponseWriter, *http.Request) {})
	s.plan.Inbound = []mesh.Inbound{gatewayPort(8080, mesh.HTTP,
		mesh.Route{Match: mesh.Match{Path: "/exact"}, To: to("a")},
		mesh.Route{Match: mesh.Match{Prefix: "/pre", Methods: []string{"POST"}}, To: to("a")},
		mesh.Route{Match: mesh.Match{Prefix: "/pre"}, To: to("b")},
		mesh.Route{Match: mesh.Match{Prefix: "/", Headers: map[string]string{"x-canary": "yes"}}, To: to("c")},
		mesh.Route{Match: mesh.Match{Prefix: "/", Host: "c.example"}, To: to("c")},
	)}
	s.gate.apply(s.plan)
	client := clientFor(t, false)
	tests := []struct {
		method, target, host, canary, want string
		status                             int
	}{
		{"GET", "/exact", "", "", "a", 200},
		{"GET", "/exact/", "", "", "", 404},
		{"POST", "/pre/x", "", "", "a", 200},
		{"GET", "/pre", "", "", "b", 200},
		{"GET", "/pre?x", "", "", "b", 200},
		{"GET", "/pre/x", "", "", "b", 200},
		{"GET", "/p%72e/x", "", "", "b", 200},
		{"GET", "/prefix", "", "", "", 404},
		{"GET", "/any", "", "yes", "c", 200},
		{"GET", "/any", "", "no", "", 404},
		{"GET", "/any", "C.example:8080", "", "c", 200},
		{"GET", "/any", "d.example", "", "", 404},
		{"GET", "/pre/../any", "", "", "", 400},
		{"GET", "/pre//x", "", "", "", 400},
	}
	for _, tt := range tests {
		r := newRequest(t, tt.method, "http://"+s.gate.inboundAddress(8080), nil)
		path, query, _ := strings.Cut(tt.target, "?")
		r.URL.Opaque, r.URL.RawQuery, r.Host = path, query, tt.host
		if tt.host == "" {
			r.Host = "any.example"
		}
		if tt.canary != "" {
			r.Header.Set("X-Canary", tt.canary)
		}
		if got := do(t, client, r); got.status != tt.status || got.header.Get("X-Service") != tt.want {
			t.Errorf("%+v: status %d, service %q, %s", tt, got.status, got.header.Get("X-Service"), got.body)
		}
	}
	if n := s.gate.stat("http.0.0.0.0_8080.downstream_rq_4xx"); n != 6 {
		t.Errorf("%d of class 4xx, want 6", n)
	}
}

func TestWeights(t *testing.T) {
	s := newShop(t, []string{"a", "b", "c"}, func(http.ResponseWriter, *http.Request) {})
	s.plan.Inbound = []mesh.Inbound{gatewayPort(8080, mesh.HTTP, mesh.Route{Match: mesh.Match{Prefix: "/"}, To: []mesh.Destination{
		{Upstream: "a_9080", Weight: 3}, {Upstream: "b_9080", Weight: 1}, {Upstream: "c_9080", Weight: 0},
	}})}
	s.gate.apply(s.plan)
	client := clientFor(t, false)
	count := map[string]int{}
	for range 400 {
		count[do(t, client, newRequest(t, "GET", "http://"+s.gate.inboundAddress(8080), nil)).header.Get("X-Service")]++
	}
	if count["a"] < 240 || count["b"] < 50 || count["c"] != 0 || count["a"]+count["b"] != 400 {
		t.Errorf("%v, want about 300 and 100", count)
	}
}

func TestGatewaySetsTheAddress(t *testing.T) {
	s := newShop(t, []string{"a"}, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, r.Header["X-Forwarded-For"], r.Header["X-Client-Cert"], r.Host)
	})
	s.plan.Inbound = []mesh.Inbound{gatewayPort(8080, mesh.HTTP, mesh.Route{Match: mesh.Match{Prefix: "/"}, To: to("a")})}
	s.gate.apply(s.plan)
	r := newRequest(t, "GET", "http://"+s.gate.inboundAddress(8080), nil)
	r.Header = http.Header{"X-Forwarded-For": {"6.6.6.6"}, "X_Forwarded_For": {"7.7.7.7"}, "X-Client-Cert": {"CN=evil"}}
	r.Host = "shop.example"
	got := do(t, clientFor(t, false), r)
	if want := "[127.0.0.1, 127.0.0.1] [CN=gate,OU=gateway,O=shop.internal] shop.example\n"; got.body != want {
		t.Errorf("the application saw %s, want %s", got.body, want)
	}
}

func TestTimeout(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	s := newShop(t, []string{"a"}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/late" {
			flush(t, w)
		}
		if r.URL.Path != "/quick" {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		}
	})
	s.plan.Inbound = []mesh.Inbound{gatewayPort(8080, mesh.HTTP,
		mesh.Route{Match: mesh.Match{Prefix: "/"}, To: to("a"), RequestTimeout: mesh.Duration(300 * time.Millisecond)})}
	s.gate.apply(s.plan)
	client := clientFor(t, false)
	if got := do(t, client, newRequest(t, "GET", "http://"+s.gate.inboundAddress(8080)+"/quick", nil)); got.status != 200 {
		t.Errorf("quick: %+v", got)
	}
	if got := do(t, client, newRequest(t, "POST", "http://"+s.gate.inboundAddress(8080)+"/early", strings.NewReader("x"))); got.status != 504 {
		t.Errorf("early: %+v", got)
	}
	timeouts := 1
	for tries := range 20 {
		response, err := client.Do(newRequest(t, "GET", "http://"+s.gate.inboundAddress(8080)+"/late", nil))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		timeouts++
		if response.StatusCode == http.StatusGatewayTimeout && tries < 19 {
			continue // the head did not come in time either: a loaded machine
		}
		if response.StatusCode != http.StatusOK || err == nil {
			t.Errorf("late: a broken answer looks whole: %d %q", response.StatusCode, body)
		}
		break
	}
	eventually(t, "all are logged", func() bool { return strings.Count(s.gate.access.String(), `"flag":"timeout"`) == timeouts })
}

func TestNoEndpoint(t *testing.T) {
	s := newShop(t, []string{"a"}, func(http.ResponseWriter, *http.Request) {})
	route := mesh.Route{Match: mesh.Match{Prefix: "/"}, To: to("a")}
	s.plan.Inbound = []mesh.Inbound{gatewayPort(8080, mesh.HTTP, route)}
	good := s.plan.Upstreams[0].Endpoints[0]
	for name, tt := range map[string]struct {
		endpoints []mesh.Endpoint
		status    int
		flag      string
	}{
		"none":            {nil, 503, relay.FlagNoEndpoint},
		"a dead one":      {[]mesh.Endpoint{{Instance: "x", Address: closedAddress(t)}}, 503, relay.FlagConnect},
		"one of two dead": {[]mesh.Endpoint{{Instance: "x", Address: closedAddress(t)}, good}, 200, ""},
	} {
		t.Run(name, func(t *testing.T) {
			plan := *s.plan
			plan.Upstreams = []mesh.Upstream{plan.Upstreams[0]}
			plan.Upstreams[0].Endpoints = tt.endpoints
			s.gate.apply(&plan)
			before := len(s.gate.access.entries(t))
			for range 3 {
				got := do(t, clientFor(t, false), newRequest(t, "POST", "http://"+s.gate.inboundAddress(8080), strings.NewReader("x")))
				if got.status != tt.status {
					t.Errorf("%+v", got)
				}
			}
			eventually(t, "all three are logged", func() bool { return len(s.gate.access.entries(t)) == before+3 })
			entries := s.gate.access.entries(t)
			if e := entries[len(entries)-1]; e.Flag != tt.flag {
				t.Errorf("flag %q, want %q", e.Flag, tt.flag)
			}
		})
	}
}

// TestWrongServer checks that an instance that proves to be somebody else gets nothing.
func TestWrongServer(t *testing.T) {
	s := newShop(t, []string{"a", "b"}, func(w http.ResponseWriter, r *http.Request) { t.Error("a request arrived") })
	s.plan.Inbound = []mesh.Inbound{gatewayPort(8080, mesh.HTTP, mesh.Route{Match: mesh.Match{Prefix: "/"}, To: to("a")})}
	s.plan.Upstreams[0].Endpoints = s.plan.Upstreams[1].Endpoints // "a" is said to be where "b" is
	s.gate.apply(s.plan)
	got := do(t, clientFor(t, false), newRequest(t, "GET", "http://"+s.gate.inboundAddress(8080), nil))
	if got.status != 503 || !strings.Contains(s.gate.log.String(), "spiffe://shop.internal/service/b answered") {
		t.Errorf("%+v", got)
	}
}

func writePair(t *testing.T, dir string, identity *mtls.Identity) mesh.CertificateFiles {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(identity.Certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	files := mesh.CertificateFiles{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	for path, block := range map[string]*pem.Block{
		files.Cert: {Type: "CERTIFICATE", Bytes: identity.Certificate.Certificate[0]}, files.Key: {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func TestGatewayCertificateFiles(t *testing.T) {
	s := newShop(t, []string{"a"}, func(http.ResponseWriter, *http.Request) {})
	dir := t.TempDir()
	public := newAuthority(t)
	first, second := public.issue(id.Service, "www", time.Hour), public.issue(id.Service, "www", time.Hour)
	files := writePair(t, dir, first)
	in := gatewayPort(8080, mesh.HTTP, mesh.Route{Match: mesh.Match{Prefix: "/"}, To: to("a")})
	in.TLS, in.Certificate = mesh.Strict, &files
	s.plan.Inbound = []mesh.Inbound{in}
	s.gate.apply(s.plan)
	config := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "www", ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	config.RootCAs.AddCert(public.root)
	serial := func() string {
		c := tlsDial(t, s.gate.inboundAddress(8080), config)
		send(t, c, getRequest)
		if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "HTTP/1.1 200 OK\r\n" {
			t.Fatalf("%q, %v", line, err)
		}
		return mtls.Serial(c.ConnectionState().PeerCertificates[0])
	}
	if got := serial(); got != mtls.Serial(first.Certificate.Leaf) {
		t.Errorf("serial %s", got)
	}
	writePair(t, dir, second)
	eventually(t, "the new certificate is served, and no session of the old one resumed", func() bool { return serial() == mtls.Serial(second.Certificate.Leaf) })
	if err := os.WriteFile(files.Key, []byte("half a f"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the broken files are noticed", func() bool {
		_ = serial()
		return strings.Contains(s.gate.log.String(), "certificate files changed and cannot be used")
	})
	if got := serial(); got != mtls.Serial(second.Certificate.Leaf) {
		t.Errorf("with broken files: serial %s", got)
	}
	bad := *s.plan
	bad.Inbound = []mesh.Inbound{in}
	bad.Inbound[0].Certificate = &mesh.CertificateFiles{Cert: "/nowhere", Key: "/nowhere"}
	if err := s.gate.Apply(&bad); err == nil || !strings.Contains(err.Error(), "/nowhere") {
		t.Errorf("files that are not there: %v", err)
	}
	if got := serial(); got != mtls.Serial(second.Certificate.Leaf) {
		t.Errorf("after a plan that cannot be carried out: serial %s", got)
	}
}
