package up

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dieWithParent makes the kernel kill a child when the thread that started it ends, which is how
// nothing is left behind after a kill -9 of `up` itself; see starter. What is said already stays.
func dieWithParent(attr *syscall.SysProcAttr) {
	if attr.Pdeathsig == 0 {
		attr.Pdeathsig = syscall.SIGKILL
	}
}

// endWithParent is for a process with workers of its own, which a kill of it would leave behind: it is told
// to end at once and ends them.
func endWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGTERM }

// startCommand starts a command. NGINX and HAProxy, which are the ones with workers, get no core dumps: their memory
// holds private keys. Applications get what `up` was given. A child takes the limit over as it is when it is forked,
// and all children are forked here, one after the other.
func startCommand(command *exec.Cmd) (err error) {
	if command.SysProcAttr == nil || command.SysProcAttr.Pdeathsig != syscall.SIGTERM {
		return command.Start()
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &was); err != nil {
		return fmt.Errorf("keeping keys out of core dumps: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{Cur: 0, Max: was.Max}); err != nil {
		return fmt.Errorf("keeping keys out of core dumps: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Setrlimit(unix.RLIMIT_CORE, &was)) }()
	return command.Start()
}

// awaitExit waits until a child has ended and leaves it a zombie, so that its process group's number
// cannot become somebody else's while what is left of the group is killed. It tells whether it has.
func awaitExit(pid int) bool {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return err == nil
		}
	}
}

// orphans are processes whose parent has ended without waiting for them: this process adopts those
// among its descendants and ends them last, for a process may leave its group.
type orphans struct{ before []int }

// adoptOrphans begins the adoption. Children that this process has already are none of ours: they came
// with an exec.
func adoptOrphans() (*orphans, error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("adopting the processes that children leave behind: %w", err)
	}
	return &orphans{before: children()}, nil
}

// end kills and reaps what was adopted, and what that leaves behind in turn. It is called when every
// child that is waited for elsewhere has been.
func (o *orphans) end(deadline time.Time) error {
	for {
		left := slices.DeleteFunc(children(), func(pid int) bool { return slices.Contains(o.before, pid) })
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the processes %v, which children left behind, do not end", left)
		}
		for _, pid := range left {
			_ = unix.Kill(pid, unix.SIGKILL)               // it may have ended
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // nobody asks for its status
		}
		time.Sleep(2 * time.Millisecond) // the kernel takes a moment
	}
}

// children lists the processes whose parent this process is.
func children() []int { return childrenOf(os.Getpid()) }

// childrenOf lists the processes whose parent a process is.
func childrenOf(parent int) []int {
	dir := fmt.Sprintf("/proc/%d/task", parent)
	tasks, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var pids []int
	for _, task := range tasks {
		data, err := os.ReadFile(filepath.Join(dir, task.Name(), "children"))
		if err != nil {
			continue // the thread has ended, or the kernel was built without this file
		}
		for field := range strings.FieldsSeq(string(data)) {
			if pid, err := strconv.Atoi(field); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// programOf is what a process's program is called, empty when there is no such process.
func programOf(pid int) string {
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(name), "\n")
}
