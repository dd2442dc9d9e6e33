package haproxy

import (
	"errors"
	"fmt"
	"net/netip"
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
    calls: [{service: b}]
  b: {ports: [{port: 9081, protocol: http}, {port: 7001, protocol: tcp}]}
gateways:
  g:
    listen: [{port: 8080, protocol: http, certificate: {cert: c.pem, key: c.pem.key}}, {port: 7070, protocol: tcp}]
    routes:
      - {match: {listener: 8080, path: /x, methods: [GET], host: h, headers: {x-a: v}}, to: [{service: a, port: 9080, weight: 1}, {service: b, port: 9081, weight: 2}]}
      - {match: {listener: 8080, prefix: /y}, to: [{service: b, port: 9081}]}
      - {match: {listener: 7070}, to: [{service: a, port: 7000}]}
`

func plans(t testing.TB) (service, gateway *mesh.Plan) {
	t.Helper()
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: "/etc", Content: strings.Replace(sample, "calls: [{service: b}]", "calls: [{service: b, port: 9081}, {service: b, port: 7001, listen: 7002}]", 1)}})
	if err != nil {
		t.Fatal(err)
	}
	service, err = spec.Compile("a")
	if err != nil {
		t.Fatal(err)
	}
	gateway, err = spec.Compile("g")
	if err != nil {
		t.Fatal(err)
	}
	for _, plan := range []*mesh.Plan{service, gateway} {
		for i := range plan.Upstreams {
			plan.Upstreams[i].Endpoints = []mesh.Endpoint{{Instance: "1", Address: netip.MustParseAddrPort("10.0.0.2:1")}}
		}
	}
	return service, gateway
}

func options() engine.Options {
	return engine.Options{Certificates: "/certs", Run: "/run/x", Address: netip.MustParseAddr("10.0.0.1"), Version: DefaultVersion, Callers: true}
}

// structure reads a configuration as HAProxy does (parse_line) and gives for each line its first words
// and the number of all.
func structure(text string) ([]string, error) {
	var out []string
	for line := range strings.Lines(text) {
		words, err := split(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, fmt.Errorf("%w: %s", err, line)
		}
		if len(words) > 0 {
			out = append(out, fmt.Sprintf("%s %d", words[0], len(words)))
		}
	}
	return out, nil
}

func split(line string) (words []string, err error) {
	word, open := "", false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; c {
		case '#':
			i = len(line)
		case ' ', '\t', '\r':
			if open {
				words = append(words, word)
			}
			word, open = "", false
		case '\'':
			end := strings.IndexByte(line[i+1:], '\'')
			if end < 0 {
				return nil, errors.New("a quotation mark is not closed")
			}
			word, open, i = word+line[i+1:i+1+end], true, i+1+end
		case '"', '$':
			return nil, fmt.Errorf("%q outside of single quotation marks", c)
		case '\\':
			if i++; i >= len(line) {
				return nil, errors.New("a backslash at the end")
			}
			word, open = word+line[i:i+1], true
		default:
			word, open = word+string(c), true
		}
	}
	if open {
		words = append(words, word)
	}
	return words, nil
}

func TestStructure(t *testing.T) {
	for _, broken := range []string{"a 'b", `a \`, `a "b"`, "a $b"} {
		if got, err := structure(broken); err == nil {
			t.Errorf("%q is taken for %q", broken, got)
		}
	}
	harmless, err := structure("x " + string(quote(`a' # b\"$c`)) + "\n")
	if err != nil || !slices.Equal(harmless, []string{"x 2"}) {
		t.Errorf("%q, %v", harmless, err)
	}
	if words, _ := split("x " + string(quote(`a' # b\"$c`))); len(words) != 2 || words[1] != `a' # b\"$c` {
		t.Errorf("read back as %q", words)
	}
	if injected, err := structure("x 'a'\nevil 'b'\n"); err == nil && slices.Equal(injected, harmless) {
		t.Error("an injection is not seen")
	}
	if got := format("100%[src]"); got != "100%%[src]" {
		t.Errorf("format = %q", got)
	}
}

// FuzzTexts asserts that no text of a Plan changes the structure of the configuration.
func FuzzTexts(f *testing.F) {
	for _, text := range []string{"v", `a"b`, `a'b`, "a{b}c", "a\nb", "$http_x", "${x}", "a;b", "%[src]", "a b", `a\`, `\"; }`, "é", "#", "/a;b", "/a\"b", "~x", "\x00", "/$x", "GET", "default"} {
		f.Add(text, 0)
		f.Add("/"+text, 5)
	}
	f.Fuzz(func(t *testing.T, text string, where int) {
		service, gateway := plans(t)
		for _, plan := range []*mesh.Plan{service, gateway} {
			before, err := Render(plan, options())
			if err != nil {
				t.Fatal(err)
			}
			want, err := structure(before.Text)
			if err != nil {
				t.Fatalf("%v\n%s", err, before.Text)
			}
			put(plan, text, where)
			after, err := Render(plan, options())
			if errors.Is(err, engine.ErrRefused) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := structure(after.Text)
			if err != nil {
				t.Fatalf("%v\n%s", err, after.Text)
			}
			if !slices.Equal(got, want) {
				t.Errorf("with %q at %d the structure is another:\n%s", text, where, after.Text)
			}
		}
	})
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
	if text == "" || text == mesh.FromAny || text == mesh.FromAnonymous || (*place == "/x" || *place == "/y") && text == "/" { // no condition, or another kind of caller, is another structure
		return
	}
	*place = text
}

