package reload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// poll is how often is looked at what a proxy does.
const poll = 10 * time.Millisecond

// Signal tells a proxy's master process by its signal. The process has to be of the proxy's program, its own master, and
// has to take the signal: sent to a worker or to another program, it would end that.
//
// The master starts new workers when it takes the files; that is waited for, and that NGINX's old ones accept no more: the
// master tells them a tenth of a second later, and until then they serve new connections by the old files. A proxy that
// had no children before shows nothing, and counts as told.
type Signal struct {
	Proxy Proxy
	// PID is the master process, or 0 when PIDFile says it.
	PID int
	// PIDFile is a file with the pid of the master, read at each reload.
	PIDFile string
}

// String implements [Method].
func (s Signal) String() string {
	if s.PIDFile != "" {
		return "pidfile:" + s.PIDFile
	}
	return "signal:" + strconv.Itoa(s.PID)
}

// Reload implements [Method].
func (s Signal) Reload(ctx context.Context) error {
	pid, err := s.Master()
	if err != nil {
		return err
	}
	// From here on the process is held (pidfd): its number cannot come to mean another one unnoticed.
	process, err := os.FindProcess(pid)
	if err != nil {
		return fmt.Errorf("%w: process %d: %w", ErrNotRunning, pid, err)
	}
	defer process.Release() //nolint:errcheck // it only frees
	if err := s.await(ctx, pid); err != nil {
		return err
	}
	before := children(pid)
	if err := process.Signal(s.Proxy.Signal); err != nil {
		if errors.Is(err, os.ErrProcessDone) || errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("%w: process %d has ended", ErrNotRunning, pid)
		}
		return fmt.Errorf("sending %s to process %d: %w; run this as the proxy's user", s.Proxy.Signal, pid, err)
	}
	if len(before) == 0 {
		return nil
	}
	if err := s.awaitWorkers(ctx, process, pid, before); err != nil {
		return err
	}
	return s.awaitLeaving(ctx, before)
}

// awaitLeaving waits until none of the old workers accepts connections.
func (s Signal) awaitLeaving(ctx context.Context, before []int) error {
	if s.Proxy.leaving == "" {
		return nil
	}
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		accepting := slices.IndexFunc(before, s.accepts)
		if accepting < 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: the worker %d goes on with the old ones", ErrNotTaken, before[accepting])
		case <-ticker.C:
		}
	}
}

// accepts tells whether a worker still takes new connections.
func (s Signal) accepts(worker int) bool {
	title, err := os.ReadFile(procFile(worker, "cmdline"))
	// A process that has ended has no file, or, until its parent asks, an empty one. Another one may have its number since.
	return err == nil && strings.HasPrefix(string(title), s.Proxy.worker) && !strings.Contains(string(title), s.Proxy.leaving)
}

// leaves tells whether a process is a worker that takes no new connections, and finishes what it has.
func (s Signal) leaves(worker int) bool {
	title, err := os.ReadFile(procFile(worker, "cmdline"))
	return err == nil && strings.HasPrefix(string(title), s.Proxy.worker) && strings.Contains(string(title), s.Proxy.leaving)
}

// resend is after how long a signal is sent again; the pause doubles each time. HAProxy's master forgets one that it got
// just before it started itself anew.
const resend = 2 * time.Second

// awaitWorkers waits for a child that was not there before.
func (s Signal) awaitWorkers(ctx context.Context, process *os.Process, pid int, before []int) error {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	pause := resend
	again := time.NewTimer(pause)
	defer again.Stop()
	for {
		for _, child := range children(pid) {
			if !slices.Contains(before, child) {
				return nil
			}
		}
		if errors.Is(process.Signal(syscall.Signal(0)), os.ErrProcessDone) {
			return fmt.Errorf("%w: process %d has ended when it was told to reload", ErrNotRunning, pid)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: process %d has started no new worker since; its log says why", ErrNotTaken, pid)
		case <-again.C:
			_ = process.Signal(s.Proxy.Signal) // when it has ended, the next round sees it
			pause *= 2
			again.Reset(pause)
		case <-ticker.C:
		}
	}
}

// Master gives the pid that is signalled.
func (s Signal) Master() (int, error) {
	if s.PIDFile == "" {
		return s.PID, nil
	}
	pid, err := readPID(s.PIDFile)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("%w: there is no pid file %s (yet)", ErrNotRunning, s.PIDFile)
	}
	return pid, err
}

// Ready says why the proxy cannot be told at this moment, nil when it can. It does not wait, and tells it nothing.
func (s Signal) Ready() error {
	pid, err := s.Master()
	if err != nil {
		return err
	}
	return s.check(pid)
}

// mostPIDFile is the greatest length of a pid file in bytes.
const mostPIDFile = 64

