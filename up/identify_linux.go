package up

import (
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// identify tells what is at a path, without following a link there. Born is 0 where the file system does not say.
func identify(path string) (madePath, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return madePath{}, err
	}
	var stat unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO|unix.STATX_BTIME, &stat); err != nil {
		return madePath{}, fmt.Errorf("statx %s: %w", path, err)
	}
	found := madePath{Path: path, Device: unix.Mkdev(stat.Dev_major, stat.Dev_minor), Inode: stat.Ino}
	if stat.Mask&unix.STATX_BTIME != 0 {
		found.Born = stat.Btime.Sec*1e9 + int64(stat.Btime.Nsec)
	}
	return found, nil
}
