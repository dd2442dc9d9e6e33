//go:build linux

package ecsfake

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ecs/types"
	"golang.org/x/sys/unix"

	"countersign.dev/aws/internal/awstest/ecsfake/jail"
)

// ErrUnavailable says that namespaces cannot be made here; what needs the double is skipped then.
var ErrUnavailable = jail.ErrUnavailable

// Enter starts this program again in namespaces of its own; see jail.Enter. Call it first in TestMain, which
// then skips nothing by itself: New says ErrUnavailable where they cannot be had.
func Enter() error { return jail.Enter() }

// Credentials are what a role's holder signs with.
type Credentials struct {
	AccessKeyID, SecretAccessKey, Token string
	Expires                             time.Time
}

// Options say what a double stands for. Region, Account and Images are needed.
type Options struct {
	Region, Account string
	// Images say what the last part of an image's name, without tag and digest, stands for.
	Images map[string]Image
	// Front is the URL under which this process reaches every AWS service. Tasks get it as AWS_ENDPOINT_URL, at an
	// address that they can reach. Empty: tasks have no AWS, and a definition with secrets does not start.
	Front string
	// Assume gives credentials of a role, by its ARN. nil: tasks have none.
	Assume func(role string) (Credentials, error)
	// Second is how long a second lasts of health check intervals, start periods and timeouts, deregistration
	// delays and back-off; one second when 0. The time that a program has to end or a check to answer is real.
	Second time.Duration
	// Drain is how long a second of deregistration delays lasts, where that has to be in proportion to the real age of
	// connections; Second when 0.
	Drain time.Duration
	// Log is told what the double does; nil: nobody.
	Log func(format string, arguments ...any)
}

// Fake is the double. It is safe for concurrent use.
type Fake struct {
	options Options
	network *jail.Network
	work    string // a memory disk, for roots and volumes
	front   string // Options.Front as tasks reach it
	relay   net.Listener

	ctx    context.Context
	cancel context.CancelFunc
	wait   sync.WaitGroup

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at every change
	serial   int
	clusters map[string]*types.Cluster
	families map[string][]*types.TaskDefinition
	tasks    []*task
	services []*service

	balancers []*balancer
	groups    []*group
}

var (
	sharedNetwork = sync.OnceValues(jail.NewNetwork)
	errClosed     = errors.New("the double was closed")
)

