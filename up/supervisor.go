package up

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// How long a process that died waits for its restart: the first time, at most, and how long it has to
// have run for the count to start again.
const (
	firstBackOff = 100 * time.Millisecond
	lastBackOff  = 10 * time.Second
	goodRun      = 10 * time.Second
)

// starter starts every child from one thread that lives until the end. The kernel ties a child's life
// to the thread that forked it (prctl(2), PR_SET_PDEATHSIG), and the threads that goroutines happen to
// run on come and go.
type starter struct {
	requests chan startRequest
	done     chan struct{}
}

type startRequest struct {
	command *exec.Cmd
	result  chan error
}

func newStarter() *starter {
	s := &starter{requests: make(chan startRequest), done: make(chan struct{})}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		defer close(s.done)
		for request := range s.requests {
			request.result <- startCommand(request.command)
		}
	}()
	return s
}

// start starts a command in a process group of its own.
func (s *starter) start(command *exec.Cmd) error {
	if command.SysProcAttr == nil {
		command.SysProcAttr = &syscall.SysProcAttr{}
	}
	command.SysProcAttr.Setpgid = true
	dieWithParent(command.SysProcAttr)
	// What has left the group may still hold the pipe of its output: that must not keep us.
	command.WaitDelay = time.Second
	result := make(chan error, 1)
	s.requests <- startRequest{command, result}
	return <-result
}

// close ends the thread, and with it every child that still runs.
func (s *starter) close() {
	close(s.requests)
	<-s.done
}

// running is a started process and its group.
type running struct {
	command *exec.Cmd
	mu      sync.Mutex
	reaped  bool // its number may be somebody else's now
}

// wait waits until the process has ended, and ends what is left of its group.
func (r *running) wait() error {
	pid := r.command.Process.Pid
	waited := !awaitExit(pid)
	var err error
	if waited { // the system cannot wait without forgetting the number
		err = r.command.Wait()
	}
	r.mu.Lock()
	r.reaped = true
	_ = syscall.Kill(-pid, syscall.SIGKILL) // mostly there is nobody left
	r.mu.Unlock()
	if !waited {
		err = r.command.Wait()
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		return nil // the process itself ended well
	}
	return err
}

// signal sends a signal to the whole group.
func (r *running) signal(signal syscall.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.reaped {
		_ = syscall.Kill(-r.command.Process.Pid, signal) // it may have ended
	}
}

// signalOne sends a signal to the process alone.
func (r *running) signalOne(signal syscall.Signal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.reaped {
		_ = syscall.Kill(r.command.Process.Pid, signal) // it may have ended
	}
}

// child is a process that is started again whenever it ends.
type child struct {
	name string // as in messages: "sidecar colorteller-1"
	// command makes the command of the next start.
	command func() (*exec.Cmd, error)
	log     sink
	starter *starter
	console *console
	// soft is the signal that asks the process, and it alone, to finish what it has; 0 for SIGTERM to its
	// whole group.
	soft syscall.Signal
	// started is called after each start, from the child's goroutine.
	started func()

	stopping chan struct{} // closed by the first stop
	done     chan struct{} // closed when it has ended for good
	once     sync.Once

	mu      sync.Mutex
	current *running // nil between two runs
	pid     int      // of the last start
	exits   int
	last    error // how it last ended, or why it did not start
}

// launch starts the child and keeps it running until it is stopped.
func (c *child) launch() {
	c.stopping, c.done = make(chan struct{}), make(chan struct{})
	go c.run()
}

func (c *child) run() {
	defer close(c.done)
	backOff := firstBackOff
	for {
		begun := time.Now()
		err := c.runOnce()
		select {
		case <-c.stopping:
			return
		default:
		}
		if time.Since(begun) >= goodRun {
			backOff = firstBackOff
		}
		c.mu.Lock()
		c.exits++
		c.last = err
		c.mu.Unlock()
		c.console.line("%s %s; it is started again in %s", c.name, ending(err), backOff)
		select {
		case <-c.stopping:
			return
		case <-time.After(backOff):
		}
		backOff = min(2*backOff, lastBackOff)
	}
}

