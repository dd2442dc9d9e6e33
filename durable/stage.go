package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// What [WriteGenerationFor] does in one step can also be done in several, by somebody who looks at a generation before it
// is in force, and goes back to an earlier one when it turns out to be of no use. One process at a time may do either,
// and its goroutines have to take turns.

// StageGenerationFor writes a generation as [WriteGenerationFor] does and does not make it current: nothing points to it.
// It gives its number, which no generation has that is still there. What is removed is every other generation than the current
// one, the one before it, and those in keep.
func StageGenerationFor(dir string, files []File, access Access, keep ...uint64) (uint64, error) {
	n, err := stageGeneration(dir, files, &access, keep)
	if err != nil {
		return 0, fmt.Errorf("writing a generation in %s: %w", dir, err)
	}
	return n, nil
}

func stageGeneration(dir string, files []File, access *Access, keep []uint64) (uint64, error) {
	if err := checkNames(files); err != nil {
		return 0, err
	}
	generations := filepath.Join(dir, generationsDir)
	if err := makeDirs(dir, generations, access); err != nil {
		return 0, err
	}
	if err := sweep(dir, currentLink); err != nil {
		return 0, err
	}
	current, err := currentGeneration(dir)
	if err != nil {
		return 0, err
	}
	// One that is about to be removed counts too: somebody may still have it open by its path.
	next, err := highest(generations)
	if err != nil {
		return 0, err
	}
	next = max(next, current) + 1
	if err := removeAllBut(generations, current, keep...); err != nil {
		return 0, err
	}
	path := GenerationPath(dir, next)
	if err := writeSet(path, files, access); err != nil {
		_ = os.RemoveAll(path) // a full disk gets its space back; the first error is the one that counts
		return 0, err
	}
	return next, nil
}

// highest is the highest number of a generation that is there.
func highest(generations string) (uint64, error) {
	entries, err := os.ReadDir(generations)
	if err != nil {
		return 0, err
	}
	var found uint64
	for _, entry := range entries {
		if n, ok := generationNumber(entry.Name()); ok {
			found = max(found, n)
		}
	}
	return found, nil
}

// ActivateGeneration makes a generation the current one, in one step. One that is not there is fs.ErrNotExist, and nothing
// has changed.
func ActivateGeneration(dir string, n uint64) error {
	info, err := os.Stat(GenerationPath(dir, n))
	if err == nil && !info.IsDir() {
		err = fs.ErrNotExist
	}
	if err == nil {
		err = swap(dir, n)
	}
	if err != nil {
		return fmt.Errorf("making generation %d current in %s: %w", n, dir, err)
	}
	return nil
}

// RemoveGeneration removes a generation that is not the current one.
func RemoveGeneration(dir string, n uint64) error {
	current, err := currentGeneration(dir)
	if err == nil && current == n {
		err = errors.New("it is the current one")
	}
	if err == nil {
		err = RemoveAll(GenerationPath(dir, n))
	}
	if err != nil {
		return fmt.Errorf("removing generation %d of %s: %w", n, dir, err)
	}
	return nil
}

// PruneGenerations removes every generation but the current one and the one before it.
func PruneGenerations(dir string) error {
	current, err := currentGeneration(dir)
	if err == nil {
		err = removeAllBut(filepath.Join(dir, generationsDir), current)
	}
	if err != nil {
		return fmt.Errorf("removing old generations of %s: %w", dir, err)
	}
	return nil
}

// CurrentGeneration is the number of the current generation, 0 when there is none.
func CurrentGeneration(dir string) (uint64, error) { return currentGeneration(dir) }

// GenerationPath is the directory of a generation.
func GenerationPath(dir string, n uint64) string {
	return filepath.Join(dir, generationsDir, strconv.FormatUint(n, 10))
}

// Symlink makes a symbolic link, or lets the one at path lead elsewhere, in one step.
func Symlink(target, path string) error {
	temp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+tempMark+randomName())
	Step("durable.symlink.before")
	if err := os.Symlink(target, temp); err != nil {
		return err
	}
	if err := Rename(temp, path); err != nil {
		_ = os.Remove(temp) // the rename's error is the one that counts
		return err
	}
	return nil
}
