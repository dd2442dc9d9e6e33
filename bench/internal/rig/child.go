package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Child is a process that was started here, and that is stopped by its process ID.
type Child struct {
	Name string

	command *exec.Cmd
	log     string
	done    chan struct{} // closed when it has ended
	err     error         // how; to be read when done is closed
}

// stopPatience is how long a process may take to end after SIGTERM.
const stopPatience = 5 * time.Second

// start starts a process whose output goes into a file.
func (r *Rig) start(ctx context.Context, name, program string, args ...string) (*Child, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	name = r.name(name)
	c := &Child{Name: name, log: filepath.Join(r.Dir, name+".log"), done: make(chan struct{})}
	// It lives until Stop, not until ctx ends: it is to be stopped in order.
	c.command = exec.Command(program, args...) //nolint:noctx,gosec // see above; ENVOY and GHOSTUNNEL name programs, as PATH does
	own(c.command)
	log, err := os.Create(c.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c.command.Stdout, c.command.Stderr = log, log
	if err := c.command.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		c.err = c.command.Wait()
		close(c.done)
	}()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.children = append(r.children, c)
	return c, nil
}

// PID is the process's number.
func (c *Child) PID() int { return c.command.Process.Pid }

// Ended is nil while the process runs.
func (c *Child) Ended() error {
	select {
	case <-c.done:
		return fmt.Errorf("%s has ended: %w", c.Name, errors.Join(c.err, errGone))
	default:
		return nil
	}
}

// Tail is the end of what the process wrote.
func (c *Child) Tail() string {
	text, err := os.ReadFile(c.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.SplitAfter(string(text), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "")
}

// Stop ends the process: SIGTERM, and SIGKILL when that is not enough. It may be called again.
func (c *Child) Stop() error {
	if c.Ended() != nil {
		return nil
	}
	if err := c.command.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping %s: %w", c.Name, err)
	}
	select {
	case <-c.done:
		return nil
	case <-time.After(stopPatience):
		return c.Kill()
	}
}

// Kill ends the process as the kernel does when memory is short.
func (c *Child) Kill() error {
	if err := c.command.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("killing %s: %w", c.Name, err)
	}
	<-c.done
	return nil
}
