package countersign_test

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"countersign.dev/agent"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/proxy"
)

// documents are the texts for people, by path.
func documents(t *testing.T) map[string]string {
	t.Helper()
	texts := make(map[string]string)
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			texts[path] = string(text)
		}
	}
	return texts
}

// TestLinks asserts that what the documents link to in this repository is there, headings included.
func TestLinks(t *testing.T) {
	texts := documents(t)
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	links := 0
	for path, text := range texts {
		for _, match := range link.FindAllStringSubmatch(text, -1) {
			target, heading, _ := strings.Cut(match[1], "#")
			if strings.Contains(target, "://") {
				continue
			}
			links++
			file := path
			if target != "" {
				file = filepath.Join(filepath.Dir(path), filepath.FromSlash(target))
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s links to %s: %v", path, match[1], err)
				continue
			}
			if heading != "" && !headings(texts[file])[heading] {
				t.Errorf("%s links to %s: %s has no such heading", path, match[1], file)
			}
		}
	}
	if links == 0 {
		t.Error("no document links to anything")
	}
}

// headings are the anchors that a document's headings have where Markdown is shown.
func headings(text string) map[string]bool {
	drop := regexp.MustCompile("[^a-z0-9 _-]")
	anchors := make(map[string]bool)
	for line := range strings.Lines(text) {
		if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
			anchors[strings.ReplaceAll(drop.ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), ""), " ", "-")] = true
		}
	}
	return anchors
}

// TestArchitecture asserts that the map shows the country: every path in it is there, and every package
// is in it.
func TestArchitecture(t *testing.T) {
	text, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	packages, err := list(t)
	if err != nil {
		t.Fatal(err)
	}
	paths := 0
	for _, match := range regexp.MustCompile("`([a-z0-9_./-]+(?:\\.go|/))`").FindAllStringSubmatch(string(text), -1) {
		paths++
		if _, err := os.Stat(filepath.FromSlash(match[1])); err != nil {
			t.Errorf("ARCHITECTURE.md names %s: %v", match[1], err)
		}
	}
	if paths == 0 {
		t.Error("ARCHITECTURE.md names no path")
	}
	for _, p := range packages {
		path, ours := inModule(p.ImportPath)
		if ours && path != "" && !strings.Contains(string(text), "`"+path+"`") && !strings.Contains(string(text), "`"+path+"/") {
			t.Errorf("ARCHITECTURE.md does not mention the package %s", path)
		}
	}
}

// TestStatistics asserts that docs/statistics.md has every name that /stats has, and no other.
func TestStatistics(t *testing.T) {
	text, err := os.ReadFile("docs/statistics.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := make(map[string]bool)
	for _, match := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		documented[match[1]] = true
	}
	// These come with the first handshake, and none is made here.
	for _, name := range []string{"listener.<inbound>.ssl.versions.<version>", "listener.<inbound>.ssl.ciphers.<suite>"} {
		if !documented[name] {
			t.Errorf("%s is not documented", name)
		}
		delete(documented, name)
	}
	names := statistics(t)
	for name := range names {
		if !documented[name] {
			t.Errorf("/stats has %s, which docs/statistics.md does not explain", name)
		}
	}
	for name := range documented {
		if !names[name] {
			t.Errorf("docs/statistics.md explains %s, which /stats does not have", name)
		}
	}
}

// statistics are the names in the /stats of a sidecar that serves and calls, with what differs from
// one sidecar to the other replaced by the documentation's words.
func statistics(t *testing.T) map[string]bool {
	t.Helper()
	spec, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Directory: t.TempDir(), Content: `
mesh: m
services:
  a:
    ports: [{port: 9080, protocol: http}]
    calls: [{service: b}]
  b:
    ports: [{port: 9081, protocol: http}]
`}})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := spec.Compile("a")
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	link, err := agent.New(agent.Config{
		Server: &url.URL{Scheme: "https", Host: "127.0.0.1:1"}, Pin: "sha256:" + strings.Repeat("0", 64), TokenFile: "absent",
		StateDir: t.TempDir(), Instance: "a-1", Log: log, OnPlan: func(*mesh.Plan) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := link.Close(); err != nil {
			t.Error(err)
		}
	})
	sidecar, err := proxy.New(proxy.Config{
		Source: mtls.NewStatic(nil), Address: netip.MustParseAddr("127.0.0.1"), Log: log, Gauges: link.Gauges,
		Binds: map[string]string{"inbound/9080": "127.0.0.1:0", "outbound/9081": "127.0.0.1:0"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sidecar.Shutdown(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	if err := sidecar.Apply(plan); err != nil {
		t.Fatal(err)
	}
	answer := httptest.NewRecorder()
	sidecar.Admin().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), "GET", "/stats", nil))
	generic := strings.NewReplacer("0.0.0.0_9080.downstream", "<listener>.downstream", "127.0.0.1_9081.downstream", "<listener>.downstream",
		"0.0.0.0_9080", "<inbound>", "b_9081", "<upstream>")
	names := make(map[string]bool)
	for lines := bufio.NewScanner(io.Reader(answer.Body)); lines.Scan(); {
		name, _, _ := strings.Cut(lines.Text(), ":")
		names[generic.Replace(name)] = true
	}
	return names
}
