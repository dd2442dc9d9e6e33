package reload

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Workers asks the master for the process ids of its workers: those that have the newest files, and those of before, which
// finish what they have. The ids are HAProxy's own: in another container they may be somebody else's.
func (m Master) Workers(ctx context.Context) (now, old []int, err error) {
	_, now, old, err = m.processes(ctx)
	return now, old, err
}

func (m Master) processes(ctx context.Context) (master int, now, old []int, err error) {
	text, err := m.ask(ctx, "show proc")
	if err != nil {
		return 0, nil, nil, err
	}
	master, now, old = readWorkers(text)
	return master, now, old, nil
}

// readWorkers reads the answer to show proc. What is not there is 0, or nothing.
func readWorkers(text string) (master int, now, old []int) {
	section := ""
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") {
			section = strings.TrimSpace(strings.TrimPrefix(line, "#"))
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		pid, err := strconv.Atoi(fields[0])
		switch {
		case err != nil || pid <= 0:
		case fields[1] == "master":
			master = pid
		case fields[1] != "worker":
		case section == "old workers":
			old = append(old, pid)
		case section == "workers":
			now = append(now, pid)
		}
	}
	return master, now, old
}

// OldWorkers are the workers of a proxy that were old at one moment. What they hold open they serve by the files that they have:
// HAProxy's one more request on each connection, so that a reload loses none, and NGINX's whoever comes to his handshake only
// then, for as long as they are let. Where somebody was revoked that is too much.
type OldWorkers struct {
	proxy string                                   // what people call it
	list  func(ctx context.Context) ([]int, error) // those that are old now
	held  map[int]*os.Process                      // nil for one that is not seen to be the master's child
}

// Older takes hold of the workers that are old now; it is for the moment after a reload was seen to be in force, for
// a worker that grows old later has the new files. End has to follow.
func (m Master) Older(ctx context.Context) (*OldWorkers, error) {
	w := &OldWorkers{proxy: "HAProxy", held: make(map[int]*os.Process)}
	w.list = func(ctx context.Context) (old []int, err error) {
		_, old, err = m.Workers(ctx)
		return old, err
	}
	var master int
	var old []int
	err := soon(ctx, func() (again bool, err error) {
		master, _, old, err = m.processes(ctx)
		return errors.Is(err, ErrNotRunning) || cut(err), err
	})
	if err != nil {
		return nil, fmt.Errorf("finding HAProxy's old workers: %w", err)
	}
	for _, pid := range old {
		w.held[pid] = hold(pid, master, func() bool { return strings.HasPrefix(programOf(pid), HAProxy.Name) })
	}
	return w, nil
}

// Older takes hold of the workers that say in their titles that they shut down, as Master's Older does; a proxy whose
// workers have no such titles has none.
func (s Signal) Older(context.Context) (*OldWorkers, error) {
	w := &OldWorkers{proxy: s.Proxy.Name, held: make(map[int]*os.Process)}
	w.list = func(context.Context) ([]int, error) { return slices.Collect(maps.Keys(w.held)), nil } // who has ended is found ended
	if s.Proxy.leaving == "" {
		return w, nil
	}
	master, err := s.Master()
	if err != nil {
		return nil, fmt.Errorf("finding the old workers of %s: %w", s.Proxy.Name, err)
	}
	for _, pid := range children(master) {
		if process := hold(pid, master, func() bool { return s.leaves(pid) }); process != nil {
			w.held[pid] = process
		}
	}
	return w, nil
}

// hold holds a worker (pidfd): its number cannot come to mean another process unnoticed. It gives nil when the process is
// none of that master's, or not what it should be.
func hold(pid, master int, is func() bool) *os.Process {
	process, err := os.FindProcess(pid)
	if err != nil {
		return nil
	}
	// It is asked while it is held, so that the answer is about no other.
	if !is() || parentOf(pid) != master {
		_ = process.Release() // it only frees
		return nil
	}
	return process
}

// End waits for a grace and ends the workers that have not ended by themselves; connections that are open there are cut. It
// gives their process ids. [ErrOtherProgram] says that a worker runs on and cannot be seen from here. When
// ctx ends first, none is ended. It may be called once.
func (w *OldWorkers) End(ctx context.Context, grace time.Duration) (ended []int, err error) {
	defer w.release()
	if len(w.held) == 0 {
		return nil, nil
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
	}
	var left []int
	err = soon(ctx, func() (again bool, err error) {
		left, err = w.list(ctx)
		return errors.Is(err, ErrNotRunning) || cut(err), err
	})
	if err != nil {
		return nil, fmt.Errorf("finding the old workers of %s: %w", w.proxy, err)
	}
	var errs []error
	for pid, process := range w.held {
		if !slices.Contains(left, pid) {
			continue
		}
		if process == nil {
			errs = append(errs, fmt.Errorf("%w: the old worker %d of %s is not seen from here, and serves on; let both containers share their processes, or set hard-stop-after", ErrOtherProgram, pid, w.proxy))
			continue
		}
		switch err := process.Signal(syscall.SIGTERM); {
		case err == nil:
			ended = append(ended, pid)
		case errors.Is(err, os.ErrProcessDone):
		default:
			errs = append(errs, fmt.Errorf("ending the old worker %d of %s: %w; run this as the proxy's user", pid, w.proxy, err))
		}
	}
	slices.Sort(ended)
	return ended, errors.Join(errs...)
}

func (w *OldWorkers) release() {
	for _, process := range w.held {
		if process != nil {
			_ = process.Release() // it only frees
		}
	}
}
