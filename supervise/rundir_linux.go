package supervise

import (
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// inMemory tells whether a directory is on a file system that has no disk, and what it is on.
func inMemory(path string) (memory bool, kind string, err error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil {
		return false, "", err
	}
	switch uint32(stat.Type) {
	case unix.TMPFS_MAGIC:
		return true, "tmpfs", nil
	case unix.RAMFS_MAGIC:
		return true, "ramfs", nil
	}
	return false, fmt.Sprintf("a file system of the type %#x, which is neither tmpfs nor ramfs", uint32(stat.Type)), nil
}

// isOurs tells whether this user has made it.
func isOurs(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.IsDir() {
		return false
	}
	uid, known := ownerOf(info)
	return known && uid == os.Geteuid()
}

// ownerOf is the user whom a file belongs to.
func ownerOf(info fs.FileInfo) (uid int, known bool) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return int(stat.Uid), true
}

// endInside kills the programs whose working directory is inside of a directory, and waits until they are gone. They are
// started in their run directories, whose names are made at random; who looks around in one is let be.
func endInside(dir string) []int {
	var ended []int
	for range 500 {
		pids := slices.DeleteFunc(inside(dir), func(pid int) bool { return !isProgram(pid) })
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			if syscall.Kill(pid, syscall.SIGKILL) == nil && !slices.Contains(ended, pid) {
				ended = append(ended, pid)
			}
		}
		time.Sleep(10 * time.Millisecond) // nothing tells of the end of somebody else's child
	}
	return ended
}

// isProgram tells whether a process is one of the programs, under any name of the kind that they get.
func isProgram(pid int) bool {
	name, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	return err == nil && (strings.HasPrefix(string(name), NGINX.name) || strings.HasPrefix(string(name), HAProxy.name))
}

// inside are the processes whose working directory is inside of a directory.
func inside(dir string) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		cwd, err := os.Readlink("/proc/" + entry.Name() + "/cwd")
		if err == nil && strings.HasPrefix(strings.TrimSuffix(cwd, " (deleted)")+"/", dir+"/") {
			pids = append(pids, pid)
		}
	}
	return pids
}
