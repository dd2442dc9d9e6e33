package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// Names in a directory of generations.
const (
	generationsDir = "generations"
	currentLink    = "current"
)

// File is one file of a generation. Name has no separator in it.
type File struct {
	Name string
	Data []byte
	Perm fs.FileMode
}

// WriteGeneration replaces a set of files that belong together (a certificate and its key) in one
// step. They are written to DIR/generations/N and fsynced; then the symbolic link DIR/current is
// swapped to point there, by a rename, and DIR is fsynced. Whoever reads through DIR/current sees the
// old set or the new one, never a mixture; and a watcher of file moves (Envoy) sees one move.
//
// The generation before stays, so that a reader that resolved the link a moment ago still finds its
// files; older ones and what a crash has left are removed. DIR is made with mode 0700 when it is
// missing. One process at a time may write; its goroutines have to take turns.
func WriteGeneration(dir string, files []File) error {
	return writeGeneration(dir, files, nil)
}

// WriteGenerationFor is [WriteGeneration] for files that somebody else reads: they and their directories get exactly
// the modes and owners that are asked for, whatever the umask, and never more at any moment before. Only a
// privileged process can give files away; for others that is fs.ErrPermission, and nothing has changed. A DIR that
// exists keeps its mode and its owner.
func WriteGenerationFor(dir string, files []File, access Access) error {
	return writeGeneration(dir, files, &access)
}

func writeGeneration(dir string, files []File, access *Access) error {
	if err := checkNames(files); err != nil {
		return fmt.Errorf("writing a generation in %s: %w", dir, err)
	}
	generations := filepath.Join(dir, generationsDir)
	if err := makeDirs(dir, generations, access); err != nil {
		return err
	}
	// A link that was not renamed; somebody may be writing another file of the directory right now.
	if err := sweep(dir, currentLink); err != nil {
		return err
	}
	current, err := currentGeneration(dir)
	if err != nil {
		return err
	}
	if err := removeAllBut(generations, current); err != nil {
		return err
	}
	next := filepath.Join(generations, strconv.FormatUint(current+1, 10))
	if err := writeSet(next, files, access); err != nil {
		_ = os.RemoveAll(next) // a full disk gets its space back; the first error is the one that counts
		return fmt.Errorf("writing a generation in %s: %w", dir, err)
	}
	if err := swap(dir, current+1); err != nil {
		return fmt.Errorf("writing a generation in %s: %w", dir, err)
	}
	_ = removeAllBut(generations, current+1) // the new files are in place; the next call removes what is left, or says why it cannot
	return nil
}

// ReadCurrent reads every file of the current generation, all of the same one. It is fs.ErrNotExist
// when there is none yet.
func ReadCurrent(dir string) (map[string][]byte, error) {
	var files map[string][]byte
	err := withCurrent(dir, func(generation string) error {
		files = make(map[string][]byte)
		entries, err := os.ReadDir(generation)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			data, err := os.ReadFile(filepath.Join(generation, entry.Name()))
			if err != nil {
				return err
			}
			files[entry.Name()] = data
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return files, nil
}

// withCurrent resolves the link once and reads below what it pointed to. When the link has moved
// meanwhile, it starts again: once it has moved twice, the generation that was being read is removed
// file by file, and what was read may be a part of it without any error.
func withCurrent(dir string, read func(generation string) error) error {
	link := filepath.Join(dir, currentLink)
	target, err := os.Readlink(link)
	for {
		if err != nil {
			return fmt.Errorf("reading the current generation: %w", err)
		}
		readErr := read(filepath.Join(dir, target))
		before := target
		if target, err = os.Readlink(link); err == nil && target != before {
			continue
		}
		if readErr != nil {
			return fmt.Errorf("reading the current generation: %w", readErr)
		}
		return nil
	}
}

// currentGeneration is the number that the link points to, 0 when there is no link.
func currentGeneration(dir string) (uint64, error) {
	link := filepath.Join(dir, currentLink)
	target, err := os.Readlink(link)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reading %s: %w", link, err)
	}
	n, ok := generationNumber(filepath.Base(target))
	if !ok || target != filepath.Join(generationsDir, filepath.Base(target)) {
		return 0, fmt.Errorf("reading %s: it points to %q, which this program has not written; remove it to start anew", link, target)
	}
	return n, nil
}

// generationNumber reads a name that WriteGeneration has given.
func generationNumber(name string) (uint64, bool) {
	n, err := strconv.ParseUint(name, 10, 63)
	return n, err == nil && n > 0 && strconv.FormatUint(n, 10) == name
}

// removeAllBut removes every generation except current, the one before it and those in keep. A number above
// current is what a crash has left, or somebody has gone back from it.
func removeAllBut(generations string, current uint64, keep ...uint64) error {
	entries, err := os.ReadDir(generations)
	if err != nil {
		return fmt.Errorf("sweeping %s: %w", generations, err)
	}
	var before uint64
	for _, entry := range entries {
		if n, ok := generationNumber(entry.Name()); ok && n < current {
			before = max(before, n)
		}
	}
	for _, entry := range entries {
		n, ok := generationNumber(entry.Name())
		if ok && n != current && n != before && !slices.Contains(keep, n) {
			if err := RemoveAll(filepath.Join(generations, entry.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// makeDirs makes the two directories above the generations.
func makeDirs(dir, generations string, access *Access) error {
	_, missing := os.Lstat(dir)
	if err := MkdirAll(generations, 0o700); err != nil {
		return err
	}
	if access == nil {
		return nil
	}
	// Each time: a process that was killed may have made the directory and no more.
	if err := access.directory(generations); err != nil {
		return fmt.Errorf("making the directory %s: %w", generations, err)
	}
	if missing == nil {
		return nil
	}
	if err := access.directory(dir); err != nil {
		return fmt.Errorf("making the directory %s: %w", dir, err)
	}
	return nil
}

// writeSet makes the directory of a generation and everything in it durable. The files need no
// temporary names: nothing points to the directory yet.
func writeSet(dir string, files []File, access *Access) error {
	if err := MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, file := range files {
		if err := writeNew(filepath.Join(dir, file.Name), file.Data, file.Perm, access); err != nil {
			return err
		}
	}
	if access != nil {
		if err := access.directory(dir); err != nil {
			return err
		}
	}
	return syncDir(dir)
}

// swap lets the link point to generation n. symlink(2) does not replace, so that a new link is made
// beside it and renamed.
func swap(dir string, n uint64) error {
	return Symlink(filepath.Join(generationsDir, strconv.FormatUint(n, 10)), filepath.Join(dir, currentLink))
}

func checkNames(files []File) error {
	var names []string
	for _, file := range files {
		if err := checkName(file.Name); err != nil {
			return err
		}
		if slices.Contains(names, file.Name) {
			return fmt.Errorf("two files are named %q", file.Name)
		}
		names = append(names, file.Name)
	}
	if len(names) == 0 {
		return errors.New("it has no files")
	}
	return nil
}

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || filepath.Base(name) != name {
		return fmt.Errorf("%q is not the name of a file", name)
	}
	return nil
}
