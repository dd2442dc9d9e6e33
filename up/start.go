package up

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"countersign.dev/api"
	"countersign.dev/durable"
	"countersign.dev/mesh"
)

const (
	// pollInterval is between two looks at what is not ready yet. A look costs a few local requests.
	pollInterval = 20 * time.Millisecond
	// maxDeaths is how often a process may die before the mesh is ready: its restarts have taken
	// one and a half seconds then.
	maxDeaths = 5
	// tokenTTL is how long a sidecar may take from the making of its token to its enrolment.
	tokenTTL = 10 * time.Minute
)

// start brings the mesh up and returns when it is ready.
func (r *run) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.StartTimeout)
	defer cancel()
	r.console.progress("%s: making the certificate authority", r.cfg.Spec.Mesh)
	if err := r.cfg.CA(r.state.path("server"), r.cfg.Spec.TrustDomain); err != nil {
		return fmt.Errorf("the certificate authority in %s: %w", r.state.path("server"), err)
	}
	if err := r.state.keepBlocks(r.place.blocks); err != nil {
		return err
	}
	r.place.open()
	if err := r.makeStores(); err != nil {
		return err
	}
	if err := r.startServer(ctx); err != nil {
		return err
	}
	if err := r.firstRotation(ctx); err != nil {
		return err
	}
	if err := r.startSidecars(ctx); err != nil {
		return err
	}
	return r.awaitReady(ctx)
}

// startServer starts the control plane and waits for its answer.
func (r *run) startServer(ctx context.Context) error {
	r.console.progress("%s: starting the server on %s", r.cfg.Spec.Mesh, r.place.server)
	if err := r.addServer(); err != nil {
		return err
	}
	r.control = newControl(r.state.socket)
	for {
		ca, err := r.control.CA(ctx)
		if err == nil {
			return r.meet(ctx, ca)
		}
		if _, exits, last := r.server.process(); exits > 0 {
			return fmt.Errorf("the server %s%s", ending(last), r.lastLines(r.server))
		}
		if !sleep(ctx, pollInterval/4) {
			return r.late(ctx, fmt.Sprintf("the server does not answer on its socket: %v%s", err, r.lastLines(r.server)))
		}
	}
}

// addServer starts the control plane's process. A restarted one goes on with what it has in its state:
// the file may have been edited meanwhile, and what runs does not follow it.
func (r *run) addServer() error {
	args := []string{
		"server", "--state", r.state.path("server"), "--listen", r.place.server.String(),
		"--socket", r.state.socket, "--unsealed", "--fixed-topology",
	}
	first := true
	var err error
	r.server, err = r.child("server", "server", 0, func() (*exec.Cmd, error) {
		if first {
			first = false
			return r.ours(append(args, "--mesh", r.cfg.Path)...), nil
		}
		return r.ours(args...), nil
	})
	return err
}

// meet takes down who the server is and what it runs: a kept state may hold what `mesh apply` has
// made of the specification since it was started from the file.
func (r *run) meet(ctx context.Context, ca *api.CAResponse) error {
	r.identity = Server{
		URL:    "https://" + r.place.server.String(),
		Socket: r.state.socket,
		CAFile: r.state.path("ca.pem"),
		CAPin:  ca.Pin,
	}
	if err := durable.WriteFile(r.identity.CAFile, []byte(ca.Root), 0o644); err != nil {
		return fmt.Errorf("storing the root certificate: %w", err)
	}
	running, err := r.control.Mesh(ctx)
	if err != nil {
		return fmt.Errorf("asking the server what it runs: %w", err)
	}
	return r.follow(running)
}

// startSidecars makes a join token for each instance and starts its sidecar with it.
func (r *run) startSidecars(ctx context.Context) error {
	r.console.progress("%s: starting %d sidecars", r.cfg.Spec.Mesh, len(r.all))
	for _, i := range r.all {
		if err := r.makePlaces(i); err != nil {
			return err
		}
	}
	failures := make([]error, len(r.all))
	var preparing sync.WaitGroup
	limit := make(chan struct{}, 8)
	for n, i := range r.all {
		limit <- struct{}{}
		preparing.Go(func() {
			defer func() { <-limit }()
			if failures[n] = r.newToken(ctx, i); failures[n] == nil && i.fromStore() {
				failures[n] = r.fetch(ctx, i)
			}
		})
	}
	preparing.Wait()
	if err := errors.Join(failures...); err != nil {
		return err
	}
	for _, i := range r.all {
		if err := r.startProxy(i); err != nil {
			return err
		}
		if err := r.startSidecar(i); err != nil {
			return err
		}
	}
	return nil
}

