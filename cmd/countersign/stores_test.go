package main

import (
	"path/filepath"
	"testing"

	"countersign.dev/mesh"
	"countersign.dev/rotate"
	"countersign.dev/secret/filestore"
)

// A rotation is told of a store that bears few writes, also when it has it from here.
func TestStoresThatBearFewWrites(t *testing.T) {
	dir := t.TempDir()
	identity := filepath.Join(dir, "identity.age")
	if err := filestore.GenerateIdentity(identity); err != nil {
		t.Fatal(err)
	}
	key, err := filestore.LoadIdentity(identity)
	if err == nil {
		_, err = filestore.Create(filepath.Join(dir, "store"), key)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		declared mesh.Store
		few      bool
	}{
		{mesh.Store{Type: mesh.StoreSecretsManager, Region: "eu-central-1"}, true},
		{mesh.Store{Type: mesh.StoreFile, Dir: filepath.Join(dir, "store"), IdentityFile: identity}, false},
	} {
		opened, err := openStore(t.Context(), test.declared)
		if err != nil {
			t.Fatal(err)
		}
		var store rotate.Store = opened
		if thrifty, ok := store.(rotate.Thrifty); !ok || thrifty.FewWrites() != test.few {
			t.Errorf("a store of the type %s: %v", test.declared.Type, ok)
		}
	}
}
