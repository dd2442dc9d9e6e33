// Package up knows how to run a whole mesh on one machine: which processes it consists of, where they
// are, in which order they start and stop, and when the mesh is ready.
//
// The processes are those of production (`countersign server`, one `countersign proxy` for each
// instance, the applications), each a child of this one; they get addresses of their own on the
// loopback network, so that the specification's ports stay as they are. It is a way to run and to
// test a mesh, and isolates nothing: every process runs as the same user on the same machine.
package up

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"countersign.dev/mesh"
	"countersign.dev/supervise"
)

// ErrNotStarted says that the mesh did not become ready.
var ErrNotStarted = errors.New("the mesh did not start")

// errInterrupted is why a start ends early.
var errInterrupted = errors.New("interrupted before the mesh was ready")

// Config says what to run and how.
type Config struct {
	// Spec is the specification at Path; the server reads Path again by itself.
	Spec *mesh.Spec
	Path string
	// Executable is this program, and Flags are what each of its processes is given before the
	// command's name.
	Executable string
	Flags      []string
	// StateDir keeps the state; when it is empty the state is temporary.
	StateDir string
	// LogDir takes a file a process; when it is empty their lines go to Stderr, prefixed.
	LogDir string
	// Command runs when the mesh is ready, and the mesh ends with it. Without one the mesh runs until
	// a signal comes.
	Command []string
	// JSON writes the run document to Stdout when the mesh is ready, instead of the table.
	JSON bool
	// StartTimeout bounds the start, and DrainTimeout how long each process may finish its work.
	StartTimeout time.Duration
	DrainTimeout time.Duration
	// NoRotation leaves it to others to renew what comes from stores.
	NoRotation bool
	Addresses  Addresses
	// Engines are the proxies that can be run where the specification says another than this program's own; it has none but these.
	Engines map[mesh.Engine]supervise.Kind
	// Store makes a secret store with its identity file, or sees that the one which is there can be used.
	Store func(mesh.Store) error
	// CA makes an unsealed certificate authority for the trust domain in a directory, or sees that the
	// one which is there serves it.
	CA func(dir, trustDomain string) error
	// Signals are SIGINT, SIGTERM and SIGHUP of this process.
	Signals <-chan os.Signal
	// Stdin is Command's; so is Stdout when there is one. Terminal says that Stderr is one, and Colour
	// that it may have colours.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Terminal       bool
	Colour         bool
}

// Run runs the mesh until a signal comes, the command ends or ctx does, and gives the exit status: the
// command's, 0 without one. An error wraps [ErrNotStarted], [ErrState] or [ErrPort] when the mesh did
// not become ready. When Run returns, no process that it started runs any more.
func Run(ctx context.Context, cfg Config) (status int, err error) {
	return newRun(cfg).run(ctx)
}

func newRun(cfg Config) *run {
	return &run{
		cfg:           cfg,
		console:       &console{w: cfg.Stderr, terminal: cfg.Terminal, colour: cfg.Colour},
		pid:           os.Getpid(),
		watchInterval: watchInterval,
		changed:       make(chan struct{}, 1),
		hurry:         make(chan struct{}),
	}
}

func (r *run) run(ctx context.Context) (status int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.onSignal(func(os.Signal) { cancel(errInterrupted) })
	defer r.listen()()

	command, err := r.command()
	if err != nil {
		return 0, err
	}
	r.begun = time.Now()
	if err := r.prepare(ctx); err != nil {
		return 0, err
	}
	defer func() {
		ended := r.end()
		if command == nil || err != nil {
			err = errors.Join(err, ended)
		} else if ended != nil { // the exit status is the command's
			r.console.line("%v", ended)
		}
	}()
	if err := r.start(ctx); err != nil {
		r.console.settle()
		if errors.Is(context.Cause(ctx), errInterrupted) {
			if command == nil {
				return 0, nil
			}
			err = errInterrupted
		}
		return 0, fmt.Errorf("%w: %w", ErrNotStarted, err)
	}
	r.console.settle()
	if r.listener, err = r.listenForWords(ctx); err != nil {
		return 0, err
	}
	if err := r.announce(); err != nil {
		return 0, err
	}
	if err := r.startRotation(); err != nil {
		return 0, err
	}
	watching, stopWatching := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { r.watch(watching) })
	defer watch.Wait()
	defer stopWatching()
	if command == nil {
		<-ctx.Done()
		return 0, nil
	}
	return r.runCommand(ctx, command)
}

// run is one run of a mesh.
type run struct {
	cfg     Config
	console *console
	pid     int
	begun   time.Time
	// watchInterval is between two looks at a mesh that runs.
	watchInterval time.Duration
	logs          *logs
	state         *state
	place         *placement
	starter       *starter
	orphans       *orphans

	all      []*instance
	engines  engines
	server   *child
	rotation *child // nil unless certificates come from stores
	// turns are taken by the restarts of a workload's instances, one at a time.
	turns map[string]chan struct{}
	// mending has what brings instances back that restarts have left down.
	mending sync.WaitGroup
	// foreign are the stores that were there before this run.
	foreign  []string
	control  *control
	identity Server // how the server describes itself in the run document; the pid is not kept up
	// listener takes words for `up` while the mesh runs; nil before.
	listener *listener

	// changed has an element when a process was started since the document was written.
	changed chan struct{}
	// hurry is closed when the user does not want to wait for what drains.
	hurry chan struct{}

	signalMu sync.Mutex
	signal   func(os.Signal)
}

