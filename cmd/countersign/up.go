package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/term"

	"countersign.dev/ca"
	"countersign.dev/engine"
	"countersign.dev/mesh"
	"countersign.dev/secret/filestore"
	"countersign.dev/up"
)

type upCmd struct {
	Path    string   `arg:"" help:"The specification: a file, or a directory whose files are merged."`
	Command []string `arg:"" optional:"" name:"cmd" help:"After --: a command to run when the mesh is ready. The mesh ends with it."`

	State        string        `placeholder:"DIR" help:"Keep the state in DIR, for the next run. Without it the state is temporary and removed at the end."`
	Logs         string        `placeholder:"DIR" help:"Write the logs into files in DIR, one a process, instead of prefixed lines on standard error."`
	Output       string        `help:"What is written to standard output when the mesh is ready: ${enum}. JSON is one line, text a table." enum:"text,json" default:"text"`
	StartTimeout time.Duration `help:"How long the mesh may take to become ready." default:"60s"`
	DrainTimeout time.Duration `help:"How long each process may finish its work at the end; a second signal does not wait." default:"10s"`
	NoRotation   bool          `help:"Do not run 'countersign rotate daemon' beside the mesh. Certificates that come from stores then expire unless somebody else rotates them."`
	Addresses    string        `hidden:"" help:"How instances get addresses: ${enum}." enum:"auto,own,shared" default:"auto"`
}

// Help is what --help adds.
func (upCmd) Help() string {
	return `Runs the whole mesh on this machine, in the foreground: the server, a sidecar for each instance and the
applications that the specification says how to run, each a process of its own that is restarted when
it dies. Ctrl-C stops all of them and leaves nothing behind. It is a way to run and to test a mesh, not
isolation.

An instance whose proxy is NGINX or HAProxy (proxy.engine) is served by the one of this machine. Where its
certificate comes from a store (delivery), the store and its identity file are made when they are not there,
and so is its first certificate; 'countersign rotate daemon' runs beside the mesh and renews it. Without
--state, a store that was made is removed at the end: its certificates are of an authority that ends, too.

Examples:
  countersign up mesh.yaml
  countersign up mesh.yaml -- countersign verify
  countersign up mesh.yaml -- ./run-tests --fast
  countersign up mesh.yaml --output json --logs logs

With a command, standard input and output are the command's, COUNTERSIGN_RUN names a file that describes
the running mesh, 'countersign status' and others find the mesh by it, and the exit status is the
command's: 128 and the signal's number when one ended it, 2 when the specification is wrong, 1 when the
mesh did not start.`
}

// Run runs the mesh.
func (c *upCmd) Run(p *process, cli *root, parsed *kong.Context) error {
	if err := c.check(parsed.Args); err != nil {
		return err
	}
	spec, err := loadSpec(p, c.Path)
	if err != nil {
		return err
	}
	if err := here(spec); err != nil {
		return invalidSpecification(p, err)
	}
	executable, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // as nohup has it
		signal.Notify(signals, syscall.SIGHUP)
	}
	defer signal.Stop(signals)
	// Who reads our output may end before us: a write then fails instead of ending this process.
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, syscall.SIGPIPE)
	defer signal.Stop(broken)

	terminal := isTerminal(p.stderr)
	// A signal comes by the channel, where it is still known which one it was.
	status, err := up.Run(context.WithoutCancel(p.ctx), up.Config{
		Spec: spec, Path: c.Path,
		Executable: executable, Flags: []string{"--log-format", cli.LogFormat, "--log-level", cli.LogLevel},
		StateDir: c.State, LogDir: c.Logs,
		Command: c.Command, JSON: c.Output == "json",
		StartTimeout: c.StartTimeout, DrainTimeout: c.DrainTimeout, NoRotation: c.NoRotation, Addresses: up.Addresses(c.Addresses),
		Engines: foreignEngines, CA: unsealedCA, Store: func(store mesh.Store) error { return readyStore(p, store) }, Signals: signals,
		Stdin: p.stdin, Stdout: p.stdout, Stderr: p.stderr,
		Terminal: terminal, Colour: terminal && os.Getenv("NO_COLOR") == "",
	})
	switch {
	case errors.Is(err, up.ErrCommand), errors.Is(err, engine.ErrRefused):
		return usageError{err}
	case err != nil:
		return err
	case status != exitOK:
		return exitError{status: status}
	default:
		return nil
	}
}

