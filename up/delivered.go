package up

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"countersign.dev/durable"
	"countersign.dev/mesh"
	"countersign.dev/supervise"
)

// Where the certificate comes from a store, three processes make an instance: `countersign init` takes the
// files from the store and ends, NGINX or HAProxy serves with them, and `countersign init --watch` brings it
// what is new in the store and in the mesh.

const (
	// storeInterval is between two looks of a watcher at its store. A look costs the decryption of a few
	// small files.
	storeInterval = time.Second
	// noInterval is what watchers of instances get that are restarted for a new certificate: they see to
	// the Plans alone.
	noInterval = 365 * 24 * time.Hour
	// killGrace is how long a process that works to an end may take after SIGTERM.
	killGrace = 5 * time.Second
)

// stores are the secret stores that the instances use, each once, in the order of the instances.
func (r *run) stores() []mesh.Store {
	var used []mesh.Store
	for _, i := range r.all {
		if d := i.plan().Delivery; d.FromStore() && !slices.Contains(used, d.Store) {
			used = append(used, d.Store)
		}
	}
	return used
}

// makeStores makes the stores that are not there.
func (r *run) makeStores() error {
	for _, store := range r.stores() {
		if _, err := os.Lstat(store.Dir); err == nil {
			r.foreign = append(r.foreign, store.Dir)
		}
		made, err := r.state.willMake(store.Dir, store.IdentityFile)
		if err != nil {
			return err
		}
		if err := errors.Join(r.cfg.Store(store), made()); err != nil {
			return fmt.Errorf("the secret store %s: %w", store.Dir, err)
		}
	}
	return nil
}

// firstRotation puts certificates into the stores where there are none, or none that will do.
func (r *run) firstRotation(ctx context.Context) error {
	if len(r.stores()) == 0 {
		return nil
	}
	r.console.progress("%s: making the certificates that come from stores", r.cfg.Spec.Mesh)
	err := r.once(ctx, "the first rotation", "rotate", r.ours("rotate", "once", "--no-deploy", "--socket", r.state.socket))
	if err != nil && ctx.Err() == nil && len(r.foreign) > 0 {
		return fmt.Errorf("%w\nWhat was in %s before may be of another authority than this run's in %s: give the --state that it belongs to, or move it away",
			err, strings.Join(r.foreign, ", "), r.state.path("server"))
	}
	return err
}

// startRotation starts what renews the certificates that come from stores, now that the mesh is there to
// be told of them.
func (r *run) startRotation() (err error) {
	if len(r.stores()) == 0 || r.cfg.NoRotation {
		return nil
	}
	r.rotation, err = r.child("the rotation", "rotation", 0, func() (*exec.Cmd, error) {
		command := r.ours("rotate", "daemon")
		command.Env = append(command.Env, EnvRun+"="+r.state.documentPath())
		return command, nil
	})
	return err
}

// places are the directories of an instance whose certificate comes from a store.
type places struct {
	certificates string // whose link current leads to the files
	conf         string // of the proxy's configuration
	run          string // of the proxy: sockets and its pid; new at each of its starts
	agent        string // of the watcher
	plan         string // the file with the Plan for the first configuration
	lists        string // the file with the revocation lists for it
}

// places names them.
func (r *run) places(i *instance) places {
	dir := r.state.sidecar(i.name)
	return places{
		certificates: filepath.Join(dir, "certs"),
		conf:         filepath.Join(dir, "conf"),
		run:          i.runDir,
		agent:        filepath.Join(dir, "agent"),
		plan:         filepath.Join(dir, "plan.json"),
		lists:        filepath.Join(dir, "crl.pem"),
	}
}

// makePlaces makes the directories that an instance needs, and its Plan for the first configuration: no
// endpoint is known yet.
func (r *run) makePlaces(i *instance) (err error) {
	if !i.fromStore() {
		return nil
	}
	if i.runDir, err = r.state.runDir(i.name); err != nil {
		return err
	}
	p := r.places(i)
	for _, dir := range []string{p.certificates, p.conf, p.agent} {
		if err := durable.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("%w: %w", ErrState, err)
		}
	}
	if err := freshDir(p.run); err != nil {
		return err
	}
	return r.writePlan(i, i.plan())
}

