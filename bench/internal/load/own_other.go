//go:build !linux

package load

import "os/exec"

// own is of use only where figures can be measured: on Linux.
func own(*exec.Cmd) {}
