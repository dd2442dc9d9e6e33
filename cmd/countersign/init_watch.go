package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"countersign.dev/agent"
	"countersign.dev/api"
	"countersign.dev/credential"
	"countersign.dev/deliver"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/reload"
)

// initWatchFlags are those of a sidecar that stays.
type initWatchFlags struct {
	Watch    bool          `help:"Stay, and deliver each new version of the secret to the proxy that runs: write, test, reload, see it served, or go back."`
	Interval time.Duration `default:"10s" help:"With --watch: how often is looked for a new version. Default: ${default}."`
	Reload   string        `placeholder:"HOW" help:"With --watch: how the proxy is told: signal:PID, pidfile:FILE, command:WORDS, or haproxy:SOCKET, the master socket. Needed."`
	Test     string        `placeholder:"COMMAND" help:"With --watch: how the proxy tests its configuration, as words or a JSON list; {} stands for the file with --conf. Default: with --conf the proxy's own test, when it is here; else none."`
	Probe    []string      `sep:"none" placeholder:"IP:PORT" help:"With --watch: a TLS listener of the proxy that has to serve the new certificate, beside those of the Plan. May be repeated."`
	Patience time.Duration `default:"30s" help:"With --watch: how long the proxy may need to test, to reload and to serve, before the version before is put in force again. Default: ${default}."`
	Retry    time.Duration `default:"1m" help:"With --watch: after how long what the proxy did not take is tried again, longer each time; a newer version is tried at once. Default: ${default}."`
	Admin    string        `placeholder:"IP:PORT" help:"With --watch: a loopback address for /stats, /metrics, /healthz, /ready, /certs and /plan. Default: none."`

	Server    string `placeholder:"URL" help:"With --watch: the control plane, https://HOST:PORT, which gives the Plans and is told what is served. Default: none."`
	CAPin     string `name:"ca-pin" placeholder:"sha256:HEX" help:"With --server: the root of the mesh, as 'countersign ca show' prints it."`
	TokenFile string `placeholder:"FILE" help:"With --server: a file with a join token."`
	State     string `placeholder:"DIR" help:"With --server: where the watcher's own key, certificate and the last Plan are kept (0700)."`
	Instance  string `placeholder:"NAME" help:"With --server: the name of this instance, unique in its service."`
}

// watching is the settings of a watcher after they were checked.
type watching struct {
	cmd    initCmd
	method reload.Method
	test   []string
	probes []netip.AddrPort
	admin  netip.AddrPort // zero: none
	server *url.URL       // nil: none
	conf   *writer        // nil: somebody else writes it
}

// checkWatch refuses flags of a watcher for one who does not stay.
func (c initCmd) checkWatch() error {
	if c.Callers && c.Conf == "" {
		return usagef("--callers belongs to --conf")
	}
	if c.Watch {
		return nil
	}
	for _, flag := range []struct{ name, value string }{
		{"--reload", c.Reload},
		{"--test", c.Test},
		{"--probe", strings.Join(c.Probe, " ")},
		{"--admin", c.Admin},
		{"--server", c.Server},
		{"--ca-pin", c.CAPin},
		{"--token-file", c.TokenFile},
		{"--state", c.State},
		{"--instance", c.Instance},
		{"--interval", other(c.Interval, 10*time.Second)},
		{"--patience", other(c.Patience, 30*time.Second)},
		{"--retry", other(c.Retry, time.Minute)},
	} {
		if flag.value != "" {
			return usagef("%s belongs to --watch", flag.name)
		}
	}
	for _, flag := range []struct{ name, value string }{
		{"--bind", strings.Join(c.Bind, " ")}, {"--endpoint", strings.Join(c.Endpoint, " ")}, {"--proxy-version", c.ProxyVersion}, {"--user", c.User},
	} {
		if flag.value != "" && c.Conf == "" {
			return usagef("%s belongs to --conf", flag.name)
		}
	}
	return nil
}

// other is a time as a text when it is not the default.
func other(given, byDefault time.Duration) string {
	if given == byDefault {
		return ""
	}
	return given.String()
}

