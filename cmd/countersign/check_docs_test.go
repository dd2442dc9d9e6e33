package main

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestCheckPage runs the commands of docs/check-expiry.md, and sees that they print what it says.
func TestCheckPage(t *testing.T) { runPage(t, "check-expiry.md", 4) }

// TestCheckCodes asserts that the page has every code, and no other.
func TestCheckCodes(t *testing.T) {
	source, err := os.ReadFile("../../expiry/expiry.go")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../docs/check-expiry.md")
	if err != nil {
		t.Fatal(err)
	}
	codes := func(text []byte, pattern string) []string {
		var all []string
		for _, match := range regexp.MustCompile(pattern).FindAllSubmatch(text, -1) {
			all = append(all, string(match[1]))
		}
		slices.Sort(all)
		return all
	}
	want := codes(source, `Code = "([a-z_]+)"`)
	if len(want) == 0 {
		t.Fatal("there are no codes")
	}
	if diff := cmp.Diff(want, codes(page, "(?m)^\\| `([a-z_]+)` \\|")); diff != "" {
		t.Errorf("codes on the page (-want +got):\n%s", diff)
	}
}
