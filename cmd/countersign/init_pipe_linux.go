package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// growPipe sees to it that a pipe takes so many bytes without a reader.
func growPipe(fd, size int) error {
	have, err := unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0)
	if err != nil {
		return fmt.Errorf("asking for a pipe's size: %w", err)
	}
	// Each page counts as a whole.
	if need := size + os.Getpagesize(); need > have {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, need); err != nil {
			return fmt.Errorf("a pipe for %d bytes is not to be had: %w", size, err)
		}
	}
	return nil
}
