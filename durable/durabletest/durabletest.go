// Package durabletest looks, for tests, at directories that are written while they are looked at.
package durabletest

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
)

// Modes refuses a directory in which something is open to others than its owner, but the files called public, which all
// may read. What goes away meanwhile is passed over.
func Modes(dir string, public ...string) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || entry.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		allowed := fs.FileMode(0o600)
		switch {
		case entry.IsDir():
			allowed = 0o700
		case slices.Contains(public, entry.Name()):
			allowed = 0o644
		}
		if info.Mode().Perm()&^allowed != 0 {
			return fmt.Errorf("%s has the mode %04o", path, info.Mode().Perm())
		}
		return nil
	})
}
