package haproxy

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

// plans are those of enginetest with an endpoint in each upstream: HAProxy has a server for each.
func plans(t testing.TB) (service, gateway *mesh.Plan) {
	t.Helper()
	service, gateway = enginetest.Plans(t)
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

var texts = enginetest.Renderer{Render: Render, Plans: plans, Options: options, Structure: structure}

// FuzzTexts asserts that no text of a Plan changes the structure of the configuration.
func FuzzTexts(f *testing.F) {
	texts.FuzzTexts(f)
}

// TestTexts puts each hostile text into each place.
func TestTexts(t *testing.T) { texts.TestTexts(t) }

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

// TestAge asserts that connections of peers over HTTP/1 become no older than is asked for, and that it is said of whom that is not so.
func TestAge(t *testing.T) {
	service, _ := plans(t)
	i := slices.IndexFunc(service.Upstreams, func(u mesh.Upstream) bool { return u.Protocol == mesh.HTTP })
	service.Upstreams[i].Protocol = mesh.GRPC
	for _, age := range []time.Duration{0, 1500 * time.Millisecond} {
		o := options()
		o.Age = age
		config, err := Render(service, o)
		if err != nil {
			t.Fatal(err)
		}
		began := strings.Count(config.Text, "    tcp-request session set-var(sess.began) date(0,ms)\n")
		ended := strings.Count(config.Text, "    http-after-response set-header Connection close if { date(0,ms),sub(sess.began) ge 1500 } !{ status 101 }\n")
		said := strings.Contains(strings.Join(config.Notes, "\n"), "are closed when they are 1.5s old; HAProxy ends those over HTTP/2 only when it is stopped, or as a caller after many requests")
		if grpc, reused := strings.Count(config.Text, " alpn h2\n")+strings.Count(config.Text, " alpn h2 "), strings.Count(config.Text, " alpn h2 max-reuse 5\n"); grpc != 1 || (age > 0) != (reused == 1) {
			t.Errorf("%s: %d of %d servers over HTTP/2 are left before they close\n%s", age, reused, grpc, config.Text)
		}
		if began != ended || (age > 0) != (began > 0) || (age > 0) != said {
			t.Errorf("%s: %d and %d times, noted: %v\n%s", age, began, ended, said, config.Text)
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
