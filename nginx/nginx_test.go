package nginx

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign.dev/engine"
	"countersign.dev/engine/enginetest"
	"countersign.dev/mesh"
)

func options() engine.Options {
	return engine.Options{Certificates: "/certs", Run: "/run/x", Address: netip.MustParseAddr("10.0.0.1"), StreamModule: DefaultStreamModule, Callers: true}
}

// structure reads a configuration as NGINX does (ngx_conf_read_token) and gives for each directive its name,
// the number of its words, and how it ends.
func structure(text string) ([]string, error) {
	var out []string
	var words []string
	depth := 0
	for i := 0; i < len(text); {
		switch c := text[i]; c {
		case ' ', '\t', '\n', '\r':
			i++
		case '#':
			for i < len(text) && text[i] != '\n' {
				i++
			}
		case ';', '{', '}':
			if slices.ContainsFunc(words, func(w string) bool { return len(w) >= 4096 }) {
				return nil, fmt.Errorf("too long a parameter in %.80q", words)
			}
			if (c == '}') != (len(words) == 0) {
				return nil, fmt.Errorf("%q after %q", c, words)
			}
			if c == '}' {
				depth--
			} else {
				name := words[0]
				if depth > 0 && strings.ContainsAny(name, `~"`) {
					name = "KEY"
				}
				out = append(out, fmt.Sprintf("%d %s %d %c", depth, name, len(words), c))
			}
			if c == '{' {
				depth++
			}
			words = nil
			i++
		case '"', '\'':
			end := i + 1
			for end < len(text) && text[end] != c {
				if text[end] == '\\' {
					end++
				}
				end++
			}
			if end >= len(text) || end+1 < len(text) && !strings.ContainsRune(" \t\r\n;{)", rune(text[end+1])) {
				return nil, fmt.Errorf("what follows a quotation mark at %d", end)
			}
			words = append(words, text[i:end+1])
			i = end + 1
		default:
			end := i
			for end < len(text) && !strings.ContainsRune(" \t\r\n;{", rune(text[end])) {
				if text[end] == '\\' {
					end++
				}
				end++
			}
			words = append(words, text[i:end])
			i = end
		}
	}
	if depth != 0 || len(words) != 0 {
		return nil, fmt.Errorf("it ends in depth %d after %q", depth, words)
	}
	return out, nil
}

func TestStructure(t *testing.T) {
	for _, broken := range []string{`a "b;`, "a {", "a", "}", `a "b"c;`, "a } ;", "a " + strings.Repeat("b", 4096) + ";"} {
		if got, err := structure(broken); err == nil {
			t.Errorf("%q is taken for %q", broken, got)
		}
	}
	harmless, err := structure(`x "a\"b;{}";`)
	if err != nil || len(harmless) != 1 {
		t.Errorf("%q, %v", harmless, err)
	}
	if injected, err := structure(`x "a";{}";`); err == nil && slices.Equal(injected, harmless) {
		t.Error("an injection is not seen")
	}
}

var texts = enginetest.Renderer{Render: Render, Plans: enginetest.Plans, Options: options, Structure: structure}

