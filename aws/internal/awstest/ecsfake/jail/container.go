//go:build linux

package jail

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bind makes a file or directory of this process's file system visible in a container.
type Bind struct {
	Source, Target string
	Writable       bool
}

// Dir is a directory of an image.
type Dir struct {
	Path     string
	UID, GID int
	Mode     os.FileMode
}

// File is a small file of an image, mode 0644 and root's.
type File struct{ Path, Content string }

// Tmpfs is a memory disk of one container.
type Tmpfs struct {
	Path string
	// Size is in bytes.
	Size int64
}

// Spec describes one container.
type Spec struct {
	// Root is an empty directory on which the container, in its own mount namespace, builds its root. Several
	// containers can have the same.
	Root     string
	Hostname string
	// Host makes the programs and libraries of this machine visible, read-only: /usr, and what belongs to it.
	// Without it the root is empty but for /dev, /proc, /etc/hosts and what follows.
	Host  bool
	Binds []Bind
	Dirs  []Dir
	Files []File
	Tmpfs []Tmpfs
	// Links are symbolic links, by their path.
	Links map[string]string
	// ReadOnly forbids writing to the root; binds and memory disks are not concerned.
	ReadOnly bool
	UID, GID int
	// Drop are numbers of capabilities that are taken away besides those that containers never have; All takes all.
	Drop    []int
	DropAll bool
	// Limits are resource limits, soft and hard, by the numbers of getrlimit(2).
	Limits map[int][2]uint64
	// Init puts a small first process before the program, which hands signals on and collects orphans.
	Init bool
	// Pause makes a container that does nothing but hold a process namespace, until it is killed; Arguments do not count then.
	Pause bool
	// Processes is a container whose process namespace this one shares; nil: it has its own. In one that is shared,
	// what the program leaves running runs on until the other container ends.
	Processes   *Container `json:"-"`
	Directory   string
	Arguments   []string
	Environment []string
}

// Container is a program that runs, or ran. It is safe for concurrent use.
type Container struct {
	spec Spec
	pid  int
	done chan struct{}
	code int
	// namespaces are kept open: entering them by process id could meet another process.
	mu         sync.RWMutex // held for reading while somebody enters
	namespaces []*os.File
}

// errPrefix is how the child begins what it could not do.
const errPrefix = "container: "

// Start runs a program in a container of its own on the task's network, and returns when the program was
// executed. What cannot be set up, and a program that is not there, are errors.
func Start(spec Spec, space *Space, output io.Writer) (*Container, error) {
	if !inside {
		return nil, ErrUnavailable
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("describe a container: %w", err)
	}
	request, give, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	defer request.Close()
	defer give.Close()
	take, answer, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	defer take.Close()
	defer answer.Close()
	cmd := exec.Command("/proc/self/exe") //nolint:noctx // a container lives until it is told to end
	cmd.Args = []string{containerName}
	cmd.Env = []string{}
	cmd.Stdout, cmd.Stderr = output, output
	cmd.ExtraFiles = []*os.File{request, answer, space.namespace}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
	if err := spec.start(cmd); err != nil {
		return nil, fmt.Errorf("start a container: %w", err)
	}
	request.Close()
	answer.Close()
	c := &Container{spec: spec, pid: cmd.Process.Pid, done: make(chan struct{})}
	_, writing := give.Write(text)
	give.Close()
	refusal, reading := io.ReadAll(take)
	if err := errors.Join(writing, reading); err != nil || len(refusal) > 0 {
		_ = cmd.Process.Kill()
		waiting := cmd.Wait()
		if len(refusal) > 0 {
			return nil, errors.New(strings.TrimPrefix(string(refusal), errPrefix))
		}
		return nil, fmt.Errorf("start a container: %w", errors.Join(err, waiting))
	}
	opening := c.open()
	go c.wait(cmd)
	if opening != nil {
		c.Signal(syscall.SIGKILL)
		<-c.done
		return nil, opening
	}
	return c, nil
}

// start starts the child, in the process namespace of another container when that is asked for.
func (s *Spec) start(cmd *exec.Cmd) error {
	if s.Processes == nil {
		return cmd.Start()
	}
	cmd.SysProcAttr.Cloneflags &^= unix.CLONE_NEWPID
	cmd.WaitDelay = time.Second // what is left running may hold the output open
	return onThread(nil, func() error {
		other := s.Processes
		other.mu.RLock()
		defer other.mu.RUnlock()
		if len(other.namespaces) == 0 {
			return errors.New("the container whose processes are shared has ended")
		}
		if err := unix.Setns(int(other.namespaces[0].Fd()), unix.CLONE_NEWPID); err != nil {
			return fmt.Errorf("share the processes of another container: %w", err)
		}
		return cmd.Start()
	})
}