// onSignal says what a signal means from now on.
func (r *run) onSignal(handle func(os.Signal)) {
	_ = r.onSignalAfter(func() error { return nil }, handle)
}

// onSignalAfter does something and, once that has succeeded, says what a signal means. One that comes meanwhile waits,
// so that what has begun is not met by the meaning of before.
func (r *run) onSignalAfter(begin func() error, handle func(os.Signal)) error {
	r.signalMu.Lock()
	defer r.signalMu.Unlock()
	err := begin()
	if err == nil {
		r.signal = handle
	}
	return err
}

// listen takes signals until the function that it gives is called.
func (r *run) listen() (stop func()) {
	done := make(chan struct{})
	var listening sync.WaitGroup
	listening.Go(func() {
		for {
			select {
			case s := <-r.cfg.Signals:
				r.signalMu.Lock()
				handle := r.signal
				r.signalMu.Unlock()
				handle(s)
			case <-done:
				return
			}
		}
	})
	return func() {
		close(done)
		listening.Wait()
	}
}

// prepare does what may fail before any process is started. After an error nothing is left.
func (r *run) prepare(ctx context.Context) (err error) {
	if r.all, err = instances(r.cfg.Spec); err != nil {
		return err
	}
	if r.engines, err = findEngines(ctx, r.cfg.Engines, r.all); err != nil {
		return err
	}
	r.turns = map[string]chan struct{}{}
	for _, i := range r.all {
		r.turns[i.plan().Workload.Name] = make(chan struct{}, 1)
		r.console.reserve(i.labels()...)
	}
	if r.logs, err = r.openLogs(); err != nil {
		return err
	}
	if r.state, err = openState(r.cfg.StateDir); err != nil {
		return err
	}
	if r.place, err = allocate(ctx, r.cfg.Addresses, r.all, r.state.blocks()); err != nil {
		return errors.Join(err, r.state.close())
	}
	if err = r.engines.check(r.cfg.Spec, r.cfg.Engines, r.all); err == nil {
		r.orphans, err = adoptOrphans()
	}
	if err != nil {
		r.place.release()
		return errors.Join(err, r.state.close())
	}
	r.starter = newStarter()
	return nil
}

func (r *run) openLogs() (*logs, error) {
	l := &logs{console: r.console}
	if r.cfg.LogDir == "" {
		return l, nil
	}
	dir, err := filepath.Abs(r.cfg.LogDir)
	if err != nil {
		return nil, fmt.Errorf("the directory of the logs: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the directory of the logs: %w; give another one with --logs", err)
	}
	l.dir = dir
	return l, nil
}

// sameSignal is the time in which a repeated signal is the first one's echo: timeout(1) and some
// supervisors send the same signal to the process and to its group.
const sameSignal = 200 * time.Millisecond

// end stops every process, the callers before those whom they call and the server last, and removes
// what is to be removed.
func (r *run) end() error {
	var once sync.Once
	began := time.Now()
	r.onSignal(func(os.Signal) {
		if time.Since(began) > sameSignal {
			once.Do(func() { close(r.hurry) })
		}
	})
	r.console.settle()
	r.console.line("%s: stopping", r.cfg.Spec.Mesh)
	grace := r.grace()
	var words sync.WaitGroup // a rotation may be waiting for an answer
	words.Go(func() {
		r.listener.close()
		r.mending.Wait() // closing has ended it
	})
	if r.rotation != nil {
		r.rotation.stop(grace, r.hurry)
	}
	words.Wait()
	for _, group := range stopOrder(r.all) {
		var stopping sync.WaitGroup
		for _, i := range group {
			stopping.Go(func() {
				for _, c := range i.children() {
					c.stop(grace, r.hurry)
				}
			})
		}
		stopping.Wait()
	}
	if r.server != nil {
		r.server.stop(grace, r.hurry)
	}
	r.starter.close()
	err := r.orphans.end(time.Now().Add(5 * time.Second))
	r.closeLogs()
	r.place.release()
	return errors.Join(err, r.state.close())
}

// grace is how long a process may take to end: it cuts off by itself before it is killed.
func (r *run) grace() time.Duration { return r.cfg.DrainTimeout + 2*time.Second }

func (r *run) closeLogs() {
	var all []*child
	for _, i := range r.all {
		all = append(all, i.children()...)
	}
	for _, c := range append(all, r.server, r.rotation) {
		if c != nil {
			_ = c.log.Close() // what it holds was written
		}
	}
}

// ours makes a command of this same program.
func (r *run) ours(args ...string) *exec.Cmd {
	command := exec.Command(r.cfg.Executable) //nolint:noctx // it is ended by a signal to its group
	command.Args = append(append([]string{programName}, r.cfg.Flags...), args...)
	command.Env = r.engines.onPath(environment())
	return command
}

// programName is how a specification and a user call this program, wherever it is.
const programName = "countersign"

// lookUp finds a program as a shell in dir would.
func (r *run) lookUp(name, dir string) (string, error) {
	if name == programName {
		return r.cfg.Executable, nil
	}
	if filepath.Base(name) != name && !filepath.IsAbs(name) {
		name = filepath.Join(dir, name)
	}
	return exec.LookPath(name)
}
