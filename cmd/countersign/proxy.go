package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"countersign.dev/agent"
	"countersign.dev/api"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/proxy"
)

type proxyCmd struct {
	Server       string        `required:"" placeholder:"URL" help:"The control plane: https://HOST:PORT."`
	CAPin        string        `required:"" name:"ca-pin" placeholder:"sha256:HEX" help:"The root of the mesh, as 'countersign ca show' prints it. No other server is spoken to."`
	TokenFile    string        `required:"" placeholder:"F" help:"A file with a join token. It is read for the first certificate, and again when the certificate has expired."`
	State        string        `required:"" placeholder:"DIR" help:"Where key, certificate, bundle and the last Plan are kept (0700); one directory an instance."`
	Instance     string        `required:"" placeholder:"NAME" help:"The name of this instance, unique in its service: the task's or the host's."`
	Address      string        `required:"" placeholder:"IP" help:"This task's own address: inbound listeners are bound to it and peers are told it. Never a wildcard."`
	AppAddress   string        `default:"127.0.0.1" placeholder:"IP" help:"The loopback address where the application is and outbound listeners are bound. Default: ${default}."`
	Admin        string        `placeholder:"IP:PORT" help:"A loopback address for /stats, /metrics, /healthz, /ready, /certs, /plan and /drain_listeners. Default: none."`
	AccessLog    string        `placeholder:"FILE" help:"Write one JSON line a request or connection there; - is standard output. SIGHUP opens the file again. Default: none."`
	DrainTimeout time.Duration `default:"30s" help:"How long SIGTERM waits for what is under way. Default: ${default}."`
	Engine       string        `enum:"builtin,nginx,haproxy" default:"builtin" help:"What carries the traffic: ${enum}. The other two are programs of this machine that are supervised. Default: ${default}."`
	EnginePath   string        `placeholder:"FILE" help:"The program of --engine nginx or haproxy. Default: the one on PATH."`
	RunDir       string        `placeholder:"DIR" help:"Where --engine nginx or haproxy finds its key, configuration and sockets, in a fresh directory (0700) below this one; it has to be on a memory file system. Default: the first of $XDG_RUNTIME_DIR, /run and /dev/shm that is."`
	KeysOnDisk   bool          `name:"allow-keys-on-disk" help:"Let --run-dir be on another file system, so that private keys may come to a disk."`
	Bind         []string      `sep:"none" placeholder:"NAME=IP:PORT" help:"Replaces one address: inbound/PORT or outbound/PORT is bound, app/PORT is where the application is. May be repeated."`
}

// Help is what --help adds.
func (proxyCmd) Help() string {
	return `The sidecar of one instance of a service or gateway. It makes its own key, obtains a certificate with the
join token, renews it in time, and carries the traffic of its application as the specification says. It
serves on when the control plane is away, for as long as its certificate lives, and after a restart from
what --state holds.

With --engine nginx or haproxy a real NGINX or HAProxy carries the traffic: it is started, tested, told of each
new certificate and Plan by a reload, seen by handshakes to serve them, and started again when it ends. Its
private key is in a memory file system only. A Plan that it cannot carry out is refused, and the one before stays
in force; /ready and the server say so. See docs/nginx-haproxy.md.

SIGTERM drains: peers are told to go elsewhere, what runs is finished, up to --drain-timeout. A second
signal ends at once. The exit status is 1 when the server refuses the first enrolment for good; whatever
passes by itself is waited for.

Examples:
  (umask 077; countersign token create colorteller > /run/secrets/token)
  countersign proxy --server https://10.0.0.5:8443 --ca-pin sha256:5e0c... --token-file /run/secrets/token \
    --state /var/lib/countersign --instance colorteller-1 --address 10.0.1.17 --admin 127.0.0.1:9901
  countersign proxy --engine nginx --run-dir /dev/shm --server https://10.0.0.5:8443 --ca-pin sha256:5e0c... \
    --token-file /run/secrets/token --state /var/lib/countersign --instance colorteller-1 --address 10.0.1.17
  curl http://127.0.0.1:9901/stats?filter=ssl`
}

