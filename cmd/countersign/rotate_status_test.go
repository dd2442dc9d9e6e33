package main

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"countersign.dev/rotate"
	"countersign.dev/secret/filestore"
)

// TestBundleProblems shows of a shared trust bundle how its rotation failed, or that it cannot be read.
func TestBundleProblems(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "id.age")
	if err := filestore.GenerateIdentity(file); err != nil {
		t.Fatal(err)
	}
	identity, err := filestore.LoadIdentity(file)
	if err != nil {
		t.Fatal(err)
	}
	store, err := filestore.Create(filepath.Join(dir, "store"), identity)
	if err != nil {
		t.Fatal(err)
	}
	targets := []rotate.Target{{Bundle: "shop/bundle", StoreName: "vault", Store: store}, {Bundle: "shop/bundle", StoreName: "vault", Store: store}}
	if got := bundleProblems(t.Context(), targets); len(got) > 0 {
		t.Errorf("%q, want nothing", got)
	}
	id, err := store.Stage(t.Context(), "shop/bundle.rotation", "", []byte(`{"format":1,"lastError":"somebody needs it","lastErrorStep":"verify","lastErrorTime":"2026-01-02T03:04:05Z","failures":2}`))
	if err == nil {
		err = store.Promote(t.Context(), "shop/bundle.rotation", id)
	}
	if err != nil {
		t.Fatal(err)
	}
	want := "trust bundle shop/bundle: the last rotation failed at 2026-01-02T03:04:05Z, at the step verify: somebody needs it"
	if got := strings.Join(bundleProblems(t.Context(), targets), "; "); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	targets[0].Store = brokenStore{errors.New("the disk is away")}
	if got := strings.Join(bundleProblems(t.Context(), targets), "; "); got != "trust bundle shop/bundle: the disk is away" {
		t.Errorf("%q", got)
	}
}

// TestUnreadable ends with a failure when a store could not be read.
func TestUnreadable(t *testing.T) {
	if err := unreadable([]rotate.Status{{Service: "one"}, {Service: "two", LastError: "it failed, and that can be read"}}); err != nil {
		t.Error(err)
	}
	err := unreadable([]rotate.Status{{Service: "one"}, {Service: "two", Problem: "the disk is away"}})
	if exit, ok := errors.AsType[exitError](err); !ok || exit.status != exitFailure {
		t.Errorf("%v, want the exit status %d", err, exitFailure)
	}
}
