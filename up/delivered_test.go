package up

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/mesh"
)

// delivered has an instance of each kind.
const delivered = `
mesh: shop
stores: {vault: {type: file, dir: store, identityFile: id.txt}}
services:
  front:
    ports: [{port: 8081, protocol: http}]
    calls: [{service: back}]
    proxy: {engine: haproxy}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}", bundle: "{mesh}/bundle"}
  back:
    ports: [{port: 7000, protocol: http}]
    instances: 2
    proxy: {engine: nginx}
    delivery: {type: store, store: vault, secret: "{mesh}/{service}"}
    deploy: {type: restart}
  plain: {ports: [{port: 7001, protocol: http}]}
`

// newDelivered makes a run with fake proxies on PATH.
func newDelivered(t *testing.T, engines ...string) (f *fixture, stores *[]mesh.Store) {
	t.Helper()
	f = newFixture(t, delivered)
	bin := filepath.Join(filepath.Dir(f.journal), "bin")
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range engines {
		if err := os.Symlink(program, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin)
	before, whole := administrators, proxyEnvironment
	administrators = nil
	proxyEnvironment = environment // where the fake finds its journal
	t.Cleanup(func() { administrators, proxyEnvironment = before, whole })
	stores = new([]mesh.Store)
	f.config.JSON = true
	f.config.Store = func(store mesh.Store) error {
		*stores = append(*stores, store)
		return errors.Join(os.MkdirAll(store.Dir, 0o700), os.WriteFile(store.IdentityFile, nil, 0o600))
	}
	return f, stores
}

// TestDelivered: what comes from a store is made, written, served and watched over, in this order, and
// described.
func TestDelivered(t *testing.T) {
	for _, how := range []Addresses{AutoAddresses, SharedAddress} {
		t.Run(string(how), func(t *testing.T) {
			f, stores := newDelivered(t, "nginx", "haproxy")
			f.config.Addresses = how
			wait := f.start()
			doc := f.document()
			dir := filepath.Dir(f.config.Path)
			want := []mesh.Store{{Type: "file", Dir: filepath.Join(dir, "store"), IdentityFile: filepath.Join(dir, "id.txt")}}
			if diff := cmp.Diff(want, *stores); diff != "" {
				t.Errorf("stores that were made (-want +got):\n%s", diff)
			}
			once := f.events("once")
			if once[0] != "rotate from . secret" {
				t.Errorf("the first that was done is %q", once[0])
			}
			slices.Sort(once)
			inits := []string{"init back-1 from store secret shop/back", "init back-2 from store secret shop/back", "init front-1 from store secret shop/front", "rotate from . secret"}
			if diff := cmp.Diff(inits, once); diff != "" {
				t.Errorf("what was done once (-want +got):\n%s", diff)
			}
			var kinds []string
			for _, w := range doc.Workloads {
				kinds = append(kinds, fmt.Sprintf("%s %s %s %t", w.Instance, w.Engine, w.Delivery, alive(w.EnginePID)))
			}
			if diff := cmp.Diff([]string{"back-1 nginx store true", "back-2 nginx store true", "front-1 haproxy store true", "plain-1 builtin agent false"}, kinds); diff != "" {
				t.Errorf("the document (-want +got):\n%s", diff)
			}
			eventually(t, "the rotation runs", func() bool { return len(f.events("rotation")) == 1 })
			f.signals <- syscall.SIGINT
			if status, err := wait(); status != 0 || err != nil {
				t.Errorf("Run = %d, %v; want 0 after SIGINT", status, err)
			}
			if rotation := f.events("rotation"); !slices.Equal(rotation, []string{"of " + filepath.Join(doc.State, "run.json"), "ends"}) {
				t.Errorf("the rotation: %q", rotation)
			}
			quit := f.events("quit")
			if len(quit) != 3 || quit[0] != "front-1" || len(f.events("other")) != 0 || len(f.events("broken")) != 0 {
				t.Errorf("quit: %v, other: %v, broken: %v", quit, f.events("other"), f.events("broken"))
			}
			for _, w := range doc.Workloads {
				if alive(w.PID) || alive(w.EnginePID) {
					t.Errorf("%s runs at the end", w.Instance)
				}
			}
		})
	}
}

// TestNoRotation: who wants to rotate himself is left alone.
func TestNoRotation(t *testing.T) {
	f, _ := newDelivered(t, "nginx", "haproxy")
	f.config.NoRotation = true
	wait := f.start()
	f.document()
	f.signals <- syscall.SIGINT
	if _, err := wait(); err != nil {
		t.Error(err)
	}
	if rotation := f.events("rotation"); len(rotation) != 0 {
		t.Errorf("the rotation: %q", rotation)
	}
}

// TestWatcherArgs: what `init` is told, at the start and for as long as it watches.
func TestWatcherArgs(t *testing.T) {
	spec := specification(t, strings.Replace(delivered, `"{mesh}/{service}"}`, `"{mesh}/{service}", layout: separate, fields: {key: k, certificate: c}}`, 1))
	r := &run{state: &state{dir: "/s"}, cfg: Config{DrainTimeout: time.Second}, identity: Server{URL: "https://127.0.0.1:1", CAPin: "sha256:00"}}
	r.engines = engines{
		mesh.EngineNGINX:   {Path: "/usr/sbin/nginx", Version: "1.22.1", OpenSSL: "3.0.17", StreamModule: "/m.so"},
		mesh.EngineHAProxy: {Path: "/usr/sbin/haproxy", Version: "2.6.12", OpenSSL: "3.0.17"},
	}
	user := ""
	if os.Geteuid() == 0 {
		user = " --user root"
	}
	r.all = placed(t, spec)
	for _, i := range r.all {
		i.runDir = "/r/" + i.name
	}
	got := []string{strings.Join(r.watcherArgs(r.all[0]), " "), strings.Join(r.watcherArgs(r.all[2]), " "), strings.Join(r.proxyCommand(r.all[2]).Args, " "), strings.Join(r.proxyCommand(r.all[0]).Args, " ")}
	want := []string{
		"init --from file:/store --identity-file /id.txt --secret shop/back --layout separate --to /s/sidecars/back-1/certs --expect-id spiffe://shop.internal/service/back" +
			" --field certificate=c --field key=k --engine nginx --proxy-version 1.22.1 --openssl-version 3.0.17 --stream-module /m.so" + user + " --conf /s/sidecars/back-1/conf --run-dir /r/back-1 --callers --drain-timeout 1s --address 127.1.1.2 --app-address 127.1.1.3" +
			" --watch --interval 8760h0m0s --state /s/sidecars/back-1/agent --reload pidfile:/r/back-1/nginx.pid" +
			" --server https://127.0.0.1:1 --ca-pin sha256:00 --token-file /s/tokens/back-1 --instance back-1 --admin 127.1.1.4:9901",
		"init --from file:/store --identity-file /id.txt --secret shop/front --layout json --to /s/sidecars/front-1/certs --expect-id spiffe://shop.internal/service/front" +
			" --bundle-from secret:shop/bundle --engine haproxy --proxy-version 2.6.12 --openssl-version 3.0.17 --conf /s/sidecars/front-1/conf --run-dir /r/front-1 --callers --drain-timeout 1s --address 127.1.1.8 --app-address 127.1.1.9" +
			" --watch --interval 1s --state /s/sidecars/front-1/agent --reload haproxy:/r/front-1/master.sock" +
			" --server https://127.0.0.1:1 --ca-pin sha256:00 --token-file /s/tokens/front-1 --instance front-1 --admin 127.1.1.10:9901",
		"/usr/sbin/haproxy -W -S /r/front-1/master.sock,mode,600 -f /s/sidecars/front-1/conf/haproxy.cfg",
		"/usr/sbin/nginx -e stderr -c /s/sidecars/back-1/conf/nginx.conf",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("arguments (-want +got):\n%s", diff)
	}
}

// TestDeliveredNotStarted: what keeps a store's certificate from its proxy ends the start, with its words.
func TestDeliveredNotStarted(t *testing.T) {
	for name, test := range map[string]struct{ trouble, want string }{
		"the rotation":   {"fail rotate", "the first rotation has ended with status 1; its last lines:\n    a reason to give up"},
		"an init":        {"fail init back-2", "init of back-2 has ended with status 1; its last lines:\n    a reason to give up"},
		"no lists":       {"no lists", "the revocation lists for "},
		"a store":        {"store", "the secret store"},
		"a watcher ends": {"exit front-1", "sidecar front-1 has ended with status 1"},
	} {
		t.Run(name, func(t *testing.T) {
			f, _ := newDelivered(t, "nginx", "haproxy")
			f.trouble(test.trouble)
			if test.trouble == "store" {
				f.config.Store = func(mesh.Store) error { return errors.New("no good") }
			}
			if _, err := f.start()(); !errors.Is(err, ErrNotStarted) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Run = %v, want ErrNotStarted and %q", err, test.want)
			}
		})
	}
}