// TestPutEverywhere puts each hostile text into each place.
func TestPutEverywhere(t *testing.T) {
	refused, rendered := 0, 0
	for _, text := range []string{`a"; evil on; #`, "a'b", "a\nevil on;", "$ssl_client_s_dn", "/a}b;c", `/a\"b`, "/%[src]", "/é", `/"`, "h;x"} {
		for where := range 60 {
			service, gateway := plans(t)
			for _, plan := range []*mesh.Plan{service, gateway} {
				before, err := Render(plan, options())
				if err != nil {
					t.Fatal(err)
				}
				put(plan, text, where)
				after, err := Render(plan, options())
				if err != nil {
					if !errors.Is(err, engine.ErrRefused) {
						t.Fatal(err)
					}
					refused++
					continue
				}
				rendered++
				want, _ := structure(before.Text)
				if got, err := structure(after.Text); err != nil || !slices.Equal(got, want) {
					t.Errorf("with %q at %d: %v\n%s", text, where, err, after.Text)
				}
			}
		}
	}
	if refused == 0 || rendered == 0 {
		t.Errorf("%d refused, %d rendered: nothing was tested", refused, rendered)
	}
}

func TestRefused(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*mesh.Plan, *engine.Options)
		reason string
	}{
		"old":             {func(_ *mesh.Plan, o *engine.Options) { o.Version = "2.4.0" }, "older than 2.6"},
		"key elsewhere":   {func(p *mesh.Plan, _ *engine.Options) { p.Inbound[0].Certificate.Key = "/etc/k.pem" }, "is not found by HAProxy"},
		"relative":        {func(p *mesh.Plan, _ *engine.Options) { p.Inbound[0].Certificate.Cert = "c.pem" }, "it is not absolute"},
		"control":         {func(p *mesh.Plan, _ *engine.Options) { p.Inbound[0].Certificate.Cert = "/c\n" }, "a control character"},
		"long":            {func(p *mesh.Plan, _ *engine.Options) { p.Inbound[0].Certificate.Cert = "/" + strings.Repeat("c", 1024) }, "more than 1024 bytes"},
		"listener":        {func(p *mesh.Plan, _ *engine.Options) { p.Inbound[0].Name = "%x" }, "is not the name of a listener"},
		"request timeout": {func(p *mesh.Plan, _ *engine.Options) { p.Inbound[0].Routes[0].RequestTimeout = 1 }, "a bound on the whole request"},
	} {
		t.Run(name, func(t *testing.T) {
			_, plan := plans(t)
			o := options()
			if _, err := Render(plan, o); err != nil {
				t.Fatal(err)
			}
			test.change(plan, &o)
			if _, err := Render(plan, o); !errors.Is(err, engine.ErrRefused) || !strings.Contains(err.Error(), test.reason) {
				t.Errorf("got %v, want %q", err, test.reason)
			}
		})
	}
}

// TestListeners asserts that every listener that logs says what is wrong in JSON, that none passes another
// change of protocol on than a WebSocket's, and that ports share no sessions.
func TestListeners(t *testing.T) {
	service, gateway := plans(t)
	for _, plan := range []*mesh.Plan{service, gateway} {
		config, err := Render(plan, options())
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(config.Text, "\n    tune.ssl.cachesize 0\n") {
			t.Error("the ports share a cache of sessions")
		}
		frontends := strings.Split(config.Text, "\nfrontend ")[1:]
		for _, frontend := range frontends {
			frontend, _, _ = strings.Cut(frontend, "\nbackend ")
			if strings.Contains(frontend, " no log\n") {
				continue
			}
			if strings.Count(frontend, " error-log-format ") != 1 || strings.Count(frontend, " log-format ") != 1 {
				t.Errorf("its log: %s", frontend)
			}
			if strings.Contains(frontend, " mode http\n") && (!strings.Contains(frontend, " del-header Upgrade unless ") || !strings.Contains(frontend, " http-response deny ")) {
				t.Errorf("it changes protocols: %s", frontend)
			}
		}
		if len(frontends) < 2 {
			t.Errorf("%d frontends", len(frontends))
		}
	}
}

// TestVersion asserts that newer words are written only for who knows them.
func TestVersion(t *testing.T) {
	service, _ := plans(t)
	o := options()
	for version, known := range map[string]bool{"2.6.12": false, "3.0.0": true} {
		o.Version = version
		config, err := Render(service, o)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(config.Text) {
			if strings.HasPrefix(line, "    server i1 ") && strings.Contains(line, " curves ") != known {
				t.Errorf("%s: %s", version, line)
			}
		}
		if len(config.Notes) == 0 {
			t.Error("nothing is noted of the key exchange that OpenSSL 3.0 does not speak")
		}
	}
}
