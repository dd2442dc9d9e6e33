// Command bench measures what the product's sidecars cost beside NGINX, HAProxy, Envoy and ghostunnel.
//
// It builds the release binary, starts a mesh and the peers on loopback under one authority, sees that
// each of them really does mutual TLS, and measures in pairs: every run of a setup has a run of NGINX
// before it and one after it, and what counts is the ratio to their mean. A run beside which the machine
// had other work to do is repeated.
//
//	make bench
//	go run ./bench --only http-128-c64,http-1m-c4 --runs 3
//	go run ./bench --list
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"countersign.dev/bench/internal/rig"
)

// options are the command line.
type options struct {
	Only       []string      `placeholder:"ROW" help:"Only these rows."`
	Setups     []string      `placeholder:"SETUP" help:"Only these setups, beside the baseline. Default: all that are there."`
	Runs       int           `default:"5" help:"Runs of each setup and row; the baseline has one more for each. Default: ${default}."`
	PeerRuns   int           `default:"2" help:"The same of setups that are neither ours nor the baseline; never more than --runs. Default: ${default}."`
	Duration   time.Duration `default:"5s" help:"Of a run of load, in whole seconds. Default: ${default}."`
	Settle     time.Duration `default:"10s" help:"How long memory may settle before it is read, and how long rest is watched. Default: ${default}."`
	Other      float64       `default:"0.1" placeholder:"SHARE" help:"A run is repeated when others used more than this share of the processors. Default: ${default}."`
	Repeats    int           `default:"3" help:"How often a run is repeated at most; the quietest counts then. Default: ${default}."`
	Peers      int           `default:"10000" help:"How many peers come back in the row reconnect. Default: ${default}."`
	Binary     string        `placeholder:"FILE" help:"Measure this binary of the product, instead of building it."`
	Results    string        `placeholder:"FILE" help:"Keep all rows in this file of JSON: those that are measured now replace older ones."`
	Document   string        `placeholder:"FILE" help:"Write the document with all rows there."`
	Output     string        `default:"text" enum:"text,json" help:"How the rows are written to standard output: ${enum}."`
	SkipChecks bool          `help:"Do not look first whether every setup does mutual TLS."`
	List       bool          `help:"List the rows."`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	switch {
	case err == nil:
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "bench: interrupted; every process was stopped")
		os.Exit(1)
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run does what the command line says.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	var o options
	parser, err := kong.New(&o, kong.Name("bench"), kong.Description("Measures the sidecars beside NGINX, in pairs."), kong.Writers(stdout, stderr))
	if err != nil {
		return err
	}
	if _, err := parser.Parse(args); err != nil {
		return err
	}
	chosen, err := choose(rows(), o.Only)
	if err != nil {
		return err
	}
	if o.List {
		for _, r := range chosen {
			fmt.Fprintf(stdout, "%-24s %s\n", r.name, r.title)
		}
		return nil
	}
	if runtime.GOOS != "linux" {
		return errors.New("the measurements need Linux: /proc, and peers of Debian")
	}
	if o.Runs < 1 || o.Duration < time.Second {
		return errors.New("--runs is at least 1 and --duration at least 1s")
	}
	for _, name := range o.Setups {
		if !slices.Contains(rig.Names(), name) {
			return fmt.Errorf("there is no setup %q; there are %s", name, strings.Join(rig.Names(), ", "))
		}
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{ReplaceAttr: shortTime}))
	b := &bench{options: o, log: log, command: strings.Join(append([]string{"go run ./bench"}, args...), " ")}
	b.rig, err = rig.New(ctx, log, o.Binary)
	defer func() {
		if b.rig != nil {
			err = errors.Join(err, b.rig.Close())
		}
	}()
	if err != nil {
		return err
	}
	if err := b.measure(ctx, chosen); err != nil {
		return err
	}
	if err := b.write(stdout); err != nil {
		return err
	}
	if b.failed {
		return errors.New("some figures could not be measured; the errors above say why")
	}
	return nil
}

// shortTime leaves of a log line's time what is of use in minutes of measuring.
func shortTime(_ []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey {
		return slog.String(a.Key, a.Value.Time().Format(time.TimeOnly))
	}
	return a
}

// choose finds the rows by name, in the order of the tables; all when none is named.
func choose(all []row, names []string) ([]row, error) {
	if len(names) == 0 {
		return all, nil
	}
	wanted := make(map[string]bool)
	for _, name := range names {
		wanted[name] = true
	}
	var chosen []row
	for _, r := range all {
		if wanted[r.name] {
			chosen = append(chosen, r)
			delete(wanted, r.name)
		}
	}
	for name := range wanted {
		return nil, fmt.Errorf("there is no row %q; --list shows all", name)
	}
	return chosen, nil
}
