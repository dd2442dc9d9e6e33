//go:build unix && !linux

package up

import (
	"os/exec"
	"syscall"
	"time"
)

// dieWithParent and endWithParent do nothing: only Linux can tie a child's life to its parent's.
func dieWithParent(*syscall.SysProcAttr) {}

func endWithParent(*syscall.SysProcAttr) {}

// startCommand starts a command. Only Linux is told to keep the memory of proxies out of core dumps.
func startCommand(command *exec.Cmd) error { return command.Start() }

// awaitExit cannot be had: what is left of a child's group is killed after the child was waited for.
func awaitExit(int) bool { return false }

// orphans are adopted on Linux only.
type orphans struct{}

func adoptOrphans() (*orphans, error) { return &orphans{}, nil }

func (*orphans) end(time.Time) error { return nil }

// childrenOf and programOf are known on Linux only.
func childrenOf(int) []int { return nil }

func programOf(int) string { return "" }