// startSidecar starts the sidecar of an instance, or what watches over the proxy that is one.
func (r *run) startSidecar(i *instance) error {
	args := r.sidecarArgs
	if i.fromStore() {
		args = r.watcherArgs
	}
	sidecar, err := r.child("sidecar "+i.name, i.name, 0, func() (*exec.Cmd, error) { return r.ours(args(i)...), nil })
	if err != nil {
		return err
	}
	i.sidecar.Store(sidecar)
	return nil
}

// newToken gives an instance a fresh join token.
func (r *run) newToken(ctx context.Context, i *instance) error {
	token, err := r.control.CreateToken(ctx, api.TokenRequest{Workload: i.plan().Workload.Name, TTL: mesh.Duration(tokenTTL), Uses: 1})
	if err != nil {
		return fmt.Errorf("making a join token for %s: %w", i.name, err)
	}
	return r.state.writeToken(i.name, token.Token)
}

// sidecarArgs is the command line of an instance's sidecar.
func (r *run) sidecarArgs(i *instance) []string {
	args := append([]string{"proxy", "--state", r.state.sidecar(i.name)}, r.memberArgs(i)...)
	if i.plan().Proxy.Real() {
		args = append(args, "--engine", string(i.engine()))
	}
	return append(args, r.placeArgs(i)...)
}

// memberArgs say to a process how it belongs to the mesh.
func (r *run) memberArgs(i *instance) []string {
	return []string{
		"--server", r.identity.URL, "--ca-pin", r.identity.CAPin, "--token-file", r.state.token(i.name),
		"--instance", i.name, "--admin", i.admin.String(),
	}
}

// placeArgs say where an instance is, and how long it may drain.
func (r *run) placeArgs(i *instance) []string {
	drain := r.cfg.DrainTimeout
	if i.plan().Proxy.Real() {
		drain = max(drain, time.Second) // these proxies count whole seconds
	}
	args := []string{"--drain-timeout", drain.String(), "--address", i.peers.String()}
	if i.loopback.IsValid() {
		args = append(args, "--app-address", i.loopback.String())
	}
	for _, bind := range i.binds() {
		args = append(args, "--bind", bind)
	}
	return args
}

// startApp starts the application of an instance.
func (r *run) startApp(i *instance) error {
	app, err := r.child("application "+i.name, i.name+".app", 0, func() (*exec.Cmd, error) { return r.appCommand(i) })
	if err != nil {
		return err
	}
	i.application.Store(app)
	return nil
}

// appCommand makes the command that the specification wants, with its variables replaced.
func (r *run) appCommand(i *instance) (*exec.Cmd, error) {
	spec := i.service.Run
	args := make([]string, len(spec.Command))
	for n, text := range spec.Command {
		value, err := i.expand(text)
		if err != nil {
			return nil, err
		}
		args[n] = value
	}
	dir := spec.Dir
	path, err := r.lookUp(args[0], dir)
	if err != nil {
		return nil, err
	}
	command := exec.Command(path) //nolint:noctx // it is ended by a signal to its group
	command.Args, command.Dir, command.Env = args, dir, environment()
	for _, name := range slices.Sorted(maps.Keys(spec.Env)) {
		value, err := i.expand(spec.Env[name])
		if err != nil {
			return nil, err
		}
		command.Env = append(command.Env, name+"="+value)
	}
	return command, nil
}

// child makes and launches a process that is kept running. What it writes goes to the log called file. soft
// is the signal that asks it to finish, 0 for SIGTERM.
func (r *run) child(name, file string, soft syscall.Signal, command func() (*exec.Cmd, error)) (*child, error) {
	log, err := r.logs.open(strings.ReplaceAll(file, ".", " "), file)
	if err != nil {
		return nil, err
	}
	c := &child{name: name, command: command, log: log, starter: r.starter, console: r.console, soft: soft, started: r.noteChange}
	c.launch()
	return c, nil
}

// noteChange makes sure that the run document is written again.
func (r *run) noteChange() {
	select {
	case r.changed <- struct{}{}:
	default: // it will be anyway
	}
}

// lastLines are the last lines of a process for an error message: empty, or with a line break before.
func (r *run) lastLines(c *child) string {
	if c == nil {
		return ""
	}
	return tailOf(c.log)
}

// tailOf are the last lines of a log, as [run.lastLines] gives them.
func tailOf(log sink) string {
	lines := log.tail()
	if len(lines) == 0 {
		return ""
	}
	return "; its last lines:\n    " + strings.Join(lines, "\n    ")
}

// late explains why a start ends before the mesh is ready.
func (r *run) late(ctx context.Context, what string) error {
	if ctx.Err() != nil && !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return context.Cause(ctx)
	}
	return fmt.Errorf("it is not ready after %s (--start-timeout):\n%s", r.cfg.StartTimeout, what)
}

// sleep waits, and tells whether ctx goes on.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
