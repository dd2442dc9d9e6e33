package id

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	label63 := strings.Repeat("a", 63)
	cases := []struct {
		in   string
		want error // nil: it is accepted, and String gives it back
	}{
		{"spiffe://colorapp.internal/service/colorteller", nil},
		{"spiffe://colorapp.internal/gateway/colorgateway", nil},
		{"spiffe://a/probe/verify", nil},
		{"spiffe://a/server/countersign", nil},
		{"spiffe://1.2/service/0-0", nil},
		{"spiffe://" + label63 + "/service/" + label63, nil},
		{"", ErrID},
		{"spiffe://", ErrID},
		{"spiffe:///service/a", ErrTrustDomain},
		{"SPIFFE://a/service/a", ErrID},
		{"spiffe:/a/service/a", ErrID},
		{"https://a/service/a", ErrID},
		{"spiffe://a/service/a/", ErrID},
		{"spiffe://a/service//a", ErrID},
		{"spiffe://a/service", ErrID},
		{"spiffe://a/service/", ErrID},
		{"spiffe://a/workload/a", ErrID},
		{"spiffe://a/Service/a", ErrID},
		{"spiffe://a/service/A", ErrID},
		{"spiffe://A/service/a", ErrTrustDomain},
		{"spiffe://a_b/service/a", ErrTrustDomain},
		{"spiffe://a./service/a", ErrTrustDomain},
		{"spiffe://.a/service/a", ErrTrustDomain},
		{"spiffe://a..b/service/a", ErrTrustDomain},
		{"spiffe://a:443/service/a", ErrTrustDomain},
		{"spiffe://user@a/service/a", ErrTrustDomain},
		{"spiffe://a/service/a?b", ErrID},
		{"spiffe://a/service/a#b", ErrID},
		{"spiffe://a/service/%61", ErrID},
		{"spiffe://a/service/..", ErrID},
		{"spiffe://a/service/-a", ErrID},
		{"spiffe://a/service/a-", ErrID},
		{"spiffe://a/service/a.b", ErrID},
		{"spiffe://a/service/a\n", ErrID},
		{" spiffe://a/service/a", ErrID},
		{"spiffe://a/service/ä", ErrID},
		{"spiffe://" + strings.Repeat("a.", 33) + "/service/a", ErrTrustDomain},
		{"spiffe://a/service/" + label63 + "a", ErrID},
	}
	for _, c := range cases {
		got, err := Parse(c.in)
		if c.want == nil {
			if err != nil || got.String() != c.in {
				t.Errorf("%q: %q, %v", c.in, got, err)
			}
			continue
		}
		if !errors.Is(err, c.want) || !got.IsZero() {
			t.Errorf("%q: %q, %v; want the error %v", c.in, got, err, c.want)
		}
	}
}

// TestErrorsAreShort parses what a stranger's certificate may hold.
func TestErrorsAreShort(t *testing.T) {
	for _, text := range []string{strings.Repeat("x", 1<<20), "spiffe://a/service/" + strings.Repeat("x", 1<<20)} {
		if _, err := Parse(text); !errors.Is(err, ErrID) || len(err.Error()) > 500 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	}
}

