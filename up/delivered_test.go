package up

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"countersign.dev/api"
	"countersign.dev/engine"
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

// TestProxyEnvironment: a proxy learns nothing of what stands in the user's environment but the time zone.
func TestProxyEnvironment(t *testing.T) {
	t.Setenv("SECRET", "planted")
	t.Setenv("TZ", "Europe/Prague")
	r := &run{state: &state{dir: "/s"}, engines: engines{mesh.EngineNGINX: {Path: "/usr/sbin/nginx"}}}
	i := placed(t, specification(t, delivered))[0]
	want := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TZ=Europe/Prague"}
	if diff := cmp.Diff(want, r.proxyCommand(i).Env); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
}

// TestSupervisedEngine: a sidecar that runs the proxy itself is told which.
func TestSupervisedEngine(t *testing.T) {
	r := &run{state: &state{dir: "/s"}}
	all := placed(t, specification(t, "mesh: m\nservices: {a: {proxy: {engine: haproxy}}, b: {}}"))
	if args := r.sidecarArgs(all[0]); args[0] != "proxy" || !slices.Contains(args, "--engine") || !slices.Contains(args, "haproxy") {
		t.Errorf("the arguments are %q", args)
	}
	if args := r.sidecarArgs(all[1]); slices.Contains(args, "--engine") {
		t.Errorf("the built-in proxy is given %q", args)
	}
}

