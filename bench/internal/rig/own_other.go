//go:build !linux

package rig

import "os/exec"

// own is of use only where figures can be measured: on Linux.
func own(*exec.Cmd) {}
