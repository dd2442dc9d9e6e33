package supervise

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"countersign.dev/engine"
	"countersign.dev/mesh"
	"countersign.dev/reload"
)

// Engine is one of the programs.
type Engine struct {
	name string
	file string // its configuration's name in a generation
	// build is the argument that lets it say how it was built, and read takes that in.
	build string
	read  func(output string, b *Binary) error
	// test and serve are its arguments.
	test, serve func(conf, run string) []string
	// tell is how its master is told to read its configuration again.
	tell func(p *process) reload.Method
	// The signals to its master: to end when all is finished, and to end now.
	quit, stop syscall.Signal
	// inForce asks the running program for the name of its generation.
	inForce func(ctx context.Context, run string) (string, error)
	// leaving counts the workers of earlier generations that finish what they have.
	leaving func(ctx context.Context, p *process) (int, error)
	// older takes hold of the workers of earlier generations, which may take further requests.
	older func(ctx context.Context, p *process) (*reload.OldWorkers, error)
	// sampler makes what reads the program's own counters; nil when there is nothing but its log.
	sampler func(c *counts) sampler
}

// Kind is a program with who writes its configuration: renderers are packages of their own.
type Kind struct {
	Engine *Engine
	Render func(*mesh.Plan, engine.Options) (*engine.Config, error)
	// Least is the oldest version that is rendered for.
	Least string
}

// Find is [Find] for a version that is rendered for.
func (k Kind) Find(ctx context.Context, path string) (*Binary, error) {
	return Find(ctx, k.Engine, path, k.Least)
}

// sampler reads the counters of a running program now and then.
type sampler interface {
	sample(ctx context.Context, p *process, plan *mesh.Plan) error
}

// Of is the engine that a specification means, nil for the built-in proxy.
func Of(name mesh.Engine) *Engine {
	switch name {
	case mesh.EngineNGINX:
		return NGINX
	case mesh.EngineHAProxy:
		return HAProxy
	case mesh.EngineBuiltin:
	}
	return nil
}

// String is the engine's name in a specification and on the command line.
func (e *Engine) String() string { return e.name }

// File is the usual name of its configuration.
func (e *Engine) File() string { return e.file }

// Args are its arguments to serve with a configuration, its sockets in the directory run.
func (e *Engine) Args(conf, run string) []string { return e.serve(conf, run) }

// Quit is the signal at which its master ends when everything is finished.
func (e *Engine) Quit() syscall.Signal { return e.quit }

// Binary is a program that was found and asked.
type Binary struct {
	Engine *Engine
	Path   string // absolute
	// Version is its own, as 1.22.1, and OpenSSL that of the library it runs with.
	Version, OpenSSL string
	// StreamModule is the file of NGINX's stream module, where it is one.
	StreamModule string
}

// ErrBinary says that the program cannot be used, and why.
var ErrBinary = errors.New("the proxy's program cannot be used")

// Find looks for the program and asks it for its version. path is empty for the one on PATH, where the directories of
// administrators' programs count, too. least is the oldest version that is taken. Errors are [ErrBinary].
func Find(ctx context.Context, e *Engine, path, least string) (*Binary, error) {
	found, err := lookUp(e.name, path)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	command := exec.CommandContext(ctx, found, e.build)
	command.Env = Environment()
	command.WaitDelay = time.Second
	output, err := said(command)
	if err != nil {
		return nil, fmt.Errorf("%w: %s %s: %w: %s", ErrBinary, found, e.build, err, firstLines(output))
	}
	b := &Binary{Engine: e, Path: found}
	if err := e.read(string(output), b); err != nil {
		return nil, fmt.Errorf("%w: %s: %w; --engine-path names another", ErrBinary, found, err)
	}
	if !engine.IsVersion(b.Version) || !engine.AtLeast(b.Version, least) {
		return nil, fmt.Errorf("%w: %s is version %q, and %s is the oldest that is rendered for; install a newer one, or name it with --engine-path",
			ErrBinary, found, b.Version, least)
	}
	return b, nil
}

// said runs a program and gives what it says. That somebody held its output open after it had ended well is no fault of its:
// a child that it has left, or this machine, when it stood still for longer than is waited.
func said(command *exec.Cmd) ([]byte, error) {
	output, err := command.CombinedOutput()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	return output, err
}

// lookUp finds the program's file.
func lookUp(name, path string) (string, error) {
	candidates := []string{path}
	if path == "" {
		candidates = []string{name, "/usr/local/sbin/" + name, "/usr/sbin/" + name}
	}
	for _, candidate := range candidates {
		if found, err := exec.LookPath(candidate); err == nil {
			if found, err = filepath.Abs(found); err == nil {
				return found, nil
			}
		}
	}
	if path != "" {
		return "", fmt.Errorf("%w: %s is no program that this user may run (--engine-path)", ErrBinary, path)
	}
	return "", fmt.Errorf("%w: there is no %s on PATH; install it, or name it with --engine-path", ErrBinary, name)
}

// firstLines is the beginning of what a program said, for an error.
func firstLines(output []byte) string {
	const most = 1000
	output = bytes.TrimSpace(output)
	if len(output) > most {
		output = append(output[:most:most], "..."...)
	}
	return redact(string(output))
}

// query is the query of a request, which may be a secret; NGINX writes it where an upstream fails.
var query = regexp.MustCompile(`\?[^ "]*`)

func redact(line string) string { return reload.Redact(query.ReplaceAllString(line, "?...")) }

// tested runs the program's own test of a configuration.
func (b *Binary) tested(ctx context.Context, conf, run string) error {
	ctx, cancel := context.WithTimeout(ctx, testTimeout)
	defer cancel()
	command := exec.CommandContext(ctx, b.Path, b.Engine.test(conf, run)...)
	command.Env, command.Dir = Environment(), run
	command.WaitDelay = time.Second
	output, err := said(command)
	if err != nil {
		return fmt.Errorf("%w: its own test (%s %s) refuses the configuration: %w: %s", ErrNotInForce, b.Path, strings.Join(b.Engine.test("FILE", run), " "), err, firstLines(output))
	}
	return nil
}

// options are those of a rendered generation.
func (s *Supervisor) options(run, dir, name string) engine.Options {
	o := engine.Options{
		Certificates: dir, Run: run, Generation: name,
		Address: s.cfg.Address, Loopback: s.cfg.AppAddress, Binds: s.cfg.Binds,
		Version: s.cfg.Binary.Version, OpenSSL: s.cfg.Binary.OpenSSL, StreamModule: s.cfg.Binary.StreamModule,
		Drain: s.cfg.Drain,
	}
	if os.Geteuid() == 0 {
		// Its workers are then what this process is; as another user they could not reach the run directory.
		o.User = "root"
	}
	return o.WithDefaults(s.cfg.Binary.Version)
}