// watching reads what kong cannot check.
func (c initCmd) watching(p *process) (*watching, error) {
	s := &watching{cmd: c}
	if !c.fromStore() {
		return nil, usagef("--watch follows a store: the environment of a process never changes; write --from file:DIR or secretsmanager:NAME")
	}
	switch {
	case c.Version != "":
		return nil, usagef("--watch follows the current version; leave --version out")
	case c.Engine == "":
		return nil, usagef("--watch: which proxy? Write --engine nginx or --engine haproxy")
	case c.Reload == "":
		return nil, usagef("--watch: how is the proxy told? Write --reload signal:PID, pidfile:FILE, command:WORDS or haproxy:SOCKET")
	case c.Interval < 100*time.Millisecond || c.Patience < time.Second || c.Retry < time.Second:
		return nil, usagef("--interval is at least 100ms, --patience and --retry at least 1s")
	}
	proxy, _ := reload.Known(c.Engine) // the flag's enum leaves no other
	var err error
	if s.method, err = proxy.Parse(c.Reload); err != nil {
		return nil, usagef("--reload: %w", err)
	}
	for _, text := range c.Probe {
		address, err := netip.ParseAddrPort(text)
		if err != nil || address.Port() == 0 || address.Addr().IsUnspecified() {
			return nil, usagef("--probe %q is not the IP:PORT of a listener", text)
		}
		s.probes = append(s.probes, address)
	}
	if c.Admin != "" {
		if s.admin, err = netip.ParseAddrPort(c.Admin); err != nil || !s.admin.Addr().IsLoopback() {
			return nil, usagef("--admin %q is not the IP:PORT of a loopback address; it asks nobody who he is", c.Admin)
		}
	}
	if err := s.checkServer(); err != nil {
		return nil, err
	}
	var last []string
	s.conf, err = c.writer(c.To, s.server != nil, func(notes []string) {
		if !slices.Equal(notes, last) {
			last = notes
			writeNotes(p, notes)
		}
	})
	if err != nil {
		return nil, err
	}
	if _, master := s.method.(reload.Master); c.Engine == reload.HAProxy.Name && !master && (c.CRL != "" || s.conf != nil) {
		p.log.WarnContext(p.ctx, "HAProxy's older workers serve who is revoked on connections that are open, until they end by themselves; only its master socket says which they are, so that they can be ended: --reload haproxy:SOCKET")
	}
	return s, errors.Join(s.chooseTest(p, proxy), s.checkReload(p))
}

// checkServer reads the flags about the control plane.
func (s *watching) checkServer() error {
	c := s.cmd
	if c.Server == "" {
		for _, flag := range []struct{ name, value string }{
			{"--ca-pin", c.CAPin}, {"--token-file", c.TokenFile}, {"--state", c.State}, {"--instance", c.Instance},
		} {
			if flag.value != "" {
				return usagef("%s belongs to --server", flag.name)
			}
		}
		return nil
	}
	if c.CAPin == "" || c.TokenFile == "" || c.State == "" || c.Instance == "" {
		return usagef("--server needs --ca-pin, --token-file, --state and --instance")
	}
	var err error
	if s.server, err = url.Parse(c.Server); err != nil || s.server.Scheme != "https" || s.server.Host == "" {
		return usagef("--server %q is not of the form https://HOST:PORT", c.Server)
	}
	if err := mtls.CheckPin(c.CAPin); err != nil {
		return usagef("--ca-pin: %w", err)
	}
	if err := agent.CheckInstance(c.Instance); err != nil {
		return usagef("--instance: %w", err)
	}
	_, err = ownAddress("--address", c.Address)
	return err
}

// chooseTest says how the proxy tests its files.
func (s *watching) chooseTest(p *process, proxy reload.Proxy) error {
	c := s.cmd
	var err error
	switch {
	case c.Test != "" && c.Test != "none":
		if s.test, err = reload.ParseCommand(c.Test); err != nil {
			return usagef("--test: %w", err)
		}
		if has := slices.ContainsFunc(s.test, func(word string) bool { return strings.Contains(word, "{}") }); has != (s.conf != nil) {
			return usagef("--test %q: {} stands for the configuration that is written with --conf, and for nothing else", c.Test)
		}
		return runnable("--test", s.test)
	case c.Test == "" && s.conf != nil:
		if path, err := exec.LookPath(proxy.Name); err == nil {
			s.test = proxy.TestCommand(path, "{}")
			break
		}
		fallthrough
	default:
		p.log.WarnContext(p.ctx, "new files are not tested before they are in force; when the proxy refuses them, the ones before come back", "proxy", proxy.Name)
	}
	return nil
}

// checkTester refuses to test what another user can change: a proxy's test does what its configuration says, such as loading
// a module, as the user of this process.
func (s *watching) checkTester(owner, euid int) error {
	if s.conf == nil || len(s.test) == 0 || owner < 0 || owner == euid {
		return nil
	}
	return usagef("--owner %d: this is the user %d, as whom the proxy would test a configuration that user %d can change, and do what it says; run init --watch as user %d and leave --owner out, or test nothing: --test none",
		owner, euid, owner, owner)
}

// foreignProxy is the proxy that is told. It is a [deliver.Proxy].
type foreignProxy struct {
	method reload.Method
	test   []string
}

