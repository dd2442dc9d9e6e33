package up

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"countersign.dev/engine"
	"countersign.dev/mesh"
	"countersign.dev/supervise"
)

// ErrEngine says that a proxy that the specification wants is not on this machine.
var ErrEngine = errors.New("a proxy is missing")

// engines are the proxies that are not this program's own, by name.
type engines map[mesh.Engine]*supervise.Binary

// administrators are directories of programs that a user's PATH may lack.
var administrators = []string{"/usr/local/sbin", "/usr/sbin", "/sbin"}

// findEngines looks for the proxies that a mesh needs, and asks them for their versions, before anything is
// started.
func findEngines(ctx context.Context, kinds map[mesh.Engine]supervise.Kind, all []*instance) (engines, error) {
	found := engines{}
	var missing []error
	var said []mesh.Engine
	for _, i := range all {
		name := i.engine()
		if !i.plan().Proxy.Real() || found[name] != nil || slices.Contains(said, name) {
			continue
		}
		said = append(said, name)
		path, err := findProgram(string(name))
		if err != nil {
			missing = append(missing, fmt.Errorf("%w: %s has proxy.engine %s, and no program %s is on PATH: install it (the Debian package %s), or write engine: builtin",
				ErrEngine, i.plan().Workload.Name, name, name, packages[name]))
			continue
		}
		if found[name], err = kinds[name].Find(ctx, path); err != nil {
			missing = append(missing, fmt.Errorf("%w: %s has proxy.engine %s: %w", ErrEngine, i.plan().Workload.Name, name, err))
		}
	}
	return found, errors.Join(missing...)
}

// check finds what the proxies cannot carry out, before anything is started: everything at once.
func (e engines) check(spec *mesh.Spec, kinds map[mesh.Engine]supervise.Kind, all []*instance) error {
	var refused []error
	said := map[string]bool{}
	for _, i := range all {
		plan := i.plan()
		if !plan.Proxy.Real() || said[plan.Workload.Name] {
			continue
		}
		said[plan.Workload.Name] = true
		binary := e[plan.Proxy.Engine]
		if wanted := plan.Proxy.Version; wanted != "" && !engine.AtLeast(binary.Version, wanted) {
			refused = append(refused, fmt.Errorf("%w: %s has proxy.version %s, and %s is %s", ErrEngine, plan.Workload.Name, wanted, binary.Path, binary.Version))
			continue
		}
		o, err := i.options()
		if err != nil {
			return err
		}
		o.Version, o.OpenSSL, o.StreamModule = binary.Version, binary.OpenSSL, binary.StreamModule
		if _, err := kinds[plan.Proxy.Engine].Render(plan, o); err != nil {
			refused = append(refused, fmt.Errorf("%s: %w", plan.Workload.Name, engine.Placed(spec, plan.Workload, err)))
		}
	}
	return errors.Join(refused...)
}

// options are those of a configuration for the instance, as far as one is judged by them.
func (i *instance) options() (engine.Options, error) {
	o := engine.Options{Certificates: "/certificates", Run: "/run", Address: i.peers, Loopback: i.loopback, Binds: map[string]netip.AddrPort{}}
	for _, bind := range i.binds() {
		name, text, _ := strings.Cut(bind, "=")
		address, err := netip.ParseAddrPort(text)
		if err != nil {
			return o, fmt.Errorf("the address of %s of %s: %w", name, i.name, err)
		}
		o.Binds[name] = address
	}
	return o, nil
}

// engineArgs say to `init` which proxy it is that reads what it writes.
func (r *run) engineArgs(i *instance) []string {
	binary := r.engines[i.engine()]
	args := []string{"--engine", string(i.engine()), "--proxy-version", binary.Version, "--openssl-version", binary.OpenSSL}
	if i.engine() != mesh.EngineNGINX {
		return args
	}
	module := binary.StreamModule
	if module == "" {
		module = "none"
	}
	args = append(args, "--stream-module", module)
	if os.Geteuid() == 0 {
		// As another user its workers could not reach the directory of its sockets.
		args = append(args, "--user", "root")
	}
	return args
}

// packages are what Debian calls the proxies, with the module that tcp and permissive ports need.
var packages = map[mesh.Engine]string{
	mesh.EngineNGINX:   "nginx-light, and libnginx-mod-stream for tcp and permissive ports",
	mesh.EngineHAProxy: "haproxy",
}

// findProgram looks on PATH, and where programs of administrators are.
func findProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range administrators {
		if err == nil {
			break
		}
		path, err = exec.LookPath(filepath.Join(dir, name))
	}
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}

// onPath lets a process find the proxies by their names, after whatever else it finds.
func (e engines) onPath(env []string) []string {
	for i, entry := range env {
		list, ok := strings.CutPrefix(entry, "PATH=")
		if !ok {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(e)) {
			if dir := filepath.Dir(e[name].Path); !slices.Contains(filepath.SplitList(list), dir) {
				list += string(filepath.ListSeparator) + dir
			}
		}
		env[i] = "PATH=" + list
	}
	return env
}

// supervised is the master process of an NGINX or HAProxy that the instance's sidecar runs itself; 0 where
// there is none, or where the system does not say.
func supervised(i *instance) int {
	if i.fromStore() || !i.plan().Proxy.Real() {
		return 0
	}
	for _, pid := range childrenOf(i.sidecar.Load().lastPID()) {
		if programOf(pid) == string(i.engine()) {
			return pid
		}
	}
	return 0
}