// proxySettings are the command line after it was checked.
type proxySettings struct {
	server     *url.URL
	address    netip.Addr
	appAddress netip.Addr
	admin      netip.AddrPort // zero: none
	binds      map[string]string
}

// check reads what kong cannot check.
func (c proxyCmd) check() (*proxySettings, error) {
	s := &proxySettings{binds: make(map[string]string)}
	var err error
	if s.server, err = url.Parse(c.Server); err != nil {
		return nil, usagef("--server %q is not of the form https://HOST:PORT", c.Server)
	}
	if err := mtls.CheckPin(c.CAPin); err != nil {
		return nil, usagef("--ca-pin: %w", err)
	}
	if err := agent.CheckInstance(c.Instance); err != nil {
		return nil, usagef("--instance: %w", err)
	}
	if s.address, err = ownAddress("--address", c.Address); err != nil {
		return nil, err
	}
	s.appAddress, err = netip.ParseAddr(c.AppAddress)
	if s.appAddress = s.appAddress.Unmap(); err != nil || !s.appAddress.IsLoopback() {
		return nil, usagef("--app-address %q is not a loopback address; whoever reaches an outbound listener speaks as this instance", c.AppAddress)
	}
	if c.Admin != "" {
		if s.admin, err = netip.ParseAddrPort(c.Admin); err != nil || !s.admin.Addr().IsLoopback() {
			return nil, usagef("--admin %q is not the IP:PORT of a loopback address; it asks nobody who he is", c.Admin)
		}
	}
	if c.DrainTimeout < 0 {
		return nil, usagef("--drain-timeout %s is negative", c.DrainTimeout)
	}
	for _, text := range c.Bind {
		if err := s.bind(text); err != nil {
			return nil, err
		}
	}
	return s, c.checkEngine()
}

// ownAddress reads an address that peers can be told.
func ownAddress(flag, text string) (netip.Addr, error) {
	address, err := netip.ParseAddr(text)
	address = address.Unmap() // ::ffff:0.0.0.0 is a wildcard, too
	if err != nil || address.IsUnspecified() || address.IsMulticast() {
		return netip.Addr{}, usagef("%s %q is not an address of this task: inbound listeners are bound to it and peers are told it, so that it is never a wildcard", flag, text)
	}
	return address, nil
}

var bindForm = regexp.MustCompile(`^(inbound|outbound|app)/([1-9][0-9]{0,4})=(.+)$`)

// bind reads one --bind.
func (s *proxySettings) bind(text string) error {
	parts := bindForm.FindStringSubmatch(text)
	if parts == nil {
		return usagef("--bind %q is not inbound/PORT=IP:PORT, outbound/PORT=IP:PORT or app/PORT=IP:PORT", text)
	}
	name, side, value := parts[1]+"/"+parts[2], parts[1], parts[3]
	address, err := netip.ParseAddrPort(value)
	address = netip.AddrPortFrom(address.Addr().Unmap(), address.Port())
	switch {
	case err != nil || address.Port() == 0 || address.Addr().IsUnspecified():
		return usagef("--bind %q: %q is not the IP:PORT of one address", text, value)
	case side != "inbound" && !address.Addr().IsLoopback():
		return usagef("--bind %q: the application's side is on a loopback address", text)
	case s.binds[name] != "":
		return usagef("--bind %s is given twice", name)
	}
	s.binds[name] = address.String()
	return nil
}

// compareBinds says which --bind replaces nothing in a Plan. The next one may have the port, so that it is no mistake yet.
func compareBinds(plan *mesh.Plan, binds map[string]string, log *slog.Logger) {
	for _, name := range idleBinds(plan, maps.Keys(binds)) {
		log.Warn("--bind replaces nothing: the specification has no such port", "bind", name, "workload", plan.Workload.Name, "revision", plan.Revision)
	}
}

