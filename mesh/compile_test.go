package mesh_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/mesh"
)

// plan compiles one workload.
func plan(t testing.TB, text, workload string) *mesh.Plan {
	t.Helper()
	compiled, err := parse(t, text).Compile(workload)
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

// TestRules proves who is admitted to a port, for every mode and with and without words. One service
// calls the port, one gateway routes to it, one service does neither.
func TestRules(t *testing.T) {
	const (
		caller = "spiffe://m.internal/service/caller"
		gate   = "spiffe://m.internal/gateway/gate"
		other  = "spiffe://m.internal/service/other"
	)
	from := func(who ...string) []mesh.Rule { return []mesh.Rule{{From: who}} }
	tests := []struct {
		port string
		want []mesh.Rule
	}{
		// The graph is the policy.
		{"", from(caller, gate)},
		{"tls: strict", from(caller, gate)},
		{"tls: permissive", from(caller, gate, "anonymous")},
		{"clientAuth: optional", from(caller, gate, "anonymous")},
		{"tls: permissive, clientAuth: optional", from(caller, gate, "anonymous")},
		{"clientAuth: none", from("anonymous")},
		{"tls: permissive, clientAuth: none", from("anonymous")},
		{"tls: off", from("anonymous")},
		{"tls: off, clientAuth: none", from("anonymous")},
		// The words are.
		{"allow: []", []mesh.Rule{}},
		{"tls: permissive, allow: []", []mesh.Rule{}},
		{"clientAuth: none, allow: []", []mesh.Rule{}},
		{"tls: off, allow: []", []mesh.Rule{}},
		{"allow: [{from: other}]", from(other)},
		{"tls: permissive, allow: [{from: [other, gate]}]", from(other, gate)},
		{"tls: permissive, allow: [{from: any}]", from("any")},
		{"clientAuth: none, allow: [{from: anonymous}]", from("anonymous")},
		{"allow: [{from: spiffe://m.internal/service/other}]", from(other)},
		{"allow: [{from: other, methods: [GET], paths: [/a/*]}, {from: any}]", []mesh.Rule{
			{From: []string{other}, Methods: []string{"GET"}, Paths: []string{"/a/*"}}, {From: []string{"any"}},
		}},
	}
	for _, test := range tests {
		t.Run(test.port, func(t *testing.T) {
			text := fmt.Sprintf(`
mesh: m
services:
  called: {ports: [{port: 80, protocol: http, %s}, {port: 81, protocol: http}]}
  caller: {calls: [{service: called, port: 80}]}
  other: {calls: [{service: called, port: 81}]}
gateways:
  gate: {listen: [{port: 80, protocol: http}], routes: [{to: [{service: called, port: 80, weight: 0}, {service: called, port: 81}]}]}
`, test.port)
			in := plan(t, text, "called").Inbound[0]
			if diff := cmp.Diff(test.want, in.Rules); diff != "" {
				t.Errorf("rules (-want +got):\n%s", diff)
			}
		})
	}
}

// TestInherit proves what a port takes from its service and from the mesh, and what it replaces.
func TestInherit(t *testing.T) {
	p := plan(t, `
mesh: m
minTLS: "1.3"
tlsGroups: [X25519MLKEM768]
services:
  a:
    tls: permissive
    clientAuth: optional
    allow: [{from: any}]
    ports:
      - {port: 1, protocol: http}
      - {port: 2, protocol: http, tls: strict, clientAuth: require, minTLS: "1.2", tlsGroups: [x25519, secp256r1], allow: [{from: a}], app: 20}
      - {port: 3, protocol: http, tls: off, allow: []}
`, "a")
	a := "spiffe://m.internal/service/a"
	hybrid := []mesh.TLSGroup{mesh.X25519MLKEM768}
	want := []mesh.Inbound{
		{Name: "0.0.0.0_1", Port: 1, Protocol: mesh.HTTP, App: 1, TLS: mesh.Permissive, ClientAuth: mesh.Optional, MinTLS: mesh.TLS13, TLSGroups: hybrid, Rules: []mesh.Rule{{From: []string{"any"}}}},
		{Name: "0.0.0.0_2", Port: 2, Protocol: mesh.HTTP, App: 20, TLS: mesh.Strict, ClientAuth: mesh.Require, MinTLS: mesh.TLS12, TLSGroups: []mesh.TLSGroup{mesh.X25519, mesh.Secp256r1}, Rules: []mesh.Rule{{From: []string{a}}}},
		{Name: "0.0.0.0_3", Port: 3, Protocol: mesh.HTTP, App: 3, TLS: mesh.Off, ClientAuth: mesh.None, MinTLS: mesh.TLS13, TLSGroups: hybrid, Rules: []mesh.Rule{}},
	}
	if diff := cmp.Diff(want, p.Inbound); diff != "" {
		t.Errorf("inbound (-want +got):\n%s", diff)
	}
}

// TestCertificates proves what a workload's certificate is like, by what the mesh and the workload say.
func TestCertificates(t *testing.T) {
	const hour = mesh.Duration(time.Hour)
	tests := []struct {
		mesh, service string
		want          mesh.Certificates
	}{
		{"", "", mesh.Certificates{TTL: 168 * hour, RenewAfter: 120 * hour, Key: mesh.ECDSAP256}},
		{"ttl: 7h", "", mesh.Certificates{TTL: 7 * hour, RenewAfter: 5 * hour, Key: mesh.ECDSAP256}},
		{"ttl: 7h, renewAfter: 1h, key: rsa-4096", "", mesh.Certificates{TTL: 7 * hour, RenewAfter: hour, Key: mesh.RSA4096}},
		{"ttl: 7h, renewAfter: 1h", "key: ed25519", mesh.Certificates{TTL: 7 * hour, RenewAfter: hour, Key: mesh.Ed25519}},
		{"ttl: 7h, renewAfter: 6h", "ttl: 14h", mesh.Certificates{TTL: 14 * hour, RenewAfter: 10 * hour, Key: mesh.ECDSAP256}},
		{"ttl: 14h", "renewAfter: 13h", mesh.Certificates{TTL: 14 * hour, RenewAfter: 13 * hour, Key: mesh.ECDSAP256}},
		{"renewAfter: 1h", "", mesh.Certificates{TTL: 168 * hour, RenewAfter: hour, Key: mesh.ECDSAP256}},
		{"", "ttl: 1s", mesh.Certificates{TTL: mesh.Duration(time.Second), RenewAfter: mesh.Duration(714 * time.Millisecond), Key: mesh.ECDSAP256}},
	}
	for _, test := range tests {
		t.Run(test.mesh+"/"+test.service, func(t *testing.T) {
			text := fmt.Sprintf("mesh: m\ncertificates: {%s}\nservices: {a: {certificates: {%s}, names: [a.example]}}\n", test.mesh, test.service)
			got := plan(t, text, "a").Certificate
			want := mesh.CertificatePlan{
				Identity: got.Identity, DNSNames: []string{"a", "a.m.internal", "a.example"},
				TTL: test.want.TTL, RenewAfter: test.want.RenewAfter, Key: test.want.Key,
			}
			if !reflect.DeepEqual(got, want) || got.Identity.String() != "spiffe://m.internal/service/a" {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

// TestUpstreams proves what a caller knows of what it calls.
func TestUpstreams(t *testing.T) {
	p := plan(t, `
mesh: m
services:
  a:
    calls: [{service: z, port: 1}, {service: b}, {service: z, port: 2, listen: 20}]
  b: {tls: off, ports: [{port: 9, protocol: tcp}]}
  z: {ports: [{port: 1, protocol: grpc, minTLS: "1.3", tlsGroups: [secp256r1]}, {port: 2, protocol: http2, tls: permissive}]}
`, "a")
	outbound := []mesh.Outbound{
		{Name: "127.0.0.1_1", Listen: 1, Protocol: mesh.GRPC, Upstream: "z_1"},
		{Name: "127.0.0.1_9", Listen: 9, Protocol: mesh.TCP, Upstream: "b_9"},
		{Name: "127.0.0.1_20", Listen: 20, Protocol: mesh.HTTP2, Upstream: "z_2"},
	}
	if diff := cmp.Diff(outbound, p.Outbound); diff != "" {
		t.Errorf("outbound (-want +got):\n%s", diff)
	}
	var got []string
	for _, u := range p.Upstreams {
		got = append(got, fmt.Sprint(u.Name, u.Service, u.Port, u.Protocol, u.Identity, u.ServerName, u.TLS, u.MinTLS, u.TLSGroups, u.Endpoints))
	}
	want := []string{
		fmt.Sprint("b_9", "b", 9, "tcp", "spiffe://m.internal/service/b", "b.m.internal", false, "1.2", mesh.DefaultTLSGroups(), " []"),
		fmt.Sprint("z_1", "z", 1, "grpc", "spiffe://m.internal/service/z", "z.m.internal", true, "1.3", "[secp256r1] []"),
		fmt.Sprint("z_2", "z", 2, "http2", "spiffe://m.internal/service/z", "z.m.internal", true, "1.2", mesh.DefaultTLSGroups(), " []"),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("upstreams (-want +got):\n%s", diff)
	}
}

// TestGatewayPlan proves which listener gets which route, and what it shows to the outside.
func TestGatewayPlan(t *testing.T) {
	p := plan(t, `
mesh: m
services:
  a: {ports: [{port: 1, protocol: http}, {port: 2, protocol: tcp}]}
gateways:
  g:
    listen:
      - {port: 80, protocol: http}
      - {port: 443, protocol: http2, minTLS: "1.3", tlsGroups: [x25519], certificate: {cert: g.pem, key: /keys/g.pem}}
      - {port: 5, protocol: tcp}
    routes:
      - {match: {listener: 443, prefix: /a}, to: [{service: a, port: 1}]}
      - {match: {listener: 5}, to: [{service: a, port: 2}]}
      - {to: [{service: a, port: 1, weight: 3}], timeout: {request: 1s}}
`, "g")
	anonymous := []mesh.Rule{{From: []string{"anonymous"}}}
	everything := mesh.Route{To: []mesh.Destination{{Upstream: "a_1", Weight: 3}}, RequestTimeout: mesh.Duration(time.Second)}
	want := []mesh.Inbound{
		{Name: "0.0.0.0_80", Port: 80, Protocol: mesh.HTTP, TLS: mesh.Off, ClientAuth: mesh.None, MinTLS: mesh.TLS12, TLSGroups: mesh.DefaultTLSGroups(), Rules: anonymous, Routes: []mesh.Route{everything}},
		{
			Name: "0.0.0.0_443", Port: 443, Protocol: mesh.HTTP2, TLS: mesh.Strict, ClientAuth: mesh.None, MinTLS: mesh.TLS13, TLSGroups: []mesh.TLSGroup{mesh.X25519}, Rules: anonymous,
			Certificate: &mesh.CertificateFiles{Cert: "/spec/g.pem", Key: "/keys/g.pem"},
			Routes:      []mesh.Route{{Match: mesh.Match{Prefix: "/a"}, To: []mesh.Destination{{Upstream: "a_1", Weight: 1}}}, everything},
		},
		{
			Name: "0.0.0.0_5", Port: 5, Protocol: mesh.TCP, TLS: mesh.Off, ClientAuth: mesh.None, MinTLS: mesh.TLS12, TLSGroups: mesh.DefaultTLSGroups(), Rules: anonymous,
			Routes: []mesh.Route{{To: []mesh.Destination{{Upstream: "a_2", Weight: 1}}}},
		},
	}
	if diff := cmp.Diff(want, p.Inbound); diff != "" {
		t.Errorf("inbound (-want +got):\n%s", diff)
	}
	if len(p.Outbound) != 0 || len(p.Upstreams) != 2 || p.Workload.Identity.String() != "spiffe://m.internal/gateway/g" {
		t.Errorf("got %+v", p)
	}
}

// TestCompileTwice proves that equal specifications give equal bytes, and that JSON loses nothing.
func TestCompileTwice(t *testing.T) {
	for name, a := range corpus(t, "good", 8) {
		first, err := mesh.ParseDocuments(a.documents)
		if err != nil {
			t.Fatal(err)
		}
		second, err := mesh.ParseDocuments(a.documents)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range first.Workloads() {
			one, err := first.Compile(w.Name)
			if err != nil {
				t.Fatal(err)
			}
			two, err := second.Compile(w.Name)
			if err != nil {
				t.Fatal(err)
			}
			text, err := json.Marshal(one)
			if err != nil {
				t.Fatal(err)
			}
			again, err := json.Marshal(two)
			if err != nil || string(text) != string(again) {
				t.Errorf("%s: %s compiles to two Plans (%v)", name, w.Name, err)
			}
			var read mesh.Plan
			if err := json.Unmarshal(text, &read); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(one.Certificate.Identity.String(), read.Certificate.Identity.String()); diff != "" {
				t.Error(diff)
			}
			if !reflect.DeepEqual(one, &read) {
				t.Errorf("%s: %s is not what JSON brings back", name, w.Name)
			}
		}
	}
}

func TestCompileUnknown(t *testing.T) {
	_, err := parse(t, "mesh: m\nservices: {front: {}}").Compile("fornt")
	if !errors.Is(err, mesh.ErrNoWorkload) || !strings.Contains(err.Error(), `did you mean "front"?`) {
		t.Errorf("got %v", err)
	}
}

// TestRun proves where an application is started, and with what.
func TestRun(t *testing.T) {
	for dir, want := range map[string]string{"": "/spec", ", dir: app": "/spec/app", ", dir: ../app": "/app", ", dir: /app": "/app"} {
		spec := parse(t, fmt.Sprintf("mesh: m\nservices: {a: {run: {command: [x, 1.50, true, \"\"], env: {A: 007}%s}}}", dir))
		got := spec.Services["a"].Run
		if diff := cmp.Diff(&mesh.Run{Command: []string{"x", "1.50", "true", ""}, Env: map[string]string{"A": "007"}, Dir: want, DirText: strings.TrimPrefix(dir, ", dir: ")}, got); diff != "" {
			t.Errorf("run (-want +got):\n%s", diff)
		}
	}
}
