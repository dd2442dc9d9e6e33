package engine

import (
	"errors"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/policy"
)

var plainPath = regexp.MustCompile(PlainPath)

// FuzzPlainPath compares the regular expression with the policy's own reading.
func FuzzPlainPath(f *testing.F) {
	for _, path := range []string{
		"/", "/a", "/a/b/", "//", "/a//b", "/.", "/..", "/...", "/.a", "/..a/", "/a/../b", "/a/.", "/a%20b", "/%2e", "/%2F", "/%3b", "/a;b", "/%", "/%4", "/%zz",
		"/%C3%A9", "/%c3", "/%C0%80", "/%E0%80%80", "/%ED%A0%80", "/%F4%90%80%80", "/%F0%9F%98%80", "/a\\b", "/a#", "*", "", "a", "/\x7f", "/é", "/a b", "/%00", "/%7F", "/a+b", "/%25",
	} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		if strings.ContainsAny(path, "?\n") {
			return // a query is none of the path, and a line's end cannot be in a request line
		}
		_, problem := policy.Canonical(path)
		if got := plainPath.MatchString(path); got != (problem == "") {
			t.Errorf("%q: the expression says %v, the policy %q", path, got, problem)
		}
		if problem == "" && !plainPath.MatchString(path+"?a=/../b") {
			t.Errorf("%q is not plain with a query", path)
		}
	})
}

func TestDN(t *testing.T) {
	caller, err := id.New("shop.internal", id.Gateway, "edge-1")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := DN(caller), "CN=edge-1,OU=gateway,O=shop.internal"; got != want {
		t.Errorf("DN = %q, want %q", got, want)
	}
	if got, want := escapeDN(` a,b"#é `), `\ a\,b\"#\C3\A9\ `; got != want {
		t.Errorf("escapeDN = %q, want %q", got, want)
	}
}

func TestAtLeast(t *testing.T) {
	for _, test := range []struct {
		have, want string
		is         bool
	}{{"1.22.1", "1.22", true}, {"1.25.1", "1.25.1", true}, {"1.25.0", "1.25.1", false}, {"1.9", "1.22", false}, {"3.0", "2.6", true}, {"1.25", "1.25.1", false}} {
		if got := AtLeast(test.have, test.want); got != test.is {
			t.Errorf("AtLeast(%s, %s) = %v", test.have, test.want, got)
		}
	}
}

// sound is a Plan that nothing is wrong with.
func sound(t testing.TB) (*mesh.Plan, Options) {
	t.Helper()
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: "/", Content: `
mesh: m
services:
  a: {ports: [{port: 9080, protocol: http, app: 8080}], calls: [{service: b}]}
  b: {ports: [{port: 9081, protocol: http}]}
gateways:
  g:
    listen: [{port: 8080, protocol: http}]
    routes: [{match: {headers: {x-a: b}}, to: [{service: a}]}]
`}})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := spec.Compile("a")
	if err != nil {
		t.Fatal(err)
	}
	gateway, err := spec.Compile("g")
	if err != nil {
		t.Fatal(err)
	}
	plan.Inbound = append(plan.Inbound, gateway.Inbound...)
	plan.Inbound[1].Port = 7000
	plan.Upstreams = append(plan.Upstreams, gateway.Upstreams...)
	plan.Workload.Kind = id.Gateway // both kinds of listeners in one Plan
	return plan, Options{Certificates: "/certs", Run: "/run/x", Version: "1.22.1"}.WithDefaults("1")
}

