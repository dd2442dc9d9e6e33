package supervise

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"countersign.dev/durable"
)

// RunDir is the directory of one process of ours: keys, sockets and configurations of the program that it runs.
type RunDir struct {
	// Path is absolute, of mode 0700 and on a memory file system, unless it was allowed otherwise.
	Path   string
	unlock func() error
}

// What the names in a parent directory begin with: of a directory that is being made, and of one that is locked for as
// long as its process lives.
const (
	newRunDirPrefix = ".countersign-run-"
	runDirPrefix    = "countersign-run-"
	runDirLock      = ".lock"
)

// pathForm is what both configurations and HAProxy's command line take as it is, and mostParent what leaves room in a
// socket's address for all that is below.
var pathForm = regexp.MustCompile(`^/[A-Za-z0-9_./+@=-]*$`)

const mostParent = 44

// ErrRunDir says that there is no fit place for private keys.
var ErrRunDir = errors.New("no place for private keys")

// NewRunDir makes a directory below parent; where parent is empty, below the first of $XDG_RUNTIME_DIR, /run and
// /dev/shm that is a memory file system and can be written. What processes of this user that were killed have left
// there is ended and removed. onDisk allows a parent that is on no memory file system. Errors are [ErrRunDir].
func NewRunDir(parent string, onDisk bool, log *slog.Logger) (*RunDir, error) {
	candidates := []string{parent}
	if parent == "" {
		candidates = []string{os.Getenv("XDG_RUNTIME_DIR"), "/run", "/dev/shm"}
	}
	var errs []error
	for _, candidate := range candidates {
		if candidate == "" {
			continue
		}
		dir, err := newRunDir(candidate, onDisk, log)
		if err == nil {
			return dir, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("%w: %w; --run-dir names a directory on a memory file system (tmpfs) that this user may write to", ErrRunDir, errors.Join(errs...))
}

func newRunDir(parent string, onDisk bool, log *slog.Logger) (*RunDir, error) {
	parent, err := filepath.Abs(parent)
	if err != nil {
		return nil, err
	}
	// As /proc shows the working directories of what is in it.
	if parent, err = filepath.EvalSymlinks(parent); err != nil {
		return nil, err
	}
	if !pathForm.MatchString(parent) || len(parent) > mostParent {
		return nil, fmt.Errorf("%s cannot be named in a configuration, or is too long for sockets in it: letters, digits and _ . / + @ = - are fine, and %d bytes", parent, mostParent)
	}
	if err := checkParent(parent, onDisk); err != nil {
		return nil, err
	}
	sweep(parent, log)
	made, err := os.MkdirTemp(parent, newRunDirPrefix) // of mode 0700
	if err != nil {
		return nil, err
	}
	// It gets its name when it is locked: others remove what has the name and no lock.
	unlock, err := durable.Lock(filepath.Join(made, runDirLock))
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(made))
	}
	path := filepath.Join(parent, runDirPrefix+strings.TrimPrefix(filepath.Base(made), newRunDirPrefix))
	if err := os.Rename(made, path); err != nil {
		return nil, errors.Join(err, unlock(), os.RemoveAll(made))
	}
	return &RunDir{Path: path, unlock: unlock}, nil
}

// checkParent refuses where keys would come to a disk, and where others could replace what is made.
func checkParent(parent string, onDisk bool) error {
	info, err := os.Stat(parent)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", parent)
	}
	// Root that was made by `su` still has the $XDG_RUNTIME_DIR of somebody else, who can put his own directory in the place
	// of one that root has made in it, and what he likes into that.
	if uid, known := ownerOf(info); known && uid != 0 && uid != os.Geteuid() {
		return fmt.Errorf("%s belongs to the user %d, who could replace what is in it, and this is the user %d", parent, uid, os.Geteuid())
	}
	if info.Mode().Perm()&0o022 != 0 && info.Mode()&os.ModeSticky == 0 {
		return fmt.Errorf("%s has the mode %04o, so that others could replace what is in it", parent, info.Mode().Perm())
	}
	memory, kind, err := inMemory(parent)
	if err != nil {
		return fmt.Errorf("asking for the file system of %s: %w", parent, err)
	}
	if !memory && !onDisk {
		return fmt.Errorf("%s is on %s, where a private key might come to a disk", parent, kind)
	}
	return nil
}

// sweep ends and removes what processes of this user that were killed have left: the lock of a process that lives is
// held.
func sweep(parent string, log *slog.Logger) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return // what is there says so when a directory is made
	}
	for _, entry := range entries {
		path := filepath.Join(parent, entry.Name())
		if !strings.HasPrefix(entry.Name(), runDirPrefix) || !entry.IsDir() || !isOurs(path) {
			continue
		}
		unlock, err := durable.Lock(filepath.Join(path, runDirLock))
		if err != nil {
			continue
		}
		for _, pid := range endInside(path) {
			log.Warn("ended a process that an earlier start has left behind", "pid", pid, "runDir", path)
		}
		if err := errors.Join(os.RemoveAll(path), unlock()); err != nil {
			log.Warn("cannot remove what an earlier start has left behind", "runDir", path, "error", err)
		}
	}
}

// Remove removes the directory with all that is in it. It may be called again.
func (d *RunDir) Remove() error {
	if err := os.RemoveAll(d.Path); err != nil {
		return fmt.Errorf("removing the run directory, in which private keys are: %w; remove it by hand", err)
	}
	_ = d.unlock() // the file is gone, and a second time it is closed
	return nil
}
