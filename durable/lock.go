package durable

import (
	"errors"
	"fmt"
	"os"
)

// ErrLocked says that another process, or another part of this one, holds the lock.
var ErrLocked = errors.New("it is in use by another process")

// Lock takes an exclusive lock on the file at path, which is made with mode 0600 when it is missing
// and is never removed: removing it would let two processes hold locks on two files of one name.
// A symbolic link at path is an error: whoever may make files beside it could have root make or hold any file. It does
// not wait; when somebody else holds it, the error is [ErrLocked]. The kernel releases the
// lock when the process ends, however it ends.
func Lock(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|noFollow, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	if err := lockFile(f); err != nil {
		_ = f.Close() // nothing was written
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return f.Close, nil
}
