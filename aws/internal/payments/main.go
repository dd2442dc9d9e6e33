//go:build linux

// Command payments starts examples/payments-ecs as it is deployed, on doubles of AWS on this machine: the stack from the generated
// template, the first rotation, the tasks as processes in namespaces of their own. It needs root for those, and what `make peers`
// installs. Ctrl-C ends everything, and nothing is left.
//
//	sudo go run ./aws/internal/payments
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"countersign.dev/aws/internal/awstest/deployed"
	"countersign.dev/aws/internal/awstest/ecsfake"
)

func main() {
	directory := flag.String("C", ".", "a directory of the repository")
	tasks := flag.Int("tasks", 1, "how many tasks each service has")
	second := flag.Duration("second", 100*time.Millisecond, "how long a second of AWS lasts, of health checks and deregistration delays")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: sudo go run ./aws/internal/payments [flags]\nStarts examples/payments-ecs on doubles of AWS on this machine. Ctrl-C ends it.")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() > 0 || *tasks < 1 || *tasks > 4 || *second < 10*time.Millisecond || *second > time.Second {
		flag.Usage()
		os.Exit(2)
	}
	if err := enter(); err != nil {
		fmt.Fprintln(os.Stderr, "payments:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s := &start{directory: *directory, tasks: *tasks, second: *second, out: os.Stdout}
	err := s.run(ctx)
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "payments:", err)
		os.Exit(1)
	}
}

// enter starts this program again in namespaces of its own.
func enter() error {
	err := ecsfake.Enter()
	if errors.Is(err, ecsfake.ErrUnavailable) {
		return fmt.Errorf("tasks run in namespaces of their own, which only root can make: run it by sudo (%w)", err)
	}
	return err
}

// start is one start of the example.
type start struct {
	directory string
	tasks     int
	second    time.Duration
	out       io.Writer
}

// run starts everything, says what there is, and waits for the end of ctx.
func (s *start) run(ctx context.Context) error {
	if err := os.Chdir(s.directory); err != nil {
		return err
	}
	list, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Path}} {{.Dir}}").Output()
	root, ours := strings.CutPrefix(strings.TrimSpace(string(list)), "countersign.dev ")
	if err != nil || !ours {
		return errors.New("this has to be run in the repository of countersign.dev, or with -C and a directory of it")
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	specification, err := os.ReadFile(filepath.Join("examples", "payments-ecs", "mesh.yaml"))
	if err != nil {
		return err
	}
	t := newTerminal(ctx, s.out)
	defer t.end()
	return t.do(func() error {
		s.step("building countersign")
		program := filepath.Join(t.TempDir(), "countersign")
		build := exec.CommandContext(ctx, "go", "build", "-pgo=off", "-o", program, "./cmd/countersign")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("go build: %w\n%s", err, text)
		}
		s.step("starting the doubles of AWS, and generating the template")
		return s.deploy(ctx, t, deployed.Start(t, deployed.Options{Program: program, Specification: specification, Second: s.second}))
	})
}

// step says what is done now.
func (s *start) step(format string, args ...any) {
	fmt.Fprintf(s.out, "- "+format+"\n", args...)
}

// deploy goes the way that a deployment goes, and waits for the end.
func (s *start) deploy(ctx context.Context, t *terminal, m *deployed.Mesh) error {
	began := time.Now()
	s.step("creating the stack, with no task of any service")
	if err := m.Deploy(ctx, 0, nil); err != nil {
		return err
	}
	s.step("filling the secrets: countersign rotate once, as the role %s", m.Role("rotation"))
	if r := m.Run(ctx, m.Role("rotation"), nil, "rotate", "once"); r.Status != 0 {
		return fmt.Errorf("countersign rotate once: %s%s", r.Stdout, r.Stderr)
	}
	s.step("raising the count to %d", s.tasks)
	if err := m.Deploy(ctx, s.tasks, nil); err != nil {
		return err
	}
	doors, err := openDoors(ctx, t, m)
	if err != nil {
		return err
	}
	fmt.Fprintf(s.out, "\nThe mesh %q is ready after %.1f s.\n\n", m.Name, time.Since(began).Seconds())
	if err := s.table(ctx, m); err != nil {
		return err
	}
	s.tell(m, doors)
	go s.obey(ctx, m, os.Stdin) // a read of what nobody types never ends
	<-ctx.Done()
	fmt.Fprintln(s.out, "\nstopping")
	return nil
}
