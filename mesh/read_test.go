package mesh_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"countersign.dev/mesh"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestReadDocuments(t *testing.T) {
	t.Chdir(t.TempDir())
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	write(t, "spec/b.yaml", "b: 1\n")
	write(t, "spec/a.yml", "a: 1\n")
	write(t, "spec/c.json", "{}")
	write(t, "spec/.d.yaml", "hidden: 1\n")
	write(t, "spec/e.txt", "e: 1\n")
	write(t, "spec/f.yaml/g.yaml", "below: 1\n")
	if err := os.Symlink("../linked", "spec/h.yaml"); err != nil {
		t.Fatal(err)
	}
	write(t, "linked", "h: 1\n")
	for given, want := range map[string][]string{
		"spec":           {"spec/a.yml", "spec/b.yaml", "spec/c.json", "spec/h.yaml"},
		"./spec/":        {"./spec/a.yml", "./spec/b.yaml", "./spec/c.json", "./spec/h.yaml"},
		"spec/../linked": {"spec/../linked"},
	} {
		documents, err := mesh.ReadDocuments(given)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, d := range documents {
			got = append(got, d.Name)
			if !filepath.IsAbs(d.Directory) || !strings.HasPrefix(d.Directory, here) || d.Content == "" {
				t.Errorf("%s: directory %q, content %q", d.Name, d.Directory, d.Content)
			}
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("ReadDocuments(%q) = %v, want %v", given, got, want)
		}
	}
}

// TestPassedOver asserts which files of a directory are for AWS, and that a file that is named is read whatever it is.
func TestPassedOver(t *testing.T) {
	t.Chdir(t.TempDir())
	write(t, "spec/mesh.yaml", "mesh: m\n")
	write(t, "spec/cloudformation.yaml", "# The mesh m on Amazon ECS.\n# More of it.\n---\nAWSTemplateFormatVersion: '2010-09-09'\n"+strings.Repeat("#", mesh.MaxBytes+1))
	write(t, "spec/other.yml", "\n\"AWSTemplateFormatVersion\" : '2010-09-09'\n")
	write(t, "spec/a.json", "{\n  \"AWSTemplateFormatVersion\": \"2010-09-09\"}")
	write(t, "spec/iam.json", "{\n  \"roles\": []}")
	write(t, "spec/parameters.json", "[\n  {\"ParameterKey\": \"VpcId\"}]")
	write(t, "spec/task.json", "{\"family\": \"m-a\"}")
	beside, err := mesh.PassedOver("spec")
	want := "spec/a.json (a template of CloudFormation), spec/cloudformation.yaml (a template of CloudFormation), spec/iam.json (policies for roles), " +
		"spec/other.yml (a template of CloudFormation), spec/parameters.json (parameters of a stack), spec/task.json (a task definition)"
	if got := strings.Join(beside, ", "); got != want || err != nil {
		t.Errorf("%v\n got %s\nwant %s", err, got, want)
	}
	if spec, err := mesh.Load("spec"); err != nil || spec.Mesh != "m" {
		t.Errorf("the rest is no specification: %v", err)
	}
	for name, text := range map[string]string{"key": "services: {}\nAWSTemplateFormatVersion: 1\n", "yaml": "family: m\n", "comment": "# AWSTemplateFormatVersion: 1\nmesh: m\n", "dashes": "---"} {
		write(t, name+"/a.yaml", text)
		if beside, err := mesh.PassedOver(name); len(beside) > 0 || err != nil {
			t.Errorf("%s: %v, %v", name, beside, err)
		}
	}
	if documents, err := mesh.ReadDocuments("spec/task.json"); err != nil || len(documents) != 1 {
		t.Errorf("a file that is named: %v, %v", documents, err)
	}
	write(t, "alone/a.yaml", "AWSTemplateFormatVersion: 1\n")
	if _, err := mesh.Load("alone"); !errors.Is(err, mesh.ErrNoDocuments) || !strings.Contains(err.Error(), "alone/a.yaml (a template of CloudFormation)") {
		t.Errorf("a template alone: %v", err)
	}
}