// writePlan stores the Plan that `init` makes the configuration of.
func (r *run) writePlan(i *instance, plan *mesh.Plan) error {
	text, err := json.Marshal(plan)
	if err == nil {
		err = durable.WriteFile(r.places(i).plan, append(text, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("storing the Plan of %s: %w", i.name, err)
	}
	return nil
}

// freshDir empties a directory, or makes it.
func freshDir(dir string) error {
	err := os.RemoveAll(dir)
	if err != nil { // a watcher may have made its socket there in the meantime, which it does once a second
		err = os.RemoveAll(dir)
	}
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return fmt.Errorf("a fresh directory for a proxy's sockets: %w", err)
	}
	return nil
}

// fetch takes the files of an instance from the store and writes the configuration of its proxy, which looks
// callers up in the server's revocation lists from its first moment. What was there serves on when it fails.
func (r *run) fetch(ctx context.Context, i *instance) error {
	p := r.places(i)
	args := append(r.initArgs(i), "--plan", p.plan)
	if i.plan().Revocation.Check {
		lists, err := r.control.CRL(ctx)
		if err == nil {
			err = durable.WriteFile(p.lists, lists, 0o644)
		}
		if err != nil {
			return fmt.Errorf("the revocation lists for %s: %w", i.name, err)
		}
		args = append(args, "--crl", p.lists)
	}
	return r.once(ctx, "init of "+i.name, i.name+".init", r.ours(args...))
}

// initArgs are what `init` is told about the files of an instance, at its start and when it watches.
func (r *run) initArgs(i *instance) []string {
	d, p := i.plan().Delivery, r.places(i)
	args := []string{
		"init", "--from", d.Store.Type + ":" + d.Store.Dir, "--identity-file", d.Store.IdentityFile,
		"--secret", d.Secret, "--layout", d.Layout, "--to", p.certificates,
		"--expect-id", i.plan().Workload.Identity.String(),
	}
	for _, role := range slices.Sorted(maps.Keys(d.Fields)) {
		args = append(args, "--field", role+"="+d.Fields[role])
	}
	if d.Bundle != "" {
		args = append(args, "--bundle-from", "secret:"+d.Bundle)
	}
	args = append(args, r.engineArgs(i)...)
	args = append(args, "--conf", p.conf, "--run-dir", p.run, "--callers")
	return append(args, r.placeArgs(i)...)
}

// watcherArgs is the command line of what watches over an instance's proxy.
func (r *run) watcherArgs(i *instance) []string {
	interval := storeInterval
	if i.plan().Deploy == mesh.DeployRestart {
		interval = noInterval
	}
	args := append(r.initArgs(i), "--watch", "--interval", interval.String(), "--state", r.places(i).agent, "--reload", r.reloadWay(i))
	return append(args, r.memberArgs(i)...)
}

// reloadWay says how the watcher tells the proxy.
func (r *run) reloadWay(i *instance) string {
	run := r.places(i).run
	if i.engine() == mesh.EngineHAProxy {
		return "haproxy:" + filepath.Join(run, supervise.MasterSocket)
	}
	return "pidfile:" + filepath.Join(run, "nginx.pid")
}

// startProxy starts the NGINX or HAProxy of an instance whose certificate comes from a store.
func (r *run) startProxy(i *instance) error {
	if !i.fromStore() {
		return nil
	}
	engine := string(i.engine())
	proxy, err := r.child(engine+" of "+i.name, i.name+"."+engine, supervise.Of(i.engine()).Quit(), func() (*exec.Cmd, error) {
		// NGINX does not bind a socket that a killed one has left.
		if err := freshDir(r.places(i).run); err != nil {
			return nil, err
		}
		return r.proxyCommand(i), nil
	})
	if err != nil {
		return err
	}
	i.proxy.Store(proxy)
	return nil
}

// proxyCommand is the proxy as its operator would start it.
func (r *run) proxyCommand(i *instance) *exec.Cmd {
	p := r.places(i)
	engine := supervise.Of(i.engine())
	args := engine.Args(filepath.Join(p.conf, engine.File()), p.run)
	if i.engine() == mesh.EngineNGINX {
		args = append([]string{"-e", "stderr"}, args...) // not to a file of its own before it has read its configuration
	}
	command := exec.Command(r.engines[i.engine()].Path, args...) //nolint:noctx // a signal ends it
	command.Env, command.SysProcAttr = proxyEnvironment(), &syscall.SysProcAttr{}
	endWithParent(command.SysProcAttr)
	return command
}

// proxyEnvironment is all that a proxy inherits.
var proxyEnvironment = supervise.Environment

// once runs a process that works to an end. What it writes goes to the log called file.
func (r *run) once(ctx context.Context, name, file string, command *exec.Cmd) error {
	log, err := r.logs.open(strings.ReplaceAll(file, ".", " "), file)
	if err != nil {
		return err
	}
	defer log.Close()
	command.Stdout, command.Stderr = log, log
	if file, ok := log.(logFile); ok {
		command.Stdout, command.Stderr = file.File, file.File
	}
	if err := r.starter.start(command); err != nil {
		return fmt.Errorf("%s cannot be started: %w", name, err)
	}
	process := &running{command: command}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		process.signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(killGrace):
			process.signal(syscall.SIGKILL)
		}
	})
	err = process.wait()
	close(ended)
	if stopped := stop(); !stopped && err != nil {
		return r.late(ctx, fmt.Sprintf("%s was not finished%s", name, tailOf(log)))
	}
	if err != nil {
		return fmt.Errorf("%s %s%s", name, ending(err), tailOf(log))
	}
	return nil
}