// Run serves until a signal.
func (c proxyCmd) Run(p *process) error {
	settings, err := c.check()
	if err != nil {
		return err
	}
	p.warnReadable("--token-file", c.TokenFile)
	tuneMemory(p.ctx, p.log)
	access, err := openAccessLog(c.AccessLog, p.stdout)
	if err != nil {
		return err
	}
	defer access.Close()
	s, err := c.newSidecar(p, settings, access.writer())
	if err != nil {
		return err
	}
	stop := access.reopenOn(syscall.SIGHUP, p.log)
	defer stop()
	defer s.data.reloadOn(syscall.SIGHUP)()
	return s.run(p.ctx)
}

// sidecar is the parts of the process and how they hang together: the agent holds the identity and
// the Plan, the data plane serves by them and tells the agent what it serves.
type sidecar struct {
	log   *slog.Logger
	link  *agent.Agent
	data  plane
	admin *http.Server // nil: none
	ended chan error   // what a part that ended by itself says
	drain time.Duration
}

// newSidecar makes the parts: the state is taken first, the admin listener last.
func (c proxyCmd) newSidecar(p *process, settings *proxySettings, access io.Writer) (*sidecar, error) {
	s := &sidecar{log: p.log, ended: make(chan error, 2), drain: c.DrainTimeout}
	adminAddress := ""
	var err error
	s.link, err = agent.New(agent.Config{
		Server: settings.server, Pin: c.CAPin, TokenFile: c.TokenFile, StateDir: c.State, Instance: c.Instance, Log: p.log,
		OnPlan: func(plan *mesh.Plan) error {
			c.compareEngine(plan, p.log)
			compareBinds(plan, settings.binds, p.log)
			return s.data.apply(plan)
		},
		OnIdentity: func() { s.data.identityChanged() },
		Report: func() api.Report {
			report := s.data.report()
			report.Admin = adminAddress
			return report
		},
	})
	if errors.Is(err, agent.ErrConfig) {
		return nil, usageError{err}
	}
	if err != nil {
		return nil, err
	}
	s.data, err = c.newPlane(p, settings, s.link, access)
	if err != nil {
		return nil, errors.Join(err, s.link.Close())
	}
	if settings.admin.IsValid() {
		if adminAddress, err = s.serveAdmin(p.ctx, settings.admin); err != nil {
			return nil, errors.Join(err, s.data.close(), s.link.Close())
		}
	}
	return s, nil
}

// plane is a data plane: the built-in one, or a foreign one with who supervises it.
type plane struct {
	apply           func(*mesh.Plan) error
	identityChanged func()
	report          func() api.Report
	admin           http.Handler
	reload          func() // nil: nothing is to be read again
	shutdown        func(context.Context) error
	close           func() error // ends it at once, also after a shutdown
}

// newPlane makes the data plane that --engine names.
func (c proxyCmd) newPlane(p *process, settings *proxySettings, link *agent.Agent, access io.Writer) (plane, error) {
	if c.foreign() {
		return c.newForeignPlane(p, settings, link, access)
	}
	data, err := proxy.New(proxy.Config{
		Source: link, Address: settings.address, AppAddress: settings.appAddress, Instance: c.Instance, Binds: settings.binds,
		AccessLog: access, Log: p.log, Gauges: link.Gauges, Now: link.Now,
		Changed: link.ReportSoon,
	})
	if err != nil {
		return plane{}, err
	}
	return plane{
		apply: data.Apply, identityChanged: data.IdentityChanged, report: func() api.Report { return reportOf(data) },
		admin: data.Admin(), shutdown: data.Shutdown, close: func() error { return nil },
	}, nil
}

// reportOf is the built-in data plane's part of a report.
func reportOf(data *proxy.Proxy) api.Report {
	r := data.Report()
	return api.Report{
		Revision: r.Revision, Listening: r.Listening, PlaintextCallers: r.PlaintextCallers, Callers: r.Callers,
		Requests: r.Requests, Refused: r.Refused, Connections: r.Connections,
	}
}