func TestParts(t *testing.T) {
	i, err := New("colorapp.internal", Gateway, "front")
	if err != nil {
		t.Fatal(err)
	}
	for what, pair := range map[string][2]string{
		"trust domain": {i.TrustDomain(), "colorapp.internal"},
		"kind":         {string(i.Kind()), "gateway"},
		"name":         {i.Name(), "front"},
		"server name":  {i.ServerName(), "front.colorapp.internal"},
		"text":         {i.String(), "spiffe://colorapp.internal/gateway/front"},
		"URL":          {i.URL().String(), "spiffe://colorapp.internal/gateway/front"},
		"zero":         {ID{}.String(), ""},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %q, want %q", what, pair[0], pair[1])
		}
	}
	same, err := Parse(i.String())
	if err != nil || same != i {
		t.Errorf("IDs of one text differ: %v, %v", same, err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []struct {
		trustDomain string
		kind        Kind
		name        string
		want        error
	}{
		{"", Service, "a", ErrTrustDomain},
		{"a", "", "a", ErrID},
		{"a", "task", "a", ErrID},
		{"a", Service, "", ErrDNSName},
	} {
		if got, err := New(c.trustDomain, c.kind, c.name); !errors.Is(err, c.want) || !got.IsZero() {
			t.Errorf("%+v: %v, %v", c, got, err)
		}
	}
}

func TestJSON(t *testing.T) {
	type message struct {
		Identity ID `json:"identity"`
	}
	for _, text := range []string{`{"identity":"spiffe://a/service/b"}`, `{"identity":""}`} {
		var m message
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			t.Fatal(err)
		}
		back, err := json.Marshal(m)
		if err != nil || string(back) != text {
			t.Errorf("%s became %s, %v", text, back, err)
		}
	}
	m := message{Identity: ID{"a", Service, "kept"}}
	if err := json.Unmarshal([]byte(`{"identity":"spiffe://a/b"}`), &m); !errors.Is(err, ErrID) {
		t.Errorf("a bad ID: %v", err)
	}
}

func TestFromCertificate(t *testing.T) {
	parse := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	good := parse("spiffe://a.b/service/c")
	cases := map[string]struct {
		uris []*url.URL
		ok   bool
	}{
		"one":             {[]*url.URL{good}, true},
		"none":            {nil, false},
		"two":             {[]*url.URL{good, parse("spiffe://a.b/service/d")}, false},
		"twice the same":  {[]*url.URL{good, good}, false},
		"another scheme":  {[]*url.URL{parse("https://a.b/service/c")}, false},
		"with a query":    {[]*url.URL{parse("spiffe://a.b/service/c?d")}, false},
		"with an escape":  {[]*url.URL{parse("spiffe://a.b/service/%63")}, false},
		"with a fragment": {[]*url.URL{parse("spiffe://a.b/service/c#d")}, false},
		"with a user":     {[]*url.URL{parse("spiffe://x@a.b/service/c")}, false},
		"opaque":          {[]*url.URL{parse("spiffe:a.b/service/c")}, false},
	}
	for name, c := range cases {
		got, err := FromCertificate(&x509.Certificate{URIs: c.uris})
		if c.ok != (err == nil) || (c.ok && got.String() != good.String()) || (!c.ok && !errors.Is(err, ErrID)) && !errors.Is(err, ErrTrustDomain) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestCheckDNSName(t *testing.T) {
	long := strings.Repeat("abcdefghi.", 25) + "abc" // 253 characters
	for name, ok := range map[string]bool{
		"a": true, "a.b": true, "0.1": true, "a-b.c": true, "xn--a": true, long: true,
		"": false, ".": false, "a.": false, ".a": false, "*.a": false, "a b": false, "A": false,
		"a/b": false, "a_b": false, "é": false, long + "d": false, strings.Repeat("a", 64): false,
	} {
		if err := CheckDNSName(name); (err == nil) != ok || (err != nil && !errors.Is(err, ErrDNSName)) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// FuzzParse asserts that an accepted text is canonical and that its parts are what they claim.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"spiffe://colorapp.internal/service/colorteller", "spiffe://a/probe/verify", "spiffe://a/service/",
		"spiffe://a_b/service/c", "spiffe:///", "", "spiffe://a/service/a%2fb", "spiffe://1.2.3.4:5/gateway/x",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := Parse(text)
		if err != nil {
			if !errors.Is(err, ErrID) && !errors.Is(err, ErrTrustDomain) {
				t.Errorf("%q: an error without a sentinel: %v", text, err)
			}
			return
		}
		if got.String() != text {
			t.Errorf("%q was accepted and reads as %q", text, got)
		}
		if again, err := FromCertificate(&x509.Certificate{URIs: []*url.URL{got.URL()}}); err != nil || again != got {
			t.Errorf("%q does not survive a certificate: %v, %v", text, again, err)
		}
		if err := CheckDNSName(got.ServerName()); err != nil {
			t.Errorf("%q has the server name %q: %v", text, got.ServerName(), err)
		}
	})
}