// TestMissingEngines: one message has all that are missing, and nothing is started.
func TestMissingEngines(t *testing.T) {
	f, stores := newDelivered(t)
	_, err := f.start()()
	if !errors.Is(err, ErrEngine) || strings.Count(err.Error(), "\n") != 1 {
		t.Fatalf("Run = %v, want ErrEngine twice", err)
	}
	for _, want := range []string{
		"back has proxy.engine nginx, and no program nginx is on PATH: install it (the Debian package nginx-light,",
		"front has proxy.engine haproxy, and no program haproxy is on PATH: install it (the Debian package haproxy)",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
	if len(f.events("start")) != 0 || len(*stores) != 0 {
		t.Errorf("started: %v, stores: %v", f.events("start"), *stores)
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

// TestKilledEngine: a proxy that was killed is started again, in a fresh directory for its sockets, and the
// document has the new pid.
func TestKilledEngine(t *testing.T) {
	f, _ := newDelivered(t, "nginx", "haproxy")
	f.start()
	doc := f.document()
	before := doc.Workloads[0].EnginePID
	if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the document has the new pid", func() bool {
		now, err := ReadDocument(filepath.Join(doc.State, "run.json"))
		if err != nil {
			t.Fatal(err)
		}
		after := now.Workloads[0].EnginePID
		return after != before && alive(after)
	})
	eventually(t, "it serves", func() bool { return len(f.events("serve")) == 4 })
	if broken := f.events("broken"); len(broken) != 0 {
		t.Errorf("the proxy met what the killed one left: %v", broken)
	}
}

// TestStubbornEngine: a proxy that does not finish is ended.
func TestStubbornEngine(t *testing.T) {
	f, _ := newDelivered(t, "nginx", "haproxy")
	f.trouble("stubborn haproxy")
	f.config.DrainTimeout = -time.Second // a second for what is under way
	wait := f.start()
	doc := f.document()
	f.signals <- syscall.SIGINT
	if status, err := wait(); status != 0 || err != nil {
		t.Errorf("Run = %d, %v; want 0", status, err)
	}
	if other := f.events("other"); !slices.Equal(other, []string{"front-1 terminated"}) {
		t.Errorf("signals: %v", other)
	}
	if alive(doc.Workloads[2].EnginePID) {
		t.Error("it runs at the end")
	}
}

// restart asks for the restart of an instance and gives what is answered.
func restart(t *testing.T, socket, method, path, body string) (int, api.Error) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	request, err := http.NewRequestWithContext(t.Context(), method, "http://up"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer api.Error
	if err := json.Unmarshal(text, &answer); err != nil {
		t.Fatalf("the answer is %q: %v", text, err)
	}
	if response.StatusCode == http.StatusOK && strings.TrimSpace(string(text)) != "{}" {
		t.Errorf("the answer is %q", text)
	}
	return response.StatusCode, answer
}

// since are the lines of the journal after the first n, without those of the rotation.
func (f *fixture) since(n int) []string {
	f.t.Helper()
	data, err := os.ReadFile(f.journal)
	if err != nil {
		f.t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return slices.DeleteFunc(lines, func(line string) bool { return strings.HasPrefix(line, "rotation") })[n:]
}

// TestRestart: an instance is drained, ended, started with what is current in the store, and ready.
func TestRestart(t *testing.T) {
	f, _ := newDelivered(t, "nginx", "haproxy")
	f.start()
	doc := f.document()
	info, err := os.Stat(doc.Control)
	if err != nil || info.Mode().Perm() != 0o600 || info.Mode().Type() != os.ModeSocket {
		t.Fatalf("the control socket is %v (%v)", info.Mode(), err)
	}
	for instance, want := range map[string][]string{
		"back-2":  {"stop back-2", "once init back-2 from store secret shop/back", "quit back-2", "serve back-2", "start back-2"},
		"front-1": {"stop front-1", "once init front-1 from store secret shop/front", "quit front-1", "serve front-1", "start front-1"},
		"plain-1": {"stop plain-1", "start plain-1"},
	} {
		seen := len(f.since(0))
		if status, answer := restart(t, doc.Control, http.MethodPost, PathRestart, `{"instance":"`+instance+`"}`); status != http.StatusOK {
			t.Fatalf("%s: %d %+v", instance, status, answer)
		}
		got := f.since(seen)
		if len(got) == len(want) && len(want) == 5 { // the proxy and its watcher start at once
			slices.Sort(got[3:])
			slices.Reverse(got[3:])
			slices.Sort(want[3:])
			slices.Reverse(want[3:])
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: what happened (-want +got):\n%s", instance, diff)
		}
	}
	eventually(t, "the document has the new pids", func() bool {
		now, err := ReadDocument(filepath.Join(doc.State, "run.json"))
		if err != nil {
			t.Fatal(err)
		}
		for n, w := range now.Workloads {
			was := doc.Workloads[n]
			restarted := w.Instance != "back-1"
			if !alive(w.PID) || (w.PID != was.PID) != restarted || (w.EnginePID != was.EnginePID) != (restarted && w.EnginePID != 0) {
				return false
			}
		}
		return true
	})
}

// TestRestartRefused: what cannot be restarted serves on, and is said.
func TestRestartRefused(t *testing.T) {
	f, _ := newDelivered(t, "nginx", "haproxy")
	f.start()
	doc := f.document()
	for name, test := range map[string]struct {
		method, path, body string
		status             int
		code, message      string
	}{
		"another path":   {http.MethodPost, "/v1/stop", `{}`, 404, api.CodeNotFound, "only POST /v1/restart"},
		"another method": {http.MethodGet, PathRestart, ``, 400, api.CodeBadRequest, "POST is the method"},
		"no JSON":        {http.MethodPost, PathRestart, `instance`, 400, api.CodeBadRequest, "not of the form"},
		"nobody":         {http.MethodPost, PathRestart, `{}`, 400, api.CodeBadRequest, "not of the form"},
		"unknown":        {http.MethodPost, PathRestart, `{"instance":"back-3"}`, 404, api.CodeNotFound, `no instance "back-3" runs here`},
		"long":           {http.MethodPost, PathRestart, `{"instance":"` + strings.Repeat("a", maxWord) + `"}`, 413, api.CodeTooLarge, "more than 4096 bytes"},
	} {
		if status, answer := restart(t, doc.Control, test.method, test.path, test.body); status != test.status || answer.Code != test.code || !strings.Contains(answer.Message, test.message) {
			t.Errorf("%s: %d %+v", name, status, answer)
		}
	}
	// The store has something that will not do: the proxy serves on, and is watched over.
	if err := os.WriteFile(filepath.Join(filepath.Dir(f.journal), "fail init back-1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	seen := len(f.since(0))
	status, answer := restart(t, doc.Control, http.MethodPost, PathRestart, `{"instance":"back-1"}`)
	if status != 500 || answer.Code != api.CodeInternal || !strings.Contains(answer.Message, "back-1 serves on with what it had: init of back-1 has ended with status 1") {
		t.Errorf("a bad secret: %d %+v", status, answer)
	}
	if got := f.since(seen); !slices.Equal(got, []string{"stop back-1", "start back-1"}) {
		t.Errorf("what happened: %q", got)
	}
	if !alive(doc.Workloads[0].EnginePID) {
		t.Error("the proxy was ended")
	}
}

// TestRestartAtOnce: an instance is restarted once at a time, and the end of the mesh ends a restart.
func TestRestartAtOnce(t *testing.T) {
	f, _ := newDelivered(t, "nginx", "haproxy")
	wait := f.start()
	doc := f.document()
	f.run.all[0].restarting.Lock()
	if status, answer := restart(t, doc.Control, http.MethodPost, PathRestart, `{"instance":"back-1"}`); status != 409 || answer.Code != api.CodeConflict {
		t.Errorf("while it is being restarted: %d %+v", status, answer)
	}
	f.run.all[0].restarting.Unlock()
	// Another instance of the same service waits for its turn.
	f.run.turns["back"] <- struct{}{}
	seen, answered := len(f.since(0)), make(chan int, 1)
	go func() {
		status, _ := restart(t, doc.Control, http.MethodPost, PathRestart, `{"instance":"back-2"}`)
		answered <- status
	}()
	eventually(t, "back-2 waits", func() bool {
		if f.run.all[1].restarting.TryLock() {
			f.run.all[1].restarting.Unlock()
			return false
		}
		return true
	})
	if got := f.since(seen); len(got) != 0 {
		t.Errorf("before its turn: %q", got)
	}
	<-f.run.turns["back"]
	if status := <-answered; status != http.StatusOK {
		t.Errorf("back-2: %d", status)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	away := &instance{name: "away"} // which never comes back
	away.planned.Store(&mesh.Plan{})
	go func() { ended <- f.run.back(ctx, away) }()
	cancel()
	if err := <-ended; !errors.Is(err, errStopping) {
		t.Errorf("the restart ended with %v", err)
	}
	f.signals <- syscall.SIGINT
	if _, err := wait(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(doc.Control); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is there at the end (%v)", err)
	}
}

// TestTableOfEngines: people are told who serves.
func TestTableOfEngines(t *testing.T) {
	d := &Document{Workloads: []Workload{
		{Instance: "a-1", Engine: mesh.EngineNGINX, EnginePID: 7, Delivery: mesh.DeliverStore},
		{Instance: "b-1", Engine: mesh.EngineHAProxy, EnginePID: 8, Delivery: mesh.DeliverAgent},
		{Instance: "c-1", Engine: mesh.EngineBuiltin, Delivery: mesh.DeliverAgent},
	}}
	text := d.table(time.Second, "/run.json", false)
	want := "\na-1 is served by nginx (process 7), with a certificate from a store.\nb-1 is served by haproxy (process 8).\n"
	if !strings.Contains(text, want) || strings.Contains(text, "c-1 is served") {
		t.Errorf("the table is\n%s", text)
	}
}

// TestEnginesOnPath: what was found beside PATH is found by the processes, too.
func TestEnginesOnPath(t *testing.T) {
	e := engines{mesh.EngineNGINX: {Path: "/usr/sbin/nginx"}, mesh.EngineHAProxy: {Path: "/opt/bin/haproxy"}}
	got := e.onPath([]string{"A=1", "PATH=/bin:/opt/bin", "B=2"})
	if diff := cmp.Diff([]string{"A=1", "PATH=/bin:/opt/bin:/usr/sbin", "B=2"}, got); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
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

// TestRefusedPlans: what a proxy cannot carry out is said before anything starts, of all proxies at once.
func TestRefusedPlans(t *testing.T) {
	const routed = `
gateways:
  edge:
    listen: [{port: 8080, protocol: http}]
    routes: [{to: [{service: plain}], timeout: {request: 1s}}]
    proxy: {engine: haproxy, version: "2.6"}
  other:
    listen: [{port: 8080, protocol: http}]
    proxy: {engine: nginx, version: 1.25.1}
`
	f, _ := newDelivered(t, "nginx", "haproxy")
	text := delivered + routed
	f.config.Spec = specification(t, text)
	_, err := f.start()()
	if !errors.Is(err, engine.ErrRefused) || !errors.Is(err, ErrEngine) {
		t.Fatalf("Run = %v, want engine.ErrRefused and ErrEngine", err)
	}
	for _, want := range []string{"edge: haproxy: the plan cannot be carried out", "timeout.request", "other has proxy.version 1.25.1, and ", "nginx is 1.22.1"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
	if started := f.events("start"); len(started) != 0 {
		t.Errorf("started: %v", started)
	}
}

// TestControlSocketIsTaken: what a killed run has left is replaced, and nothing else is.
func TestControlSocketIsTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.sock")
	left, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	left.SetUnlinkOnClose(false)
	left.Close()
	if err := removeSocket(path); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := removeSocket(path); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("over a file: %v", err)
	}
}