// serveAdmin starts the admin listener and returns its address.
func (s *sidecar) serveAdmin(ctx context.Context, address netip.AddrPort) (at string, err error) {
	s.admin, at, err = listenAdmin(ctx, address, s.data.admin, s.log, s.ended)
	return at, err
}

// listenAdmin starts an admin listener and returns its address. An end that nobody asked for is said to ended.
func listenAdmin(ctx context.Context, address netip.AddrPort, handler http.Handler, log *slog.Logger, ended chan<- error) (*http.Server, string, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address.String())
	if err != nil {
		return nil, "", fmt.Errorf("--admin: %w; another process has it, perhaps another sidecar", err)
	}
	server := &http.Server{
		Handler:           notForPages(handler),
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			ended <- fmt.Errorf("the admin listener: %w", err)
		}
	}()
	return server, listener.Addr().String(), nil
}

// notForPages refuses what a web page makes somebody's browser ask for: under another host's name,
// which may have been pointed at 127.0.0.1, or, where something is changed, from another origin.
func notForPages(next http.Handler) http.Handler {
	next = http.NewCrossOriginProtection().Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		if address, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !address.IsLoopback()) {
			http.Error(w, "the admin listener answers only to a loopback address or localhost", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// run serves until ctx ends, and drains then.
func (s *sidecar) run(ctx context.Context) error {
	// The agent goes on while the data plane drains: what still runs may need a Plan.
	agentCtx, stopAgent := context.WithCancel(context.WithoutCancel(ctx))
	defer stopAgent()
	agentEnded := make(chan struct{})
	go func() {
		defer close(agentEnded)
		if err := s.link.Run(agentCtx); err != nil {
			s.ended <- err
		}
	}()
	var err error
	select {
	case <-ctx.Done():
		err = s.drained(agentCtx)
	case err = <-s.ended:
		now, cancel := context.WithCancel(agentCtx)
		cancel()
		_ = s.data.shutdown(now) // the error of the part that ended is the one that counts
	}
	err = errors.Join(err, s.data.close())
	if s.admin != nil {
		s.admin.Close()
	}
	stopAgent()
	<-agentEnded
	s.log.InfoContext(ctx, "stopped")
	if errors.Is(err, agent.ErrToken) {
		return usageError{err}
	}
	return err
}

const (
	// tellTimeout is how long the server is waited for when it is told of the drain.
	tellTimeout = 2 * time.Second
	// settle is the time in which the server's word reaches the peers: until then they may still
	// choose this instance, and are served.
	settle = 500 * time.Millisecond
	// sameSignal is the time in which a repeated signal is the first one's echo.
	sameSignal = 200 * time.Millisecond
)

// drained ends the data plane in good order, or at once at a second signal.
func (s *sidecar) drained(ctx context.Context) error {
	second := make(chan os.Signal, 1)
	// timeout(1) and some supervisors send the same signal to the process and to its group: that is one.
	listen := time.AfterFunc(sameSignal, func() { signal.Notify(second, syscall.SIGINT, syscall.SIGTERM) })
	defer func() {
		listen.Stop()
		signal.Stop(second)
	}()
	ctx, cancel := context.WithTimeout(ctx, s.drain)
	defer cancel()
	s.log.InfoContext(ctx, "draining", "timeout", s.drain)
	done := make(chan error, 1)
	go func() { done <- s.shutdown(ctx) }()
	select {
	case err := <-done:
		if err != nil {
			s.log.WarnContext(ctx, "drained, but not everything was finished in time", "error", err)
		}
		return nil
	case <-second:
		return exitError{exitFailure, "ended at a second signal, before everything was finished"}
	}
}

// shutdown tells the peers, then stops accepting, then waits for what runs.
func (s *sidecar) shutdown(ctx context.Context) error {
	tell, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	if err := s.link.Drain(tell); err != nil {
		s.log.InfoContext(ctx, "draining without the server's knowledge", "error", err)
	} else {
		timer := time.NewTimer(min(settle, s.drain/4))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	}
	return s.data.shutdown(ctx)
}
