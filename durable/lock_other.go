//go:build !unix

package durable

import (
	"errors"
	"fmt"
	"os"
)

const noFollow = 0

// lockFile refuses: to go on without a lock would let two writers destroy a state.
func lockFile(*os.File) error {
	return fmt.Errorf("file locks on this system: %w", errors.ErrUnsupported)
}
