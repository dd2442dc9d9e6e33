package durabletest

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestModes(t *testing.T) {
	for name, test := range map[string]struct {
		file         string
		mode, folder fs.FileMode
		wrong        bool
	}{
		"closed":              {"key.pem", 0o600, 0o700, false},
		"public":              {"cert.pem", 0o644, 0o700, false},
		"a private one":       {"key.pem", 0o640, 0o700, true},
		"a public one, wider": {"cert.pem", 0o664, 0o700, true},
		"a directory":         {"key.pem", 0o600, 0o750, true},
	} {
		dir := filepath.Join(t.TempDir(), "d")
		path := filepath.Join(dir, "in", test.file)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("absent", filepath.Join(dir, "link")); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, test.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Dir(path), test.folder); err != nil {
			t.Fatal(err)
		}
		if err := Modes(dir, "cert.pem"); (err != nil) != test.wrong {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := Modes(filepath.Join(t.TempDir(), "absent")); err != nil {
		t.Errorf("what is not there: %v", err)
	}
}
