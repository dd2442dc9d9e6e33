//go:build linux

package jail

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// insideVariable is set for a process that Enter started again, and holds the name it was called by.
	insideVariable = "COUNTERSIGN_JAIL_INSIDE"
	// The names by which this binary calls itself for its two other tasks.
	reaperName    = "countersign-jail-reaper"
	containerName = "countersign-jail-container"
	// outsideFile is the file by which the network namespace outside is handed on.
	outsideFile = 3
)

// ErrUnavailable says that this process may not make namespaces: it is not root, or stands in a container
// that forbids it.
var ErrUnavailable = errors.New("namespaces need root (CAP_SYS_ADMIN and CAP_NET_ADMIN)")

// inside is true in a process that Enter has started again in namespaces of its own, and outside then is the
// network namespace that it was started in first.
var (
	inside  bool
	outside *os.File
)

// The packages that a binary is made of are initialised in the order of their paths, this one long before an
// SDK: what only becomes a container's first process does not pay for the rest of the binary.
func init() {
	switch os.Args[0] {
	case reaperName:
		reap()
	case containerName:
		contain()
	}
}

// Enter starts this program again in namespaces of its own (network, mounts, processes), waits for it and
// exits with its code; in the program that was started again it returns nil at once. Call it first in
// TestMain or main. The error is ErrUnavailable where namespaces cannot be had: then the caller goes on
// outside, and what needs them is skipped.
func Enter() error {
	if name := os.Getenv(insideVariable); name != "" {
		if err := os.Unsetenv(insideVariable); err != nil {
			return fmt.Errorf("forget %s: %w", insideVariable, err)
		}
		// Somebody else's variable is no reason to make bridges in a network that everybody sees.
		theirs, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", outsideFile))
		ours, _ := os.Readlink("/proc/self/ns/net")
		if !strings.HasPrefix(theirs, "net:[") || theirs == ours {
			return fmt.Errorf("%s is set, and this process is in no network of its own: unset it", insideVariable)
		}
		inside = true
		unix.CloseOnExec(outsideFile)
		outside = os.NewFile(outsideFile, "outside")
		return onThread(nil, func() error { return linkUp(1) }) // the loopback interface is always the first
	}
	if os.Geteuid() != 0 {
		return ErrUnavailable
	}
	attributes := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	outside, err := openThreadNamespace()
	if err != nil {
		return err
	}
	defer outside.Close()
	code, err := again(reaperName, append(os.Environ(), insideVariable+"="+os.Args[0]), outside, attributes)
	if errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	} else if err != nil {
		return fmt.Errorf("start this program again in namespaces of its own: %w", err)
	}
	os.Exit(code)
	return nil
}

// Inside says whether this process stands in namespaces that Enter made.
func Inside() bool { return inside }

// ListenOutside opens a TCP socket in the network that the program was started in, for somebody who stands there.
func ListenOutside(ctx context.Context, address string) (listener net.Listener, err error) {
	if !inside {
		return nil, ErrUnavailable
	}
	err = onThread(outside, func() error {
		listener, err = new(net.ListenConfig).Listen(ctx, "tcp4", address)
		return err
	})
	return listener, err
}

// reap is the first process of the namespaces: it makes the mounts private, starts the program and collects
// whatever processes are orphaned. When it ends, the kernel ends everything that is left.
func reap() {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		fatal("make the mounts private", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		fatal("mount /proc", err)
	}
	code, err := again(os.Getenv(insideVariable), os.Environ(), os.NewFile(outsideFile, "outside"), nil)
	if err != nil {
		fatal("start the program", err)
	}
	os.Exit(code)
}

// again runs this binary once more under a name, hands it the signals that come and returns its exit code.
// The network namespace in which Enter was called is handed on.
func again(name string, environment []string, outside *os.File, attributes *syscall.SysProcAttr) (int, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
	defer signal.Stop(signals)
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...) //nolint:noctx,gosec // the child is this program with its own arguments, and it ends when the child does
	cmd.Args[0] = name
	cmd.Env = environment
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{outside}
	cmd.SysProcAttr = attributes
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s) // it may have ended meanwhile
		}
	}()
	return collect(cmd.Process.Pid), nil
}

// collect waits for every child there is until the one of the given id has ended, and returns its exit code.
func collect(pid int) int {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			fatal("wait for the program", err)
		case got == pid && status.Signaled():
			return 128 + int(status.Signal())
		case got == pid && status.Exited():
			return status.ExitStatus()
		}
	}
}

// fatal ends a process of which nobody could take an error.
func fatal(doing string, err error) {
	fmt.Fprintf(os.Stderr, "jail: %s: %v\n", doing, err)
	os.Exit(125)
}
