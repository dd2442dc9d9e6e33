// Package proc reads what Linux says in /proc of processes and of the machine: processor time, memory,
// who started whom.
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of processor time in /proc: USER_HZ, which is 100 for every program on every
// architecture that Go knows.
const tick = 10 * time.Millisecond

// Stat is a part of /proc/PID/stat (proc_pid_stat(5)).
type Stat struct {
	PID, Parent int
	State       byte // R, S, D, Z and others
	// Own is the processor time that the process has used, in user mode and in the kernel.
	Own time.Duration
	// Waited is the same of its children that have ended and that it has waited for.
	Waited time.Duration
}

// ParseStat reads the content of one /proc/PID/stat.
func ParseStat(text string) (Stat, error) {
	// The name, in parentheses, may hold spaces and parentheses itself.
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return Stat{}, fmt.Errorf("%q is not the form of /proc/PID/stat: it has no name in parentheses", text)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(text[:open]))
	if err != nil {
		return Stat{}, fmt.Errorf("%q is not the form of /proc/PID/stat: %w", text, err)
	}
	fields := strings.Fields(text[end+1:])
	const last = 14 // cstime, counted from the state
	if len(fields) <= last {
		return Stat{}, fmt.Errorf("%q is not the form of /proc/PID/stat: it has %d fields after the name", text, len(fields))
	}
	s := Stat{PID: pid, State: fields[0][0]}
	if s.Parent, err = strconv.Atoi(fields[1]); err != nil {
		return Stat{}, fmt.Errorf("the parent in %q: %w", text, err)
	}
	var ticks [4]int64 // utime, stime, cutime, cstime
	for i := range ticks {
		if ticks[i], err = strconv.ParseInt(fields[11+i], 10, 64); err != nil {
			return Stat{}, fmt.Errorf("the times in %q: %w", text, err)
		}
	}
	s.Own = time.Duration(ticks[0]+ticks[1]) * tick
	s.Waited = time.Duration(ticks[2]+ticks[3]) * tick
	return s, nil
}

// All reads every process of the machine.
func All() (map[int]Stat, error) {
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || len(paths) == 0 {
		return nil, errors.Join(errors.New("this system has no /proc; the measurements need Linux"), err)
	}
	all := make(map[int]Stat, len(paths))
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		s, err := ParseStat(string(text))
		if err != nil {
			return nil, err
		}
		all[s.PID] = s
	}
	return all, nil
}

// Tree finds a process and all that descend from it. A process that is not there has no tree.
func Tree(all map[int]Stat, root int) []Stat {
	children := make(map[int][]int)
	for pid, s := range all {
		children[s.Parent] = append(children[s.Parent], pid)
	}
	var tree []Stat
	for next := []int{root}; len(next) > 0; next = next[1:] {
		if s, ok := all[next[0]]; ok {
			tree = append(tree, s)
			next = append(next, children[next[0]]...)
		}
	}
	return tree
}

// CPU is the processor time that processes and all that descend from them have used so far, those
// included that have ended and were waited for.
func CPU(roots ...int) (time.Duration, error) {
	all, err := All()
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, root := range roots {
		tree := Tree(all, root)
		if len(tree) == 0 {
			return 0, fmt.Errorf("process %d has ended", root)
		}
		for _, s := range tree {
			sum += s.Own + s.Waited
		}
	}
	return sum, nil
}

// Memory is what a process holds, in bytes.
type Memory struct {
	RSS  int64 // resident now
	Peak int64 // the most that was resident since the start
}

// ParseMemory reads the content of one /proc/PID/status.
func ParseMemory(text string) (Memory, error) {
	var m Memory
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		var to *int64
		switch name {
		case "VmRSS":
			to = &m.RSS
		case "VmHWM":
			to = &m.Peak
		default:
			continue
		}
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return Memory{}, fmt.Errorf("%q in a process's status: %w", strings.TrimSpace(line), err)
		}
		*to = kib << 10
	}
	if m.RSS == 0 || m.Peak == 0 {
		return Memory{}, errors.New("a process's status has no VmRSS or no VmHWM")
	}
	return m, nil
}

// MemoryOf sums the memory of processes and all that descend from them. Pages that several of them
// share count several times.
func MemoryOf(roots ...int) (Memory, error) {
	all, err := All()
	if err != nil {
		return Memory{}, err
	}
	var sum Memory
	for _, root := range roots {
		tree := Tree(all, root)
		if len(tree) == 0 {
			return Memory{}, fmt.Errorf("process %d has ended", root)
		}
		for _, s := range tree {
			if s.State == 'Z' {
				continue
			}
			m, err := memory(s.PID)
			if err != nil {
				return Memory{}, err
			}
			sum.RSS += m.RSS
			sum.Peak += m.Peak
		}
	}
	return sum, nil
}

// memory reads one process. The status counts pages roughly on machines of many processors;
// smaps_rollup, where it may be read, counts them exactly.
func memory(pid int) (Memory, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Memory{}, fmt.Errorf("reading how much memory process %d holds: %w", pid, err)
	}
	m, err := ParseMemory(string(text))
	if err != nil {
		return Memory{}, fmt.Errorf("process %d: %w", pid, err)
	}
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err != nil {
		return Memory{}, fmt.Errorf("reading how much memory process %d holds: %w", pid, err)
	}
	for line := range bytes.Lines(rollup) {
		var kib int64
		if _, err := fmt.Sscanf(string(line), "Rss: %d kB", &kib); err == nil {
			m.RSS = kib << 10
		}
	}
	return m, nil
}
