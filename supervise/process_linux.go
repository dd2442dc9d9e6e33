package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// launch starts the program in a process group of its own, so that a terminal's signals come to us alone, and
// everything that it starts can be ended with it. It ends when this process does, however that comes.
func launch(p *process, b *Binary, stdout, stderr *os.File) error {
	// What a master leaves behind comes to this process and not to init: only its parent can see that it is gone.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("becoming the one who sees its processes end: %w", err)
	}
	started := make(chan error, 1)
	go func() {
		// The signal at a parent's death is sent when the thread that was the parent ends; this one lives as
		// long as the program, and ends with this goroutine.
		runtime.LockOSThread()
		conf := filepath.Join(p.run, b.Engine.file)
		command := exec.CommandContext(context.Background(), b.Path, b.Engine.serve(conf, p.run)...)
		command.Dir, command.Env = p.run, Environment()
		command.Stdout, command.Stderr = stdout, stderr
		// Not SIGKILL: killed so, NGINX's master would leave workers behind that serve on.
		command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: b.Engine.stop}
		if err := command.Start(); err != nil {
			started <- err
			return
		}
		p.pid = command.Process.Pid
		started <- nil
		p.reap(command)
	}()
	return <-started
}

// reap waits for the master's end, ends what it left behind, and returns when nothing of it is there any more: its
// sockets are free then.
func (p *process) reap(command *exec.Cmd) {
	for {
		// Until it is waited for, its number is nobody else's.
		err := unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	p.mu.Lock()
	_ = syscall.Kill(-p.pid, syscall.SIGKILL)
	p.reaped = true
	p.mu.Unlock()
	_ = command.Wait() // how it ended is said by its own last words
	deadline := time.Now().Add(5 * time.Second)
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-p.pid, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.ECHILD) || time.Now().After(deadline) {
			break
		}
		if pid == 0 {
			time.Sleep(5 * time.Millisecond) // a killed process is a moment away from its end, and nothing tells of it
		}
	}
	close(p.gone)
}

// widen lets a pipe hold more, so that a moment in which it is not read stops no worker.
func widen(pipe *os.File) {
	if raw, err := pipe.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, 1<<20) }) // less is slower, and nothing else
	}
}
