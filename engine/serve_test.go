package engine_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"countersign.dev/id"
	"countersign.dev/mesh"
)

// world is a mesh in which front calls back, both behind the same program.
const world = `
mesh: shop
services:
  front:
    calls:
      - {service: back, port: 9080, listen: 9180}
      - {service: back, port: 9090, listen: 9190}
      - {service: back, port: 7000, listen: 7100}
  back:
    ports:
      - {port: 9080, protocol: http, app: 18080, allow: [{from: front, paths: [/seen, "/below/*"], methods: [GET, POST]}, {from: front, paths: [/ws]}]}
      - {port: 9081, protocol: http, app: 18080, tls: permissive, allow: [{from: [front, anonymous]}]}
      - {port: 9082, protocol: http, app: 18080, clientAuth: optional, allow: [{from: any, methods: [POST]}, {from: anonymous, methods: [GET]}]}
      - {port: 9090, protocol: grpc, app: 19090, allow: [{from: front}]}
      - {port: 7000, protocol: tcp, app: 17000, allow: [{from: front}]}
      - {port: 7001, protocol: tcp, app: 17000, tls: permissive, allow: [{from: [front, anonymous]}]}
  other: {calls: [{service: back, port: 9081, listen: 9999}]}
gateways:
  edge:
    listen: [{port: 8080, protocol: http}, {port: 7070, protocol: tcp}]
    routes:
      - {match: {listener: 8080, path: /seen, headers: {x-to: here}}, to: [{service: back, port: 9080}]}
      - {match: {listener: 8080, prefix: /split, methods: [GET]}, to: [{service: back, port: 9081, weight: 1}, {service: back, port: 9082, weight: 3}]}
      - {match: {listener: 8080, prefix: /post, methods: [POST]}, to: [{service: back, port: 9082}]}
      - {match: {listener: 8080, host: shop.example}, to: [{service: back, port: 9081}]}
      - {match: {listener: 7070}, to: [{service: back, port: 7000}]}
`

// place is a running world.
type place struct {
	ca                *authority
	back, front, edge string // addresses
	front1, other     id.ID
	backLog           *output
}

func (f foreign) world(t *testing.T) *place {
	t.Helper()
	f.path(t)
	spec, ca := parse(t, world), newAuthority(t)
	inbound := []int{9080, 9081, 9082, 9090, 7000, 7001, 18080, 19090, 17000}
	back, front, edge := freeAddress(t, inbound...), freeAddress(t, 9180, 9190, 7100), freeAddress(t, 8080, 7070)
	serveApplication(t, back)
	p := &place{ca: ca, back: back.String(), front: front.String(), edge: edge.String(), front1: member(t, "front"), other: member(t, "other")}
	for name, address := range map[string]netip.Addr{"back": back, "front": front, "edge": edge} {
		plan, dir := compile(t, spec, name), t.TempDir()
		ca.write(t, dir, plan.Workload.Identity)
		for i, u := range plan.Upstreams {
			plan.Upstreams[i].Endpoints = []mesh.Endpoint{{Instance: "back-1", Address: netip.AddrPortFrom(back, uint16(u.Port))}}
		}
		o := options(dir)
		o.Address, o.Loopback, o.CRL = address, address, true
		out := f.start(t, dir, plan, o)
		if name == "back" {
			p.backLog = out
		}
	}
	return p
}

func member(t testing.TB, name string) id.ID {
	t.Helper()
	who, err := id.New("shop.internal", id.Service, name)
	if err != nil {
		t.Fatal(err)
	}
	return who
}

// ask makes one request with headers that lie, and gives the status and what the application saw.
func ask(t *testing.T, config *tls.Config, method, url, body string, header ...string) (int, map[string][]string, error) {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: config != nil && slices.Contains(config.NextProtos, "h2")}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			request.Host = header[i+1]
			continue
		}
		request.Header[header[i]] = append(request.Header[header[i]], header[i+1])
	}
	response, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return response.StatusCode, nil, err
	}
	saw := map[string][]string{}
	if response.StatusCode == http.StatusOK {
		if err := json.Unmarshal(text, &saw); err != nil {
			t.Fatalf("%s: %v: %s", url, err, text)
		}
	}
	return response.StatusCode, saw, nil
}

const lie = "CN=forged"

var forged = []string{
	"X-Client-Cert", lie, "x-client-cert", lie, "X_Client_Cert", lie, "X.Client.Cert", lie, "X-Client_Cert", lie,
	"X-Forwarded-Client-Cert", lie, "X_Forwarded-Client.Cert", lie, "X_Forwarded_For", lie, "X-Honest", "yes",
}

