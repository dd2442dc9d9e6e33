package whole_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"countersign.dev/aws/internal/awstest/deployed"
	"countersign.dev/aws/internal/awstest/ecsfake"
)

// enter enters the namespaces, where that can be done.
func enter() error {
	if err := ecsfake.Enter(); err != nil && !errors.Is(err, ecsfake.ErrUnavailable) {
		return err
	}
	return nil
}

// example is the specification of examples/payments-ecs; with a name, that of the mesh and its cluster is changed, because the doubles
// have one Secrets Manager for all tests of this binary. Only one test can take it as it is.
func example(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile("../../../examples/payments-ecs/mesh.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if name == "" {
		return text
	}
	renamed := strings.Replace(string(text), "\nmesh: payments\n", "\nmesh: "+name+"\n", 1)
	return []byte(strings.Replace(renamed, "cluster: payments}", "cluster: "+name+"}", 1))
}

// deploy starts the doubles and generates a mesh's template, with the binary of this module. Nothing is in the stack yet: Deploy(ctx, 0, nil) creates it.
func deploy(t *testing.T, o deployed.Options) *deployed.Mesh {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	o.Program = path
	if o.Log == nil {
		o.Log = events(t)
	}
	return deployed.Start(t, o)
}

// events notes what happens on the doubles, with the seconds since the test began.
func events(t *testing.T) func(format string, arguments ...any) {
	began := time.Now()
	return func(format string, arguments ...any) {
		later(t, "%6.2f "+format, append([]any{time.Since(began).Seconds()}, arguments...)...)
	}
}

// loaded is what wrk has counted.
type loaded struct {
	requests, failed int
	output           string
}

var (
	wrkRequests = regexp.MustCompile(`(?m)^\s*(\d+) requests in `)
	wrkErrors   = regexp.MustCompile(`Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)`)
	wrkRefused  = regexp.MustCompile(`Non-2xx or 3xx responses: (\d+)`)
)

// readWrk reads what wrk wrote: errors of sockets and answers that are none of 2xx and 3xx are failures.
func readWrk(output string) (loaded, error) {
	found := wrkRequests.FindStringSubmatch(output)
	if found == nil {
		return loaded{output: output}, errors.New("wrk says nothing of requests")
	}
	l := loaded{output: output}
	l.requests, _ = strconv.Atoi(found[1]) // digits
	for _, failures := range []*regexp.Regexp{wrkErrors, wrkRefused} {
		if found := failures.FindStringSubmatch(output); found != nil {
			for _, number := range found[1:] {
				n, _ := strconv.Atoi(number) // digits
				l.failed += n
			}
		}
	}
	return l, nil
}

// load loads a URL with wrk until it is stopped: stop gives what it has counted. A script is wrk's own, in Lua; empty for GETs.
func load(t *testing.T, connections int, url, script string) (stop func() loaded) {
	t.Helper()
	path, err := exec.LookPath("wrk")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED, AND WITH IT ALL THAT IT WOULD HAVE SHOWN: %v: run `make peers`", err)
	}
	arguments := []string{"-t", "1", "-c", strconv.Itoa(connections), "-d", "30m", "--timeout", "20s"}
	if script != "" {
		file := t.TempDir() + "/load.lua"
		if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
			t.Fatal(err)
		}
		arguments = append(arguments, "-s", file)
	}
	command := exec.CommandContext(context.WithoutCancel(t.Context()), path, append(arguments, url)...)
	var said output
	command.Stdout, command.Stderr = &said, &said
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	over := false
	end := func(signal os.Signal) error {
		if over {
			return nil
		}
		over = true
		_ = command.Process.Signal(signal) // it has ended by itself: the next line says how
		select {
		case err := <-ended:
			return err
		case <-time.After(time.Minute):
			return errors.Join(errors.New("wrk does not end"), command.Process.Kill())
		}
	}
	t.Cleanup(func() { _ = end(os.Kill) })
	return func() loaded {
		t.Helper()
		if err := end(os.Interrupt); err != nil {
			t.Errorf("wrk: %v", err)
		}
		l, err := readWrk(said.String())
		if err != nil {
			t.Errorf("%v: %s", err, said.String())
		}
		return l
	}
}

// The reading of wrk's output finds failures: a load test that cannot fail proves nothing.
func TestReadWrk(t *testing.T) {
	const good = "  2 threads and 8 connections\n  1234 requests in 3.00s, 1.00MB read\n"
	for text, want := range map[string]int{
		good: 0, good + "  Socket errors: connect 1, read 2, write 3, timeout 4\n": 10, good + "  Non-2xx or 3xx responses: 7\n": 7,
	} {
		if got, err := readWrk(text); err != nil || got.requests != 1234 || got.failed != want {
			t.Errorf("%q: %+v, %v; want %d failures", text, got, err, want)
		}
	}
	if _, err := readWrk("unable to connect"); err == nil {
		t.Error("output without requests is no error")
	}
}
