package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestStages writes generations, makes them current, goes back, and never gives a number twice that was in use.
func TestStages(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	stage := func(text string, keep ...uint64) uint64 {
		t.Helper()
		n, err := StageGenerationFor(dir, pair(text), Access{UID: -1, GID: -1, Dir: 0o700}, keep...)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	activate := func(n uint64) {
		t.Helper()
		if err := ActivateGeneration(dir, n); err != nil {
			t.Fatal(err)
		}
	}
	first := stage("a")
	if n, err := CurrentGeneration(dir); n != 0 || err != nil {
		t.Errorf("what was staged is current: %d, %v", n, err)
	}
	activate(first)
	bad := stage("b")
	if got := current(t, dir); got != "a" {
		t.Errorf("staging has made %q current", got)
	}
	activate(bad)
	activate(first) // back
	if got := current(t, dir); got != "a" {
		t.Errorf("it went back to %q", got)
	}
	third := stage("c")
	if third <= bad {
		t.Errorf("the number %d is given again, and %d was in force", third, bad)
	}
	if got := names(t, filepath.Join(dir, "generations")); !slices.Equal(got, []string{"1", "3"}) {
		t.Errorf("kept are %q", got)
	}
	activate(third)
	fourth := stage("d", first)
	activate(fourth)
	stage("e", first)
	if got := names(t, filepath.Join(dir, "generations")); !slices.Equal(got, []string{"1", "3", "4", "5"}) {
		t.Errorf("kept are %q", got)
	}
	if err := RemoveGeneration(dir, 5); err != nil {
		t.Error(err)
	}
	if err := RemoveGeneration(dir, fourth); err == nil {
		t.Error("the current generation was removed")
	}
	if err := PruneGenerations(dir); err != nil {
		t.Error(err)
	}
	if got := names(t, filepath.Join(dir, "generations")); !slices.Equal(got, []string{"3", "4"}) {
		t.Errorf("kept are %q", got)
	}
	if err := ActivateGeneration(dir, 77); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one that is not there: %v", err)
	}
	if got := current(t, dir); got != "d" {
		t.Errorf("current is %q", got)
	}
	// Whoever writes in one step goes on from there.
	if err := WriteGeneration(dir, pair("f")); err != nil || current(t, dir) != "f" {
		t.Errorf("a generation in one step: %v", err)
	}
	if _, err := StageGenerationFor(dir, nil, Access{}); err == nil {
		t.Error("a generation without files")
	}
	if info, err := os.Stat(GenerationPath(dir, 5)); err != nil || !info.IsDir() {
		t.Errorf("%v", err)
	}
}
