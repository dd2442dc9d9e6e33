package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"syscall"
)

// The kernel shows the environment that a process was started with in /proc/PID/environ for as long as it lives, and
// the process cannot change it. Therefore this one reads the values, puts them into a pipe, and replaces itself (the
// same process, by execve) with the same program without them: nobody is left whose environment has them.
// The pipe has them in the kernel's memory until they are read, and they are on no disk and in no argument.

// maxHandOver is how many bytes are passed on: a Linux pipe gets no larger without a privilege.
const maxHandOver = 1<<20 - 64<<10

// passedOn are the variables that the new process gets: how it logs, and what the Go runtime was told. Without GODEBUG an
// administrator's fips140=only would be forgotten without a word. That it is a task of ECS changes what a message advises.
var passedOn = []string{"COUNTERSIGN_LOG_FORMAT", "COUNTERSIGN_LOG_LEVEL", "GODEBUG", "GOMEMLIMIT", metadataVariable}

// handedOver is what came through the pipe: values by the names of their variables.
type handedOver map[string][]byte

// Read gives a value.
func (h handedOver) Read(_ context.Context, name, _ string) ([]byte, string, error) {
	value, ok := h[name]
	if !ok {
		return nil, "", unset(name)
	}
	return value, "", nil
}

// handOver replaces this process. It returns only when that fails.
func handOver(ctx context.Context, source secretSource, names []string) error {
	values := make(handedOver)
	for _, name := range names {
		value, _, err := source.Read(ctx, name, "")
		if errors.Is(err, fs.ErrNotExist) {
			continue // who needs it will say so
		}
		if err != nil {
			return err
		}
		values[name] = value
	}
	text, err := json.Marshal(values)
	if err != nil {
		return errors.New("handing over the values of the environment: they cannot be encoded")
	}
	if len(text) > maxHandOver {
		return fmt.Errorf("the values in the environment have %d bytes together, and at most %d can be handed over; are they the right secrets?", len(text), maxHandOver)
	}
	fd, err := fillPipe(text)
	clear(text)
	if err != nil {
		return fmt.Errorf("handing over the values of the environment: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program, to start it anew: %w", err)
	}
	args := append(os.Args[:len(os.Args):len(os.Args)], "--handed-over="+strconv.Itoa(fd))
	if err := syscall.Exec(self, args, keptEnvironment(names)); err != nil { //nolint:gosec // itself, with its own arguments
		return fmt.Errorf("starting %s anew: %w", self, err)
	}
	return nil
}

// keptEnvironment is the environment of the new process. A variable that a value was read from is not in it, whatever
// it is called.
func keptEnvironment(values []string) []string {
	var env []string
	for _, name := range passedOn {
		if value, ok := os.LookupEnv(name); ok && !slices.Contains(values, name) {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// fillPipe makes a pipe that has a text in it and that survives execve; it gives the end to read from.
func fillPipe(text []byte) (int, error) {
	var ends [2]int
	if err := syscall.Pipe(ends[:]); err != nil {
		return 0, err
	}
	defer func() { _ = syscall.Close(ends[1]) }() // so that the reader sees the end
	// Nobody reads yet: what does not fit would block for ever.
	if err := growPipe(ends[1], len(text)); err != nil {
		_ = syscall.Close(ends[0]) // the first error is the one that counts
		return 0, err
	}
	for len(text) > 0 {
		n, err := syscall.Write(ends[1], text)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			_ = syscall.Close(ends[0]) // the first error is the one that counts
			return 0, err
		}
		text = text[n:]
	}
	return ends[0], nil
}

// receive reads what handOver has written.
func receive(fd int) (secretSource, error) {
	var info syscall.Stat_t
	if err := syscall.Fstat(fd, &info); err != nil || info.Mode&syscall.S_IFMT != syscall.S_IFIFO {
		return nil, usagef("--handed-over is how this program starts itself; leave it out")
	}
	f := os.NewFile(uintptr(fd), "pipe")
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxHandOver+1))
	if err != nil {
		return nil, fmt.Errorf("reading the values of the environment: %w", err)
	}
	defer clear(text)
	values := make(handedOver)
	if err := json.Unmarshal(text, &values); err != nil {
		return nil, errors.New("reading the values of the environment: they do not parse")
	}
	return values, nil
}
