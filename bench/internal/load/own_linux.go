package load

import (
	"os/exec"
	"syscall"
)

// own gives a program a process group of its own, so that Ctrl-C reaches only us, who stop it in
// order, and ends it when we are killed.
func own(command *exec.Cmd) {
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
