package up

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// ErrCommand says that the command to run cannot be found.
var ErrCommand = errors.New("the command cannot be run")

// command finds the command to run, nil when there is none, before anything is started for it.
func (r *run) command() (*exec.Cmd, error) {
	if len(r.cfg.Command) == 0 {
		return nil, nil //nolint:nilnil // no command is a mode of its own, not a failure
	}
	path, err := r.lookUp(r.cfg.Command[0], ".")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCommand, err)
	}
	command := exec.Command(path) //nolint:noctx // a signal ends it, which it may handle
	command.Args = r.cfg.Command
	command.Stdin, command.Stdout, command.Stderr = r.cfg.Stdin, r.cfg.Stdout, r.cfg.Stderr
	return command, nil
}

// withProgram lets a script find this program by its name, after whatever else it finds.
func (r *run) withProgram(env []string) []string {
	directory, name := filepath.Split(r.cfg.Executable)
	if name != programName || directory == "" {
		return env
	}
	for i, entry := range env {
		if path, ok := strings.CutPrefix(entry, "PATH="); ok {
			env[i] = "PATH=" + path + string(filepath.ListSeparator) + filepath.Clean(directory)
			return env
		}
	}
	return append(env, "PATH="+filepath.Clean(directory))
}

// runCommand runs the command to its end and gives its exit status: 128 and the signal's number when
// one ended it. Signals of ours become its own.
func (r *run) runCommand(ctx context.Context, command *exec.Cmd) (int, error) {
	command.Env = append(r.withProgram(environment()), EnvRun+"="+r.state.documentPath())
	restore := foreground(command)
	defer restore()
	process := &running{command: command}
	started := func() error { return r.starter.start(command) }
	if err := r.onSignalOnce(started, func(s os.Signal) {
		if number, ok := s.(syscall.Signal); ok {
			process.signal(number)
		}
	}); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrCommand, err)
	}
	stop := context.AfterFunc(ctx, func() { process.signal(syscall.SIGTERM) })
	defer stop()
	err := process.wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case !errors.As(err, &exit):
		return 0, fmt.Errorf("waiting for the command: %w", err)
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return exit.ExitCode(), nil
}

// foreground gives the terminal to the command, when there is one and it is ours to give, so that the
// command may read from it and gets what is typed there, Ctrl-C included. The function that it gives
// takes the terminal back.
func foreground(command *exec.Cmd) (restore func()) {
	file, ok := command.Stdin.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return func() {}
	}
	terminal, own := int(file.Fd()), unix.Getpgrp()
	if owner, err := unix.IoctlGetInt(terminal, unix.TIOCGPGRP); err != nil || owner != own {
		return func() {}
	}
	command.SysProcAttr = &syscall.SysProcAttr{Foreground: true, Ctty: terminal}
	return func() {
		// A process in the background that takes the terminal is stopped by this signal.
		signal.Ignore(syscall.SIGTTOU)
		defer signal.Reset(syscall.SIGTTOU)
		_ = unix.IoctlSetPointerInt(terminal, unix.TIOCSPGRP, own) // the shell does it, too
	}
}