// open opens the namespaces of a program that has just been executed.
func (c *Container) open() error {
	// Processes come first, because start counts on it, and mounts last: then the paths are the container's.
	for _, kind := range []string{"pid", "net", "uts", "ipc", "mnt"} {
		file, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", c.pid, kind))
		if err != nil {
			// A program can be over already; then there is nothing to enter.
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrPermission) {
				return nil
			}
			return fmt.Errorf("open a container's namespaces: %w", err)
		}
		c.namespaces = append(c.namespaces, file)
	}
	return nil
}

// wait notes how the program ended. Its kernel has ended everything else in the container by then.
func (c *Container) wait(cmd *exec.Cmd) {
	var exit *exec.ExitError
	switch err := cmd.Wait(); {
	case err == nil:
	case errors.As(err, &exit):
		status, known := exit.Sys().(syscall.WaitStatus)
		c.code = exit.ExitCode()
		if known && status.Signaled() {
			c.code = 128 + int(status.Signal())
		}
	default:
		c.code = 255
	}
	close(c.done)
}

// Done is closed when the program has ended.
func (c *Container) Done() <-chan struct{} { return c.done }

// Code is the exit code, 128 and the signal's number when one ended it. Wait for Done first.
func (c *Container) Code() int { return c.code }

// Signal sends the container's first process a signal. To one that has ended it does nothing.
func (c *Container) Signal(signal syscall.Signal) {
	select {
	case <-c.done:
	default:
		_ = unix.Kill(c.pid, signal) // it may end at this moment; its id is not given away before it was waited for
	}
}

// Close forgets the namespaces. Exec is over then.
func (c *Container) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, file := range c.namespaces {
		file.Close()
	}
	c.namespaces = nil
}

// Exec runs another program in the container, as its user, and returns its exit code and output. A program
// that is not over when the context is, is killed: an error.
func (c *Container) Exec(ctx context.Context, arguments []string) (code int, output []byte, err error) {
	select {
	case <-c.done:
		return 0, nil, errors.New("the container has ended")
	default:
	}
	if len(arguments) == 0 {
		return 0, nil, errors.New("no program")
	}
	err = onThread(nil, func() error {
		if err := c.enter(); err != nil {
			return err
		}
		if err := c.spec.dropBounding(); err != nil {
			return err
		}
		code, output, err = c.spec.run(ctx, arguments)
		return err
	})
	return code, output, err
}

// enter takes the calling thread into the container.
func (c *Container) enter() error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if len(c.namespaces) == 0 {
		return errors.New("the container has ended")
	}
	// A thread may take another mount namespace only when it shares its root with no other thread.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare the thread's root: %w", err)
	}
	for _, namespace := range c.namespaces {
		if err := unix.Setns(int(namespace.Fd()), 0); err != nil {
			return fmt.Errorf("enter the container's %s: %w", filepath.Base(namespace.Name()), err)
		}
	}
	return nil
}

// run runs a program on the calling thread, which stands in the container.
func (s *Spec) run(ctx context.Context, arguments []string) (int, []byte, error) {
	path, err := s.look(arguments[0])
	if err != nil {
		return 126, []byte(err.Error()), nil
	}
	var output bytes.Buffer
	cmd := exec.CommandContext(ctx, path, arguments[1:]...)
	cmd.Args[0] = arguments[0]
	cmd.Env, cmd.Dir = s.Environment, s.Directory
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.WaitDelay = time.Second // a process that it left behind may hold the output open
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(s.UID), Gid: uint32(s.GID)}}
	var exit *exec.ExitError
	if err := cmd.Run(); errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode(), output.Bytes(), nil
	} else if err != nil {
		return 0, output.Bytes(), fmt.Errorf("run %s in the container: %w", arguments[0], err)
	}
	return 0, output.Bytes(), nil
}

// look finds a program along the container's PATH.
func (s *Spec) look(name string) (string, error) {
	if strings.Contains(name, "/") {
		if info, err := os.Stat(name); err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
			return "", fmt.Errorf("exec: %q: stat %s: no such file or directory, or not executable", name, name)
		}
		return name, nil
	}
	for _, variable := range s.Environment {
		list, found := strings.CutPrefix(variable, "PATH=")
		if !found {
			continue
		}
		for _, directory := range filepath.SplitList(list) {
			path := filepath.Join(directory, name)
			if info, err := os.Stat(path); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("exec: %q: executable file not found in $PATH", name)
}
