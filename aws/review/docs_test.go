package review_test

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/aws/review"
)

// codes are all that there are.
func codes(t *testing.T) []review.Code {
	t.Helper()
	return find(t, "review.go", `Code = "([a-z0-9_]+)"`)
}

func find(t *testing.T, path, pattern string) []review.Code {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []review.Code
	for _, match := range regexp.MustCompile(pattern).FindAllSubmatch(text, -1) {
		all = append(all, review.Code(match[1]))
	}
	if len(all) == 0 {
		t.Fatalf("%s has no codes", path)
	}
	slices.Sort(all)
	return all
}

// TestPage asserts that the page has every code, and no other.
func TestPage(t *testing.T) {
	if diff := cmp.Diff(codes(t), find(t, "../../docs/check-aws.md", "(?m)^\\| `([a-z0-9_]+)` \\|")); diff != "" {
		t.Errorf("codes on the page (-want +got):\n%s", diff)
	}
}
