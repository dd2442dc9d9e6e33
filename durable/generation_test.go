package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

// pair is a set of two files that belong together.
func pair(text string) []File {
	return []File{
		{Name: "key.pem", Data: []byte("key " + text), Perm: 0o600},
		{Name: "cert.pem", Data: []byte("cert " + text), Perm: 0o644},
	}
}

// current reads the pair and tells whether it is one.
func current(t *testing.T, dir string) string {
	t.Helper()
	files, err := ReadCurrent(dir)
	if err != nil {
		t.Fatal(err)
	}
	text := string(files["key.pem"][len("key "):])
	if len(files) != 2 || string(files["cert.pem"]) != "cert "+text {
		t.Fatalf("a mixture: %q", files)
	}
	return text
}

func TestGenerations(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	if _, err := ReadCurrent(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before the first: %v, want ErrNotExist", err)
	}
	for i := range 5 {
		text := fmt.Sprint(i)
		if err := WriteGeneration(dir, pair(text)); err != nil {
			t.Fatal(err)
		}
		if got := current(t, dir); got != text {
			t.Fatalf("current is %q, want %q", got, text)
		}
		want := []string{fmt.Sprint(i), fmt.Sprint(i + 1)}
		if i == 0 {
			want = []string{"1"}
		}
		if got := names(t, filepath.Join(dir, "generations")); !slices.Equal(got, want) {
			t.Errorf("kept are %q, want %q", got, want)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "current", "key.pem"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key: %v, %v", info, err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v, %v", info, err)
	}
}

func TestGenerationsRefuse(t *testing.T) {
	dir := t.TempDir()
	for name, files := range map[string][]File{
		"nothing":       nil,
		"empty name":    {{Name: ""}},
		"a path":        {{Name: "a/b"}},
		"above":         {{Name: ".."}},
		"the directory": {{Name: "."}},
		"twice":         {{Name: "a"}, {Name: "a"}},
	} {
		if err := WriteGeneration(dir, files); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for _, target := range []string{"/etc", "generations", "generations/x", "generations/01", "generations/1/..", "elsewhere/1"} {
		foreign := t.TempDir()
		if err := os.Symlink(target, filepath.Join(foreign, "current")); err != nil {
			t.Fatal(err)
		}
		if err := WriteGeneration(foreign, pair("new")); err == nil {
			t.Errorf("a link to %s was replaced", target)
		}
	}
}

// TestLeftovers puts there what crashes leave, and expects the next call to clear it away.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	if err := WriteGeneration(dir, pair("first")); err != nil {
		t.Fatal(err)
	}
	for _, leftover := range []string{"generations/2/key.pem", "generations/7/key.pem"} {
		path := filepath.Join(dir, leftover)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("key trunc"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("generations/2", filepath.Join(dir, ".current"+tempMark+"00")); err != nil {
		t.Fatal(err)
	}
	inFlight := ".plan.json" + tempMark + "00" // another goroutine is writing it
	if err := os.WriteFile(filepath.Join(dir, inFlight), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := current(t, dir); got != "first" {
		t.Fatalf("current is %q", got)
	}
	if err := WriteGeneration(dir, pair("second")); err != nil {
		t.Fatal(err)
	}
	if got := current(t, dir); got != "second" {
		t.Errorf("current is %q", got)
	}
	if got := names(t, filepath.Join(dir, "generations")); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("kept are %q", got)
	}
	if got := names(t, dir); !slices.Equal(got, []string{inFlight, "current", "generations"}) {
		t.Errorf("the directory holds %q", got)
	}
}

// TestReadersSeeNoMixture reads while generations are replaced as fast as the disk allows.
func TestReadersSeeNoMixture(t *testing.T) {
	dir := t.TempDir()
	if err := WriteGeneration(dir, pair("start")); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				files, err := ReadCurrent(dir)
				if err != nil {
					t.Error(err)
					return
				}
				if len(files) != 2 || string(files["key.pem"][4:]) != string(files["cert.pem"][5:]) {
					t.Errorf("a mixture: %q", files)
					return
				}
			}
		})
	}
	for i := range 100 {
		if err := WriteGeneration(dir, pair(fmt.Sprint(i))); err != nil {
			t.Error(err)
		}
	}
	close(done)
	readers.Wait()
}
