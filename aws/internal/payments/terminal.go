//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// terminal lets the doubles, which were made for tests, be started by a program. What they say to a test that fails is what the
// program ends with. Its methods can be called concurrently but for do and end.
type terminal struct {
	testing.TB // nil: whatever is not below is not used

	ctx context.Context //nolint:containedctx // a test's, for which it stands
	out io.Writer

	mu       sync.Mutex
	failures []string
	cleanups []func()
}

func newTerminal(ctx context.Context, out io.Writer) *terminal { return &terminal{ctx: ctx, out: out} }

// do runs what may end by Fatal or Skip, to its end.
func (t *terminal) do(work func() error) error {
	var err error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err = work()
	}()
	<-ended
	return errors.Join(err, t.failed())
}

// failed is what was said to have failed.
func (t *terminal) failed() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.failures) == 0 {
		return nil
	}
	return errors.New(strings.Join(t.failures, "\n"))
}

// end undoes what was done, the last first.
func (t *terminal) end() {
	for {
		t.mu.Lock()
		if len(t.cleanups) == 0 {
			t.mu.Unlock()
			return
		}
		last := t.cleanups[len(t.cleanups)-1]
		t.cleanups = t.cleanups[:len(t.cleanups)-1]
		t.mu.Unlock()
		last()
	}
}

// Context implements [testing.TB].
func (t *terminal) Context() context.Context { return t.ctx }

// Helper implements [testing.TB].
func (t *terminal) Helper() {}

// Cleanup implements [testing.TB].
func (t *terminal) Cleanup(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cleanups = append(t.cleanups, f)
}

// TempDir implements [testing.TB].
func (t *terminal) TempDir() string {
	dir, err := os.MkdirTemp("", "payments-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // what is left of it is in the directory of temporary files
	return dir
}

// Failed implements [testing.TB].
func (t *terminal) Failed() bool { return t.failed() != nil }

// Logf implements [testing.TB].
func (t *terminal) Logf(format string, args ...any) { fmt.Fprintf(t.out, format+"\n", args...) }

// Error implements [testing.TB].
func (t *terminal) Error(args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failures = append(t.failures, strings.TrimSuffix(fmt.Sprintln(args...), "\n"))
}

// Errorf implements [testing.TB].
func (t *terminal) Errorf(format string, args ...any) { t.Error(fmt.Sprintf(format, args...)) }

// Fatal implements [testing.TB].
func (t *terminal) Fatal(args ...any) {
	t.Error(args...)
	runtime.Goexit()
}

// Fatalf implements [testing.TB].
func (t *terminal) Fatalf(format string, args ...any) { t.Fatal(fmt.Sprintf(format, args...)) }

// Skip implements [testing.TB]: what a test would skip, the program cannot do.
func (t *terminal) Skip(args ...any) {
	text := strings.TrimSuffix(fmt.Sprintln(args...), "\n")
	t.Fatal(strings.TrimPrefix(text, "SKIPPED, AND WITH IT ALL THAT IT WOULD HAVE SHOWN: ")) // words for tests
}

// Skipf implements [testing.TB].
func (t *terminal) Skipf(format string, args ...any) { t.Skip(fmt.Sprintf(format, args...)) }
