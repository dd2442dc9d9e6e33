//go:build unix && !linux

package up

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// identify tells what is at a path, without following a link there. When it was born is not asked here.
func identify(path string) (madePath, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return madePath{}, err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return madePath{}, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return madePath{}, fmt.Errorf("%s has no number", path)
	}
	return madePath{Path: path, Device: uint64(stat.Dev), Inode: uint64(stat.Ino)}, nil //nolint:gosec,unconvert // a number, whatever its type
}