// runOnce starts the process and gives how it ended.
func (c *child) runOnce() error {
	command, err := c.command()
	if err != nil {
		return &startError{err}
	}
	// A file is handed over as it is; to anything else exec copies through a pipe.
	command.Stdout, command.Stderr = c.log, c.log
	if file, ok := c.log.(logFile); ok {
		command.Stdout, command.Stderr = file.File, file.File
	}
	if err := c.starter.start(command); err != nil {
		return &startError{err}
	}
	process := &running{command: command}
	c.mu.Lock()
	c.current, c.pid = process, command.Process.Pid
	c.mu.Unlock()
	select {
	case <-c.stopping: // stop may have looked before there was a process to signal
		c.ask(process)
	default:
	}
	if c.started != nil {
		c.started()
	}
	err = process.wait()
	c.mu.Lock()
	c.current = nil
	c.mu.Unlock()
	return err
}

// startError says that a process did not even start.
type startError struct{ err error }

func (e *startError) Error() string { return "cannot be started: " + e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

// ending says in words how a process ended.
func ending(err error) string {
	var exit *exec.ExitError
	var start *startError
	switch {
	case err == nil:
		return "has ended with status 0"
	case errors.As(err, &start):
		return start.Error()
	case errors.As(err, &exit):
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return fmt.Sprintf("was killed (%s)", status.Signal())
		}
		return fmt.Sprintf("has ended with status %d", exit.ExitCode())
	default:
		return "has ended: " + err.Error()
	}
}

// stop asks the process to end, and kills it when it has not after grace, or when hurry is closed. One that
// is asked by a signal of its own is told by SIGTERM, too, before it is killed. It returns when nothing of the process's group runs any more. It may be called more than once.
func (c *child) stop(grace time.Duration, hurry <-chan struct{}) {
	c.once.Do(func() { close(c.stopping) })
	if process := c.running(); process != nil {
		c.ask(process)
	}
	ended := c.ends(grace, hurry)
	if !ended && c.soft != 0 {
		c.signal(syscall.SIGTERM)
		ended = c.ends(termGrace, hurry)
	}
	if ended {
		return
	}
	select {
	case <-hurry:
	default:
		c.console.line("%s did not end within %s and is killed", c.name, grace)
	}
	for { // a start may be under way
		c.signal(syscall.SIGKILL)
		select {
		case <-c.done:
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// termGrace is how long a process whose own signal did not end it may take after SIGTERM.
const termGrace = time.Second

// ends waits for the end, and tells whether it came before the time was up or somebody was in a hurry.
func (c *child) ends(within time.Duration, hurry <-chan struct{}) bool {
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-c.done:
		return true
	case <-timer.C:
	case <-hurry:
	}
	return false
}

// ask asks a process to end by itself.
func (c *child) ask(process *running) {
	if c.soft == 0 {
		process.signal(syscall.SIGTERM)
		return
	}
	process.signalOne(c.soft)
}

// ended tells whether the process was stopped for good.
func (c *child) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// running is the process of the moment, nil between two runs.
func (c *child) running() *running {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

func (c *child) signal(signal syscall.Signal) {
	if process := c.running(); process != nil {
		process.signal(signal)
	}
}

// lastPID is the number of the process that was started last; 0 for a nil child.
func (c *child) lastPID() int {
	if c == nil {
		return 0
	}
	pid, _, _ := c.process()
	return pid
}

// process gives the number of the process that was started last, how often it has ended, and how it
// last did.
func (c *child) process() (pid, exits int, last error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pid, c.exits, c.last
}

// otherMesh names the specification of a mesh without a server, which the rotation of this one would take for its own.
const otherMesh = "COUNTERSIGN_MESH"

// environment is what children inherit: the user's, without the mark of an `up` around this one and without another mesh's
// specification.
func environment() []string {
	var env []string
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); name != EnvRun && name != otherMesh {
			env = append(env, entry)
		}
	}
	return env
}
