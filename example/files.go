package example

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"countersign.dev/examples"
)

// ErrExists says that a file stands where an example's would be written.
var ErrExists = errors.New("the file exists")

// Write writes the specifications of the example mesh name ("colorapp", "shop", "payments" or "payments-ecs") into dir, which it
// makes when it is not there, and gives the paths. It overwrites nothing: when one of the files is
// there it writes none and gives an [ErrExists].
func Write(name, dir string) ([]string, error) {
	entries, err := fs.ReadDir(examples.Files, name)
	if err != nil {
		return nil, fmt.Errorf("the example %q: %w", name, err)
	}
	paths := make([]string, len(entries))
	for i, entry := range entries {
		paths[i] = filepath.Join(dir, entry.Name())
		if _, err := os.Lstat(paths[i]); err == nil {
			return nil, fmt.Errorf("%s: %w; choose another directory, or move the file away", paths[i], ErrExists)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // examples are for everybody to read
		return nil, fmt.Errorf("making the directory of the example: %w", err)
	}
	for i, entry := range entries {
		data, err := fs.ReadFile(examples.Files, path.Join(name, entry.Name()))
		if err != nil {
			return nil, fmt.Errorf("the example %q: %w", name, err)
		}
		if err := writeNew(paths[i], data); err != nil {
			return nil, fmt.Errorf("writing the example: %w", err)
		}
	}
	return paths, nil
}

// writeNew writes a file that is not there yet.
func writeNew(path string, data []byte) (err error) {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) //nolint:gosec // as above
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	_, err = file.Write(data)
	return err
}