// readPID reads a pid file.
func readPID(path string) (int, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return 0, fmt.Errorf("reading the pid file: %w", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%w: the pid file %s is not an ordinary file", ErrNotRunning, path)
	}
	text, err := io.ReadAll(io.LimitReader(f, mostPIDFile+1))
	if err != nil {
		return 0, fmt.Errorf("reading the pid file: %w", err)
	}
	words := strings.Fields(string(text))
	if len(text) > mostPIDFile || len(words) != 1 || !pidForm.MatchString(words[0]) {
		return 0, fmt.Errorf("%w: the pid file %s does not hold one number", ErrNotRunning, path)
	}
	pid, err := strconv.ParseInt(words[0], 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%w: the pid file %s holds a number that no process has", ErrNotRunning, path)
	}
	return int(pid), nil
}

// settle is how long a proxy may need to become one that can be told: HAProxy's master starts itself anew once its workers run,
// and at each reload.
const settle = 2 * time.Second

// await checks the process, and gives one that is only starting the time for it.
func (s Signal) await(ctx context.Context, pid int) error {
	return soon(ctx, func() (bool, error) {
		err := s.check(pid)
		return errors.Is(err, errNotYet), err
	})
}

// errNotYet says that a process of the right program does not take its signal.
var errNotYet = errors.New("not yet")

// soon tries until there is no error, one that waiting does not mend, or the end of the time.
func soon(ctx context.Context, try func() (again bool, err error)) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for {
		again, err := try()
		if err == nil || !again {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-ticker.C:
		}
	}
}

// check asks the kernel who the process is. Where there is no /proc nothing can be asked.
func (s Signal) check(pid int) error {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		return nil //nolint:nilerr // another system than Linux
	}
	program := programOf(pid)
	if program == "" {
		return fmt.Errorf("%w: there is no process %d; a proxy in another container is only seen when both share their processes", ErrNotRunning, pid)
	}
	if program != s.Proxy.Name {
		return fmt.Errorf("%w: process %d is %.40q and not %s, and was left alone", ErrOtherProgram, pid, program, s.Proxy.Name)
	}
	if parent := parentOf(pid); parent > 0 && programOf(parent) == s.Proxy.Name {
		return fmt.Errorf("%w: process %d is a worker, whose master is %d; %s", ErrOtherProgram, pid, parent, s.Proxy.lesson)
	}
	if !catches(pid, s.Proxy.Signal) {
		return fmt.Errorf("%w: process %d does not take %s (%w); %s", ErrOtherProgram, pid, s.Proxy.Signal, errNotYet, s.Proxy.lesson)
	}
	return nil
}

// programOf is the name of a process's program, empty when there is no such process. The file that it was started from is
// the better witness, and only its own user and root are told of it.
func programOf(pid int) string {
	file, err := os.Readlink(procFile(pid, "exe"))
	if err == nil {
		return filepath.Base(strings.TrimSuffix(file, " (deleted)"))
	}
	comm, err := os.ReadFile(procFile(pid, "comm"))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(comm), "\n")
}

func procFile(pid int, name string) string { return filepath.Join("/proc", strconv.Itoa(pid), name) }

// parentOf is the parent of a process, 0 when it is not known.
func parentOf(pid int) int {
	n, err := strconv.Atoi(statusField(pid, "PPid:"))
	if err != nil {
		return 0
	}
	return n
}

// catches tells whether a process has a handler for a signal, or blocks it, as HAProxy does until it has one again. When it
// cannot be told, it has.
func catches(pid int, signal syscall.Signal) bool {
	for _, field := range []string{"SigCgt:", "SigBlk:"} {
		mask, err := strconv.ParseUint(statusField(pid, field), 16, 64)
		if err != nil || mask&(1<<(uint(signal)-1)) != 0 {
			return true
		}
	}
	return false
}

// statusField is a value of /proc/PID/status, empty when there is none.
func statusField(pid int, name string) string {
	text, err := os.ReadFile(procFile(pid, "status"))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// children are the processes that a process has started and that live.
func children(pid int) []int {
	// The kernel has a list for each thread. Where it has none, it was built without them.
	lists, err := filepath.Glob(procFile(pid, filepath.Join("task", "*", "children")))
	if err != nil || len(lists) == 0 {
		return scanChildren(pid)
	}
	var found []int
	for _, list := range lists {
		text, err := os.ReadFile(list)
		if err != nil {
			continue // the thread has ended
		}
		for word := range strings.FieldsSeq(string(text)) {
			if n, err := strconv.Atoi(word); err == nil {
				found = append(found, n)
			}
		}
	}
	return found
}

// scanChildren looks at all processes, for kernels without a list.
func scanChildren(pid int) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []int
	for _, entry := range entries {
		if n, err := strconv.Atoi(entry.Name()); err == nil && parentOf(n) == pid {
			found = append(found, n)
		}
	}
	return found
}
