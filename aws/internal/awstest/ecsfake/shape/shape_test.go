package shape_test

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/aws/internal/awstest/ecsfake/shape"
)

type word string

type part struct {
	Name  *string
	Count int32
	Ratio *float64
}

type whole struct {
	Parts  []part
	Kind   word
	On     *bool
	At     *time.Time
	Labels map[string]string
}

func TestFill(t *testing.T) {
	for name, c := range map[string]struct {
		document any
		want     string
	}{
		"everything":       {map[string]any{"parts": []any{map[string]any{"name": "a", "count": 2.0, "ratio": "0.5"}}, "Kind": "K", "on": "true", "at": 1.5, "labels": map[string]any{"a": "b"}}, ""},
		"null is not set":  {map[string]any{"kind": nil}, ""},
		"unknown":          {map[string]any{"colour": "red"}, "doc.colour: there is no such member"},
		"unknown deep":     {map[string]any{"parts": []any{map[string]any{"x": 1}}}, "doc.parts[0].x: there is no such member"},
		"no list":          {map[string]any{"parts": "x"}, "doc.parts: want a list"},
		"no map":           {[]any{}, "doc: want a map"},
		"no map of labels": {map[string]any{"labels": "x"}, "doc.labels: want a map"},
		"no number":        {map[string]any{"parts": []any{map[string]any{"count": "two"}}}, `doc.parts[0].count: want a int32, have "two"`},
		"too large":        {map[string]any{"parts": []any{map[string]any{"count": 1 << 40}}}, "want a int32"},
		"no truth value":   {map[string]any{"on": "perhaps"}, "doc.on: want a bool"},
		"no value":         {map[string]any{"kind": map[string]any{"Ref": "x"}}, "doc.kind: want one value"},
		"no time":          {map[string]any{"at": "noon"}, "doc.at: want a time"},
	} {
		t.Run(name, func(t *testing.T) {
			var got whole
			err := shape.Fill(&got, c.document, "doc")
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestRoundTrip(t *testing.T) {
	on, a, at := true, "a", time.Unix(1, 5e8).UTC()
	want := whole{Parts: []part{{Name: &a, Count: 2}}, Kind: "K", On: &on, At: &at, Labels: map[string]string{"x": "y"}}
	document := shape.JSON(want)
	if diff := cmp.Diff(map[string]any{
		"parts": []any{map[string]any{"name": "a", "count": int32(2)}},
		"kind":  word("K"), "on": true, "at": 1.5, "labels": map[string]any{"x": "y"},
	}, document); diff != "" {
		t.Error(diff)
	}
	var text strings.Builder
	if err := shape.XML(&text, "Whole", whole{Parts: want.Parts, Kind: "<", At: &at}); err != nil {
		t.Fatal(err)
	}
	const wanted = `<Whole><Parts><member><Name>a</Name><Count>2</Count></member></Parts><Kind>&lt;</Kind><At>1970-01-01T00:00:01Z</At></Whole>`
	if text.String() != wanted {
		t.Errorf("XML %s, want %s", text.String(), wanted)
	}
}

func TestForm(t *testing.T) {
	got, err := shape.Form(url.Values{"Action": {"X"}, "Version": {"1"}, "Kind": {"K"}, "Parts.member.1.Name": {"a"}, "Parts.member.2.Name": {"b"}, "List.member.1": {"x"}})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"Kind": "K", "Parts": []any{map[string]any{"Name": "a"}, map[string]any{"Name": "b"}}, "List": []any{"x"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, wrong := range []url.Values{{"A": {"x"}, "A.b": {"y"}}, {"member.1": {"x"}}} {
		if _, err := shape.Form(wrong); err == nil {
			t.Errorf("%v is no error", wrong)
		}
	}
}

// FuzzForm sees that no query makes the decoder fail other than by an error.
func FuzzForm(f *testing.F) {
	f.Add("Parts.member.1.Name=a&Kind=x&At=1")
	f.Add("member.1=x&A=1&A.b=2&.=&..member.1=")
	f.Fuzz(func(t *testing.T, query string) {
		values, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		document, err := shape.Form(values)
		if err != nil {
			return
		}
		var got whole
		if shape.Fill(&got, document, "doc") == nil {
			_ = shape.JSON(got)
		}
	})
}