// truthful checks what the application saw.
func truthful(t *testing.T, saw map[string][]string, subject string) {
	t.Helper()
	text, err := json.Marshal(saw)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "forged") || len(saw["X-Honest"]) != 1 {
		t.Errorf("the application saw %s", text)
	}
	var want []string
	if subject != "" {
		want = []string{subject}
	}
	if !slices.Equal(saw["X-Client-Cert"], want) {
		t.Errorf("X-Client-Cert %q, want %q", saw["X-Client-Cert"], want)
	}
	forwarded := saw["X-Forwarded-Client-Cert"]
	if subject == "" && len(forwarded) > 0 || subject != "" &&
		(len(forwarded) != 1 || !strings.HasPrefix(forwarded[0], "By=spiffe://shop.internal/service/back;") || !strings.HasSuffix(forwarded[0], `Subject="`+subject+`"`)) {
		t.Errorf("X-Forwarded-Client-Cert %q", forwarded)
	}
}

const frontDN = "CN=front,OU=service,O=shop.internal"

// TestServe lets both programs serve for real.
func TestServe(t *testing.T) {
	for _, f := range engines {
		t.Run(f.name, func(t *testing.T) {
			p := f.world(t)
			t.Run("requests", p.requests)
			t.Run("strangers", p.strangers)
			t.Run("modes", p.modes)
			t.Run("grpc", p.grpc)
			t.Run("bytes", p.bytes)
			t.Run("websocket", p.websocket)
			t.Run("gateway", p.gateway)
			t.Run("tunnels", p.tunnels)
			t.Run("switching", func(t *testing.T) { p.switching(t, f.name) })
			t.Run("resumption", p.resumption)
			t.Run("trailers", func(t *testing.T) { p.trailers(t, f.name) })
			t.Run("log", func(t *testing.T) { p.log(t, f.name) })
		})
	}
}

func (p *place) tls(t *testing.T, who id.ID, protos ...string) *tls.Config {
	return p.ca.client(t, who, "back.shop.internal", protos...)
}

func (p *place) requests(t *testing.T) {
	for _, protos := range [][]string{{"http/1.1"}, {"h2"}} {
		front, other := p.tls(t, p.front1, protos...), p.tls(t, p.other, protos...)
		url := "https://" + p.back + ":9080"
		status, saw, err := ask(t, front, "POST", url+"/seen?a=b", "hello", append(forged, "X-Forwarded-For", "192.0.2.1", "Host", "shop.example:81")...)
		if err != nil || status != 200 {
			t.Fatalf("%v: %d, %v", protos, status, err)
		}
		truthful(t, saw, frontDN)
		if got := strings.Join(saw["X-Forwarded-For"], ", "); !strings.HasPrefix(got, "192.0.2.1, 127.") {
			t.Errorf("X-Forwarded-For %q", got)
		}
		if saw["host"][0] != "shop.example:81" || saw["body"][0] != "5" {
			t.Errorf("saw %v", saw)
		}
		for _, test := range []struct {
			who          *tls.Config
			method, path string
			want         int
		}{
			{front, "GET", "/below/x", 200},
			{front, "GET", "/below/" + strings.Repeat("x", 4000), 200},
			{front, "GET", "/below/%C3%A9", 200},
			{front, "GET", "/%73een", 200},
			{front, "GET", "/below", 403},
			{front, "GET", "/below/", 403},
			{front, "GET", "/below/../seen", 403},
			{front, "GET", "/below/%2e%2e/seen", 403},
			{front, "GET", "//seen", 403},
			{front, "GET", "/seen;x", 403},
			{front, "GET", "/other", 403},
			{front, "DELETE", "/seen", 403},
			{front, "DELETE", "/ws", 200},
			{other, "GET", "/seen", 403},
		} {
			if status, _, err := ask(t, test.who, test.method, url+test.path, ""); err != nil || status != test.want {
				t.Errorf("%v %s %.40s: %d, %v, want %d", protos, test.method, test.path, status, err, test.want)
			}
		}
	}
	// Through both sidecars.
	status, saw, err := ask(t, nil, "GET", "http://"+p.front+":9180/seen", "", forged...)
	if err != nil || status != 200 {
		t.Fatalf("through both: %d, %v", status, err)
	}
	truthful(t, saw, frontDN)
}

