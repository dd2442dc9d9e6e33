//go:build linux

// Command payments starts examples/payments-ecs as it is deployed, on doubles of AWS on this machine: the stack from the generated
// template, the first rotation, the tasks as processes in namespaces of their own. It needs root for those, and what `make peers`
// installs. Ctrl-C ends everything, and nothing is left.
//
//	sudo env PATH="$PATH" go run ./aws/internal/payments
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
		fmt.Fprintln(flag.CommandLine.Output(), "usage: sudo env PATH=\"$PATH\" go run ./aws/internal/payments [flags]\nStarts examples/payments-ecs on doubles of AWS on this machine. Ctrl-C ends it.")
		flag.PrintDefaults()
	}
	flag.Parse()
	if reason := misused(flag.Args(), *tasks, *second); reason != "" {
		fmt.Fprintln(os.Stderr, "payments:", reason)
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

// misused says what is wrong with the arguments.
func misused(args []string, tasks int, second time.Duration) string {
	switch {
	case len(args) > 0:
		return fmt.Sprintf("unexpected argument %q; commands are typed when the example runs", args[0])
	case tasks < 1 || tasks > 4:
		return fmt.Sprintf("-tasks %d is out of range; give 1 to 4", tasks)
	case second < 10*time.Millisecond || second > time.Second:
		return fmt.Sprintf("-second %s is out of range; give 10ms to 1s", second)
	}
	return ""
}

// installed says what is missing of what `make peers` installs. Where it is kept is for the root of the repository to say.
func installed(root string) error {
	if _, err := os.Stat(filepath.Join(root, "tools", "bin", "aws-venv", "requirements")); err != nil {
		return errors.New("what stands in for AWS is not installed here: run `make peers` first, which installs it with NGINX and HAProxy")
	}
	return nil
}

// enter starts this program again in namespaces of its own.
func enter() error {
	err := ecsfake.Enter()
	if errors.Is(err, ecsfake.ErrUnavailable) {
		return fmt.Errorf("tasks run in namespaces of their own, which only root can make: run it by sudo env PATH=\"$PATH\" (%w)", err)
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
	if err := installed(root); err != nil {
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
		o := deployed.Options{Program: program, Specification: specification, Second: s.second}
		return s.deploy(ctx, t, deployed.Start(t, o)) //nolint:contextcheck // it takes t's context
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
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	c := console{out: s.out, table: func() error { return s.table(ctx, m) }, run: func(args ...string) error {
		command := m.Command(ctx, m.Role("rotation"), nil, args...)
		command.Stdout, command.Stderr = s.out, os.Stderr
		return command.Run()
	}}
	go func() { // a read of what nobody types never ends
		if c.obey(ctx, os.Stdin) {
			stop()
		}
	}()
	<-ctx.Done()
	fmt.Fprintln(s.out, "\nstopping")
	return nil
}