// Test runs the proxy's own test.
func (f foreignProxy) Test(ctx context.Context, configuration string) error {
	if len(f.test) == 0 {
		return nil
	}
	words := slices.Clone(f.test)
	for i := range words {
		words[i] = strings.ReplaceAll(words[i], "{}", configuration)
	}
	return reload.Test(ctx, words)
}

// Reload tells the proxy.
func (f foreignProxy) Reload(ctx context.Context) error { return f.method.Reload(ctx) }

// listeners are where the proxy serves.
func (s *watching) listeners(plan *mesh.Plan) []deliver.Listener {
	var all []deliver.Listener
	name := ""
	if len(s.cmd.ExpectName) > 0 {
		name = s.cmd.ExpectName[0]
	}
	for _, address := range s.probes {
		all = append(all, deliver.Listener{Address: address.String(), TLS: true, Own: true, ServerName: name})
	}
	if plan == nil || s.conf == nil && s.server == nil {
		return all
	}
	o := s.conf.optionsOr(s.cmd.initEngineFlags)
	for _, in := range plan.Inbound {
		address, err := netip.ParseAddrPort(o.Inbound(in.Port))
		if err != nil {
			continue // the options were checked
		}
		if address.Addr().IsUnspecified() {
			address = netip.AddrPortFrom(o.Loopback, address.Port())
		}
		all = append(all, deliver.Listener{
			Port: in.Port, Address: address.String(), TLS: in.TLS != mesh.Off, Own: in.Certificate == nil,
			Client: in.ClientAuth != mesh.None, Bytes: in.Protocol == mesh.TCP, ServerName: cmp.Or(plan.Certificate.DNSIdentity, plan.Workload.Identity.ServerName()),
		})
	}
	return all
}

