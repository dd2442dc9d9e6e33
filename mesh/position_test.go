package mesh_test

import (
	"errors"
	"fmt"
	"testing"

	"countersign.dev/mesh"
)

// TestPositions proves where errors are placed in texts that no archive of text files can hold as they
// are: line endings, marks at the beginning, tabs, other encodings.
func TestPositions(t *testing.T) {
	const lf = "mesh: a\nservices:\n  b:\n    names: [\"x\n      y\", B]\n    zebra: 1\n"
	tests := map[string]struct{ text, want string }{
		"lf":                        {lf, "4:13 services.b.names[0]"},
		"crlf":                      {"mesh: a\r\nservices:\r\n  b:\r\n    zebra: 1\r\n", "4:5 services.b.zebra"},
		"crlf inside quotes":        {"mesh: a\r\nservices: {b: {names: [\"x\r\n y\"]}}\r\nzebra: 1\r\n", "2:24 services.b.names[0]"},
		"after crlf inside quotes":  {"mesh: \"a\"\r\nservices: {b: {run: {command: [\"x\r\n y\", [1]]}}}\r\n", "3:6 services.b.run.command[1]"},
		"byte order mark":           {"\ufeffzebra: 1\nmesh: a\n", "1:1 zebra"},
		"byte order mark, one line": {"\ufeff{mesh: a, zebra: 1}", "1:11 zebra"},
		"tab between":               {"mesh: a\nservices:\t{b:\t\t{zebra: 1}}\n", "2:17 services.b.zebra"},
		"wide characters":           {"mesh: a\nservices: {\"日本語\": {}, zebra-: {}, x: {\"é\": 1}}", "2:12 services[\"日本語\"]"},
		"beyond the basic plane":    {"# 😀\nmesh: a # 😀\nservices: {b: {run: {command: [😀, [1]]}}}", "3:35 services.b.run.command[1]"},
		"combining characters":      {"mesh: a\nservices: {b: {run: {command: [e\u0301, [1]]}}}", "2:36 services.b.run.command[1]"},
		"no line end":               {"mesh: a\nzebra: 1", "2:1 zebra"},
		"comment before":            {"# one\n\n# two\nmesh: a\nzebra: 1\n", "5:1 zebra"},
		"explicit key":              {"mesh: a\n? zebra\n: 1\n", "2:3 zebra"},
		"quoted key":                {"mesh: a\n  \n'zebra': 1\n", "3:1 zebra"},
		"anchored value":            {"mesh: a\nservices: {b: {tls: &x maybe}}\n", "2:21 services.b.tls"},
		"folded scalar":             {"mesh: a\nservices:\n  b:\n    tls: >\n      maybe\n", "4:10 services.b.tls"},
		"plain over lines":          {"mesh: a\nservices:\n  b:\n    tls: may\n      be\n", "4:10 services.b.tls"},
		"document start":            {"%YAML 1.2\n---\nmesh: a\nzebra: 1\n...\n", "4:1 zebra"},
		"older directive":           {"%YAML 1.1\n---\nmesh: a\nzebra: 1\n", "4:1 zebra"},
		"other directive":           {"%YAML 3.0\n---\nmesh: a\n", "1:1 yaml"},
		"second document":           {"mesh: a\n...\n---\nmesh: b\n", "3:1 yaml"},
		"empty second document":     {"mesh: a\n---\n", "2:1 yaml"},
		"latin-1":                   {"mesh: a\n# \xe9\n", "2:3 yaml"},
		"utf-16":                    {"\xff\xfem\x00e\x00s\x00h\x00", "1:1 yaml"},
		"truncated utf-8":           {"mesh: a\n# é\xe2\x82", "2:4 yaml"},
		"lone carriage return":      {"mesh: a\rzebra: 1\n", "1:8 yaml"},
		"next line character":       {"mesh: a\n# \u0085\n", "2:3 yaml"},
		"nul":                       {"mesh: a\x00\n", "1:8 yaml"},
		"second byte order mark":    {"mesh: a\n\ufeffzebra: 1\n", "2:1 yaml"},
		"tab indents":               {"mesh: a\nservices:\n\tb: {}\n", "3:1 yaml"},
		"unclosed at the end":       {"mesh: a\nservices: {b: {", "2:16 yaml"},
		"missing below an alias":    {"mesh: a\nservices:\n  b: {ports: [&p {port: 1}]}\n", "3:7 services.b.ports[0].protocol"},
		"empty list":                {"mesh: a\nservices:\n  b:\n    run:\n      command:\n        []\n", "6:9 services.b.run.command"},
		"nothing there":             {"mesh: a\nservices:\n  b:\n    ports:\n  c: {}\n", "4:5 services.b.ports"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Content: test.text}})
			var errs mesh.Errors
			if !errors.As(err, &errs) {
				t.Fatalf("got %v, want mesh.Errors", err)
			}
			if got := fmt.Sprintf("%d:%d %s", errs[0].Line, errs[0].Column, errs[0].Path); got != test.want {
				t.Errorf("%s: got %s, want %s", err, got, test.want)
			}
			checkErrors(t, test.text, err)
		})
	}
}
