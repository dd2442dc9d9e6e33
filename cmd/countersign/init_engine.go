package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"countersign.dev/deliver"
	"countersign.dev/durable"
	"countersign.dev/engine"
	"countersign.dev/mesh"
	"countersign.dev/mtls"
	"countersign.dev/reload"
)

// initEngineFlags say which proxy it is, and how its configuration is written.
type initEngineFlags struct {
	Engine        string        `default:"" enum:",nginx,haproxy" placeholder:"PROXY" help:"Which proxy gets the files: nginx or haproxy."`
	Conf          string        `placeholder:"DIR" help:"Also write the proxy's configuration: DIR/nginx.conf or DIR/haproxy.cfg leads to the one of the generation in force. Needs --engine, and --plan or --server."`
	Plan          string        `placeholder:"FILE" help:"With --conf: the Plan, as 'countersign mesh plan --workload NAME --output json' prints it; env:NAME takes it from a variable."`
	Endpoint      []string      `sep:"none" placeholder:"SERVICE:PORT=HOST:PORT" help:"With --plan: where a called port is reached, such as the balancer before its instances. A name is looked up when the Plan is read, and all its addresses are taken. May be repeated."`
	RunDir        string        `default:"/run/countersign/proxy" placeholder:"DIR" help:"With --conf: the proxy's directory for sockets, its pid and scratch files; made with the mode 0700. Default: ${default}."`
	Address       string        `default:"0.0.0.0" placeholder:"IP" help:"With --conf: the address that peers connect to. Default: ${default}."`
	AppAddress    string        `default:"127.0.0.1" placeholder:"IP" help:"With --conf: the loopback address where the application is and dials. Default: ${default}."`
	Bind          []string      `sep:"none" placeholder:"NAME=IP:PORT" help:"With --conf: replaces one address: inbound/PORT or outbound/PORT is bound, app/PORT is where the application is. May be repeated."`
	ProxyVersion  string        `placeholder:"VERSION" help:"With --conf: the version of the proxy. Default: what the Plan says, or the oldest that is written for."`
	Openssl       string        `name:"openssl-version" default:"3.0" placeholder:"VERSION" help:"With --conf: the OpenSSL that the proxy is linked with. Default: ${default}."`
	StreamModule  string        `default:"/usr/lib/nginx/modules/ngx_stream_module.so" placeholder:"FILE" help:"With --conf: NGINX's stream module; \"none\" when it is compiled in. Default: ${default}."`
	User          string        `placeholder:"NAME" help:"With --conf: whom the workers of an NGINX that starts as root become. Default: NGINX's own default."`
	CRL           string        `name:"crl" placeholder:"FILE" help:"A file with revocation lists (PEM), of every authority whose certificates are accepted; it becomes crl.pem, and with --conf callers and callees are looked up in it. Default: none, or with --server those of the control plane."`
	AcceptRevoked bool          `help:"With --conf: serve although the Plan wants revoked callers refused and there are no revocation lists, so that nobody is looked up. Without it that is an error."`
	Callers       bool          `help:"With --conf: let the proxy tell which certificate each caller presents, for a watcher with --server, which writes it so by itself. Without a watcher NGINX complains on its standard error at each connection."`
	DrainTimeout  time.Duration `default:"30s" help:"With --conf: how long connections live on after a reload, at least 1s. Default: ${default}."`
	ConnectionAge time.Duration `default:"0s" help:"With --conf: how old a peer's connection becomes before it is closed after its next answer, so that peers have left when this instance is taken out of a balancer and stopped. 0s: as old as it likes. Default: ${default}."`

	// variables are those of the environment; set when they were handed over.
	variables secretSource
}

// writer writes a proxy's configuration.
type writer struct {
	flags   initEngineFlags
	proxy   reload.Proxy
	name    string // of the file
	options engine.Options
	render  func(*mesh.Plan, engine.Options) (*engine.Config, error)
	plan    *mesh.Plan // from --plan; nil when it comes from elsewhere
	// read is the Plan as it was read, before it was given endpoints: where the called ports are, from --endpoint.
	read      *mesh.Plan
	endpoints []endpoint
	notes     func(notes []string)
}

