package message

import (
	"fmt"
	"strings"
	"testing"
)

func TestCharacters(t *testing.T) {
	for _, c := range []struct {
		name   string
		is     func(string) bool
		yes    []string
		refuse []string
	}{
		{"token", IsToken[string], []string{"GET", "x-a_b.c~"}, []string{"", "a b", "a:", "ä", "a\r"}},
		{"value", IsValue[string], []string{"", "a b\tc", "ä"}, []string{" a", "a ", "a\x00b", "a\nb", "\x7f"}},
		{"target", IsTarget[string], []string{"/", "/a?b=%2F|{}", "/a;b"}, []string{"", "a", "/a b", "/%2", "/%zz", "/#", `/\`, "/ä", "/\x00"}},
		{
			"authority", IsAuthority[string],
			[]string{"a", "a.test:80", "127.0.0.1:65535", "[::1]", "[::1]:80", "a_b-c"},
			[]string{"", "u@a", "a/b", "a b", "a%41", "a:", ":80", "a:80:81", "a:x", "a:123456", "[::1", "::1", "a]", "a[b]", "[]", "[::1]80", "[::1%25lo]", "[v1.a]"},
		},
		{"host and port", IsHostPort[string], []string{"a:1", "[::1]:80"}, []string{"", "a", "a:", ":1", "[::1]", "a:1:2"}},
	} {
		for _, s := range c.yes {
			if !c.is(s) {
				t.Errorf("%q is no %s", s, c.name)
			}
		}
		for _, s := range c.refuse {
			if c.is(s) {
				t.Errorf("%q is a %s", s, c.name)
			}
		}
	}
	if !EqualFold("X-Client", []byte("x-cLIENT")) || EqualFold("a", "ab") || EqualFold("K", "\u212a") {
		t.Error("names are not compared as ASCII without case")
	}
}

func TestHead(t *testing.T) {
	var h Head
	h.Reset()
	h.Add("x-a", "1")
	h.Add("x-b", "2")
	h.Add("x-a", "3")
	h.Remove(func(name string) bool { return name == "x-b" })
	if got, ok := h.Get("x-a"); got != "1" || !ok || len(h.Fields) != 2 || h.Fields[1].Value != "3" {
		t.Errorf("%+v", h.Fields)
	}
	if _, ok := h.Get("x-b"); ok {
		t.Error("x-b is still there")
	}
	h.ContentLength, h.Close = 5, true
	if h.Reset(); len(h.Fields) != 0 || h.ContentLength != Unknown || h.Close || h.Minor != 1 {
		t.Errorf("after Reset: %+v", h)
	}
}

// TestIntern checks that texts are kept, and that what a stranger sends does not fill the memory.
func TestIntern(t *testing.T) {
	var in Interner
	for i := range 10 * maxGeneration {
		text := fmt.Sprint("value", i)
		if got := in.String([]byte(text)); got != text {
			t.Fatalf("%q became %q", text, got)
		}
	}
	if n := len(in.young) + len(in.old); n > 2*maxGeneration {
		t.Errorf("%d texts are kept", n)
	}
	long := strings.Repeat("A", 2*maxInterned)
	if got := in.Name([]byte(long)); got != strings.ToLower(long) {
		t.Error("a long name is not in lower case")
	}
	before := len(in.young)
	if in.Value("authorization", []byte("secret")); len(in.young) != before {
		t.Error("a credential is kept")
	}
	known := []byte("X-Known")
	in.Name(known)
	if n := testing.AllocsPerRun(100, func() { in.Name(known) }); n != 0 {
		t.Errorf("a known name costs %v allocations", n)
	}
}
