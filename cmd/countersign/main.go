// Command countersign gives every connection between services mutual TLS. Its commands only wire
// packages together: each stands in a file of its own, and what it does stands in the packages.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"countersign.dev/aws/lambda"
)

// Exit statuses. Anything else is the status of a command that `up` ran.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// root is the command line. Each field is declared in the file of its command.
type root struct {
	LogFormat string `help:"How log lines on standard error are written: ${enum}." enum:"text,json" default:"text" env:"COUNTERSIGN_LOG_FORMAT"`
	LogLevel  string `help:"The least important log lines that are written: ${enum}." enum:"debug,info,warn,error" default:"info" env:"COUNTERSIGN_LOG_LEVEL"`

	Audit    auditCmd    `cmd:"" help:"The journal: copy it out, check a copy."`
	CA       caCmd       `cmd:"" name:"ca" help:"The certificate authority: init, show, issue, list, revoke, crl, rotate, aws."`
	Check    checkCmd    `cmd:"" help:"What is wrong, or about to go wrong: expiry, aws."`
	Example  exampleCmd  `cmd:"" help:"The example meshes: their files and their applications."`
	Generate generateCmd `cmd:"" help:"Configurations of other proxies (nginx, haproxy), and what runs a mesh on Amazon ECS (cloudformation, terraform, iam, task-definition)."`
	Init     initCmd     `cmd:"" help:"Put certificate, key and roots from a secret into files for a proxy, checked."`
	Proxy    proxyCmd    `cmd:"" help:"The sidecar of one instance."`
	Rotate   rotateCmd   `cmd:"" help:"New certificates for services that take theirs from a store: once, daemon, status, package."`
	Secret   secretCmd   `cmd:"" help:"The secret store: init, put, get, list, versions."`
	Server   serverCmd   `cmd:"" help:"The control plane."`
	Status   statusCmd   `cmd:"" help:"What each instance really serves."`
	Token    tokenCmd    `cmd:"" help:"Join tokens."`
	Mesh     meshCmd     `cmd:"" help:"The specification: validate, plan, apply, schema, graph."`
	Up       upCmd       `cmd:"" help:"Run a whole mesh on this machine."`
	Verify   verifyCmd   `cmd:"" help:"Compare what the wire shows with the specification."`
	Version  versionCmd  `cmd:"" help:"Print the version."`
}

// process is what a command sees of the process that it runs in.
type process struct {
	ctx    context.Context // ends at SIGINT or SIGTERM
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	log    *slog.Logger
}

// usageError is a mistake in what the user wrote: exit status 2.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// usagef makes a usageError.
func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// exitError ends the process with a status and, when message is empty, without a further word: what
// there was to say has been said.
type exitError struct {
	status  int
	message string
}

func (e exitError) Error() string { return e.message }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	var status int
	if lambda.Wanted(os.Args[0]) {
		status = serveFunction(ctx, os.Stdout, os.Stderr)
	} else {
		status = run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	}
	stop()
	os.Exit(status)
}

// run carries out one command line and returns the exit status.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	var cli root
	exited := -1
	parser, err := kong.New(&cli,
		kong.Name("countersign"),
		kong.Description("Mutual TLS for every connection between services."),
		kong.Writers(stdout, stderr),
		kong.Exit(func(status int) { exited = status }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		durations(),
	)
	if err != nil {
		panic(err) // the command line's own declaration is wrong: a mistake of the build
	}
	kctx, err := parser.Parse(args)
	if exited >= 0 { // --help
		return exited
	}
	if err != nil {
		fmt.Fprintf(stderr, "countersign: %v%s\nTry 'countersign%s --help'.\n", err, takes(err), commandOf(err))
		return exitUsage
	}
	p := &process{ctx: ctx, stdin: stdin, stdout: stdout, stderr: stderr, log: newLogger(stderr, cli.LogFormat, cli.LogLevel)}
	if err := harden(kctx.Command()); err != nil {
		return status(err, stderr)
	}
	return status(kctx.Run(p), stderr)
}

// commandOf is the command that a line with a mistake is about, as far as it was understood: its --help has the flags
// and arguments that are meant.
func commandOf(err error) string {
	var mistake *kong.ParseError
	if !errors.As(err, &mistake) || mistake.Context == nil {
		return ""
	}
	words := ""
	for _, part := range mistake.Context.Path {
		if part.Command != nil {
			words += " " + part.Command.Name
		}
	}
	return words
}

// takes says how many arguments a command takes that was given one too many.
func takes(err error) string {
	var mistake *kong.ParseError
	if !errors.As(err, &mistake) || mistake.Context == nil || !strings.HasPrefix(err.Error(), "unexpected argument") {
		return ""
	}
	command := mistake.Context.Selected()
	if command == nil {
		return ""
	}
	switch n := len(command.Positional); n {
	case 0:
		return "; the command takes no argument"
	case 1:
		return "; the command takes one argument, " + command.Positional[0].Name
	default:
		return fmt.Sprintf("; the command takes %d arguments", n)
	}
}

// status maps an error to an exit status and says it.
func status(err error, stderr io.Writer) int {
	var exit exitError
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &exit):
		if exit.message != "" {
			fmt.Fprintf(stderr, "countersign: %s\n", exit.message)
		}
		return exit.status
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "countersign: %v\n", err)
		return exitUsage
	default:
		fmt.Fprintf(stderr, "countersign: %v\n", err)
		return exitFailure
	}
}

func newLogger(w io.Writer, format, level string) *slog.Logger {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		l = slog.LevelInfo // the flag's enum leaves no other value
	}
	options := &slog.HandlerOptions{Level: l}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