// writer reads the flags; it is nil when there is no configuration to write.
func (c initEngineFlags) writer(to string, fromServer bool, notes func([]string)) (*writer, error) {
	switch {
	case len(c.Endpoint) > 0 && fromServer:
		return nil, usagef("--endpoint: with --server the control plane says where instances are; leave one of the two out")
	case len(c.Endpoint) > 0 && c.Conf == "":
		return nil, usagef("--endpoint belongs to --conf")
	case c.Conf == "" && c.Plan == "":
		return nil, nil
	case c.Conf == "" && !fromServer:
		return nil, usagef("--plan says what the proxy's configuration is made of; say with --conf DIR where it goes")
	case c.Engine == "":
		return nil, usagef("--conf: which proxy? Write --engine nginx or --engine haproxy")
	case c.Plan == "" && !fromServer:
		return nil, usagef("--conf: the configuration is made of a Plan; write --plan FILE (countersign mesh plan --workload NAME --output json)")
	}
	proxy, _ := reload.Known(c.Engine) // the flag's enum leaves no other
	kind := foreignEngines[mesh.Engine(c.Engine)]
	w := &writer{flags: c, proxy: proxy, name: kind.Engine.File(), render: kind.Render, notes: notes}
	if err := c.options(to, &w.options); err != nil {
		return nil, err
	}
	w.options.Callers = c.Callers || fromServer
	if err := w.checkOptions(); err != nil {
		return nil, err
	}
	var err error
	if c.Plan != "" {
		if w.read, err = c.readPlan(); err != nil {
			return nil, err
		}
		w.plan = w.read
	}
	w.endpoints, err = c.endpoints(w.plan)
	return w, err
}

// options reads what kong cannot check.
func (c initEngineFlags) options(to string, o *engine.Options) error {
	var err error
	if o.Certificates, err = filepath.Abs(to); err != nil {
		return err
	}
	if !filepath.IsAbs(c.RunDir) {
		return usagef("--run-dir %q is not an absolute path", c.RunDir)
	}
	o.Run, o.OpenSSL, o.Drain, o.Age, o.User, o.StreamModule = filepath.Clean(c.RunDir), c.Openssl, c.DrainTimeout, c.ConnectionAge, c.User, c.StreamModule
	if o.StreamModule == "none" {
		o.StreamModule = ""
	}
	if o.Address, err = netip.ParseAddr(c.Address); err != nil {
		return usagef("--address %q is not an IP address", c.Address)
	}
	if o.Loopback, err = netip.ParseAddr(c.AppAddress); err != nil || !o.Loopback.IsLoopback() {
		return usagef("--app-address %q is not a loopback address; whoever reaches an outbound listener speaks as this instance", c.AppAddress)
	}
	if c.ConnectionAge < 0 || c.ConnectionAge > 0 && c.ConnectionAge < time.Millisecond {
		return usagef("--connection-age %s is neither 0s nor at least 1ms", c.ConnectionAge)
	}
	if c.DrainTimeout < time.Second {
		return usagef("--drain-timeout %s is less than 1s, and the proxies count whole seconds", c.DrainTimeout)
	}
	s := proxySettings{binds: make(map[string]string)}
	o.Binds = make(map[string]netip.AddrPort)
	for _, text := range c.Bind {
		if err := s.bind(text); err != nil {
			return err
		}
	}
	for name, address := range s.binds {
		if o.Binds[name], err = netip.ParseAddrPort(address); err != nil {
			return usagef("--bind %s: %w", name, err)
		}
	}
	return nil
}

// checkOptions refuses flags with which no configuration can be made, whatever the Plan says.
func (w *writer) checkOptions() error {
	least := foreignEngines[mesh.Engine(w.proxy.Name)].Least
	o := w.options
	if o.Version = w.flags.ProxyVersion; o.Version == "" {
		o.Version = least
	}
	if faults := o.Faults(); len(faults) > 0 {
		return usagef("--conf: %s", strings.Join(faults, "; "))
	}
	if !engine.AtLeast(o.Version, least) {
		return usagef("--proxy-version %s is older than %s, for which nothing is tested", o.Version, least)
	}
	return nil
}

// optionsOr are where the proxy listens, also when somebody else writes its configuration. The flags were checked.
func (w *writer) optionsOr(flags initEngineFlags) engine.Options {
	if w != nil {
		return w.options.WithDefaults("")
	}
	var o engine.Options
	_ = flags.options("/", &o) // what is wrong with an address of a listener is found when it is probed
	return o.WithDefaults("")
}

// text is the configuration of a Plan.
func (w *writer) text(plan *mesh.Plan, lists bool) ([]byte, error) {
	if plan.Proxy.Real() && string(plan.Proxy.Engine) != w.proxy.Name {
		return nil, fmt.Errorf("the specification says that the proxy of %s is %s, and --engine says %s", plan.Workload.Name, plan.Proxy, w.proxy.Name)
	}
	o := w.options
	o.CRL = lists
	if o.Version = plan.Proxy.Version; w.flags.ProxyVersion != "" {
		o.Version = w.flags.ProxyVersion
	}
	config, err := w.render(plan, o)
	if err != nil {
		return nil, err
	}
	notes := config.Notes
	for _, name := range idleBinds(plan, maps.Keys(o.Binds)) {
		notes = append(notes, fmt.Sprintf("--bind %s replaces nothing: %s has no such port", name, plan.Workload.Name))
	}
	w.notes(notes)
	return []byte(config.Text), nil
}

