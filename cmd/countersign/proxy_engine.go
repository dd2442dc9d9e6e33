package main

import (
	"cmp"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"time"

	"countersign.dev/agent"
	"countersign.dev/haproxy"
	"countersign.dev/mesh"
	"countersign.dev/nginx"
	"countersign.dev/supervise"
)

// foreignEngines are the programs that can be in the place of the built-in proxy.
var foreignEngines = map[mesh.Engine]supervise.Kind{
	mesh.EngineNGINX:   {Engine: supervise.NGINX, Render: nginx.Render, Least: nginx.LeastVersion},
	mesh.EngineHAProxy: {Engine: supervise.HAProxy, Render: haproxy.Render, Least: haproxy.LeastVersion},
}

// foreign tells whether another program carries the traffic. The zero value does not.
func (c proxyCmd) foreign() bool { _, ok := foreignEngines[mesh.Engine(c.Engine)]; return ok }

// compareEngine says when the specification means another proxy than --engine: what it can carry out was judged for that
// one, and 'countersign verify' expects that one's ways. Whoever starts the sidecar decides.
func (c proxyCmd) compareEngine(plan *mesh.Plan, log *slog.Logger) {
	said, runs := cmp.Or(plan.Proxy.Engine, mesh.EngineBuiltin), cmp.Or(mesh.Engine(c.Engine), mesh.EngineBuiltin)
	if said != runs {
		log.Warn("the specification says another proxy than --engine", "specification", said, "engine", runs, "revision", plan.Revision)
	}
}

// checkEngine reads what belongs to --engine.
func (c proxyCmd) checkEngine() error {
	if c.foreign() {
		if c.DrainTimeout < time.Second {
			return usagef("--drain-timeout %s is less than 1s, and %s counts whole seconds", c.DrainTimeout, c.Engine)
		}
		return nil
	}
	for flag, given := range map[string]bool{"--engine-path": c.EnginePath != "", "--run-dir": c.RunDir != "", "--allow-keys-on-disk": c.KeysOnDisk} {
		if given {
			return usagef("%s says something about another program, and --engine names none", flag)
		}
	}
	return nil
}

// newForeignPlane finds the program, and a place for its key.
func (c proxyCmd) newForeignPlane(p *process, settings *proxySettings, link *agent.Agent, access io.Writer) (plane, error) {
	foreign := foreignEngines[mesh.Engine(c.Engine)]
	binary, err := foreign.Find(p.ctx, c.EnginePath)
	if err != nil {
		return plane{}, usageError{err}
	}
	binds := make(map[string]netip.AddrPort)
	for name, text := range settings.binds {
		if binds[name], err = netip.ParseAddrPort(text); err != nil {
			return plane{}, usagef("--bind %s: %w", name, err)
		}
	}
	run, err := supervise.NewRunDir(c.RunDir, c.KeysOnDisk, p.log)
	if err != nil {
		return plane{}, usageError{err}
	}
	data, err := supervise.New(supervise.Config{
		Binary: binary, Render: foreign.Render, Source: link, RunDir: run,
		Address: settings.address, AppAddress: settings.appAddress, Binds: binds, Drain: c.DrainTimeout,
		AccessLog: access, Log: p.log, Gauges: link.Gauges, Now: link.Now, Changed: link.ReportSoon,
	})
	if err != nil {
		return plane{}, errors.Join(err, run.Remove())
	}
	p.log.Info("supervising another program", "engine", c.Engine, "path", binary.Path, "version", binary.Version, "openssl", binary.OpenSSL, "runDir", run.Path)
	return plane{
		apply: data.Apply, identityChanged: data.IdentityChanged, report: data.Report,
		admin: data.Admin(), reload: data.Reload, shutdown: data.Shutdown, close: data.Close,
	}, nil
}

// reloadOn lets a signal give the program its files again, until stop is called.
func (d plane) reloadOn(s os.Signal) (stop func()) {
	if d.reload == nil {
		return func() {}
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, s)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range signals {
			d.reload()
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
		<-ended
	}
}
