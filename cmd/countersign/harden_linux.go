package main

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// harden keeps this process's memory, in which private keys and tokens stand, out of core dumps and
// out of the reach of debuggers of the same user. command is the command line as kong names it.
//
// PR_SET_DUMPABLE 0 does both, and is undone by execve: a child is not touched by it. RLIMIT_CORE is
// for the one case that it leaves, a process whose credentials change; children inherit it, so
// that `up`, which starts other people's applications, does without.
func harden(command string) error {
	name, _, _ := strings.Cut(command, " ")
	if name == "example" { // an application: it holds no key, and its owner may want its core
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keeping this process's memory out of core dumps: %w", err)
	}
	if name == "up" {
		return nil
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return fmt.Errorf("keeping this process's memory out of core dumps: %w", err)
	}
	limit.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return fmt.Errorf("keeping this process's memory out of core dumps: %w", err)
	}
	return nil
}
