package mesh_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/mesh"
)

const diffed = `
mesh: m
services:
  a:
    ports:
      - {port: 80, protocol: http}
      - {port: 81, protocol: http, allow: [{from: b}, {from: g, methods: [GET], paths: [/x, /y/*]}]}
    names: [a.example]
    instances: 2
    run: {command: [x], env: {SECRET: one}}
  b:
    calls: [{service: a, port: 80}]
gateways:
  g:
    listen: [{port: 8080, protocol: http}, {port: 443, protocol: http2, certificate: {cert: c.pem, key: k.pem}}]
    routes:
      - {match: {listener: 8080, path: /p, methods: [GET, HEAD], headers: {x-a: 1}, host: h}, to: [{service: a, port: 80}], timeout: {request: 15s}}
      - {match: {prefix: /q}, to: [{service: a, port: 80, weight: 9}, {service: a, port: 81}]}
      - {to: [{service: a, port: 81}]}
`

func TestDiff(t *testing.T) {
	tests := map[string]struct {
		after string
		want  []string
		// fixed is what SameTopology says: what a running mesh cannot follow.
		fixed []string
	}{
		"nothing": {diffed, nil, nil},
		"other words for the same": {
			`
trustDomain: m.internal
mesh: m
minTLS: "1.2"
tlsGroups: [X25519MLKEM768, x25519, secp256r1, secp384r1]
certificates: {ttl: 168h, renewAfter: 120h}
gateways:
  g:
    listen: [{port: 443, protocol: http2, certificate: {cert: c.pem, key: k.pem}}, {port: 8080, protocol: http}]
    routes:
      - {match: {listener: 8080, path: /p, methods: [GET, HEAD], headers: {x-a: "1"}, host: h}, to: [{service: a, port: 80}], timeout: {request: 15000ms}}
      - {match: {prefix: /q}, to: [{service: a, port: 80, weight: 9}, {service: a, port: 81, weight: 1}]}
      - {to: [{service: a, port: 81}]}
services:
  b:
    calls: [{service: a, port: 80, listen: 80}]
  a:
    tls: strict
    ports:
      - {port: 80, protocol: http, app: 80}
      - {port: 81, protocol: http, clientAuth: require, allow: [{from: [b]}, {from: g, methods: [GET], paths: [/x, /y/*]}]}
    names: [a.example]
    instances: 2
    run: {command: [x], env: {SECRET: one}}
`, nil, nil,
		},
		"policy, TLS and routing": {
			`
mesh: m
minTLS: "1.3"
tlsGroups: [X25519MLKEM768, x25519]
certificates: {ttl: 1h, renewAfter: 20m, key: ed25519}
services:
  a:
    ports:
      - {port: 80, protocol: http, tls: permissive, clientAuth: optional, allow: []}
      - {port: 81, protocol: http, minTLS: "1.2", tlsGroups: [secp384r1]}
    names: [b.example]
    instances: 2
    run: {command: [x], env: {SECRET: one}}
  b:
    calls: [{service: a, port: 81}]
    certificates: {key: ecdsa-p384}
gateways:
  g:
    listen: [{port: 8080, protocol: http}, {port: 443, protocol: http2}]
    routes:
      - {to: [{service: a, port: 81}]}
      - {match: {prefix: /q}, to: [{service: a, port: 80, weight: 9}, {service: a, port: 81}]}
`, []string{
				"~ minTLS 1.2 -> 1.3",
				"~ tlsGroups X25519MLKEM768, x25519, secp256r1, secp384r1 -> X25519MLKEM768, x25519",
				"~ certificates.ttl 168h -> 1h",
				"~ certificates.renewAfter 120h -> 20m",
				"~ certificates.key ecdsa-p256 -> ed25519",
				"~ service a: certificates.ttl 168h -> 1h",
				"~ service a: certificates.renewAfter 120h -> 20m",
				"~ service a: certificates.key ecdsa-p256 -> ed25519",
				"- service a: name a.example",
				"+ service a: name b.example",
				"~ service a: ports[80].tls strict -> permissive",
				"~ service a: ports[80].clientAuth require -> optional",
				"~ service a: ports[80].minTLS 1.2 -> 1.3",
				"~ service a: ports[80].tlsGroups X25519MLKEM768, x25519, secp256r1, secp384r1 -> X25519MLKEM768, x25519",
				"~ service a: ports[80].allow the graph -> nobody",
				"~ service a: ports[81].tlsGroups X25519MLKEM768, x25519, secp256r1, secp384r1 -> secp384r1",
				"~ service a: ports[81].allow from b, from g GET /x|/y/* -> the graph",
				"~ service b: certificates.ttl 168h -> 1h",
				"~ service b: certificates.renewAfter 120h -> 20m",
				"~ service b: certificates.key ecdsa-p256 -> ecdsa-p384",
				"- service b: call a:80 on 127.0.0.1:80",
				"+ service b: call a:81 on 127.0.0.1:81",
				"~ gateway g: certificates.ttl 168h -> 1h",
				"~ gateway g: certificates.renewAfter 120h -> 20m",
				"~ gateway g: certificates.key ecdsa-p256 -> ed25519",
				"- gateway g: listener 443 http2 with TLS 1.2 by X25519MLKEM768, x25519, secp256r1, secp384r1 from /spec/c.pem and /spec/k.pem",
				"+ gateway g: listener 443 http2",
				"- gateway g: route listener 8080 host h GET|HEAD /p x-a: 1 -> a:80*1 within 15s",
			}, nil,
		},
		"a call moves": {
			strings.Replace(diffed, "calls: [{service: a, port: 80}]", "calls: [{service: a, port: 80, listen: 90}, {service: a, port: 81}]", 1), []string{
				"- service b: call a:80 on 127.0.0.1:80",
				"+ service b: call a:80 on 127.0.0.1:90",
				"+ service b: call a:81 on 127.0.0.1:81",
			}, []string{
				"~ service b: call a:80 listen 80 -> 90",
			},
		},
		"order": {
			`
mesh: m
services:
  a:
    ports:
      - {port: 80, protocol: http}
      - {port: 81, protocol: http, allow: [{from: g, methods: [GET], paths: [/x, /y/*]}, {from: b}]}
    names: [a.example]
    instances: 2
    run: {command: [x], env: {SECRET: one}}
  b:
    calls: [{service: a, port: 80}]
gateways:
  g:
    listen: [{port: 8080, protocol: http}, {port: 443, protocol: http2, certificate: {cert: c.pem, key: k.pem}}]
    routes:
      - {to: [{service: a, port: 81}]}
      - {match: {prefix: /q}, to: [{service: a, port: 80, weight: 9}, {service: a, port: 81}]}
      - {match: {listener: 8080, path: /p, methods: [GET, HEAD], headers: {x-a: 1}, host: h}, to: [{service: a, port: 80}], timeout: {request: 15s}}
`, []string{
				"~ service a: ports[81].allow: the same in another order",
				"~ gateway g: route: the same in another order",
			}, nil,
		},
		"topology": {
			`
mesh: n
trustDomain: n.example
services:
  a:
    ports:
      - {port: 80, protocol: http2, app: 8080}
      - {port: 82, protocol: tcp}
    instances: 3
    run: {command: [y], env: {SECRET: two}, dir: app}
  c:
    run: {command: [x]}
gateways:
  h:
    listen: [{port: 8080, protocol: http}]
`, []string{
				"~ mesh m -> n",
				"~ trustDomain m.internal -> n.example",
				"- service a: name a.example",
				"~ service a: instances 2 -> 3",
				"~ service a: ports[80].protocol http -> http2",
				"~ service a: ports[80].app 80 -> 8080",
				"- service a: ports[81]",
				"+ service a: ports[82] tcp",
				"~ service a: run.command",
				"~ service a: run.env",
				"~ service a: run.dir (none) -> app",
				"- service b",
				"+ service c",
				"- gateway g",
				"+ gateway h",
			}, []string{
				"~ mesh m -> n",
				"~ trustDomain m.internal -> n.example",
				"~ service a: instances 2 -> 3",
				"~ service a: ports[80].protocol http -> http2",
				"~ service a: ports[80].app 80 -> 8080",
				"- service a: ports[81]",
				"+ service a: ports[82] tcp",
				"~ service a: run.command",
				"~ service a: run.env",
				"~ service a: run.dir (none) -> app",
				"- service b",
				"+ service c",
				"- gateway g",
				"+ gateway h",
			},
		},
		"proxies and deliveries": {
			strings.Replace(diffed, "services:\n  a:", `revocation: none
stores: {vault: {type: file, dir: store, identityFile: id}, spare: {type: file, dir: spare, identityFile: id}}
authorities: {own: {type: embedded}}
certificates: {authority: own}
services:
  a:
    proxy: {engine: nginx, version: 1.22.1}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}", bundle: "{mesh}/bundle", fields: {key: k, certificate: c}}
    deploy: {type: restart}`, 1), []string{
				"~ certificates.authority (none) -> own",
				"~ revocation check, stale lists: refuse -> none",
				"+ store spare: file spare by id",
				"+ store vault: file store by id",
				"+ authority own: embedded",
				"~ service a: certificates.authority (none) -> own",
				"~ service a: proxy builtin -> nginx 1.22.1",
				"~ service a: delivery the agent -> the store vault: m/a as json with the bundle m/bundle certificate=c key=k",
				"~ service a: deploy (none) -> restart",
				"~ service b: certificates.authority (none) -> own",
				"~ gateway g: certificates.authority (none) -> own",
			}, []string{
				"+ store vault: file store by id",
				"~ service a: proxy builtin -> nginx",
				"~ service a: delivery the agent -> the store vault: m/a as json with the bundle m/bundle certificate=c key=k",
				"~ service a: deploy (none) -> restart",
			},
		},
		"run": {
			`
mesh: m
services:
  a:
    ports:
      - {port: 80, protocol: http}
      - {port: 81, protocol: http, allow: [{from: b}, {from: g, methods: [GET], paths: [/x, /y/*]}]}
    names: [a.example]
    instances: 2
  b:
    calls: [{service: a, port: 80}]
    run: {command: [x]}
gateways:
  g:
    instances: 2
    listen: [{port: 8081, protocol: http}, {port: 443, protocol: http2, certificate: {cert: c.pem, key: k.pem}}]
    routes:
      - {match: {listener: 8081, path: /p, methods: [GET, HEAD], headers: {x-a: 1}, host: h}, to: [{service: a, port: 80}], timeout: {request: 15s}}
      - {match: {prefix: /q}, to: [{service: a, port: 80, weight: 9}, {service: a, port: 81}]}
      - {to: [{service: a, port: 81}]}
`, []string{
				"- service a: run",
				"+ service b: run",
				"~ gateway g: instances 1 -> 2",
				"- gateway g: listener 8080 http",
				"+ gateway g: listener 8081 http",
				"- gateway g: route listener 8080 host h GET|HEAD /p x-a: 1 -> a:80*1 within 15s",
				"+ gateway g: route listener 8081 host h GET|HEAD /p x-a: 1 -> a:80*1 within 15s",
			}, []string{
				"- service a: run",
				"+ service b: run",
				"~ gateway g: instances 1 -> 2",
				"- gateway g: listener 8080 http",
				"+ gateway g: listener 8081 http",
			},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			before, after := parse(t, diffed), parse(t, test.after)
			if diff := cmp.Diff(test.want, mesh.Diff(before, after)); diff != "" {
				t.Errorf("Diff (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.fixed, mesh.SameTopology(before, after)); diff != "" {
				t.Errorf("SameTopology (-want +got):\n%s", diff)
			}
			if there, back := len(mesh.Diff(before, after)), len(mesh.Diff(after, before)); (there == 0) != (back == 0) {
				t.Errorf("%d changes there and %d back", there, back)
			}
		})
	}
}

// TestSameElsewhere compares a document with its copy in another directory: it says the same, so that a
// mesh that runs can be changed from a copy.
func TestSameElsewhere(t *testing.T) {
	const text = "mesh: m\nservices: {a: {run: {command: [x]}}, b: {run: {command: [x], dir: app}}}"
	at := func(directory string) *mesh.Spec {
		spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: directory, Content: text}})
		if err != nil {
			t.Fatal(err)
		}
		return spec
	}
	before, after := at("/here"), at("/there")
	if lines := append(mesh.Diff(before, after), mesh.SameTopology(before, after)...); len(lines) > 0 {
		t.Errorf("differences: %q", lines)
	}
}
