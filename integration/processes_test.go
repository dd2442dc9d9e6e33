package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// process is what /proc says of one.
type process struct {
	pid, parent int
	state       string
	args        []string
}

// processes lists what runs on this machine.
func processes(t *testing.T) []process {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil || len(dirs) == 0 {
		t.Skipf("NOT TESTED: this system has no /proc (%v)", err)
	}
	var all []process
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue // it has ended
		}
		args, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue
		}
		p := process{pid: pid, args: strings.Split(strings.TrimSuffix(string(args), "\x00"), "\x00")}
		// The name before may hold spaces and parentheses.
		if _, err := fmt.Sscanf(string(stat[bytes.LastIndexByte(stat, ')')+1:]), " %s %d", &p.state, &p.parent); err != nil {
			t.Fatalf("%s/stat is %q: %v", dir, stat, err)
		}
		all = append(all, p)
	}
	return all
}

// descendants are the processes below one, itself not among them.
func descendants(t *testing.T, root int) []process {
	t.Helper()
	all := processes(t)
	family := map[int]bool{root: true}
	var found []process
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			if family[p.parent] && !family[p.pid] {
				family[p.pid], grown = true, true
				found = append(found, p)
			}
		}
	}
	return found
}

// find gives the process of a mesh whose command line holds all the words; 0 when there is none now.
func (r *running) find(t *testing.T, words ...string) int {
	t.Helper()
	for _, p := range descendants(t, r.command.Process.Pid) {
		if p.state != "Z" && !slices.ContainsFunc(words, func(w string) bool { return !slices.Contains(p.args, w) }) {
			return p.pid
		}
	}
	return 0
}

// kill ends one process of the mesh as the kernel does when memory is short, and returns its pid.
func (r *running) kill(t *testing.T, words ...string) int {
	t.Helper()
	pid := 0
	await(t, fmt.Sprintf("a process %v", words), func() (bool, string) {
		pid = r.find(t, words...)
		return pid != 0, "none"
	})
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill -9 %d: %v", pid, err)
	}
	return pid
}

// rss is the memory of a process in bytes.
func rss(t *testing.T, pid int) int64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			return kib << 10
		}
	}
	t.Fatalf("process %d has no VmRSS", pid)
	return 0
}
