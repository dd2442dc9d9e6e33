package durable

import (
	"bytes"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// LockHolder finds the process that holds the [Lock] on the file at path now. The kernel is asked, and not a note in the
// file, which a dead process would leave. It is not found when nobody holds the lock, when its holder is in another
// container or on another machine, or when this process may not see what that one has open. It looks at all processes:
// for errors, and not for every try.
func LockHolder(path string) (Process, bool) {
	file, err := os.Stat(path)
	if err != nil {
		return Process{}, false
	}
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return Process{}, false
	}
	for _, entry := range processes {
		pid, err := strconv.Atoi(entry.Name())
		if err == nil && holds(filepath.Join("/proc", entry.Name()), filepath.Base(path), file) {
			return describe(pid), true
		}
	}
	return Process{}, false
}

// holds tells whether a process, by its directory, holds a lock on a file of a name.
func holds(dir, name string, file os.FileInfo) bool {
	descriptors, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		return false // it is gone, or somebody else's
	}
	for _, descriptor := range descriptors {
		// What has another name is not asked for: it may be on a disk that does not answer.
		if target, err := os.Readlink(filepath.Join(dir, "fd", descriptor.Name())); err != nil || filepath.Base(target) != name {
			continue
		}
		open, err := os.Stat(filepath.Join(dir, "fd", descriptor.Name()))
		if err != nil || !os.SameFile(open, file) {
			continue
		}
		// One that only has it open, to try, has no such line.
		info, err := os.ReadFile(filepath.Join(dir, "fdinfo", descriptor.Name()))
		if err == nil && hasLock(info) {
			return true
		}
	}
	return false
}

// hasLock tells whether the kernel says of an open file (proc_pid_fdinfo(5)) that its lock is held:
// "lock: 1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF".
func hasLock(info []byte) bool {
	for line := range bytes.Lines(info) {
		fields := strings.Fields(string(line))
		if len(fields) >= 5 && fields[0] == "lock:" && fields[2] == "FLOCK" && fields[4] == "WRITE" {
			return true
		}
	}
	return false
}

// describe says of a process what is known.
func describe(pid int) Process {
	p := Process{PID: pid}
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	if info, err := os.Stat(dir); err == nil {
		if system, ok := info.Sys().(*syscall.Stat_t); ok {
			p.User = strconv.FormatUint(uint64(system.Uid), 10)
			if account, err := user.LookupId(p.User); err == nil {
				p.User = account.Username
			}
		}
	}
	if name, err := os.ReadFile(filepath.Join(dir, "comm")); err == nil {
		p.Command = strings.TrimSpace(string(name))
	}
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return p
	}
	// The name stands in brackets before the state, and may hold any: the last one ends it (proc_pid_stat(5)).
	if at := bytes.LastIndexByte(stat, ')'); at >= 0 {
		state := strings.TrimSpace(string(stat[at+1:]))
		p.Stopped = strings.HasPrefix(state, "T") || strings.HasPrefix(state, "t")
	}
	return p
}
