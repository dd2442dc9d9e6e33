package engine_test

import (
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"countersign.dev/examples"
	"countersign.dev/mesh"
)

// corpus are meshes whose every workload both programs have to understand.
func corpus(t *testing.T) map[string]string {
	t.Helper()
	meshes := map[string]string{}
	err := fs.WalkDir(examples.Files, ".", func(path string, _ fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".yaml" {
			text, err := fs.ReadFile(examples.Files, path)
			meshes[path] = string(text)
			return err
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, protocol := range []mesh.Protocol{mesh.HTTP, mesh.HTTP2, mesh.GRPC, mesh.TCP} {
		for _, mode := range []mesh.TLSMode{mesh.Strict, mesh.Permissive, mesh.Off} {
			for _, auth := range []mesh.ClientAuth{mesh.Require, mesh.Optional, mesh.None} {
				if mode == mesh.Off && auth != mesh.Require {
					continue
				}
				asked := ", clientAuth: " + string(auth)
				if mode == mesh.Off {
					asked = ""
				}
				name := fmt.Sprintf("%s %s %s", protocol, mode, auth)
				meshes[name] = fmt.Sprintf(`
mesh: m
minTLS: "1.3"
services:
  a:
    ports: [{port: 9080, protocol: %s, tls: %s%s}]
    calls: [{service: b}]
  b:
    ports: [{port: 9081, protocol: %s, tls: %s}]
  c: {calls: [{service: a, listen: 9082}]}
gateways:
  g:
    listen: [{port: 8080, protocol: %s}]
    routes: [{match: {listener: 8080}, to: [{service: a}]}]
`, protocol, mode, asked, protocol, mode, protocol)
			}
		}
	}
	meshes["odd texts"] = `
mesh: odd
services:
  a:
    ports: [{port: 9080, protocol: http}, {port: 9081, protocol: http}]
    allow:
      - {from: any, methods: [GET, M-SEARCH], paths: ["/a\"b'c", "/{x}/$y/*", "/%5B%20", "/*"]}
      - {from: [b, anonymous], paths: ["/[(a|b)+^.]", "/%C3%A9/*"]}
    tls: permissive
  b: {ports: [{port: 9080, protocol: grpc}], allow: []}
gateways:
  g:
    listen: [{port: 8080, protocol: http}, {port: 8081, protocol: grpc}]
    routes:
      - match: {listener: 8080, path: "/%5B[src]/${HOME}\"'", methods: [GET], host: Shop.Example, headers: {X-A: "a;b{c}\"d'\\ $http_x %[src]", x-b: "# no comment"}}
        to: [{service: a, port: 9080, weight: 1}, {service: a, port: 9081, weight: 2}]
      - {match: {listener: 8080, prefix: "/x"}, to: [{service: a, port: 9080}]}
      - {match: {listener: 8080}, to: [{service: a, port: 9081}]}
      - {match: {listener: 8081, prefix: "/pkg.Service"}, to: [{service: b}]}
`
	meshes["long texts"] = `
mesh: long
services:
  a: {ports: [{port: 9080, protocol: http, allow: [{from: any, paths: ["/` + strings.Repeat("+", 950) + `"]}]}]}
gateways:
  g:
    listen: [{port: 8080, protocol: http}]
    routes: [{match: {listener: 8080, headers: {x-a: '` + strings.Repeat(`\`, 990) + `'}}, to: [{service: a}]}, {match: {listener: 8080, path: "/` + strings.Repeat("(", 950) + `"}, to: [{service: a}]}]
`
	meshes["own certificates"] = `
mesh: own
services:
  a: {ports: [{port: 9080, protocol: http}, {port: 7000, protocol: tcp}]}
gateways:
  g:
    listen:
      - {port: 8443, protocol: http, certificate: {cert: c.pem, key: k.pem}}
      - {port: 8444, protocol: tcp, certificate: {cert: c.pem, key: k.pem}, minTLS: "1.3"}
    routes:
      - {match: {listener: 8443, prefix: /a}, to: [{service: a, port: 9080}]}
      - {match: {listener: 8444}, to: [{service: a, port: 7000}]}
`
	return meshes
}

// verifying is what stands wherever a chain is verified.
var verifying = map[string]string{"nginx": "ssl_verify_depth ", "haproxy": " ca-file "}

// asking is what stands wherever clients are asked for certificates, and telling what is told of them there.
var (
	asking = map[string]*regexp.Regexp{
		"nginx": regexp.MustCompile(`(?m)^ *ssl_client_certificate `), "haproxy": regexp.MustCompile(`(?m)^ *bind .* ca-file `),
	}
	telling = map[string]string{"nginx": "/callers.sock,nohostname,tag=countersign\" callers if=$cs_", "haproxy": " track-sc0 "}
)

// TestCorpus asserts that both programs understand what is rendered, for every workload of the corpus.
func TestCorpus(t *testing.T) {
	dir := t.TempDir()
	for name, text := range corpus(t) {
		spec := parse(t, text)
		for _, w := range spec.Workloads() {
			plan := compile(t, spec, w.Name)
			for i := range plan.Upstreams {
				if i%2 == 0 { // the others have none
					plan.Upstreams[i].Endpoints = []mesh.Endpoint{
						{Instance: "1", Address: netip.MustParseAddrPort("127.0.0.9:9080")},
						{Instance: "2", Address: netip.MustParseAddrPort("[::1]:9080")},
					}
				}
			}
			a := newAuthority(t)
			a.write(t, dir, w.Identity)
			o := options(dir)
			o.Address = freeAddress(t)
			o.Loopback = netip.MustParseAddr("127.0.0.1")
			for _, in := range plan.Inbound { // a gateway's own certificate
				if in.Certificate != nil {
					in.Certificate.Cert = o.Current("cert-and-key.pem")
					in.Certificate.Key = in.Certificate.Cert
				}
			}
			for _, engine := range engines {
				t.Run(engine.name+"/"+strings.ReplaceAll(name, "/", "_")+"/"+w.Name, func(t *testing.T) {
					program := engine.path(t)
					if plan.Workload.Kind == "gateway" && refusesTimeouts(plan) {
						for i := range plan.Inbound {
							for j := range plan.Inbound[i].Routes {
								plan.Inbound[i].Routes[j].RequestTimeout = 0
							}
						}
					}
					o.CRL, o.Callers, o.Generation = true, true, "run-1"
					config, err := engine.render(plan, o)
					if err != nil {
						t.Fatal(err)
					}
					if verifies, lists := strings.Count(config.Text, verifying[engine.name]), strings.Count(config.Text, "/current/crl.pem"); verifies != lists {
						t.Errorf("it verifies %d times, and looks at lists %d times:\n%s", verifies, lists, config.Text)
					}
					if asks, tells := len(asking[engine.name].FindAllString(config.Text, -1)), strings.Count(config.Text, telling[engine.name]); asks != tells {
						t.Errorf("it asks for certificates %d times, and tells of callers %d times:\n%s", asks, tells, config.Text)
					}
					file := filepath.Join(dir, engine.name)
					if err := os.WriteFile(file, []byte(config.Text), 0o600); err != nil {
						t.Fatal(err)
					}
					out, err := exec.CommandContext(t.Context(), program, engine.check(file)...).CombinedOutput()
					if err != nil || strings.Contains(strings.ToLower(string(out)), "warn") {
						t.Errorf("%v\n%s\n%s", err, out, config.Text)
					}
				})
			}
		}
	}
}

// refusesTimeouts tells whether a Plan has what both programs refuse; that they do, other tests say.
func refusesTimeouts(plan *mesh.Plan) bool {
	for _, in := range plan.Inbound {
		for _, r := range in.Routes {
			if r.RequestTimeout != 0 {
				return true
			}
		}
	}
	return false
}
