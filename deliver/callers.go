package deliver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"countersign.dev/api"
	"countersign.dev/engine"
	"countersign.dev/mesh"
	"countersign.dev/reload"
)

// CallersConfig is what [Callers] work with. All but Changed must be set.
type CallersConfig struct {
	// Engine is the proxy, whose configuration was rendered with [engine.Options.Callers].
	Engine mesh.Engine
	// Run is the proxy's run directory, absolute.
	Run string
	// Owner is the user as whom the proxy connects to the socket, -1 when it is this process's.
	Owner int
	// Plan is the one in force, nil before the first.
	Plan func() *mesh.Plan
	// Changed is told that a caller came for the first time, or with another serial. It may be nil, and returns quickly.
	Changed func()
	Log     *slog.Logger
}

// Callers learns from the proxy itself who calls with which certificate. What came while nobody listened to NGINX is not
// known, and comes again with the next connection; HAProxy's table outlives who reads it. [Callers.Run] is called once; all
// else may be called from any goroutine.
type Callers struct {
	cfg CallersConfig

	problem string // of the goroutine of Run

	mu   sync.Mutex
	seen map[string]sight // guarded by mu, by SPIFFE ID
}

// sight is what a caller presented last, since when, and what it presented before that.
type sight struct {
	api.Caller
	since  time.Time
	before string
}

const (
	// oldWorkers is how long handshakes with the certificate of before do not count once another one was seen: the workers
	// that an NGINX or HAProxy replaces go on connecting until they have drained. One that is seen later was put back.
	oldWorkers = 45 * time.Second
	// listenAgain is between two looks at the socket, or at the table.
	listenAgain = time.Second
	// mostTable is the greatest length of HAProxy's answer in bytes.
	mostTable = 4 << 20
	// mostDatagram is the greatest length of NGINX's datagrams in bytes: a subject has a few hundred.
	mostDatagram = 4 << 10
)

// NewCallers begins with nobody.
func NewCallers(cfg CallersConfig) *Callers {
	return &Callers{cfg: cfg, seen: make(map[string]sight)}
}

// Report tells whom the proxy has seen, by SPIFFE ID, with the certificate that was presented last.
func (c *Callers) Report() map[string]api.Caller {
	c.mu.Lock()
	defer c.mu.Unlock()
	report := make(map[string]api.Caller, len(c.seen))
	for identity, s := range c.seen {
		report[identity] = s.Caller
	}
	return report
}