// strangers get no answer: none without a certificate, with one of another CA, or with words that are no request.
func (p *place) strangers(t *testing.T) {
	stranger := newAuthority(t)
	bad := stranger.client(t, p.front1, "back.shop.internal")
	bad.RootCAs = p.tls(t, p.front1).RootCAs
	for name, config := range map[string]*tls.Config{"nobody": p.tls(t, id.ID{}), "another CA": bad} {
		for _, port := range []string{"9080", "9090", "7000"} {
			for _, words := range []string{"GET /seen HTTP/1.1\r\nHost: x\r\n\r\n", "what?\r\n\r\n"} {
				if answer := speak(t, config, p.back+":"+port, words); answer != "" {
					t.Errorf("%s on %s is answered %q", name, port, answer)
				}
			}
		}
	}
	if answer := speak(t, nil, p.back+":9080", "GET /seen HTTP/1.1\r\nHost: x\r\n\r\n"); answer != "" {
		t.Errorf("plaintext is answered %q", answer)
	}
	if status, _, err := ask(t, bad, "GET", "https://"+p.back+":9082/seen", ""); err == nil {
		t.Errorf("a bad certificate where one is optional: %d", status)
	}
}

// speak says words and gives all that comes back.
func speak(t *testing.T, config *tls.Config, address, words string) string {
	t.Helper()
	raw, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(20 * time.Second))
	conn := raw
	if config != nil {
		conn = tls.Client(raw, config)
	}
	if _, err := io.WriteString(conn, words); err != nil {
		return ""
	}
	answer, err := io.ReadAll(conn)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("%s is not closed", address)
	}
	// What NGINX says on a port for HTTP/2 before it has looked at anything are its settings; this is no such client.
	return string(answer)
}

func (p *place) modes(t *testing.T) {
	status, saw, err := ask(t, nil, "GET", "http://"+p.back+":9081/x", "", append(forged, "X-Forwarded-For", "192.0.2.1")...)
	if err != nil || status != 200 {
		t.Fatalf("permissive, plaintext: %d, %v", status, err)
	}
	truthful(t, saw, "")
	if got := strings.Join(saw["X-Forwarded-For"], ", "); !strings.HasPrefix(got, "127.") || strings.Contains(got, "192.0.2.1") {
		t.Errorf("X-Forwarded-For of an anonymous caller: %q", got)
	}
	status, saw, err = ask(t, p.tls(t, p.front1), "GET", "https://"+p.back+":9081/x", "", forged...)
	if err != nil || status != 200 {
		t.Fatalf("permissive, TLS: %d, %v", status, err)
	}
	truthful(t, saw, frontDN)
	if status, _, err := ask(t, p.tls(t, p.other), "GET", "https://"+p.back+":9081/x", ""); err != nil || status != 403 {
		t.Errorf("permissive, another: %d, %v", status, err)
	}
	for name, test := range map[string]struct {
		who    id.ID
		method string
		want   int
	}{
		"anonymous reads": {id.ID{}, "GET", 200}, "anonymous writes": {id.ID{}, "POST", 403},
		"anybody writes": {p.other, "POST", 200}, "anybody reads": {p.other, "GET", 403},
	} {
		if status, _, err := ask(t, p.tls(t, test.who), test.method, "https://"+p.back+":9082/x", ""); err != nil || status != test.want {
			t.Errorf("%s: %d, %v, want %d", name, status, err, test.want)
		}
	}
}

func (p *place) grpc(t *testing.T) {
	call := func(address string, creds credentials.TransportCredentials) (string, error) {
		conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(creds))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		out := new(wrapperspb.StringValue)
		ctx, stop := context.WithTimeout(t.Context(), 20*time.Second)
		defer stop()
		err = conn.Invoke(metadata.AppendToOutgoingContext(ctx, "x-client-cert", lie), "/test.Echo/Unary", wrapperspb.String("hello"), out)
		return out.GetValue(), err
	}
	if got, err := call(p.front+":9190", insecure.NewCredentials()); err != nil || got != "hello by "+frontDN {
		t.Errorf("through both: %q, %v", got, err)
	}
	if got, err := call(p.back+":9090", credentials.NewTLS(p.tls(t, p.front1))); err != nil || got != "hello by "+frontDN {
		t.Errorf("with TLS: %q, %v", got, err)
	}
	if got, err := call(p.back+":9090", credentials.NewTLS(p.tls(t, p.other))); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "no rule admits the caller") {
		t.Errorf("another: %q, %v", got, err)
	}
	if got, err := call(p.back+":9090", credentials.NewTLS(p.tls(t, id.ID{}))); status.Code(err) != codes.Unavailable && status.Code(err) != codes.Internal {
		t.Errorf("nobody: %q, %v", got, err)
	}
}

// echoed says a line and hears it.
func echoed(t *testing.T, conn net.Conn) error {
	t.Helper()
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && line != "hello\n" {
		return fmt.Errorf("heard %q", line)
	}
	return err
}

