package policy_test

import (
	"errors"
	"net/url"
	"path"
	"strings"
	"testing"

	"countersign.dev/id"
	"countersign.dev/mesh"
	"countersign.dev/policy"
)

const trustDomain = "shop.internal"

func member(t testing.TB, trustDomain string, kind id.Kind, name string) id.ID {
	t.Helper()
	i, err := id.New(trustDomain, kind, name)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func compile(t testing.TB, rules ...mesh.Rule) *policy.Policy {
	t.Helper()
	p, err := policy.Compile(trustDomain, rules)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestRequest(t *testing.T) {
	a, b := member(t, trustDomain, id.Service, "a"), member(t, trustDomain, id.Service, "b")
	gate := member(t, trustDomain, id.Gateway, "gate")
	probe, server := member(t, trustDomain, id.Probe, "verify"), member(t, trustDomain, id.Server, "countersign")
	foreign := member(t, "other.internal", id.Service, "a")
	anonymous := id.ID{}

	onlyA := []mesh.Rule{{From: []string{a.String()}}}
	everyone := []mesh.Rule{{From: []string{mesh.FromAny}}}
	nobodyKnown := []mesh.Rule{{From: []string{mesh.FromAnonymous}}}
	limited := []mesh.Rule{
		{From: []string{a.String()}, Methods: []string{"GET"}, Paths: []string{"/color", "/public/*"}},
		{From: []string{b.String()}},
	}
	whole := []mesh.Rule{{From: []string{mesh.FromAny}, Paths: []string{"/*"}}}
	tests := []struct {
		name   string
		rules  []mesh.Rule
		caller id.ID
		method string
		path   string
		want   bool
	}{
		{"no rule admits nobody", nil, a, "GET", "/", false},
		{"no rule admits no anonymous", nil, anonymous, "GET", "/", false},
		{"the named one", onlyA, a, "GET", "/x", true},
		{"another", onlyA, b, "GET", "/x", false},
		{"the name in another trust domain", onlyA, foreign, "GET", "/x", false},
		{"anonymous where one is named", onlyA, anonymous, "GET", "/x", false},
		{"any: a service", everyone, b, "GET", "/x", true},
		{"any: a gateway", everyone, gate, "GET", "/x", true},
		{"any: not a probe", everyone, probe, "GET", "/x", false},
		{"any: not the server", everyone, server, "GET", "/x", false},
		{"any: not a foreigner", everyone, foreign, "GET", "/x", false},
		{"any: not anonymous", everyone, anonymous, "GET", "/x", false},
		{"a probe that is named", []mesh.Rule{{From: []string{probe.String()}}}, probe, "GET", "/", false},
		{"anonymous", nobodyKnown, anonymous, "GET", "/x", true},
		{"anonymous does not mean a service", nobodyKnown, a, "GET", "/x", false},
		{"method and exact path", limited, a, "GET", "/color", true},
		{"another method", limited, a, "POST", "/color", false},
		{"a method is compared with case", limited, a, "get", "/color", false},
		{"HEAD is not GET", limited, a, "HEAD", "/color", false},
		{"another path", limited, a, "GET", "/colors", false},
		{"below an exact path", limited, a, "GET", "/color/x", false},
		{"an exact path with a slash", limited, a, "GET", "/color/", false},
		{"below a prefix", limited, a, "GET", "/public/x/y", true},
		{"the prefix itself", limited, a, "GET", "/public", false},
		{"the prefix with its slash", limited, a, "GET", "/public/", false},
		{"a longer segment", limited, a, "GET", "/publicity", false},
		{"encoded letters are the same path", limited, a, "GET", "/c%6Flor", true},
		{"a rule without paths on a port with paths", limited, b, "DELETE", "/anything", true},
		{"ambiguous even for that rule", limited, b, "GET", "/x/../y", false},
		{"every path", whole, a, "GET", "/", true},
		{"every path, deeper", whole, a, "GET", "/a/b", true},
		{"every path is a path", whole, a, "OPTIONS", "*", false},
		{"no path rules, no judgement of paths", onlyA, a, "GET", "/x/../y", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := compile(t, tt.rules...).Request(tt.caller, tt.method, tt.path)
			if got.Allowed != tt.want {
				t.Errorf("allowed = %v (%s), want %v", got.Allowed, got.Reason, tt.want)
			}
			if got.Allowed != (got.Reason == "") {
				t.Errorf("allowed = %v with the reason %q", got.Allowed, got.Reason)
			}
		})
	}
}

func TestAmbiguousPaths(t *testing.T) {
	a := member(t, trustDomain, id.Service, "a")
	p := compile(t, mesh.Rule{From: []string{mesh.FromAny}, Paths: []string{"/*"}})
	for _, bad := range []string{
		"", "x", "/a/../b", "/..", "/a/./b", "/.", "/a//b", "//a", "/a%2fb", "/a%2Fb", "/a%5cb", `/a\b`, "/a;x=1/b", "/a%3bb",
		"/a/%2e%2e/b", "/a/.%2E/b", "/%2e", "/a%00", "/a%0a", "/a%7f", "/a%252fb", "/a%", "/a%2", "/a%zz", "/a b", "/a\x01", "/é",
		"/%c0%af", "/%ff", "/a?b", "/a#b", "/a%3fb", "/a%23b",
	} {
		if d := p.Request(a, "GET", bad); d.Allowed {
			t.Errorf("%q is admitted", bad)
		}
	}
	for _, good := range []string{"/", "/a", "/a/", "/a.b", "/..a", "/a..", "/...", "/caf%C3%A9", "/a%20b", "/a+b,c:d@e!$&'()*=~-_"} {
		if d := p.Request(a, "GET", good); !d.Allowed {
			t.Errorf("%q is refused: %s", good, d.Reason)
		}
	}
}

func TestConnection(t *testing.T) {
	a, b := member(t, trustDomain, id.Service, "a"), member(t, trustDomain, id.Service, "b")
	p := compile(t, mesh.Rule{From: []string{a.String()}}, mesh.Rule{From: []string{b.String()}, Methods: []string{"GET"}})
	if d := p.Connection(a); !d.Allowed {
		t.Errorf("a is refused: %s", d.Reason)
	}
	for _, caller := range []id.ID{b, {}, member(t, trustDomain, id.Probe, "verify")} {
		if d := p.Connection(caller); d.Allowed || d.Reason == "" {
			t.Errorf("%q: allowed = %v, reason %q", caller, d.Allowed, d.Reason)
		}
	}
	if d := (*policy.Policy)(nil).Connection(a); d.Allowed {
		t.Error("no policy admits a caller")
	}
	if d := (*policy.Policy)(nil).Request(a, "GET", "/"); d.Allowed {
		t.Error("no policy admits a request")
	}
}

func TestCompileRefuses(t *testing.T) {
	for _, r := range []mesh.Rule{
		{From: []string{"a"}},
		{From: []string{"spiffe://shop.internal/service/"}},
		{From: []string{mesh.FromDNS + "checkout.payments.internal"}},
		{From: []string{mesh.FromAny}, Paths: []string{"color"}},
		{From: []string{mesh.FromAny}, Paths: []string{"/a/../b"}},
		{From: []string{mesh.FromAny}, Paths: []string{"*"}},
	} {
		if _, err := policy.Compile(trustDomain, []mesh.Rule{r}); !errors.Is(err, policy.ErrRule) {
			t.Errorf("%+v: error %v, want ErrRule", r, err)
		}
	}
}

func TestReasonIsBounded(t *testing.T) {
	a := member(t, trustDomain, id.Service, "a")
	p := compile(t, mesh.Rule{From: []string{mesh.FromAny}, Methods: []string{"GET"}})
	d := p.Request(a, strings.Repeat("X", 1<<16), "/")
	if d.Allowed || len(d.Reason) > 200 {
		t.Errorf("allowed = %v, reason of %d bytes", d.Allowed, len(d.Reason))
	}
}

// FuzzRequest looks for a path that the policy reads below /public/ and an application elsewhere.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{"/public/x", "/public/../secret", "/public/%2e%2e/secret", "/public/%252e", "/public//x", "/public/\x00"} {
		f.Add(seed)
	}
	a := member(f, trustDomain, id.Service, "a")
	p := compile(f, mesh.Rule{From: []string{mesh.FromAny}, Paths: []string{"/public/*"}})
	f.Fuzz(func(t *testing.T, raw string) {
		if !p.Request(a, "GET", raw).Allowed {
			return
		}
		once, err := url.PathUnescape(raw)
		if err != nil {
			t.Fatalf("%q is admitted and cannot be decoded: %v", raw, err)
		}
		twice, err := url.PathUnescape(once)
		if err != nil {
			twice = once
		}
		for _, reading := range []string{once, twice, strings.ReplaceAll(twice, `\`, "/")} {
			if clean := path.Clean(reading); !strings.HasPrefix(clean, "/public/") {
				t.Fatalf("%q is admitted and may be read as %q", raw, clean)
			}
		}
		if u, err := url.ParseRequestURI(raw); err != nil || u.Path != once {
			t.Fatalf("%q is admitted; net/url reads it as %v, %v", raw, u, err)
		}
	})
}
