//go:build faultinject

package durable

import (
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
)

// FaultVariable is the environment variable that names the step to die at: a name that was given to
// [Step], or a number N for the Nth call of Step in the process, whatever its name.
const FaultVariable = "COUNTERSIGN_FAULT"

var (
	faultAt = os.Getenv(FaultVariable)
	steps   atomic.Int64
)

// Step kills the process (SIGKILL, no deferred function runs) when [FaultVariable] says so.
func Step(name string) {
	n := steps.Add(1)
	if faultAt == "" || (faultAt != name && faultAt != strconv.FormatInt(n, 10)) {
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal is on its way
}