func (p *place) bytes(t *testing.T) {
	dial := func(address string, config *tls.Config) net.Conn {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if config != nil {
			return tls.Client(conn, config)
		}
		return conn
	}
	for name, conn := range map[string]net.Conn{
		"through both": dial(p.front+":7100", nil), "with TLS": dial(p.back+":7000", p.tls(t, p.front1)), "through the gateway": dial(p.edge+":7070", nil),
		"permissive, plaintext": dial(p.back+":7001", nil), "permissive, TLS": dial(p.back+":7001", p.tls(t, p.front1)),
	} {
		err := echoed(t, conn)
		if name == "through the gateway" { // which nobody has allowed
			if err == nil {
				t.Errorf("%s: passed", name)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, port := range []string{"7000", "7001"} {
		if err := echoed(t, dial(p.back+":"+port, p.tls(t, p.other))); err == nil {
			t.Errorf("another reaches %s", port)
		}
	}
}

func (p *place) gateway(t *testing.T) {
	url := "http://" + p.edge + ":8080"
	for _, test := range []struct {
		method, path string
		header       []string
		want         int
	}{
		{"GET", "/seen", []string{"X-To", "here"}, 403}, // back admits only front there
		{"GET", "/seen", []string{"X-To", "Here"}, 404},
		{"GET", "/nothing", nil, 404},
		{"POST", "/split/x", nil, 404},
		{"GET", "/split/x", nil, 403},
		{"GET", "/post/x", nil, 404},
		{"POST", "/postx", nil, 404},
		{"GET", "/a/../seen", nil, 400},
		{"GET", "/x", []string{"Host", "SHOP.example:8080"}, 403}, // edge is not allowed on 9081, with a certificate
	} {
		if status, _, err := ask(t, nil, test.method, url+test.path, "", test.header...); err != nil || status != test.want {
			t.Errorf("%s %s %v: %d, %v, want %d", test.method, test.path, test.header, status, err, test.want)
		}
	}
	status, saw, err := ask(t, nil, "POST", url+"/post/x", "hello", append(forged, "X-Forwarded-For", "192.0.2.1")...)
	if err != nil || status != 200 {
		t.Fatalf("through the gateway: %d, %v", status, err)
	}
	truthful(t, saw, "CN=edge,OU=gateway,O=shop.internal")
	if got := strings.Join(saw["X-Forwarded-For"], ", "); strings.Contains(got, "192.0.2.1") || strings.Count(got, "127.") != 2 {
		t.Errorf("X-Forwarded-For through the gateway: %q", got)
	}
}

// TestWrongServer asserts that a peer that has a good certificate of somebody else is not spoken to.
func TestWrongServer(t *testing.T) {
	for _, f := range engines {
		t.Run(f.name, func(t *testing.T) {
			f.path(t)
			spec, ca, address, dir := parse(t, world), newAuthority(t), freeAddress(t, 9080, 9180, 9190, 7100), t.TempDir()
			stranger := newAuthority(t)
			for name, test := range map[string]struct {
				by   *authority
				who  id.ID
				want int
			}{"the right one": {ca, member(t, "back"), 200}, "another": {ca, member(t, "other"), 0}, "of another CA": {stranger, member(t, "back"), 0}} {
				t.Run(name, func(t *testing.T) {
					chain, key := test.by.Pair(t, test.who)
					pair, err := tls.X509KeyPair(chain, key)
					if err != nil {
						t.Fatal(err)
					}
					var sni atomic.Value
					listener, err := tls.Listen("tcp", address.String()+":9080", &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, ClientAuth: tls.RequireAnyClientCert, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
						sni.Store(h.ServerName)
						return nil, nil //nolint:nilnil // crypto/tls wants it: as it is
					}})
					if err != nil {
						t.Fatal(err)
					}
					server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(application), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
					go func() { _ = server.Serve(listener) }()
					defer server.Close()
					plan := compile(t, spec, "front")
					ca.write(t, dir, plan.Workload.Identity)
					for i := range plan.Upstreams {
						plan.Upstreams[i].Endpoints = []mesh.Endpoint{{Instance: "1", Address: netip.AddrPortFrom(address, 9080)}}
					}
					o := options(dir)
					o.Address, o.Loopback = address, address
					f.start(t, dir, plan, o)
					status, _, err := ask(t, nil, "GET", "http://"+address.String()+":9180/seen", "")
					if err != nil || test.want != 0 && status != test.want || test.want == 0 && status != 502 && status != 503 {
						t.Errorf("%d, %v", status, err)
					}
					if sni.Load() != "back.shop.internal" {
						t.Errorf("the server was asked for %q", sni.Load())
					}
				})
			}
		})
	}
}