// watch stays until a signal.
func (c initCmd) watch(p *process, out credential.Output) (err error) {
	s, err := c.watching(p)
	if err != nil {
		return err
	}
	if err := s.checkTester(out.UID, os.Geteuid()); err != nil {
		return err
	}
	if s.conf != nil {
		if err := deliver.CheckPlan(s.conf.plan, c.ExpectID); err != nil {
			return err
		}
	}
	source, err := c.openStore(p.ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	if s.conf != nil {
		if err := s.conf.place(p.ctx); err != nil {
			return err
		}
	}
	cfg := deliver.Config{
		Output: out, Source: source, Proxy: foreignProxy{s.method, s.test}, Prober: deliver.Handshakes{}, Expect: c.expect,
		Listeners: s.listeners, Interval: c.Interval, Patience: c.Patience, Retry: c.Retry, AcceptRevoked: c.AcceptRevoked, Log: p.log,
	}
	if master, ok := s.method.(interface {
		Older(ctx context.Context) (*reload.OldWorkers, error)
	}); ok {
		cfg.Older = func(ctx context.Context) (deliver.EndOlder, error) {
			old, err := master.Older(ctx)
			if err != nil {
				return nil, err
			}
			return old.End, nil
		}
	}
	if s.conf != nil {
		link, err := s.conf.prepare()
		if err != nil {
			return err
		}
		if err := link.put(); err != nil {
			return err
		}
		cfg.Plan, cfg.File, cfg.Render = s.conf.plan, s.conf.name, s.conf.text
	}
	w := &watchdog{log: p.log, ended: make(chan error, 3)}
	w.callers = s.callers(p.ctx, w, out.UID)
	switch {
	case s.server != nil && c.CRL != "":
		return usagef("--crl: the control plane gives the revocation lists; leave --crl or --server out")
	case s.server != nil:
		cfg.Revocation, cfg.Await = w.lists, firstPlan
	default:
		cfg.Revocation = func(plan *mesh.Plan) ([]byte, error) {
			if c.CRL != "" || plan == nil || !plan.Revocation.Check {
				return c.lists()
			}
			return deliver.KeptLists(c.To)
		}
	}
	cfg.Changed = w.changed
	return w.run(p, s, cfg)
}

// watchdog is the parts of the process: the watcher delivers, and the agent gives it Plans and tells the server what is served.
type watchdog struct {
	log     *slog.Logger
	watcher *deliver.Watcher
	callers *deliver.Callers // nil: the proxy does not tell who calls
	link    *agent.Agent     // nil: there is no server
	admin   *http.Server     // nil: none
	ended   chan error
}

// run makes the parts, and ends them in order.
func (w *watchdog) run(p *process, s *watching, cfg deliver.Config) (err error) {
	address := ""
	if s.server != nil {
		c := s.cmd
		p.warnReadable("--token-file", c.TokenFile)
		w.link, err = agent.New(agent.Config{
			Server: s.server, Pin: c.CAPin, TokenFile: c.TokenFile, StateDir: c.State, Instance: c.Instance, Log: p.log, Foreign: true,
			OnPlan:     func(plan *mesh.Plan) error { return w.watcher.Take(plan) },
			OnIdentity: func() { w.watcher.Wake() },
			Report:     func() api.Report { return w.report(address) },
		})
		if errors.Is(err, agent.ErrConfig) {
			return usageError{err}
		}
		if err != nil {
			return err
		}
	}
	if w.watcher, err = deliver.New(cfg); err != nil {
		return errors.Join(err, w.close())
	}
	if s.admin.IsValid() {
		if address, err = w.serveAdmin(p.ctx, s.admin); err != nil {
			return errors.Join(err, w.watcher.Close(), w.close())
		}
		defer w.admin.Close()
	}
	// The agent goes on while the server is told that this instance ends.
	agentCtx, stopAgent := context.WithCancel(context.WithoutCancel(p.ctx))
	defer stopAgent()
	watchCtx, stopWatcher := context.WithCancel(p.ctx)
	defer stopWatcher()
	parts := 1
	done := make(chan struct{}, 3)
	go func() { w.ended <- w.watcher.Run(watchCtx); done <- struct{}{} }()
	if w.link != nil {
		parts++
		go func() {
			if err := w.link.Run(agentCtx); err != nil {
				w.ended <- err
			}
			done <- struct{}{}
		}()
	}
	if w.callers != nil {
		parts++
		go func() { w.callers.Run(watchCtx); done <- struct{}{} }()
	}
	if s.conf != nil && s.conf.plan != nil && s.server == nil {
		go s.followPlan(watchCtx, w)
	}
	select {
	case <-p.ctx.Done():
		w.drain(agentCtx)
	case err = <-w.ended:
	}
	stopWatcher()
	stopAgent()
	for range parts {
		<-done
	}
	w.log.InfoContext(p.ctx, "stopped")
	if errors.Is(err, agent.ErrToken) {
		return usageError{err}
	}
	return err
}

// lists are the revocation lists of the control plane. Both programs refuse everybody when the list of an authority is missing:
// until all are there, those in force stay.
func (w *watchdog) lists(plan *mesh.Plan) ([]byte, error) {
	switch {
	case plan == nil:
		return nil, errors.New("without a plan it is not known whether callers are looked up in revocation lists")
	case !plan.Revocation.Check:
		return nil, nil
	}
	identity, err := w.link.Identity()
	if err == nil && identity.Revocation == nil {
		err = errors.New("the control plane has not given them yet")
	}
	if err != nil {
		return nil, fmt.Errorf("the revocation lists are not known: %w", err)
	}
	authorities := identity.Bundle.Roots()
	if status := w.watcher.Status(); len(status.Chain) > 0 {
		authorities = append(status.Chain[1:len(status.Chain):len(status.Chain)], status.Roots...)
	}
	problem := identity.Revocation.Problem(authorities, w.link.Now())
	if problem != nil && identity.Revocation.Stale == mesh.StaleServe {
		return nil, nil // the agent says so, too
	}
	for _, authority := range authorities {
		if _, _, ok := identity.Revocation.CRLs.Covers(authority); !ok {
			return nil, fmt.Errorf("there is no revocation list of %q, and the proxy would refuse everybody without it", authority.Subject.String())
		}
	}
	return identity.Revocation.CRLs.PEM(), nil
}

// drain tells the server that the proxy ends with its watcher.
func (w *watchdog) drain(ctx context.Context) {
	if w.link == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	if err := w.link.Drain(ctx); err != nil {
		w.log.InfoContext(ctx, "ending without the server's knowledge", "error", err)
	}
}

// close frees the agent's state when it does not run.
func (w *watchdog) close() error {
	if w.link == nil {
		return nil
	}
	return w.link.Close()
}

// serveAdmin starts the admin listener and returns its address.
func (w *watchdog) serveAdmin(ctx context.Context, address netip.AddrPort) (string, error) {
	var further func() map[string]int64
	if w.link != nil {
		further = w.link.Gauges
	}
	server, at, err := listenAdmin(ctx, address, w.watcher.Admin(further), w.log, w.ended)
	w.admin = server
	return at, err
}

// watchReport is what the server is told: the serial is the one that was seen on the wire.
func watchReport(s deliver.Status, admin string) api.Report {
	r := api.Report{Serial: s.Serial, NotAfter: s.NotAfter, LastRenewal: s.Since, Listening: s.Listening, Problem: s.Problems(), Admin: admin}
	if s.Plan != nil {
		r.Revision = s.Plan.Revision
	}
	return r
}