// TestRefused breaks a sound Plan at one place after the other.
func TestRefused(t *testing.T) {
	tests := map[string]struct {
		change func(*mesh.Plan, *Options)
		reason string
	}{
		"version of the plan":         {func(p *mesh.Plan, _ *Options) { p.Version++ }, "the plan has the version"},
		"identity":                    {func(p *mesh.Plan, _ *Options) { p.TrustDomain = "other" }, "no identity of the trust domain"},
		"version":                     {func(_ *mesh.Plan, o *Options) { o.Version = "1;2" }, `"1;2" is not a version of the proxy`},
		"certificates":                {func(_ *mesh.Plan, o *Options) { o.Certificates = "/a b" }, "is not an absolute path"},
		"long run":                    {func(_ *mesh.Plan, o *Options) { o.Run = "/" + strings.Repeat("r", 99) }, "sockets cannot be bound"},
		"module":                      {func(_ *mesh.Plan, o *Options) { o.StreamModule = "x.so;" }, "the stream module"},
		"user":                        {func(_ *mesh.Plan, o *Options) { o.User = "a b" }, "is not a user's name"},
		"generation":                  {func(_ *mesh.Plan, o *Options) { o.Generation = "a;b" }, "is not the name of a generation"},
		"zone":                        {func(_ *mesh.Plan, o *Options) { o.Address = netip.MustParseAddr("fe80::1%eth0") }, "with a zone"},
		"same port":                   {func(p *mesh.Plan, _ *Options) { p.Inbound[0].App = 9080 }, "port 9080 listens on 0.0.0.0:9080, where the application of port 9080 is (127.0.0.1:9080)"},
		"same port, with flags":       {func(p *mesh.Plan, _ *Options) { p.Inbound[0].App = 9080 }, "; say which address peers connect to (--address), or give the application another port (app)"},
		"same port, without flags":    {func(p *mesh.Plan, o *Options) { p.Inbound[0].App, o.NoFlags = 9080, true }, "(127.0.0.1:9080); give the application another port (app)"},
		"application of another port": {func(p *mesh.Plan, _ *Options) { p.Inbound[0].App = 7000 }, "port 7000 listens on 0.0.0.0:7000, where the application of port 9080 is"},
		"application at the listener": {func(p *mesh.Plan, o *Options) { p.Inbound[0].App, o.Address = 9080, o.Loopback }, "port 9080 listens on 127.0.0.1:9080, where the application of port 9080 is"},
		"application at a call":       {func(p *mesh.Plan, _ *Options) { p.Inbound[0].App = p.Outbound[0].Listen }, "the call on port 9081 listens on 127.0.0.1:9081, where the application of port 9080 is"},
		"call on a port of all":       {func(p *mesh.Plan, _ *Options) { p.Outbound[0].Listen = 9080 }, "port 9080 and the call on port 9080 both listen on 127.0.0.1:9080"},
		"both families": {func(p *mesh.Plan, o *Options) {
			p.Inbound[0].App, o.Address = 9080, netip.IPv6Unspecified()
		}, "port 9080 listens on [::]:9080, where the application of port 9080 is"},
		"mapped": {func(p *mesh.Plan, o *Options) {
			p.Inbound[0].App, o.Address = 9080, netip.MustParseAddr("::ffff:127.0.0.1")
		}, "where the application of port 9080 is"},
		"version of OpenSSL": {func(_ *mesh.Plan, o *Options) { o.OpenSSL = "new" }, `"new" is not a version of OpenSSL`},
		"no port":            {func(p *mesh.Plan, _ *Options) { p.Inbound[0].Port = 70000 }, "is no port"},
		"gateway's policy":   {func(p *mesh.Plan, _ *Options) { p.Inbound[1].Rules = nil }, "does not admit everybody"},
		"gateway's clients":  {func(p *mesh.Plan, _ *Options) { p.Inbound[1].ClientAuth = mesh.Require }, "does not admit everybody"},
		"two listeners":      {func(p *mesh.Plan, _ *Options) { p.Inbound[1].Port = 9080 }, "both listen on"},
		"protocol":           {func(p *mesh.Plan, _ *Options) { p.Inbound[0].Protocol = "udp" }, `the protocol "udp"`},
		"TLS mode":           {func(p *mesh.Plan, _ *Options) { p.Inbound[0].TLS = "maybe" }, "the TLS mode"},
		"client auth":        {func(p *mesh.Plan, _ *Options) { p.Inbound[0].ClientAuth = "maybe" }, "the client authentication"},
		"TLS version":        {func(p *mesh.Plan, _ *Options) { p.Inbound[0].MinTLS = "1.1" }, "the TLS version"},
		"upstream's name":    {func(p *mesh.Plan, _ *Options) { p.Upstreams[0].Name = "a;b" }, "that is not SERVICE_PORT"},
		"upstream twice":     {func(p *mesh.Plan, _ *Options) { p.Upstreams[0].Name = p.Upstreams[1].Name }, "is there twice"},
		"server name":        {func(p *mesh.Plan, _ *Options) { p.Upstreams[0].ServerName = "evil" }, "is not NAME.TRUST-DOMAIN"},
		"endpoint":           {func(p *mesh.Plan, _ *Options) { p.Upstreams[0].Endpoints = []mesh.Endpoint{{Instance: "x"}} }, "has no address"},
		"no upstream":        {func(p *mesh.Plan, _ *Options) { p.Outbound[0].Upstream = "nobody" }, "is not declared"},
		"outbound port":      {func(p *mesh.Plan, _ *Options) { p.Outbound[0].Listen = 0 }, "is no port"},
		"request timeout":    {func(p *mesh.Plan, _ *Options) { p.Inbound[1].Routes[0].RequestTimeout = 1 }, "a bound on the whole request"},
		"route's upstream":   {func(p *mesh.Plan, _ *Options) { p.Inbound[1].Routes[0].To[0].Upstream = "nobody" }, "is not declared"},
		"route's protocol":   {func(p *mesh.Plan, _ *Options) { p.Inbound[1].Protocol = mesh.TCP }, "and the listener tcp"},
		"weights":            {func(p *mesh.Plan, _ *Options) { p.Inbound[1].Routes[0].To[0].Weight = 0 }, "leads nowhere"},
		"method":             {func(p *mesh.Plan, _ *Options) { p.Inbound[1].Routes[0].Match.Methods = []string{"GET }"} }, "is not an HTTP method"},
		"header's value":     {func(p *mesh.Plan, _ *Options) { p.Inbound[1].Routes[0].Match.Headers["x-a"] = "a\nb" }, "control character"},
		"long host":          {func(p *mesh.Plan, _ *Options) { p.Inbound[1].Routes[0].Match.Host = strings.Repeat("h", 2000) }, "at most 1024"},
		"two tcp routes": {func(p *mesh.Plan, _ *Options) {
			p.Inbound[1].Protocol, p.Inbound[1].Routes = mesh.TCP, nil
		}, "exactly one route"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			plan, o := sound(t)
			before := Refusal{Engine: "x"}
			if Check(plan, o, &before); before.Err() != nil {
				t.Fatalf("the sound plan is refused: %v", before.Err())
			}
			test.change(plan, &o)
			r := Refusal{Engine: "x"}
			Check(plan, o, &r)
			if err := r.Err(); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), test.reason) {
				t.Errorf("got %v, want %q", err, test.reason)
			}
		})
	}
}

