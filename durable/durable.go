// Package durable knows how to put bytes on a disk so that they are there after a crash: a file is
// either as it was or as it was to become, never half of it, and what a function has returned
// without an error survives the loss of power.
//
// The order is always the same, and each step has its reason:
//
//  1. A temporary file is made in the directory of the target, because rename(2) is atomic only
//     within one file system. It is made with O_EXCL, so that nobody can have put a link there, and
//     with the mode that was asked for, so that a secret is never readable for longer than it takes
//     to change a mode.
//  2. The contents are written and fsynced. Without the fsync a file system may carry out the rename
//     before the contents reach the disk, and a crash leaves an empty file under the good name.
//  3. rename(2) puts it in place. A reader sees the old file or the new one.
//  4. The directory is fsynced. Without it the rename itself may be forgotten, and a caller who has
//     already told somebody else (a journal, a peer) would be a liar after the crash.
//
// An error from fsync is final: the kernel may have dropped the pages, and a second fsync would
// report success for data that is gone. The temporary file is removed then and nothing is in place.
package durable

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// tempMark stands in the name of every temporary file of this package; see [Sweep].
const tempMark = ".countersign-tmp-"

// WriteFile puts data into the file at path, replacing what was there, as the package comment
// describes. The new file has the mode perm, narrowed by the process's umask, from the moment it
// exists. Symbolic links at path are replaced, not followed.
//
// Two writers of one path do not disturb each other; the last one wins. After a crash a temporary
// file may be left, which [Sweep] removes. Errors of the system are wrapped: a full disk is
// syscall.ENOSPC, and the old file is unharmed then.
func WriteFile(path string, data []byte, perm fs.FileMode) error {
	dir, base := filepath.Split(path)
	if base == "" {
		return fmt.Errorf("writing %q: it does not name a file", path)
	}
	if dir == "" {
		dir = "."
	}
	temp := filepath.Join(dir, "."+base+tempMark+randomName())
	if err := writeNew(temp, data, perm, nil); err != nil {
		var at *fs.PathError
		if errors.As(err, &at) && at.Op == "open" { // nobody knows the temporary file
			err = fmt.Errorf("no file can be made in %s: %w", filepath.Clean(dir), at.Err)
		}
		return fmt.Errorf("writing %s: %w", path, err)
	}
	Step("durable.rename.before")
	if err := os.Rename(temp, path); err != nil {
		_ = os.Remove(temp) // the rename's error is the one that counts
		return fmt.Errorf("writing %s: %w", path, err)
	}
	Step("durable.rename.after")
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// CreateFile makes a file that must not exist yet, with the mode perm, narrowed by the process's umask; one that exists is
// fs.ErrExist. When it returns, the file survives a crash; a crash before that may leave a part of it. The error is the
// system's, which names the path, and there is no file then unless it was there before.
func CreateFile(path string, data []byte, perm fs.FileMode) error {
	if err := writeNew(path, data, perm, nil); err != nil {
		return err
	}
	if err := SyncDir(filepath.Dir(path)); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// writeNew makes a file that must not exist yet and fsyncs its contents; the directory is not
// synced. access may be nil. When it fails, the file is gone.
func writeNew(path string, data []byte, perm fs.FileMode, access *Access) error {
	Step("durable.create.before")
	made := perm.Perm()
	if access != nil {
		made &= 0o700
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, made)
	if err != nil {
		return err
	}
	Step("durable.create.after")
	if access != nil {
		err = access.file(f, perm)
	}
	if err == nil {
		err = fill(f, data)
	}
	// Close reports what a network file system could not store.
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		_ = os.Remove(path) // the first error is the one that counts
		return err
	}
	return nil
}

func fill(f *os.File, data []byte) error {
	// Two halves, so that a fault between them leaves a truncated file, as a crash would.
	half := len(data) / 2
	if _, err := f.Write(data[:half]); err != nil {
		return err
	}
	Step("durable.write.half")
	if _, err := f.Write(data[half:]); err != nil {
		return err
	}
	Step("durable.write.after")
	if err := f.Sync(); err != nil {
		return err
	}
	Step("durable.fsync.after")
	return nil
}

// MkdirAll makes a directory and those above it that are missing, with the mode perm narrowed by the
// umask, and fsyncs the parent of each that it made. A directory that exists keeps its mode.
func MkdirAll(path string, perm fs.FileMode) error {
	path = filepath.Clean(path)
	info, err := os.Stat(path)
	if err == nil {
		if !info.IsDir() {
			return fmt.Errorf("making the directory %s: %w: it is not a directory", path, fs.ErrExist)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("making the directory %s: %w", path, err)
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := MkdirAll(parent, perm); err != nil {
			return err
		}
	}
	Step("durable.mkdir.before")
	if err := os.Mkdir(path, perm.Perm()); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making the directory %s: %w", path, err)
	}
	Step("durable.mkdir.after")
	if err := syncDir(parent); err != nil {
		return fmt.Errorf("making the directory %s: %w", path, err)
	}
	return nil
}

// Rename moves a file or a directory within one file system and fsyncs both directories. A directory
// that is moved must have been synced before, and everything in it.
func Rename(from, to string) error {
	Step("durable.rename.before")
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("renaming %s: %w", from, err)
	}
	Step("durable.rename.after")
	if err := syncDir(filepath.Dir(to)); err != nil {
		return fmt.Errorf("renaming %s: %w", from, err)
	}
	if filepath.Dir(from) == filepath.Dir(to) {
		return nil
	}
	if err := syncDir(filepath.Dir(from)); err != nil {
		return fmt.Errorf("renaming %s: %w", from, err)
	}
	return nil
}

// Remove removes a file or an empty directory and fsyncs its directory. It is no error when there is
// none: a removal that is repeated after a crash succeeds.
func Remove(path string) error {
	return remove(path, os.Remove)
}

// RemoveAll is Remove for a directory with everything in it. A crash in between leaves a part of it.
func RemoveAll(path string) error {
	return remove(path, os.RemoveAll)
}

func remove(path string, how func(string) error) error {
	Step("durable.remove.before")
	if err := how(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing %s: %w", path, err)
	}
	Step("durable.remove.after")
	err := syncDir(filepath.Dir(path))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing %s: %w", path, err)
	}
	return nil
}

// Sweep removes what a crash in [WriteFile] has left in a directory. Only the one process that writes
// there may call it, while it holds its [Lock]: the temporary file of another writer looks the same.
func Sweep(dir string) error { return sweep(dir, "") }

// sweep removes the temporary files of one target, or of all when base is empty.
func sweep(dir, base string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("sweeping %s: %w", dir, err)
	}
	for _, entry := range entries {
		target, _, ok := strings.Cut(entry.Name(), tempMark)
		if !ok || !strings.HasPrefix(target, ".") || (base != "" && target != "."+base) {
			continue
		}
		if err := Remove(filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// SyncDir makes what was created, renamed or removed in a directory durable.
func SyncDir(dir string) error {
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		err = nil // some network and overlay file systems have nothing to sync for a directory
	}
	if closeErr := d.Close(); err == nil {
		err = closeErr
	}
	Step("durable.fsyncdir.after")
	return err
}

func randomName() string {
	var b [8]byte
	_, _ = io.ReadFull(rand.Reader, b[:]) // crypto/rand ends the process rather than fail
	return hex.EncodeToString(b[:])
}