// Run learns until the context ends. What goes wrong is said in the log, and tried again.
func (c *Callers) Run(ctx context.Context) {
	look, end := c.table, func() {}
	if c.cfg.Engine == mesh.EngineNGINX {
		var s socket
		look = func(ctx context.Context) error { return s.keep(ctx, c) }
		end = func() { s.close() }
	}
	defer end()
	ticker := time.NewTicker(listenAgain)
	defer ticker.Stop()
	for {
		c.note(ctx, look(ctx))
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// note says what is wrong when it is new. It is no alarm: a proxy that starts has no socket yet.
func (c *Callers) note(ctx context.Context, err error) {
	text := ""
	if err != nil && ctx.Err() == nil {
		text = err.Error()
	}
	if text != "" && text != c.problem {
		c.cfg.Log.InfoContext(ctx, "it is not known at this moment who calls the proxy", "error", err)
	}
	c.problem = text
}

// domain is the trust domain whose members are known by their subjects; empty before the first Plan.
func (c *Callers) domain() string {
	if plan := c.cfg.Plan(); plan != nil {
		return plan.TrustDomain
	}
	return ""
}

// presented remembers the serial of a caller. Whoever looks at the proxy as the workload itself is no peer.
func (c *Callers) presented(call engine.Call, at time.Time) {
	if plan := c.cfg.Plan(); plan == nil || call.Identity == plan.Workload.Identity.String() {
		return
	}
	c.mu.Lock()
	before, known := c.seen[call.Identity]
	old := call.Serial == before.before && at.Before(before.since.Add(oldWorkers))
	if known && (at.Before(before.Seen) || old) {
		c.mu.Unlock()
		return
	}
	if !known && len(c.seen) >= engine.MostCallers {
		c.forgetOne()
	}
	now := sight{Caller: api.Caller{Serial: call.Serial, Seen: at}, since: before.since, before: before.before}
	if call.Serial != before.Serial {
		now.since, now.before = at, before.Serial
	}
	c.seen[call.Identity] = now
	c.mu.Unlock()
	if before.Serial != call.Serial && c.cfg.Changed != nil {
		c.cfg.Changed()
	}
}

// forgetOne forgets who was not seen for the longest time. The caller holds mu.
func (c *Callers) forgetOne() {
	oldest := ""
	for identity, caller := range c.seen {
		if oldest == "" || caller.Seen.Before(c.seen[oldest].Seen) {
			oldest = identity
		}
	}
	delete(c.seen, oldest)
}

// table takes in what HAProxy has noted. A worker that has just started has noted nothing.
func (c *Callers) table(ctx context.Context) error {
	domain := c.domain()
	if domain == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	answer, err := reload.Ask(ctx, filepath.Join(c.cfg.Run, engine.StatsSocket), "show table "+engine.CallersTable, mostTable)
	if err != nil {
		return err
	}
	for _, call := range engine.ParseTable(domain, answer, time.Now()) {
		c.presented(call, call.Seen)
	}
	return nil
}

// socket is where NGINX sends.
type socket struct {
	path  string
	conn  *net.UnixConn // nil: none
	file  os.FileInfo   // of conn
	ended chan struct{} // is closed when nobody reads from conn any more
}

// keep sees to it that somebody listens: the directory is made anew with the proxy.
func (s *socket) keep(ctx context.Context, c *Callers) error {
	s.path = filepath.Join(c.cfg.Run, engine.CallersSocket)
	if s.conn != nil {
		if s.isThere() {
			return nil
		}
		s.close()
	}
	conn, file, err := listenAt(ctx, s.path, c.cfg.Owner)
	if err != nil {
		return fmt.Errorf("listening to NGINX: %w", err)
	}
	ended := make(chan struct{})
	s.conn, s.file, s.ended = conn, file, ended
	go func() { c.read(conn); close(ended) }()
	return nil
}

// isThere tells whether NGINX finds the socket, and somebody reads from it.
func (s *socket) isThere() bool {
	select {
	case <-s.ended:
		return false
	default:
	}
	there, err := os.Lstat(s.path)
	return err == nil && os.SameFile(there, s.file)
}

// listenAt binds a datagram socket that only its owner may send to. It is bound beside its place, so that it has its owner before
// anybody finds it, and replaces what a watcher that was killed has left. The directory may be the proxy's, which is believed
// nothing: what stands there under the name is not touched through a link.
func listenAt(ctx context.Context, path string, owner int) (_ *net.UnixConn, file os.FileInfo, err error) {
	temp := path + ".new"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	config := net.ListenConfig{Control: narrow}
	packets, err := config.ListenPacket(ctx, "unixgram", temp)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, packets.Close())
			_ = os.Remove(temp) // it is only litter
		}
	}()
	conn, ok := packets.(*net.UnixConn)
	if !ok {
		return nil, nil, errors.New("that is no UNIX socket")
	}
	if runtime.GOOS != "linux" { // where the mode of a socket is not its file's
		if err := os.Chmod(temp, socketMode); err != nil {
			return nil, nil, err
		}
	}
	if owner >= 0 {
		if err := os.Lchown(temp, owner, -1); err != nil {
			return nil, nil, err
		}
	}
	if file, err = os.Lstat(temp); err != nil {
		return nil, nil, err
	}
	if file.Mode() != fs.ModeSocket|socketMode {
		return nil, nil, fmt.Errorf("%s is not the socket that was just made there (%s)", temp, file.Mode())
	}
	return conn, file, os.Rename(temp, path)
}

const socketMode = 0o600

// narrow gives a socket the mode that Linux makes its file with, before it is bound: the name may be a link to
// something else a moment later.
func narrow(_, _ string, socket syscall.RawConn) error {
	if runtime.GOOS != "linux" {
		return nil
	}
	var failed error
	err := socket.Control(func(fd uintptr) { failed = syscall.Fchmod(int(fd), socketMode) })
	return errors.Join(err, failed)
}

// close stops listening.
func (s *socket) close() {
	if s.conn == nil {
		return
	}
	if there, err := os.Lstat(s.path); err == nil && os.SameFile(there, s.file) {
		_ = os.Remove(s.path) // it is only litter
	}
	_ = s.conn.Close() // nothing was written to it
	<-s.ended
	s.conn = nil
}

// read takes in datagrams until the socket is closed, or broken.
func (c *Callers) read(conn *net.UnixConn) {
	buffer := make([]byte, mostDatagram)
	for {
		n, err := conn.Read(buffer)
		if err != nil {
			return
		}
		if call, ok := engine.ParseDatagram(c.domain(), buffer[:n]); ok {
			c.presented(call, time.Now())
		}
	}
}
