// Package enginetest tests renderers: no text of a Plan may change the structure of the configuration that is made of it.
package enginetest

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"countersign.dev/engine"
	"countersign.dev/mesh"
)

// sample is a mesh with something of everything, whose gateway's Plan is then given other texts.
const sample = `
mesh: m
services:
  a:
    ports:
      - {port: 9080, protocol: http, app: 8080, tls: permissive, allow: [{from: any, methods: [GET], paths: [/a, "/b/*"]}, {from: anonymous}]}
      - {port: 7000, protocol: tcp, app: 7001, tls: permissive}
      - {port: 9090, protocol: grpc, app: 9091}
    calls: [{service: b, port: 9081}, {service: b, port: 7001, listen: 7002}]
  b: {ports: [{port: 9081, protocol: http}, {port: 7001, protocol: tcp}]}
gateways:
  g:
    listen: [{port: 8080, protocol: http, certificate: {cert: c.pem, key: c.pem.key}}, {port: 7070, protocol: tcp}]
    routes:
      - {match: {listener: 8080, path: /x, methods: [GET], host: h, headers: {x-a: v}}, to: [{service: a, port: 9080, weight: 1}, {service: b, port: 9081, weight: 2}]}
      - {match: {listener: 8080, prefix: /y}, to: [{service: b, port: 9081}]}
      - {match: {listener: 7070}, to: [{service: a, port: 7000}]}
`

// Plans are those of a service and of a gateway, with something of everything.
func Plans(t testing.TB) (service, gateway *mesh.Plan) {
	t.Helper()
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: "/etc", Content: sample}})
	if err != nil {
		t.Fatal(err)
	}
	if service, err = spec.Compile("a"); err != nil {
		t.Fatal(err)
	}
	if gateway, err = spec.Compile("g"); err != nil {
		t.Fatal(err)
	}
	return service, gateway
}

// Renderer is what is tested.
type Renderer struct {
	Render func(*mesh.Plan, engine.Options) (*engine.Config, error)
	// Plans and Options give new ones each time; the Plans are made by [Plans].
	Plans   func(testing.TB) (service, gateway *mesh.Plan)
	Options func() engine.Options
	// Structure reads a configuration as the program does, and gives what no text may change.
	Structure func(text string) ([]string, error)
}

// FuzzTexts asserts that no text of a Plan changes the structure of the configuration. The seeds of f may be more than
// those that are added here: a text, and where it is put.
func (r Renderer) FuzzTexts(f *testing.F) {
	for _, text := range []string{"v", `a"b`, `a'b`, "a{b}c", "a\nb", "$http_x", "${x}", "a;b", "%[src]", "a b", `a\`, `\"; }`, "é", "#", "/a;b", "/a\"b", "~x", "\x00", "/$x", "GET", "default"} {
		f.Add(text, 0)
		f.Add("/"+text, 5)
	}
	f.Fuzz(func(t *testing.T, text string, where int) { r.try(t, text, where) })
}

// TestTexts puts each of many hostile texts into each place.
func (r Renderer) TestTexts(t *testing.T) {
	refused, rendered := 0, 0
	for _, text := range []string{`a"; evil on; #`, "a'b", "a\nevil on;", "$ssl_client_s_dn", "/a}b;c", `/a\"b`, "/%[src]", "/é", `/"`, "h;x"} {
		for where := range 60 {
			n := r.try(t, text, where)
			refused, rendered = refused+2-n, rendered+n
		}
	}
	if refused == 0 || rendered == 0 {
		t.Errorf("%d refused, %d rendered: nothing was tested", refused, rendered)
	}
}

// try puts a text into one place of both Plans, and gives how many were rendered with it.
func (r Renderer) try(t *testing.T, text string, where int) (rendered int) {
	t.Helper()
	service, gateway := r.Plans(t)
	for _, plan := range []*mesh.Plan{service, gateway} {
		before, err := r.Render(plan, r.Options())
		if err != nil {
			t.Fatal(err)
		}
		want, err := r.Structure(before.Text)
		if err != nil {
			t.Fatalf("%v\n%s", err, before.Text)
		}
		put(plan, text, where)
		after, err := r.Render(plan, r.Options())
		if errors.Is(err, engine.ErrRefused) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		rendered++
		if got, err := r.Structure(after.Text); err != nil || !slices.Equal(got, want) {
			t.Errorf("with %q at %d the structure is another (%v):\n%s", text, where, err, after.Text)
		}
	}
	return rendered
}

// put writes a text into one place of a Plan.
func put(plan *mesh.Plan, text string, where int) {
	places := []*string{&plan.Mesh, &plan.Workload.Name, &plan.TrustDomain}
	for i := range plan.Inbound {
		in := &plan.Inbound[i]
		places = append(places, &in.Name)
		for j := range in.Rules {
			for k := range in.Rules[j].From {
				places = append(places, &in.Rules[j].From[k])
			}
			for k := range in.Rules[j].Methods {
				places = append(places, &in.Rules[j].Methods[k])
			}
			for k := range in.Rules[j].Paths {
				places = append(places, &in.Rules[j].Paths[k])
			}
		}
		if in.Certificate != nil {
			places = append(places, &in.Certificate.Cert, &in.Certificate.Key)
		}
		for j := range in.Routes {
			m := &in.Routes[j].Match
			if m.Path != "" {
				places = append(places, &m.Path)
			}
			if m.Prefix != "" {
				places = append(places, &m.Prefix)
			}
			if m.Host != "" {
				places = append(places, &m.Host)
			}
			if _, ok := m.Headers["x-a"]; ok && where%7 == 3 {
				m.Headers["x-a"] = text
			} else if ok && where%7 == 4 {
				m.Headers = map[string]string{text: "v"}
			}
			for k := range m.Methods {
				places = append(places, &m.Methods[k])
			}
		}
	}
	for i := range plan.Upstreams {
		places = append(places, &plan.Upstreams[i].Name, &plan.Upstreams[i].Service, &plan.Upstreams[i].ServerName)
	}
	for i := range plan.Outbound {
		places = append(places, &plan.Outbound[i].Name)
	}
	place := places[int(uint(where)%uint(len(places)))]
	if text == "" || text == mesh.FromAny || text == mesh.FromAnonymous || strings.HasPrefix(text, mesh.FromDNS) || (*place == "/x" || *place == "/y") && text == "/" { // no condition, or another kind of caller, is another structure
		return
	}
	*place = text
}