func TestReadDocumentsRefuses(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.Mkdir("empty", 0o755); err != nil {
		t.Fatal(err)
	}
	// A file of 100 MB, of which nothing is on the disk.
	write(t, "large.yaml", "")
	if err := os.Truncate("large.yaml", 100<<20); err != nil {
		t.Fatal(err)
	}
	write(t, "sum/a.yaml", strings.Repeat("#", mesh.MaxBytes/2))
	write(t, "sum/b.yaml", strings.Repeat("#", mesh.MaxBytes/2))
	write(t, "sum/c.yaml", "#")
	for path, want := range map[string]error{
		"":           fs.ErrNotExist,
		"nosuch":     fs.ErrNotExist,
		"empty":      mesh.ErrNoDocuments,
		"large.yaml": mesh.ErrTooLarge,
		"sum":        mesh.ErrTooLarge,
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := mesh.Load(path)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, want) {
			t.Errorf("Load(%q) = %v, want %v", path, err, want)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 32<<20 && !underRace {
			t.Errorf("Load(%q) took %d bytes of memory", path, used)
		}
	}
	if os.Getuid() != 0 { // who may read everything cannot be refused
		write(t, "secret.yaml", "")
		if err := os.Chmod("secret.yaml", 0); err != nil {
			t.Fatal(err)
		}
		if _, err := mesh.Load("secret.yaml"); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("Load(secret.yaml) = %v, want %v", err, fs.ErrPermission)
		}
	}
}

func TestParseDocumentsTooLarge(t *testing.T) {
	half := mesh.Document{Name: "a.yaml", Content: strings.Repeat("#", mesh.MaxBytes/2+1)}
	if _, err := mesh.ParseDocuments([]mesh.Document{half, half}); !errors.Is(err, mesh.ErrTooLarge) {
		t.Errorf("got %v, want %v", err, mesh.ErrTooLarge)
	}
	if _, err := mesh.ParseDocuments(make([]mesh.Document, mesh.MaxDocuments+1)); !errors.Is(err, mesh.ErrTooLarge) {
		t.Errorf("got %v, want %v", err, mesh.ErrTooLarge)
	}
	var errs mesh.Errors
	if _, err := mesh.ParseDocuments(nil); !errors.As(err, &errs) || len(errs) != 1 || errs[0].Path != "mesh" {
		t.Errorf("got %v, want that mesh is missing", err)
	}
}

