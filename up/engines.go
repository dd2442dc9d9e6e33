package up

import (
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"countersign.dev/mesh"
)

// ErrEngine says that a proxy that the specification wants is not on this machine.
var ErrEngine = errors.New("a proxy is missing")

// engines are the files of the proxies that are not this program's own, by name.
type engines map[mesh.Engine]string

// administrators are directories of programs that a user's PATH may lack.
var administrators = []string{"/usr/local/sbin", "/usr/sbin", "/sbin"}

// findEngines looks for the proxies that a mesh needs, before anything is started.
func findEngines(all []*instance) (engines, error) {
	found := engines{}
	var missing []error
	var said []mesh.Engine
	for _, i := range all {
		engine := i.engine()
		if !i.plan().Proxy.Real() || found[engine] != "" || slices.Contains(said, engine) {
			continue
		}
		path, err := findProgram(string(engine))
		if err != nil {
			said = append(said, engine)
			missing = append(missing, fmt.Errorf("%w: %s has proxy.engine %s, and no program %s is on PATH: install it (the Debian package %s), or write engine: builtin",
				ErrEngine, i.plan().Workload.Name, engine, engine, packages[engine]))
			continue
		}
		found[engine] = path
	}
	return found, errors.Join(missing...)
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
			if dir := filepath.Dir(e[name]); !slices.Contains(filepath.SplitList(list), dir) {
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
