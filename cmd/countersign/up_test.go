package main

import (
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"countersign.dev/mesh"
	"countersign.dev/secret/filestore"
)

// TestReadyStore: a store that is not there is made, one that is there is kept, and one that is somebody
// else's is refused before anything starts.
func TestReadyStore(t *testing.T) {
	p := &process{ctx: t.Context(), stdout: io.Discard, stderr: io.Discard, log: slog.New(slog.DiscardHandler)}
	dir := t.TempDir()
	store := mesh.Store{Type: mesh.StoreFile, Dir: filepath.Join(dir, "store"), IdentityFile: filepath.Join(dir, "id.txt")}
	for range 2 {
		if err := readyStore(p, store); err != nil {
			t.Fatal(err)
		}
	}
	identity, err := filestore.LoadIdentity(store.IdentityFile)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := filestore.Open(store.Dir, identity); err != nil {
		t.Error(err)
	}
	other := filepath.Join(dir, "other.txt")
	if err := filestore.GenerateIdentity(other); err != nil {
		t.Fatal(err)
	}
	if err := readyStore(p, mesh.Store{Type: mesh.StoreFile, Dir: store.Dir, IdentityFile: other}); !errors.Is(err, filestore.ErrIdentity) {
		t.Errorf("with another identity: %v", err)
	}
	missing := filepath.Join(dir, "missing.txt")
	if err := readyStore(p, mesh.Store{Type: mesh.StoreFile, Dir: store.Dir, IdentityFile: missing}); !errors.Is(err, filestore.ErrExists) {
		t.Errorf("with an identity file that is gone: %v", err)
	}
	if _, err := os.Stat(missing); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an identity was made for a store that has another (%v)", err)
	}
	if err := readyStore(p, mesh.Store{Type: "vault", Dir: store.Dir, IdentityFile: store.IdentityFile}); err == nil {
		t.Error("a store of an unknown type is taken")
	}
}
