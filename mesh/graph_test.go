package mesh_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"countersign.dev/mesh"
)

// parse reads a specification that has to be right.
func parse(t testing.TB, text string) *mesh.Spec {
	t.Helper()
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: "/spec", Content: text}})
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

const graphed = `
mesh: end
services:
  front:
    ports: [{port: 80, protocol: http}]
    calls: [{service: stock, listen: 1}, {service: end, port: 2}, {service: end, port: 3}]
  stock:
    ports: [{port: 7000, protocol: tcp, allow: [{from: gate}]}]
  end:
    tls: permissive
    ports: [{port: 2, protocol: grpc}, {port: 3, protocol: http2, clientAuth: none, tls: strict}]
    calls: [{service: round, listen: 4}]
  round:
    tls: off
    ports: [{port: 4, protocol: http}]
    calls: [{service: end, port: 2}, {service: round, listen: 5}]
  ping: {ports: [{port: 5, protocol: http}], calls: [{service: pong, listen: 6}]}
  pong: {ports: [{port: 5, protocol: http}], calls: [{service: ping, listen: 6}]}
  alone: {}
gateways:
  gate:
    listen: [{port: 8080, protocol: http}, {port: 8443, protocol: http2, certificate: {cert: a, key: b}}, {port: 1, protocol: tcp}]
    routes:
      - {match: {listener: 1}, to: [{service: stock}]}
      - {match: {prefix: /a}, to: [{service: front}]}
      - to: [{service: front}]
`

func TestGraph(t *testing.T) {
	spec := parse(t, graphed)
	for _, format := range []mesh.GraphFormat{mesh.Mermaid, mesh.DOT, mesh.Tree} {
		t.Run(string(format), func(t *testing.T) {
			got, err := spec.Graph(format)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "testdata/graph/"+string(format)+".golden", []byte(got))
			if again, _ := parse(t, graphed).Graph(format); again != got {
				t.Error("two drawings of one specification differ")
			}
		})
	}
	if _, err := spec.Graph("svg"); err == nil || !strings.Contains(err.Error(), "mermaid, dot and tree") {
		t.Errorf("Graph(svg) = %v, want an error that says what is possible", err)
	}
}

// TestGraphviz has Graphviz read a drawing, where it is installed.
func TestGraphviz(t *testing.T) {
	dot, err := exec.LookPath("dot")
	if err != nil {
		t.Skip("Graphviz is not installed: the dot format is only compared with its golden file")
	}
	text, err := parse(t, graphed).Graph(mesh.DOT)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), dot, "-Tplain")
	cmd.Stdin, cmd.Stderr = strings.NewReader(text), os.Stderr
	if out, err := cmd.Output(); err != nil || !strings.Contains(string(out), "edge gate stock") {
		t.Errorf("dot: %v\n%s", err, out)
	}
}

// TestGraphText proves that no text ends its quotes or opens markup, whatever it holds.
func TestGraphText(t *testing.T) {
	for _, hostile := range []string{`a"]; b`, "a\nb", `\`, "<b>", "|", "#quot;", "%%{init}%%", "&quot;", "é"} {
		for name, got := range map[string]string{"mermaid": mesh.MermaidText(hostile), "dot": mesh.DotText(hostile)} {
			if strings.ContainsAny(got, "\"\n\\<>|[]{}%") || strings.Contains(got, "quot;") {
				t.Errorf("%s: %q becomes %q", name, hostile, got)
			}
		}
	}
}
