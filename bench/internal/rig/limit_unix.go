//go:build unix

package rig

import (
	"fmt"
	"syscall"
)

// files is how many open files crowds of 10,000 need, on both sides of a carrier of TCP.
const files = 65536

// raiseLimit lets this process and its children open as many files as they may, and says how many
// those are. Go raises the limit by itself, but not for children.
func raiseLimit() (int, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("reading how many files may be open: %w", err)
	}
	more := syscall.Rlimit{Cur: files, Max: max(files, limit.Max)}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &more); err == nil {
		return files, nil
	}
	// Only root may go beyond the hard limit.
	limit.Cur = min(limit.Max, files)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("raising how many files may be open: %w", err)
	}
	return int(limit.Cur), nil
}