// idleBinds are the names in --bind that a Plan has no port for: mistyped, one would leave a listener at the default address unnoticed.
func idleBinds(plan *mesh.Plan, binds iter.Seq[string]) []string {
	used := make(map[string]bool)
	for _, in := range plan.Inbound {
		used[fmt.Sprintf("inbound/%d", in.Port)], used[fmt.Sprintf("app/%d", in.App)] = true, true
	}
	for _, out := range plan.Outbound {
		used[fmt.Sprintf("outbound/%d", out.Listen)] = true
	}
	return slices.DeleteFunc(slices.Sorted(binds), func(name string) bool { return used[name] })
}

// mostLists is the greatest size of a file with revocation lists in bytes.
const mostLists = 16 << 20

// lists reads --crl; nothing when there is none. A proxy that cannot read them would refuse everybody.
func (c initEngineFlags) lists() ([]byte, error) {
	if c.CRL == "" {
		return nil, nil
	}
	text, err := readOrdinary("--crl", c.CRL, mostLists)
	if err != nil {
		return nil, err
	}
	lists, err := mtls.ParseCRLs(text)
	if err != nil {
		return nil, fmt.Errorf("--crl %s: %w", c.CRL, err)
	}
	if text = lists.PEM(); len(text) == 0 {
		return nil, fmt.Errorf("--crl %s holds no revocation list", c.CRL)
	}
	return text, nil
}

// errNoLists says that callers are to be looked up and cannot be.
var errNoLists = errors.New("the specification wants revoked callers refused, and there are no revocation lists: give --crl FILE (`countersign ca crl` prints them), or --accept-revoked to serve without")

// listsFor are the revocation lists of a generation with a configuration: those in --crl, or for a Plan that wants callers looked
// up those in force. Without any such a Plan is an error, unless that was accepted, or the specification rather serves.
func (c initCmd) listsFor(plan *mesh.Plan) ([]byte, error) {
	if c.CRL != "" {
		return c.lists()
	}
	if plan == nil || !plan.Revocation.Check {
		return nil, nil
	}
	lists, err := deliver.KeptLists(c.To)
	if err != nil {
		return nil, fmt.Errorf("the revocation lists in force: %w", err)
	}
	if lists == nil && !c.AcceptRevoked && plan.Revocation.Stale != mesh.StaleServe {
		return nil, errNoLists
	}
	return lists, nil
}

// readOrdinary reads a file that a deployment has put there.
func readOrdinary(flag, path string, most int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s %s is not an ordinary file", flag, path)
	}
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	if int64(len(text)) > most {
		return nil, fmt.Errorf("%s %s has more than %d bytes", flag, path, most)
	}
	return text, nil
}

// file is the configuration in a generation. It holds no secret.
func (w *writer) file(text []byte) durable.File {
	return durable.File{Name: w.name, Data: text, Perm: 0o644}
}

// confLink is the link in --conf, made beside its place: what stands there is not replaced before there is something to lead to.
type confLink struct{ temp, path string }

// prepare makes the directories, and the link in --conf, which stays the same: it leads through the link to the generation in
// force, so that certificates and configuration change in one step. Its caller puts it in place, or drops it.
func (w *writer) prepare() (confLink, error) {
	if err := durable.MkdirAll(w.options.Run, 0o700); err != nil {
		return confLink{}, fmt.Errorf("--run-dir: %w; name a directory on a volume that this user may write to and that the proxy has, too", err)
	}
	if info, err := os.Stat(w.options.Run); err == nil && info.Mode().Perm()&0o077 != 0 {
		w.notes([]string{fmt.Sprintf("--run-dir %s has the mode %#o: others reach the proxy's sockets in it, past its listeners; run: chmod 700 %s", w.options.Run, info.Mode().Perm(), w.options.Run)})
	}
	if w.flags.Conf == "" {
		return confLink{}, nil
	}
	if err := durable.MkdirAll(w.flags.Conf, 0o755); err != nil {
		return confLink{}, fmt.Errorf("--conf: %w", err)
	}
	path, target := filepath.Join(w.flags.Conf, w.name), filepath.Join(w.options.Certificates, "current", w.name)
	if there, err := os.Readlink(path); err == nil && there == target {
		return confLink{}, nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) && !isFile(path) {
		return confLink{}, fmt.Errorf("--conf: %w", err)
	}
	l := confLink{temp: filepath.Join(w.flags.Conf, "."+w.name+".new"), path: path}
	if err := durable.Symlink(target, l.temp); err != nil {
		return confLink{}, fmt.Errorf("--conf: %w", err)
	}
	return l, nil
}

// put puts the link in place, in one step.
func (l confLink) put() error {
	if l.temp == "" {
		return nil
	}
	if err := durable.Rename(l.temp, l.path); err != nil {
		return fmt.Errorf("--conf: %w", err)
	}
	return nil
}

// drop removes the link that was not put.
func (l confLink) drop() {
	if l.temp != "" {
		_ = os.Remove(l.temp) // it is only litter
	}
}

func isFile(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().IsRegular()
}