// TestWatcherIsAway: a watcher that is away may have lost its own certificate, of which the status shows
// nothing, and gets another join token. A sidecar that is away does not.
func TestWatcherIsAway(t *testing.T) {
	f, _ := newDelivered(t, "nginx", "haproxy")
	f.start()
	tokens := filepath.Join(f.document().State, "tokens")
	number := func(instance string) (n int) {
		data, err := os.ReadFile(filepath.Join(tokens, instance))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscanf(string(data), "token-%d\n", &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, instance := range []string{"back-1", "back-2", "front-1"} { // the fake server says that all are away
		eventually(t, instance+" has another token", func() bool { return number(instance) > 4 })
	}
	if n := number("plain-1"); n > 4 {
		t.Errorf("plain-1 has the token %d", n)
	}
}

// TestTemporaryStore: what a temporary run has made is removed with it; what was there, or belongs to a kept
// state, stays.
func TestTemporaryStore(t *testing.T) {
	for name, test := range map[string]struct {
		kept, before bool
		store, file  bool // are there at the end
	}{
		"made":               {false, false, false, false},
		"there before":       {false, true, true, false},
		"made, state kept":   {true, false, true, true},
		"before, state kept": {true, true, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			f, _ := newDelivered(t, "nginx", "haproxy")
			dir := filepath.Dir(f.config.Path)
			if test.kept {
				f.config.StateDir = filepath.Join(dir, "state")
			}
			if test.before {
				if err := os.Mkdir(filepath.Join(dir, "store"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			wait := f.start()
			f.document()
			f.signals <- syscall.SIGINT
			if _, err := wait(); err != nil {
				t.Error(err)
			}
			for path, want := range map[string]bool{"store": test.store, "id.txt": test.file} {
				if _, err := os.Stat(filepath.Join(dir, path)); (err == nil) != want {
					t.Errorf("%s: %v at the end", path, err)
				}
			}
		})
	}
}

// TestForeignStore: when the first rotation does not like what it finds, the user is told whose it may be.
func TestForeignStore(t *testing.T) {
	f, _ := newDelivered(t, "nginx", "haproxy")
	f.trouble("fail rotate")
	store := filepath.Join(filepath.Dir(f.config.Path), "store")
	if err := os.Mkdir(store, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := f.start()(); !errors.Is(err, ErrNotStarted) || !strings.Contains(err.Error(), "What was in "+store+" before may be of another authority") {
		t.Errorf("Run = %v", err)
	}
}
