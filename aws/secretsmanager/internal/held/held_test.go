package held_test

import (
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/aws/secretsmanager/internal/held"
)

var until = time.UnixMilli(1795421916123).UTC()

func TestLabel(t *testing.T) {
	// The longest that a rotation calls itself.
	host, user := strings.Repeat("h", 64), strings.Repeat("u", 64)
	for _, holder := range []string{"a test", "a: b+c%, d", "é", "countersign rotate on " + host + ", pid 4194304, user " + user + ", place 0123456789ab"} {
		want := held.Name{Holder: holder, Word: "ABCDEFGHIJKLM", Until: until}
		got, ok := held.Parse(want.Label())
		if diff := cmp.Diff(want, got); !ok || diff != "" || !want.Check() {
			t.Errorf("%q does not come back: %v (-want +got):\n%s", want.Label(), want.Check(), diff)
		}
	}
	for _, holder := range []string{"", "a\nb", strings.Repeat("x", 201), strings.Repeat("é", 50)} {
		if (held.Name{Holder: holder, Word: "ABCDEFGHIJKLM", Until: until}).Check() {
			t.Errorf("%q has room on a label", holder)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	const prefix = "COUNTERSIGN-HELD:"
	for _, label := range []string{
		"", "AWSCURRENT", "COUNTERSIGN-LEASE", prefix, prefix + "1:2", prefix + "x:word:one", prefix + "1:word:", prefix + "1:word:%zz",
		prefix + "1:word:a%0Ab", prefix + "99999999999999999999:word:one",
	} {
		if n, ok := held.Parse(label); ok {
			t.Errorf("%q is taken for %+v", label, n)
		}
	}
}

// FuzzParse shows that no label, which anybody may have attached, breaks its reader.
func FuzzParse(f *testing.F) {
	f.Add("COUNTERSIGN-HELD:1795421916123:ABCDEFGHIJKLM:countersign+rotate+on+host%2C+pid+1")
	f.Add("COUNTERSIGN-HELD:-9223372036854775808::%E2%80%A8")
	f.Fuzz(func(t *testing.T, label string) {
		n, ok := held.Parse(label)
		if !ok {
			return
		}
		if n.Holder == "" || len(n.Holder) > held.MaxHolder || strings.ContainsFunc(n.Holder, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q holds %q", label, n.Holder)
		}
		if again, ok := held.Parse(n.Label()); !ok || again.Holder != n.Holder || again.Word != n.Word {
			t.Errorf("%q became %q", label, n.Label())
		}
	})
}