// TestPlaces asserts that places which do not meet are not refused.
func TestPlaces(t *testing.T) {
	plan, o := sound(t)
	plan.Inbound[0].App, o.Address = 9080, netip.MustParseAddr("10.0.0.1")
	plan.Outbound[0].Listen = plan.Inbound[1].Port
	r := Refusal{Engine: "x"}
	if Check(plan, o, &r); r.Err() != nil {
		t.Errorf("the same ports at other addresses: %v", r.Err())
	}
	o.Binds = map[string]netip.AddrPort{"app/9080": netip.MustParseAddrPort("10.0.0.1:9080")}
	if Check(plan, o, &r); r.Err() == nil || !strings.Contains(r.Err().Error(), "where the application of port 9080 is") {
		t.Errorf("an application that is bound to the listener's address: %v", r.Err())
	}
}

func TestMissing(t *testing.T) {
	var m Missing
	if notes := m.Notes(Options{}); len(notes) != 0 {
		t.Errorf("without anything: %q", notes)
	}
	m.Add("port 1", nil)
	for _, where := range []string{"port 2", "upstream b_1", "port 2"} {
		m.Add(where, []mesh.TLSGroup{mesh.X25519MLKEM768})
	}
	notes := m.Notes(Options{OpenSSL: "3.0"})
	if len(notes) != 1 || !strings.Contains(notes[0], "3.0 does not speak X25519MLKEM768, ") || !strings.Contains(notes[0], ": port 2, upstream b_1 (") {
		t.Errorf("notes %q", notes)
	}
}