// New starts a double. Close ends it and every task. The error is ErrUnavailable outside of Enter's namespaces.
func New(options Options) (*Fake, error) {
	network, err := sharedNetwork()
	if err != nil {
		return nil, err
	}
	if options.Second == 0 {
		options.Second = time.Second
	}
	if options.Drain == 0 {
		options.Drain = options.Second
	}
	if options.Log == nil {
		options.Log = func(string, ...any) {}
	}
	f := &Fake{
		options: options, network: network, changed: make(chan struct{}),
		clusters: map[string]*types.Cluster{}, families: map[string][]*types.TaskDefinition{},
	}
	if f.work, err = os.MkdirTemp("", "ecsfake-"); err != nil {
		return nil, fmt.Errorf("make a directory for tasks: %w", err)
	}
	if err := unix.Mount("ecsfake", f.work, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return nil, errors.Join(fmt.Errorf("mount a memory disk for tasks: %w", err), os.Remove(f.work))
	}
	if err := os.Mkdir(f.rootDirectory(), 0o700); err != nil {
		return nil, fmt.Errorf("make a directory for tasks: %w", err)
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	if options.Front != "" {
		if err := f.relayFront(); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

// rootDirectory is where every container builds its root, each in its own mount namespace.
func (f *Fake) rootDirectory() string { return filepath.Join(f.work, "root") }

// Close kills every task and waits until all is over.
func (f *Fake) Close() {
	f.cancel()
	f.change(func() {
		for _, t := range f.tasks {
			f.stopTask(t, types.TaskStopCodeUserInitiated, errClosed.Error())
		}
		for _, b := range f.balancers {
			b.close()
		}
	})
	if f.relay != nil {
		f.relay.Close()
	}
	f.wait.Wait()
	_ = unix.Unmount(f.work, unix.MNT_DETACH) // it goes with the process at the latest
	os.Remove(f.work)
}

// Front is Options.Front as tasks reach it; so does a function in the same network.
func (f *Fake) Front() string { return f.front }

// Resolve gives the address of a balancer by the name that tasks know it by.
func (f *Fake) Resolve(name string) (netip.Addr, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range f.balancers {
		if strings.EqualFold(name, b.dnsName()) {
			return b.address, true
		}
	}
	return netip.Addr{}, false
}

// relayFront makes the front, which listens on this process's loopback, reachable for tasks.
func (f *Fake) relayFront() error {
	target, err := url.Parse(f.options.Front)
	if err != nil || target.Scheme != "http" || target.Port() == "" {
		return fmt.Errorf("the front's URL %q is not http://HOST:PORT (%w)", f.options.Front, err)
	}
	f.relay, err = new(net.ListenConfig).Listen(f.ctx, "tcp4", netip.AddrPortFrom(f.network.Gateway(), 0).String())
	if err != nil {
		return fmt.Errorf("listen for tasks that call AWS: %w", err)
	}
	f.front = "http://" + f.relay.Addr().String()
	f.run(func() {
		serve(f.relay, func(conn net.Conn) {
			onward, err := new(net.Dialer).DialContext(f.ctx, "tcp", target.Host)
			if err != nil {
				conn.Close()
				return
			}
			stop := context.AfterFunc(f.ctx, func() { conn.Close(); onward.Close() })
			defer stop()
			join(conn, onward)
		})
	})
	return nil
}

// run starts a goroutine that Close waits for.
func (f *Fake) run(work func()) { f.wait.Go(work) }

// change makes a change and wakes everybody who waits for one.
func (f *Fake) change(make func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	make()
	f.wake()
}

// wake wakes everybody who waits for a change. The lock is held.
func (f *Fake) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// await waits until a condition holds, which is asked with the lock held, or the time is over (0: never), and
// says whether it holds.
func (f *Fake) await(limit time.Duration, condition func() bool) bool {
	var timeout <-chan time.Time
	if limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		timeout = timer.C
	}
	for {
		f.mu.Lock()
		done, changed := condition(), f.changed
		f.mu.Unlock()
		if done {
			return true
		}
		select {
		case <-changed:
		case <-timeout:
			return false
		case <-f.ctx.Done():
			return false
		}
	}
}

// pause waits; false says that the double is closed.
func (f *Fake) pause(length time.Duration) bool {
	timer := time.NewTimer(length)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-f.ctx.Done():
		return false
	}
}

// seconds are as long as Options.Second says.
func (f *Fake) seconds(n int32) time.Duration { return time.Duration(n) * f.options.Second }

// number gives the next of the numbers that make names unique. The lock is held.
func (f *Fake) number() int {
	f.serial++
	return f.serial
}

// arn spells the name of something of a service.
func (f *Fake) arn(service, resource string) string {
	return fmt.Sprintf("arn:aws:%s:%s:%s:%s", service, f.options.Region, f.options.Account, resource)
}

// apiError is a refusal, with AWS's code.
type apiError struct{ code, message string }

// Error gives code and message.
func (e *apiError) Error() string { return e.code + ": " + e.message }

// refuse makes a refusal.
func refuse(code, format string, arguments ...any) error {
	return &apiError{code, fmt.Sprintf(format, arguments...)}
}

// unsupported refuses what the double does not do; it stands in no answer of AWS's.
func unsupported(what string) error {
	return refuse("NotImplementedByDouble", "the double does not do %s", what)
}

// maxRequest bounds what is read of a request.
const maxRequest = 1 << 20

// ServeHTTP answers ECS's JSON 1.1 and Elastic Load Balancing's query protocol; who may ask is the front's business.
func (f *Fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f.ctx.Err() != nil {
		http.Error(w, errClosed.Error(), http.StatusServiceUnavailable)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if action, ok := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "AmazonEC2ContainerServiceV20141113."); ok {
		f.serveECS(w, action, body)
		return
	}
	f.serveBalancing(w, body)
}

// serveECS answers one call of ECS.
func (f *Fake) serveECS(w http.ResponseWriter, action string, body []byte) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	answer, err := f.callECS(action, body)
	if err != nil {
		refusal := &apiError{"ServerException", err.Error()}
		errors.As(err, &refusal)
		f.options.Log("ecs %s: %v", action, err)
		w.WriteHeader(http.StatusBadRequest)
		answer = map[string]string{"__type": refusal.code, "message": refusal.message}
	}
	_ = json.NewEncoder(w).Encode(answer) // the caller has gone away
}