// FuzzTexts asserts that no text of a Plan changes the structure of the configuration.
func FuzzTexts(f *testing.F) {
	for _, length := range []int{512, 990, 1000, 1024} {
		f.Add(strings.Repeat(`\`, length), 3)
		f.Add(strings.Repeat(`"`, length), 10)
	}
	texts.FuzzTexts(f)
}

// TestTexts puts each hostile text into each place.
func TestTexts(t *testing.T) { texts.TestTexts(t) }

func TestRefused(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*mesh.Plan, *engine.Options)
		reason string
	}{
		"old":         {func(_ *mesh.Plan, o *engine.Options) { o.Version = "1.18.0" }, "older than 1.22"},
		"variable":    {func(p *mesh.Plan, _ *engine.Options) { p.Inbound[0].Certificate.Cert = "/etc/$host.pem" }, "without $"},
		"relative":    {func(p *mesh.Plan, _ *engine.Options) { p.Inbound[0].Certificate.Key = "k.pem" }, "has to be absolute"},
		"listener":    {func(p *mesh.Plan, _ *engine.Options) { p.Inbound[0].Name = "$x" }, "is not the name of a listener"},
		"tiny weight": {func(p *mesh.Plan, _ *engine.Options) { p.Inbound[0].Routes[0].To[1].Weight = 100000 }, "less than NGINX can split off"},
		"long words": {func(p *mesh.Plan, _ *engine.Options) {
			p.Inbound[0].Routes[0].Match.Headers["x-a"] = strings.Repeat(`\`, 1024)
		}, "and NGINX reads at most 4000"},
		"many routes": {func(p *mesh.Plan, _ *engine.Options) {
			for range 300 {
				p.Inbound[0].Routes = append(p.Inbound[0].Routes, p.Inbound[0].Routes[0])
			}
		}, "and NGINX reads at most 4000"},
		"request timeout": {func(p *mesh.Plan, _ *engine.Options) { p.Inbound[0].Routes[0].RequestTimeout = 1 }, "a bound on the whole request"},
		"split of bytes": {func(p *mesh.Plan, _ *engine.Options) {
			u := *mustUpstream(p, "a_7000")
			u.Name = "other"
			p.Upstreams = append(p.Upstreams, u)
			p.Inbound[1].Routes[0].To = append(p.Inbound[1].Routes[0].To, mesh.Destination{Upstream: "other", Weight: 1})
		}, "expects one name of all of them"},
		"many upstreams": {func(p *mesh.Plan, _ *engine.Options) {
			for i := range 90 {
				u := *mustUpstream(p, "b_9081")
				u.Name = fmt.Sprintf("u%d", i)
				p.Upstreams = append(p.Upstreams, u)
				p.Inbound[0].Routes[0].To = append(p.Inbound[0].Routes[0].To, mesh.Destination{Upstream: u.Name, Weight: 1})
			}
		}, "can be told apart"},
	} {
		t.Run(name, func(t *testing.T) {
			_, plan := enginetest.Plans(t)
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

func mustUpstream(p *mesh.Plan, name string) *mesh.Upstream {
	u, ok := p.Upstream(name)
	if !ok {
		panic("no upstream " + name)
	}
	return u
}

// TestVersion asserts that newer directives are written only for who knows them.
func TestVersion(t *testing.T) {
	service, _ := enginetest.Plans(t)
	o := options()
	for version, own := range map[string]bool{"1.22.1": false, "1.25.0": false, "1.25.1": true, "1.31.0": true} {
		o.Version = version
		config, err := Render(service, o)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(config.Text, "http2 on;"); got != own || strings.Contains(config.Text, "ssl http2") == own {
			t.Errorf("%s: http2 as a directive of its own: %v", version, got)
		}
	}
	o.StreamModule = ""
	config, err := Render(service, o)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(config.Text, "load_module") || len(config.Notes) == 0 {
		t.Errorf("a module is loaded, or nothing is noted: %q", config.Notes)
	}
}

// TestAge asserts that connections from and to peers become no older than is asked for, and those to the application as old as they like.
func TestAge(t *testing.T) {
	service, _ := enginetest.Plans(t)
	grpc, servers := 0, 0
	for _, in := range service.Inbound {
		switch in.Protocol {
		case mesh.GRPC, mesh.HTTP2:
			grpc++
		case mesh.HTTP:
			servers++
			if in.TLS == mesh.Permissive { // one for TLS, one for plaintext
				servers++
			}
		case mesh.TCP:
		}
	}
	if grpc == 0 || servers == 0 {
		t.Fatal("no port of gRPC, or none of HTTP")
	}
	for age, want := range map[time.Duration]int{0: 0, 1500 * time.Millisecond: 1} {
		o := options()
		o.Age = age
		config, err := Render(service, o)
		if err != nil {
			t.Fatal(err)
		}
		upstreams := strings.Count(config.Text[strings.Index(config.Text, "\nhttp {"):strings.Index(config.Text, "\nstream {")], "    upstream to_")
		if got := strings.Count(config.Text, "keepalive_time 1500ms;"); got != want*(servers+upstreams) {
			t.Errorf("%s: %d times, of %d servers and %d upstreams:\n%s", age, got, servers, upstreams, config.Text)
		}
		// Peers leave a port of gRPC by themselves.
		if got := strings.Count(config.Text, "keepalive_time 365d;"); got != grpc {
			t.Errorf("%s: connections over HTTP/2 are left to peers %d times, want %d:\n%s", age, got, grpc, config.Text)
		}
	}
}

// TestRouteWithoutCondition: a gateway that sends everything to one place. NGINX looks at no expression where
// the text is empty, so that there has to be something to look at.
func TestRouteWithoutCondition(t *testing.T) {
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: "/etc", Content: `
mesh: m
services: {a: {ports: [{port: 9080, protocol: http}]}}
gateways: {g: {listen: [{port: 8080, protocol: http}], routes: [{match: {prefix: /}, to: [{service: a}]}]}}
`}})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := spec.Compile("g")
	if err != nil {
		t.Fatal(err)
	}
	config, err := Render(plan, options())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`map "-" $in8080_to {`, `"~^-$" to_a_9080;`} {
		if !strings.Contains(config.Text, want) {
			t.Errorf("the configuration lacks %s:\n%s", want, config.Text)
		}
	}
}
