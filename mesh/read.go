package mesh

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The bounds of a specification. They are far above what a real mesh needs and low enough that the
// worst text is refused in a fraction of a second.
const (
	// MaxBytes bounds the documents of a specification together.
	MaxBytes = 1 << 20
	// MaxDocuments bounds their number.
	MaxDocuments = 1000
	// maxDepth bounds how deeply values may be nested; a valid specification needs 10 levels.
	maxDepth = 50
	// maxValues bounds the keys, lists and scalars of a specification after aliases are followed.
	maxValues = 200_000
)

// ErrTooLarge says that a specification exceeds [MaxBytes] or [MaxDocuments].
var ErrTooLarge = errors.New("the specification is too large")

// ErrNoDocuments says that a directory has no file of a specification.
var ErrNoDocuments = errors.New("no *.yaml, *.yml or *.json file")

// Load reads and checks the specification at path: a file, or a directory whose files are merged. An
// error is an [Errors] when the documents could be read and are not a valid specification.
func Load(path string) (*Spec, error) {
	documents, err := ReadDocuments(path)
	if err != nil {
		return nil, err
	}
	return ParseDocuments(documents)
}

// ReadDocuments reads the files of a specification without looking at what they say. Path is a file,
// or a directory, of which every *.yaml, *.yml and *.json file is read in the order of their names;
// directories below it, files whose name starts with a dot, and files for AWS ([PassedOver]) are passed over. No more than
// [MaxBytes] is ever read; a longer specification is an [ErrTooLarge].
func ReadDocuments(path string) ([]Document, error) {
	documents, _, err := readDocuments(path)
	return documents, err
}

// readDocuments also says which files of a directory are no part of a specification.
func readDocuments(path string) (documents []Document, beside []string, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot read the specification: %w", err)
	}
	paths := []string{path}
	if info.IsDir() {
		if paths, err = documentPaths(path); err != nil {
			return nil, nil, err
		}
	}
	if len(paths) > MaxDocuments {
		return nil, nil, fmt.Errorf("%w: %s has %d files, and at most %d are read", ErrTooLarge, path, len(paths), MaxDocuments)
	}
	documents = make([]Document, 0, len(paths))
	left := MaxBytes
	for _, p := range paths {
		d, err := readDocument(p, max(left, beginning))
		if err != nil {
			return nil, nil, err
		}
		if what := whatBeside(p, d.Content); what != "" && info.IsDir() {
			beside = append(beside, p+" ("+what+")")
			continue
		}
		if len(d.Content) > left {
			return nil, nil, fmt.Errorf("%w: with %s it has more than %d bytes", ErrTooLarge, p, MaxBytes)
		}
		left -= len(d.Content)
		documents = append(documents, d)
	}
	if len(documents) == 0 {
		return nil, nil, fmt.Errorf("cannot read the specification: %w in %s but what is for AWS: %s", ErrNoDocuments, path, strings.Join(beside, ", "))
	}
	return documents, beside, nil
}

// documentPaths lists the files of a directory that belong to a specification.
func documentPaths(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot read the specification: %w", err)
	}
	prefix := dir // as given: filepath.Join would rewrite it
	if !os.IsPathSeparator(prefix[len(prefix)-1]) {
		prefix += string(filepath.Separator)
	}
	var paths []string
	for _, entry := range entries {
		name := entry.Name()
		if strings.HasPrefix(name, ".") || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)) {
			continue
		}
		info, err := os.Stat(prefix + name) // follows links, as mounted configuration is made of them
		if err != nil {
			return nil, fmt.Errorf("cannot read the specification: %w", err)
		}
		if info.Mode().IsRegular() {
			paths = append(paths, prefix+name)
		}
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("cannot read the specification: %w in %s", ErrNoDocuments, dir)
	}
	return paths, nil
}

// beginning is as much of a file as shows what it is, in bytes.
const beginning = 4096

// readDocument reads one file: all of it, or a byte more than limit, which is too much.
func readDocument(path string, limit int) (Document, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return Document{}, fmt.Errorf("cannot read the specification: %w", err)
	}
	file, err := os.Open(path)
	if err != nil {
		return Document{}, fmt.Errorf("cannot read the specification: %w", err)
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, int64(limit)+1))
	if err != nil {
		return Document{}, fmt.Errorf("cannot read the specification: %w", err)
	}
	return Document{Name: path, Directory: filepath.Dir(absolute), Content: string(content)}, nil
}
