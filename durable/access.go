package durable

import (
	"fmt"
	"io/fs"
	"os"
)

// Access says who may reach a generation, where that is not simply the process's own user.
type Access struct {
	// UID and GID become the owner and the group of files and directories; -1 leaves them as they are made.
	UID, GID int
	// Dir is the mode of the directories. Files have their own.
	Dir fs.FileMode
}

// file makes f what was asked for, while it is still empty. The order matters: it is made for its maker alone, and
// opened to others only when it belongs to whom it shall. A umask plays no part.
func (a *Access) file(f *os.File, perm fs.FileMode) error {
	if a.UID >= 0 || a.GID >= 0 {
		if err := f.Chown(a.UID, a.GID); err != nil {
			return err
		}
		Step("durable.chown.after")
	}
	if err := f.Chmod(perm.Perm()); err != nil {
		return err
	}
	Step("durable.chmod.after")
	return nil
}

// directory does the same to a directory. It is opened without following a link, which somebody who owns the one above
// it could have put there.
func (a *Access) directory(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", path)
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	opened, err := d.Stat()
	switch {
	case err != nil:
	case !os.SameFile(info, opened):
		err = fmt.Errorf("%s was replaced meanwhile", path)
	default:
		err = a.file(d, a.Dir)
	}
	if closeErr := d.Close(); err == nil {
		err = closeErr
	}
	return err
}
