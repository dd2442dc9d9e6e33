package filestore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"countersign.dev/secret"
)

// Whoever may change the store can put back older secrets, remove them, or put in some of his own: the key
// that is encrypted to is no secret. Files inside others' directories are others' files, so that each
// directory is looked at, and each file when it is read.

// private refuses directories that others may change: the store's, which may be reached by a link because
// its user names it, and those in it. One that is missing is noticed when it is needed.
func (s *Store) private() error {
	info, err := os.Stat(s.dir)
	if err == nil {
		err = guardDir(s.dir, info)
	}
	if err != nil {
		return err
	}
	for _, name := range []string{secretsDir, leasesDir, stagingDir} {
		if err := privateDir(s.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// privateDir refuses a directory in the store that others may change, and a link to one.
func privateDir(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	return guardDir(dir, info)
}

func guardDir(dir string, info fs.FileInfo) error {
	if !info.IsDir() {
		return fmt.Errorf("%w directory: %s is none, but a file or a link", secret.ErrInvalid, dir)
	}
	if err := checkOwner(dir, info, os.Geteuid()); err != nil {
		return fmt.Errorf("%w directory: %w", secret.ErrInvalid, err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%w directory: others may write to it (mode %04o): `chmod 700 %s` first", secret.ErrInvalid, info.Mode().Perm(), dir)
	}
	return nil
}

// guardFile refuses a file of the store that others may change.
func guardFile(path string, info fs.FileInfo) error {
	if err := checkOwner(path, info, os.Geteuid()); err != nil {
		return fmt.Errorf("%w file: %w", secret.ErrInvalid, err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%w file: others may write to it (mode %04o): `chmod 600 %s` first", secret.ErrInvalid, info.Mode().Perm(), path)
	}
	return nil
}

// checkOwner refuses what belongs to another user than root and the process's own: he may change it, and
// its mode, whenever he likes.
func checkOwner(path string, info fs.FileInfo, euid int) error {
	uid, known := owner(info)
	if !known || uid == 0 || uid == euid {
		return nil
	}
	return fmt.Errorf("%s belongs to the user %d, and this process is the user %d: run it as that user, or `chown %d %s`", path, uid, euid, euid, path)
}