// hostile are texts of about a size that are meant to cost more than they are worth.
func hostile(size int) map[string]string {
	fill := func(unit string) string { return strings.Repeat(unit, size/len(unit)) }
	// many joins as many numbered lines as fit, and an error at the end.
	many := func(head string, line func(i int) string) string {
		var out strings.Builder
		out.WriteString(head)
		for i := 0; out.Len() < size-1000; i++ {
			out.WriteString(line(i))
		}
		return out.String() + "zebra: 1\n"
	}
	bomb := "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := 1; i < 60; i++ {
		alias := fmt.Sprintf("*a%d, ", i-1)
		bomb += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.Repeat(alias, 10))
	}
	deep := strings.Builder{}
	for i := 1; deep.Len() < size/2; i++ {
		deep.WriteString("mesh:\n" + strings.Repeat(" ", i))
	}
	services := many("mesh: a\nservices:\n", func(i int) string {
		return fmt.Sprintf("  s%x: {calls: [{service: sx%x}]}\n", i*7919%65536, i)
	})
	return map[string]string{
		"open lists":       fill("["),
		"open mappings":    fill("{a: "),
		"deep blocks":      deep.String(),
		"dashes":           fill("- "),
		"a list":           "mesh: [" + strings.Repeat("a,", size/2-10) + "]",
		"a sequence":       fill("- a\n"),
		"unknown keys":     "mesh: a\n" + strings.Repeat("x", 100) + ": 1\n" + fill("a" + ": 1\n")[:size-200],
		"documents":        fill("---\n"),
		"tabs in quotes":   "mesh: \"" + strings.Repeat("\t", size-20) + "x\"",
		"a bomb":           bomb,
		"aliases":          "mesh: a\nservices: {b: &b {}, c: [" + strings.Repeat("*b,", size/3-20) + "]}",
		"a long name":      "mesh: " + strings.Repeat("a", size-10),
		"a long key":       strings.Repeat("a", size-10) + ": 1",
		"a long number":    "mesh: a\nservices: {b: {instances: " + strings.Repeat("9", size-50) + "}}",
		"colons":           fill("a:b"),
		"questions":        fill("? "),
		"anchors":          fill("&a "),
		"comments":         fill("#\n"),
		"spaces":           fill(" "),
		"unknown services": services,
		"a long chain": many("mesh: a\nservices:\n", func(i int) string {
			return fmt.Sprintf("  s%d: {ports: [{port: 1, protocol: tcp}], calls: [{service: s%d, listen: 2}]}\n", i, i+1)
		}),
		"many ports": many("mesh: a\nservices:\n  b:\n    tls: off\n    allow: [{from: any}]\n    ports:\n", func(i int) string {
			return fmt.Sprintf("      - {port: %d, protocol: tcp}\n", i+1)
		}),
		"many calls": many("mesh: a\nservices:\n  b:\n    ports: [{port: 1, protocol: tcp}, {port: 2, protocol: tcp}]\n  c:\n    calls:\n", func(i int) string {
			return fmt.Sprintf("      - {service: b, port: 2, listen: %d}\n", i+1)
		}),
		"many rules": many("mesh: a\nservices:\n  b:\n    ports: [{port: 1, protocol: tcp}, {port: 2, protocol: tcp}]\n    allow:\n", func(i int) string {
			return fmt.Sprintf("      - {from: c%d, methods: [GET]}\n", i)
		}),
		"many routes": many("mesh: a\nservices: {b: {ports: [{port: 1, protocol: tcp}]}}\ngateways:\n  g:\n    listen: [{port: 1, protocol: http}]\n    routes:\n", func(i int) string {
			return fmt.Sprintf("      - {match: {listener: %d}, to: [{service: b}]}\n", i+1)
		}),
		"many listeners": many("mesh: a\ngateways:\n  g:\n    routes: []\n    listen:\n", func(i int) string {
			return fmt.Sprintf("      - {port: %d, protocol: tcp}\n", i+1)
		}),
		"many names": many("mesh: a\nservices:\n  b: {}\n  c:\n    names:\n", func(i int) string {
			return fmt.Sprintf("      - n%d.example\n", i)
		}),
		"ports":     "mesh: a\nservices: {b: {ports: [" + strings.Repeat("{port: 1, protocol: tcp},", size/25-10) + "]}}",
		"variables": "mesh: a\nservices: {b: {run: {command: [" + strings.Repeat("\"${A}\",", size/7-10) + "]}}}",
		"merges":    "mesh: a\nservices: {b: &b {instances: 1}, c: {" + strings.Repeat("<<: *b,", size/7-10) + "}}\nzebra: 1",
	}
}

// TestHostile proves that what is meant to be expensive is refused, with errors in their form and
// without much memory. How long it takes is reported by BenchmarkHostile.
func TestHostile(t *testing.T) {
	size := mesh.MaxBytes
	if underRace {
		size /= 32
	}
	for name, text := range hostile(size) {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Content: text}})
			runtime.ReadMemStats(&after)
			if used := (after.TotalAlloc - before.TotalAlloc) >> 20; used > 500 && !underRace {
				t.Errorf("it took %d MiB", used)
			}
			var errs mesh.Errors
			if !errors.As(err, &errs) {
				t.Fatalf("got %v, want mesh.Errors", err)
			}
			if len(errs) > 1001 {
				t.Errorf("%d errors", len(errs))
			}
			for _, line := range errs.Lines() {
				if !errorForm.MatchString(line) || len(line) > 1000 {
					t.Errorf("not of the form: %.300s", line)
				}
			}
		})
	}
}

// BenchmarkHostile reports the time that each hostile text costs:
//
//	go test ./mesh -run '^$' -bench Hostile -benchtime 1x
func BenchmarkHostile(b *testing.B) {
	for name, text := range hostile(mesh.MaxBytes) {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := mesh.ParseDocuments([]mesh.Document{{Name: "mesh.yaml", Content: text}}); err == nil {
					b.Fatal("it was accepted")
				}
			}
		})
	}
}