func TestRules(t *testing.T) {
	plan, _ := sound(t)
	for name, test := range map[string]struct {
		rule   mesh.Rule
		reason string
	}{
		"probe":    {mesh.Rule{From: []string{"spiffe://m.internal/probe/p"}}, "a probe is never admitted"},
		"no ID":    {mesh.Rule{From: []string{"$x"}}, "none that a rule can name"},
		"path":     {mesh.Rule{From: []string{"any"}, Paths: []string{"/a/../b"}}, "cannot be compared"},
		"control":  {mesh.Rule{From: []string{"any"}, Paths: []string{"/a\n"}}, "control character"},
		"a method": {mesh.Rule{From: []string{"any"}, Methods: []string{"get|x"}}, "is not an HTTP method"},
	} {
		r := Refusal{}
		Rules(plan, mesh.Inbound{Protocol: mesh.HTTP, Rules: []mesh.Rule{test.rule}}, &r)
		if err := r.Err(); err == nil || !strings.Contains(err.Error(), test.reason) {
			t.Errorf("%s: %v, want %q", name, err, test.reason)
		}
	}
	r := Refusal{}
	limited := mesh.Inbound{Protocol: mesh.TCP, Rules: []mesh.Rule{{From: []string{"any"}, Methods: []string{"GET"}}}}
	if rules := Rules(plan, limited, &r); len(rules) != 0 {
		t.Errorf("a rule with methods admits to tcp: %v", rules)
	}
	for _, test := range []struct {
		path  string
		takes []string
		not   []string
	}{
		{"/a", []string{"/a"}, []string{"/a/", "/ab", "/b/a"}},
		{"/a/*", []string{"/a/b", "/a/b/c"}, []string{"/a", "/a/", "/ab"}},
		{"/*", []string{"/", "/x"}, nil},
		{"/a.b", []string{"/a.b"}, []string{"/axb"}},
		{"/%C3%A9", []string{"/é"}, []string{"/%C3%A9"}},
	} {
		rule := Rules(plan, mesh.Inbound{Protocol: mesh.HTTP, Rules: []mesh.Rule{{From: []string{"any"}, Paths: []string{test.path}}}}, &r)[0]
		compiled := regexp.MustCompile(rule.Paths[0])
		for _, path := range test.takes {
			if !compiled.MatchString(path) {
				t.Errorf("%s does not take %s", test.path, path)
			}
		}
		for _, path := range test.not {
			if compiled.MatchString(path) {
				t.Errorf("%s takes %s", test.path, path)
			}
		}
	}
}

func TestRouteMatch(t *testing.T) {
	r := Refusal{}
	m := RouteMatch(mesh.Inbound{}, mesh.Match{Prefix: "/a", Host: "Shop.example", Headers: map[string]string{"X-A": "1", "B": "2"}}, &r)
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	if len(m.Headers) != 2 || m.Headers[0] != (Header{"b", "2"}) || m.Headers[1] != (Header{"x-a", "1"}) {
		t.Errorf("headers %v", m.Headers)
	}
	for path, want := range map[string]bool{"/a": true, "/a/b": true, "/ab": false} {
		if got := regexp.MustCompile(m.Path).MatchString(path); got != want {
			t.Errorf("prefix /a takes %s: %v", path, got)
		}
	}
	for host, want := range map[string]bool{"shop.example": true, "shop.example:80": true, "shop.example.": true, "shopxexample": false, "shop.example.org": false} {
		if got := regexp.MustCompile(m.Host).MatchString(host); got != want {
			t.Errorf("host %s: %v", host, got)
		}
	}
	RouteMatch(mesh.Inbound{}, mesh.Match{Headers: map[string]string{"x_a": "1"}}, &r)
	if err := r.Err(); err == nil || !strings.Contains(err.Error(), "cannot be asked for") {
		t.Errorf("a header with an underscore: %v", err)
	}
}

func TestGroups(t *testing.T) {
	r := Refusal{}
	o := Options{OpenSSL: "3.0"}
	list, missing := Groups(nil, "x", o, &r)
	if list != "X25519:P-256:P-384" || len(missing) != 1 || r.Err() != nil {
		t.Errorf("default groups: %q, %v, %v", list, missing, r.Err())
	}
	if list, missing = Groups(nil, "x", Options{OpenSSL: "3.5.1"}, &r); list != "X25519MLKEM768:X25519:P-256:P-384" || len(missing) != 0 {
		t.Errorf("with OpenSSL 3.5: %q, %v", list, missing)
	}
	Groups([]mesh.TLSGroup{mesh.X25519MLKEM768}, "x", o, &r)
	if err := r.Err(); err == nil || !strings.Contains(err.Error(), "speaks none") {
		t.Errorf("only hybrids: %v", err)
	}
	r = Refusal{}
	Groups([]mesh.TLSGroup{"x:y"}, "x", o, &r)
	if err := r.Err(); err == nil || !strings.Contains(err.Error(), "is not known") {
		t.Errorf("an unknown one: %v", err)
	}
}