// here refuses a specification that cannot run on one machine: what is AWS's to do is done by nobody there.
func here(spec *mesh.Spec) error {
	if err := spec.ServerCan(); err != nil {
		return err
	}
	var refused mesh.Errors
	for _, w := range spec.Workloads() {
		plan, err := spec.Compile(w.Name)
		if err != nil {
			return err
		}
		if plan.Deploy == mesh.DeployECS {
			refused = append(refused, spec.Refuse(fmt.Sprintf("the tasks of %s %s are replaced by Amazon ECS (deploy: {type: ecs}), which is not here; to try it on this machine write deploy: {type: restart}", w.Kind, w.Name),
				w.Path()+".deploy.type"))
		}
		if plan.Delivery.FromStore() && plan.Delivery.Store.Type != mesh.StoreFile {
			refused = append(refused, spec.Refuse(fmt.Sprintf("the certificate of %s %s comes from the store %s of type %s, and only stores of type file are made here; to try it on this machine declare one",
				w.Kind, w.Name, plan.Delivery.StoreName, plan.Delivery.Store.Type), w.Path()+".delivery.store"))
		}
	}
	if len(refused) > 0 {
		return refused.Sorted()
	}
	return nil
}

// check finds what the flags' declarations cannot say.
func (c *upCmd) check(args []string) error {
	separator := slices.Index(args, "--")
	switch {
	case separator < 0 && len(c.Command) > 0:
		return usagef("unexpected argument %s; put -- before a command that is to run in the mesh", c.Command[0])
	case separator >= 0 && len(args)-separator-1 != len(c.Command):
		return usagef("the path of the specification stands before --, and a command behind it")
	case separator >= 0 && len(c.Command) == 0:
		return usagef("no command stands after --; write one, or leave -- out")
	case c.Output == "json" && len(c.Command) > 0:
		return usagef("--output json and a command exclude each other: standard output is the command's; it finds the same document in the file that COUNTERSIGN_RUN names")
	case c.StartTimeout <= 0 || c.DrainTimeout < 0:
		return usagef("--start-timeout has to be above 0, and --drain-timeout not below")
	}
	return nil
}

// unsealedCA sees that a state directory holds the CA of a trust domain, and makes one where there is
// none.
func unsealedCA(dir, trustDomain string) error {
	authority, err := ca.Read(dir)
	if errors.Is(err, ca.ErrNoCA) {
		_, err = ca.Init(dir, ca.InitConfig{TrustDomain: trustDomain, Seal: ca.Unsealed()})
		return err
	}
	if err != nil {
		return err
	}
	if authority.Seal() != ca.MethodUnsealed {
		return fmt.Errorf("%w: 'up' works with unsealed keys, and those in %s are sealed; give another --state", ca.ErrSealed, dir)
	}
	return authority.BindTrustDomain(trustDomain)
}

// readyStore sees that a secret store can be used, and makes it and its identity file where they are not.
func readyStore(p *process, store mesh.Store) error {
	if store.Type != mesh.StoreFile {
		return fmt.Errorf("stores of type %q are not known here", store.Type)
	}
	c := secretInitCmd{storeFlags: storeFlags{Store: "file:" + store.Dir, IdentityFile: store.IdentityFile}}
	if _, err := c.makeIdentity(p, store.Dir); err != nil {
		return err
	}
	identity, err := filestore.LoadIdentity(store.IdentityFile)
	if err != nil {
		return err
	}
	_, err = filestore.Create(store.Dir, identity)
	if errors.Is(err, filestore.ErrExists) {
		_, err = filestore.Open(store.Dir, identity)
	}
	return err
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}
