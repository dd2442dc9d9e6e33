package rotate

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign.dev/secret"
)

// TestDamagedIndex follows what is said of an index that is damaged, for every secret that a rotation writes.
func TestDamagedIndex(t *testing.T) {
	for _, layout := range layouts {
		t.Run(string(layout), func(t *testing.T) {
			w := newWorld(t, layout)
			w.first()
			names := w.target.Shape.Names(w.target.Secret)
			if w.target.Bundle != "" {
				names = append(names, w.target.Bundle)
			}
			for _, name := range names {
				dir := filepath.Join(w.dir, "store", "secrets", strings.ReplaceAll(name, "/", ","))
				if err := os.WriteFile(filepath.Join(dir, "index.age"), []byte("damaged"), 0o600); err != nil {
					t.Fatal(err)
				}
				for _, o := range []Options{{}, {Force: true}} {
					var said string
					for _, result := range w.rotator().RotateAll(t.Context(), []Target{w.target}, o) {
						said += result.Error
					}
					says(t, said, dir, "move the directory", "--force does not help")
				}
				if err := os.Rename(dir, filepath.Join(w.dir, "moved,"+filepath.Base(dir))); err != nil {
					t.Fatal(err)
				}
				w.run(Options{})
				w.must(Options{}, Nothing)
				w.check()
			}
		})
	}
}

// TestDamagedVersion advises to force where that helps.
func TestDamagedVersion(t *testing.T) {
	w := newWorld(t, secret.LayoutJSON)
	w.first()
	files, err := filepath.Glob(filepath.Join(w.dir, "store", "secrets", "shop,orders", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if filepath.Base(file) != "index.age" {
			if err := os.WriteFile(file, []byte("damaged"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	says(t, w.must(Options{}, Failed).Error, "with a new version: --force")
	w.must(Options{Force: true}, Rotated)
	w.check()
}
